"""A forward pass of a model whose layers are cut apart, and backward passes of many cotangents through it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from fubini.fisher.calls import Call, plus
from fubini.nn.gradients import batched_gradients

Tensor = torch.Tensor

# Entries of all cotangents that are carried at once.
_CHUNK = 1 << 24

# Seeds of the orders of the data, another one for every pass.
_ORDERS = itertools.count()
# Up to so many data any two are told apart, and up to so many three pairs of four.
_FEW, _SOME = 16, 64


class Pass:
    """A forward pass, ready for backward passes.

    The outputs of every layer that has a rule are cut from the graph, so torch differentiates only what is between them.

    Args:
        wanted: The parameters whose metric is wanted.

    Attributes:
        output: What the model returned.
        calls: The uses of layers with a rule, in order.
        outside: Parameters that the graph reaches by other ways than through the layers they belong to.
        autocast: Whether the model turned autocast on, which had no effect.
        uncut: Names of quantum layers that torch differentiates, or may differentiate, through.
        uncalled: Why a parameter that is a weight of a compiled QNode has no rule there, by its identity.
    """

    def __init__(self, wanted: Collection[Tensor]) -> None:
        self._wanted = {id(p) for p in wanted}
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
        if not call.inputs.requires_grad and not any(
            id(p) in self._wanted for p in call.parameters.values()
        ):  # nothing that is wanted lies before this layer or in it
            return call.outputs
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

    def backward(self, columns: Tensor, leaves: Sequence[Tensor] = ()) -> dict[int, Tensor]:
        """Carry cotangents of the output back.

        Args:
            columns: (K, *output.shape).
            leaves: Further leaves of torch's graph whose gradients are wanted.

        Returns:
            For every call that there is a path to the cotangents of its outputs, (K, *outputs.shape), by its key; likewise
            the gradients by the leaves, (K, *leaf.shape), by their identity.
        """
        cotangents: dict[int, Tensor] = {}

        def send(sink: Tensor, source: int | list[int], g: Tensor) -> None:
            if isinstance(source, int):
                keys = [self.calls[source].key]
                parts: list[Tensor | None] = [g]
            elif sink.requires_grad:
                keys = [*(self.calls[i].key for i in source), *map(id, leaves)]
                targets = [*(self._leaves[i] for i in source), *leaves]
                parts = batched_gradients(sink, targets, g) if targets else []
            else:
                return
            for key, part in zip(keys, parts, strict=True):
                if part is not None:
                    cotangents[key] = plus(cotangents.get(key), part)

        send(self.output, self._output_source, columns)
        for call, source in zip(reversed(self.calls), reversed(self._sources), strict=True):
            if call.key in cotangents and call.inputs.requires_grad:
                send(call.inputs, source, call.pull(cotangents[call.key]))
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
        found = self.backward(columns)
        for call in self.calls:
            if call.key in found:
                rows = call.by_data(found[call.key], data)
                if bool((rows[~subsets.to(rows.device)] != 0).any()):
                    return False
        return True


def _subsets(data: int) -> Tensor:
    """Subsets of the data, (subsets, data): with them, one that has a datum and not another shows that these two are mixed."""
    order = np.random.default_rng(next(_ORDERS)).permutation(data)
    # The bits of numbers tell any two numbers apart; of many data, most pairs differ in one or two.
    bits = (data - 1).bit_length() if data <= _FEW else 2 if data <= _SOME else 1
    halves = np.array([order >> bit & 1 for bit in range(bits)], dtype=bool)
    return torch.from_numpy(np.concatenate([halves, ~halves]))
