"""The Fubini-Study metric over a circuit's angles, on the native engine: the full one, its blocks and its diagonal."""

import functools
from collections.abc import Iterator

import numpy as np

from fubini import _core
from fubini.circuit.arguments import check_finite_array
from fubini.circuit.jacobian import Directions
from fubini.native.circuit import Circuit
from fubini.native.layer_plan import MAX_WORD_PAIRS, layer_plan, moments
from fubini.native.measurements import observable_sums
from fubini.options import Complex, LayerRule, Real, Reduce, check_approx, check_reduce

Block = tuple[tuple[int, ...], Real]

# The eigenvectors of larger density matrices take longer than they save.
_MAX_COMPRESSED = 256


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
    sums = observable_sums(circuit.structure.measurements, circuit.num_wires, MAX_WORD_PAIRS)
    if sums is None or sum(map(len, sums)) ** 2 > MAX_WORD_PAIRS:
        return None
    order = list(range(len(circuit.program.operations())))
    return circuit.program.staged(order, [(len(order), moments(sums, False))])


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
    mean = reduce == "mean"
    plan = layer_plan(circuit, layers, trainable)
    staged: Iterator[Real] = iter(())
    if plan.counts:
        sweep = plan.sweep(diagonal)
        staged = iter(_core.stage_covariances(sweep, angles, plan.counts, diagonal, states, mean))
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
    try:
        check_finite_array(name, values[0] if single else values)
    except ValueError as error:
        raise ValueError(f"{error}. Check the weights and inputs they come from.") from None
