"""A layer as one operation of torch's graphs: for fake tensors, ``make_fx`` and ``torch.export``.

There a layer must neither look at data nor be replaced by what it is made of. The graph names the layer by a key; the
layer stays for as long as the process lives, since graphs that contain it may.
"""

import uuid
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from fubini.compile.function import outside_transforms
from fubini.errors import UnsupportedCircuitError
from fubini.nn.device_pass import shifted_circuit
from fubini.nn.forms import arranged
from fubini.torch_private import as_outside, transforms_active, without_modes

Tensor = torch.Tensor

_layers: dict[str, Any] = {}
_keys: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


def as_operation(layer: Any, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return a layer's results as one operation.

    Args:
        layer: A ``QuantumLayer``.
        inputs: (features,) or (..., features).
        weights: In the order of ``weight_shapes``.

    Returns:
        What the layer's forward returns.

    Raises:
        NotImplementedError: Inside of a transform of torch.func.
    """
    if transforms_active():
        raise NotImplementedError(
            "inputs: a layer inside of torch.func (grad, vmap, jvp ...) cannot be traced or simulated. Use torch.autograd.grad "
            "in what is traced, which can be; or call the transformed function itself, with real tensors"
        )
    key = _keys.setdefault(layer, uuid.uuid4().hex)
    _layers[key] = layer
    result: Tensor = torch.ops.fubini.circuit(inputs, list(weights), key)
    return result


def _layer(key: str) -> Any:
    if key not in _layers:
        raise RuntimeError(
            "fubini::circuit: this graph was made in another process, whose layers it calls; trace or export the model "
            "again in this one"
        )
    return _layers[key]


@torch.library.custom_op(
    "fubini::circuit",
    mutates_args=(),
    schema="(Tensor inputs, Tensor[] weights, str key) -> Tensor",
)
def _circuit(inputs: Tensor, weights: list[Tensor], key: str) -> Tensor:
    with as_outside(), torch.no_grad():  # a first call compiles, and differentiates for that
        result: Tensor = _layer(key).values(inputs, list(weights)).contiguous()
    return result


@torch.library.custom_op(
    "fubini::circuit_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor inputs, Tensor[] weights, str key) -> Tensor[]",
)
def _circuit_backward(
    gradient: Tensor, inputs: Tensor, weights: list[Tensor], key: str
) -> list[Tensor]:
    with as_outside(), torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in (inputs, *weights)]
        result = _layer(key).values(leaves[0], leaves[1:])
        found: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in leaves]
        if result.requires_grad:
            found = torch.autograd.grad(result, leaves, gradient.detach(), materialize_grads=True)
    return [part.detach().contiguous() for part in found]


@_circuit.register_fake
def _fake(inputs: Tensor, weights: list[Tensor], key: str) -> Tensor:
    return inputs.new_empty(_shape(_layer(key), inputs.shape))


@_circuit_backward.register_fake
def _fake_backward(
    gradient: Tensor, inputs: Tensor, weights: list[Tensor], key: str
) -> list[Tensor]:
    return [torch.empty_like(t) for t in (inputs, *weights)]


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    values, weights, ctx.key = inputs
    ctx.save_for_backward(values, *weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[Tensor], None]:
    inputs, *weights = ctx.saved_tensors
    found = torch.ops.fubini.circuit_backward(gradient, inputs, weights, ctx.key)
    return found[0], list(found[1:]), None


def _refuse(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "fubini::circuit: second derivatives of a traced layer are not available; differentiate the layer itself"
    )


_circuit.register_autograd(_backward, setup_context=_setup)
_circuit_backward.register_autograd(_refuse)


# -- shapes without data ------------------------------------------------------------------------------------------------


def _shape(layer: Any, inputs: torch.Size) -> list[int]:
    """Shape of a layer's results; the leading dimensions of the inputs may be symbols."""
    leading, width = inputs[:-1], int(inputs[-1])
    results = _tried(layer, (2, width) if leading else (width,))
    rows = len(leading) and 1
    if isinstance(results, tuple):
        return [len(results), *leading, *results[0].shape[rows:]]
    return [*leading, *results.shape[rows:]]


def _tried(layer: Any, shape: tuple[int, ...]) -> Any:
    """Results of a layer at numbers of no meaning; nothing is left behind in it."""
    forms, width, noise = layer._forms, layer._width, layer.shot_noise
    layer._forms = forms.copy()
    try:
        with without_modes(), as_outside(), outside_transforms(), torch.no_grad():
            weights = [_numbers(s) for s in layer.weight_shapes.values()]
            inputs = _numbers(shape)
            try:
                return _results(layer, inputs, weights)
            except ValueError:  # amplitudes may have to be normalised
                norms = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
                return _results(layer, inputs / norms, weights)
    finally:
        layer._forms, layer._width, layer.shot_noise = forms, width, noise


def _results(layer: Any, inputs: Tensor, weights: list[Tensor]) -> Any:
    form, _ = layer._form_and_reading(inputs, weights)
    if isinstance(form.how, str) and form.kind != "other":
        try:  # without executing anything
            circuit = shifted_circuit(layer.qnode, layer._arguments(inputs, weights))
        except UnsupportedCircuitError:
            pass
        else:
            count = sum(int(torch.Size(s).numel()) for s in circuit.shapes)
            return arranged(torch.zeros(*inputs.shape[:-1], count), circuit.shapes, form.kind)
    return layer._evaluated(inputs, weights)


def _numbers(shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.linspace(0.1, 0.9, count, dtype=torch.float64).reshape(shape)
