"""The metric as a picture. Needs matplotlib, which fubini does not install."""

from typing import Any

import numpy as np

from fubini.metric.spectrum import MetricSpectrum

#: More weights than this are not named on the axes.
_NAMED = 24


def plot_metric(
    metric: Any,
    *,
    labels: Any = None,
    title: str | None = None,
    figure: Any = None,
    rcond: float | None = None,
) -> Any:
    """Draw a metric: a heat map of its entries, and its eigenvalues with the rank.

    Args:
        metric: A :class:`fubini.MetricSpectrum` (from ``fubini.metric_spectrum``), a ``MetricOperator``, or a matrix
            (P, P) as ``fubini.metric_tensor`` returns it; a metric of shape ``(*w.shape, *w.shape)`` is flattened.
        labels: Names of the weights; None: those of the spectrum, or numbers.
        title: Above the picture; None: number of weights, rank and condition number.
        figure: A matplotlib figure or sub-figure to draw into; None: a new one.
        rcond: Cut-off of the rank, see ``MetricSpectrum.of_matrix``.

    Returns:
        The matplotlib figure; ``figure.savefig("metric.png")`` stores it.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If the metric is none of these, as a QNode.
        ValueError: If it is not square, symmetric and finite, or labels do not fit.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> figure = fubini.plot_metric(fubini.metric_spectrum(circuit)(w), title="two weights")
        >>> len(figure.axes) >= 2
        True
    """
    figure = figure_for("plot_metric", (10, 4.4), figure)
    from matplotlib import colors, ticker

    spectrum = metric if isinstance(metric, MetricSpectrum) else _spectrum(metric, labels, rcond)
    names = tuple(labels) if labels is not None else spectrum.labels
    size = len(spectrum.labels)
    heat, values = figure.subplots(1, 2, width_ratios=(1.15, 1))

    largest = float(np.abs(spectrum.matrix).max(initial=0.0)) or 1.0
    picture = heat.imshow(
        spectrum.matrix,
        cmap="RdBu_r",
        norm=colors.Normalize(-largest, largest),
        interpolation="nearest",
    )
    figure.colorbar(picture, ax=heat, label="metric")
    heat.set_title("entries")
    if size <= _NAMED:
        heat.set_xticks(range(size), names, rotation=90, fontsize=7)
        heat.set_yticks(range(size), names, fontsize=7)
    else:
        heat.set_xlabel("weight")
        heat.set_ylabel("weight")

    numbers = np.arange(1, size + 1)
    floor = max(spectrum.cutoff, 1e-300)
    shown = np.maximum(spectrum.eigenvalues, floor / 10)  # zeros and rounding lie on the axis
    above = spectrum.eigenvalues > spectrum.cutoff
    values.semilogy(
        numbers[above], shown[above], "o", ms=4, color="C0", label=f"rank {spectrum.rank}"
    )
    if not above.all():
        values.semilogy(
            numbers[~above],
            shown[~above],
            "x",
            ms=4,
            color="0.6",
            label=f"{int((~above).sum())} zero",
        )
        values.axhline(floor, color="0.6", lw=0.8, ls="--", label="cut-off")
    values.set_title("eigenvalues")
    values.set_xlabel("number")
    values.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    values.legend(frameon=False)
    values.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        title
        if title is not None
        else f"{size} weights, rank {spectrum.rank}, condition number {spectrum.condition:.2g}"
    )
    return figure


def figure_for(name: str, size: tuple[float, float], figure: Any) -> Any:
    """Return a figure to draw into: the caller's, or a new one; an ImportError in the name of a function if it cannot be."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{name}: it needs matplotlib; install it: pip install matplotlib"
        ) from error
    return Figure(figsize=size, layout="constrained") if figure is None else figure


def _spectrum(metric: Any, labels: Any, rcond: float | None) -> MetricSpectrum:
    shape = tuple(np.shape(metric)) if not hasattr(metric, "dense") else metric.shape
    half = shape[: len(shape) // 2]
    if len(shape) % 2 == 0 and len(shape) > 2 and half == shape[len(half) :]:
        size = int(np.prod(half))
        metric = metric.reshape(size, size)
    return MetricSpectrum.of_matrix(metric, labels, rcond)
