"""Evaluates a QNode as a torch function, on the native engine where that can be promised to be right."""

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.circuit.arguments import argument_names
from fubini.circuit.tape import user_tape
from fubini.compile.calls import Found, find
from fubini.compile.compiled import Traced
from fubini.devices.executor import device_reason
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import Circuit, circuit_of
from fubini.native.reading import read
from fubini.nn.copies import found_qnode, reduced
from fubini.nn.native_pass import run_compiled, run_reading
from fubini.nn.watched_calls import Slot, anyone_watches, watched
from fubini.torch_private import is_traced, uncompiled

#: What takes the place of calls in this thread, as ``instead``.
_passes = threading.local()


@contextlib.contextmanager
def calls_replaced(instead: Callable[..., tuple[Any, Any]]) -> Iterator[None]:
    """Let calls be evaluated by something else, in this thread.

    Args:
        instead: Takes the ``QNodeFunction``, positional and keyword arguments; returns the results side by side, (..., M), and
            the ``CallForm``, or None twice for calls that are evaluated as always.
    """
    before = getattr(_passes, "instead", None)
    _passes.instead = instead
    try:
        yield
    finally:
        _passes.instead = before


class QNodeFunction:
    """A QNode as a torch function, without its metric: see ``fubini.compiled``.

    Attributes:
        qnode: The QNode.
        weights: Names of the arguments that are weights to optimizers; None: they are told by how they are made.
    """

    def __init__(self, qnode: Any, weights: str | Sequence[str] | None = None) -> None:
        if weights is None and isinstance(qnode, QNodeFunction):
            weights = qnode.weights
        qnode = plain_qnode(qnode)
        if not isinstance(qnode, qml.QNode):
            raise TypeError(
                f"qnode: expected a QNode, got {type(qnode).__name__}; make one by qml.QNode(function, device)"
            )
        self.qnode: Any = qnode
        self.weights: tuple[str, ...] | None = _checked_weights(qnode, weights)
        self._start()

    def _start(self) -> None:
        self._last: str | None = None
        self._names: dict[int, dict[Slot, str]] = {}
        functools.update_wrapper(self, self.qnode.func, updated=())

    @uncompiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the circuit.

        Args:
            *args: The QNode's arguments.
            **kwargs: Likewise.

        Returns:
            What the QNode returns: a tensor for one measurement, a list or tuple of tensors for several; float64 on the
            native engine.
        """
        instead = getattr(_passes, "instead", None)
        if instead is not None:
            values, form = instead(self, args, kwargs)
            if form is not None:
                return _arranged(values, form.compiled.circuit, form.kind)
        if anyone_watches():
            args, kwargs = watched(self, args, kwargs)
        found = self._found(args, kwargs)
        if isinstance(found, str):
            self._last = f"The QNode runs on its PennyLane device {self.qnode.device.name!r}: {found.rstrip('.')}."
            return self.qnode(*args, **kwargs)
        form = found.compiled
        if form is None:
            return self._traced(found, args, kwargs)
        values = run_compiled(form, found.inputs, found.weights)
        values = values[0] if found.known.data is None else values
        self._last = form.explain("its tensors")
        return _arranged(values.to(_device(found)), form.circuit, found.known.run.kind)

    def names_of(self, call: Iterable[Slot]) -> dict[Slot, str]:
        """Return the names of the arguments of a call by position and by name."""
        slots = list(call)
        count = sum(isinstance(slot, int) for slot in slots)
        if count not in self._names:
            self._names[count] = argument_names(self.qnode.func, count)
        names = self._names[count]
        # Of **kwargs, and of calls that the QNode will refuse.
        others = {slot: str(slot) for slot in slots if slot not in names}
        return {**names, **others} if others else names

    def native_reason(self) -> str:
        """Return why the QNode must run as it is, as far as its settings decide it; empty where it need not."""
        if self.qnode.interface not in ("auto", "torch"):
            return f"its interface is {self.qnode.interface!r}, not torch"
        return device_reason(self.qnode)

    def _found(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Found | str:
        qnode = self.qnode
        reason = self.native_reason()
        if reason:
            return reason
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        if tensors and is_traced(tensors[0], tensors[1:]):
            return "torch is tracing it"
        found = find(qnode, args, kwargs)
        if isinstance(found, str):
            return found
        how = found.known.run.how
        if isinstance(how, str):
            return how
        if found.known.run.kind == "other":
            return "it returns something else than measurements of real numbers"
        return found

    def _traced(self, found: Found, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Gates that are native, at angles for which the quantum function runs."""
        run, how = found.known.run, found.known.run.how
        reading = run.reading if found.new else None
        if reading is None:
            try:
                tape = user_tape(self.qnode, (), found.arguments, results=True)
                reading = read(tape, self.qnode.device)
                circuit_of(reading.structure)
            except (UnsupportedCircuitError, RuntimeError) as error:
                self._last = f"The QNode runs on its PennyLane device: {str(error).rstrip('.')}."
                return self.qnode(*args, **kwargs)
        batch = () if reading.batch is None else (reading.batch,)
        values, circuit = run_reading(reading, torch.empty(*batch, 0))
        traced = how if isinstance(how, Traced) else Traced("a decision by value differs")
        self._last = traced.explain()
        return _arranged(values.to(_device(found)), circuit, run.kind)

    def explain(self) -> str:
        """Say in one sentence what evaluated the last call, and why; before the first, what is planned."""
        if self._last is not None:
            return self._last
        reason = device_reason(self.qnode)
        if reason:
            return f"The QNode runs on its PennyLane device {self.qnode.device.name!r}: {reason}."
        return "The native engine compiles the circuit in the first call: the device is a noiseless simulator."

    def __repr__(self) -> str:
        name = getattr(self.qnode.func, "__name__", "function")
        return f"fubini.compiled({name}, device={self.qnode.device.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        """What was compiled is the QNode's; a copy compiles its own."""
        return {"qnode": self.qnode, "weights": self.weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew."""
        self.qnode = found_qnode(state["qnode"])
        self.weights = state["weights"]
        self._start()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A QNode that a module has under its function's name is pickled as functions are, by that name."""
        return reduced(self)


def plain_qnode(qnode: Any) -> Any:
    """Return the QNode of a function; anything else as it is."""
    return qnode.qnode if isinstance(qnode, QNodeFunction) else qnode


def _checked_weights(qnode: Any, weights: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if weights is None:
        return None
    names = (weights,) if isinstance(weights, str) else tuple(weights)
    known = list(inspect.signature(qnode.func).parameters)
    if not names or not set(names) <= set(known):
        raise ValueError(
            f"weights: expected names of the quantum function's arguments {known}, got {weights!r}"
        )
    return names


def _device(found: Found) -> torch.device:
    return next(iter(found.tensors.values())).device


def _arranged(values: torch.Tensor, circuit: Circuit, kind: str) -> Any:
    """Results side by side, (..., M), as the QNode returns them."""
    shapes = circuit.output_shapes
    parts = torch.split(values, [math.prod(shape) for shape in shapes], dim=-1)
    results = [p.reshape((*values.shape[:-1], *s)) for p, s in zip(parts, shapes, strict=True)]
    if kind == "single":
        return results[0]
    return tuple(results) if kind == "tuple" else results
