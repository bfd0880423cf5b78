"""QNodes that are called again and again with torch tensors of the same shapes: compiled as a layer's are.

Building PennyLane's tape takes a hundred times longer than a metric. The first call compiles the quantum function, by the
same rules and with the same guards as for a layer, see :mod:`fubini.compile`, all tensors counting as weights. The metric of
a QNode and the callable of ``fubini.compiled`` share what was compiled.
"""

import contextlib
import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fubini.arrays import is_tensor, to_numpy
from fubini.compile.compiled import Compiled, Traced
from fubini.compile.function import Run, compile_function, rest_of, same_rest
from fubini.compile.roots import BATCHED, rows_of
from fubini.native.pullback import Pullback
from fubini.options import Index
from fubini.torch_private import is_wrapped

_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))
_REAL = (torch.float64, torch.float32)
_UNNAMED = "it takes arguments without names of their own, such as *args; name them, as in def circuit(a, b)"
#: Ways of calling that are remembered for a QNode.
_REMEMBERED = 16

Key = tuple[Any, ...]


@dataclass
class Known:
    """What is known of one way to call a QNode.

    Attributes:
        run: The run that compiled it.
        rest: Of the QNode for which this holds, see ``rest_of``.
        data: Name of the tensor whose rows are a batch of inputs, (batch, features); None where all are weights.
        numbers_alone: Whether that tensor is (batch,), one number for each input.
        columns: Of the chosen weights among all tensors, by their names.
    """

    run: Run
    rest: tuple[Any, ...]
    data: str | None = None
    numbers_alone: bool = False
    columns: dict[tuple[str, ...], Index] = field(default_factory=dict)

    def holds(self, qnode: Any) -> bool:
        """Return whether it is still true of the QNode."""
        how = self.run.how
        guard = how.guard if isinstance(how, Compiled) else None
        return same_rest(qnode, self.rest) and (guard is None or guard.holds())


@dataclass(frozen=True)
class Found:
    """A call of a QNode whose way of being called is known.

    Attributes:
        known: What is known of it.
        tensors: The tensors by name, in the order of compilation.
        arguments: All arguments by name.
        new: Whether the function has just run for this call.
    """

    known: Known
    tensors: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    new: bool

    @property
    def compiled(self) -> Compiled | None:
        """The compiled form, if there is one and what was decided by value holds for these tensors."""
        how = self.known.run.how
        if not isinstance(how, Compiled):
            return None
        if not how.decisions:
            return how
        if any(is_wrapped(v) for v in self.tensors.values()):
            return None  # their values are hidden
        return how if how.decides(self.arrays(), to_numpy(self.inputs)) else None

    @property
    def reason(self) -> str:
        """Why there is no compiled form."""
        how = self.known.run.how
        return how if isinstance(how, str) else getattr(how, "reason", "a decision by value")

    @property
    def inputs(self) -> torch.Tensor:
        """The batch of inputs, (batch, features); one input without features where there is none."""
        data = self.known.data
        if data is None:
            return torch.empty(1, 0, dtype=torch.float64)
        found = self.tensors[data]
        if self.known.numbers_alone:
            return found[:, None]
        return found if found.ndim > 1 else found[None]

    @property
    def weights(self) -> list[torch.Tensor]:
        """The other tensors, in order."""
        return [v for n, v in self.tensors.items() if n != self.known.data]

    def arrays(self) -> list[Any]:
        """The weights as arrays."""
        return [to_numpy(w) for w in self.weights]


@dataclass
class _Calls:
    """The calls of a QNode with one quantum function."""

    function: Any
    signature: inspect.Signature
    reason: str | None
    names: tuple[str, ...]
    known: dict[Key, Known] = field(default_factory=dict)


_calls: "weakref.WeakKeyDictionary[Any, _Calls]" = weakref.WeakKeyDictionary()


