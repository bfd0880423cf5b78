"""Quantum natural gradient for hybrid PyTorch + PennyLane models.

Start with ``QuantumLayer`` and ``QNGOptimizer``; ``metric_tensor`` gives the metric itself.
"""

from fubini.build import build_info as build_info
from fubini.build import get_num_threads as get_num_threads
from fubini.build import set_num_threads as set_num_threads
from fubini.errors import NumericalError as NumericalError
from fubini.errors import UnsupportedCircuitError as UnsupportedCircuitError
from fubini.metric import metric_tensor as metric_tensor
from fubini.torch import QNGOptimizer as QNGOptimizer
from fubini.torch import QuantumLayer as QuantumLayer

__version__ = build_info()["version"]
