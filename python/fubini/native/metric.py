"""The Fubini-Study metric over a circuit's angles, on the native engine.

The full metric and its product with vectors are one call of the kernel each. Blocks need to know which rotations form a
layer: :func:`layer_plan` finds that once per circuit, on the elementary operations that the engine compiled the gates
to, and compiles one sweep that meets the state of every layer on its way.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fubini import _core
from fubini.circuit.gate_layers import GateShape, find_layers
from fubini.circuit.jacobian import Directions
from fubini.circuit.pauli import (
    PauliSum,
    bits_of,
    collected,
    dense,
    on_bits,
    sums_commute,
    symmetric_product,
)
from fubini.native.circuit import Circuit
from fubini.native.measurements import observable_sums
from fubini.options import Complex, LayerRule, Real, Reduce, check_approx, check_reduce, check_rule

Block = tuple[tuple[int, ...], Real]

# Matrices of constants on more wires are not made: their gates count as dependent, which is exact.
_MAX_CONSTANT_WIRES = 4
# Products of generators with more words are left to derivative states.
_MAX_WORD_PAIRS = 250_000
# The eigenvectors of larger density matrices take longer than they save.
_MAX_COMPRESSED = 256


@dataclass(frozen=True)
class LayerBlock:
    """Angles whose metric block is evaluated together.

    Attributes:
        angles: Indices of the angles, ascending.
        generators: Generator K of each angle, for exp(-i t K); None where an angle's rotations are in several layers,
            and the block comes from derivative states.
        before: How many operations of the plan's order prepare the state in which the generators' covariances are
            the block.
    """

    angles: tuple[int, ...]
    generators: tuple[PauliSum, ...] | None
    before: int = 0


class LayerPlan:
    """The blocks of a circuit's metric, and what is run to get them.

    Every layer's state is met on the way of one sweep over the circuit, its operations reordered so that each layer
    comes as late as it can. There the words in K_i and K_i K_j are measured.

    Args:
        program: The circuit's program.
        order: Operations in the order of the layers.
        blocks: Blocks in the order of the layers; every angle is in exactly one.
    """

    def __init__(
        self, program: _core.Program, order: list[int], blocks: tuple[LayerBlock, ...]
    ) -> None:
        self.blocks = blocks
        self.angles = [block.angles for block in blocks]
        self._program = program
        self._order = order
        self._sweeps: dict[bool, _core.Program] = {}
        self.counts = [len(block.angles) for block in blocks if block.generators is not None]
        #: The blocks' angles, one block after the other.
        self.columns = np.array([a for block in blocks for a in block.angles], dtype=np.intp)

    def sweep(self, diagonal: bool) -> _core.Program:
        """Return the program whose stages are the blocks with generators."""
        if diagonal not in self._sweeps:
            stages = [
                (block.before, _moments(block.generators, diagonal))
                for block in self.blocks
                if block.generators is not None
            ]
            self._sweeps[diagonal] = self._program.staged(self._order, stages)
        return self._sweeps[diagonal]


@dataclass
class _Unit:
    """Consecutive operations that the layers treat as one gate."""

    operations: list[int]
    shape: GateShape
    slot: int


def layer_plan(
    circuit: Circuit, rule: LayerRule = "wires", trainable: frozenset[int] | None = None
) -> LayerPlan:
    """Return the blocks of a circuit's metric; found once for each circuit and rule.

    Args:
        circuit: The circuit.
        rule: Which gates form a layer, see :mod:`fubini.circuit.gate_layers`.
        trainable: Angles of which the metric is wanted, so that others, which encode inputs, cut no layer; None: all.

    Returns:
        The plan; angles that the state does not depend on are its last block.
    """
    known = circuit.plans.get((rule, trainable))
    if known is None:
        known = circuit.plans[rule, trainable] = _layer_plan(circuit, rule, trainable)
    return known


@functools.lru_cache(maxsize=128)
def _layer_plan(circuit: Circuit, rule: LayerRule, trainable: frozenset[int] | None) -> LayerPlan:
    """The same for circuits that may be copies: finding an equal one compares their gates."""
    units = _units(circuit.program, trainable)
    layers = find_layers(tuple(unit.shape for unit in units), rule)
    home: dict[int, int] = {}
    split: set[int] = set()  # angles with rotations in several layers
    for number, layer in enumerate(layers):
        for gate in layer.gates:
            slot = units[gate].slot
            if home.setdefault(slot, number) != number:
                split.add(slot)
                home[slot] = number
    order: list[int] = []
    placed: set[int] = set()
    blocks = []
    for number, layer in enumerate(layers):
        # What earlier layers need never depends on this layer, so it may precede it as well.
        for unit in layer.before:
            if unit not in placed:
                placed.add(unit)
                order += units[unit].operations
        angles = tuple(sorted(slot for slot, where in home.items() if where == number))
        if not angles:
            continue
        sums: dict[int, PauliSum] = dict.fromkeys(angles, ())
        for gate in layer.gates:
            if units[gate].slot in sums:
                sums[units[gate].slot] += units[gate].shape.generator or ()
        generators = tuple(collected(sums[a]) for a in angles)
        if split.intersection(angles) or sum(map(len, generators)) ** 2 > _MAX_WORD_PAIRS:
            blocks.append(LayerBlock(angles, None))
        else:
            blocks.append(LayerBlock(angles, generators, len(order)))
    wanted = range(circuit.num_angles) if trainable is None else sorted(trainable)
    idle = tuple(a for a in wanted if a not in home)
    if idle:
        blocks.append(LayerBlock(idle, None))
    return LayerPlan(circuit.program, order, tuple(blocks))


def _moments(generators: tuple[PauliSum, ...], diagonal: bool) -> list[tuple[int, int, float, int]]:
    """Words of <K_i>, numbered from 0, and of Re <K_i K_j>, in the order that the kernel expects."""
    terms = [(x, z, c, i) for i, generator in enumerate(generators) for x, z, c in generator]
    moment = len(generators)
    for i, left in enumerate(generators):
        for right in [left] if diagonal else generators[: i + 1]:
            terms += [(x, z, c, moment) for x, z, c in symmetric_product(left, right)]
            moment += 1
    return terms


def _units(program: _core.Program, trainable: frozenset[int] | None) -> list[_Unit]:
    units: list[_Unit] = []
    for index, row in enumerate(program.operations()):
        kind, _, _, _, _, _, slot, coefficient, offset, support = row
        if kind != "rotation" or slot < 0 or coefficient == 0:
            angle = offset if kind == "rotation" else 0.0
            matrix = _constant(program, index, kind, angle, support)
            units.append(_Unit([index], GateShape(support, False, None, matrix), -1))
            continue
        terms = tuple((x, z, coefficient / 2 * c) for x, z, c in program.expansion(index))
        last = units[-1] if units else None
        # A gate with one angle may be several commuting rotations; a layer must not cut it.
        if last is not None and last.slot == slot and last.shape.generator is not None:
            known = last.shape.generator
            if sums_commute(known, terms):
                last.operations.append(index)
                last.shape = GateShape(
                    last.shape.support | support, last.shape.trainable, known + terms
                )
                continue
        wanted = trainable is None or slot in trainable
        units.append(_Unit([index], GateShape(support, wanted, terms), slot))
    return units


def _constant(
    program: _core.Program, index: int, kind: str, angle: float, support: int
) -> tuple[int, bytes] | None:
    """The matrix of a constant rotation or flip on its wires, as GateShape wants it."""
    if kind not in ("rotation", "flip") or support.bit_count() > _MAX_CONSTANT_WIRES:
        return None
    bits = bits_of(support)
    word = dense(on_bits(tuple(program.expansion(index)), bits), len(bits))
    projector = word @ word  # K = word * projector, and the word squares to one
    identity = np.eye(len(word))
    if kind == "flip":
        matrix = identity - projector + word
    else:
        matrix = identity + (np.cos(angle / 2) - 1) * projector - 1j * np.sin(angle / 2) * word
    return len(matrix), np.ascontiguousarray(matrix, dtype=complex).tobytes()


def observable_covariances(circuit: Circuit, angles: Real, states: Complex | None) -> Real | None:
    """Return the covariances ``Re<O_k O_l> - <O_k><O_l>`` of a circuit's observables, one for each result.

    Args:
        circuit: The circuit; it measures no variances.
        angles: Shape (B, A), finite.
        states: Initial states, or None.

    Returns:
        (B, M, M), or None where the observables have too many words.
    """
    program = _observable_sweep(circuit)
    if program is None:
        return None
    counts = [circuit.num_outputs]
    found: Real = _core.stage_covariances(program, angles, counts, False, states, False)[0]
    return found


@functools.lru_cache(maxsize=128)
def _observable_sweep(circuit: Circuit) -> _core.Program | None:
    """The program that measures all products of a circuit's observables at its end."""
    sums = observable_sums(circuit.structure.measurements, circuit.num_wires, _MAX_WORD_PAIRS)
    if sums is None or sum(map(len, sums)) ** 2 > _MAX_WORD_PAIRS:
        return None
    order = list(range(len(circuit.program.operations())))
    return circuit.program.staged(order, [(len(order), _moments(sums, False))])


