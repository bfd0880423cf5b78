"""The optimizers of ``bench/training.py`` with their grids, and the loop that trains a problem with one of them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import nn

import fubini
from fubini.demo.soap import SOAP
from problems.supervised import Problem

Made = Callable[[], Any]


@dataclass
class Run:
    """One training run, at the moments where the loss over all training data was looked at.

    Attributes:
        steps: Steps taken until then.
        evaluations: Gradients computed until then.
        seconds: CPU seconds until then, without the looking.
        losses: The loss over all training data.
        held_out: At the end: accuracy, or loss where there are no classes.
    """

    steps: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    held_out: float = math.nan

    def note(self, step: int, evaluations: int, seconds: float, loss: float) -> None:
        """Add a moment."""
        self.steps.append(step)
        self.evaluations.append(evaluations)
        self.seconds.append(seconds)
        self.losses.append(loss)

    def at(self, target: float) -> tuple[float, float, float]:
        """Return steps, evaluations and seconds at the first loss at or below a target; infinite if there is none."""
        for k, loss in enumerate(self.losses):
            if loss <= target:
                return self.steps[k], self.evaluations[k], self.seconds[k]
        return math.inf, math.inf, math.inf

    @property
    def diverged(self) -> bool:
        """Whether the end is above the beginning, or no number."""
        return not self.losses[-1] <= self.losses[0]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: In tables.
        make: Takes model, problem and learning rate (NaN: it has none) to a torch optimizer, and what to call after each of
            its steps. None: one of the full-batch loops.
        rates: Grid of learning rates; empty if nothing is to be tuned.
        full: Whether it is for problems without batches alone; False: for those with batches alone; None: for all.
    """

    name: str
    make: Callable[[nn.Module, Problem, float], tuple[Any, Made | None]] | None
    rates: tuple[float, ...] = ()
    full: bool | None = None

    def fits(self, problem: Problem) -> bool:
        """Whether it can train the problem."""
        return self.full is None or self.full == (problem.batch is None)


def _torch(kind: Any, **options: Any) -> Any:
    return lambda model, problem, lr: (kind(model.parameters(), lr=lr, **options), None)


def _cosine(model: nn.Module, problem: Problem, lr: float) -> tuple[Any, Made]:
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    return opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, problem.steps).step


def ours(**options: Any) -> Any:
    """Return what makes our optimizer for the loss of a problem.

    Args:
        **options: Of ``QNGOptimizer``; none: the default call.
    """
    return lambda model, problem, lr: (
        fubini.QNGOptimizer(model, loss=problem.loss, **options),
        None,
    )


RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
PEERS = (
    Method("SGD", _torch(torch.optim.SGD), RATES),
    Method("SGD momentum", _torch(torch.optim.SGD, momentum=0.9), RATES),
    Method("Adam", _torch(torch.optim.Adam), RATES),
    Method("AdamW cosine", _cosine, RATES),
    Method("RMSprop", _torch(torch.optim.RMSprop), RATES),
    Method("SOAP", _torch(SOAP), RATES),
    Method(
        "L-BFGS (torch, 4 iterations a batch)",
        _torch(torch.optim.LBFGS, max_iter=4, history_size=10, line_search_fn="strong_wolfe"),
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        full=False,
    ),
    Method("L-BFGS (torch)", None, full=True),
    Method("L-BFGS-B (SciPy)", None, full=True),
)
OURS = (
    Method("fubini", ours()),
    Method("fubini, approx=None", ours(approx=None)),
)


def train(method: Method, problem: Problem, rate: float, seed: int) -> Run:
    """Train a fresh model.

    Args:
        method: The optimizer.
        problem: What to train.
        rate: Learning rate; NaN for a method that has none.
        seed: Of weights and batches.

    Returns:
        The run; it ends early at a loss that is no number.
    """
    model, batches = problem.fresh(seed), problem.batches(seed)
    x, y = next(problem.batches(seed))
    problem.loss(model(x), y).backward()  # compiles the circuit, for all alike
    model.zero_grad()
    run = Run()
    run.note(0, 0, 0.0, problem.training_loss(model))
    if method.make is None:
        loop = _scipy if "SciPy" in method.name else _lbfgs
        loop(model, problem, run)
    else:
        begin = time.process_time()
        opt, after = method.make(model, problem, rate)
        spent, evaluations = time.process_time() - begin, 0

        def closure() -> Any:
            nonlocal evaluations
            evaluations += 1
            opt.zero_grad()
            loss = problem.loss(model(x), y)
            loss.backward()
            return loss

        for step in range(1, problem.steps + 1):
            x, y = next(batches)
            begin = time.process_time()
            opt.step(closure)
            if after is not None:
                after()
            spent += time.process_time() - begin
            if step % problem.every == 0 or step == problem.steps:
                run.note(step, evaluations, spent, problem.training_loss(model))
                if not math.isfinite(run.losses[-1]):
                    break
    run.held_out = problem.held_out(model)
    return run


def _lbfgs(model: nn.Module, problem: Problem, run: Run) -> None:
    """Torch's L-BFGS on one function: its iterations are the steps."""
    x, y = next(problem.batches(0))
    parameters = list(model.parameters())
    opt = torch.optim.LBFGS(
        parameters,
        max_iter=problem.steps,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )
    start, evaluations = time.process_time(), 0

    def closure() -> Any:
        nonlocal evaluations
        evaluations += 1
        opt.zero_grad()
        loss = problem.loss(model(x), y)
        loss.backward()
        iteration = opt.state[parameters[0]].get("n_iter", 0)
        best = min(float(loss.detach()), run.losses[-1])
        run.note(iteration, evaluations, time.process_time() - start, best)
        return loss

    opt.step(closure)


def _scipy(model: nn.Module, problem: Problem, run: Run) -> None:
    """SciPy's L-BFGS-B."""
    x, y = next(problem.batches(0))
    parameters = list(model.parameters())
    begin = nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    start, evaluations, iteration = time.process_time(), 0, 0

    def evaluate(vector: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal evaluations
        evaluations += 1
        nn.utils.vector_to_parameters(torch.from_numpy(vector), parameters)
        model.zero_grad()
        loss = problem.loss(model(x), y)
        loss.backward()
        best = min(float(loss.detach()), run.losses[-1])
        run.note(iteration, evaluations, time.process_time() - start, best)
        return float(loss.detach()), torch.cat([p.grad.reshape(-1) for p in parameters]).numpy()

    def iterated(_: np.ndarray) -> None:
        nonlocal iteration
        iteration += 1

    options = {"maxiter": problem.steps, "maxfun": 10 * problem.steps, "ftol": 0.0, "gtol": 1e-12}
    with contextlib.suppress(FloatingPointError):
        scipy.optimize.minimize(
            evaluate, begin, jac=True, method="L-BFGS-B", callback=iterated, options=options
        )
