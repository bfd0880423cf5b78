"""Circuits to run together with what becomes of their results, so that a cost is known before anything runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fubini.devices.executor import Array, Executor
from fubini.devices.sweep import Sweep
from fubini.devices.usage import Usage

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Job(Generic[T]):
    """Work for a device.

    Attributes:
        sweeps: The circuits.
        finish: Makes the result from their answers, in order.
        choose: Returns the job that an executor is to run instead, for the same result with fewer circuits.
    """

    sweeps: tuple[Sweep, ...]
    finish: Callable[[list[list[Array]]], T]
    choose: Callable[[Executor], "Job[T]"] | None = None

    def on(self, executor: Executor) -> "Job[T]":
        """Return the job for a device.

        Args:
            executor: Of the device.

        Returns:
            What ``cost`` and ``run`` take.
        """
        return self if self.choose is None else self.choose(executor)

    def then(self, function: Callable[[T], U]) -> "Job[U]":
        """Return the job whose result is computed from this one's.

        Args:
            function: Computes it.

        Returns:
            The job, with the same circuits.
        """
        choose = self.choose
        return Job(
            self.sweeps,
            lambda answers: function(self.finish(answers)),
            None if choose is None else lambda executor: choose(executor).then(function),
        )

    def cost(self, executor: Executor) -> Usage:
        """Say what ``run`` will execute: a dry run.

        Args:
            executor: Of the device.

        Returns:
            Calls, tapes, circuits and shots.
        """
        return executor.cost(self.on(executor).sweeps)

    def run(self, executor: Executor) -> T:
        """Execute the circuits.

        Args:
            executor: Of the device.

        Returns:
            The result.
        """
        chosen = self.on(executor)
        return chosen.finish(executor.run(chosen.sweeps))


def together(*jobs: Job[Any]) -> Job[tuple[Any, ...]]:
    """Return one job that does several in one execution.

    Args:
        *jobs: Any jobs.

    Returns:
        The job; its result is the tuple of theirs.
    """
    ends = []
    total = 0
    for job in jobs:
        total += len(job.sweeps)
        ends.append(total)

    def finish(answers: list[list[Array]]) -> tuple[Any, ...]:
        starts = [0, *ends[:-1]]
        return tuple(
            job.finish(answers[start:end])
            for job, start, end in zip(jobs, starts, ends, strict=True)
        )

    choose = None
    if any(job.choose is not None for job in jobs):

        def choose(executor: Executor) -> Job[tuple[Any, ...]]:
            return together(*(job.on(executor) for job in jobs))

    return Job(tuple(sweep for job in jobs for sweep in job.sweeps), finish, choose)
