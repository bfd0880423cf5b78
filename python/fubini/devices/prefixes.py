"""The states in front of all layers of a circuit as settings of one circuit, for devices that broadcast.

The state in front of a layer is prepared by some of the circuit's gates. With one setting per layer, in which the angles
of all other gates are zero and gates without an angle are replaced by identities, the whole circuit prepares all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.gate_layers import Layer
from fubini.circuit.tape import GateTape
from fubini.circuit.unfold import rebind
from fubini.devices.sweep import repeated


def prefix_operations(tape: GateTape, layers: Sequence[Layer]) -> list[Any]:
    """Return operations that prepare, setting by setting, the state in front of each layer.

    Returns:
        Operations; parameters have a leading axis of layers x inputs (the inputs of the first layer first), or none where
        no setting differs.
    """
    inputs = tape.rows
    result = []
    for i, gate in enumerate(tape.gates):
        op = gate.operation
        on = np.repeat([i in set(layer.before) for layer in layers], inputs)
        if not on.any():
            continue
        if isinstance(op, qml.operation.StatePrepBase):  # everything depends on it
            result.append(repeated(op, len(layers)))
        elif gate.generator is not None:
            angle = np.asarray(op.data[0], dtype=float).reshape(-1)
            every = np.tile(angle, len(on) // len(angle))
            result.append(rebind(op, [np.where(on, every, 0.0)]))
        elif on.all():
            result.append(repeated(op, len(layers)))
        else:
            matrix = np.asarray(qml.matrix(op), dtype=complex)
            every = (
                np.broadcast_to(matrix, (inputs, *matrix.shape[-2:])) if matrix.ndim < 3 else matrix
            )
            every = np.tile(every, (len(layers), 1, 1))
            identity = np.eye(matrix.shape[-1])
            result.append(
                qml.QubitUnitary(
                    np.where(on[:, None, None], every, identity),
                    wires=op.wires,
                    unitary_check=False,
                )
            )
    return result
