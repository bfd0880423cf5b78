"""Products of a model's joint Fisher information with vectors, without the matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.torch.blocks import OperatorBlock
from fubini.torch.fisher_jacobian import as_native
from fubini.torch.fisher_pass import (
    Layout,
    apart,
    check_output,
    replaced_forwards,
    without_autocast,
)

Tensor = torch.Tensor


def fisher_operator(
    layout: Layout,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    parameters: Sequence[Tensor],
    curvature: Callable[[Tensor], Callable[[Tensor], Tensor]],
    diagonal: Tensor | None,
) -> OperatorBlock:
    """Return ``J^T H J`` as an operator, at copies of the parameters as they are now.

    The pull-back ``u -> J^T u`` is linear in u, so its own pull-back is J: one backward pass through the graph of another
    backward pass. Compiled circuits take part with the native engine's pull-back and push-forward.

    Args:
        layout: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        parameters: Parameters of the model.
        curvature: From the outputs to the product of H with vectors of their shape.
        diagonal: The operator's diagonal where it is known.

    Returns:
        The block.

    Raises:
        TypeError: For a ``TorchLayer`` that has to run on its device, whose weights cannot be exchanged; from products, for
            an operation that torch cannot differentiate twice.
    """
    model = layout.model
    copies = {id(p): p.detach().clone().requires_grad_() for p in parameters}
    replaced: dict[str, Tensor] = {name: b.clone() for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        replaced[name] = copies.get(id(p), p.detach())
    with apart(layout), replaced_forwards(_torch_layers(model, copies)):
        output = check_output(torch.func.functional_call(model, replaced, args, dict(kwargs)))
        leaves = [copies[id(p)] for p in parameters]
        u = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, leaves, u, create_graph=True, allow_unused=True)
    product_of_outputs = curvature(output.detach())
    live = [i for i, one in enumerate(pulled) if one is not None and one.requires_grad]
    sizes = [p.numel() for p in parameters]

    def apply(v: Tensor) -> Tensor:
        parts = torch.split(v, sizes)
        result = [torch.zeros_like(part) for part in parts]
        if not live:
            return torch.cat(result)
        vectors = [parts[i].reshape(leaves[i].shape).to(leaves[i]) for i in live]
        gradients = [one for i in live if (one := pulled[i]) is not None]
        with without_autocast():
            try:
                (pushed,) = torch.autograd.grad(gradients, u, vectors, retain_graph=True)
            except RuntimeError as error:
                raise TypeError(
                    f"model: expected operations with second derivatives, for products with its joint metric ({error}); "
                    "use approx='block-diag'"
                ) from error
            back = torch.autograd.grad(
                output, [leaves[i] for i in live], product_of_outputs(pushed), retain_graph=True
            )
        for i, part in zip(live, back, strict=True):
            result[i] = part.reshape(-1).to(v)
        return torch.cat(result)

    found = None if diagonal is None else lambda: diagonal
    return OperatorBlock(parameters, apply, "model", diagonal=found)


def _torch_layers(
    model: torch.nn.Module, copies: Mapping[int, Tensor]
) -> dict[torch.nn.Module, Any]:
    """Forward functions for TorchLayers, which keep their weights where functional_call does not reach."""
    forwards: dict[torch.nn.Module, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, qml.qnn.TorchLayer):
            continue
        native = as_native(module)
        if native is None:
            raise TypeError(
                f"{name}: expected a fubini.QuantumLayer, got a TorchLayer on {module.qnode.device.name!r}, whose weights "
                "cannot be exchanged; use fubini.replace_torch_layers(model), or approx='block-diag'"
            )
        weights = {n: copies.get(id(w), w.detach()) for n, w in module.qnode_weights.items()}

        def forward(inputs: Tensor, native: Any = native, weights: Any = weights) -> Tensor:
            result: Tensor = torch.func.functional_call(native, weights, (inputs,))
            return result

        forwards[module] = forward
    return forwards
