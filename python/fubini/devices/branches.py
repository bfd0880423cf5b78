"""The states in front of several layers out of one circuit, for exact simulators that do not broadcast.

Auxiliary wires hold branches of a superposition. All gates are controlled by one of them, the flag, which is 1 in the
live branch; in front of each layer a rotation of the auxiliary wires alone moves part of the live branch, with the state
that it has there, to a branch of its own with flag 0, on which nothing acts any more. The final state of the simulator
then contains the states in front of all layers side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.gate_layers import Layer
from fubini.circuit.tape import GateTape
from fubini.devices.insertion import prepared
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


@dataclass(frozen=True)
class Branched:
    """A circuit that prepares the states in front of some layers.

    Attributes:
        layers: The layers.
        operations: The circuit, without batch or with the inputs' parameters.
        tape: The circuit itself with the auxiliary wires among its wires, at the end: flag, then label.
        labels: Number of label wires.
    """

    layers: tuple[Layer, ...]
    operations: list[Any]
    tape: GateTape
    labels: int

    def states(self, final: Complex) -> Complex:
        """Return the states in front of the layers.

        Args:
            final: The final state, (rows, amplitudes), in the order of ``tape.wires``.

        Returns:
            (layers, rows, amplitudes of the circuit).
        """
        parts = final.reshape(len(final), -1, 2, 1 << self.labels)
        count = len(self.layers)
        found = [parts[:, :, 0, k] for k in range(count - 1)] + [parts[:, :, 1, 0]]
        result: Complex = np.sqrt(count) * np.stack(found)
        return result


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
    if list(tape.wires) == list(
        range(start)
    ):  # wires in the order in which the device numbers them
        return list(range(start, start + most))
    return [f"auxiliary {k}" for k in range(most)]


def branched(tape: GateTape, layers: Sequence[Layer], auxiliary: Sequence[Any]) -> list[Branched]:
    """Return circuits that prepare the states in front of all layers.

    Args:
        tape: The circuit.
        layers: Its layers, in order.
        auxiliary: Labels of wires that the circuit does not use, at least one.

    Returns:
        As few circuits as possible: with a auxiliary wires, one for every 2^(a-1) + 1 layers.
    """
    labels = min(len(auxiliary) - 1, max(len(layers) - 2, 0).bit_length())
    flag, *rest = auxiliary[: 1 + labels]
    wide = replace(tape, wires=qml.wires.Wires([*tape.wires, flag, *rest]))
    room = (1 << labels) + 1
    done: set[int] = set()
    result = []
    for start in range(0, len(layers), room):
        chosen = tuple(layers[start : start + room])
        operations = [tape.gates[i].operation for i in sorted(done)]
        steps = _steps(chosen, done)
        operations += [tape.gates[i].operation for i in next(steps)]
        operations = prepared(operations, qml.X(flag))
        for k, step in enumerate(steps):
            operations.append(_split(k, len(chosen), [flag, *rest]))
            operations += [_controlled(tape.gates[i].operation, flag) for i in step]
        result.append(Branched(chosen, operations, wide, labels))
    return result


def _steps(layers: Sequence[Layer], done: set[int]) -> Iterator[list[int]]:
    """Gates to apply in front of each layer, after those that are done.

    What precedes an earlier layer and not this one is applied as well: it depends on no gate of this layer, so that
    the layer can be moved behind it, where its block of the metric is the same.
    """
    for layer in layers:
        step = [i for i in layer.before if i not in done]
        done.update(step)
        yield step


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
