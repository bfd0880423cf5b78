"""The Fisher blocks of chains: models that apply linear layers, elementwise functions and quantum layers in turn.

What a general pass finds out by running the model (which tensor comes from which, that no datum depends on another) is
known of a chain from its modules alone. So its pass needs no graph of torch's, and a few calls of the kernel do what
would be some hundred operations of torch's; for small layers, calls are what a step costs. The blocks are those of the
general pass, in float64 whatever the model's dtype. What is no chain in every respect is left to the general pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pennylane.qnn import TorchLayer
from torch import nn

from fubini import _core
from fubini.arrays import all_finite, to_numpy
from fubini.blocks import Block
from fubini.compile.compiled import Compiled, Traced
from fubini.errors import NumericalError
from fubini.fisher.columns import Request
from fubini.fisher.layer_blocks import (
    circuit_block,
    circuit_block_of_rows,
    linear_block,
    metric_block,
    output_factor,
    quantum_call,
)
from fubini.fisher.likelihoods import Categorical, OutputGradient
from fubini.nn.layer import QuantumLayer
from fubini.nn.linearise import Linearised, linearise, linearise_native
from fubini.nn.recorder import ModelRecorder
from fubini.nn.stand_in import as_native
from fubini.nn.surroundings import Seen
from fubini.torch_private import has_global_hook

Tensor = torch.Tensor
Real = npt.NDArray[np.float64]

# Data times squared widths. Beyond this, sums of products take longer than the calls that a chain saves, and the general
# pass shares them among threads.
_WORK = 1 << 22

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


class _Stage(ABC):
    """A module of a chain at its inputs.

    Attributes:
        outputs: (N, outputs).
        is_scalar: Whether the module returns (N,) instead of (N, 1).
    """

    outputs: Real
    is_scalar = False

    @abstractmethod
    def pull(self, factor: Real) -> Real:
        """Return the factor (N, K, inputs) of the curvature by the inputs, for that by the outputs (N, K, outputs)."""


class _Parametrised(_Stage):
    """A module with parameters.

    Attributes:
        name: Of the module.
        parameters: The module's parameters whose metric is wanted: all or none.
    """

    name: str
    parameters: tuple[Tensor, ...]

    @abstractmethod
    def block(self, factor: Real, request: Request) -> Block:
        """Return the block of the parameters."""


class _Linear(_Parametrised):
    def __init__(self, layer: Layer, parameters: tuple[Tensor, ...], inputs: Real) -> None:
        self.name, self.parameters, self._inputs = layer.name, parameters, inputs
        weight, *bias = [to_numpy(p) for p in layer.parameters]
        self._weight, self._bias = weight, bool(bias)
        self.outputs = _core.linear_layer(inputs, weight, bias[0] if bias else None)

    def pull(self, factor: Real) -> Real:
        return _core.pull_factor(factor, self._weight)

    def block(self, factor: Real, request: Request) -> Block:
        return linear_block(self.name, self.parameters, factor, self._inputs, request.approx)


class _Elementwise(_Stage):
    def __init__(self, module: nn.Module, inputs: Real, differentiate: bool) -> None:
        x = torch.from_numpy(inputs)
        if not differentiate:
            self.outputs = module(x.clone()).numpy()  # the module may work in place
            return
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = module(x.clone())
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
        self._slope = np.ascontiguousarray(slope.numpy())
        self.outputs = y.detach().numpy()

    def pull(self, factor: Real) -> Real:
        pulled: Real = factor * self._slope[:, None]
        return pulled


class _Quantum(_Parametrised):
    def __init__(
        self,
        layer: Layer,
        parameters: tuple[Tensor, ...],
        inputs: Tensor,
        linear: Linearised,
        alone: bool,
    ) -> None:
        self.name, self.parameters, self._module = layer.name, parameters, layer.module
        self._alone = alone
        self._inputs, self._linear = inputs, linear
        self.outputs, self.is_scalar = linear.values, linear.parts == 0

    def pull(self, factor: Real) -> Real:
        jacobian = self._linear.by_inputs
        assert jacobian is not None
        return _core.pull_factor(factor, jacobian)

    def block(self, factor: Real, request: Request) -> Block:
        name, mine, linear = self.name, self.parameters, self._linear
        if request.quantum == "gauss-newton":
            return circuit_block(name, mine, factor, linear.by_weights, request.approx)
        call = quantum_call(self._module, name, self._inputs, linear, self._alone)
        return metric_block(name, mine, factor, call, request)


class _Combined(_Parametrised):
    """A quantum layer of which every datum's curvature has one row: its only one, or its rows with random signs.

    Attributes:
        rank: Of the curvature by the outputs, at most.
    """

    is_scalar = False
    rank = 0

    def __init__(
        self, layer: Layer, parameters: tuple[Tensor, ...], inputs: Real, form: Any, signs: int
    ) -> None:
        self.name, self.parameters, self._signs = layer.name, parameters, signs
        self._form = form.how
        weights = [to_numpy(p) for p in layer.parameters]
        self.outputs, self._passed = self._form.forward(weights, inputs, True)
        self._gradients: tuple[Real, Real] | None = None

    def _along(self, factor: Real) -> tuple[Real, Real]:
        """The derivatives of the combined outputs by inputs (N, d) and weights (N, P)."""
        if self._gradients is None:
            if self.rank == 1 < factor.shape[1]:
                factor = _core.reduce_rows(factor, 1)
            one = factor[:, 0] if factor.shape[1] == 1 else _core.combine_rows(factor, self._signs)
            self._gradients = self._form.backward_rows(self._passed, np.ascontiguousarray(one))
        return self._gradients

    def pull(self, factor: Real) -> Real:
        return self._along(factor)[0][:, None]

    def block(self, factor: Real, request: Request) -> Block:
        by_weights = self._along(factor)[1]
        return circuit_block_of_rows(self.name, self.parameters, by_weights, request.approx)


def chain_blocks(
    model: nn.Module,
    seen: Sequence[Seen],
    parameters: Sequence[Tensor],
    request: Request,
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
    if request.approx is None:
        return None
    dtype = parameters[0].dtype
    joined = _joined(seen, dtype)
    if joined is None:
        return None
    x, targets = joined
    alone = seen[0].args[0].ndim == 1
    with seen[0].surroundings.flags(model):
        return _blocks(model, x, targets, alone, parameters, request)


def _blocks(
    model: nn.Module,
    x: Tensor,
    targets: Any,
    alone: bool,
    parameters: Sequence[Tensor],
    request: Request,
) -> list[Block] | None:
    """The blocks for all inputs, (N, features), which came alone, one by one, or as batches."""
    dtype = parameters[0].dtype
    layers: list[Layer] = []
    if not collect(model, "", layers, top=True):
        return None
    every = [p for layer in layers for p in layer.parameters]
    known, wanted = {id(p) for p in every}, {id(p) for p in parameters}
    # Layers that share parameters have one block. Parameters that are no layer's, or twice there, need the general
    # pass, or an error.
    if len(known) < len(every) or len(wanted) < len(parameters) or not wanted <= known:
        return None
    if not all(is_usual(p, dtype) for p in every) or not is_small(layers, x.shape[0]):
        return None
    stages: list[_Stage] = []
    signs = request.signs if request.quantum == "gauss-newton" else None
    values, live = to_numpy(x), False  # live: something that is wanted comes before
    for layer in layers:
        mine = tuple([p for p in layer.parameters if id(p) in wanted])
        if mine and len(mine) < len(layer.parameters):
            return None
        stage = _stage(layer, mine, values, live, dtype, alone, signs)
        if stage is None or (stages and stages[-1].is_scalar):
            return None
        stages.append(stage)
        values = stage.outputs
        live = live or bool(mine)
    f = torch.from_numpy(values[:, 0] if stages[-1].is_scalar else values)
    if not all_finite(f):
        raise NumericalError("model: expected finite outputs, got NaN or infinity")
    if request.likelihood.counts(f)[0] != len(values):
        return None
    return _pulled_back(stages, output_factor(f, values.shape, targets, request), request)


def _joined(seen: Sequence[Seen], dtype: torch.dtype) -> tuple[Tensor, Any] | None:
    """The inputs of all passes, (N, features), and their targets: no stage of a chain mixes data. Else None."""
    if any(
        one.kwargs
        or len(one.args) != 1
        or not is_usual(one.args[0], dtype)
        or one.args[0].ndim not in (1, 2)
        or not one.args[0].numel()
        for one in seen
    ):
        return None
    inputs = [one.args[0] for one in seen]
    if len(seen) == 1:
        return (inputs[0], seen[0].targets) if inputs[0].ndim == 2 else None
    first = seen[0]
    if any(
        one.args[0].ndim != inputs[0].ndim
        or one.args[0].shape[-1] != inputs[0].shape[-1]
        or one.surroundings.training != first.surroundings.training
        for one in seen
    ):
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


def is_small(layers: Sequence[Layer], data: int) -> bool:
    """Whether calls are what a chain's blocks for so many data cost, not the numbers."""
    widths = [
        sum(own[0].shape) if type(module) is nn.Linear else sum(p.numel() for p in own)
        for _, module, own in layers
    ]
    return data * sum(width**2 for width in widths) <= _WORK


