"""Quantum natural gradient for hybrid PyTorch + PennyLane models.

Start with ``QuantumLayer`` and ``QNGOptimizer``; ``metric_tensor`` gives the metric itself, ``solve`` the regularised
solution of its systems.
"""

from fubini.build import build_info, get_num_threads, set_num_threads
from fubini.circuit import Circuit
from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.metric import metric_tensor
from fubini.policies import Armijo, LevenbergMarquardt, Schedule, Tikhonov, TrustRegion
from fubini.solve import CG, Dual, Pinv, Power, SolveInfo, SolveStatus, solve, solve_blocks
from fubini.torch import HeavyBall, QNGOptimizer, QuantumLayer, Spring, replace_torch_layers

__version__ = build_info()["version"]

__all__ = [
    "CG",
    "Absolute",
    "Armijo",
    "Circuit",
    "Damping",
    "Diagonal",
    "Dual",
    "HeavyBall",
    "LevenbergMarquardt",
    "NumericalError",
    "Pinv",
    "Power",
    "QNGOptimizer",
    "QuantumLayer",
    "Relative",
    "Schedule",
    "SolveInfo",
    "SolveStatus",
    "Spring",
    "Tikhonov",
    "TrustRegion",
    "UnsupportedCircuitError",
    "build_info",
    "get_num_threads",
    "metric_tensor",
    "replace_torch_layers",
    "set_num_threads",
    "solve",
    "solve_blocks",
]
