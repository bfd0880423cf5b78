"""The words and numbers that options are, and their checks, each in one place."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

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
#: Which gates form a block, see :mod:`fubini.circuit.gate_layers`.
LayerRule = Literal["wires", "maximal", "queue"]
#: How the full metric is held.
Form = Literal["auto", "dense", "dual", "matrix-free"]
#: What computes.
Engine = Literal["auto", "native", "device"]


def check_word(
    name: str, value: Any, known: Sequence[str | None], function: str = "metric_tensor"
) -> None:
    """Raise a ValueError unless an option is one of the words that are known.

    Args:
        name: The argument's name.
        value: What came.
        known: The words, at least two.
        function: Whose argument it is, for the remedy.

    Raises:
        TypeError: If it is an array, as where weights are passed instead of options.
        ValueError: If it is another word.
    """
    if hasattr(value, "shape") or isinstance(value, list | tuple | dict):
        raise TypeError(
            f"{name}: expected a word or None, got {type(value).__name__}; weights and inputs go to the function that is "
            f"returned, as in {function}(qnode)(weights)"
        )
    if value not in known:
        wanted = ", ".join(repr(word) for word in known[:-1]) + f" or {known[-1]!r}"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_approx(approx: Any, *, auto: bool = False) -> None:
    """Raise a ValueError unless approx names an approximation; None is the full metric.

    Args:
        approx: What came.
        auto: Whether ``"auto"`` is allowed.

    Raises:
        TypeError: If it is an array.
        ValueError: If there is no such approximation.
    """
    check_word("approx", approx, (None, "block-diag", "diag", *(["auto"] if auto else [])))


def check_reduce(reduce: Any) -> None:
    """Raise a ValueError unless reduce says what becomes of a batch.

    Args:
        reduce: What came.

    Raises:
        TypeError: If it is an array.
        ValueError: If it is another word.
    """
    check_word("reduce", reduce, (None, "mean"))


def check_rule(layers: Any) -> None:
    """Raise a ValueError unless layers names a rule.

    Args:
        layers: What came.

    Raises:
        TypeError: If it is an array.
        ValueError: If there is no such rule.
    """
    check_word("layers", layers, get_args(LayerRule))


def check_form(form: Any) -> None:
    """Raise a ValueError unless form names a form of the metric.

    Args:
        form: What came.

    Raises:
        TypeError: If it is an array.
        ValueError: If there is no such form.
    """
    check_word("form", form, get_args(Form), "metric_operator")


def check_engine(engine: Any) -> None:
    """Raise a ValueError unless engine names one.

    Args:
        engine: What came.

    Raises:
        TypeError: If it is an array.
        ValueError: If there is no such engine.
    """
    check_word("engine", engine, get_args(Engine))


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
