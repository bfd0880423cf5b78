"""One forward pass of a model whose layers are cut apart, and backward passes of many cotangents through it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.attention
from pennylane.qnn import TorchLayer

from fubini.fisher.called import compiled_call
from fubini.fisher.calls import Call
from fubini.fisher.quantum import QuantumCall
from fubini.fisher.rules import BatchNormCall, ConvCall, rule_for
from fubini.nn.gradients import batched_gradients
from fubini.nn.layer import QuantumLayer
from fubini.nn.linearise import evaluated
from fubini.nn.qnode_function import calls_replaced
from fubini.nn.surroundings import Plainly, Seen, copied
from fubini.torch_private import is_mapped, is_wrapped, unwrapped

Tensor = torch.Tensor

# Entries of all cotangents that are carried at once.
_CHUNK = 1 << 24

# Seeds of the orders of the data, another one for every pass.
_ORDERS = itertools.count()
# Up to so many data any two are told apart, and up to so many three pairs of four.
_FEW, _SOME = 16, 64


@dataclass(frozen=True)
class Layout:
    """What is where in a model.

    Attributes:
        model: The model.
        layers: The modules that have a rule, with their names.
        quantum: The quantum layers, with their names.
        names: Names of the parameters by identity.
        parameters: The parameters by identity.
        has_buffers: Whether there are buffers.
        may_attend: Whether there may be attention, by a module of torch's or in a forward of the user's.
        has_shots: Whether there are quantum layers with shots, whose results no second run repeats.
    """

    model: torch.nn.Module
    layers: list[tuple[str, torch.nn.Module, type[Call]]]
    quantum: list[tuple[str, torch.nn.Module]]
    names: dict[int, str]
    parameters: dict[int, Tensor]
    has_buffers: bool
    may_attend: bool
    has_shots: bool


def survey(model: torch.nn.Module) -> Layout:
    """Return what is where in a model.

    Args:
        model: The model.
    """
    layers, quantum, names = [], [], {}
    parameters: dict[int, Tensor] = {}
    has_buffers = may_attend = has_shots = False
    for prefix, module in model.named_modules():
        kind = rule_for(module)
        if isinstance(module, QuantumLayer | TorchLayer):
            quantum.append((prefix, module))
        qnode = getattr(module, "qnode", None)
        has_shots = (
            has_shots or getattr(getattr(qnode, "shots", None), "total_shots", None) is not None
        )
        if kind is not None:
            layers.append((prefix, module, kind))
        elif not may_attend:
            source = type(module).__module__
            may_attend = not source.startswith("torch.nn.modules.") or isinstance(
                module, torch.nn.MultiheadAttention
            )
        has_buffers = has_buffers or bool(module._buffers)
        for name, p in module._parameters.items():
            if p is not None:
                names[id(p)] = f"{prefix}.{name}" if prefix else name
                parameters[id(p)] = p
    return Layout(model, layers, quantum, names, parameters, has_buffers, may_attend, has_shots)


class Pass:
    """A forward pass, ready for backward passes.

    The outputs of every layer that has a rule are cut from the graph, so torch differentiates only what is between them.

    Attributes:
        output: What the model returned.
        calls: The uses of layers with a rule, in order.
        outside: Parameters that the graph reaches by other ways than through the layers they belong to.
        autocast: Whether the model turned autocast on, which had no effect.
        uncut: Names of quantum layers that torch differentiates, or may differentiate, through.
        uncalled: Why a parameter that is a weight of a compiled QNode has no rule there, by its identity.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.output = torch.empty(0)
        self.outside: list[Tensor] = []
        self.autocast = False
        self.uncut: set[str] = set()
        self.uncalled: dict[int, str] = {}
        # For each sink (the output and the inputs of calls) the calls that it directly is the result of, or the leaves
        # of torch's graph that it depends on.
        self._sources: list[int | list[int]] = []
        self._output_source: int | list[int] = []
        self._leaves: list[Tensor] = []
        self._results: dict[int, tuple[Tensor, int, int]] = {}
        self._number: dict[int, int] = {}

    # -- forward ------------------------------------------------------------------------------------------------

    def use(self, call: Call) -> Tensor:
        """Take note of a call.

        Args:
            call: The call.

        Returns:
            What the model continues with.
        """
        self._sources.append(self._source(call.inputs))
        leaf = call.outputs.requires_grad_()
        number = len(self.calls)
        self.calls.append(call)
        self._leaves.append(leaf)
        self._number[id(leaf)] = number
        result = leaf.clone()  # the model may change it in place
        self._results[id(result)] = (result, result._version, number)
        return result

    def finish(self, output: Tensor) -> None:
        """Take note of the model's output."""
        self.output = output
        self._output_source = self._source(output)
        self._results.clear()

    def _source(self, sink: Tensor) -> int | list[int]:
        """The call that a tensor is the result of, or the numbers of all leaves in its graph."""
        if not sink.requires_grad:
            return []
        result, version, number = self._results.get(id(sink), (None, 0, 0))
        if result is sink and sink._version == version:
            return number
        reached: list[int] = []
        waiting: list[Any] = [sink.grad_fn]
        seen = set(waiting)
        if sink.grad_fn is None:
            self._reach(sink, reached)
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                self._reach(leaf, reached)
            for after, _ in node.next_functions:
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return reached

    def _reach(self, leaf: Tensor, reached: list[int]) -> None:
        number = self._number.get(id(leaf))
        if number is not None:
            reached.append(number)
        elif not any(leaf is known for known in self.outside):
            self.outside.append(leaf)

    # -- backward -----------------------------------------------------------------------------------------------

    def backward(self, columns: Tensor, leaves: Sequence[Tensor] = ()) -> list[Tensor | None]:
        """Carry cotangents of the output back.

        Args:
            columns: (K, *output.shape).
            leaves: Further leaves of torch's graph whose gradients are wanted.

        Returns:
            For every call the cotangents of its outputs, (K, *outputs.shape), or None where there is no path; then the
            gradients by the leaves, (K, *leaf.shape), or None.
        """
        extra = list(leaves)
        cotangents: list[Tensor | None] = [None] * (len(self.calls) + len(extra))

        def send(sink: Tensor, source: int | list[int], g: Tensor) -> None:
            if isinstance(source, int):
                numbers = [source]
                parts: list[Tensor | None] = [g]
            elif sink.requires_grad:
                numbers = [*source, *range(len(self.calls), len(cotangents))]
                targets = [*(self._leaves[i] for i in source), *extra]
                parts = batched_gradients(sink, targets, g) if targets else []
            else:
                return
            for number, part in zip(numbers, parts, strict=True):
                if part is not None:
                    known = cotangents[number]
                    cotangents[number] = part if known is None else known + part

        send(self.output, self._output_source, columns)
        for i in range(len(self.calls) - 1, -1, -1):
            g, call = cotangents[i], self.calls[i]
            if g is not None and call.inputs.requires_grad:
                send(call.inputs, self._sources[i], call.pull(g))
        return cotangents

    def width(self) -> int:
        """Return how many cotangents should be carried at once."""
        entries = sum(call.outputs.numel() for call in self.calls) + self.output.numel()
        return max(1, _CHUNK // max(1, entries))

    def independent(self, data: int) -> bool:
        """Whether the outputs of some data depend on these data's parts of every call alone.

        Which data a model mixes may depend on their values, on random numbers and on its training flags, so this is looked
        for in every pass, by subsets of the data that separate any two of few data, and most pairs of many.

        Args:
            data: Number of data.

        Returns:
            The answer.
        """
        if data == 1:
            return True
        if not all(call.fits(data) for call in self.calls):
            return False
        subsets = _subsets(data)
        # Any numbers without a pattern that a layer might cancel.
        numbers = torch.arange(1.0, 1.0 + self.output.numel(), dtype=torch.float64).cos()
        column = numbers.reshape(self.output.shape).to(self.output)
        columns = torch.stack([column] * len(subsets))
        columns[~subsets.to(column.device)] = 0.0
        for call, g in zip(self.calls, self.backward(columns), strict=True):
            if g is None:
                continue
            for mine, one in zip(subsets, g, strict=True):
                rows = call_rows(call, one, data)
                if bool((rows[~mine.to(rows.device)] != 0).any()):
                    return False
        return True


def _subsets(data: int) -> Tensor:
    """Subsets of the data, (subsets, data): with them, one that has a datum and not another shows that these two are mixed."""
    order = np.random.default_rng(next(_ORDERS)).permutation(data)
    # The bits of numbers tell any two numbers apart; of many data, most pairs differ in one or two.
    bits = (data - 1).bit_length() if data <= _FEW else 2 if data <= _SOME else 1
    halves = np.array([order >> bit & 1 for bit in range(bits)], dtype=bool)
    return torch.from_numpy(np.concatenate([halves, ~halves]))


def call_rows(call: Call, g: Tensor, data: int) -> Tensor:
    """Return a cotangent of a call's outputs, (*outputs.shape), as (data, ...).

    Args:
        call: The call.
        g: The cotangent.
        data: Number of data.
    """
    flat = getattr(call, "flat", None)  # quantum layers may have other axes first
    rows = g if flat is None else torch.from_numpy(flat(g[None])[0])
    return rows.reshape(data, -1)


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
    result = Pass()
    ids = {id(p) for p in wanted}

    def patched(module: torch.nn.Module, name: str, kind: type[Call]) -> Any:
        live = any(id(p) in ids for p in kind.parameters_of(module).values())
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
            # Nothing that is wanted lies before this layer or in it.
            return result.use(call) if live or inputs.requires_grad else call.outputs

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if inputs is None and isinstance(module, QuantumLayer) and module.input_arg is None:
                inputs = module.no_inputs()
            if not isinstance(inputs, torch.Tensor) or not torch.is_grad_enabled():
                return original(module, *args, **kwargs)
            if not _uses_own(module, kind, layout.names):
                result.uncut |= {name} if issubclass(kind, QuantumCall) else set()
                return original(module, *args, **kwargs)
            inputs = kind.cast(module, inputs)
            alone = (
                inputs.ndim == 1
            )  # the layer's function gets one sample, also where vmap has many
            if not is_wrapped(inputs):
                return used(inputs, alone)
            if not _fits_vmap(module, kind, inputs):
                result.uncut |= {name} if issubclass(kind, QuantumCall) else set()
                return original(module, *args, **kwargs)
            return _Batched.apply(inputs, functools.partial(used, alone=alone))  # type: ignore[no-untyped-call]

        return forward

    forwards = {}
    if cut:
        forwards = {
            module: patched(module, name, kind)
            for name, module, kind in layout.layers
            if is_open(module)
        }
        result.uncut = {name for name, module in layout.quantum if module not in forwards}
    else:
        result.uncut = {name for name, _ in layout.quantum}

    def called(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not torch.is_grad_enabled():
            return None, None
        call, form = compiled_call(function, args, kwargs, layout.parameters, result)
        if call is None:
            return None, None
        live = any(id(p) in ids for p in call.parameters.values())
        return result.use(call) if live or call.inputs.requires_grad else call.outputs, form

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
    replaced = dict(parameters)
    if layout.has_buffers:
        replaced.update({name: b.clone() for name, b in seen.surroundings.buffers.items()})
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
