"""Quantum natural gradient for hybrid PyTorch + PennyLane models.

Start with ``QuantumLayer`` and ``QNGOptimizer``; ``compiled`` makes a QNode a fast torch function; ``metric_tensor`` gives the metric itself, ``solve`` the regularised
solution of its systems.
"""

from fubini.build import (
    build_info,
    get_memory_limit,
    get_num_threads,
    set_memory_limit,
    set_num_threads,
)
from fubini.circuit import Circuit
from fubini.compiled_qnode import CompiledQNode, compiled
from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.devices.snr import SignalToNoise
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.metric import (
    geometric_tensor,
    metric_derivative,
    metric_operator,
    metric_tensor,
    quantum_fisher,
)
from fubini.metric_operator import MetricOperator
from fubini.plotting import plot_metric
from fubini.policies import Armijo, LevenbergMarquardt, Schedule, Tikhonov, TrustRegion
from fubini.solve import CG, Dual, Pinv, Power, SolveInfo, SolveStatus, solve, solve_blocks
from fubini.spectrum import MetricSpectrum, metric_spectrum
from fubini.torch import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeavyBall,
    QNGOptimizer,
    QuantumLayer,
    ShotQNGOptimizer,
    Spring,
    replace_torch_layers,
)

__version__ = build_info()["version"]

__all__ = [
    "CG",
    "Absolute",
    "Armijo",
    "Bernoulli",
    "Categorical",
    "Circuit",
    "CompiledQNode",
    "Damping",
    "Diagonal",
    "Dual",
    "Gaussian",
    "HeavyBall",
    "LevenbergMarquardt",
    "MetricOperator",
    "MetricSpectrum",
    "NumericalError",
    "Pinv",
    "Power",
    "QNGOptimizer",
    "QuantumLayer",
    "Relative",
    "Schedule",
    "ShotQNGOptimizer",
    "SignalToNoise",
    "SolveInfo",
    "SolveStatus",
    "Spring",
    "Tikhonov",
    "TrustRegion",
    "UnsupportedCircuitError",
    "build_info",
    "compiled",
    "geometric_tensor",
    "get_memory_limit",
    "get_num_threads",
    "metric_derivative",
    "metric_operator",
    "metric_spectrum",
    "metric_tensor",
    "plot_metric",
    "quantum_fisher",
    "replace_torch_layers",
    "set_memory_limit",
    "set_num_threads",
    "solve",
    "solve_blocks",
]
