"""Quantum natural gradient for hybrid PyTorch + PennyLane models."""

from fubini import _core as _core
from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.errors import NumericalError
from fubini.policies import Armijo, LevenbergMarquardt, Schedule, Tikhonov, TrustRegion
from fubini.solve import CG, Dual, Pinv, Power, SolveInfo, SolveStatus, solve, solve_blocks

__all__ = [
    "CG",
    "Absolute",
    "Armijo",
    "Damping",
    "Diagonal",
    "Dual",
    "LevenbergMarquardt",
    "NumericalError",
    "Pinv",
    "Power",
    "Relative",
    "Schedule",
    "SolveInfo",
    "SolveStatus",
    "Tikhonov",
    "TrustRegion",
    "solve",
    "solve_blocks",
]
