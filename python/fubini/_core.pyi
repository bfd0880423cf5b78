"""
fubini's kernel. Private: use the functions of the fubini package, which check their arguments.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['Expression', 'FisherChain', 'Pass', 'Preconditioner', 'Program', 'ProgramBuilder', 'ShiftPlan', 'backward', 'backward_rows', 'berry_connection', 'blocks_from_probabilities', 'blocks_from_states', 'combine_rows', 'compiler', 'derivative_states', 'energy_curvature', 'energy_curvature_product', 'expression_kinds', 'expval', 'first_not_finite', 'forward', 'gate_table', 'hessian_product', 'isa', 'jacobian', 'jacobian_block', 'jvp', 'kronecker_factors', 'largest_eigenvalues', 'linear_block', 'linear_layer', 'linearise', 'mean_over_batch', 'memory_limit', 'metric', 'metric_factor', 'metric_vector_product', 'num_threads', 'output_factor', 'overlap_gradient', 'pull_factor', 'reduce_rows', 'set_memory_limit', 'set_num_threads', 'shift_rule', 'shift_sum', 'solve_batch', 'solve_fast', 'solve_kronecker', 'solve_list', 'solve_list_fast', 'solve_method_name', 'solve_status_text', 'stage_covariances', 'state', 'variational_velocities', 'version', 'vjp']
class ShiftPlan:
    """
    Parameter-shift terms of a circuit: angle index, coefficient and shift of each.
    """
    def __init__(self, angles: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], frequencies: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]], shifts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]] = []) -> None:
        ...
    def __len__(self) -> int:
        ...
    def angles(self, angles: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
        """
        (batch, angles) -> shifted (terms, batch, angles).
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
class Program:
    """
    A compiled circuit. Immutable.
    """
    def expansion(self, operation: typing.SupportsInt | typing.SupportsIndex) -> list[tuple[int, int, float]]:
        """
        K of a rotation or flip as a sum of words: (x mask, z mask, coefficient).
        """
    def operations(self) -> list[tuple[str, int, int, float, int, int, int, float, float, int]]:
        """
        Elementary operations in order: (kind, x mask, z mask, sign, fixed mask, fixed value, slot, coefficient, offset, mask of all wires).
        """
    def staged(self, order: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], stages: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]]]]) -> Program:
        """
        The operations in another order, measured on the way; a stage is (number of operations before it, [(x mask, z mask, coefficient, moment)]).
        """
    @property
    def num_angles(self) -> int:
        ...
    @property
    def num_outputs(self) -> int:
        ...
    @property
    def num_steps(self) -> int:
        """
        Passes over the state that one forward sweep makes, after fusion.
        """
    @property
    def num_wires(self) -> int:
        ...
    @property
    def takes_state(self) -> bool:
        ...
