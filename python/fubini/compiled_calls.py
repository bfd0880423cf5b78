"""QNodes that are called again and again with torch tensors of the same shapes: compiled as a layer's are.

Building PennyLane's tape takes a hundred times longer than a metric. The first call compiles the quantum function, by the
same rules and with the same guards as for a layer, see :mod:`fubini.compile`, all tensors counting as weights. What cannot be compiled, or has a batch, runs in every call.
"""

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini._arrays import is_tensor, to_numpy
from fubini._types import Index
from fubini.compile.compiled import Compiled
from fubini.compile.function import compile_function
from fubini.pullback import Pullback

_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))
#: Ways of calling that are remembered for a QNode.
_REMEMBERED = 16

Key = tuple[Any, ...]


@dataclass
class _Known:
    """What is known of one way to call a QNode."""

    device: Any
    function: Any
    form: Compiled | None = None
    columns: Index | None = None  # of the weights among all tensors

    def holds(self, qnode: Any) -> bool:
        same = qnode.device is self.device and qnode.func is self.function
        guard = None if self.form is None else self.form.guard
        return same and (guard is None or guard.holds())


_known: "weakref.WeakKeyDictionary[Any, dict[Key, _Known]]" = weakref.WeakKeyDictionary()


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
    arguments = _by_name(qnode, args, kwargs)
    if arguments is None:
        return None
    tensors = {n: v for n, v in arguments.items() if is_tensor(v)}
    constants = {n: v for n, v in arguments.items() if n not in tensors}
    if not tensors or not all(type(v) in _CONSTANTS for v in constants.values()):
        return None
    names = list(arguments)
    chosen = tuple(names[w] if isinstance(w, int) else w for w in weights)
    shapes = tuple((n, tuple(v.shape), v.dtype, v.device) for n, v in tensors.items())
    # 1 and True are equal, and so are 0.0 and -0.0: the representation tells them apart.
    key = (shapes, chosen, tuple((n, repr(v)) for n, v in constants.items()))
    calls = _known.setdefault(qnode, {})
    known = calls.get(key)
    if known is None or not known.holds(qnode):
        if len(calls) >= _REMEMBERED:
            calls.clear()
        known = calls[key] = _Known(qnode.device, qnode.func, _form(qnode, tensors, constants))
    form = known.form
    if form is None:
        return None
    arrays = [to_numpy(v) for v in tensors.values()]
    none = np.zeros((1, 0))
    if not form.decides(arrays, none):
        return None
    if known.columns is None:
        known.columns = _columns(tensors, chosen)
    jacobian = form.jacobian(arrays, none).by(known.columns)
    if not len(jacobian.rows):
        return None  # the way through the tape says which weights are missing
    every = frozenset(jacobian.rows.tolist())
    return Pullback(
        form.circuit, form.angles(arrays, none), jacobian, form.states(arrays, none), None, every
    )


def _form(
    qnode: Any, tensors: dict[str, torch.Tensor], constants: dict[str, Any]
) -> Compiled | None:
    try:
        form = compile_function(qnode, None, tensors, None, constants).how
    except Exception:  # noqa: BLE001 - the way through the tape raises it again
        return None
    return form if isinstance(form, Compiled) and not form.state_weighted else None


def _by_name(qnode: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments by name, or None where some have none."""
    signature = inspect.signature(qnode.func)
    kinds = {p.kind for p in signature.parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return None
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    return dict(bound.arguments)


def _columns(tensors: dict[str, torch.Tensor], chosen: tuple[str, ...]) -> Index:
    ends = np.cumsum([v.numel() for v in tensors.values()]).tolist()
    stop = dict(zip(tensors, ends, strict=True))
    return np.concatenate([np.arange(stop[n] - tensors[n].numel(), stop[n]) for n in chosen])
