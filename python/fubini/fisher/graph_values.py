"""What the rules for operations in torch's graph have in common: values that are kept, and checks that data stay apart.

A rule tells how cotangents go back through an operation. They have an axis for the columns behind the first, (N, K, ...).
Every rule sees to it that entry n of a result depends on the entries n of its arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fubini.options import Real

Tensor = torch.Tensor
Shape = tuple[int, ...]
#: From cotangents of the results (N, K, ...) to those of the arguments.
Pull = Callable[[list[Real | None]], Sequence[Real | None]]
#: Gets a node, the shapes of its results and of its arguments, None for those that depend on no parameter, and what is to
#: be kept; returns the pull-back and what, besides the shapes, tells the operation from others.
Rule = Callable[[Any, list[Shape], list[Shape | None], "Values"], tuple[Pull, Any]]

_FLOATS = (torch.float64, torch.float32)


class NotKnown(Exception):
    """A graph has something that is not on the list."""


class Values:
    """What is kept of a pass, and whether it is as it was."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, int]] = []

    def keep(self, value: Any) -> Tensor:
        """Return a saved tensor without its graph.

        Args:
            value: Of a node; a copy is made of what comes from outside, whose memory the caller may use again.

        Raises:
            NotKnown: If it is no dense tensor of single or double precision on the host.
        """
        if not (
            isinstance(value, Tensor)
            and value.dtype in _FLOATS
            and value.is_cpu
            and value.layout is torch.strided
        ):
            raise NotKnown
        result = value.detach()
        if not value.requires_grad:
            return result.clone()
        self._kept.append((result, result._version))
        return result

    def unchanged(self) -> bool:
        """Return whether no tensor has been changed in place."""
        return all(tensor._version == version for tensor, version in self._kept)


def signed(number: int) -> int:
    """Return a number that torch shows without its sign.

    Args:
        number: As torch shows it.
    """
    return number - (1 << 64) if number >= 1 << 63 else number


def axis_of(dim: int, ndim: int) -> int:
    """Return an axis of a result that is not that of the data.

    Args:
        dim: As torch shows it.
        ndim: Number of axes.

    Raises:
        NotKnown: If it is that of the data.
    """
    axis = signed(dim) % ndim
    if axis == 0:
        raise NotKnown
    return axis


def known_shape(argument: Shape | None, shape: Shape) -> Shape:
    """Return the shape of the one argument, which has the same data.

    Args:
        argument: The shape; None: the argument depends on no parameter.
        shape: Of the result.

    Raises:
        NotKnown: If it has other data.
    """
    if argument is None or not argument or argument[0] != shape[0]:
        raise NotKnown
    return argument


def check_fits(shape: Shape, argument: Shape | None) -> None:
    """Refuse an argument that is repeated along the data, or moved to other axes.

    Args:
        argument: Its shape; None: the argument depends on no parameter.
        shape: Of the result.

    Raises:
        NotKnown: If it is.
    """
    if argument is not None and (len(argument) != len(shape) or argument[0] != shape[0]):
        raise NotKnown
