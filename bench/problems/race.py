"""What the training problems share: tasks, optimizers with their grids, and the loop that times them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.optimize
import torch

import fubini

Settings = dict[str, Any]


class Task(Protocol):
    """One training run's parameters and loss."""

    parameters: list[torch.Tensor]

    def next_batch(self) -> None:
        """Choose the data of the next step."""

    def loss_and_gradient(self) -> torch.Tensor:
        """Return the loss after writing the gradient into ``.grad``."""

    def qng(self, settings: Settings) -> tuple[Any, Callable[[], Any]]:
        """Return our optimizer and its closure."""


@dataclass
class Trace:
    """One run.

    Attributes:
        losses: Before every step.
        seconds: CPU seconds since the start, at the same moments.
        measures: What the problem is judged by besides the loss, where that is something else.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    measures: list[float] = field(default_factory=list)

    def reached(self, target: float) -> int | None:
        """The first step whose loss is at or below the target."""
        return next((k for k, loss in enumerate(self.losses) if loss <= target), None)

    def seconds_to(self, target: float) -> float:
        """The seconds until then, infinite where it was not reached."""
        step = self.reached(target)
        return math.inf if step is None else self.seconds[step]


@dataclass(frozen=True)
class Contender:
    """An optimizer with the settings it was tried with."""

    name: str
    kind: str
    grid: tuple[Settings, ...]


def race(
    contender: Contender, settings: Settings, task: Task, steps: int, target: float = -math.inf
) -> Trace:
    """Train until the loss is at the target, or for a number of steps.

    Args:
        contender: The optimizer.
        settings: One of its grid.
        task: Fresh.
        steps: Limit.
        target: Where to stop.

    Returns:
        The run; the clock stands still while nothing belongs to the optimizer.
    """
    if contender.kind == "scipy":
        return _scipy(settings, task, steps, target)
    if contender.kind == "lbfgs" and len(task.parameters) == 1:
        return _torch_lbfgs(settings, task, steps, target)
    trace = Trace()
    spent, begin = 0.0, time.process_time()
    opt, closure = _made(contender, settings, task)
    for _ in range(steps):
        spent += time.process_time() - begin
        task.next_batch()
        begin = time.process_time()
        trace.seconds.append(spent)
        loss = opt.step(closure)
        trace.losses.append(float(loss.detach()))
        if trace.losses[-1] <= target or not math.isfinite(trace.losses[-1]):
            break
    return trace


def _made(contender: Contender, settings: Settings, task: Task) -> tuple[Any, Callable[[], Any]]:
    if contender.kind == "qng":
        return task.qng(settings)
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "lbfgs": lambda p, **k: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", **k),
    }
    return kinds[contender.kind](task.parameters, **settings), task.loss_and_gradient


def _torch_lbfgs(settings: Settings, task: Task, steps: int, target: float) -> Trace:
    """Torch's L-BFGS on one function: its iterations are the steps."""
    (p,) = task.parameters
    trace, start = Trace(), time.process_time()
    opt = torch.optim.LBFGS(
        task.parameters,
        max_iter=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        **settings,
    )

    def closure() -> torch.Tensor:
        loss = task.loss_and_gradient()
        iteration, value = opt.state[p].get("n_iter", 0), float(loss)
        lowest = min([value, *trace.losses[-1:]])
        while len(trace.losses) <= iteration:
            trace.losses.append(lowest)
            trace.seconds.append(0.0)
        trace.losses[iteration] = lowest
        trace.seconds[iteration] = time.process_time() - start
        return loss

    while len(trace.losses) < steps:
        before = len(trace.losses)
        opt.step(closure)
        if trace.losses[-1] <= target or len(trace.losses) == before:
            break
    return trace


def _scipy(settings: Settings, task: Task, steps: int, target: float) -> Trace:
    """SciPy's L-BFGS-B, which wastes no evaluation between iterations."""
    (p,) = task.parameters
    trace, start = Trace(), time.process_time()
    best: list[float] = []

    class Reached(Exception):
        pass

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        p.data.copy_(torch.from_numpy(x))
        loss = float(task.loss_and_gradient().detach())
        best.append(loss)
        return loss, p.grad.numpy().astype(np.float64)

    def iterated(x: np.ndarray) -> None:
        trace.losses.append(min(best))
        trace.seconds.append(time.process_time() - start)
        if trace.losses[-1] <= target:
            raise Reached

    options = {"maxiter": steps, "maxfun": 10 * steps, "ftol": 0.0, "gtol": 1e-12, **settings}
    with contextlib.suppress(Reached):
        scipy.optimize.minimize(
            evaluate,
            p.detach().numpy().copy(),
            jac=True,
            method="L-BFGS-B",
            callback=iterated,
            options=options,
        )
    return trace


def tuned(
    contender: Contender,
    task_of: Callable[[int], Task],
    seeds: Sequence[int],
    steps: int,
    target: float = -math.inf,
) -> Settings:
    """Return the settings of the grid that do best on some seeds: most often at the target, then soonest, then lowest."""
    if len(contender.grid) == 1:
        return contender.grid[0]

    def score(settings: Settings) -> tuple[float, float, float]:
        traces = [race(contender, settings, task_of(seed), steps, target) for seed in seeds]
        at = [t.reached(target) for t in traces]
        missed = sum(k is None for k in at)
        tails = [statistics.fmean(t.losses[-max(1, steps // 10) :]) for t in traces]
        mean = statistics.fmean(t if math.isfinite(t) else math.inf for t in tails)
        return missed, statistics.fmean(steps if k is None else k for k in at), mean

    return min(contender.grid, key=score)


def levenberg_marquardt(settings: Settings) -> Settings:
    """Settings for QNGOptimizer with a fresh policy where ``lm`` gives its first strength."""
    rest = dict(settings)
    if "lm" in rest:
        rest["lam"] = fubini.LevenbergMarquardt(rest.pop("lm"))
        rest.setdefault("lr", 1.0)
    return rest


def lrs(*values: float, **fixed: Any) -> tuple[Settings, ...]:
    """A grid over lr."""
    return tuple({"lr": value, **fixed} for value in values)
