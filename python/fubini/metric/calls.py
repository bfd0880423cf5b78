"""What the metric functions share: what they refuse before a call, and whose name the function for it has."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.nn.qnode_function import plain_qnode
from fubini.torch_private import is_wrapped

Argnum = int | Sequence[int] | None


def check_of_circuit(**options: Any) -> None:
    """Check that what makes no sense for a circuit, whose angles are all it has, was left out."""
    for name, value in options.items():
        if value is not None and value not in ("auto", "native"):
            raise ValueError(
                f"{name}: expected none for a Circuit, which knows nothing but its angles, got {value!r}; leave it out, or "
                "pass the QNode"
            )


def check_plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse tensors of a transform of torch.func, whose values are not there."""
    if any(isinstance(v, torch.Tensor) and is_wrapped(v) for v in (*args, *kwargs.values())):
        raise NotImplementedError(
            "arguments: expected tensors with values, got ones inside of a transform of torch.func (grad, vmap, jacrev, hessian); "
            "differentiate a metric by torch.autograd, which has first derivatives"
        )


def named(qnode: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the name and documentation of a QNode's."""
    qnode = plain_qnode(qnode)
    return functools.wraps(qnode.func)(function) if isinstance(qnode, qml.QNode) else function