def _stage(
    layer: Layer,
    parameters: tuple[Tensor, ...],
    inputs: Real,
    differentiate: bool,
    dtype: torch.dtype,
    alone: bool,
    signs: int | None,
) -> _Stage | None:
    """The module at its inputs; None where the general pass has to run it, or to refuse it."""
    module, kind = layer.module, type(layer.module)
    if kind is nn.Linear:
        shape = layer.parameters[0].shape
        if len(shape) != 2 or shape[1] != inputs.shape[1]:
            return None
        return _Linear(layer, parameters, inputs)
    if kind in _ELEMENTWISE or kind in _DROPOUT:
        return _Elementwise(module, inputs, differentiate)
    native = as_native(module)
    if native is None:
        return None
    x = torch.from_numpy(inputs)
    # A quantum function may look at the dtype of what it gets: compiled for the model's, it serves any.
    form = native._form((x[0] if alone else x).to(dtype))
    if isinstance(form.how, str) or (isinstance(form.how, Traced) and dtype is not torch.float64):
        return None
    if signs is not None and not alone and is_large(form, len(inputs)):
        return _Combined(layer, parameters, inputs, form, signs)
    if alone:
        linear = linearise(native, x, differentiate, alone=True)
    else:
        linear = linearise_native(native, form, x, differentiate)
    return _Quantum(layer, parameters, x, linear, alone) if linear.parts < 2 else None


