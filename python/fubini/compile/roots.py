"""From what was recorded to the map of a compiled circuit: which expressions are its angles and amplitudes."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.compile.agreement import Ours, Theirs, columns_of, same
from fubini.compile.call import Arguments
from fubini.compile.compiled import Affine, Compiled, Normalised, Traced
from fubini.compile.graph import depends, expression, is_affine
from fubini.compile.recorder import Recording
from fubini.compile.replay import Place
from fubini.compile.shadow import MIXED, MIXED_ROW, Codes, Shadow, UnknownError, split
from fubini.compile.watch import Watch
from fubini.native.circuit import Circuit
from fubini.native.reading import Reading
from fubini.options import Real

#: Why a call without a data argument is not compiled, where nothing else stands against it.
BATCHED = "one of its tensors is a batch"


def compiled_of(
    circuit: Circuit,
    reading: Reading,
    recording: Recording,
    arguments: Arguments,
    guard: Watch | None,
) -> Compiled | Traced:
    """Return the compiled form of a run, or why there is none.

    Raises:
        UnknownError: If an angle is nothing that is understood.
    """
    graph, shadow, batch = recording.graph, recording.shadow, arguments.batch
    angles = [_root(shadow, value, batch) for value in reading.parts.values]
    amplitudes = _amplitudes(shadow, circuit, reading.parts.preparation, batch)
    sizes = arguments.num_weights, arguments.width
    angle_map = expression(graph, [*angles, *(amplitudes or ())], len(angles), *sizes)
    decisions = []
    for predicate in recording.predicates:
        norms = expression(graph, [_one_node(predicate.codes, batch)], 1, *sizes)
        decisions.append(Normalised(norms, predicate.tolerance, predicate.holds))
    found = Compiled(
        circuit,
        angle_map,
        _affine(angle_map, *sizes) if amplitudes is None and is_affine(graph, angles) else None,
        guard,
        [k for k, one in enumerate(depends(graph, angles, "weight")) if one],
        any(depends(graph, amplitudes or (), "weight")),
        any(depends(graph, amplitudes or (), "input")),
        batch if recording.sized or batch == 1 else None,
        decisions,
    )
    if not _repeats(found, reading, arguments):
        return Traced("its angles could not be computed again from what was recorded")
    reason = None
    try:
        if not _replays(found, reading, recording, arguments):
            reason = "at random numbers its operations give other angles than what was recorded"
    except Exception as error:  # noqa: BLE001 - what cannot be repeated is not understood
        reason = f"its operations could not be repeated ({type(error).__name__}: {error})"
    return found if reason is None else Traced(reason)


def rows_of(tensors: Sequence[torch.Tensor], count: int | None) -> int | None:
    """Return which tensor is the one whose rows, (count, features) or (count,), may be inputs; None where none is."""
    for ndim in (2, 1):
        found = [k for k, v in enumerate(tensors) if v.ndim == ndim and len(v) == count != 1]
        if found:
            break
    # In one dtype: a function that is called with several may compute with either.
    return found[0] if len(found) == 1 and len({v.dtype for v in tensors}) == 1 else None


def why_batched(recording: Recording, reading: Reading, arguments: Arguments) -> str:
    """Return why a run whose tensors are all weights is a batch: one of them is, or its rows are mixed as no inputs may be."""
    graph, shadow, weights = recording.graph, recording.shadow, arguments.weights
    index, count = rows_of(weights, reading.batch), reading.batch
    if index is None or count is None:
        return BATCHED
    first, size = sum(w.numel() for w in weights[:index]), weights[index].numel()
    values = [v for v in reading.parts.values if isinstance(v, torch.Tensor) and shadow.tracks(v)]
    codes = [shadow.of(v).reshape(-1) for v in values]
    for row in (0, count - 1):  # what the first and the last one are made of
        roots = [int(c[row if len(c) == count else 0]) >> 32 for c in codes]
        for node in (graph.nodes[n] for n in graph.reached(roots)):
            at = node.arguments[0] - first if node.kind == "weight" else -1
            if 0 <= at < size and at // (size // count) != row:
                return MIXED
    return BATCHED


def _root(shadow: Shadow, value: Any, batch: int | None) -> int:
    """The node of an angle."""
    if not isinstance(value, torch.Tensor):
        array = np.asarray(qml.math.toarray(value), dtype=np.float64)
        if array.ndim == 0:
            return shadow.graph.constant(float(array))
        codes: Codes = shadow.of(torch.from_numpy(np.ascontiguousarray(array)))
    else:
        codes = shadow.of(value)
    return _one_node(codes, batch)


def _one_node(codes: Codes, batch: int | None) -> int:
    """The node of a number, or of one number for each input in order."""
    if codes.ndim == 0:
        code = int(codes)
        if not code & 0xFFFFFFFF:
            return code >> 32
    elif codes.shape == (batch,):
        first = int(codes[0]) - 1
        if not first & 0xFFFFFFFF and (codes == np.arange(first + 1, first + 1 + len(codes))).all():
            return first >> 32
    nodes, rows = split(codes.reshape(-1))
    if (rows == MIXED_ROW).any():
        raise UnknownError(MIXED)
    if len(nodes) > 1 and (batch is None or len(nodes) != batch):
        raise UnknownError(BATCHED)
    if (nodes != nodes[0]).any():
        raise UnknownError("it treats the inputs of a batch differently")
    if rows.any() and (rows != np.arange(1, len(rows) + 1)).any():
        raise UnknownError("it rearranges the inputs of a batch")
    if rows.any() and codes.ndim == 0 and batch != 1:
        raise UnknownError("it takes one input out of a batch")
    return int(nodes[0])


def _amplitudes(shadow: Shadow, circuit: Circuit, op: Any, batch: int | None) -> list[int] | None:
    """Nodes of the initial state's amplitudes, real and imaginary parts in turn; None without a state preparation."""
    if op is None:
        return None
    # CosineWindow has no parameters: its state is its own.
    value = op.parameters[0] if op.parameters else op.state_vector(wire_order=op.wires).reshape(-1)
    size = 2 ** len(op.wires)
    order = _places(op, circuit)
    zero = shadow.graph.constant(0.0)
    result = [zero] * (2 * 2**circuit.num_wires)
    if isinstance(value, torch.Tensor) and shadow.tracks(value):
        codes = shadow.of(value).reshape(-1, size)
        for k, place in enumerate(order):
            result[2 * place] = _one_node(codes[:, k], batch)
        return result
    array = np.asarray(qml.math.toarray(value), dtype=np.complex128)
    if array.ndim != 1:
        raise UnknownError("its initial state is a batch")
    for amplitude, place in zip(array.tolist(), order, strict=True):
        result[2 * place] = shadow.graph.constant(amplitude.real)
        result[2 * place + 1] = shadow.graph.constant(amplitude.imag)
    return result


