"""From a call of a QNode to gates with one angle each, and the Jacobian of those angles by the weights.

The quantum function runs once, with the tensors of the user's framework, so that whatever it computes from weights and
inputs (``2 * w``, ``w * x``, ``sin(x)``) is differentiated by that framework. Weights are what the user trains; inputs
and constants are everything else, whether they carry ``requires_grad`` for other reasons or not.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch

from fubini.arrays import is_jax, is_tensor, to_numpy
from fubini.circuit.decompose import (
    PREPARATIONS,
    gate_operations,
    generator_of,
    has_angle,
    hidden_weights,
    is_trainable,
)
from fubini.circuit.gate_layers import GateShape
from fubini.circuit.measured import returning_what_it_measures, with_wires
from fubini.circuit.pauli import PauliSum, pauli_sum
from fubini.circuit.unfold import rebind
from fubini.errors import UnsupportedCircuitError

FloatArray = npt.NDArray[np.float64]

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
    jacobian: FloatArray
    measurements: tuple[Any, ...]
    shots: int | None = None

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
    def angles(self) -> FloatArray:
        """Trainable angles, (1 or batch, angles)."""
        values = [np.asarray(self.gates[i].operation.data[0], dtype=float) for i in self.trainable]
        rows = max((value.size for value in values), default=1)
        return np.stack([np.broadcast_to(v.reshape(-1), (rows,)) for v in values], axis=1)

    def with_angles(self, angles: FloatArray) -> list[Any]:
        """Return the operations with other trainable angles.

        Args:
            angles: (batch, trainable angles).
        """
        operations = [gate.operation for gate in self.gates]
        for column, i in enumerate(self.trainable):
            operations[i] = rebind(operations[i], [angles[:, column]])
        return operations


def gate_tape(
    qnode: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    weights: Sequence[int | str],
    *,
    pure: bool = True,
    as_passed: bool = False,
) -> GateTape:
    """Run a QNode's quantum function and return its gates and their Jacobian.

    Args:
        qnode: The QNode; any interface, any ``diff_method``.
        args: Positional arguments.
        kwargs: Keyword arguments.
        weights: Which arguments are weights: indices into args and names in kwargs, in the order wanted.
        pure: Whether the circuit must prepare a pure state and be analytic; False also takes channels and shots.
        as_passed: Whether the function gets float32 tensors as they are, so that it decides by their values as it does
            where it is evaluated; otherwise it gets float64 and angles are not rounded.

    Returns:
        The circuit at these arguments.

    Raises:
        UnsupportedCircuitError: For mid-circuit measurements, trainable operations without a generator and, if pure,
            shots and channels; names the operation.
        ValueError: If the batch is empty, an angle is not finite, or no angle depends on a weight.
    """
    args, kwargs = list(args), dict(kwargs)
    values = [args[w] if isinstance(w, int) else kwargs[w] for w in weights]
    if any(is_tensor(v) for v in [*args, *kwargs.values()]):
        return _torch_tape(qnode, args, kwargs, list(weights), values, pure, as_passed)
    if any(is_jax(v) for v in [*args, *kwargs.values()]):
        from fubini.circuit.tape_jax import jax_tape

        return jax_tape(qnode, args, kwargs, list(weights), values, pure)
    return _autograd_tape(qnode, args, kwargs, list(weights), values, pure)


def angle_tape(
    qnode: Any, kwargs: dict[str, Any]
) -> tuple[GateTape, list[torch.Tensor], torch.Tensor | None]:
    """Run a QNode's quantum function and return its gates, with every differentiable angle as a weight of its own.

    Args:
        qnode: The QNode; channels and shots are taken.
        kwargs: Its arguments, torch tensors with their graph.

    Returns:
        The circuit, whose weights are its trainable angles in order; these angles with their graph, each () or
        (batch,), none where no argument requires grad; and the amplitudes of the initial state with their graph,
        (..., 2^k), None where they have none.

    Raises:
        ValueError: For a state that depends on a differentiated tensor and is prepared later than at the start.
    """
    tape = user_tape(qnode, (), kwargs, pure=False, results=True)
    late = [op for op in tape.operations[1:] if isinstance(op, PREPARATIONS) and is_trainable(op)]
    if late:
        raise ValueError(
            f"qnode: {late[0].name} on wires {late[0].wires.tolist()} depends on weights or inputs that require grad, and "
            "only the first operation may: make it the first one, detach its amplitudes, or use default.qubit with "
            "diff_method='backprop'"
        )
    operations = gate_operations(tape, pure=False, keep_preparation=True)
    angles = [op.data[0] for op in operations if has_angle(op) and is_trainable(op)]
    jacobian = np.eye(len(angles))[None]
    batch = _batch_size(tape)
    first = operations[0] if operations else None
    state = None
    if isinstance(first, PREPARATIONS) and is_trainable(first):
        state = first.data[0]
    gates = _finish(tape, operations, batch, ((len(angles),),), jacobian, constant=True)
    return gates, angles, state


def _put(
    args: list[Any], kwargs: dict[str, Any], weights: Sequence[int | str], values: Sequence[Any]
) -> None:
    for weight, value in zip(weights, values, strict=True):
        if isinstance(weight, int):
            args[weight] = value
        else:
            kwargs[weight] = value


def _detached(value: Any, as_passed: bool) -> Any:
    """Inputs enter as constants, so that only weights are differentiated."""
    if not is_tensor(value):
        return value
    value = value.detach()
    if value.is_floating_point() and not (as_passed and value.dtype is torch.float32):
        value = value.to(torch.float64)
    return value.clone() if value.is_inference() else value


def _torch_tape(
    qnode: Any,
    args: list[Any],
    kwargs: dict[str, Any],
    weights: list[int | str],
    values: list[Any],
    pure: bool,
    as_passed: bool,
) -> GateTape:
    # Users may be inside torch.no_grad(), as in an optimizer step, or in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [_detached(torch.as_tensor(v), as_passed).clone() for v in values]
        leaves = [(v if v.is_floating_point() else v.double()).requires_grad_() for v in leaves]
        args = [_detached(v, as_passed) for v in args]
        kwargs = {name: _detached(v, as_passed) for name, v in kwargs.items()}
        _put(args, kwargs, weights, leaves)
        tape = user_tape(qnode, args, kwargs, pure=pure)
        operations = gate_operations(tape, pure)
        angles = [op.data[0] for op in operations if has_angle(op) and is_trainable(op)]
        batch = _batch_size(tape)
        jacobian = _torch_jacobian(angles, leaves, batch)
    return _finish(tape, operations, batch, tuple(tuple(v.shape) for v in leaves), jacobian)


def _torch_jacobian(
    angles: list[torch.Tensor], leaves: list[torch.Tensor], batch: int | None
) -> FloatArray:
    """Rows by reverse mode; angles that differ between inputs need a row per input."""
    columns = sum(leaf.numel() for leaf in leaves)
    batched = [angle.ndim > 0 and batch is not None for angle in angles]
    rows = batch if any(batched) and batch is not None else 1
    jacobian = np.zeros((rows, len(angles), columns))
    for per_input in (False, True):
        chosen = [i for i, b in enumerate(batched) if b == per_input]
        if not chosen:
            continue
        flat = torch.cat([angles[i].reshape(-1) for i in chosen])
        parts = torch.autograd.grad(
            flat,
            leaves,
            torch.eye(len(flat), dtype=flat.dtype),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        block = np.concatenate(
            [
                np.zeros((len(flat), leaf.numel()))
                if part is None
                else to_numpy(part).reshape(len(flat), -1)
                for part, leaf in zip(parts, leaves, strict=True)
            ],
            axis=1,
        )
        per_angle = block.reshape(len(chosen), -1, columns)  # (angles, 1 or batch, weights)
        jacobian[:, chosen, :] = per_angle.transpose(1, 0, 2)
    return jacobian


def _autograd_tape(
    qnode: Any,
    args: list[Any],
    kwargs: dict[str, Any],
    weights: list[int | str],
    values: list[Any],
    pure: bool,
) -> GateTape:
    from autograd import (
        jacobian as autograd_jacobian,
    )  # PennyLane's default interface depends on it

    arrays = [np.asarray(to_numpy(v)) for v in values]
    shapes = tuple(a.shape for a in arrays)
    seen: list[tuple[Any, list[Any], int | None, list[int]]] = []

    def plain(
        value: Any,
    ) -> Any:  # PennyLane's tensors refuse arithmetic with differentiated values
        return np.array(value) if isinstance(value, np.ndarray) else value

    constant_args = [plain(v) for v in args]
    constant_kwargs = {name: plain(v) for name, v in kwargs.items()}

    def angles_of(flat: Any) -> Any:
        parts, start = [], 0
        for array in arrays:
            parts.append(qml.math.reshape(flat[start : start + array.size], array.shape))
            start += array.size
        a, k = list(constant_args), dict(constant_kwargs)
        _put(a, k, weights, parts)
        tape = user_tape(qnode, a, k, pure=pure)
        operations = gate_operations(tape, pure)
        angles = [op.data[0] for op in operations if has_angle(op) and is_trainable(op)]
        seen.append((tape, operations, _batch_size(tape), [int(qml.math.size(v)) for v in angles]))
        if not angles:
            return np.zeros(0)
        return qml.math.concatenate([qml.math.reshape(v, (-1,)) for v in angles])

    flat = np.concatenate([a.reshape(-1) for a in arrays]) if arrays else np.zeros(0)
    stacked = np.asarray(autograd_jacobian(angles_of)(flat), dtype=float).reshape(-1, flat.size)
    tape, operations, batch, sizes = seen[-1]
    jacobian = np.zeros((max(sizes, default=1), len(sizes), flat.size))
    for column, block in enumerate(np.split(stacked, np.cumsum(sizes)[:-1]) if sizes else []):
        jacobian[:, column, :] = block
    return _finish(tape, operations, batch, shapes, jacobian)


def _finish(
    tape: Any,
    operations: list[Any],
    batch: int | None,
    shapes: tuple[tuple[int, ...], ...],
    jacobian: FloatArray,
    constant: bool = False,
) -> GateTape:
    wires = tape.wires
    if set(wires) == set(range(len(wires))):
        wires = qml.wires.Wires(
            range(len(wires))
        )  # the order in which a device without named wires returns states
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


def _batch_size(tape: Any) -> int | None:
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
        terms = pauli_sum(generator_of(op), positions, num_wires)
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
