"""What :func:`fubini.report` returns: numbers, a page and a picture."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fubini.geometry.capacity import effective_dimension, normalised, vanishes
from fubini.geometry.trend import SILENT, GradientTrend, GradientVariance
from fubini.metric.plot import figure_for
from fubini.metric.spectrum import MetricSpectrum, counted
from fubini.options import Index, Real


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Trainability and capacity of a circuit over T random weights, with P weights, X inputs and M results.

    Attributes:
        name: Of the quantum function.
        wires: Number of wires.
        labels: Names of the weights, e.g. ``"w[0, 2]"``.
        inputs: Number of inputs X; 0 for a circuit without data.
        results: Number of real results M.
        likelihood: What the results are read as, in words.
        metrics: The Fubini-Study metric at the first draws, averaged over the inputs, (t, P, P).
        gradients: Variance of the derivatives of the results.
        trend: The same for several numbers of qubits; None unless asked for.
        fisher: Fisher information of one datum under the likelihood, averaged over the inputs, (T, P, P).
        local_fisher: The same in a ball around the given weights; None where only shapes were given.
        data: Number of data n of the page.
        gamma: Of the effective dimension.
        radius: Of the ball, in radians.

    Example:
        >>> import fubini, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.StronglyEntanglingLayers(w, wires=range(2))
        ...     return qml.expval(qml.Z(0))
        >>> found = fubini.report(circuit, weights={"w": (1, 2, 3)}, draws=10)
        >>> found.rank, found.size
        (4, 6)
    """

    name: str
    wires: int
    labels: tuple[str, ...]
    inputs: int
    results: int
    likelihood: str
    metrics: Real = field(repr=False)
    gradients: GradientVariance
    trend: GradientTrend | None
    fisher: Real = field(repr=False)
    local_fisher: Real | None = field(repr=False)
    data: int
    gamma: float
    radius: float

    @property
    def size(self) -> int:
        """Number of weights P."""
        return len(self.labels)

    @cached_property
    def spectra(self) -> tuple[MetricSpectrum, ...]:
        """The metric's spectrum at each of the first draws."""
        return tuple(MetricSpectrum.of_matrix(m, self.labels) for m in self.metrics)

    @cached_property
    def spectrum(self) -> MetricSpectrum:
        """The spectrum of the metric's mean over the draws: its null space is redundant everywhere."""
        return MetricSpectrum.of_matrix(self.metrics.mean(axis=0), self.labels)

    @cached_property
    def ranks(self) -> Index:
        """Rank of the metric at each of these draws; at generic weights it is the largest one."""
        return np.array([s.rank for s in self.spectra], dtype=np.intp)

    @property
    def rank(self) -> int:
        """The largest rank: how many directions of the state the weights reach (Haug et al. 2021, arXiv:2102.01659)."""
        return int(self.ranks.max())

    @cached_property
    def redundant(self) -> Index:
        """Weights that can be fixed while the others still move the states in every direction, almost everywhere.

        The rank of an analytic family is the largest one almost everywhere, so what spans the tangent space at one
        generic draw does so at nearly all others.
        """
        return self.spectra[int(self.ranks.argmax())].redundant

    @cached_property
    def idle(self) -> Index:
        """Weights that move no state at any of the draws."""
        return self.spectrum.idle

    @cached_property
    def fisher_eigenvalues(self) -> Real:
        """Eigenvalues of the Fisher matrices, scaled to a mean trace of P, in falling order, (T, P)."""
        return normalised(np.linalg.eigvalsh(self.fisher)[:, ::-1])

    @cached_property
    def fisher_ranks(self) -> Index:
        """Rank of the Fisher information at every draw: directions in which the distribution of the results moves."""
        values = self.fisher_eigenvalues
        least = self.size * np.finfo(float).eps * values.max(axis=1, keepdims=True)
        return np.asarray((values > least).sum(axis=1), dtype=np.intp)

    def effective_dimension(self, data: Any = None, *, local: bool = False) -> Any:
        """Return the effective dimension, see :func:`fubini.effective_dimension`; divided by ``size`` it is normalised.

        Args:
            data: Number of data, or several; None: that of the page.
            local: In the ball around the given weights, instead of over all of the space.

        Returns:
            A number, or an array of the shape of data.

        Raises:
            ValueError: If the local one is asked for and the report was made from shapes alone, or for too few data.
        """
        matrices = self.fisher
        if local:
            if self.local_fisher is None:
                raise ValueError(
                    "local: expected a report on weights with values, got one on shapes; pass weights={'w': tensor} to "
                    "fubini.report"
                )
            matrices = self.local_fisher
        return effective_dimension(matrices, self.data if data is None else data, self.gamma)

    def plot(self, figure: Any = None) -> Any:
        """Draw the report; needs matplotlib.

        Args:
            figure: A matplotlib figure or sub-figure to draw into; None: a new one.

        Returns:
            The figure.

        Raises:
            ImportError: If matplotlib is missing.
        """
        figure = figure_for("plot", (10, 7), figure)
        ((metric, fisher), (gradient, dimension)) = figure.subplots(2, 2)
        _draw_spectrum(metric, np.array([s.eigenvalues for s in self.spectra]), "metric")
        metric.set_title(f"metric: rank {self.rank} of {self.size}")
        if not vanishes(self.fisher):
            _draw_spectrum(fisher, self.fisher_eigenvalues, "Fisher information")
            fisher.set_title(f"Fisher information: rank {self.fisher_ranks.max()} of {self.size}")
            _draw_dimension(dimension, self)
        _draw_gradients(gradient, self)
        for axes in (metric, fisher, gradient, dimension):
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{self.name}: {self.wires} qubits, {self.size} weights")
        return figure

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        data = f"{self.inputs} inputs" if self.inputs else "no data"
        head = (
            f"Report on {self.name}: {self.wires} qubits, {self.size} weights, {data}, {self.results} results; "
            f"{len(self.fisher)} random weights"
        )
        parts = [*self._metric_lines(), *self._gradient_lines(), *self._fisher_lines()]
        return "\n".join([head, *parts])

    def _metric_lines(self) -> list[str]:
        one = self.spectra[int(self.ranks.argmax())]
        ranks = f"{self.ranks.min()} to {self.ranks.max()}" if np.ptp(self.ranks) else "the same"
        least = one.eigenvalues[max(0, one.rank - 1)]
        first = (
            f"metric      rank {self.rank} of {self.size}, {ranks} at {len(self.metrics)} random weights; eigenvalues "
            f"{one.eigenvalues[0]:.2g} to {least:.2g}, condition number {one.condition:.2g}"
        )
        return [
            first,
            f"  redundant {counted(self.labels, self.redundant)}",
            f"  idle      {counted(self.labels, self.idle)}",
        ]

    def _gradient_lines(self) -> list[str]:
        each = self.gradients.each.mean(axis=0)
        each[each <= SILENT * each.max(initial=0.0)] = 0.0
        low, high = int(each.argmin()), int(each.argmax())
        blind = each.size * len(self.gradients.each) - self.gradients.seen
        first = (
            f"gradients   variance {self.gradients.mean:.3g} +- {self.gradients.error:.1g} over results and weights"
            + (f", without {blind} pairs that do not depend on one another" if blind else "")
            + f"; from {each[low]:.2g} ({self.labels[low]}) to {each[high]:.2g} ({self.labels[high]})"
        )
        return [first] if self.trend is None else [first, f"  trend     {self.trend}"]

    def _fisher_lines(self) -> list[str]:
        first = f"Fisher      of {self.likelihood}"
        if vanishes(self.fisher):
            return [first, "  spectrum  zero: the results do not depend on the weights"]
        values = self.fisher_eigenvalues
        small = float((values < 1e-2 * values.mean()).mean())
        spectrum = (
            f"  spectrum  rank {self.fisher_ranks.max()} of {self.size}; largest eigenvalue {values[:, 0].mean():.2g} times "
            f"the mean one, {100 * small:.0f} % below a hundredth of it"
        )
        local = ""
        if self.local_fisher is not None and not vanishes(self.local_fisher):
            local = f"; local {self._dimension(True)} within {self.radius:.2g} rad"
        return [
            first,
            spectrum,
            f"effective   {self._dimension(False)} for {self.data} data{local}",
        ]

    def _dimension(self, local: bool) -> str:
        value = float(self.effective_dimension(local=local))
        return f"{value:.3g} of {self.size} ({value / self.size:.2f})"


