"""Circuits with Pauli words put in, for generators that are taken word by word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.pauli import PauliSum, word_letters
from fubini.circuit.tape import GateTape
from fubini.devices.readout import Readout, with_auxiliary
from fubini.devices.sweep import Sweep


def word_blocks(
    tape: GateTape,
    angle: int,
    generator: PauliSum,
    readout: Readout,
    shots: int | None,
    auxiliary: Any,
) -> list[tuple[Any, Any, Readout, list[Sweep], int]]:
    """Return the circuits that add up to the derivative by one angle.

    Args:
        tape: The circuit.
        angle: Its position among the trainable angles.
        generator: Of the angle's gate.
        readout: What is measured.
        shots: Of every circuit.
        auxiliary: Label of the wire for Hadamard tests; None: two circuits per word instead of one test.

    Returns:
        For every circuit the angle, its coefficient, the readout, its sweeps, and 1 for their settings.
    """
    place = tape.trainable[angle] + 1
    operations = tape.operations
    blocks = []
    for x, z, coefficient in generator:
        if not x | z:
            continue
        letters = labelled_letters(x, z, tape)
        if auxiliary is not None:
            # Branches psi and P psi of the auxiliary qubit: <Y O> = Im <psi|O|P psi>, and d<O>/dt is twice that.
            own = with_auxiliary(readout, auxiliary)
            end = [qml.adjoint(qml.S(auxiliary)), qml.Hadamard(auxiliary)]
            circuit = [
                *prepared(operations[:place], qml.Hadamard(auxiliary)),
                controlled_word(letters, auxiliary),
                *operations[place:],
                *end,
            ]
            sweeps = own.sweeps(circuit, tape.batch, shots)
            blocks.append((np.array([angle]), np.array([2.0 * coefficient]), own, sweeps, 1))
            continue
        for sign in (1.0, -1.0):
            turn = qml.PauliRot(sign * np.pi / 2, "".join(letters.values()), wires=list(letters))
            circuit = [*operations[:place], turn, *operations[place:]]
            sweeps = readout.sweeps(circuit, tape.batch, shots)
            blocks.append((np.array([angle]), np.array([sign * coefficient]), readout, sweeps, 1))
    return blocks


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


def controlled_word(letters: dict[Any, str], control: Any, value: int = 1) -> Any:
    """Return a Pauli word controlled by a wire; ``value``: for which value of the control it acts."""
    paulis = {"X": qml.X, "Y": qml.Y, "Z": qml.Z}
    word = qml.prod(*(paulis[letter](wire) for wire, letter in letters.items()))
    base = word if len(letters) > 1 else paulis[next(iter(letters.values()))](next(iter(letters)))
    return qml.ctrl(base, control=control, control_values=[value])
