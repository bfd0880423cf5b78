"""
fubini's kernel. Private: use the functions of the fubini package, which check their arguments.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['ShiftPlan', 'blocks_from_probabilities', 'blocks_from_states', 'compiler', 'isa', 'mean_over_batch', 'num_threads', 'set_num_threads', 'shift_rule', 'solve_batch', 'solve_fast', 'solve_list', 'solve_method_name', 'solve_status_text', 'version']
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
def solve_batch(matrix: numpy.typing.NDArray[numpy.float64], rhs: numpy.typing.NDArray[numpy.float64], damping: numpy.typing.NDArray[numpy.float64], method: str = 'auto', damping_kind: str = 'absolute', rcond: typing.SupportsFloat | typing.SupportsIndex = -1.0, smooth: bool = False, exponent: typing.SupportsFloat | typing.SupportsIndex = 1.0, symmetry_tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-09, tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-12, max_iterations: typing.SupportsInt | typing.SupportsIndex = 0, start: numpy.typing.NDArray[numpy.float64] | None = None, want_info: bool = False) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.int8], dict[str, numpy.ndarray] | None]:
    """
    (x (batch, n, columns), status (batch), info or None) of matrix (batch, n, n) and rhs (batch, n, columns).
    """
def solve_fast(matrix: typing.Any, rhs: typing.Any, damping: typing.SupportsFloat | typing.SupportsIndex) -> typing.Any:
    """
    x (shape of rhs) for contiguous float64 arrays, method 'auto' and one damping; None if that does not fit.
    """
def solve_list(matrices: list[numpy.typing.NDArray[numpy.float64]], rhs: list[numpy.typing.NDArray[numpy.float64]], damping: numpy.typing.NDArray[numpy.float64], damping_kind: str = 'absolute', symmetry_tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-09) -> tuple[list[numpy.typing.NDArray[numpy.float64]], numpy.typing.NDArray[numpy.int8]]:
    """
    (list of x, status) of systems of mixed sizes: matrices (n, n), right-hand sides (n,) or (n, columns).
    """
def solve_method_name(method: typing.SupportsInt | typing.SupportsIndex) -> str:
    """
    The word for a method number in info.
    """
def solve_status_text(status: typing.SupportsInt | typing.SupportsIndex) -> str:
    """
    One sentence that says what happened and what to do.
    """
def version() -> str:
    """
    Version of the package that this module was built with.
    """