def _draw_spectrum(axes: Any, values: Any, label: str) -> None:
    """Median and range over the draws of every eigenvalue."""
    floor = max(float(values.max()), 1e-300) * 1e-16
    shown = np.maximum(values, floor)
    number = np.arange(1, values.shape[1] + 1)
    axes.fill_between(number, shown.min(axis=0), shown.max(axis=0), alpha=0.25, lw=0, color="C0")
    axes.semilogy(number, np.median(shown, axis=0), "o-", ms=3, lw=1, color="C0")
    axes.set_xlabel("number")
    axes.set_ylabel(f"eigenvalue, {label}")


def _draw_gradients(axes: Any, report: Report) -> None:
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


def _draw_dimension(axes: Any, report: Report) -> None:
    data = np.geomspace(max(100, 20 / report.gamma), 1e6, 25)
    axes.semilogx(data, report.effective_dimension(data) / report.size, label="global", color="C2")
    if report.local_fisher is not None and not vanishes(report.local_fisher):
        local = report.effective_dimension(data, local=True) / report.size
        axes.semilogx(data, local, "--", label="local", color="C2")
    axes.legend(frameon=False)
    axes.set_xlabel("data")
    axes.set_ylabel("effective dimension / weights")
    axes.set_title("normalised effective dimension")
