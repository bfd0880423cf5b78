"""Rules for operations that move entries, and sums over axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fubini.fisher.graph_values import (
    NotKnown,
    Pull,
    Rule,
    Shape,
    Values,
    axis_of,
    check_fits,
    known_shape,
    signed,
)

# -- shapes -----------------------------------------------------------------------------------------------------------------


def _same(node: Any, shapes: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
    if arguments != shapes:
        raise NotKnown
    return lambda g: (g[0],), None


def _reshape(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    # Rows stay rows, as they are read in order and have as many entries as before.
    shape = known_shape(arguments[0], shapes[0])
    if math.prod(shape) != math.prod(shapes[0]):
        raise NotKnown
    return lambda g: (g[0].reshape(*g[0].shape[:2], *shape[1:]),), None


def _permute(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    shape = known_shape(arguments[0], shapes[0])
    if type(node).__name__ == "TransposeBackward0":
        order = list(range(len(shape)))
        a, b = (axis_of(d, len(shape)) for d in (node._saved_dim0, node._saved_dim1))
        order[a], order[b] = b, a
    else:
        order = [signed(d) % len(shape) for d in node._saved_dims]
    if order[0] != 0:
        raise NotKnown
    back = [0, 1, *(int(a) + 1 for a in np.argsort(order)[1:])]
    return lambda g: (g[0].transpose(back),), tuple(order)


def _placed(places: Sequence[tuple[Any, ...]], shape: Shape) -> Pull:
    """Back to the places that each of the results was taken from."""

    def pull(g: Any) -> Any:
        lead = next(one for one in g if one is not None).shape[:2]
        result = np.zeros((*lead, *shape[1:]))
        for place, one in zip(places, g, strict=True):
            if one is not None:
                result[place] = one
        return (result,)

    return pull


def _taken(places: Sequence[tuple[Any, ...]], arguments: list[Shape | None]) -> Pull:
    """From the places in the result that each of the arguments has."""

    def pull(g: Any) -> Any:
        return [
            None if a is None else g[0][place] for a, place in zip(arguments, places, strict=True)
        ]

    return pull


def _before(axis: int) -> tuple[slice, ...]:
    """All of a cotangent's axes before one of the values'."""
    return (slice(None),) * (axis + 1)


def _slice_of(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    shape = known_shape(arguments[0], shapes[0])
    dim = signed(node._saved_dim) % len(shape)
    part = slice(signed(node._saved_start), signed(node._saved_end), node._saved_step)
    taken = range(*part.indices(shape[dim]))
    if len(taken) != shapes[0][dim]:
        raise NotKnown
    if dim == 0:
        if part.step != 1 or len(taken) != shape[0]:
            raise NotKnown
        return lambda g: (g[0],), None
    return _placed([(*_before(dim), part)], shape), (dim, taken.start, taken.stop, taken.step)


def _select(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    shape = known_shape(arguments[0], shapes[0])
    dim = axis_of(node._saved_dim, len(shape))
    index = signed(node._saved_index) % shape[dim]
    return _placed([(*_before(dim), index)], shape), (dim, index)


def _cat(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    shape = shapes[0]
    axis = axis_of(node._saved_dim, len(shape))
    unknown = [k for k, a in enumerate(arguments) if a is None]
    sizes = [0 if a is None else a[axis] for a in arguments]
    for argument in arguments:
        check_fits(shape, argument)
    if len(unknown) > 1:  # nobody knows which part of the rest is whose
        raise NotKnown
    if unknown:
        sizes[unknown[0]] = shape[axis] - sum(sizes)
    if sum(sizes) != shape[axis]:
        raise NotKnown
    ends = itertools.accumulate(sizes)
    places = [
        (*_before(axis), slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)
    ]
    return _taken(places, arguments), (axis, tuple(sizes))


def _stack(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    axis = axis_of(node._saved_dim, len(shapes[0]))
    for argument in arguments:
        if argument is not None and len(argument) != len(shapes[0]) - 1:
            raise NotKnown
    places = [(*_before(axis), k) for k in range(len(arguments))]
    return _taken(places, arguments), axis


def _split(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
    shape = known_shape(arguments[0], shapes[0])
    axis = axis_of(node._saved_dim, len(shape))
    each = type(node).__name__ == "UnbindBackward0"
    ends = [0, *itertools.accumulate(1 if each else s[axis] for s in shapes)]
    if ends[-1] != shape[axis]:
        raise NotKnown
    parts: Any = range(len(shapes)) if each else itertools.starmap(slice, itertools.pairwise(ends))
    places = [(*_before(axis), part) for part in parts]
    return _placed(places, shape), (axis, tuple(ends))


def _reduced(mean: bool) -> Rule:
    def rule(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
        shape = known_shape(arguments[0], shapes[0])
        axes = sorted({axis_of(d, len(shape)) for d in node._saved_dim})
        if not axes:  # of everything
            raise NotKnown
        between = [1 if a in axes else size for a, size in enumerate(shape)]
        share = 1.0 / math.prod(shape[a] for a in axes) if mean else 1.0

        def pull(g: Any) -> Any:
            lead = g[0].shape[:2]
            back = (share * g[0]).reshape(*lead, *between[1:])
            return (np.broadcast_to(back, (*lead, *shape[1:])),)

        return pull, tuple(axes)

    return rule


#: Rules of moves and sums over axes, by the name of the node's class.
SHAPES: dict[str, Rule] = {
    "CloneBackward0": _same,
    "AliasBackward0": _same,
    "ToCopyBackward0": _same,
    "ExpandBackward0": _same,
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "UnsqueezeBackward0": _reshape,
    "TransposeBackward0": _permute,
    "PermuteBackward0": _permute,
    "SliceBackward0": _slice_of,
    "SelectBackward0": _select,
    "CatBackward0": _cat,
    "StackBackward0": _stack,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "UnbindBackward0": _split,
    "SumBackward1": _reduced(False),
    "MeanBackward1": _reduced(True),
}