class ProgramBuilder:
    """
    Collects gates and observables. A parameter is (slot, coefficient, offset): coefficient * angles[slot] + offset; slot -1 leaves the offset alone.
    """
    def __init__(self, wires: typing.SupportsInt | typing.SupportsIndex, angles: typing.SupportsInt | typing.SupportsIndex, takes_state: bool) -> None:
        ...
    def build(self) -> Program:
        """
        Compile; the builder is empty afterwards.
        """
    def diagonal(self, diagonal: numpy.typing.NDArray[numpy.complex128], wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], controls: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], control_values: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], adjoint: bool) -> None:
        """
        Append a constant diagonal unitary, shape (2^k,).
        """
    def gate(self, name: str, wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], controls: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], control_values: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], adjoint: bool, parameters: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]) -> None:
        """
        Append a gate of the gate table.
        """
    def matrix(self, matrix: numpy.typing.NDArray[numpy.complex128], wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], controls: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], control_values: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], adjoint: bool) -> None:
        """
        Append a constant unitary, shape (2^k, 2^k).
        """
    def output(self, moment: typing.SupportsInt | typing.SupportsIndex, square: typing.SupportsInt | typing.SupportsIndex = -1) -> None:
        """
        Append a result column: moment - square^2, or moment alone.
        """
    def pauli_rotation(self, pauli: str, wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], controls: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], control_values: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], adjoint: bool, parameter: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        """
        Append exp(-i t P / 2).
        """
    def pauli_term(self, moment: typing.SupportsInt | typing.SupportsIndex, coefficient: typing.SupportsFloat | typing.SupportsIndex, pauli: str, wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Add coefficient * <P> to a moment.
        """
    def probability_term(self, moment: typing.SupportsInt | typing.SupportsIndex, weight: typing.SupportsFloat | typing.SupportsIndex, wires: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], index: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Add weight * probability of reading index on the wires to a moment.
        """
class Expression:
    """
    Angles, and amplitudes of an initial state, as a scalar program of weights and inputs: nodes (kind, u, v, c), terms (coefficient, u, v) of sums, outputs: angles, then real and imaginary parts of amplitudes, interleaved.
    """
    def __init__(self, weights: typing.SupportsInt | typing.SupportsIndex, inputs: typing.SupportsInt | typing.SupportsIndex, nodes: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]], terms: collections.abc.Sequence[tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], outputs: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], angles: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def angles(self, weights: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], inputs: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
        """
        Angles (batch, angles) for a list of weights and inputs (batch, features).
        """
    def evaluate(self, weights: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
        """
        Outputs (batch, outputs) of weights (weights,) or (batch, weights) and inputs (batch, features).
        """
    def hessian_product(self, weights: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], cotangents: numpy.typing.NDArray[numpy.float64], weight_tangents: numpy.typing.NDArray[numpy.float64] | None, input_tangents: numpy.typing.NDArray[numpy.float64] | None) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
        """
        Derivatives of the results of vjp along the tangents, for fixed cotangents.
        """
    def jacobian(self, weights: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], want_inputs: bool = False) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64] | None]:
        """
        Derivatives of some outputs by weights, (batch, rows, weights) or (1, rows, weights) where they are the same for all inputs, and by inputs, (batch, rows, features) or None.
        """
    def jvp(self, weights: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], weight_tangents: numpy.typing.NDArray[numpy.float64] | None, input_tangents: numpy.typing.NDArray[numpy.float64] | None) -> numpy.typing.NDArray[numpy.float64]:
        """
        Derivatives (batch, outputs) along tangents of the shapes of weights and inputs; None: does not move.
        """
    def states(self, weights: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], inputs: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.complex128] | None:
        """
        Initial states (batch, amplitudes), or None where there are none.
        """
    def vjp(self, weights: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], cotangents: numpy.typing.NDArray[numpy.float64]) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
        """
        Gradients, of the shapes of weights and inputs, of outputs weighted by (batch, outputs).
        """
    @property
    def num_outputs(self) -> int:
        ...
    @property
    def num_weights(self) -> int:
        ...
class Pass:
    """
    What `backward` needs of a call of `forward`.
    """
