"""What calls of a device execute, and how they are shown."""

import operator
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Usage:
    """What was, or would be, executed.

    Attributes:
        calls: Calls of the device, each with one or more tapes.
        tapes: Circuits handed over, where all broadcast settings of one circuit count as one, and a circuit that the
            device differentiates itself counts as one, with its derivatives.
        circuits: Circuits with every setting of their parameters counted.
        shots: Repetitions over all circuits; 0 for exact results.
    """

    calls: int = 0
    tapes: int = 0
    circuits: int = 0
    shots: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*map(operator.sub, astuple(self), astuple(other)))

    def __str__(self) -> str:
        return f"{self.calls} device calls, {self.tapes} tapes, {self.circuits} circuits, {self.shots} shots"


def usage_of(tapes: list[Any]) -> Usage:
    """Return what one call with these tapes executes."""
    circuits = [tape.batch_size or 1 for tape in tapes]
    shots = [
        count * (tape.shots.total_shots or 0) for tape, count in zip(tapes, circuits, strict=True)
    ]
    return Usage(1, len(tapes), sum(circuits), sum(shots))


def progress_of(wanted: bool | Progress, total: int) -> Callable[[int | None], None]:
    """Return what takes the number of tapes done, and None at the end.

    Args:
        wanted: A function of (done, total), True for a bar, False for nothing.
        total: Number of tapes.
    """
    if wanted is False or not total:
        return lambda done: None
    if callable(wanted):
        return lambda done: None if done is None else wanted(done, total)
    from tqdm import tqdm

    bar = tqdm(total=total, unit="tape")

    def show(done: int | None) -> None:
        if done is None:
            bar.close()
        else:
            bar.update(done - bar.n)

    return show
