"""The compiled form of a call of a QNode whose weights are known: as a layer with these weights would have it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.compile.calls import find
from fubini.compile.compiled import Compiled
from fubini.devices.executor import device_reason
from fubini.native.pullback import Pullback
from fubini.nn.watched_calls import Call, Slot, unslotted
from fubini.options import Index, Real

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class CallForm:
    """A compiled circuit at the arguments of a call.

    Attributes:
        compiled: The circuit.
        arrays: All tensors but the inputs, in the order of compilation.
        slots: The weights in that order.
        columns: Their entries among all of ``arrays``.
        rows: The inputs, (inputs, features); (1, 0) where no tensor is one.
        data: The argument that has the inputs, if one has.
        whole: Whether all of ``arrays`` are weights, some of them fixed.
        kind: What the quantum function returns: ``"single"``, ``"list"`` or ``"tuple"`` of measurements.
    """

    compiled: Compiled
    arrays: list[Real]
    slots: list[Slot]
    columns: Index
    rows: Real
    data: Slot | None
    whole: bool
    kind: str

    def key(self) -> tuple[Any, ...]:
        """Return what calls have in common that differ in their inputs only."""
        return id(self.compiled), self.columns.tobytes(), *(a.tobytes() for a in self.arrays)

    def pullback(self, rows: Real) -> Pullback:
        """Return the circuit at inputs, with the derivative of its angles by the weights.

        Args:
            rows: (inputs, features).
        """
        return self.compiled.pullback(self.arrays, rows, self.columns, fixed=self.whole)


def call_form(
    qnode: Any,
    names: Mapping[Slot, str],
    call: Call,
    weights: Collection[Slot],
    fixed: Collection[Slot] = (),
    mapped: bool = False,
) -> CallForm | None:
    """Return the compiled form of a call.

    Args:
        qnode: The QNode.
        names: Of its arguments by slot.
        call: The arguments, tensors without a graph.
        weights: Which of them are weights.
        fixed: Which are parameters that do not move.
        mapped: Whether the one other tensor has many inputs, (inputs, features), which the function gets one by one.

    Returns:
        None where the circuit is not compiled, or its initial state depends on something else than inputs.
    """
    if device_reason(qnode):
        return None
    tensors = {s: v for s, v in call.items() if isinstance(v, Tensor)}
    data = [s for s in tensors if s not in weights and s not in fixed]
    every = tensors[data[0]] if mapped else None
    if every is not None:
        tensors[data[0]] = every[0]
    args, kwargs = unslotted({**call, **tensors})
    one_dtype = len({v.dtype for v in tensors.values()}) == 1
    may_be_inputs = len(data) == 1 and tensors[data[0]].ndim in (1, 2) and one_dtype
    for inputs in [names[data[0]], None] if may_be_inputs else [None]:  # None: all are weights
        found = find(qnode, args, kwargs, inputs)
        form = None if isinstance(found, str) else found.compiled
        if form is not None:
            break
    if isinstance(found, str) or form is None or form.state_weighted or found.known.numbers_alone:
        return None
    rows = to_numpy(found.inputs if every is None else every)
    if every is not None and not (found.known.data and form.decides(found.arrays(), rows)):
        return None
    of_name = {names[s]: s for s in tensors}
    if found.known.data is not None and of_name[found.known.data] in weights:
        return None  # a batch of weights
    order = [n for n in found.tensors if n != found.known.data]
    sizes = np.array([w.numel() for w in found.weights], dtype=np.intp)
    moves = [of_name[n] in weights for n in order]
    return CallForm(
        form,
        found.arrays(),
        [of_name[n] for n in order if of_name[n] in weights],
        np.flatnonzero(np.repeat(moves, sizes)),
        rows,
        None if found.known.data is None else of_name[found.known.data],
        len(data) == (found.known.data is not None),
        found.known.run.kind,
    )
