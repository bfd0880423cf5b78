"""Names for types that the modules of the metric share."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Real = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Index = npt.NDArray[np.intp]
#: Which part of the metric over angles is taken; None for all of it.
Approx = Literal["block-diag", "diag"] | None
#: What becomes of a batch; None keeps one metric per input.
Reduce = Literal["mean"] | None


def check_number(name: str, value: Any, below: float = float("inf")) -> None:
    """Raise a ValueError unless the value is one number in [0, below).

    Args:
        name: The argument's name.
        value: A number or a tensor with one element.
        below: Bound.

    Raises:
        TypeError: If the value is no number.
        ValueError: If it is out of range, or a tensor of several.
    """
    if type(value) is float and 0.0 <= value < below:  # the usual case, in every step
        return
    if isinstance(value, str | bytes | bool):  # float() would take them
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(
            f"{name}: expected one number, got a tensor of shape {tuple(value.shape)}; Tensor {name} must be 1-element"
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not 0.0 <= number < below:
        wanted = "a finite number >= 0" if below == float("inf") else f"a number in [0, {below:g})"
        raise ValueError(f"{name}: expected {wanted}, got {value}")