def find(
    qnode: Any, args: Sequence[Any], kwargs: dict[str, Any], data: str | None = None
) -> Found | str:
    """Return what is known of a call of a QNode; a way of calling that is new is compiled.

    Args:
        qnode: The QNode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        data: Name of a tensor, (features,) or (batch, features), of inputs, while all others are weights; None: it is found out
            which is a batch.

    Returns:
        What is known, or why the QNode has to be run.
    """
    calls = _calls.get(qnode)
    if calls is None or calls.function is not qnode.func:
        calls = _calls[qnode] = _of_function(qnode.func)
    if calls.reason is not None:
        return calls.reason
    if not kwargs and len(args) == len(calls.names):
        arguments = dict(zip(calls.names, args, strict=True))
    else:
        try:
            arguments = dict(calls.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:  # the QNode says it in its own words
            return f"its arguments do not fit: {error}"
    tensors = {n: v for n, v in arguments.items() if is_tensor(v)}
    constants = {n: v for n, v in arguments.items() if n not in tensors}
    if not tensors:
        return "none of its arguments is a torch tensor; pass weights as torch.as_tensor(w)"
    for name, value in constants.items():
        if type(value) not in _CONSTANTS:
            return (
                f"its argument {name} is of the type {type(value).__name__}, neither a torch tensor nor a number; pass weights "
                f"as torch.as_tensor({name}), and read what is constant from outside the function"
            )
    for name, tensor in tensors.items():
        if tensor.dtype not in _REAL:
            return (
                f"its argument {name} is a tensor of {tensor.dtype}, not of float64 or float32; pass weights as "
                f"torch.as_tensor({name}, dtype=torch.float64)"
            )
    shapes = tuple((n, v.shape, v.dtype, v.device) for n, v in tensors.items())
    # 1 and True are equal, and so are 0.0 and -0.0: the representation tells them apart.
    key = (shapes, tuple((n, repr(v)) for n, v in constants.items()), data)
    known = calls.known.get(key)
    if known is not None and known.holds(qnode):
        return Found(known, tensors, arguments, new=False)
    if any(is_wrapped(v) for v in tensors.values()):
        return "torch.func hides its numbers before its first call with plain tensors"
    try:
        run, data, alone = _run(qnode, tensors, constants, data)
    except Exception as error:  # noqa: BLE001 - whoever runs the QNode raises it again
        return f"compiling raised {type(error).__name__}: {error}"
    if len(calls.known) >= _REMEMBERED:
        calls.known.clear()
    # Tensors with graphs of this call are not for the next.
    known = calls.known[key] = Known(Run(run.how, run.kind), rest_of(qnode), data, alone)
    return Found(replace(known, run=run), tensors, arguments, new=True)


def compiled_call(
    qnode: Any, args: Sequence[Any], kwargs: dict[str, Any], weights: Sequence[int | str]
) -> Pullback | None:
    """Return the pullback of a call that has been compiled.

    Args:
        qnode: The QNode; its device is a simulator without shots.
        args: Positional arguments.
        kwargs: Keyword arguments.
        weights: Which of them are the weights.

    Returns:
        The pullback, or None where the quantum function has to be run.
    """
    found = find(qnode, args, kwargs)
    form = None if isinstance(found, str) else found.compiled
    if form is None or isinstance(found, str) or form.state_weighted:
        return None
    data = found.known.data
    names = list(found.arguments)
    chosen = tuple(names[w] if isinstance(w, int) else w for w in weights)
    if data in chosen:
        return None
    columns = found.known.columns
    if chosen not in columns:
        own = {n: v for n, v in found.tensors.items() if n != data}
        columns[chosen] = _columns(own, chosen)
    inputs = to_numpy(found.inputs)
    made = form.pullback(found.arrays(), inputs[0] if data is None else inputs, columns[chosen])
    # The way through the tape says which weights are missing, or names the gate.
    whole = len(made.jacobian.rows) and (data is None or np.isfinite(made.angles).all())
    return made if whole else None


def _run(
    qnode: Any, tensors: dict[str, torch.Tensor], constants: dict[str, Any], data: str | None
) -> tuple[Run, str | None, bool]:
    """Compile a call: the run, the name of its inputs, where one tensor is those, and whether they are one number each."""

    def by(inputs: str | None, alone: bool) -> Run:
        weights = dict(tensors)
        rows = None if inputs is None else weights.pop(inputs)
        return compile_function(qnode, inputs, weights, rows, constants, numbers_alone=alone)

    run = by(data, False)
    if data is None and isinstance(run.how, Traced) and run.how.reason == BATCHED and run.reading:
        # Of a function that was understood otherwise: the rows of one tensor may be what makes the circuit a batch.
        index = rows_of(list(tensors.values()), run.reading.batch)
        if index is not None:
            name, tensor = list(tensors.items())[index]
            with contextlib.suppress(ValueError):  # it mixes up its rows, which are then no inputs
                by_inputs = by(name, tensor.ndim == 1)
                if isinstance(by_inputs.how, Compiled):
                    return by_inputs, name, tensor.ndim == 1
    return run, data, False


def _of_function(function: Any) -> _Calls:
    signature = inspect.signature(function)
    kinds = {p.kind for p in signature.parameters.values()}
    parameter = inspect.Parameter
    unnamed = kinds & {parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY, parameter.VAR_KEYWORD}
    positional = [n for n, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
    # With arguments of the keyword alone, no call has all of them by position.
    names = tuple(positional) if len(positional) == len(signature.parameters) else ()
    return _Calls(function, signature, _UNNAMED if unnamed else None, names)


def _columns(tensors: dict[str, torch.Tensor], chosen: tuple[str, ...]) -> Index:
    ends = np.cumsum([v.numel() for v in tensors.values()]).tolist()
    stop = dict(zip(tensors, ends, strict=True))
    return np.concatenate([np.arange(stop[n] - tensors[n].numel(), stop[n]) for n in chosen])
