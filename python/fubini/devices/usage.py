"""Single calls of a device: what they execute, how long they may take, how they are shown."""

import operator
import threading
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


class Call:
    """A call of the device that may be waited for.

    Args:
        function: Runs tapes.
        tapes: The tapes.

    Attributes:
        error: What a finished call raised.
    """

    def __init__(self, function: Callable[[list[Any]], Any], tapes: list[Any]) -> None:
        self._function, self.tapes = function, tapes
        self._value: Any = None
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def within(self, timeout: float | None) -> Any:
        """Call the function and return what it returns.

        Args:
            timeout: Seconds to wait, None for ever.

        Returns:
            The results.

        Raises:
            TimeoutError: If it takes longer; it goes on in its thread.
        """
        if timeout is None:
            return self._function(self.tapes)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {timeout:g} s")
        return self.result()

    @property
    def finished(self) -> bool:
        """Whether a call that took too long has ended by now."""
        return self._thread is not None and not self._thread.is_alive()

    def result(self) -> Any:
        """Return what a finished call returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function(self.tapes)
        except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
            self.error = error


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
