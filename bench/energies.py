"""Ground states to the last digit: ``fubini.minimize`` beside L-BFGS, BFGS, Adam and the natural gradient of others.

Every case of ``problems/ground_states.py`` is run from the same random starts by all methods of ``problems/descents.py``.
All get their gradients from the native engine on one thread, but for PennyLane's own QNG, so the comparison is between
optimizers; seconds are those of the CPU. Adam and PennyLane's QNG have the best learning rate of a grid on two other starts.
A start succeeds to t when the energy is within t, relative, of the case's floor: the ground state where the ansatz reaches
it from every start, else the lowest energy that any run found. Which of many local minima a start leads to is chance: among
the cases with fewer successes, those are named where chance would not do it (Fisher's exact test). Medians count starts
that failed as infinite.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

import common
from problems.descents import METHODS, Descent, descend
from problems.ground_states import CASES, QUICK, Case

TARGETS = (1e-4, 1e-8, 1e-12)
GOAL = 1e-8  # of the seconds that are compared
OURS = "fubini.minimize"


def chosen_rate(name: str, case: Case) -> Any:
    """The learning rate with the lowest mean energy at the end, from two starts of their own."""
    method, rates = METHODS[name]
    if len(rates) < 2:
        return rates[0] if rates else None
    problem = case.problem()

    def end(rate: Any) -> float:
        starts = [case.start(np.random.default_rng(1000 + k)) for k in range(2)]
        runs = [descend(method, case, problem, x, rate) for x in starts]
        return statistics.fmean(r.energies[-1] if r.energies else math.inf for r in runs)

    return min(rates, key=end)


def contest(make: Callable[[], Case], starts: int) -> tuple[str, dict[str, Any]]:
    """Run all methods on a case, in turns."""
    case = make()
    problem = case.problem()
    rates = {name: chosen_rate(name, case) for name in METHODS}
    runs: dict[str, list[Descent]] = {name: [] for name in METHODS}
    for seed in range(starts):
        x = case.start(np.random.default_rng(seed))
        for name, (method, _) in METHODS.items():
            run = descend(method, case, problem, x, rates[name])
            if run.energies:
                runs[name].append(run)
    entered = {name: found for name, found in runs.items() if found}
    ends = [run.energies[-1] for found in entered.values() for run in found]
    floor = min(ends) if case.floor is None else case.floor
    rows = {name: row(found, floor, rates[name]) for name, found in entered.items()}
    title = f"{case.name}: {problem.size} weights, floor {floor:.10g}"
    head = ["", *(f"{t:.0e}" for t in TARGETS), "steps", "evaluations", "ms to 1e-8", "ms/step"]
    head += ["median error", "rate"]
    common.print_table(title, head, [[name, *cells(r, starts)] for name, r in rows.items()])
    return case.name, {"weights": problem.size, "floor": floor, "methods": rows}


def row(runs: list[Descent], floor: float, rate: Any) -> dict[str, Any]:
    """What goes into the JSON file."""
    goals = {t: [run.at(floor + t * abs(floor)) for run in runs] for t in TARGETS}
    middle = {
        str(t): [finite(statistics.median(part)) for part in zip(*at, strict=True)]
        for t, at in goals.items()
    }
    each = [run.seconds[-1] / max(1, len(run.seconds) - 1) for run in runs]
    errors = [(run.energies[-1] - floor) / abs(floor) for run in runs]
    return {
        "success": {str(t): sum(math.isfinite(k) for k, _, _ in at) for t, at in goals.items()},
        "median_steps_evaluations_seconds": middle,
        "most_steps": {str(t): finite(max(k for k, _, _ in at)) for t, at in goals.items()},
        "seconds_per_step": statistics.median(each),
        "median_error": statistics.median(errors),
        "mean_error": statistics.fmean(errors),
        "rate": rate,
    }


def cells(found: dict[str, Any], starts: int) -> list[str]:
    steps, evaluations, seconds = found["median_steps_evaluations_seconds"][str(GOAL)]
    return [
        *(f"{found['success'][str(t)]}/{starts}" for t in TARGETS),
        number(steps),
        number(evaluations),
        number(None if seconds is None else 1e3 * seconds),
        f"{1e3 * found['seconds_per_step']:.3f}",
        f"{found['median_error']:.1e}",
        "" if found["rate"] is None else f"{found['rate']:g}",
    ]


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def by_chance(ours: int, theirs: int, starts: int) -> bool:
    """Whether so different numbers of successes come about, one time in twenty or more, where there is no difference."""
    table = [[ours, starts - ours], [theirs, starts - theirs]]
    return bool(scipy.stats.fisher_exact(table).pvalue >= 0.05)


def verdict(results: dict[str, Any], starts: int) -> dict[str, list[str]]:
    """The cases in which a peer has more successes, more than by chance, or fewer seconds, to the goal."""
    fewer, beyond, slower = [], [], []
    for name, found in results.items():
        methods = found["methods"]
        peers = {n: m for n, m in methods.items() if n != OURS}
        key, ours = str(GOAL), methods[OURS]
        mine_reached = ours["success"][key]
        best_reached = max(m["success"][key] for m in peers.values())
        if mine_reached < best_reached:
            fewer.append(name)
            if not by_chance(mine_reached, best_reached, starts):
                beyond.append(name)
        times = [m["median_steps_evaluations_seconds"][key][2] for m in peers.values()]
        mine = ours["median_steps_evaluations_seconds"][key][2]
        best = min((t for t in times if t is not None), default=None)
        if best is not None and (mine is None or mine > best):
            slower.append(name)
    return {
        "fewer successes": fewer,
        "fewer successes, beyond chance,": beyond,
        "more seconds": slower,
    }


def run(quick: bool) -> dict[str, Any]:
    """Run all cases on one thread.

    Args:
        quick: Small cases, few starts.

    Returns:
        The results.
    """
    with common.threads(1), warnings.catch_warnings():
        # SciPy's line searches warn where rounding ends them.
        warnings.simplefilter("ignore")
        starts = 3 if quick else 10
        results = dict(contest(make, starts) for make in (QUICK if quick else CASES))
    lost = verdict(results, starts)
    for what, names in lost.items():
        print(
            f"\n{OURS}, relative error {GOAL:.0e}: {what} than the best peer on {names or 'no case'}"
        )
    return {"cases": results, "lost": lost, "threads": 1}
