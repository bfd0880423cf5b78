"""Whether a loss is a sum of results of circuits times numbers, plus a number: read from its graph."""

from typing import Any

import torch

#: Operations of which every argument may be such a sum, as their nodes are called before ``Backward0``.
_LINEAR = {
    *("Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Stack", "Cat", "Unbind"),
    *("SplitWithSizes", "Split", "Select", "Index", "Slice", "View", "ReshapeAlias", "UnsafeView"),
    *("Squeeze", "Unsqueeze", "ToCopy", "Clone", "Alias", "Expand"),
}
#: Operations of which one argument may be, and the other is a number.
_SCALED = {"MulBackward0", "DivBackward0", "DotBackward0"}
_DEEPEST = 200


def is_affine(loss: Any) -> bool:
    """Return whether a loss is known to be a sum of results of the engine's circuits times numbers, plus a number.

    Args:
        loss: The tensor, behind its backward pass or in front of it.
    """
    node = loss.grad_fn if isinstance(loss, torch.Tensor) else None
    return node is not None and _is_sum(node, {}, 0)


def _is_sum(node: Any, known: dict[Any, bool], depth: int) -> bool:
    if node in known or depth > _DEEPEST:
        return known.get(node, False)
    name = type(node).__name__
    above = [one for one, _ in node.next_functions if one is not None]
    made_by = getattr(type(node), "_forward_cls", None)
    if made_by is not None:
        known[node] = made_by.__module__.startswith("fubini.nn.")
    elif name.partition("Backward")[0] in _LINEAR or (
        name in _SCALED and len(above) == 1 and not _divides(node)
    ):
        known[node] = bool(above) and all(_is_sum(one, known, depth + 1) for one in above)
    else:
        known[node] = False
    return known[node]


def _divides(node: Any) -> bool:
    """Whether a number is divided by the argument."""
    return type(node).__name__ == "DivBackward0" and node.next_functions[0][0] is None
