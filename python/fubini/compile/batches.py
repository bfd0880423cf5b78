"""Whether a quantum function keeps the inputs of a batch apart."""

from typing import Any

import pennylane as qml
import torch

from fubini.circuit.tape import user_tape
from fubini.compile.call import Arguments
from fubini.compile.recorder import Recording
from fubini.compile.shadow import MIXED_ROW, Codes


def check_batch(
    qnode: Any,
    tape: Any,
    batch: int | None,
    recording: Recording,
    arguments: Arguments,
    again: bool,
) -> None:
    """See that every parameter of a gate belongs to one input of the batch.

    Args:
        qnode: The QNode.
        tape: Of the run that was recorded.
        batch: Number of inputs that its parameters are for.
        recording: What was recorded.
        arguments: Of the run.
        again: Whether the function may run once more to find out.

    Raises:
        ValueError: If a parameter does not.
    """
    count, inputs = arguments.batch, arguments.inputs
    if count is None or inputs is None or (count == 1 and batch in (None, 1)):
        return
    parts = _parts(recording, tape)
    lost = [name for name, value, rows in parts if _is_lost(value, rows, count)]
    if again and not lost and recording.problem and batch is None:
        lost = _moving(qnode, tape, arguments)
    wrong = lost or batch not in (None, count)
    if again and not wrong and any(bool((rows == MIXED_ROW).any()) for _, _, rows in parts):
        # Three or five inputs, not as many as features: an axis that was summed away shows.
        count = 3 if arguments.width != 3 else 5
        rows = inputs[torch.arange(count, device=inputs.device) % len(inputs)]
        other = user_tape(qnode, (), arguments.with_inputs(rows))
        wrong = other.batch_size != count
    if wrong:
        raise ValueError(
            f"inputs: for inputs of shape {tuple(inputs.shape)} the quantum function makes {lost or 'operations'} "
            "whose parameters do not have one value per input. Index features from the end, inputs[..., 0] "
            "instead of inputs[0], and do not sum over the batch."
        )


def _parts(recording: Recording, tape: Any) -> list[tuple[str, torch.Tensor, Codes]]:
    """Parameters that are made of inputs: the gate, the value, and the rows plus one that it is made of."""
    rows_of = recording.shadow.rows
    found = []
    for op in tape.operations:
        for value in op.data:
            rows = rows_of(value) if isinstance(value, torch.Tensor) else None
            if rows is not None and rows.any():
                found.append((op.name, value, rows))
    return found


def _is_lost(value: torch.Tensor, rows: Codes, count: int) -> bool:
    """Whether a parameter that is made of inputs has no axis for them, or repeats one of them along it."""
    if value.ndim == 0 or len(value) != count:
        return True
    first = rows.reshape(-1)[0]
    return count > 1 and first != MIXED_ROW and bool((rows == first).all())


def _moving(qnode: Any, tape: Any, arguments: Arguments) -> list[str]:
    """Operations whose parameters change with the order of the inputs, of a tape that has no batch."""
    assert arguments.inputs is not None
    other = user_tape(qnode, (), arguments.with_inputs(arguments.inputs.flip(0)))
    pairs = zip(tape.operations, other.operations, strict=False)
    return [a.name for a, b in pairs if not qml.equal(a, b, check_interface=False)]
