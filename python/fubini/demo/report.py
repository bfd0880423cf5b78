"""The demo's table and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fubini.demo.training import Case, Rates, Run

Results = Mapping[Case, Sequence[Run]]

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
            _COLUMNS.format(
                "optimizer",
                "lr",
                "final loss",
                measure,
                "steps",
                "to target",
                "seconds to",
                "of all",
            ),
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
    if any(case.name == "digits" for case in results):
        lines.append(
            "digits: lr of the classical layers / of the circuit, loss of the last pass through the data."
        )
    return "\n".join(lines).rstrip()


def final_loss(case: Case, run: Run) -> float:
    """Return the loss at the end: exact, or for mini-batches the mean over the last pass through the data.

    Args:
        case: The case.
        run: One of its runs.
    """
    count = min(22, len(run.losses)) if case.name == "digits" else 1
    return sum(run.losses[-count:]) / count


def rates_text(rates: Rates) -> str:
    """Return learning rates as the table shows them.

    Args:
        rates: The rates; none where the optimizer chooses them.
    """
    return "none given" if not rates else " / ".join(f"{rate:g}" for rate in rates)


def picture(results: Results, path: Path) -> None:
    """Draw losses (above) and measures (below) of every case over the steps.

    Args:
        results: Runs by case.
        path: File to write; its suffix is the format.
    """
    from matplotlib.figure import (
        Figure,
    )  # without pyplot no display and no global state is involved

    figure = Figure(figsize=(5.0 * len(results), 7.0), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for column, (case, runs) in enumerate(results.items()):
        upper, lower = axes[:, column]
        for run, style in zip(runs, ("-", "-", "-", "--"), strict=False):
            label = f"{run.optimizer}, lr {rates_text(run.rates)}"
            upper.plot(_smooth(run.losses) if case.name == "digits" else run.losses, style)
            steps, values = zip(*run.measures, strict=True)
            # Rounding can put an error at or below zero, which a logarithmic axis cannot show.
            shown = [max(v, 1e-12) for v in values] if case.log_scale else list(values)
            lower.plot(steps, shown, style, label=label)
        upper.set_title(case.title)
        upper.set_ylabel("loss")
        lower.set_ylabel(case.measure)
        lower.set_xlabel("step")
        if case.log_scale:
            lower.set_yscale("log")
        lower.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _smooth(losses: Sequence[float], window: int = 22) -> list[float]:
    """Return the running mean over one pass through the data."""
    means = []
    for end in range(1, len(losses) + 1):
        part = losses[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means
