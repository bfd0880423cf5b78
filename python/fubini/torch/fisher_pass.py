"""One forward pass of a model whose layers are cut apart, and backward passes of many cotangents through it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.attention

from fubini.torch.fisher_calls import Call, batched_gradients
from fubini.torch.fisher_rules import BatchNormCall, rule_for

Tensor = torch.Tensor

# Entries of all cotangents that are carried at once.
_CHUNK = 1 << 24

# For every model the passes (what was called, with which shapes) in which data were seen to be independent, or not.
_KNOWN: weakref.WeakKeyDictionary[torch.nn.Module, dict[Any, bool]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """What is where in a model.

    Attributes:
        model: The model.
        layers: The modules that have a rule, with their names.
        names: Names of the parameters by identity.
        has_buffers: Whether there are buffers.
        devices: CUDA devices of the parameters.
        may_attend: Whether there may be attention, by a module of torch's or in a forward of the user's.
    """

    model: torch.nn.Module
    layers: list[tuple[str, torch.nn.Module, type[Call]]]
    names: dict[int, str]
    has_buffers: bool
    devices: frozenset[torch.device]
    may_attend: bool


def survey(model: torch.nn.Module) -> Layout:
    """Return what is where in a model.

    Args:
        model: The model.
    """
    layers, names, has_buffers, may_attend = [], {}, False, False
    devices = set()
    for prefix, module in model.named_modules():
        kind = rule_for(module)
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
                if p.is_cuda:
                    devices.add(p.device)
    return Layout(model, layers, names, has_buffers, frozenset(devices), may_attend)


class Pass:
    """A forward pass, ready for backward passes.

    The outputs of every layer that has a rule are cut from the graph, so torch differentiates only what is between them.

    Attributes:
        output: What the model returned.
        calls: The uses of layers with a rule, in order.
        outside: Parameters that the graph reaches by other ways than through the layers they belong to.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.output = torch.empty(0)
        self.outside: list[Tensor] = []
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

    def independent(self, model: torch.nn.Module, data: int) -> bool:
        """Whether the first datum's outputs depend on the first datum's part of every call alone.

        Args:
            model: The model, for which the answer is kept.
            data: Number of data.

        Returns:
            The answer, which is looked for once for every kind of pass.
        """
        if data == 1:
            return True
        if not all(call.fits(data) for call in self.calls):
            return False
        signature = (
            data,
            tuple(self.output.shape),
            tuple((c.name, type(c), c.module.training, c.outputs.shape) for c in self.calls),
        )
        known = _KNOWN.setdefault(model, {})
        if signature not in known:
            if len(known) > 64:  # inputs of ever new shapes
                known.clear()
            known[signature] = self._separates(data)
        return known[signature]

    def _separates(self, data: int) -> bool:
        column = torch.zeros_like(self.output)
        # Any numbers without a pattern that a layer might cancel.
        column[0] = torch.arange(1.0, 1.0 + column[0].numel()).cos().reshape(column[0].shape)
        for call, g in zip(self.calls, self.backward(column[None]), strict=True):
            if g is not None and bool((call_rows(call, g[0], data)[1:] != 0).any()):
                return False
        return True


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
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    wanted: Collection[Tensor],
    fixed_statistics: bool,
) -> Pass:
    """Run the model once, apart from everything that it does otherwise.

    Buffers, gradients, parameters and the state of the random generators are afterwards as they were. Random layers
    (dropout) draw from copies of the generators in their present state: to see the masks of an earlier pass, set the
    generators to their state before it. Layers in training mode act as in training; batch norm normalises with the
    statistics of the batch and does not update its own. Hooks of the model run as in every forward pass.

    Args:
        layout: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        wanted: The parameters whose metric is wanted.
        fixed_statistics: Whether the statistics of batch norm count as constants.

    Returns:
        The pass.

    Raises:
        TypeError: If the model returns something else than one tensor of real numbers.
    """
    result = Pass()
    ids = {id(p) for p in wanted}

    def patched(module: torch.nn.Module, name: str, kind: type[Call]) -> Any:
        live = any(id(p) in ids for p in kind.parameters_of(module).values())

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            inputs = args[0] if args else next(iter(kwargs.values()))
            if issubclass(kind, BatchNormCall):
                call: Call = kind(module, name, inputs, fixed_statistics)
            else:
                call = kind(module, name, inputs)
            # Nothing that is wanted lies before this layer or in it.
            return result.use(call) if live or inputs.requires_grad else call.outputs

        return forward

    model = layout.model
    forwards = {module: patched(module, name, kind) for name, module, kind in layout.layers}
    with apart(layout), replaced_forwards(forwards):
        if layout.has_buffers:
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            output = torch.func.functional_call(model, buffers, args, dict(kwargs))
        else:
            output = model(*args, **kwargs)
        result.finish(check_output(output))
    return result


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


def without_autocast() -> Any:
    """Return a context in which operations keep the precision of their tensors."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


@contextlib.contextmanager
def apart(layout: Layout) -> Iterator[None]:
    """Differentiate, and leave the random generators as they are.

    Fused attention has neither second derivatives nor a rule for many cotangents at once, so its plain form is taken.

    Args:
        layout: The model that runs.
    """
    plain: Any = contextlib.nullcontext()
    if layout.may_attend:
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    host = torch.get_rng_state()
    states = {device: torch.cuda.get_rng_state(device) for device in layout.devices}
    try:
        with torch.enable_grad(), plain:
            yield
    finally:
        torch.set_rng_state(host)
        for device, state in states.items():
            torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def replaced_forwards(forwards: Mapping[torch.nn.Module, Any]) -> Iterator[None]:
    """Let modules use other forward functions.

    Args:
        forwards: The functions by module.
    """
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward  # nn.Module.__setattr__ is slow
        yield
    finally:
        for module, known in before.items():
            if known is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = known
