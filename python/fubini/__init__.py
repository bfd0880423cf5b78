"""Quantum natural gradient for hybrid PyTorch + PennyLane models."""

from fubini import _core as _core
