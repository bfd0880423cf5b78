"""Optimizers of an energy, and what each run of them went through."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pennylane as qml
import scipy.optimize
import torch

import fubini
from problems.ground_states import Case


@dataclass
class Descent:
    """One run: the lowest energy so far, the evaluations and the CPU seconds at every step."""

    energies: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, energy: float, evaluations: int, seconds: float) -> None:
        """Take note of a step."""
        lowest = min([energy, *self.energies[-1:]])
        self.energies.append(lowest)
        self.evaluations.append(evaluations)
        self.seconds.append(seconds)

    def at(self, target: float) -> tuple[float, float, float]:
        """Steps, evaluations and seconds to the target; infinite where it was not reached."""
        for k, energy in enumerate(self.energies):
            if energy <= target:
                return k, self.evaluations[k], self.seconds[k]
        return math.inf, math.inf, math.inf


class Watch:
    """Adds to a descent, with a problem's evaluations, until the floor is reached to rounding."""

    class Reached(Exception):
        """Nothing is left to be gained."""

    def __init__(self, problem: fubini.EnergyProblem, floor: float) -> None:
        self.run = Descent()
        self._problem, self._floor = problem, floor
        self._evaluations, self._start = problem.evaluations, time.process_time()

    def __call__(self, energy: float) -> None:
        """Take note of a step's energy."""
        seconds = time.process_time() - self._start
        self.run.add(energy, self._problem.evaluations - self._evaluations, seconds)
        if energy <= self._floor + 1e-13 * abs(self._floor):
            raise Watch.Reached


Method = Callable[[Case, fubini.EnergyProblem, np.ndarray, Watch, Any], None]


def gauss_newton(case: Case, problem: Any, x: np.ndarray, watch: Watch, _: Any) -> None:
    watch(problem.energy(x))
    fubini.minimize(problem, x, callback=lambda _, energy: watch(energy))


def natural(case: Case, problem: Any, x: np.ndarray, watch: Watch, _: Any) -> None:
    """The full metric with Levenberg-Marquardt on its scale, through torch."""
    w = torch.from_numpy(x.copy()).reshape(case.shape).requires_grad_()
    energy = fubini.compiled(case.qnode)
    opt = fubini.QNGOptimizer([w], 1.0, lam=fubini.LevenbergMarquardt())
    metric = energy.metric()

    def closure() -> Any:
        opt.zero_grad()
        problem.evaluations += 1
        loss = energy(w)
        loss.backward()
        return loss, metric

    last = math.inf
    for step in range(300):
        value = float(opt.step(closure))
        watch(value)
        if step % 10 == 9:  # it takes no more steps, or none that matters
            if last - value <= 1e-15 * abs(value):
                return
            last = value


def energy_metric(case: Case, problem: Any, x: np.ndarray, watch: Watch, _: Any) -> None:
    """The curvature of the energy in torch's optimizer."""
    w = torch.from_numpy(x.copy()).reshape(case.shape).requires_grad_()
    energy = fubini.compiled(case.qnode)
    opt = fubini.QNGOptimizer([w], metric="energy")
    last = math.inf
    for step in range(300):
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        problem.evaluations += 1
        value = loss.item()
        watch(value)
        opt.step()
        problem.evaluations += int(opt.diagnostics()["evaluations"])
        if step % 10 == 9:
            if last - value <= 1e-15 * abs(value):
                return
            last = value


def scipy_descent(method: str, **options: Any) -> Method:
    def run(case: Case, problem: Any, x: np.ndarray, watch: Watch, _: Any) -> None:
        best = [math.inf]

        def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = problem.value_and_gradient(point)
            best[0] = min(best[0], value)
            return value, gradient

        watch(problem.energy(x))
        scipy.optimize.minimize(
            evaluate,
            x,
            jac=True,
            method=method,
            callback=lambda _: watch(best[0]),
            options={"maxiter": 5000, "gtol": 1e-14, **options},
        )

    return run


def torch_lbfgs(case: Case, problem: Any, x: np.ndarray, watch: Watch, _: Any) -> None:
    w = torch.from_numpy(x.copy()).requires_grad_()
    opt = torch.optim.LBFGS(
        [w],
        max_iter=5000,
        max_eval=20000,
        history_size=30,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    iteration = [-1]

    def closure() -> torch.Tensor:
        value, gradient = problem.value_and_gradient(w.detach().numpy())
        w.grad = torch.from_numpy(gradient)
        done = opt.state[w].get("n_iter", 0)
        if done != iteration[0]:
            iteration[0] = done
            watch(value)
        return torch.tensor(value, dtype=torch.float64)

    opt.step(closure)
    watch(problem.energy(w.detach().numpy()))


def adam(case: Case, problem: Any, x: np.ndarray, watch: Watch, lr: Any) -> None:
    w = torch.from_numpy(x.copy()).requires_grad_()
    opt = torch.optim.Adam([w], lr)
    for _ in range(1000):
        value, gradient = problem.value_and_gradient(w.detach().numpy())
        watch(value)
        w.grad = torch.from_numpy(gradient)
        opt.step()


def pennylane_qng(case: Case, problem: Any, x: np.ndarray, watch: Watch, lr: Any) -> None:
    """PennyLane's own, with its metric by blocks, on its simulator: 30 steps of H2 end in time."""
    if len(case.qnode.device.wires) > 4:
        return
    energy = qml.QNode(case.qnode.func, case.qnode.device)
    w = qml.numpy.array(x.reshape(case.shape), requires_grad=True)
    opt = qml.QNGOptimizer(lr, approx="block-diag", lam=1e-3)
    for _ in range(30):
        w, value = opt.step_and_cost(energy, w)
        problem.evaluations += 1
        watch(float(value))


#: Name -> (method, learning rates among which one is chosen on other starts).
METHODS: dict[str, tuple[Method, tuple[Any, ...]]] = {
    "fubini.minimize": (gauss_newton, ()),
    "QNGOptimizer, energy": (energy_metric, ()),
    "QNGOptimizer, LM": (natural, ()),
    "L-BFGS-B (SciPy)": (scipy_descent("L-BFGS-B", maxfun=50000, ftol=1e-16, maxcor=30), ()),
    "BFGS (SciPy)": (scipy_descent("BFGS"), ()),
    "L-BFGS (torch)": (torch_lbfgs, ()),
    "Adam": (adam, (0.01, 0.03, 0.1, 0.3)),
    "QNG (PennyLane)": (pennylane_qng, (0.3,)),
}


def descend(
    method: Method, case: Case, problem: fubini.EnergyProblem, x: np.ndarray, lr: Any
) -> Descent:
    """Run a method from a start.

    Args:
        method: One of METHODS.
        case: What to minimise.
        problem: Its energy.
        x: Flat weights.
        lr: Learning rate.
    """
    watch = Watch(problem, -math.inf if case.floor is None else case.floor)
    with contextlib.suppress(Watch.Reached):
        method(case, problem, x, watch, lr)
    return watch.run
