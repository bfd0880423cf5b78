"""Quantum natural gradient for hybrid PyTorch + PennyLane models.

Start with ``QuantumLayer`` and ``QNGOptimizer``; ``metric_tensor`` gives the metric itself, ``solve`` the regularised
solution of its systems.
"""

from fubini.build import build_info, get_num_threads, set_num_threads
from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.metric import metric_tensor
from fubini.solve import CG, Dual, Pinv, Power, SolveInfo, SolveStatus, solve, solve_blocks
from fubini.torch import QNGOptimizer, QuantumLayer

__version__ = build_info()["version"]

__all__ = [
    "CG",
    "Absolute",
    "Damping",
    "Diagonal",
    "Dual",
    "NumericalError",
    "Pinv",
    "Power",
    "QNGOptimizer",
    "QuantumLayer",
    "Relative",
    "SolveInfo",
    "SolveStatus",
    "UnsupportedCircuitError",
    "build_info",
    "get_num_threads",
    "metric_tensor",
    "set_num_threads",
    "solve",
    "solve_blocks",
]