def full_metric(
    circuit: Circuit,
    angles: Real,
    states: Complex | None,
    reduce: Reduce,
    columns: list[int] | None = None,
    directions: Directions | None = None,
) -> Real:
    """Return the metric over the angles, or along directions.

    Args:
        circuit: The circuit.
        angles: Shape (B, A), finite.
        states: Initial states, or None.
        reduce: ``"mean"`` averages over the batch.
        columns: The k angles whose metric is wanted, in their order; None: all.
        directions: k directions in the space of the angles, instead: J^T g J with these in the columns of J, from one
            tangent for each.

    Returns:
        (B, k, k), or (k, k) for the mean.
    """
    if reduce == "mean" and states is not None and _compressible(angles, states):
        return _metric_of_ensemble(circuit, angles[:1], states, columns, directions)
    mean = reduce == "mean"
    return _core.metric(circuit.program, angles, states, mean, columns, directions=directions)


def _compressible(angles: Real, states: Complex) -> bool:
    """Whether the inputs differ in their initial states alone, and are many more than amplitudes."""
    count, amplitudes = states.shape
    return (
        count == len(angles)
        and amplitudes <= _MAX_COMPRESSED
        and count >= 2 * amplitudes
        and bool((angles == angles[0]).all())
    )


def _metric_of_ensemble(
    circuit: Circuit,
    angles: Real,
    states: Complex,
    columns: list[int] | None,
    directions: Directions | None,
) -> Real:
    """The mean metric over inputs |x_b> of one circuit U, from at most 2^wires weighted inputs.

    The mean of Re <d_i x_b|d_j x_b> is linear in rho = mean |x_b><x_b|, so eigenvectors of rho, weighted by the roots of
    their eigenvalues, replace the inputs. The other term, the mean of a_b a_b^T with the Berry connection a_b, is not
    linear and needs every input, but only two sweeps of each.

    Args:
        circuit: U, with angles that all inputs share.
        angles: Shape (1, A), finite.
        states: The inputs, shape (B, N).
        columns: As for :func:`full_metric`.
        directions: Likewise.

    Returns:
        (k, k).
    """
    rho = states.T @ states.conj() / len(states)
    weights, vectors = np.linalg.eigh(rho)
    kept = weights > np.finfo(float).eps * weights[-1]
    inputs = np.ascontiguousarray((vectors[:, kept] * np.sqrt(weights[kept])).T)
    repeated = np.repeat(angles, len(inputs), axis=0)
    first = len(inputs) * _core.metric(
        circuit.program, repeated, inputs, True, columns, False, directions
    )
    repeated = np.repeat(angles, len(states), axis=0)
    connection = _core.berry_connection(circuit.program, repeated, states)
    if columns is not None:
        connection = connection[:, columns]
    if directions is not None:
        starts, slots, coefficients = directions
        along = np.zeros((circuit.num_angles, len(first)))
        along[slots, np.repeat(np.arange(len(first)), np.diff(starts))] = coefficients
        connection = connection @ along
    return first - connection.T @ connection / len(states)


