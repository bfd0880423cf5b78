"""What the cases of the demo share: the optimizers that are compared, the training loop, the record of a run."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

import fubini

APPROX: Mapping[str, Literal["diag", "block-diag"]] = {
    "QNG diag": "diag",
    "QNG block-diag": "block-diag",
}

MINIMIZE = "fubini.minimize"  # of energies, without a learning rate
Rates = tuple[float, ...]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        optimizer: A name of the case's rates.
        rates: Its learning rates; none for one that chooses them.
        losses: The loss before every step; where the loss is exact, also after the last one.
        measures: (step, value) of what the case is judged by: an error or an accuracy.
        reached: The first step at which the target of the case was met; None if never.
        moments: Seconds of the CPU in training, one for each loss; measuring the accuracy is not counted.
        seconds: Of all steps.
    """

    optimizer: str
    rates: Rates
    losses: list[float]
    measures: list[tuple[int, float]]
    reached: int | None
    moments: list[float]
    seconds: float

    @property
    def seconds_reached(self) -> float | None:
        """Seconds until the target was met; None if never."""
        if self.reached is None:
            return None
        return self.moments[self.reached - (len(self.losses) == self.steps)]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.measures[-1][0]


@dataclass(frozen=True, eq=False)
class Case:
    """A training problem.

    Attributes:
        name: As the command line spells it.
        title: Heading of the picture.
        measure: What the case is judged by, with its unit.
        target: What counts as solved, in words.
        steps: Number of steps.
        quick_steps: Number of steps with ``--quick``.
        rate_names: What each learning rate is for.
        grid: Learning rates that every optimizer was tried with; ``--tune`` does it again.
        rates: The best of them for each optimizer, in the order of the table; none for one that chooses them.
        borrowed: Optimizers that take the learning rates of another, so that ``--tune`` leaves them out.
        log_scale: Draw the measure on a logarithmic axis.
        train: (optimizer, rates, steps, seed, tick) -> run; calls tick after every step.
    """

    name: Literal["circuit", "molecule", "digits"]
    title: str
    measure: str
    target: str
    steps: int
    quick_steps: int
    rate_names: tuple[str, ...]
    grid: tuple[Rates, ...]
    rates: Mapping[str, Rates]
    log_scale: bool
    train: Callable[[str, Rates, int, int, Tick], Run]
    borrowed: tuple[str, ...] = ()


def minimise(
    qnode: Any,
    start: torch.Tensor,
    optimizer: str,
    rates: Rates,
    *,
    lam: float,
    minimum: float,
    tolerance: float,
    steps: int,
    tick: Tick,
) -> Run:
    """Minimise the value of a circuit over its parameters, which the optimizer recognises as those of a circuit.

    Args:
        qnode: Takes one tensor, returns one number.
        start: Where to begin.
        optimizer: A name of the case's rates.
        rates: The learning rate; none for MINIMIZE.
        lam: Damping of the metric.
        minimum: The exact minimum.
        tolerance: The case counts as solved once the value is that close to the minimum.
        steps: Number of steps.
        tick: Called after every step.

    Returns:
        The run; its measure is the distance from the minimum.
    """
    params = torch.nn.Parameter(start.clone())
    energy = fubini.compiled(qnode)
    energy(params)  # compiles the circuit, which is no part of the training
    losses: list[float] = []
    moments: list[float] = []

    def record() -> Run:
        errors = [loss - minimum for loss in losses]
        reached = next((k for k, error in enumerate(errors) if error <= tolerance), None)
        measures = list(enumerate(errors))
        return Run(optimizer, rates, losses, measures, reached, moments, moments[-1])

    if optimizer == MINIMIZE:
        problem = fubini.energy_problem(energy, params)
        begin = time.process_time()
        moments.append(0.0)

        def stepped(_: Any, __: float) -> None:
            moments.append(time.process_time() - begin)
            tick()

        losses += fubini.minimize(problem, max_steps=steps, callback=stepped).energies
        for _ in range(len(losses), steps + 1):  # it ended by itself
            tick()
        return record()
    (lr,) = rates
    opt: torch.optim.Optimizer
    if optimizer == "SGD":
        opt = torch.optim.SGD([params], lr=lr)
    elif optimizer == "Adam":
        opt = torch.optim.Adam([params], lr=lr)
    else:
        opt = fubini.QNGOptimizer([params], lr=lr, lam=lam, approx=APPROX[optimizer])
    begin = time.process_time()
    for _ in range(steps):
        moments.append(time.process_time() - begin)
        opt.zero_grad()
        loss = energy(params)
        loss.backward()
        opt.step()
        losses.append(loss.item())
        tick()
    moments.append(time.process_time() - begin)
    losses.append(energy(params.detach()).item())
    return record()


def score(run: Run, steps: int) -> tuple[float, float]:
    """Return what tuning minimises: steps to the target if it was reached, then the loss over the last tenth.

    Args:
        run: A run of the case.
        steps: Its number of steps, which stands for a target that was not reached.

    Returns:
        A pair that sorts better runs first.
    """
    tail = run.losses[-max(1, steps // 10) :]
    mean = sum(tail) / len(tail)
    reached = steps + 1 if run.reached is None else run.reached
    return float(reached), float("inf") if math.isnan(mean) else mean