class Preconditioner:
    """
    A damped metric in blocks, factorised once for many gradients. Blocks are added in order, False where one is not positive definite; unknowns with a zero on the diagonal keep their gradient.
    """
    def __init__(self) -> None:
        ...
    def add_dense(self, matrix: numpy.typing.NDArray[numpy.float64], damping: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        A symmetric matrix (n, n).
        """
    def add_diagonal(self, values: numpy.typing.NDArray[numpy.float64], damping: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        A diagonal (n,).
        """
    def add_identity(self, n: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The identity, without damping.
        """
    def add_kronecker(self, left: numpy.typing.NDArray[numpy.float64], right: numpy.typing.NDArray[numpy.float64], widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], damping: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        left kron right; widths are the columns of each parameter.
        """
    def apply(self, gradient: numpy.typing.NDArray[numpy.float64]) -> tuple[numpy.typing.NDArray[numpy.float64], float]:
        """
        x (n,) = (G + D)^-1 gradient, and gradient . x, which is NaN if anything is not finite.
        """
    @property
    def size(self) -> int:
        ...
class FisherChain:
    """
    The natural-gradient step of linear layers, functions and circuits in turn, in one call. Parameters are looked at in their memory, in the order of the layers.
    """
    def __init__(self, family: str) -> None:
        ...
    def add_circuit(self, program: typing.Any, map: Expression, weights: collections.abc.Sequence[numpy.ndarray], form: str) -> None:
        """
        A circuit, whose metric is 'dense', 'diagonal' or 'none'.
        """
    def add_function(self, name: str) -> None:
        """
        A function of each entry.
        """
    def add_linear(self, weight: numpy.ndarray, bias: numpy.ndarray | None, form: str) -> None:
        """
        A linear layer, whose metric is 'dense', 'diagonal', 'kronecker' or 'none'.
        """
    def direction(self, inputs: numpy.typing.NDArray[numpy.float64], gradients: collections.abc.Sequence[numpy.ndarray], into: typing.SupportsInt | typing.SupportsIndex, decays: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], damping: typing.SupportsFloat | typing.SupportsIndex, share: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex | None, combine_from: typing.SupportsFloat | typing.SupportsIndex, by_outputs: numpy.typing.NDArray[numpy.float64] | None, passes: collections.abc.Sequence[Pass]) -> float:
        """
        Makes the damped solution `change` for gradients that are arrays like the trained parameters, with the average in set `into`; returns its product with the gradient. States are taken of passes at the same angles. Not a number where anything is not finite, a block is not positive definite, or a row of by_outputs (data, outputs), the gradient by the outputs, is zero.
        """
    def hold(self, even: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], odd: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], gradients: numpy.typing.NDArray[numpy.float64], change: numpy.typing.NDArray[numpy.float64]) -> None:
        """
        Gives the memory: two sets of averages and gradients (2, n), in turn, and the direction (1, n).
        """
    def move(self, rate: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Adds rate times the direction to the parameters.
        """
    @property
    def matrices(self) -> list[list[int]]:
        """
        Shapes of the averaged matrices, in the order of the layers.
        """
def backward(program: Program, map: Expression, passed: Pass, cotangents: numpy.typing.NDArray[numpy.float64]) -> tuple[numpy.typing.NDArray[numpy.float64], list[numpy.typing.NDArray[numpy.float64]]]:
    """
    Gradients by inputs (batch, features) and by every weight.
    """
def backward_rows(program: Program, map: Expression, passed: Pass, cotangents: numpy.typing.NDArray[numpy.float64]) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
    """
    Gradients by inputs (batch, features) and by weights (batch, weights), one for each element.
    """
def berry_connection(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Im <psi|d_a psi>, shape (batch, angles).
    """
def blocks_from_probabilities(probabilities: numpy.typing.NDArray[numpy.float64], generators: collections.abc.Sequence[collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]], wires: typing.SupportsInt | typing.SupportsIndex, diagonal: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    Covariances of diagonal generators, lists of (x mask, z mask, coefficient): (batch, k, k) or (batch, k).
    """
def blocks_from_states(states: numpy.typing.NDArray[numpy.complex128], generators: collections.abc.Sequence[collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]], wires: typing.SupportsInt | typing.SupportsIndex, diagonal: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    Covariances of any Pauli-sum generators, lists of (x mask, z mask, coefficient): (batch, k, k) or (batch, k).
    """
def combine_rows(factor: numpy.typing.NDArray[numpy.float64], seed: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
    """
    Sums (data, outputs) of the rows of S (data, rows, outputs) with random signs.
    """
def compiler() -> str:
    """
    Compiler that built this module.
    """
def derivative_states(program: Program, angles: numpy.typing.NDArray[numpy.float64], tangents: numpy.typing.NDArray[numpy.float64] | None = None, states: numpy.typing.NDArray[numpy.complex128] | None = None, repeat: typing.SupportsInt | typing.SupportsIndex = 1) -> numpy.typing.NDArray[numpy.complex128]:
    """
    Derivatives of the states along the tangents, (batch * repeat, 2^wires), or the states for None, in the sweeps' frame: without the Clifford at the end and the global phase.
    """
def energy_curvature(program: Program, angles: numpy.typing.NDArray[numpy.float64], weights: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, with_metric: bool = True) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64] | None]:
    """
    The energy of the weighted results, (batch,), its gradient, (batch, angles), the Gauss-Newton part of its Hessian and the metric, (batch, angles, angles); None in its place without with_metric.
    """
def energy_curvature_product(program: Program, angles: numpy.typing.NDArray[numpy.float64], weights: numpy.typing.NDArray[numpy.float64], vectors: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Products of that part of the Hessian with vectors, (batch, vectors, angles).
    """
def expression_kinds() -> dict[str, int]:
    """
    Kinds of nodes of an Expression and how many nodes they take; -1: a list of terms.
    """
def expval(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Results, shape (batch, outputs), at angles of shape (batch, angles).
    """
def first_not_finite(arrays: list[numpy.ndarray]) -> int:
    """
    Number of the first array of a list that has NaN or infinity; -1 if there is none.
    """
def forward(program: Program, map: Expression, weights: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], inputs: numpy.typing.NDArray[numpy.float64], keep: bool) -> tuple[numpy.typing.NDArray[numpy.float64], Pass | None]:
    """
    Results (batch, outputs), and a Pass if keep.
    """
def gate_table() -> list[tuple[str, int, int]]:
    """
    Name, number of wires and number of parameters of every native gate.
    """
