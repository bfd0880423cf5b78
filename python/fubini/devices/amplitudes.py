"""Derivatives by the amplitudes of the initial state, from circuits that start in neighbouring states.

Results are quadratic in the initial state psi: with psi + e_k and psi - e_k, normalised, in its place, half the difference
of the results times the squared norms is the derivative by the real part of amplitude k; i e_k gives the imaginary part.
Nothing is divided by, so that amplitudes that are zero are as good as others.
"""

import numpy as np
import pennylane as qml

from fubini.arrays import to_numpy
from fubini.circuit.tape import GateTape
from fubini.devices.job import Job
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.sweep import repeated
from fubini.options import Real


def amplitude_job(tape: GateTape, real: bool) -> Job[Real]:
    """Return the job that finds the derivatives of a circuit's features by its initial state.

    It runs 2 circuits for every input and amplitude, 4 for complex amplitudes.

    Args:
        tape: The circuit; its first gate prepares the state.
        real: Whether only real parts are wanted.

    Returns:
        The job; its result is (1 or batch, features, amplitudes), or twice as many, imaginary parts last.
    """
    first, *others = tape.operations
    rows = tape.rows
    size = 2 ** len(first.wires)
    state = to_numpy(first.data[0], np.complex128).reshape(-1, size)
    state = np.broadcast_to(state, (rows, size))
    directions = np.eye(size, dtype=np.complex128)
    if not real:
        directions = np.concatenate([directions, 1j * directions])
    moved = np.concatenate([state + directions[:, None], state - directions[:, None]])
    squares = np.sum(np.abs(moved) ** 2, axis=2)
    # Where the state is -e_k itself, nothing is left of it, and any state will do: its weight is zero.
    nothing = squares < 1e-24
    moved[nothing] = directions[0]
    squares = np.where(nothing, 0.0, squares)
    moved /= np.linalg.norm(moved, axis=2, keepdims=True)
    count = len(moved)
    preparation = qml.StatePrep(moved.reshape(count * rows, size), first.wires, validate_norm=False)
    operations = [preparation, *(repeated(op, count) for op in others)]

    def derivatives(seen: Estimates) -> Real:
        weighted = 0.5 * squares[..., None] * seen.features
        difference = weighted[: count // 2] - weighted[count // 2 :]
        return np.ascontiguousarray(difference.transpose(1, 2, 0))

    readout = readout_of(tape, tape.shots)
    return readout.job(operations, (count, rows), tape.shots).then(derivatives)
