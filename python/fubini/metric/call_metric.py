"""The metric of a compiled QNode's weights from the calls of a step: one for all calls of the same function of them.

Calls whose circuit is compiled to the same form, such as those of a loop over the rows of a batch, are one batch of the
kernel. The others take a metric each, by the gates of their tape or on their device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.arguments import argument_names
from fubini.circuit.gate_layers import LayerRule
from fubini.compile.calls import Found, find
from fubini.compile.compiled import Compiled
from fubini.devices.executor import device_reason
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.metric.engines import Point, at_call
from fubini.native.operator import MetricOperator
from fubini.native.pullback import Pullback
from fubini.nn.recorder import check_same_weights
from fubini.nn.watched_calls import SeenCall, Slot, slotted
from fubini.options import Approx, Index, Real

Tensor = torch.Tensor
#: What compiled calls have in common that are inputs of one batch.
_Group = tuple[Compiled, list[Real], Index, bool]


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
        self.names = argument_names(first.qnode.func, max(len(c.args) for c in calls))
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
            jacobian = self._jacobian(batch, starts, size)
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
        if self._jacobian(batches[0], starts, sum(_sizes(self.parameters))) is not None:
            return None
        operator = MetricOperator(
            batches[0].point, "auto", layers=layers, like=self.parameters[0].detach()
        )
        return operator, batches[0].count

    def _jacobian(self, batch: _Batch, starts: Mapping[Tensor, int], size: int) -> Real | None:
        """The derivative of the weights by the parameters; None where the weights are the parameters, in order."""
        weights = [batch.call.of_weights[slot] for slot in batch.slots]
        found = np.concatenate([w.jacobian(starts, size) for w in weights])
        return None if np.array_equal(found, np.eye(size)) else found

    def _batches(self) -> list[_Batch]:
        if self._known is None:
            check_same_weights(self.name, self.passes)
            self._known = _batches(self)
        return self._known

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
        args, kwargs = _arguments(call, {s: w.now() for s, w in call.of_weights.items()})
        found = find(call.qnode, args, kwargs)
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


def _batches(layer: CallLayer) -> list[_Batch]:
    groups: dict[Any, tuple[_Group, SeenCall, list[Slot], list[Real]]] = {}
    others: list[_Batch] = []
    for call in layer.passes:
        _check_finite(layer, call)
        found = _compiled(layer, call)
        if found is None:
            others += _points(layer, call)
            continue
        (form, arrays, columns, whole), slots, rows = found
        # Weights that are computed have derivatives of their own in every call.
        own = id(call) if any(w.entries is None for w in call.of_weights.values()) else None
        key = (id(form), own, columns.tobytes(), *(a.tobytes() for a in arrays))
        known = groups.setdefault(key, ((form, arrays, columns, whole), call, slots, []))
        known[3].append(rows)
    batches = []
    for (form, arrays, columns, whole), call, slots, parts in groups.values():
        rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
        every = form.jacobian(arrays, rows)
        jacobian = every.by(columns)
        trainable = frozenset((every if whole else jacobian).rows.tolist())
        pullback = Pullback(
            form.circuit,
            form.angles(arrays, rows),
            jacobian,
            form.states(arrays, rows),
            len(rows),
            trainable,
        )
        batches.append(_Batch(pullback, call, slots, len(rows)))
    return batches + others


def _compiled(layer: CallLayer, call: SeenCall) -> tuple[_Group, list[Slot], Real] | None:
    """The compiled form of a call, its weights in the form's order, and its inputs (rows, features)."""
    qnode = call.qnode
    if device_reason(qnode):
        return None
    args, kwargs = _arguments(call, {s: w.now() for s, w in call.of_weights.items()})
    names = layer.names
    slots_of = {names[s]: s for s in call.of_weights}
    data = [
        s
        for s, v in slotted(args, kwargs)
        if isinstance(v, Tensor) and s not in call.of_weights and s not in call.fixed
    ]
    every: Tensor | None = None
    if call.mapped:
        every = args[data[0]] if isinstance(data[0], int) else kwargs[data[0]]
        _place(args, kwargs, data[0], every[0])
    found: Found | str = ""
    form: Compiled | None = None
    if len(data) == 1:
        one = args[data[0]] if isinstance(data[0], int) else kwargs[data[0]]
        dtypes = {v.dtype for v in [*args, *kwargs.values()] if isinstance(v, Tensor)}
        if one.ndim in (1, 2) and len(dtypes) == 1:
            found = find(qnode, args, kwargs, names[data[0]])
            form = None if isinstance(found, str) else found.compiled
    if form is None:
        found = find(qnode, args, kwargs)
        form = None if isinstance(found, str) else found.compiled
    if isinstance(found, str) or form is None or form.state_weighted:
        return None
    rows = to_numpy(found.inputs)
    if every is not None:
        if found.known.data is None or not form.decides(found.arrays(), to_numpy(every)):
            return None
        rows = to_numpy(every)
    order = [n for n in found.tensors if n != found.known.data]
    ends = dict(
        zip(order, np.cumsum([found.tensors[n].numel() for n in order]).tolist(), strict=True)
    )
    chosen = [n for n in order if n in slots_of]
    columns = [np.arange(ends[n] - found.tensors[n].numel(), ends[n]) for n in chosen]
    index = np.concatenate(columns) if columns else np.zeros(0, dtype=np.intp)
    # Where all tensors but the inputs are weights or fixed, angles that move no weight encode inputs.
    whole = len(data) == (found.known.data is not None)
    return (form, found.arrays(), index, whole), [slots_of[n] for n in chosen], rows


def _points(layer: CallLayer, call: SeenCall) -> list[_Batch]:
    """The points of a call that is not compiled; of each of its inputs, where they are many."""
    if call.mapped:
        slot = next(
            s
            for s, v in slotted(call.args, call.kwargs)
            if isinstance(v, Tensor) and s not in call.fixed
        )
        rows = call.args[slot] if isinstance(slot, int) else call.kwargs[slot]
        return [_point(layer, call, {slot: row}) for row in rows]
    return [_point(layer, call, {})]


def _point(layer: CallLayer, call: SeenCall, changed: Mapping[Slot, Any]) -> _Batch:
    qnode = call.qnode
    weights = {s: w.now().clone().requires_grad_() for s, w in call.of_weights.items()}
    args, kwargs = _arguments(call, {**weights, **changed})
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


def _arguments(call: SeenCall, values: Mapping[Slot, Any]) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = list(call.args), dict(call.kwargs)
    for slot, value in values.items():
        _place(args, kwargs, slot, value)
    return args, kwargs


def _place(args: list[Any], kwargs: dict[str, Any], slot: Slot, value: Any) -> None:
    if isinstance(slot, int):
        args[slot] = value
    else:
        kwargs[slot] = value


def _check_finite(layer: CallLayer, call: SeenCall) -> None:
    values: Iterable[tuple[Slot, Any]] = [
        *((s, w.now()) for s, w in call.of_weights.items()),
        *slotted(call.args, call.kwargs),
    ]
    for slot, value in values:
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise NumericalError(
                f"{layer.title}.{layer.names[slot]}: expected finite numbers, got NaN or infinity"
            )


def _sizes(parameters: Sequence[Tensor]) -> list[int]:
    return [p.numel() for p in parameters]
