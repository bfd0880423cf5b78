"""The metric from explicit derivative states and dense matrices: slow, obvious, and independent of the kernel.

Only for tests and for reading; it uses PennyLane's own matrices of gates and generators.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.circuit.any_angle import rebind
from fubini.circuit.tape import GateTape


def derivative_states(
    tape: GateTape, index: int = 0
) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
    """Return the state and its derivatives by the trainable angles.

    Args:
        tape: The circuit.
        index: Which input of the batch.

    Returns:
        psi, shape (2^n,), and d psi / d angle_j as rows, shape (angles, 2^n).
    """
    psi = np.zeros(1 << len(tape.wires), dtype=complex)
    psi[0] = 1.0
    derivatives: list[npt.NDArray[np.complex128]] = []
    for gate in tape.gates:
        op = _one_input(gate.operation, index)
        if isinstance(op, qml.operation.StatePrepBase):
            psi = np.asarray(op.state_vector(wire_order=tape.wires), dtype=complex).reshape(-1)
            continue
        matrix = qml.matrix(op, wire_order=tape.wires)
        psi = matrix @ psi
        derivatives = [matrix @ d for d in derivatives]
        if gate.trainable:
            generator = qml.matrix(op.generator(), wire_order=tape.wires)
            derivatives.append(1j * generator @ psi)  # d/dt exp(i t G) = i G exp(i t G)
    return psi, np.array(derivatives).reshape(len(derivatives), len(psi))


def geometric_tensor(tape: GateTape, index: int = 0) -> npt.NDArray[np.complex128]:
    """Return <d_i psi|d_j psi> - <d_i psi|psi><psi|d_j psi> over the trainable angles.

    Args:
        tape: The circuit.
        index: Which input of the batch.
    """
    psi, derivatives = derivative_states(tape, index)
    overlaps = derivatives.conj() @ psi
    return derivatives.conj() @ derivatives.T - np.outer(overlaps, overlaps.conj())


def _one_input(op: Any, index: int) -> Any:
    if op.batch_size is None:
        return op
    data = [p[index] if np.ndim(p) > n else p for p, n in zip(op.data, op.ndim_params, strict=True)]
    return rebind(op, data)
