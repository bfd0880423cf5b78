"""The bound on what one computation may allocate, checked before anything is."""

from fubini import _core


def check_fits(what: str, count: float, remedy: str) -> None:
    """Raise a MemoryError unless so many doubles may be allocated.

    Args:
        what: What would be allocated.
        count: Number of doubles.
        remedy: What to do instead.

    Raises:
        MemoryError: With the size and the bound, before anything is allocated.
    """
    limit = _core.memory_limit()
    if 8 * count > limit:
        raise MemoryError(
            f"{what} would take {8e-9 * count:.3g} GB of memory, and may take {1e-9 * limit:.3g} GB "
            f"(fubini.set_memory_limit); {remedy}"
        )


#: What to do where a matrix does not fit.
MATRIX_FREE = "use fubini.metric_operator(...), which multiplies by the metric without forming it"
#: What to do where a derivative of the metric does not fit: there is no product with it.
FEWER_WEIGHTS = "take fewer weights (argnums) or inputs at a time, or reduce='mean'"
