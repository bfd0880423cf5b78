"""Quantum natural gradient for hybrid PyTorch + PennyLane models."""

from fubini import _core as _core
from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.errors import NumericalError
from fubini.solve import CG, Dual, Pinv, Power, SolveInfo, SolveStatus, solve, solve_blocks

__all__ = [
    "CG",
    "Absolute",
    "Damping",
    "Diagonal",
    "Dual",
    "NumericalError",
    "Pinv",
    "Power",
    "Relative",
    "SolveInfo",
    "SolveStatus",
    "solve",
    "solve_blocks",
]
