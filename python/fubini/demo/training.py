"""What the cases of the demo share: the optimizers that are compared, the training loop, the record of a run."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

import fubini
from fubini.demo.soap import SOAP

APPROX: Mapping[str, Literal["diag", "block-diag"]] = {
    "QNG diag": "diag",
    "QNG block-diag": "block-diag",
}

KINDS: Mapping[str, Any] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "SOAP": SOAP}
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


#: (optimizer, rates, steps, seed, tick) -> run; calls tick after every step.
Train = Callable[[str, Rates, int, int, Tick], Run]


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
        grid: Learning rates that every optimizer was tried with; ``--tune`` does it again.
        rates: The best of them for each optimizer, in the order of the table; none for one that chooses them.
        borrowed: Optimizers that take the learning rates of another, so that ``--tune`` leaves them out.
        log_scale: Draw the measure on a logarithmic axis.
        train: How it is trained.
    """

    name: Literal["circuit", "molecule", "digits"]
    title: str
    measure: str
    target: str
    steps: int
    quick_steps: int
    grid: tuple[Rates, ...]
    rates: Mapping[str, Rates]
    log_scale: bool
    train: Train
    borrowed: tuple[str, ...] = ()

    def length(self, quick: bool) -> int:
        """Return the number of steps, with ``--quick`` or without."""
        return self.quick_steps if quick else self.steps


def minimiser(
    make_circuit: Callable[[], Any],
    start: Callable[[int], torch.Tensor],
    minimum: Callable[[], float],
    tolerance: float,
) -> Train:
    """Return the training of a circuit whose value is minimised over its parameters.

    Args:
        make_circuit: Returns a QNode that takes one tensor and returns one number.
        start: Where to begin, by the seed.
        minimum: Returns the exact minimum.
        tolerance: The case counts as solved once the value is that close to the minimum.

    Returns:
        The training; the measure of a run is the distance from the minimum.
    """

    def train(optimizer: str, rates: Rates, steps: int, seed: int, tick: Tick) -> Run:
        params = torch.nn.Parameter(start(seed))
        energy = fubini.compiled(make_circuit())
        energy(params)  # compiles the circuit, which is no part of the training
        losses: list[float] = []
        moments = [0.0]
        begin = time.process_time()

        def passed() -> None:
            moments.append(time.process_time() - begin)
            tick()

        if optimizer == MINIMIZE:
            problem = fubini.energy_problem(energy, params)
            begin = time.process_time()
            found = fubini.minimize(problem, max_steps=steps, callback=lambda *_: passed())
            losses += found.energies
            for _ in range(len(losses), steps + 1):  # it ended by itself
                tick()
        else:
            opt = _optimizer(optimizer, params, *rates)
            begin = time.process_time()
            for _ in range(steps):
                opt.zero_grad()
                loss = energy(params)
                loss.backward()
                opt.step()
                losses.append(loss.item())
                passed()
            losses.append(energy(params.detach()).item())
        lowest = minimum()
        errors = [loss - lowest for loss in losses]
        reached = next((k for k, error in enumerate(errors) if error <= tolerance), None)
        return Run(optimizer, rates, losses, list(enumerate(errors)), reached, moments, moments[-1])

    return train


def _optimizer(name: str, params: torch.Tensor, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a case, which recognises parameters of a circuit."""
    if name in KINDS:
        made: torch.optim.Optimizer = KINDS[name]([params], lr=lr)
        return made
    return fubini.QNGOptimizer([params], lr=lr, lam=1e-3, approx=APPROX[name])


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
