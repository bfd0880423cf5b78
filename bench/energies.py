"""Does the natural gradient find ground states sooner? Against tuned SGD, Adam and L-BFGS, over steps and over seconds.

Two problems of ``problems/vqe.py``: the critical Ising chain with the QAOA ansatz, where an optimizer succeeds when it gets
within 1e-4 of the ground state in 500 steps; and the random circuit of Stokes et al. Every optimizer is tuned on seeds that
the figures do not use, over the grid that is printed. All run on our native engine and one thread, and seconds are those of
the CPU, so the comparison is between optimizers, not simulators. A step of L-BFGS is an iteration with as many evaluations
as its line search wants; a step of the Levenberg-Marquardt rule may evaluate the loss several times, too.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import common
from problems import vqe
from problems.race import Contender, Settings, Trace, race, tuned

TUNING_SEEDS = (1000, 1001, 1002)


def ising(quick: bool) -> dict[str, Any]:
    """Success rates, steps and seconds to the ground state."""
    sizes, starts, steps = ((6, 8), 3, 60) if quick else ((8, 10, 12), 20, 500)
    result: dict[str, Any] = {}
    for spins in sizes:
        target = vqe.ising_target(spins)
        found = {}
        for contender in vqe.CONTENDERS:
            # At 12 spins a grid of fixed-lr runs takes minutes: those settings are of 10 spins.
            tuned_at = min(spins, 10)
            settings = tuned(
                contender,
                lambda seed, n=tuned_at: vqe.ising(n, seed),
                TUNING_SEEDS,
                steps,
                vqe.ising_target(tuned_at),
            )
            traces = [
                race(contender, settings, vqe.ising(spins, seed), steps, target)
                for seed in range(starts)
            ]
            found[contender.name] = summary(contender, settings, traces, target)
        result[str(spins)] = found
        head = ["", "reached", "median steps", "most steps", "median s", "tuned", "grid"]
        rows = [
            [
                name,
                f"{f['successes']}/{starts}",
                number(f["median_steps"]),
                number(f["most_steps"]),
                number(f["median_seconds"]),
                words(f["settings"]),
                "; ".join(words(s) for s in f["grid"]),
            ]
            for name, f in found.items()
        ]
        common.print_table(
            f"Ising ring, {spins} spins: relative error 1e-4 within {steps} steps", head, rows
        )
    return result


def stokes(quick: bool) -> dict[str, Any]:
    """Energies of the random circuit after 50, 100 and 200 steps, as medians; -1 is the ground state."""
    cases, seeds, steps = (((5, 2),), 2, 40) if quick else (((7, 3), (7, 5), (9, 3)), 10, 200)
    contenders = [c for c in vqe.CONTENDERS if not c.name.startswith("QNG")]
    grid = ({"lr": lr, "lam": 1e-3} for lr in (0.01, 0.03, 0.1, 0.3))
    grids = tuple(grid)
    for approx in ("diag", "block-diag", None):
        settings = tuple({**s, "approx": approx} for s in grids)
        contenders.append(Contender(f"QNG {approx or 'full'}", "qng", settings))
    contenders.append(Contender("QNG full, Levenberg-Marquardt", "qng", ({"lm": 3e-3},)))
    result = {}
    for wires, layers in cases:
        found = {}
        for contender in contenders:
            settings = tuned(
                contender,
                lambda seed, w=wires, n=layers: vqe.stokes(w, n, seed),
                TUNING_SEEDS[:2],
                steps,
            )
            traces = [
                race(contender, settings, vqe.stokes(wires, layers, seed), steps)
                for seed in range(seeds)
            ]
            found[contender.name] = summary(contender, settings, traces, -1 + 1e-3)
        result[f"{wires} wires, {layers} layers"] = found
        show(
            f"random circuit, {wires} wires, {layers} layers: median energy at steps", found, steps
        )
    return result


def summary(
    contender: Contender, settings: Settings, traces: Sequence[Trace], target: float
) -> dict[str, Any]:
    """What goes into the JSON file."""
    at = [t.reached(target) for t in traces]
    steps = [math.inf if k is None else k for k in at]
    seconds = [t.seconds_to(target) for t in traces]
    length = max(len(t.losses) for t in traces)
    losses = np.array([t.losses + [t.losses[-1]] * (length - len(t.losses)) for t in traces])
    each = [t.seconds[-1] / max(1, len(t.seconds) - 1) for t in traces]
    return {
        "settings": settings,
        "grid": list(contender.grid),
        "successes": sum(k is not None for k in at),
        "starts": len(traces),
        "median_steps": finite(statistics.median(steps)),
        "most_steps": finite(max(steps)),
        "median_seconds": finite(statistics.median(seconds)),
        "seconds_per_step": statistics.median(each),
        "median_loss": np.median(losses, axis=0).tolist(),
        "mean_loss": losses.mean(axis=0).tolist(),
        "spread_loss": losses.std(axis=0).tolist(),
    }


def show(title: str, found: dict[str, Any], steps: int) -> None:
    at = [steps // 4, steps // 2, steps - 1]
    rows = []
    for name, f in found.items():
        losses = f["median_loss"]
        rows.append(
            [
                name,
                *(f"{losses[min(k, len(losses) - 1)]:.4f}" for k in at),
                f"{f['mean_loss'][-1]:.4f} +- {f['spread_loss'][-1]:.4f}",
                f"{f['seconds_per_step'] * 1e3:.2f}",
                words(f["settings"]),
                "; ".join(words(s) for s in f["grid"]),
            ]
        )
    head = ["", *map(str, at), "mean +- deviation", "ms/step", "tuned", "grid"]
    common.print_table(title, head, rows)


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def words(settings: Settings) -> str:
    short = ("lr", "lm", "maxcor")
    return ", ".join(f"{k} {v}" for k, v in settings.items() if k in short)


PROBLEMS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "ising": ising,
    "stokes": stokes,
}


def run(quick: bool) -> dict[str, Any]:
    """Run all problems on one thread.

    Args:
        quick: Small problems, few seeds.

    Returns:
        The results.
    """
    with common.threads(1):
        results = {name: problem(quick) for name, problem in PROBLEMS.items()}
    if not quick:
        largest = results["ising"]["12"]
        ours = largest["QNG, Levenberg-Marquardt"]["median_seconds"]
        for name in ("L-BFGS (torch)", "L-BFGS (SciPy)"):
            theirs = largest[name]["median_seconds"]
            print(f"12 spins: {number(ours)} s, {name} {number(theirs)} s")
    with contextlib.suppress(ImportError):
        draw(results)
    return {**results, "threads": 1, "tuning_seeds": list(TUNING_SEEDS)}


def draw(results: dict[str, Any]) -> None:
    """Loss over steps and over seconds, with the spread over the starts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    spins = max(results["ising"], key=int)
    circuit = list(results["stokes"])[-1]
    lowest = vqe.ising_target(int(spins)) / (1 - 1e-4)
    panels = {
        f"Ising ring, {spins} spins": (results["ising"][spins], lowest),
        f"random circuit, {circuit}": (results["stokes"][circuit], -1.0),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 8))
    for (title, (found, floor)), column in zip(panels.items(), axes.T, strict=True):
        for name, f in found.items():
            middle = np.maximum(np.array(f["median_loss"]) - floor, 1e-8)
            steps = np.arange(len(middle))
            column[0].plot(steps, middle, label=name)
            column[1].plot(steps * f["seconds_per_step"], middle, label=name)
        column[0].set(
            title=title, yscale="log", xlabel="steps", ylabel="loss above the lowest, median"
        )
        column[1].set(yscale="log", xscale="log", xlabel="seconds")
        column[0].legend(fontsize=7)
        for axis in column:
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(common.picture_path("energies"), dpi=130)
    plt.close(figure)