def hessian_product(program: Program, angles: numpy.typing.NDArray[numpy.float64], cotangents: numpy.typing.NDArray[numpy.float64], tangents: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Hessian of the weighted results times the tangents, shape (batch, angles).
    """
def isa() -> str:
    """
    Instruction set that this module was compiled for.
    """
def jacobian(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Jacobian, shape (batch, outputs, angles).
    """
def jacobian_block(factor: numpy.typing.NDArray[numpy.float64], jacobian: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Sum of J^T S^T S J over data.
    """
def jvp(program: Program, angles: numpy.typing.NDArray[numpy.float64], tangents: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, state_tangents: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Derivative of the results along the tangents, shape (batch, outputs).
    """
def kronecker_factors(factor: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], bias: bool) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
    """
    K-FAC's factors of that block, (1, outputs, outputs) and (1, inputs + bias, inputs + bias).
    """
def largest_eigenvalues(factor: numpy.typing.NDArray[numpy.float64], covariances: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Largest eigenvalue of S C S^T (data,) for S (data, rows, outputs) and C (data, outputs, outputs).
    """
def linear_block(factor: numpy.typing.NDArray[numpy.float64], inputs: numpy.typing.NDArray[numpy.float64], bias: bool) -> numpy.typing.NDArray[numpy.float64]:
    """
    The same for the weight and bias of a linear layer.
    """
def linear_layer(inputs: numpy.typing.NDArray[numpy.float64], weight: numpy.typing.NDArray[numpy.float64], bias: numpy.typing.NDArray[numpy.float64] | None) -> numpy.typing.NDArray[numpy.float64]:
    """
    inputs weight^T + bias, (data, outputs).
    """
def linearise(program: Program, map: Expression, weights: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], inputs: numpy.typing.NDArray[numpy.float64], want_inputs: bool) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64] | None]:
    """
    Results (batch, outputs), their derivatives by weights (batch, outputs, weights), and by inputs (batch, outputs, features) or None.
    """
def mean_over_batch(values: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Mean over the first axis, added in its order.
    """
def memory_limit() -> float:
    """
    The limit in bytes.
    """
def metric(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, mean: bool = False, columns: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None, centred: bool = True, directions: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int64], typing.Annotated[numpy.typing.ArrayLike, numpy.int64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64]] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    Fubini-Study metric over the angles (or the chosen columns, or directions: starts, angles and coefficients of sparse vectors), shape (batch, k, k) or their mean (k, k); not centred: the mean of Re <d_i psi|d_j psi> alone.
    """
def metric_factor(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, columns: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None, directions: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int64], typing.Annotated[numpy.typing.ArrayLike, numpy.int64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64]] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    X of shape (k, batch * 2 * 2^wires) with X X^T = the mean metric: real, then imaginary parts of the centred derivative states of each batch element, divided by sqrt(batch).
    """
def metric_vector_product(program: Program, angles: numpy.typing.NDArray[numpy.float64], vectors: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, mean: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    Metric of each batch element times its vector, (batch, angles), or its vectors, (batch, vectors, angles); the mean has no batch.
    """
def num_threads() -> int:
    """
    Number of threads that the kernel may use.
    """
def output_factor(family: str, outputs: numpy.typing.NDArray[numpy.float64], share: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
    """
    Factors S (data, outputs, outputs) of share times the Hessian S^T S of -log p, by outputs (data, outputs).
    """
def overlap_gradient(program: Program, angles: numpy.typing.NDArray[numpy.float64], covectors: numpy.typing.NDArray[numpy.complex128], tangents: numpy.typing.NDArray[numpy.float64] | None = None, states: numpy.typing.NDArray[numpy.complex128] | None = None, repeat: typing.SupportsInt | typing.SupportsIndex = 1) -> numpy.typing.NDArray[numpy.float64]:
    """
    Re <d_a psi|phi> for covectors phi in the sweeps' frame, (batch * repeat, angles), or its derivative along the tangents.
    """
def pull_factor(factor: numpy.typing.NDArray[numpy.float64], jacobian: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    S J (data, rows, inputs) for S (data, rows, outputs) and J (data, outputs, inputs), or one J for all.
    """
def reduce_rows(factor: numpy.typing.NDArray[numpy.float64], rank: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
    """
    Factors (data, rank, outputs) of the same S^T S, whose rank is at most that.
    """
def set_memory_limit(bytes: typing.SupportsFloat | typing.SupportsIndex) -> None:
    """
    Limit what one sweep may allocate; 0: three quarters of the memory of this process.
    """
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Set the number of threads, 1 to 1024.
    """
def shift_rule(frequencies: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], shifts: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = []) -> list[tuple[float, float]]:
    """
    Terms (coefficient, shift in radians) of the parameter-shift rule for these frequencies and, if given, shifts.
    """
def shift_sum(index: numpy.typing.NDArray[numpy.int64], coefficients: numpy.typing.NDArray[numpy.float64], values: numpy.typing.NDArray[numpy.float64], count: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
    """
    Adds coefficient * values, (terms, batch, outputs), to the angle index of each term: derivatives (batch, outputs, count).
    """
def solve_batch(matrix: numpy.typing.NDArray[numpy.float64], rhs: numpy.typing.NDArray[numpy.float64], damping: numpy.typing.NDArray[numpy.float64], method: str = 'auto', damping_kind: str = 'absolute', rcond: typing.SupportsFloat | typing.SupportsIndex = -1.0, smooth: bool = False, exponent: typing.SupportsFloat | typing.SupportsIndex = 1.0, symmetry_tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-09, tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-12, max_iterations: typing.SupportsInt | typing.SupportsIndex = 0, start: numpy.typing.NDArray[numpy.float64] | None = None, want_info: bool = False) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.int8], dict[str, numpy.ndarray] | None]:
    """
    (x (batch, n, columns), status (batch), info or None) of matrix (batch, n, n) and rhs (batch, n, columns).
    """
def solve_fast(matrix: typing.Any, rhs: typing.Any, damping: typing.SupportsFloat | typing.SupportsIndex, damping_kind: str = 'absolute', method: str = 'auto') -> typing.Any:
    """
    x (shape of rhs) for contiguous float64 arrays, a method without options and one damping; None if that does not fit, takes long or fails.
    """
def solve_kronecker(left: numpy.typing.NDArray[numpy.float64], right: numpy.typing.NDArray[numpy.float64], widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], rhs: numpy.typing.NDArray[numpy.float64], damping: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float64], int]:
    """
    x (n,) with (left kron right + damping I) x = rhs, and a status; widths are the columns of each parameter.
    """
def solve_list(matrices: list[numpy.typing.NDArray[numpy.float64]], rhs: list[numpy.typing.NDArray[numpy.float64]], damping: numpy.typing.NDArray[numpy.float64], damping_kind: str = 'absolute', symmetry_tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-09) -> tuple[list[numpy.typing.NDArray[numpy.float64]], numpy.typing.NDArray[numpy.int8]]:
    """
    (list of x, status) of systems of mixed sizes: matrices (n, n), right-hand sides (n,) or (n, columns).
    """
def solve_list_fast(matrices: list[typing.Any], rhs: list[typing.Any], damping: typing.SupportsFloat | typing.SupportsIndex, damping_kind: str = 'absolute') -> tuple[list[numpy.typing.NDArray[numpy.float64]], numpy.typing.NDArray[numpy.int8]] | None:
    """
    (list of x, status) for lists of contiguous float64 arrays and one damping; None if that does not fit.
    """
def solve_method_name(method: typing.SupportsInt | typing.SupportsIndex) -> str:
    """
    The word for a method number in info.
    """
def solve_status_text(status: typing.SupportsInt | typing.SupportsIndex) -> str:
    """
    One sentence that says what happened and what to do.
    """
def stage_covariances(program: Program, angles: numpy.typing.NDArray[numpy.float64], counts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], diagonal: bool = False, states: numpy.typing.NDArray[numpy.complex128] | None = None, mean: bool = False) -> list[numpy.typing.NDArray[numpy.float64]]:
    """
    Covariances of the generators of each stage, (batch, k, k), or (batch, k) if diagonal, or their means without the batch. The moments of a stage are <K_i>, then <K_i K_j> for j <= i, or <K_i K_i>.
    """
def state(program: Program, angles: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None) -> numpy.typing.NDArray[numpy.complex128]:
    """
    Final states, shape (batch, 2^wires).
    """
def variational_velocities(tangents: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.float64], allowed: typing.SupportsFloat | typing.SupportsIndex, share: typing.SupportsFloat | typing.SupportsIndex, least: typing.SupportsFloat | typing.SupportsIndex, largest: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
    """
    McLachlan's principle: (velocities (batch, weights), residuals (batch,), dampings (batch,)) for tangents (batch, weights, width) and states' velocities (batch, width).
    """
def version() -> str:
    """
    Version of the package that this module was built with.
    """
def vjp(program: Program, angles: numpy.typing.NDArray[numpy.float64], cotangents: numpy.typing.NDArray[numpy.float64], states: numpy.typing.NDArray[numpy.complex128] | None = None, with_state_gradient: bool = False) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.complex128] | None]:
    """
    Results (batch, outputs), gradient (batch, angles), and gradient of the input states or None.
    """
