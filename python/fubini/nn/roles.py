"""Which arguments of a quantum function are weights, told by how their tensors are made.

A layer names its weights. A QNode that is called by hand, ``circuit(x, self.weights)``, does not: there a tensor is a weight
if it is a parameter, or a function of parameters and plain numbers alone, and data if a network computes it. The graph of
torch says which, but for operations that leave a second tensor out of it: what is neither is unclear, and for the caller
to say.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fubini.options import Index
from fubini.torch_private import packs_saved_tensors, without_transforms

Tensor = torch.Tensor
Role = Literal["weight", "data", "unclear"]

# Names of nodes without the number that tells variants apart. These move entries, or copy them in another precision.
_MOVING = frozenset(
    {
        "Alias", "AsStrided", "Clone", "Diagonal", "Expand", "Flip", "Permute", "ReshapeAlias", "Roll",
        "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "T", "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unfold",
        "Unsqueeze", "View",
    }
)  # fmt: skip
# Functions of one tensor and plain numbers.
_FUNCTIONS = _MOVING | {
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Cumsum", "Cumprod", "Elu",
    "Erf", "Exp", "Expm1", "Gelu", "Hardtanh", "LeakyRelu", "LinalgVectorNorm", "Log", "Log1P", "LogSigmoid",
    "LogSoftmax", "Mean", "Neg", "Prod", "Reciprocal", "Relu", "Repeat", "Rsqrt", "Rsub", "Sigmoid", "Silu", "Sin", "Sinh",
    "Softmax", "Softplus", "Sqrt", "Sum", "Tan", "Tanh", "Tril", "Triu",
}  # fmt: skip
# Functions of several tensors, all of which are in the graph if they are functions of parameters.
_SEVERAL = frozenset(
    {"Add", "Addcmul", "Addmm", "Addmv", "Atan2", "Baddbmm", "Bmm", "Cat", "Div", "Dot", "Mm", "Mul", "Mv", "Stack", "Sub"}
)  # fmt: skip
# What networks are made of: besides the weights in the graph there are data that are not.
_NETWORKS = frozenset(
    {
        "Addmm", "Addmv", "Baddbmm", "Bmm", "Convolution", "CudnnBatchNorm", "Dot", "Embedding", "EmbeddingBag", "Linear", "Mm",
        "MkldnnRnnLayer", "Mv", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "ThnnFusedGruCell",
        "ThnnFusedLstmCell",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        role: What it is.
        leaves: The watched parameters that it is computed from, in the order of the watch.
    """

    role: Role
    leaves: tuple[Tensor, ...] = ()


_CONSTANT = Origin("data")


def origin_of(tensor: Tensor, watched: Mapping[int, Tensor]) -> Origin:
    """Return where a tensor comes from; ``tensor``: any, not inside of a transform of torch.func."""
    if not tensor.requires_grad:
        return _CONSTANT
    if tensor.is_leaf:
        return Origin("weight", (tensor,)) if id(tensor) in watched else _CONSTANT
    found: set[int] = set()
    role: Role = "weight"
    for node in _nodes(tensor):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
            continue
        kind = _kind(node)
        if kind == "data":
            return _CONSTANT
        if kind == "unclear":
            role = "unclear"
    leaves = tuple([p for i, p in watched.items() if i in found])
    return Origin(role, leaves) if leaves else _CONSTANT


def leaves_of(tensor: Tensor, watched: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Return the watched parameters that a tensor is computed from, whatever it is, in the order of the watch.

    Args:
        tensor: Any, not inside of a transform of torch.func.
        watched: The parameters that count, by identity.
    """
    if tensor.is_leaf:
        return (tensor,) if tensor.requires_grad and id(tensor) in watched else ()
    found = {id(getattr(node, "variable", None)) for node in _nodes(tensor)}
    return tuple([p for i, p in watched.items() if i in found])


def _nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of a tensor's graph."""
    waiting: list[Any] = [tensor.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def selection(tensor: Tensor, leaf: Tensor) -> Index | None:
    """Return which entries of a parameter a tensor consists of, each at most once, (n,); None where it is something else."""
    if tensor is leaf:
        return np.arange(leaf.numel())
    node: Any = tensor.grad_fn
    while node is not None and getattr(node, "variable", None) is None:
        if _name(node) not in _MOVING or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    # As numbers that travel back to where the entries come from.
    numbers = torch.arange(1, tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    with without_transforms(), torch.enable_grad():
        (places,) = torch.autograd.grad(
            tensor, leaf, numbers.reshape(tensor.shape), retain_graph=True
        )
    flat = places.detach().reshape(-1).cpu().numpy().astype(np.float64)
    (used,) = np.nonzero(flat)
    order = np.argsort(flat[used])
    # Entries that are used twice have sums, and lower precision rounds.
    if not np.array_equal(flat[used][order], np.arange(1.0, tensor.numel() + 1.0)):
        return None
    return used[order]


def _kind(node: Any) -> Role:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return "data"  # the result of a circuit, or of a function of somebody's own
    name = _name(node)
    present = [following is not None for following, _ in node.next_functions]
    if all(present) and (name in _FUNCTIONS or name in _SEVERAL):
        return "weight"
    if name in _NETWORKS:
        return _of_products(name, present)
    if name in ("Mul", "Div") and not packs_saved_tensors():
        # A plain number is kept as a tensor without dimensions.
        factor = node._saved_other
        if factor is None and name == "Mul":
            factor = node._saved_self
        if factor is not None and factor.ndim == 0:
            return "weight"
    if name == "Pow" and isinstance(getattr(node, "_saved_exponent", None), int | float):
        return "weight"
    return "unclear"


def _of_products(name: str, present: list[bool]) -> Role:
    """What a product with something that is not in the graph is: layers multiply data by weights from the right."""
    if name == "Mv":
        return "data" if present[0] else "unclear"  # a vector of weights times a constant, or data
    if name == "Dot" or (name == "Mm" and present[0]):
        return "unclear"
    return "data"


def _name(node: Any) -> str:
    return type(node).__name__.split("Backward")[0]
