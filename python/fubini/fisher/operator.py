"""Products of a model's joint Fisher information with vectors, without the matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.blocks import OperatorBlock
from fubini.fisher.repeat import Layout, again, call_model, check_output, replaced_forwards
from fubini.nn.stand_in import as_native
from fubini.nn.surroundings import Plainly, Seen, without_autocast

Tensor = torch.Tensor


def fisher_operator(
    layout: Layout,
    seen: Sequence[Seen],
    parameters: Sequence[Tensor],
    curvatures: Sequence[Callable[[Tensor], Tensor]],
    diagonal: Tensor | None,
) -> OperatorBlock:
    """Return the sum of ``J^T H J`` over passes as an operator, at copies of the parameters as they are now.

    The pull-back ``u -> J^T u`` is linear in u, so its own pull-back is J: one backward pass through the graph of another
    backward pass. Compiled circuits take part with the native engine's pull-back and push-forward.

    Args:
        layout: The model.
        seen: The passes.
        parameters: Parameters of the model.
        curvatures: For every pass the product of H with vectors of the outputs' shape.
        diagonal: The operator's diagonal where it is known.

    Returns:
        The block.

    Raises:
        TypeError: For a ``TorchLayer`` that has to run on its device, whose weights cannot be exchanged; from products, for
            an operation that torch cannot differentiate twice.
    """
    sizes = [p.numel() for p in parameters]
    products = [
        _product(layout, one, parameters, curvature)
        for one, curvature in zip(seen, curvatures, strict=True)
    ]

    def apply(v: Tensor) -> Tensor:
        parts = torch.split(v, sizes)
        result = [torch.zeros_like(part) for part in parts]
        for product in products:
            product(parts, result)
        return torch.cat(result)

    found = None if diagonal is None else lambda: diagonal
    return OperatorBlock(parameters, apply, "model", diagonal=found)


def _product(
    layout: Layout,
    seen: Seen,
    parameters: Sequence[Tensor],
    curvature: Callable[[Tensor], Tensor],
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """A function that adds to a result the product of one pass's matrix with a vector, both parameter by parameter."""
    model = layout.model
    copies = {id(p): p.detach().clone().requires_grad_() for p in parameters}
    replaced = {n: copies.get(id(p), p.detach()) for n, p in model.named_parameters()}
    with again(layout, seen), replaced_forwards(_torch_layers(model, copies)), Plainly():
        output = check_output(call_model(layout, seen, replaced))
        u = torch.zeros_like(output, requires_grad=True)
        every = torch.autograd.grad(
            output, list(copies.values()), u, create_graph=True, allow_unused=True
        )
    numbers = [i for i, one in enumerate(every) if one is not None and one.requires_grad]
    pulled, leaves = [every[i] for i in numbers], [copies[id(parameters[i])] for i in numbers]

    def add(parts: Sequence[Tensor], result: Sequence[Tensor]) -> None:
        if not numbers:
            return
        vectors = [
            parts[i].reshape(leaf.shape).to(leaf) for i, leaf in zip(numbers, leaves, strict=True)
        ]
        with without_autocast():
            try:
                (pushed,) = torch.autograd.grad(pulled, u, vectors, retain_graph=True)
            except RuntimeError as error:
                raise TypeError(
                    f"model: expected operations with second derivatives, for products with its joint metric ({error}); "
                    "use approx='block-diag'"
                ) from error
            back = torch.autograd.grad(output, leaves, curvature(pushed), retain_graph=True)
        for i, part in zip(numbers, back, strict=True):
            result[i].add_(part.reshape(-1).to(result[i]))

    return add


def _torch_layers(
    model: torch.nn.Module, copies: Mapping[int, Tensor]
) -> dict[torch.nn.Module, Any]:
    """Forward functions for TorchLayers, which keep their weights where functional_call does not reach."""
    forwards: dict[torch.nn.Module, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, qml.qnn.TorchLayer):
            continue
        own = type(module).forward is not qml.qnn.TorchLayer.forward
        if own or "forward" in module.__dict__:
            raise TypeError(
                f"{name}: expected a TorchLayer's own forward, got another one, and its weights cannot be exchanged; derive the "
                "layer from fubini.QuantumLayer, or use approx='block-diag' with fallback='diagonal'"
            )
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
