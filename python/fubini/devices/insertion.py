"""Gates put into circuits: Pauli words, and auxiliary wires that control them."""

from collections.abc import Sequence
from typing import Any

import pennylane as qml

from fubini.circuit.pauli import word_letters
from fubini.circuit.tape import GateTape


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


def check_auxiliary(auxiliary: Any, tape: GateTape, other: str) -> None:
    """Refuse the label of an auxiliary wire that is missing or in use.

    Args:
        auxiliary: The label.
        tape: The circuit.
        other: What needs no such wire, for the remedy.

    Raises:
        ValueError: If it is None or a wire of the circuit.
    """
    if auxiliary is None or auxiliary in tape.wires:
        raise ValueError(
            f"auxiliary: expected a wire that the circuit does not use, got {auxiliary!r} for wires "
            f"{tape.wires.tolist()}; see fubini.devices.free_wire, or use {other}"
        )
