"""A circuit as gates with one angle each, at given weights and inputs, and what a QNode's quantum function queues."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import rebind
from fubini.circuit.decompose import (
    PREPARATIONS,
    generator_of,
    has_angle,
    hidden_weights,
    is_trainable,
)
from fubini.circuit.gate_layers import GateShape, Layer, find_layers
from fubini.circuit.measured import returning_what_it_measures, with_wires
from fubini.circuit.pauli import PauliSum, known_pauli_sum
from fubini.errors import UnsupportedCircuitError
from fubini.options import LayerRule, Real

_DENSE_MATRIX_WIRES = 5


@dataclass(frozen=True)
class Gate:
    """One operation with at most one angle.

    Attributes:
        operation: The PennyLane operation, its parameters as NumPy values, () or (batch,) for an angle.
        generator: Pauli sum K with gate = exp(-i angle K), for a gate with an angle.
        trainable: Whether the angle depends on weights.
        shape: What decides about dependence on other gates.
    """

    operation: Any
    generator: PauliSum | None
    trainable: bool
    shape: GateShape


@dataclass(frozen=True)
class GateTape:
    """A circuit at given weights and inputs.

    Attributes:
        gates: All gates in queue order.
        wires: Wire labels; position 0 is the most significant bit.
        batch: Number of inputs, or None for a circuit without a batch.
        weight_shapes: Shapes of the weights, in order.
        jacobian: d angle / d weight, (1 or batch, trainable angles, weights): the first axis is 1 where it does not
            depend on the input. Trainable angles are in gate order, weights flattened and concatenated.
        measurements: The measurements of the QNode.
        shots: Of the QNode; None for exact results.
    """

    gates: tuple[Gate, ...]
    wires: qml.wires.Wires
    batch: int | None
    weight_shapes: tuple[tuple[int, ...], ...]
    jacobian: Real
    measurements: tuple[Any, ...]
    shots: int | None = None

    @property
    def operations(self) -> list[Any]:
        """The operations of all gates."""
        return [gate.operation for gate in self.gates]

    @property
    def rows(self) -> int:
        """Number of inputs, 1 for a circuit without a batch."""
        return 1 if self.batch is None else self.batch

    def layers(self, rule: LayerRule) -> tuple[Layer, ...]:
        """Return the layers of the trainable gates."""
        return find_layers(tuple(gate.shape for gate in self.gates), rule)

    def generators(self, gates: Iterable[int]) -> list[PauliSum]:
        """Return the generators of gates, empty for those without one."""
        return [self.gates[i].generator or () for i in gates]

    @property
    def trainable(self) -> list[int]:
        """Indices of the trainable gates."""
        return [i for i, gate in enumerate(self.gates) if gate.trainable]

    @property
    def parameter_numbers(self) -> list[int]:
        """Position of every trainable angle among all gate parameters, as ``qml.metric_tensor`` counts them."""
        numbers, count = [], 0
        for gate in self.gates:
            if gate.trainable:
                numbers.append(count)
            count += len(gate.operation.data)
        return numbers

    @property
    def angles(self) -> Real:
        """Trainable angles, (1 or batch, angles)."""
        values = [np.asarray(self.gates[i].operation.data[0], dtype=float) for i in self.trainable]
        rows = max((value.size for value in values), default=1)
        columns = [np.broadcast_to(v.reshape(-1), (rows,)) for v in values]
        return np.stack(columns, axis=1) if columns else np.zeros((1, 0))

    @property
    def at(self) -> Real:
        """Trainable angles of every input, (1 or batch, angles)."""
        angles = self.angles
        return np.ascontiguousarray(np.broadcast_to(angles, (self.rows, angles.shape[1])))

    @property
    def position(self) -> dict[int, int]:
        """Place of every trainable gate among them."""
        return {gate: place for place, gate in enumerate(self.trainable)}

    def with_angles(self, angles: Real) -> list[Any]:
        """Return the operations with other trainable angles; ``angles``: (batch, trainable angles)."""
        operations = self.operations
        for column, i in enumerate(self.trainable):
            operations[i] = rebind(operations[i], [angles[:, column]])
        return operations


def finish(
    tape: Any,
    operations: list[Any],
    batch: int | None,
    shapes: tuple[tuple[int, ...], ...],
    jacobian: Real,
    constant: bool = False,
) -> GateTape:
    """Return a tape whose gates are known with the Jacobian of their angles.

    Args:
        tape: What the quantum function queued.
        operations: Its gates, parameters that depend on weights marked by their framework.
        batch: Number of inputs, or None.
        shapes: Of the weights.
        jacobian: (1 or batch, trainable angles, entries of weights).
        constant: Whether no gate needs to be trainable.

    Returns:
        The circuit at given weights and inputs.

    Raises:
        UnsupportedCircuitError: For trainable operations without a generator; names them.
        ValueError: If an angle or a derivative is not finite, or no angle depends on a weight.
    """
    wires = tape.wires
    if set(wires) == set(range(len(wires))):
        # The order in which a device without named wires returns states.
        wires = qml.wires.Wires(range(len(wires)))
    positions = {wire: k for k, wire in enumerate(wires)}
    if not np.isfinite(jacobian).all():
        raise ValueError(
            "weights: an angle has no finite derivative here; move the weights away from the singular point"
        )
    gates = tuple(_gate(op, positions, number) for number, op in enumerate(operations))
    if not constant and jacobian.shape[-1] and not any(gate.trainable for gate in gates):
        raise ValueError(
            "weights: expected gates whose angles depend on them, got none. Pass the weights as tensors that require "
            "grad, and use them in the circuit as tensors (float(w), w.item() and w.detach() cut the derivative)."
        )
    shots = tape.shots.total_shots
    return GateTape(gates, wires, batch, shapes, jacobian, tuple(tape.measurements), shots)


def user_tape(
    qnode: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    pure: bool = True,
    results: bool = False,
) -> Any:
    """Return the tape of a QNode after the user's transforms, with live tensors as parameters.

    Args:
        qnode: The QNode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        pure: Whether shots are refused.
        results: Whether the QNode must return the results of the tape as they are.

    Returns:
        The tape.

    Raises:
        UnsupportedCircuitError: If the QNode has shots and must not, or a list of them, or its transforms make several
            circuits of it, or change results that must be the tape's.
        QuantumFunctionError: Unless the function returns all measurements that it makes, in their order.
        ValueError: What the quantum function raises.
    """
    checked = copy.copy(qnode)
    checked.func = returning_what_it_measures(qnode.func)
    # It runs the inputs of a batch one by one, and changes no result.
    expansion = qml.transforms.broadcast_expand
    if any(t.tape_transform is expansion.tape_transform for t in checked.compile_pipeline):
        checked.compile_pipeline.remove(expansion)
    tapes, processing = qml.workflow.construct_batch(checked, level="user")(*args, **kwargs)
    if len(tapes) != 1:
        raise UnsupportedCircuitError(
            f"qnode: expected one circuit, got {len(tapes)} from its transforms; remove those transforms"
        )
    if results and not _returns_results(processing):
        raise UnsupportedCircuitError(
            "qnode: expected transforms that change the circuit alone, got one that computes with its results; remove "
            "it, and compute with the results outside of the QNode"
        )
    tape = tapes[0]
    if tape.shots.has_partitioned_shots:
        raise UnsupportedCircuitError(
            f"qnode: expected one number of shots, got {tape.shots}; use qml.set_shots(qnode, shots=n)"
        )
    if pure and tape.shots.total_shots is not None:
        raise UnsupportedCircuitError(
            f"qnode: expected an analytic QNode, got one with {tape.shots.total_shots} shots; use "
            "qml.set_shots(qnode, shots=None)"
        )
    return with_wires(_with_amplitudes(tape), qnode.device)


def _returns_results(processing: Any) -> bool:
    """Say whether the functions that transforms put behind a circuit return its results as they are."""
    marker = object()
    try:
        found = processing((marker,))
        return len(found) == 1 and found[0] is marker
    except Exception:  # noqa: BLE001 - it computes with what it is given, which is no result
        return False


def _with_amplitudes(tape: Any) -> Any:
    """The tape with the state that Möttönen's circuit prepares instead of the circuit, where it is differentiated."""
    # The circuit's angles have no derivative where amplitudes are zero. Its phase differs, which nothing measures.
    first: Any = tape.operations[0] if tape.operations else None
    if type(first) is not qml.MottonenStatePreparation or not is_trainable(first):
        return tape
    with qml.QueuingManager.stop_recording():
        prepared = qml.StatePrep(first.data[0], first.wires, validate_norm=False)
    return tape.copy(operations=[prepared, *tape.operations[1:]])


