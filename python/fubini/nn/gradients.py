"""Derivatives for many cotangents at once."""

from collections.abc import Sequence

import torch

from fubini.torch_private import without_transforms

Tensor = torch.Tensor


def batched_gradients(output: Tensor, leaves: list[Tensor], g: Tensor) -> list[Tensor | None]:
    """Return the gradients by leaves for K cotangents at once, (K, *leaf.shape) each, or None where there is no path.

    Args:
        output: Tensor with a graph.
        leaves: What to differentiate by.
        g: (K, *output.shape).

    Raises:
        TypeError: For an operation that torch does not differentiate in this way.
    """
    try:
        return list(
            torch.autograd.grad(
                output, leaves, g, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
        )
    except RuntimeError:  # an operation that cannot be batched: one cotangent at a time
        try:
            each = [
                torch.autograd.grad(output, leaves, one, retain_graph=True, allow_unused=True)
                for one in g
            ]
        except NotImplementedError:
            raise
        except RuntimeError as error:
            raise TypeError(
                f"model: expected operations that torch.autograd.grad differentiates, several times, got one that it does not "
                f"({error}); use metric='quantum', or other operations"
            ) from error
        return [
            None if column[0] is None else torch.stack(list(column))
            for column in zip(*each, strict=True)
        ]


def weight_jacobian(weight: Tensor, leaves: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Return the derivatives of a computed weight, in the middle of a backward pass that has not reached it yet.

    Args:
        weight: The weight.
        leaves: What it is computed from.

    Returns:
        (entries of the weight, entries of the leaf), float64, for the leaves that it depends on.
    """
    with without_transforms():
        basis = torch.eye(weight.numel(), dtype=weight.dtype, device=weight.device)
        basis = basis.reshape(-1, *weight.shape)
        rows = batched_gradients(weight, list(leaves), basis)
    return {
        leaf: row.detach().reshape(len(basis), -1).double()
        for leaf, row in zip(leaves, rows, strict=True)
        if row is not None
    }
