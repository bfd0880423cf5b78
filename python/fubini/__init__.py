"""Quantum natural gradient for hybrid PyTorch + PennyLane models.

Start with ``QuantumLayer`` and ``QNGOptimizer``; ``compiled`` makes a QNode a fast torch function; ``metric_tensor`` gives the metric itself, ``solve`` the regularised
solution of its systems.
"""

from fubini.devices.signal_to_noise import SignalToNoise
from fubini.energies.minimize import Minimum, minimize
from fubini.energies.problem import EnergyModel, EnergyProblem, energy_problem
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from fubini.geometry.capacity import effective_dimension
from fubini.geometry.evolution import evolve
from fubini.geometry.evolution_result import Evolution
from fubini.geometry.grow import grow, pool_scores
from fubini.geometry.grown import Grown
from fubini.geometry.report import report
from fubini.geometry.report_result import Report
from fubini.geometry.scores import PoolScores
from fubini.metric.compiled_qnode import CompiledQNode, compiled
from fubini.metric.derivative import metric_derivative
from fubini.metric.functions import geometric_tensor, metric_tensor, quantum_fisher
from fubini.metric.operator import metric_operator
from fubini.metric.plot import plot_metric
from fubini.metric.scipy_function import SciPyFunction, scipy_function
from fubini.metric.spectrum import MetricSpectrum, metric_spectrum
from fubini.native.circuit import Circuit
from fubini.native.operator import MetricOperator
from fubini.nn.layer import QuantumLayer
from fubini.nn.replace import replace_torch_layers
from fubini.optim.momentum import HeavyBall, Spring
from fubini.optim.optimizer import QNGOptimizer
from fubini.optim.policies import LevenbergMarquardt, Schedule, Tikhonov
from fubini.optim.shot_optimizer import ShotQNGOptimizer
from fubini.optim.step_rules import Armijo, TrustRegion
from fubini.runtime import (
    build_info,
    get_memory_limit,
    get_num_threads,
    set_memory_limit,
    set_num_threads,
)
from fubini.solvers.damping import Absolute, Damping, Diagonal, Relative
from fubini.solvers.systems import (
    CG,
    Dual,
    Pinv,
    Power,
    SolveInfo,
    SolveStatus,
    solve,
    solve_blocks,
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
    "EnergyModel",
    "EnergyProblem",
    "Evolution",
    "Gaussian",
    "Grown",
    "HeavyBall",
    "LevenbergMarquardt",
    "MetricOperator",
    "MetricSpectrum",
    "Minimum",
    "NumericalError",
    "Pinv",
    "Poisson",
    "PoolScores",
    "Power",
    "QNGOptimizer",
    "QuantumLayer",
    "Relative",
    "Report",
    "Schedule",
    "SciPyFunction",
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
    "effective_dimension",
    "energy_problem",
    "evolve",
    "geometric_tensor",
    "get_memory_limit",
    "get_num_threads",
    "grow",
    "metric_derivative",
    "metric_operator",
    "metric_spectrum",
    "metric_tensor",
    "minimize",
    "plot_metric",
    "pool_scores",
    "quantum_fisher",
    "replace_torch_layers",
    "report",
    "scipy_function",
    "set_memory_limit",
    "set_num_threads",
    "solve",
    "solve_blocks",
]


def __dir__() -> list[str]:
    """Name what is public: the folders are where it is implemented."""
    return sorted([*__all__, "__version__", "devices"])
