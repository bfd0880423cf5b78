"""What a layer's quantum function returns, and whether its circuit can be compiled for inputs of one shape."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.compile.compiled import Compiled, Traced
from fubini.compile.function import same_rest

Tensor = torch.Tensor


@dataclass(frozen=True)
class Form:
    """How one kind of input is evaluated: compiled, traced, or on the device for a reason.

    Attributes:
        how: The compiled circuit, the recipe for tracing it in every call, or why it runs on the device.
        kind: What the quantum function returns: ``"single"``, ``"list"`` or ``"tuple"`` of real measurements;
            ``"other"``: something else, or what PennyLane evaluates and differentiates.
        qnode: For which this holds.
        rest: What the QNode must be besides, see ``rest_of``.
    """

    how: Compiled | Traced | str
    kind: str
    qnode: Any
    rest: tuple[Any, ...]

    def holds(self, qnode: Any, x: Tensor, weights: Sequence[Tensor]) -> bool:
        """Return whether it serves these inputs, shape (features,) or (batch, features), and weights now."""
        if qnode is not self.qnode or not same_rest(qnode, self.rest):
            return False
        how = self.how
        if not isinstance(how, Compiled):
            return True
        if how.guard is not None and not how.guard.holds():
            return False
        if not how.decisions:
            return True
        rows = to_numpy(x)
        return how.decides([to_numpy(w) for w in weights], rows if x.ndim > 1 else rows[None])


class Forms(dict[Any, list[Form]]):
    """The forms of a layer: by the kind of inputs, a few of each, because what the function captured may alternate."""

    _KINDS, _OF_A_KIND = 16, 4
    latest: Form | None = None  # what was found, or added, last

    def copy(self) -> "Forms":
        """Return other forms with the same content."""
        return Forms({key: list(forms) for key, forms in self.items()})

    @property
    def first(self) -> Form:
        """The newest form of the kind of inputs that came first."""
        return next(iter(self.values()))[0]

    def find(self, qnode: Any, x: Tensor, weights: Sequence[Tensor]) -> Form | None:
        """Return a form that serves these inputs and weights now, or None.

        Args:
            qnode: The QNode.
            x: (features,) or (batch, features).
            weights: In order.
        """
        for key in _keys(x):
            for form in self.get(key, ()):
                if form.holds(qnode, x, weights):
                    self.latest = form
                    return form
        return None

    def add(self, form: Form, x: Tensor) -> None:
        """Remember a form that was made for these inputs; ``x``: (features,) or (batch, features)."""
        any_size, this_size = _keys(x)[0], _keys(x)[-1]
        fixed = isinstance(form.how, Compiled) and form.how.batch is not None
        key = this_size if fixed else any_size
        if key not in self and len(self) >= self._KINDS:
            self.pop(list(self)[1])
        self.latest = form
        self[key] = [form, *self.get(key, [])][: self._OF_A_KIND]

    def replace(self, old: Form, new: Form) -> None:
        """Put a form in the place of another."""
        for forms in self.values():
            forms[:] = [new if form is old else form for form in forms]


def _keys(x: Tensor) -> list[Any]:
    """Kinds of inputs that these belong to: of any number of inputs, and of this number."""
    # One input in a batch is a kind of its own: a function may drop an axis of length one.
    kind = (x.ndim, x.dtype, x.device)
    if x.ndim == 1:
        return [kind]
    keys = [(*kind, None), (*kind, len(x))]
    return keys[1:] if len(x) == 1 else keys


def arranged(values: Tensor, shapes: Sequence[tuple[int, ...]], kind: str) -> Any:
    """Return results that lie side by side as the quantum function returns its measurements.

    Args:
        values: (..., m).
        shapes: Of the measurements.
        kind: See ``Form``.
    """
    if kind == "single":
        return values if shapes[0] else values[..., 0]
    if kind == "tuple":
        return torch.split(values, [math.prod(shape) for shape in shapes], dim=-1)
    return values


@functools.cache
def tuples_are_stacked() -> bool:
    """Return whether TorchLayer gives a tuple of measurements of a batch a new first axis; a list of them never gets one.

    PennyLane has changed this between versions, so the installed one is asked, by a layer of one wire, once.
    """

    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        qml.RY(w, 0)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(0))

    with torch.no_grad(), qml.QueuingManager.stop_recording():
        qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1))
        layer = qml.qnn.TorchLayer(qnode, {"w": ()}, {"w": torch.zeros(())})
        return int(layer(torch.zeros(3, 1)).shape[0]) == 2


def check_results(results: Any) -> None:
    """Raise an error unless a QNode returned measurements that can be put side by side.

    Raises:
        TypeError: Says what was returned.
    """

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(v, Tensor) for v in value)

    # A tuple may be one of lists, such as one for each number of shots.
    stacked = isinstance(results, tuple) and len(results) > 1 and tuples_are_stacked()
    parts = results if stacked else [results]
    if not all(isinstance(part, Tensor) or fits(part) for part in parts):
        got = type(results).__name__
        if isinstance(results, list | tuple):
            got += f" with {', '.join(type(r).__name__ for r in results)}"
        raise TypeError(
            f"qnode: expected it to return one measurement or a list of them, got a {got}; return a list of measurements"
        )


def check_stack(results: Sequence[Tensor]) -> None:
    """Raise an error unless the results of a tuple of measurements can be stacked.

    Raises:
        ValueError: Names the shapes.
    """
    shapes = [tuple(r.shape) for r in results]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"qnode: expected measurements of one shape in a tuple, which are stacked, got {shapes}; return a list of them, "
            "whose results are put side by side"
        )


def with_leading(result: Tensor, leading: torch.Size) -> Tensor:
    """Return a result with the batch dimensions of the inputs restored.

    Args:
        result: (batch, ...).
        leading: Shape of the inputs without their last dimension.
    """
    return result if len(leading) < 2 else result.reshape(*leading, *result.shape[1:])