def batch_size(tape: Any) -> int | None:
    """Return the number of inputs of a tape, None where it has no batch.

    Raises:
        ValueError: For an empty batch.
    """
    batch = tape.batch_size
    if batch == 0:
        raise ValueError("inputs: expected at least one input, got an empty batch")
    return None if batch is None else int(batch)


def _gate(op: Any, positions: dict[Any, int], number: int) -> Gate:
    num_wires = len(positions)
    if hidden_weights(op):
        raise UnsupportedCircuitError(
            f"qnode: {op.name} on wires {op.wires.tolist()} depends on weights in a part that is no parameter of it; "
            "write it as gates with one angle each (RX, RZ, PauliRot, ...)"
        )
    trainable = is_trainable(op)
    support = sum(1 << (num_wires - 1 - positions[w]) for w in op.wires)
    data = [to_numpy(p, None) for p in op.data]
    for value in data:
        if not np.isfinite(value).all():
            at = f"operation {number} of the decomposed circuit"
            if value.ndim and op.batch_size:
                at += f", input {int(np.argwhere(~np.isfinite(value))[0][0])}"
            raise ValueError(
                f"qnode: a parameter of {op.name} on wires {op.wires.tolist()} is NaN or infinite ({at}); check the "
                "weights and inputs that it is computed from"
            )
    if op.data:
        op = rebind(op, data)
    if isinstance(op, qml.operation.Channel):
        if trainable:
            raise UnsupportedCircuitError(
                f"qnode: {op.name} on wires {op.wires.tolist()} depends on weights, and a channel has no generator; "
                "only gates can be trained"
            )
        return Gate(op, None, False, GateShape(support, False, None))
    if isinstance(op, PREPARATIONS):
        # Everything depends on the state preparation: no generator, no matrix, all wires.
        return Gate(op, None, False, GateShape((1 << num_wires) - 1, False, None))
    if has_angle(op):
        terms = known_pauli_sum(generator_of(op), positions, num_wires)
        if terms is None:  # pragma: no cover - _is_gate let it pass
            raise UnsupportedCircuitError(f"qnode: {op.name} has no generator")
        flipped = tuple((x, z, -c) for x, z, c in terms)  # exp(i t G) = exp(-i t K)
        return Gate(op, flipped, trainable, GateShape(support, trainable, flipped))
    if trainable:
        raise UnsupportedCircuitError(
            f"qnode: {op.name} on wires {op.wires.tolist()} depends on weights but has no generator; write it as "
            "gates with one angle each (RX, RZ, PauliRot, ...)"
        )
    return Gate(op, None, False, GateShape(support, False, None, _fixed_matrix(op, positions)))


def _fixed_matrix(op: Any, positions: dict[Any, int]) -> tuple[int, bytes] | None:
    if len(op.wires) > _DENSE_MATRIX_WIRES or op.batch_size is not None:
        return None
    order = sorted(op.wires, key=lambda w: positions[w])
    matrix = np.ascontiguousarray(qml.matrix(op, wire_order=order), dtype=complex)
    return len(matrix), matrix.tobytes()