def metric_factor(
    circuit: Circuit,
    angles: Real,
    states: Complex | None,
    columns: list[int] | None = None,
    directions: Directions | None = None,
) -> Real:
    """Return a factor of the mean metric: X with g = X X^T, as ``fubini.solve(X, b, method="dual")`` takes it.

    Column 2 N b + r is Re, and 2 N b + N + r is Im, of amplitude r of the derivative states of input b without their
    part along the state, divided by sqrt(B), in a frame of the engine's choice (a unitary common to all, so that
    products of columns of different inputs mean nothing). With the Jacobian of the angles, A = J w, J^T X is a factor of
    the weights' metric; where J differs between inputs, each J_b goes to the columns of its input.

    Args:
        circuit: The circuit.
        angles: Shape (B, A), finite.
        states: Initial states, or None.
        columns: The k angles whose rows are wanted, in their order; None: all.
        directions: k directions in the space of the angles, instead, as for :func:`full_metric`.

    Returns:
        (k, 2 N B) for N = 2^wires amplitudes.

    Raises:
        MemoryError: If the factor is larger than the memory limit.
    """
    return _core.metric_factor(circuit.program, angles, states, columns, directions)


def metric_products(
    circuit: Circuit, angles: Real, vectors: Real, states: Complex | None, reduce: Reduce
) -> Real:
    """Return the metric's products with several vectors for every input.

    Args:
        circuit: The circuit.
        angles: Shape (B, A), finite.
        vectors: Shape (B, K, A), finite: K vectors for each input.
        states: Initial states, or None.
        reduce: ``"mean"`` averages over the batch.

    Returns:
        (B, K, A), or (K, A) for the mean.
    """
    return _core.metric_vector_product(circuit.program, angles, vectors, states, reduce == "mean")


