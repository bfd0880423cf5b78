"""Circuits with Pauli words put in, for generators that are taken word by word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.pauli import PauliSum, word_letters
from fubini.circuit.tape import GateTape
from fubini.devices.job import Job
from fubini.devices.readout import Estimates, Readout, with_auxiliary


def word_jobs(
    tape: GateTape,
    angle: int,
    generator: PauliSum,
    readout: Readout,
    shots: int | None,
    auxiliary: Any,
) -> list[tuple[float, Job[Estimates]]]:
    """Return the circuits that add up to the derivative by one angle.

    Args:
        tape: The circuit.
        angle: Its position among the trainable angles.
        generator: Of the angle's gate.
        readout: What is measured.
        shots: Of every circuit.
        auxiliary: Label of the wire for Hadamard tests; None: two circuits per word instead of one test.

    Returns:
        For every circuit its coefficient, and the job that runs it; estimates have a leading axis of length 1.
    """
    place = tape.trainable[angle] + 1
    before, behind = tape.operations[:place], tape.operations[place:]
    shape = (1, tape.rows)
    jobs = []
    for x, z, coefficient in generator:
        if not x | z:
            continue
        letters = labelled_letters(x, z, tape)
        if auxiliary is not None:
            # Branches psi and P psi of the auxiliary qubit: <Y O> = Im <psi|O|P psi>, and d<O>/dt is twice that.
            circuit = [
                *prepared(before, qml.Hadamard(auxiliary)),
                controlled_word(letters, auxiliary),
                *behind,
                qml.adjoint(qml.S(auxiliary)),
                qml.Hadamard(auxiliary),
            ]
            job = with_auxiliary(readout, auxiliary).job(circuit, shape, shots)
            jobs.append((2.0 * coefficient, job))
            continue
        for sign in (1.0, -1.0):
            turn = qml.PauliRot(sign * np.pi / 2, "".join(letters.values()), wires=list(letters))
            jobs.append((sign * coefficient, readout.job([*before, turn, *behind], shape, shots)))
    return jobs


def prepared(operations: Sequence[Any], *gates: Any) -> list[Any]:
    """Return operations with gates on other wires in front, behind a state preparation."""
    first = 1 if operations and isinstance(operations[0], qml.operation.StatePrepBase) else 0
    return [*operations[:first], *gates, *operations[first:]]


def labelled_letters(x: int, z: int, tape: GateTape) -> dict[Any, str]:
    """Return the letters of a word by wire label.

    Args:
        x: Mask of the wires with X or Y.
        z: Mask of the wires with Z or Y.
        tape: Whose wires they are.
    """
    letters = word_letters(x, z, len(tape.wires))
    return {tape.wires[position]: letter for position, letter in letters.items()}


def word(letters: dict[Any, str]) -> list[Any]:
    """Return the gates of a Pauli word."""
    paulis = {"X": qml.X, "Y": qml.Y, "Z": qml.Z}
    return [paulis[letter](wire) for wire, letter in letters.items()]


def controlled_word(letters: dict[Any, str], control: Any, value: int = 1) -> Any:
    """Return a Pauli word controlled by a wire; ``value``: for which value of the control it acts."""
    return qml.ctrl(qml.prod(*word(letters)), control=control, control_values=[value])
