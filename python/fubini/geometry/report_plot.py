"""The picture of a report. Needs matplotlib, which fubini does not install."""

from typing import Any

import numpy as np

from fubini.geometry.capacity import vanishes


def plot_report(report: Any, figure: Any = None) -> Any:
    """Draw the spectra of metric and Fisher information, the gradients' variance, and the effective dimension.

    Args:
        report: A ``fubini.Report``.
        figure: A matplotlib figure or sub-figure to draw into; None: a new one.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot: it needs matplotlib; install it: pip install matplotlib"
        ) from error
    if figure is None:
        figure = Figure(figsize=(10, 7), layout="constrained")
    ((metric, fisher), (gradient, dimension)) = figure.subplots(2, 2)
    _spectrum(metric, np.array([s.eigenvalues for s in report.spectra]), "metric")
    metric.set_title(f"metric: rank {report.rank} of {report.size}")
    if not vanishes(report.fisher):
        _spectrum(fisher, report.fisher_eigenvalues, "Fisher information")
        fisher.set_title(f"Fisher information: rank {report.fisher_ranks.max()} of {report.size}")
        _dimension(dimension, report)
    _gradients(gradient, report)
    for axes in (metric, fisher, gradient, dimension):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"{report.name}: {report.wires} qubits, {report.size} weights")
    return figure


def _spectrum(axes: Any, values: Any, label: str) -> None:
    """Median and range over the draws of every eigenvalue."""
    floor = max(float(values.max()), 1e-300) * 1e-16
    shown = np.maximum(values, floor)
    number = np.arange(1, values.shape[1] + 1)
    axes.fill_between(number, shown.min(axis=0), shown.max(axis=0), alpha=0.25, lw=0, color="C0")
    axes.semilogy(number, np.median(shown, axis=0), "o-", ms=3, lw=1, color="C0")
    axes.set_xlabel("number")
    axes.set_ylabel(f"eigenvalue, {label}")


def _gradients(axes: Any, report: Any) -> None:
    axes.set_ylabel("variance of the gradient")
    axes.set_yscale("log")
    course = report.trend
    if course is None:
        each = report.gradients.each.mean(axis=0)
        axes.bar(
            np.arange(report.size), np.maximum(each, max(each.max(), 1e-300) * 1e-6), color="C1"
        )
        axes.set_xlabel("weight")
        axes.set_title(f"gradients: mean variance {report.gradients.mean:.2g}")
        return
    sizes = np.array(course.sizes)
    axes.errorbar(sizes, course.variances, course.errors, fmt="o", ms=4, color="C1")
    if np.isfinite(course.rate):
        middle = sizes.mean()
        level = np.exp(np.log(course.variances).mean())
        law = level * 2.0 ** (-course.rate * (sizes - middle))
        axes.plot(sizes, law, "--", lw=1, color="0.5", label=f"2^(-{course.rate:.2f} n)")
        axes.legend(frameon=False)
    axes.set_xlabel("qubits")
    axes.set_title(f"gradients: {course.verdict}")


def _dimension(axes: Any, report: Any) -> None:
    data = np.geomspace(max(100, 20 / report.gamma), 1e6, 25)
    axes.semilogx(data, report.effective_dimension(data) / report.size, label="global", color="C2")
    if report.local_fisher is not None and not vanishes(report.local_fisher):
        local = report.effective_dimension(data, local=True) / report.size
        axes.semilogx(data, local, "--", label="local", color="C2")
    axes.legend(frameon=False)
    axes.set_xlabel("data")
    axes.set_ylabel("effective dimension / weights")
    axes.set_title("normalised effective dimension")
