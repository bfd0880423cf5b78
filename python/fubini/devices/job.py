"""Circuits to run together with what becomes of their results, so that a cost is known before anything runs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from fubini.devices.executor import Array, Executor
from fubini.devices.sweep import Sweep
from fubini.devices.usage import Usage
from fubini.options import Real

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True)
class Job(Generic[T_co]):
    """Work for a device.

    Attributes:
        sweeps: The circuits.
        finish: Makes the result from their answers, in order.
        choose: Returns the job that an executor is to run instead, for the same result with fewer circuits.
    """

    sweeps: tuple[Sweep, ...]
    finish: Callable[[list[list[Array]]], T_co]
    choose: Callable[[Executor], "Job[T_co]"] | None = None

    def on(self, executor: Executor) -> "Job[T_co]":
        """Return the job for a device.

        Args:
            executor: Of the device.

        Returns:
            What ``cost`` and ``run`` take.
        """
        return self if self.choose is None else self.choose(executor)

    def then(self, function: Callable[[T_co], U]) -> "Job[U]":
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

    def run(self, executor: Executor) -> T_co:
        """Execute the circuits.

        Args:
            executor: Of the device.

        Returns:
            The result.
        """
        chosen = self.on(executor)
        return chosen.finish(executor.run(chosen.sweeps))


@dataclass(frozen=True)
class Measured:
    """Numbers, and how far they may be off.

    Attributes:
        values: (1 or batch, ..., angles, angles).
        variances: Estimates of the values' variances, of the same shape; zeros for exact results. Those without bias are
            negative now and then, where a value is itself of the order of its error.
    """

    values: Real
    variances: Real

    @property
    def errors(self) -> Real:
        """Standard errors, 0 where the estimate of the variance is negative."""
        result: Real = np.sqrt(np.maximum(self.variances, 0.0))
        return result


def together(*jobs: Job[Any]) -> Job[tuple[Any, ...]]:
    """Return one job that does several in one execution.

    Args:
        *jobs: Any jobs.

    Returns:
        The job; its result is the tuple of theirs.
    """

    def finish(answers: list[list[Array]]) -> tuple[Any, ...]:
        left = iter(answers)
        return tuple(job.finish(list(islice(left, len(job.sweeps)))) for job in jobs)

    def choose(executor: Executor) -> Job[tuple[Any, ...]]:
        return together(*(job.on(executor) for job in jobs))

    sweeps = tuple(sweep for job in jobs for sweep in job.sweeps)
    return Job(sweeps, finish, choose if any(job.choose is not None for job in jobs) else None)