def is_large(form: Any, data: int) -> bool:
    """Whether sweeps over a compiled circuit with several results are what a step costs."""
    how = form.how
    if not isinstance(how, Compiled) or how.state_weighted or form.kind == "tuple":
        return False
    circuit = how.circuit
    work = data * circuit.num_angles << circuit.num_wires
    return circuit.num_outputs > 1 and work >= SWEEPS


def _pulled_back(stages: Sequence[_Stage], factor: Real, request: Request) -> list[Block]:
    trained = {
        i: stage
        for i, stage in enumerate(stages)
        if isinstance(stage, _Parametrised) and stage.parameters
    }
    first = min(trained)
    blocks = []
    # Of the curvature by a stage's outputs: at most that by the outputs of any stage behind it.
    rank = stages[-1].outputs.shape[-1] - (type(request.likelihood) is Categorical)
    for i in range(len(stages) - 1, first - 1, -1):
        rank = min(rank, factor.shape[2])
        stage = stages[i]
        if isinstance(stage, _Combined):
            stage.rank = rank
        if i in trained:
            blocks.append(trained[i].block(factor, request))
        if i > first:
            factor = stages[i].pull(factor)
    return blocks[::-1]


def is_chain(model: nn.Module) -> bool:
    """Return whether a model is a chain, as far as its modules tell.

    Args:
        model: The model.
    """
    return collect(model, "", [], top=True)


def _is_recorders(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)) is ModelRecorder


def collect(
    module: nn.Module,
    name: str,
    layers: list[Layer],
    top: bool = False,
) -> bool:
    """Append what a module applies in turn, with the parameters of each; False where that is not known."""
    # Walked in every step: whatever may have changed since the last one, a replaced layer or a new hook, is seen.
    hooks = module._forward_hooks
    if hooks and not (top and all(type(hook) is ModelRecorder for hook in hooks.values())):
        return False
    before = module._forward_pre_hooks
    if before and not (top and all(_is_recorders(hook) for hook in before.values())):
        return False
    if (
        module._backward_hooks
        or module._backward_pre_hooks
        or not module.__dict__.keys().isdisjoint(OWN)
        or (top and has_global_hook())
    ):
        return False
    kind: Any = type(module)
    if kind is nn.Sequential:
        prefix = f"{name}." if name else ""
        for key, child in module._modules.items():
            if child is None or not collect(child, prefix + key, layers):
                return False
        return True
    own: tuple[Tensor, ...] = ()
    if kind is nn.Linear:
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if weight is None or (bias is None and module.bias is not None):
            return False
        own = (weight,) if bias is None else (weight, bias)
    elif kind is QuantumLayer or kind is TorchLayer:
        quantum: Any = module
        own = tuple(quantum.qnode_weights.values())
    elif kind not in _ELEMENTWISE and (kind not in _DROPOUT or module.training):
        return False
    layers.append(Layer(name or kind.__name__, module, own))
    return True
