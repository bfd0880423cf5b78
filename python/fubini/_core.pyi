"""
fubini's kernel. Private: use the functions of the fubini package, which check their arguments.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['ShiftPlan', 'blocks_from_probabilities', 'blocks_from_states', 'compiler', 'isa', 'mean_over_batch', 'num_threads', 'set_num_threads', 'shift_rule', 'version']
class ShiftPlan:
    """
    Parameter-shift terms of a circuit: angle index, coefficient and shift of each.
    """
    def __init__(self, angles: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], frequencies: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]]) -> None:
        ...
    def __len__(self) -> int:
        ...
    def angles(self, angles: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
        """
        (batch, angles) -> shifted (terms, batch, angles).
        """
    def contract(self, values: numpy.typing.NDArray[numpy.float64], count: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
        """
        (terms, batch, outputs) -> derivatives (batch, outputs, count).
        """
    @property
    def coefficient(self) -> list[float]:
        ...
    @property
    def index(self) -> list[int]:
        ...
    @property
    def shift(self) -> list[float]:
        ...
def blocks_from_probabilities(probabilities: numpy.typing.NDArray[numpy.float64], generators: collections.abc.Sequence[collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]], wires: typing.SupportsInt | typing.SupportsIndex, diagonal: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    Covariances of diagonal generators, lists of (x mask, z mask, coefficient): (batch, k, k) or (batch, k).
    """
def blocks_from_states(states: numpy.typing.NDArray[numpy.complex128], generators: collections.abc.Sequence[collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]], wires: typing.SupportsInt | typing.SupportsIndex, diagonal: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    Covariances of any Pauli-sum generators, lists of (x mask, z mask, coefficient): (batch, k, k) or (batch, k).
    """
def compiler() -> str:
    """
    Compiler that built this module.
    """
def isa() -> str:
    """
    Instruction set that this module was compiled for.
    """
def mean_over_batch(values: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Mean over the first axis, added in its order.
    """
def num_threads() -> int:
    """
    Number of threads that the kernel may use.
    """
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Set the number of threads, 1 to 1024.
    """
def shift_rule(frequencies: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]) -> list[tuple[float, float]]:
    """
    Terms (coefficient, shift in radians) of the parameter-shift rule for these frequencies.
    """
def version() -> str:
    """
    Version of the package that this module was built with.
    """
