"""The Fisher blocks of chains: models that apply linear layers, elementwise functions and quantum layers in turn.

What a general pass finds out by running the model (which tensor comes from which, that no datum depends on another) is
known of a chain from its modules alone. So its pass needs no graph of torch's, and a few calls of the kernel do what
would be some hundred operations of torch's; for small layers, calls are what a step costs. The blocks are those of the
general pass, in float64 whatever the model's dtype. What is no chain in every respect is left to the general pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pennylane.qnn import TorchLayer
from torch import nn

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import Block
from fubini.compile.compiled import Compiled, Traced
from fubini.fisher.columns import Request
from fubini.fisher.likelihoods import Categorical, OutputGradient
from fubini.fisher.stages import CircuitStage, LinearStage, RowStage, Stage, is_small, output_factor
from fubini.nn.layer import QuantumLayer
from fubini.nn.linearise import linearise, linearise_native
from fubini.nn.recorder import ModelRecorder
from fubini.nn.stand_in import as_native
from fubini.nn.surroundings import Seen
from fubini.options import Real
from fubini.torch_private import has_global_hook

Tensor = torch.Tensor

# Functions of each entry alone, without parameters, randomness or memory. Exactly these classes: a subclass may do
# anything.
_ELEMENTWISE = frozenset(
    {
        nn.Identity, nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
        nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh,
        nn.Hardsigmoid, nn.Hardswish,
    }
)  # fmt: skip
# Those that do nothing outside of training.
_DROPOUT = frozenset({nn.Dropout, nn.AlphaDropout})
# Data times angles times amplitudes. From here on, one reverse sweep for each output takes longer than everything else
# that a step does, and signs combine the outputs.
SWEEPS = 1 << 18
# Attributes of one object in place of what its class or its parameters say.
OWN = frozenset({"forward", "weight", "bias"})


class Layer(NamedTuple):
    """A module of a chain, and its parameters."""

    name: str
    module: Any
    parameters: tuple[Tensor, ...]


class _Link(NamedTuple):
    """A module of a chain at its inputs.

    Attributes:
        outputs: (N, outputs).
        pull: From a factor of the curvature by the outputs, (N, K, outputs), to one of that by the inputs.
        stage: The layer, if it is one with parameters.
        is_scalar: Whether the module returns (N,) instead of (N, 1).
    """

    outputs: Real
    pull: Callable[[Real], Real]
    stage: Stage | None = None
    is_scalar: bool = False


def chain_blocks(
    model: nn.Module, seen: Sequence[Seen], parameters: Sequence[Tensor], request: Request
) -> list[Block] | None:
    """Return the Fisher blocks of a chain, or None where the model or what is asked for needs the general pass.

    Args:
        model: The model.
        seen: The passes.
        parameters: The parameters whose metric is wanted, at least one.
        request: What is asked for, checked.

    Returns:
        The blocks, in the order of the layers.

    Raises:
        NumericalError: If an output of the model is not finite.
        ValueError: If outputs or targets do not fit the likelihood.
    """
    joined = None if request.approx is None else _joined(seen, parameters[0].dtype)
    if joined is None:
        return None
    x, targets = joined
    # Inputs came alone, one by one, or as batches.
    alone = seen[0].args[0].ndim == 1
    with seen[0].surroundings.flags(model):
        links = _links(model, x, alone, parameters, request)
    if links is None:
        return None
    values = links[-1].outputs
    f = torch.from_numpy(values[:, 0] if links[-1].is_scalar else values)
    factor = output_factor(f, targets, request)
    if factor is None:
        return None
    # Of the curvature by a stage's outputs: at most that by the outputs of any stage behind it.
    rank = values.shape[-1] - (type(request.likelihood) is Categorical)
    blocks: list[Block] = []
    left = len({id(p) for p in parameters})
    for link in reversed(links):
        rank, stage = min(rank, factor.shape[2]), link.stage
        if isinstance(stage, RowStage) and rank == 1 < factor.shape[1]:
            factor = _core.reduce_rows(factor, 1)
        if stage is not None and stage.parameters:
            blocks.append(stage.block(factor, request))
            left -= len(stage.parameters)
            if not left:
                break
        factor = link.pull(factor)
    return blocks[::-1]


def _links(
    model: nn.Module, x: Tensor, alone: bool, parameters: Sequence[Tensor], request: Request
) -> list[_Link] | None:
    """The modules at all inputs, (N, features)."""
    layers = chain_layers(model)
    if layers is None:
        return None
    dtype = parameters[0].dtype
    every = [p for layer in layers for p in layer.parameters]
    known, wanted = {id(p) for p in every}, {id(p) for p in parameters}
    # Layers that share parameters have one block. Parameters that are no layer's, or twice there, need the general
    # pass, or an error.
    if len(known) < len(every) or len(wanted) < len(parameters) or not wanted <= known:
        return None
    if not all(is_usual(p, dtype) for p in every) or not is_small_chain(layers, len(x)):
        return None
    links: list[_Link] = []
    signs = request.signs if request.quantum == "gauss-newton" else None
    values, live = to_numpy(x), False  # live: something that is wanted comes before
    for layer in layers:
        mine = tuple([p for p in layer.parameters if id(p) in wanted])
        if mine and len(mine) < len(layer.parameters):
            return None
        link = _link(layer, mine, values, live, dtype, alone, signs)
        if link is None or (links and links[-1].is_scalar):
            return None
        links.append(link)
        values = link.outputs
        live = live or bool(mine)
    return links


def _joined(seen: Sequence[Seen], dtype: torch.dtype) -> tuple[Tensor, Any] | None:
    """The inputs of all passes, (N, features), and their targets: no stage of a chain mixes data. Else None."""
    inputs: list[Tensor] = []
    for one in seen:
        x = one.args[0] if len(one.args) == 1 and not one.kwargs else None
        if x is None or not is_usual(x, dtype) or x.ndim not in (1, 2) or not x.numel():
            return None
        inputs.append(x)
    if len(seen) == 1:
        return (inputs[0], seen[0].targets) if inputs[0].ndim == 2 else None
    training = [one.surroundings.training for one in seen]
    if len({(x.ndim, x.shape[-1], t) for x, t in zip(inputs, training, strict=True)}) > 1:
        return None
    join = torch.cat if inputs[0].ndim == 2 else torch.stack
    found = [one.targets for one in seen]
    targets: Any = None
    if all(isinstance(t, OutputGradient) for t in found):
        targets = OutputGradient(join([t.values for t in found]))
    elif all(isinstance(t, Tensor) for t in found):
        targets = join(found)
    elif any(t is not None for t in found):
        return None
    return join(inputs), targets


def is_usual(tensor: Any, dtype: torch.dtype) -> bool:
    """Whether it is a dense tensor of this real dtype on the host, of no class of somebody's own."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype is dtype
        and (dtype is torch.float64 or dtype is torch.float32)
        and tensor.is_cpu
        and tensor.layout is torch.strided
    )


