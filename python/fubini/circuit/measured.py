"""What a quantum function measures: whether it returns it, and over which wires."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import pennylane as qml

from fubini.circuit.any_angle import Undecomposed, unfold
from fubini.circuit.decompose import MEASURED, PREPARATIONS
from fubini.errors import UnsupportedCircuitError


def returning_what_it_measures(function: Any) -> Any:
    """Return a quantum function with PennyLane's check that results belong to what is returned.

    Tapes only know what was measured, and in which order.

    Returns:
        The function; it raises a QuantumFunctionError unless all measurements are returned in their order.
    """

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        process = qml.measurements.MeasurementProcess
        returned = qml.pytrees.flatten(result, is_leaf=lambda v: isinstance(v, process))[0]
        queue = qml.QueuingManager.active_context()
        made = [obj for obj in getattr(queue, "queue", ()) if isinstance(obj, process)]
        if not returned or not all(isinstance(m, process) for m in returned):
            return result  # PennyLane, or who arranges the results, says what is wrong
        if len(made) != len(returned) or any(
            a is not b for a, b in zip(made, returned, strict=True)
        ):
            raise qml.exceptions.QuantumFunctionError(
                f"qnode: expected all measurements to be returned in the order in which they are made, which is "
                f"{made}, got {returned}; return each of them once, in that order"
            )
        return result

    return checked


def all_wires(tape: Any, device: Any) -> tuple[Any, ...]:
    """Return the wires that ``qml.state()`` and ``qml.probs()`` without wires cover, in the order of their bits.

    Args:
        tape: The tape as the user wrote it.
        device: The PennyLane device; None for one without wires of its own.

    Returns:
        Wire labels, the most significant bit first.
    """
    own = getattr(device, "wires", None)
    if own:
        return tuple(own)
    operations = tape.operations
    if not all(_taken_whole(op) for op in operations):
        try:
            operations = unfold(operations, _taken_whole, lambda _: None)
        except (Undecomposed, UnsupportedCircuitError):  # whoever runs it says why it cannot
            operations = tape.operations
    used = qml.wires.Wires.all_wires([op.wires for op in operations])
    return numbered(used, tape.measurements)


def numbered(used: Iterable[Any], measurements: Sequence[Any]) -> tuple[Any, ...]:
    """Return the wires of gates and of measurements in PennyLane's order.

    Args:
        used: Wires of the gates, in the order in which they act.
        measurements: What is measured afterwards.

    Returns:
        Wire labels, the most significant bit first.
    """
    used = tuple(used)
    only = {wire for process in measurements for wire in process.wires} - set(used)
    # As devices do it: numbers from 0 on keep their order if the gates have the first of them.
    count = len(used)
    if set(used) == set(range(count)) and only == set(range(count, count + len(only))):
        return tuple(range(count + len(only)))
    return (*used, *only)


def _taken_whole(op: Any) -> bool:
    """Whether a simulator applies an operation as it stands, so that its wires count in their own order."""
    kinds = (*PREPARATIONS, qml.operation.Channel, *MEASURED)
    return bool(op.has_matrix) or isinstance(op, kinds)


def measures_all_wires(tape: Any) -> bool:
    """Return whether a measurement of a tape covers all wires without naming them."""
    return any(
        isinstance(m, qml.measurements.StateMP) or _is_probability_of_all(m)
        for m in tape.measurements
    )


def _is_probability_of_all(process: Any) -> bool:
    return (
        isinstance(process, qml.measurements.ProbabilityMP)
        and process.obs is None
        and process.mv is None
        and not process.wires
    )


def with_wires(tape: Any, device: Any) -> Any:
    """Return a tape with wires for probabilities of all of them: decompositions may use wires in another order.

    Args:
        tape: The tape as the user wrote it.
        device: Its PennyLane device.
    """
    if not any(_is_probability_of_all(m) for m in tape.measurements):
        return tape
    named = qml.probs(wires=all_wires(tape, device))
    measurements = [named if _is_probability_of_all(m) else m for m in tape.measurements]
    return tape.copy(measurements=measurements)
