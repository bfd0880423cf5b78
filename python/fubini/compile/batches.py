"""Whether a quantum function keeps the inputs of a batch apart."""

from typing import Any

import pennylane as qml
import torch

from fubini.circuit.tape import user_tape
from fubini.compile.call import Arguments
from fubini.compile.recorder import Recording
from fubini.compile.shadow import MIXED_ROW, split


def check_batch(
    qnode: Any, tape: Any, recording: Recording, arguments: Arguments, again: bool
) -> None:
    """See that every parameter of a gate belongs to one input of the batch.

    Args:
        qnode: The QNode.
        tape: Of the run that was recorded.
        recording: What was recorded.
        arguments: Of the run.
        again: Whether the function may run once more to find out.

    Raises:
        ValueError: If a parameter does not.
    """
    count, inputs = arguments.batch, arguments.inputs
    if count is None or inputs is None or (count == 1 and tape.batch_size in (None, 1)):
        return
    lost = [op.name for op in tape.operations for p in op.data if _is_lost(recording, p, count)]
    if again and not lost and recording.problem and tape.batch_size is None:
        lost = _moving(qnode, tape, arguments)
    wrong = lost or tape.batch_size not in (None, count)
    if again and not wrong and _is_mixed(recording, tape):
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


def _is_lost(recording: Recording, value: Any, count: int) -> bool:
    """Whether a parameter is made of inputs, but has no axis for them, or repeats one of them along it."""
    shadow = recording.shadow
    if not (isinstance(value, torch.Tensor) and shadow.tracks(value) and shadow.has_rows(value)):
        return False
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.ndim == 0 or len(value) != count:
        return True
    _, rows = split(shadow.of(value))
    first = rows.reshape(-1)[0]
    return count > 1 and first != MIXED_ROW and bool((rows == first).all())


def _is_mixed(recording: Recording, tape: Any) -> bool:
    """Whether a parameter is made of several inputs at once."""
    shadow = recording.shadow
    return any(
        bool((split(shadow.of(p))[1] == MIXED_ROW).any())
        for op in tape.operations
        for p in op.data
        if isinstance(p, torch.Tensor) and not p.is_complex() and shadow.tracks(p)
    )


def _moving(qnode: Any, tape: Any, arguments: Arguments) -> list[str]:
    """Operations whose parameters change with the order of the inputs, of a tape that has no batch."""
    assert arguments.inputs is not None
    other = user_tape(qnode, (), arguments.with_inputs(arguments.inputs.flip(0)))
    pairs = zip(tape.operations, other.operations, strict=False)
    return [a.name for a, b in pairs if not qml.equal(a, b, check_interface=False)]
