"""The metric of a compiled QNode's weights from the calls of a step: one for all calls of the same function of them.

Calls whose circuit is compiled to the same form, such as those of a loop over the rows of a batch, are one batch of the
kernel. The others take a metric each, by the gates of their tape or on their device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fubini.arrays import all_finite, to_numpy
from fubini.compile.calls import find
from fubini.devices.executor import device_reason
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.metric.engines import Point, at_call
from fubini.native.operator import MetricOperator
from fubini.native.pullback import Pullback
from fubini.nn.call_forms import CallForm, call_form
from fubini.nn.recorder import check_same_weights
from fubini.nn.watched_calls import Call, SeenCall, Slot, WeightSeen, unslotted
from fubini.options import Approx, LayerRule, Real

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class _Batch:
    """Inputs at which one metric is taken.

    Attributes:
        point: The compiled circuit, or the point of one call.
        call: The call, or the first of several.
        slots: The weights in the order of the metric.
        count: Number of inputs.
    """

    point: Pullback | Point
    call: SeenCall
    slots: list[Slot]
    count: int


@dataclass(frozen=True, eq=False)
class CompiledCall:
    """Calls of a compiled circuit at the same arguments.

    Attributes:
        form: The circuit and the arguments.
        jacobian: The derivative of the weights by the parameters; None where they are the parameters, in order.
        count: How many calls.
        weights: Those that move, in the order of the form.
    """

    form: CallForm
    jacobian: Real | None
    count: int
    weights: list[WeightSeen]

    def now(self) -> Real | None:
        """Return the weights as they are now, (W,); None where they are computed from the parameters."""
        if any(w.value is not None for w in self.weights):
            return None
        return np.concatenate([to_numpy(w.now()).reshape(-1) for w in self.weights])


class CallLayer:
    """The calls of one function of the same parameters, as the optimizer knows quantum layers.

    Args:
        calls: The calls, at least one; all have the same ``key``.

    Attributes:
        passes: The calls.
        parameters: The parameters that the weights are computed from.
    """

    def __init__(self, calls: Sequence[SeenCall]) -> None:
        self.passes = list(calls)
        first = calls[0]
        self.parameters = tuple(
            dict.fromkeys(p for w in first.of_weights.values() for p in w.leaves)
        )
        #: Names of the arguments by their slots.
        self.names = max((c.names for c in calls), key=len) if len(calls) > 1 else first.names
        self.title = getattr(first.qnode.func, "__name__", "circuit")
        self._known: list[_Batch] | None = None

    @property
    def name(self) -> str:
        """The function and its weights, for messages; with how it runs, where that is not the compiled circuit."""
        weights = [self.names[slot] for slot in self.passes[0].of_weights]
        title = f"{self.title}({', '.join(weights)})"
        points = [b.point for b in self._known or [] if isinstance(b.point, Point)]
        if any(p.pullback is None for p in points):
            return f"{title}, which runs on its device"
        return f"{title}, which is not compiled" if points else title

    def metric(
        self, approx: Approx, layers: LayerRule, starts: Mapping[Tensor, int]
    ) -> tuple[Real, int]:
        """Return the mean metric over the parameters, and the number of inputs.

        Args:
            approx: Which part of the metric over angles to take.
            layers: Which gates form a block.
            starts: Where the entries of each parameter begin.

        Returns:
            (P, P) over all parameters in ``starts``, and the number.
        """
        size = sum(p.numel() for p in starts)
        total, count = np.zeros((size, size)), 0
        for batch in self._batches():
            metric = np.asarray(batch.point.metric(approx, layers, "mean"))
            jacobian = self._jacobian(batch.call, batch.slots, starts, size)
            pulled = metric if jacobian is None else jacobian.T @ metric @ jacobian
            rows = batch.count
            total = pulled if not count else (count * total + rows * pulled) / (count + rows)
            count += rows
        return total, count

    def operator(self, layers: LayerRule) -> tuple[MetricOperator, int] | None:
        """Return the full metric over the parameters in its cheapest form, and the number of inputs.

        Args:
            layers: Which gates form a block of the preconditioner.

        Returns:
            None where the metric is not that of one batch over the parameters themselves.
        """
        batches = self._batches()
        starts = dict(zip(self.parameters, np.cumsum([0, *_sizes(self.parameters)]), strict=False))
        if len(batches) != 1 or not isinstance(batches[0].point, Pullback):
            return None
        one, size = batches[0], sum(_sizes(self.parameters))
        if self._jacobian(one.call, one.slots, starts, size) is not None:
            return None
        operator = MetricOperator(
            batches[0].point, "auto", layers=layers, like=self.parameters[0].detach()
        )
        return operator, batches[0].count

    def compiled_calls(self, starts: Mapping[Tensor, int], remedy: str) -> list[CompiledCall]:
        """Return the calls, one by one, on the native engine.

        Args:
            starts: Where the entries of each parameter begin.
            remedy: The end of the message for others.

        Raises:
            UnsupportedCircuitError: If a circuit is not compiled.
        """
        size = sum(p.numel() for p in starts)
        calls: list[CompiledCall] = []
        known: dict[Any, int] = {}
        for call, form, own in self._forms():
            if form is None:
                raise UnsupportedCircuitError(
                    f"{self.title}: expected a circuit that is compiled: {_why(call.qnode, _arguments(call))}{remedy}"
                )
            key = (own, form.rows.tobytes(), *form.key())
            if key in known:
                k = known[key]
                calls[k] = replace(calls[k], count=calls[k].count + 1)
                continue
            known[key] = len(calls)
            jacobian = self._jacobian(call, form.slots, starts, size)
            weights = [call.of_weights[slot] for slot in form.slots]
            calls.append(CompiledCall(form, jacobian, 1, weights))
        return calls

    def _jacobian(
        self, call: SeenCall, slots: Sequence[Slot], starts: Mapping[Tensor, int], size: int
    ) -> Real | None:
        """The derivative of the weights by the parameters; None where the weights are the parameters, in order."""
        weights = [call.of_weights[slot] for slot in slots]
        ends = np.cumsum([0, *(w.shape.numel() for w in weights)]).tolist()
        if ends[-1] == size and all(
            w.plain and starts[w.leaves[0]] == end for w, end in zip(weights, ends, strict=False)
        ):
            return None
        return np.concatenate([w.jacobian(starts, size) for w in weights])

    def _batches(self) -> list[_Batch]:
        if self._known is None:
            groups: dict[Any, tuple[CallForm, SeenCall, list[Real]]] = {}
            others: list[_Batch] = []
            for call, form, own in self._forms():
                if form is None:
                    others += _points(self, call)
                    continue
                key = (own, *form.key()) if len(self.passes) > 1 else ()
                groups.setdefault(key, (form, call, []))[2].append(form.rows)
            batches = []
            for form, call, parts in groups.values():
                rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
                batches.append(_Batch(form.pullback(rows), call, form.slots, len(rows)))
            self._known = batches + others
        return self._known

    def _forms(self) -> Iterator[tuple[SeenCall, CallForm | None, int | None]]:
        """The calls with their compiled forms, and what tells those apart whose weights have derivatives of their own."""
        check_same_weights(self.name, self.passes)
        for call in self.passes:
            now = _arguments(call)
            for slot, value in now.items():
                if isinstance(value, Tensor) and not all_finite(value):
                    raise NumericalError(
                        f"{self.title}.{self.names[slot]}: expected finite numbers, got NaN or infinity"
                    )
            form = call_form(call.qnode, self.names, now, call.of_weights, call.fixed, call.mapped)
            computed = any(w.entries is None for w in call.of_weights.values())
            yield call, form, id(call) if computed else None

    def refuse_unclear(self) -> None:
        """Raise an error where it is not known whether an argument is a weight.

        Raises:
            TypeError: Names the argument and says what to do.
        """
        for call in self.passes:
            for name, reason in call.unclear.items():
                if reason or not self._is_data(call, name):
                    raise TypeError(f"{self.title}: {self._unclear(call, name, reason)}")

    def _is_data(self, call: SeenCall, name: str) -> bool:
        """Whether an argument's rows are a batch of inputs, so that it is no weight."""
        if device_reason(call.qnode) or call.mapped:
            return False
        found = find(call.qnode, *unslotted(_arguments(call)))
        return not isinstance(found, str) and found.known.data == name

    def _unclear(self, call: SeenCall, name: str, reason: str) -> str:
        if reason:
            return f"cannot tell which parameters go in by its argument {name}: {reason}"
        weights = [self.names[s] for s in call.of_weights]
        return (
            f"expected its argument {name} to be a parameter, a function of parameters and plain numbers, or the result of a "
            "network's layers, got a tensor that parameters may have been mixed in with other tensors; say which arguments are "
            f"weights: fubini.compiled(qnode, weights={[*weights, name]!r}), or weights={weights!r} if {name} is data"
        )


