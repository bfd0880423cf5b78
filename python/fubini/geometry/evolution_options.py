"""What ``fubini.evolve`` is asked for, checked."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.operators import Terms, terms_of
from fubini.options import Real


def check_positive(name: str, value: Any) -> None:
    """Raise an error unless a value is a positive, finite number.

    Args:
        name: The argument's name.
        value: What was passed.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a positive number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def times_of(times: Any, after: float | None = None) -> tuple[Real, bool]:
    """Return the times of the result, and whether those of all steps are wanted as well.

    Args:
        times: As of :func:`fubini.evolve`.
        after: What they continue.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If they do not increase.
    """
    values = real_numbers("times", times)
    check_finite_array("times", values)
    if values.ndim > 1:
        raise ValueError(f"times: expected a number or a sequence, got the shape {values.shape}")
    if not values.ndim:
        first = 0.0 if after is None else after
        if not values > first:
            raise ValueError(f"times: expected a time after {first:g}, got {float(values):g}")
        return np.array([first, float(values)]), True
    if after is not None:
        values = np.concatenate([[after], values])
    if len(values) < 2:
        raise ValueError(f"times: expected at least two, the start and the end, got {len(values)}")
    wrong = np.flatnonzero(np.diff(values) <= 0)
    if len(wrong):
        at = int(wrong[0]) - (after is not None)
        before = "the last time" if at < 0 else f"times[{at}]"
        raise ValueError(
            f"times: expected increasing times, got {values[wrong[0] + 1]:g} after {values[wrong[0]]:g}, {before}"
        )
    return values.copy(), False


def observables_of(start: Ansatz, given: Any) -> dict[str, Terms]:
    """Return named observables as words on the circuit's wires.

    Args:
        start: The circuit.
        given: As of :func:`fubini.evolve`.

    Raises:
        TypeError: For anything but a dictionary or a list.
        ValueError: For two names that are the same as text.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if not isinstance(given, list | tuple):
            raise TypeError(
                f"observables: expected a dictionary or a list of operators, got {type(given).__name__}"
            )
        given = {str(k): one for k, one in enumerate(given)}
    if len({str(name) for name in given}) < len(given):
        raise ValueError(f"observables: expected names that differ as text, got {list(given)}")
    return {
        str(name): terms_of(f"observables[{name!r}]", one, start.circuit)
        for name, one in given.items()
    }
