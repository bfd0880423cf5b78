"""Rules for copies and rearrangements that make new memory; see :mod:`fubini.compile.rules`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fubini.compile.rules import dims_of, rule
from fubini.compile.shadow import Codes, Shadow, UnknownError

_FILLS = ("zeros", "ones", "empty", "full")


@rule("clone", "lift_fresh_copy", "alias_copy", "_to_copy")
def _clone(shadow: Shadow, a: torch.Tensor, **options: Any) -> Codes:
    return shadow.of(a)


@rule("_unsafe_view", "_reshape_copy", "_reshape_alias")
def _reshaped(shadow: Shadow, a: torch.Tensor, size: Sequence[int], *rest: Any) -> Codes:
    return shadow.of(a).reshape(tuple(size))


@rule("cat")
def _cat(shadow: Shadow, tensors: Sequence[torch.Tensor], dim: int = 0) -> Codes:
    # torch passes over empty vectors
    parts = [shadow.of(t) for t in tensors if not (t.ndim == 1 and t.numel() == 0)]
    return np.concatenate(parts, axis=dim)


@rule("stack")
def _stack(shadow: Shadow, tensors: Sequence[torch.Tensor], dim: int = 0) -> Codes:
    return np.stack([shadow.of(t) for t in tensors], axis=dim)


@rule("repeat")
def _repeat(shadow: Shadow, a: torch.Tensor, repeats: Sequence[int]) -> Codes:
    return np.tile(shadow.of(a), tuple(repeats))


@rule("flip")
def _flip(shadow: Shadow, a: torch.Tensor, dims: Sequence[int]) -> Codes:
    return np.flip(shadow.of(a), tuple(dims))


@rule("roll")
def _roll(shadow: Shadow, a: torch.Tensor, shifts: Any, dims: Any = ()) -> Codes:
    # torch rolls all numbers in one line where no dimensions are named.
    amounts, axes = dims_of(shifts), dims_of(dims)
    return np.roll(shadow.of(a), amounts, axes) if axes else np.roll(shadow.of(a), amounts[0])


@rule("index_select")
def _index_select(shadow: Shadow, a: torch.Tensor, dim: int, index: torch.Tensor) -> Codes:
    return np.asarray(np.take(shadow.of(a), _constant_index(shadow, index), axis=dim))


@rule("gather")
def _gather(shadow: Shadow, a: torch.Tensor, dim: int, index: torch.Tensor, **_: Any) -> Codes:
    # NumPy broadcasts other dimensions where torch takes the first entries.
    part = shadow.of(a)[
        tuple(slice(None) if k == dim % a.ndim else slice(0, n) for k, n in enumerate(index.shape))
    ]
    return np.asarray(np.take_along_axis(part, _constant_index(shadow, index), axis=dim))


@rule("index")
def _index(shadow: Shadow, a: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Codes:
    found: list[Any] = [
        slice(None) if index is None else _constant_index(shadow, index) for index in indices
    ]
    return np.asarray(shadow.of(a)[tuple(found)])


@rule("constant_pad_nd")
def _pad(shadow: Shadow, a: torch.Tensor, pad: Sequence[int], value: float = 0) -> Codes:
    if min(pad, default=0) < 0:
        raise UnknownError("it pads by a negative width")
    widths = [(0, 0)] * a.ndim
    for k in range(len(pad) // 2):
        widths[a.ndim - 1 - k] = (pad[2 * k], pad[2 * k + 1])
    return np.pad(shadow.of(a), widths, constant_values=shadow.constant(float(value)))


@rule("diag_embed")
def _diag_embed(shadow: Shadow, a: torch.Tensor, *rest: Any) -> Codes:
    if rest:
        raise UnknownError("it makes a matrix of other diagonals than the main one")
    codes = shadow.of(a)
    result = np.full((*codes.shape, codes.shape[-1]), shadow.constant(0.0))
    at = np.arange(codes.shape[-1])
    result[..., at, at] = codes
    return result


@rule(*(f"{_name}_like" for _name in _FILLS), *(f"new_{_name}" for _name in _FILLS))
def _filled(shadow: Shadow, a: torch.Tensor, *rest: Any, **options: Any) -> None:
    """Constants of a tensor's shape: nothing of the tensor is in them."""


def _constant_index(shadow: Shadow, index: torch.Tensor) -> Any:
    if shadow.tracks(index):  # pragma: no cover - integers are never tracked
        raise UnknownError("it computes an index")
    return index.detach().cpu().numpy()