def is_small_chain(layers: Sequence[Layer], data: int) -> bool:
    """Whether calls are what a chain's blocks for so many data cost, not the numbers."""
    return is_small([(type(layer.module) is nn.Linear, layer.parameters) for layer in layers], data)


def _link(
    layer: Layer,
    parameters: tuple[Tensor, ...],
    inputs: Real,
    differentiate: bool,
    dtype: torch.dtype,
    alone: bool,
    signs: int | None,
) -> _Link | None:
    """The module at its inputs; None where the general pass has to run it, or to refuse it."""
    name, module, own = layer
    stage: Stage
    if type(module) is nn.Linear:
        shape = own[0].shape
        if len(shape) != 2 or shape[1] != inputs.shape[1]:
            return None
        weight, *bias = [to_numpy(p) for p in own]
        outputs = _core.linear_layer(inputs, weight, bias[0] if bias else None)
        stage = LinearStage(name, parameters, inputs, weight)
        return _Link(outputs, stage.pull, stage)
    if type(module) in _ELEMENTWISE or type(module) in _DROPOUT:
        return _elementwise(module, inputs, differentiate)
    native = as_native(module)
    if native is None:
        return None
    x = torch.from_numpy(inputs)
    # A quantum function may look at the dtype of what it gets: compiled for the model's, it serves any.
    form = native._form((x[0] if alone else x).to(dtype))
    if isinstance(form.how, str) or (isinstance(form.how, Traced) and dtype is not torch.float64):
        return None
    if signs is not None and not alone and is_large(form, len(inputs)):
        how: Any = form.how
        outputs, passed = how.forward([to_numpy(p) for p in own], inputs, True)
        stage = RowStage(name, parameters, how, passed, signs)
        return _Link(outputs, stage.pull, stage)
    if alone:
        linear = linearise(native, x, differentiate, alone=True)
    else:
        linear = linearise_native(native, form, x, differentiate)
    stage = CircuitStage(name, parameters, module, x, linear, alone)
    link = _Link(linear.values, stage.pull, stage, linear.parts == 0)
    return link if linear.parts < 2 else None


