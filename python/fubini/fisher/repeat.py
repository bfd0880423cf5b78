"""Passes run again for their metric, which must be those whose gradients are applied."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.attention
from pennylane.qnn import TorchLayer

from fubini.fisher.called import compiled_call
from fubini.fisher.calls import Call
from fubini.fisher.passes import Pass
from fubini.fisher.quantum import QuantumCall
from fubini.fisher.rules import BatchNormCall, ConvCall, rule_for
from fubini.nn.layer import QuantumLayer
from fubini.nn.linearise import evaluated
from fubini.nn.qnode_function import calls_replaced
from fubini.nn.surroundings import Plainly, Seen, copied
from fubini.torch_private import is_mapped, is_wrapped, unwrapped

Tensor = torch.Tensor

# By how much the outputs of the second run may differ, relative to the largest of them. Its operations are the same up to
# their order, in the precision of the parameters; a mask of dropout or other noise makes more than this.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3}
# Half precision, also inside of the model.
_COARSE = 0.1
# Results that are zero up to rounding, as of circuits, have no scale of their own.
_SMALLEST = 1e-3


@dataclass(frozen=True)
class Layout:
    """What is where in a model.

    Attributes:
        model: The model.
        layers: The modules that have a rule, with their names.
        quantum: The quantum layers, with their names.
        names: Names of the parameters by identity.
        parameters: The parameters by identity.
        may_attend: Whether there may be attention, by a module of torch's or in a forward of the user's.
        has_shots: Whether there are quantum layers with shots, whose results no second run repeats.
    """

    model: torch.nn.Module
    layers: list[tuple[str, torch.nn.Module, type[Call]]]
    quantum: list[tuple[str, torch.nn.Module]]
    names: dict[int, str]
    parameters: dict[int, Tensor]
    may_attend: bool
    has_shots: bool


def survey(model: torch.nn.Module) -> Layout:
    """Return what is where in a model.

    Args:
        model: The model.
    """
    layers, quantum, names = [], [], {}
    parameters: dict[int, Tensor] = {}
    may_attend = has_shots = False
    for prefix, module in model.named_modules():
        kind = rule_for(module)
        if isinstance(module, QuantumLayer | TorchLayer):
            quantum.append((prefix, module))
        shots = getattr(getattr(module, "qnode", None), "shots", None)
        has_shots = has_shots or getattr(shots, "total_shots", None) is not None
        if kind is not None:
            layers.append((prefix, module, kind))
        elif not type(module).__module__.startswith("torch.nn.modules."):
            may_attend = True
        else:
            may_attend = may_attend or isinstance(module, torch.nn.MultiheadAttention)
        for name, p in module._parameters.items():
            if p is not None:
                names[id(p)] = f"{prefix}.{name}" if prefix else name
                parameters[id(p)] = p
    return Layout(model, layers, quantum, names, parameters, may_attend, has_shots)


def repeated(
    layout: Layout, seen: Seen, parameters: Collection[Tensor], *, fixed_statistics: bool
) -> Pass:
    """Run a pass again, with its layers cut from the graph where the model allows it.

    A model that differentiates inside of its forward, or looks at its own graph, computes something else with layers that
    are cut; torch then differentiates through all of it.

    Args:
        layout: The model.
        seen: The pass.
        parameters: Whose metric is wanted.
        fixed_statistics: Whether the statistics of batch norm count as constants.

    Returns:
        The pass.

    Raises:
        RuntimeError: If the model returns something else than in the pass.
    """

    def attempt(cut: bool) -> Pass:
        return run(layout, seen, wanted=parameters, fixed_statistics=fixed_statistics, cut=cut)

    if seen.output is None and layout.may_attend and not layout.has_shots:
        # Nobody knows what a forward of the user's does with cut layers: see what it returns without.
        plain = attempt(cut=False)
        seen = replace(seen, output=plain.output.detach())
    for cut in (True, False):
        try:
            result = attempt(cut)
        except RuntimeError:
            if not cut:
                raise
        else:
            if _same(result, seen, layout):
                return result
    raise RuntimeError(
        "model: expected a forward pass that can be repeated, because the metric must be that of the pass whose gradient "
        "is applied; with the same weights, arguments, buffers, training flags and states of the global random generators of "
        "torch, NumPy and Python it returned something else. Draw random numbers from the global generators, and do not "
        "change state in forward() that is no buffer; or use metric='quantum', which does not run the model again"
    )


def _same(found: Pass, seen: Seen, layout: Layout) -> bool:
    """Whether a pass returned what it returned the first time, up to rounding; true where that is not to be expected."""
    before, now = seen.output, found.output.detach()
    if before is None or layout.has_shots:
        return True
    if before.shape != now.shape:
        return False
    precisions = {p.dtype for p in layout.parameters.values()}
    tolerance = max(_ROUNDING.get(t, _COARSE) for t in (before.dtype, now.dtype, *precisions))
    if found.autocast or seen.surroundings.autocast:
        tolerance = _COARSE
    before, now = before.double(), now.double()
    if not now.numel() or not bool(torch.isfinite(now).all()):
        return True  # refused for that elsewhere
    return float((now - before).abs().max()) <= tolerance * max(
        float(before.abs().max()), _SMALLEST
    )


def run(
    layout: Layout,
    seen: Seen,
    *,
    wanted: Collection[Tensor],
    fixed_statistics: bool,
    cut: bool = True,
) -> Pass:
    """Run a pass of the model once more, apart from everything that it does otherwise.

    Buffers, gradients, parameters, training flags and the state of the random generators are afterwards as they were,
    and inside as they were when the pass began: dropout has the same masks. Layers in training mode act as in training;
    batch norm normalises with the statistics of the batch and does not update its own. Hooks of the model run as in
    every forward pass.

    A layer is cut from the graph only where every tensor that it uses is a parameter of the model and its own. Where its
    weights are computed (by a parametrisation, another network, ``functional_call``), torch differentiates through it.

    Args:
        layout: The model.
        seen: The pass.
        wanted: The parameters whose metric is wanted.
        fixed_statistics: Whether the statistics of batch norm count as constants.
        cut: Whether layers are cut from the graph at all.

    Returns:
        The pass.

    Raises:
        TypeError: If the model returns something else than one tensor of real numbers.
    """
    result = Pass(wanted)

    def patched(module: torch.nn.Module, name: str, kind: type[Call]) -> Any:
        original: Any = type(module).forward
        if isinstance(module, QuantumLayer):
            original = evaluated

        def used(inputs: Tensor, alone: bool) -> Tensor:
            if issubclass(kind, BatchNormCall):
                call: Call = kind(module, name, inputs, fixed_statistics)
            elif issubclass(kind, QuantumCall):
                call = kind(module, name, inputs, alone)
            else:
                call = kind(module, name, inputs)
            return result.use(call)

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if inputs is None and isinstance(module, QuantumLayer) and module.input_arg is None:
                inputs = module.no_inputs()
            if not isinstance(inputs, torch.Tensor) or not torch.is_grad_enabled():
                return original(module, *args, **kwargs)
            wrapped = is_wrapped(inputs)
            if not _uses_own(module, kind, layout.names) or (
                wrapped and not _fits_vmap(module, kind, inputs)
            ):
                result.uncut |= {name} if issubclass(kind, QuantumCall) else set()
                return original(module, *args, **kwargs)
            inputs = kind.cast(module, inputs)
            # The layer's function gets one sample, also where vmap has many.
            alone = inputs.ndim == 1
            if not wrapped:
                return used(inputs, alone)
            return _Batched.apply(inputs, functools.partial(used, alone=alone))  # type: ignore[no-untyped-call]

        return forward

    forwards = {
        module: patched(module, name, kind)
        for name, module, kind in layout.layers
        if cut and is_open(module)
    }
    result.uncut = {name for name, module in layout.quantum if module not in forwards}

    def called(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not torch.is_grad_enabled():
            return None, None
        call = compiled_call(function, args, kwargs, layout.parameters, result)
        return (None, None) if call is None else (result.use(call), call.form)

    calls: Any = calls_replaced(called) if cut else contextlib.nullcontext()
    with again(layout, seen), replaced_forwards(forwards), calls, Plainly() as precision:
        output = call_model(layout, seen, {})
        result.autocast = precision.asked
        result.finish(check_output(output))
    return result


def call_model(layout: Layout, seen: Seen, parameters: Mapping[str, Tensor]) -> Any:
    """Call a model with a pass's arguments and copies of its buffers.

    Args:
        layout: The model.
        seen: The pass.
        parameters: By name, in place of the model's own.

    Returns:
        What the model returns.
    """
    buffers = {name: b.clone() for name, b in seen.surroundings.buffers.items()}
    replaced = {**parameters, **buffers}
    args, kwargs = copied(seen.args), copied(dict(seen.kwargs))  # it may change them in place
    if not replaced:
        return layout.model(*args, **kwargs)
    return torch.func.functional_call(layout.model, replaced, args, kwargs)


def is_open(module: torch.nn.Module) -> bool:
    """Return whether another forward can take the place of a layer's own.

    Args:
        module: A layer with a rule.
    """
    # Somebody else's is there: nobody knows what it does. Quantum layers ask for another one themselves.
    return isinstance(module, QuantumLayer) or "forward" not in module.__dict__


def _uses_own(module: torch.nn.Module, kind: type[Call], names: Mapping[int, str]) -> bool:
    """Whether all tensors that a layer with a rule uses are parameters of the model, and its own."""
    for name, value in kind.parameters_of(module).items():
        if id(value) not in names:
            return False
        # Something else of that name goes first: what a hook has put there, or a property.
        if module.__dict__.get(name, value) is not value or hasattr(type(module), name):
            return False
    return all(
        name in module._parameters or module.__dict__.get(name) is None for name in kind.names
    )


def _fits_vmap(module: torch.nn.Module, kind: type[Call], inputs: Tensor) -> bool:
    """Whether a layer inside of vmap does the same for all its inputs as one batch."""
    if not is_mapped(inputs) or issubclass(kind, BatchNormCall):
        return False
    if issubclass(kind, ConvCall):
        inner, _ = unwrapped(inputs)
        return not is_wrapped(inner) and inputs.ndim == module.weight.ndim - 1  # type: ignore[operator]
    return not issubclass(kind, QuantumCall) or inputs.ndim > 0


class _Batched(torch.autograd.Function):
    """A cut layer inside of vmap: the batch becomes the first dimension of its inputs."""

    @staticmethod
    def forward(inputs: Tensor, used: Any) -> Tensor:
        raise NotImplementedError  # it is called inside of vmap only

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return

    @staticmethod
    def vmap(info: Any, in_dims: Any, inputs: Tensor, used: Any) -> Any:
        inputs = inputs.movedim(in_dims[0], 0)
        return (_Batched.apply(inputs, used) if is_wrapped(inputs) else used(inputs)), 0  # type: ignore[no-untyped-call]


def check_output(output: Any) -> Tensor:
    """Return a model's output if it is one tensor of real numbers.

    Args:
        output: What the model returned.

    Returns:
        The output.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        got = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
        raise TypeError(
            f"model: expected one tensor of real numbers as output, got {got}; wrap the model so that it returns the "
            "outputs that the likelihood is about"
        )
    return output


@contextlib.contextmanager
def again(layout: Layout, seen: Seen) -> Iterator[None]:
    """Differentiate, with random generators and training flags as they were in a pass; leave them as they are.

    Fused attention has neither second derivatives nor a rule for many cotangents at once, so its plain form is taken.

    Args:
        layout: The model that runs.
        seen: The pass.
    """
    plain: Any = contextlib.nullcontext()
    if layout.may_attend:
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    surroundings = seen.surroundings
    with surroundings.flags(layout.model), surroundings.numbers(), torch.enable_grad(), plain:
        yield


@contextlib.contextmanager
def replaced_forwards(forwards: Mapping[torch.nn.Module, Any]) -> Iterator[None]:
    """Let modules use other forward functions.

    Args:
        forwards: The functions by module.
    """
    places = [
        (m.__dict__, "_instead" if isinstance(m, QuantumLayer) else "forward") for m in forwards
    ]
    before = [place.get(slot) for place, slot in places]
    try:
        for (place, slot), forward in zip(places, forwards.values(), strict=True):
            place[slot] = forward  # nn.Module.__setattr__ is slow
        yield
    finally:
        for (place, slot), known in zip(places, before, strict=True):
            if known is None:
                place.pop(slot, None)
            else:
                place[slot] = known