def _places(op: Any, circuit: Circuit) -> list[int]:
    """Where the amplitudes of a state preparation go among those of all wires."""
    size = 2 ** len(op.wires)
    numbered = qml.StatePrep(np.arange(1, size + 1), wires=op.wires, validate_norm=False)
    state = np.asarray(numbered.state_vector(wire_order=list(circuit.wires))).reshape(-1)
    at = np.flatnonzero(state)
    order = np.empty(size, dtype=int)
    order[np.rint(state[at].real).astype(int) - 1] = at
    return [int(place) for place in order]


def _affine(angles: _core.Expression, num_weights: int, width: int) -> Affine:
    origin = np.zeros(num_weights), np.zeros((1, width))
    weights, inputs = angles.jacobian(*origin, range(angles.num_outputs), True)
    assert inputs is not None
    return Affine(angles.evaluate(*origin)[0], weights[0], inputs[0])


def _repeats(found: Compiled, reading: Reading, arguments: Arguments) -> bool:
    """Whether the map gives the angles and the state of the run: a second line of defence behind the rules."""
    weights, inputs = arguments.numbers()
    angles = found.angles(weights, inputs)
    expected = np.empty_like(angles)
    for column, value in enumerate(reading.parts.values):
        single = isinstance(value, torch.Tensor) and value.ndim == 0
        expected[:, column] = value.item() if single else to_numpy(value).reshape(-1)
    given = (*arguments.weights, arguments.inputs)
    low = any(t is not None and t.dtype is torch.float32 for t in given)
    tolerance = 1e-4 if low else 1e-10  # what the function's own rounding makes of a short formula
    close = functools.partial(np.allclose, rtol=tolerance, atol=tolerance, equal_nan=True)
    states = found.states(weights, inputs)
    return close(angles, expected) and (
        states is None or close(states, to_numpy(reading.state, np.complex128))
    )


def _replays(found: Compiled, reading: Reading, recording: Recording, arguments: Arguments) -> bool:
    """Whether the map, and the decisions, give at random numbers what the operations of the run give there."""
    shadow, replay = recording.shadow, recording.replay
    if not replay:  # then all that is in it are parts of weights and inputs
        return True

    def computed(value: Any) -> bool:
        tracked = isinstance(value, torch.Tensor) and shadow.tracks(value)
        return tracked and not recording.is_leaf(value)

    rows, values = arguments.batch or 1, reading.parts.values
    pairs: list[tuple[Theirs, Ours]] = []
    columns = [k for k, value in enumerate(values) if computed(value)]
    if columns:
        theirs = columns_of([values[k] for k in columns], rows)
        pairs.append((theirs, lambda w, x: found.angles([w], x)[:, columns]))
    op = reading.parts.preparation
    if op is not None and any(map(computed, op.parameters)):
        order, place = _places(op, found.circuit), Place.of(op.parameters[0])

        def amplitudes(weights: Real, inputs: Real) -> Real:
            states = found.states([weights], inputs)
            assert states is not None
            return states.real[:, order]

        pairs.append((lambda memory: place.within(memory).numpy(), amplitudes))
    for decision, predicate in zip(found.decisions, recording.predicates, strict=True):
        if computed(predicate.tensor):
            pairs.append((columns_of([predicate.tensor], rows), decision.norms.evaluate))
    try:
        return same(replay, pairs, arguments.num_weights, rows, arguments.width)
    finally:
        replay.clear()