def _why(qnode: Any, call: Call) -> str:
    """Why a call is not compiled."""
    found = device_reason(qnode) or find(qnode, *unslotted(call))
    if isinstance(found, str):
        return found
    return found.reason if found.compiled is None else "its initial state or its batch has weights"


def _points(layer: CallLayer, call: SeenCall) -> list[_Batch]:
    """The points of a call that is not compiled; of each of its inputs, where they are many."""
    if call.mapped:
        others = {s: v for s, v in call.arguments.items() if s not in call.fixed}
        slot = next(s for s, v in others.items() if isinstance(v, Tensor))
        return [_point(layer, call, {slot: row}) for row in others[slot]]
    return [_point(layer, call, {})]


def _point(layer: CallLayer, call: SeenCall, changed: Mapping[Slot, Any]) -> _Batch:
    qnode = call.qnode
    weights = {s: w.now().clone().requires_grad_() for s, w in call.of_weights.items()}
    args, kwargs = unslotted({**call.arguments, **weights, **changed})
    names = layer.names
    by_name = {names[s]: s for s in call.of_weights}
    if any(isinstance(s, str) for s in weights) and any(isinstance(s, int) for s in weights):
        # The metric of a QNode takes its weights by position, or by name.
        starred = any("[" in names[i] for i in range(len(args)))
        if starred:
            raise UnsupportedCircuitError(
                f"{layer.title}: expected weights all by position or all by name for a "
                "function that takes *args, got both; pass them in one way"
            )
        kwargs = {**{names[i]: v for i, v in enumerate(args)}, **kwargs}
        args = []
    point = at_call(qnode, args, kwargs, "auto", None)
    slots = [by_name[w] if isinstance(w, str) and w in by_name else w for w in point.call.weights]
    batch = len(point.pullback.angles) if point.pullback is not None else None
    if batch is None:
        batch = 1 if point.tape is None else point.tape.batch or 1
    return _Batch(point, call, slots, batch)


def _arguments(call: SeenCall) -> Call:
    """The arguments of a call, with the weights as they are now."""
    return {**call.arguments, **{s: w.now() for s, w in call.of_weights.items()}}


def _sizes(parameters: Sequence[Tensor]) -> list[int]:
    return [p.numel() for p in parameters]
