"""The demo's table and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fubini.demo.training import Case, Rates, Run

Results = Mapping[Case, Sequence[Run]]

_HEADINGS = ("optimizer", "lr", "final loss")
_COLUMNS = "{:<18}{:>14}{:>12}{:>12}{:>7}{:>10}{:>11}{:>9}"


def table(results: Results) -> str:
    """Return a table for the terminal, one part per case.

    Args:
        results: Runs by case.
    """
    lines = []
    for case, runs in results.items():
        measure = "accuracy" if case.name == "digits" else "error"
        lines += [
            f"{case.title}: {case.measure}; target: {case.target}",
            _COLUMNS.format(*_HEADINGS, measure, "steps", "to target", "seconds to", "of all"),
        ]
        for run in runs:
            value = run.measures[-1][1]
            lines.append(
                _COLUMNS.format(
                    run.optimizer,
                    rates_text(run.rates),
                    f"{final_loss(case, run):.6f}",
                    f"{value:.1%}" if case.name == "digits" else f"{max(value, 0.0):.1e}",
                    run.measures[-1][0],
                    "never" if run.reached is None else str(run.reached),
                    "" if run.seconds_reached is None else f"{run.seconds_reached:.3f}",
                    f"{run.seconds:.2f}",
                )
            )
        lines.append("")
    lines.append("Seconds are those of the CPU, on one thread.")
    if any(case.name == "digits" for case in results):
        lines.append(
            "digits: lr of the classical layers / of the circuit, loss of the last pass through the data."
        )
    return "\n".join(lines).rstrip()


def line(case: Case, run: Run) -> str:
    """Return what a log says when a run is over.

    Args:
        case: The case.
        run: One of its runs.
    """
    return f"{case.name}, {run.optimizer}: {run.steps} steps in {run.seconds:.2f} s"


def final_loss(case: Case, run: Run) -> float:
    """Return the loss at the end: exact, or for mini-batches the mean over the last pass through the data.

    Args:
        case: The case.
        run: One of its runs.
    """
    return fmean(run.losses[-22 if case.name == "digits" else -1 :])


def rates_text(rates: Rates) -> str:
    """Return learning rates as the table shows them.

    Args:
        rates: The rates; none where the optimizer chooses them.
    """
    return "none given" if not rates else " / ".join(f"{rate:g}" for rate in rates)


def picture(results: Results, path: Path) -> None:
    """Draw what every case is judged by over its steps (above) and over seconds (below).

    Args:
        results: Runs by case.
        path: File to write; its suffix is the format.
    """
    # Without pyplot no display and no global state is involved.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(results), 7.0), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for column, (case, runs) in enumerate(results.items()):
        upper, lower = axes[:, column]
        curves(upper, case, runs, seconds=False)
        curves(lower, case, runs, seconds=True)
        upper.set_title(case.title)
        upper.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def curves(axis: Any, case: Case, runs: Sequence[Run], *, seconds: bool) -> None:
    """Draw the error of an exact case, or the running mean of a loss by mini-batches.

    Args:
        axis: Matplotlib's.
        case: The case.
        runs: Its runs.
        seconds: Over seconds, on a logarithmic axis, instead of steps.
    """
    styles = ("-", "-", "-", "--", ":")
    for run, style in zip(runs, styles, strict=False):
        # Rounding can put an error at or below zero, which a logarithmic axis cannot show.
        values = [max(v, 1e-12) for _, v in run.measures] if case.log_scale else _smooth(run.losses)
        at = run.moments[1:] if seconds else range(1, len(values))
        axis.plot(at, values[1:], style, label=f"{run.optimizer}, lr {rates_text(run.rates)}")
    axis.set_ylabel(case.measure if case.log_scale else "loss, mean of 22 batches")
    axis.set_xlabel("seconds of one core" if seconds else "step")
    if seconds:
        axis.set_xscale("log")
    if case.log_scale:
        axis.set_yscale("log")


def _smooth(losses: Sequence[float], window: int = 22) -> list[float]:
    """Return the running mean over one pass through the data."""
    return [fmean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]
