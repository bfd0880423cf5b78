"""The picture of an evolution."""

from typing import Any

import numpy as np


def draw(result: Any, figure: Any = None) -> Any:
    """Draw an evolution; see ``Evolution.plot``.

    Args:
        result: The evolution.
        figure: To draw into, or None for a new one.

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
        figure = Figure(figsize=(7, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(result.times, result.energies, color="C0", label="energy")
    for number, (name, values) in enumerate(result.observables.items()):
        middle.plot(result.times, values, color=f"C{number % 10}", label=name)
    top.set_ylabel("energy")
    middle.set_ylabel("expectation values")
    if result.observables:
        middle.legend(*_once(middle), fontsize="small")
    tiny = np.finfo(float).tiny
    bottom.semilogy(result.times, np.maximum(result.residuals, tiny), color="C1", label="residual")
    bound = np.where(result.infidelity_bound > 0, result.infidelity_bound, np.nan)
    if np.isfinite(bound).any():
        bottom.semilogy(result.times, bound, color="C3", label="bound of the infidelity")
    bottom.legend(*_once(bottom), fontsize="small")
    bottom.set_xlabel("time" if result.time == "real" else "imaginary time")
    return figure


def _once(axes: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels, each label once: several trajectories are drawn as lines of one label."""
    found: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        found.setdefault(label, handle)
    return list(found.values()), list(found)
