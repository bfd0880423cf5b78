"""The arguments of a call as one flat array: what moves, and where the result is written."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import torch

from fubini.options import Index, Real


class Arguments:
    """The arguments of a call, and which of their numbers move.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        moving: Those tensors among them whose numbers move.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: dict[str, Any], moving: list[torch.Tensor]
    ) -> None:
        self._args, self._kwargs, self._moving = tuple(args), dict(kwargs), moving

    def at(self, x: Real) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with other numbers.

        Args:
            x: (P,).
        """
        parts = dict(zip(map(id, self._moving), self._split(x), strict=True))

        def new(value: Any) -> Any:
            return parts.get(id(value), value)

        return tuple(map(new, self._args)), {n: new(v) for n, v in self._kwargs.items()}

    def write(self, x: Real) -> None:
        """Write numbers into the tensors that move.

        Args:
            x: (P,).
        """
        with torch.no_grad():
            for tensor, part in zip(self._moving, self._split(x), strict=True):
                tensor.copy_(part)

    def _split(self, x: Real) -> list[torch.Tensor]:
        ends = np.cumsum([t.numel() for t in self._moving])[:-1]
        parts = np.split(x.copy(), ends)
        return [
            torch.from_numpy(p).reshape(t.shape).to(t)
            for p, t in zip(parts, self._moving, strict=True)
        ]


def check_apart(tensors: Sequence[torch.Tensor], moving: Container[int]) -> None:
    """Refuse tensors that move and whose numbers are not numbers of their own: one result could not be written to them.

    Args:
        tensors: Of a call.
        moving: Identities of those that move.

    Raises:
        ValueError: If there is one.
    """
    places = [_addresses(v) for v in tensors]
    for k, (v, mine) in enumerate(zip(tensors, places, strict=True)):
        twice = any(
            (id(v) in moving or id(w) in moving)
            and v.device == w.device
            and len(np.intersect1d(mine, theirs))
            for w, theirs in zip(tensors[:k], places[:k], strict=True)
        )
        expanded = id(v) in moving and len(np.unique(mine)) < len(mine)
        if twice or expanded:
            got = "memory that two arguments share" if twice else "an expanded tensor"
            raise ValueError(
                f"args: expected tensors with memory of their own, because the result is written to them, got {got}; "
                "write a QNode that uses one argument in both places, or pass v.clone()"
            )


def _addresses(tensor: torch.Tensor) -> Index:
    """Where a tensor's numbers are, in words of four bytes, of which float64 has two: views may interleave or overlap."""
    width = tensor.element_size()
    found: Index = np.arange(tensor.data_ptr(), tensor.data_ptr() + width, 4)
    for count, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = (found[:, None] + width * stride * np.arange(count)).reshape(-1)
    return found