def _elementwise(module: nn.Module, inputs: Real, differentiate: bool) -> _Link:
    x = torch.from_numpy(inputs).requires_grad_(differentiate)
    with torch.set_grad_enabled(differentiate):
        y = module(x.clone())  # the module may work in place
    slope = np.ones(())
    if differentiate:
        (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
        slope = np.ascontiguousarray(found.numpy())[:, None]
    return _Link(y.detach().numpy(), lambda factor: factor * slope)


def is_large(form: Any, data: int) -> bool:
    """Whether sweeps over a compiled circuit with several results are what a step costs."""
    how = form.how
    if not isinstance(how, Compiled) or how.state_weighted or form.kind == "tuple":
        return False
    circuit = how.circuit
    work = data * circuit.num_angles << circuit.num_wires
    return circuit.num_outputs > 1 and work >= SWEEPS


def has_recorders_alone(module: nn.Module) -> bool:
    """Return whether the hooks of forward passes are those of recorders.

    Args:
        module: The module.
    """
    return all(type(hook) is ModelRecorder for hook in module._forward_hooks.values()) and all(
        type(getattr(hook, "__self__", None)) is ModelRecorder
        for hook in module._forward_pre_hooks.values()
    )


def chain_layers(module: nn.Module, name: str = "", top: bool = True) -> list[Layer] | None:
    """Return what a module applies in turn, with the parameters of each; None where that is not known.

    Args:
        module: The module.
        name: Its name in the model.
        top: Whether it is the model, which has hooks of recorders.
    """
    # Walked in every step: whatever may have changed since the last one, a replaced layer or a new hook, is seen.
    hooked = module._forward_hooks or module._forward_pre_hooks
    if (
        (hooked and not (top and has_recorders_alone(module)))
        or module._backward_hooks
        or module._backward_pre_hooks
        or not module.__dict__.keys().isdisjoint(OWN)
        or (top and has_global_hook())
    ):
        return None
    kind: Any = type(module)
    if kind is nn.Sequential:
        prefix, layers = f"{name}." if name else "", []
        for key, child in module._modules.items():
            found = None if child is None else chain_layers(child, prefix + key, top=False)
            if found is None:
                return None
            layers += found
        return layers
    own: tuple[Tensor, ...] = ()
    if kind is nn.Linear:
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if weight is None or (bias is None and module.bias is not None):
            return None
        own = (weight,) if bias is None else (weight, bias)
    elif kind is QuantumLayer or kind is TorchLayer:
        quantum: Any = module
        own = tuple(quantum.qnode_weights.values())
    elif kind not in _ELEMENTWISE and (kind not in _DROPOUT or module.training):
        return None
    return [Layer(name or kind.__name__, module, own)]