def metric_blocks(
    circuit: Circuit,
    angles: Real,
    states: Complex | None,
    reduce: Reduce,
    layers: LayerRule,
    diagonal: bool = False,
    trainable: frozenset[int] | None = None,
) -> list[Block]:
    """Return the metric's diagonal blocks, each an exact sub-matrix.

    Args:
        circuit: The circuit.
        angles: Shape (B, A), finite.
        states: Initial states, or None.
        reduce: ``"mean"`` averages over the batch.
        layers: Which gates form a layer.
        diagonal: Only the diagonals of the blocks.
        trainable: Angles of which blocks are wanted; None: all.

    Returns:
        Pairs of angle indices and values: (B, k, k), or (B, k) for diagonals; without B for the mean.
    """
    check_rule(layers)
    mean = reduce == "mean"
    plan = layer_plan(circuit, layers, trainable)
    covariances = (
        _core.stage_covariances(plan.sweep(diagonal), angles, plan.counts, diagonal, states, mean)
        if plan.counts
        else []
    )
    if len(covariances) == len(plan.blocks):
        return list(zip(plan.angles, covariances, strict=True))
    staged = iter(covariances)
    blocks: list[Block] = []
    for block in plan.blocks:
        if block.generators is None:
            columns = list(block.angles)
            values = _core.metric(circuit.program, angles, states, mean, columns)
            if diagonal:
                values = np.ascontiguousarray(np.diagonal(values, axis1=-2, axis2=-1))
        else:
            values = next(staged)
        blocks.append((block.angles, values))
    return blocks


def metric_diagonal(
    circuit: Circuit, angles: Real, states: Complex | None, reduce: Reduce, layers: LayerRule
) -> Real:
    """Return the metric's diagonal.

    Args:
        circuit: The circuit.
        angles: Shape (B, A), finite.
        states: Initial states, or None.
        reduce: ``"mean"`` averages over the batch.
        layers: Which gates are evaluated together; the result does not depend on it.

    Returns:
        (B, A), or (A,) for the mean.
    """
    lead = () if reduce == "mean" else (len(angles),)
    result = np.zeros((*lead, circuit.num_angles))
    blocks = metric_blocks(circuit, angles, states, reduce, layers, diagonal=True)
    if blocks:
        columns = layer_plan(circuit, layers).columns
        result[..., columns] = np.concatenate([values for _, values in blocks], axis=-1)
    return result


def check_request(angles: Real, approx: str | None, reduce: str | None, single: bool) -> None:
    """Raise a ValueError unless a metric can be computed.

    Args:
        angles: Shape (B, A).
        approx: Which part is asked for.
        reduce: Whether the mean is asked for.
        single: Whether the caller left out the batch dimension.

    Raises:
        ValueError: For an unknown name, angles that are not finite, or the mean of nothing.
    """
    check_approx(approx)
    check_reduce(reduce)
    if reduce == "mean" and not len(angles):
        raise ValueError("angles: expected at least one row for the mean, got an empty batch")
    check_finite("angles", angles, single)


def check_finite(name: str, values: Real, single: bool) -> None:
    """Raise a ValueError that names the first entry that is NaN or infinite.

    Args:
        name: The argument's name.
        values: Shape (B, A).
        single: Whether the caller left out the batch dimension.

    Raises:
        ValueError: If there is such an entry.
    """
    if np.isfinite(values).all():
        return
    bad = np.argwhere(~np.isfinite(values))
    row, column = (int(i) for i in bad[0])
    at: Sequence[int] = (column,) if single else (row, column)
    place = ", ".join(map(str, at))
    raise ValueError(
        f"{name}: expected finite numbers, got {values[row, column]} at {name}[{place}]"
        f"{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}. Check the weights and inputs they come from."
    )
