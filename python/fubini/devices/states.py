"""States in front of layers of gates, from simulators that return them: out of as few circuits as possible.

A simulator that broadcasts runs one circuit with one setting per layer: in each, the angles of all gates that do not
precede the layer are zero, and gates without an angle are replaced by identities.

On a simulator that does not broadcast, auxiliary wires hold branches of a superposition. All gates are controlled by one
of them, the flag, which is 1 in the live branch; in front of each layer a rotation of the auxiliary wires alone moves part
of the live branch, with the state that it has there, to a branch of its own with flag 0, on which nothing acts any more.
The final state of the simulator then contains the states in front of all layers side by side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import rebind
from fubini.circuit.gate_layers import Layer
from fubini.circuit.tape import GateTape
from fubini.devices.executor import Array
from fubini.devices.insertion import prepared
from fubini.devices.job import Job
from fubini.devices.sweep import repeated, sweep_of
from fubini.errors import UnsupportedCircuitError
from fubini.options import Complex

# Beyond these, rotating the auxiliary wires, and the branches' memory, cost more than the circuits that they save.
_MAX_LABEL_WIRES = 4
_MAX_WIRES = 14

# What qml.ctrl makes of the commonest gates, in twice the time.
_CONTROLLED: dict[type, Any] = {
    qml.RX: qml.CRX,
    qml.RY: qml.CRY,
    qml.RZ: qml.CRZ,
    qml.CNOT: qml.Toffoli,
}


def states_job(circuits: Sequence[Sequence[Any]], wires: Any, device: Any) -> Job[list[Complex]]:
    """Return the job that finds final states.

    Args:
        circuits: The operations of every circuit.
        wires: Labels of the circuits' wires.
        device: The simulator.

    Returns:
        The job; its result is a state for every circuit, (rows, amplitudes), in the order of the wires.

    Raises:
        UnsupportedCircuitError: If the device would put the wires in another order.
    """
    measured = qml.state()
    sweeps = [sweep_of(_naming(one, wires, device), measured) for one in circuits]

    def states(answers: list[list[Array]]) -> list[Complex]:
        return [_placed(answer, wires, device) for (answer,) in answers]

    return Job(tuple(sweeps), states)


def _naming(operations: Sequence[Any], wires: Any, device: Any) -> Sequence[Any]:
    """Operations that name every wire, in order, so that a device without wires of its own returns all of them."""
    if device.wires is not None:
        return operations
    operations = prepared(operations, *(qml.Identity(wire) for wire in wires))
    first = operations[0]  # a state preparation must stay the first operation
    own = list(first.wires) if isinstance(first, qml.operation.StatePrepBase) else []
    if own != list(wires[: len(own)]):
        raise UnsupportedCircuitError(
            f"qnode: {first.name} acts on wires {own}, which are not the first of {wires.tolist()}; give the "
            f"device its wires, e.g. qml.device(name, wires={len(wires)})"
        )
    return operations


def _placed(answer: Array, wires: Any, device: Any) -> Complex:
    # Wires of the device beyond the circuit's are in state 0.
    state = to_numpy(answer, np.complex128)
    if device.wires is None or list(device.wires) == list(wires):
        return state.reshape(-1, 1 << len(wires))
    labels = list(device.wires)
    tensor = state.reshape(-1, *(2,) * len(labels))
    tensor = tensor[(slice(None), *(slice(None) if label in wires else 0 for label in labels))]
    kept = [label for label in labels if label in wires]
    tensor = tensor.transpose(0, *(1 + kept.index(label) for label in wires))
    return np.ascontiguousarray(tensor.reshape(-1, 1 << len(wires)))


def broadcast_states_job(
    tape: GateTape, layers: Sequence[Layer], device: Any
) -> Job[list[Complex]]:
    """Return the job that finds the states in front of layers as settings of one circuit.

    Args:
        tape: The circuit.
        layers: Its layers.
        device: A simulator that broadcasts.

    Returns:
        The job; its result is a state for every layer, (1 or batch, amplitudes).
    """
    inputs = tape.rows
    operations = []
    for i, gate in enumerate(tape.gates):
        op = gate.operation
        on = np.repeat([i in layer.before for layer in layers], inputs)
        if not on.any():
            continue
        if gate.generator is not None:
            angle = np.asarray(op.data[0], dtype=float).reshape(-1)
            every = np.tile(angle, len(on) // len(angle))
            op = rebind(op, [np.where(on, every, 0.0)])
        elif on.all():  # as for a state preparation, on which everything depends
            op = repeated(op, len(layers))
        else:
            matrix = np.asarray(qml.matrix(op), dtype=complex)
            one_each = np.broadcast_to(matrix, (inputs, *matrix.shape[-2:]))
            chosen = np.where(
                on[:, None, None], np.tile(one_each, (len(layers), 1, 1)), np.eye(matrix.shape[-1])
            )
            op = qml.QubitUnitary(chosen, wires=op.wires, unitary_check=False)
        operations.append(op)

    def by_layer(states: list[Complex]) -> list[Complex]:
        return list(states[0].reshape(len(layers), -1, states[0].shape[1]))

    return states_job([operations], tape.wires, device).then(by_layer)


def auxiliary_wires(tape: GateTape, device: Any) -> list[Any]:
    """Return the labels of as many auxiliary wires as a device has to spare and as are of use.

    Returns:
        The labels; none where another circuit per layer is cheaper.
    """
    most = min(1 + _MAX_LABEL_WIRES, _MAX_WIRES - len(tape.wires))
    if device.wires is not None:
        if len(device.wires) > _MAX_WIRES:  # every wire of the device is simulated
            return []
        return [w for w in device.wires if w not in tape.wires][: max(most, 0)]
    start = len(tape.wires)
    # Wires in the order in which the device numbers them.
    if list(tape.wires) == list(range(start)):
        return list(range(start, start + most))
    return [f"auxiliary {k}" for k in range(most)]


def branched_states_job(
    tape: GateTape, layers: Sequence[Layer], auxiliary: Sequence[Any], device: Any
) -> Job[list[Complex]]:
    """Return the job that finds the states in front of layers as branches of final states.

    Args:
        tape: The circuit.
        layers: Its layers, in order.
        auxiliary: Labels of wires that the circuit does not use, at least one.
        device: A simulator.

    Returns:
        The job; its result is a state for every layer, (1 or batch, amplitudes). With a auxiliary wires it runs one
        circuit for every 2^(a-1) + 1 layers.
    """
    labels = min(len(auxiliary) - 1, max(len(layers) - 2, 0).bit_length())
    flag, *rest = auxiliary[: 1 + labels]
    room = (1 << labels) + 1
    groups = [layers[start : start + room] for start in range(0, len(layers), room)]
    done: set[int] = set()
    circuits = []
    for group in groups:
        operations = [tape.gates[i].operation for i in sorted(done)]
        for k, layer in enumerate(group):
            # What precedes an earlier layer and not this one is applied as well: it depends on no gate of this layer,
            # so that the layer can be moved behind it, where its block of the metric is the same.
            step = [tape.gates[i].operation for i in layer.before if i not in done]
            done.update(layer.before)
            if k == 0:
                operations = prepared([*operations, *step], qml.X(flag))
                continue
            operations.append(_split(k - 1, len(group), [flag, *rest]))
            operations += [_controlled(op, flag) for op in step]
        circuits.append(operations)
    wires = qml.wires.Wires([*tape.wires, flag, *rest])

    def by_layer(finals: list[Complex]) -> list[Complex]:
        found: list[Complex] = []
        for group, final in zip(groups, finals, strict=True):
            parts = np.sqrt(len(group)) * final.reshape(len(final), -1, 2, 1 << labels)
            found += [parts[:, :, 0, k] for k in range(len(group) - 1)]
            found.append(parts[:, :, 1, 0])
        return found

    return states_job(circuits, wires, device).then(by_layer)


def _controlled(op: Any, flag: Any) -> Any:
    direct = _CONTROLLED.get(type(op))
    return qml.ctrl(op, control=flag) if direct is None else direct(*op.data, [flag, *op.wires])


def _split(k: int, count: int, wires: list[Any]) -> Any:
    """Move to branch k of count what leaves the same for each of those that follow."""
    live, stored = 1 << (len(wires) - 1), k
    sine = np.sqrt(1.0 / (count - k))
    cosine = np.sqrt(1.0 - 1.0 / (count - k))
    matrix = np.eye(2 * live)
    matrix[live, live] = matrix[stored, stored] = cosine
    matrix[stored, live], matrix[live, stored] = sine, -sine
    return qml.QubitUnitary(matrix, wires=wires, unitary_check=False)
