"""QNodes that are called again and again with torch tensors of the same shapes: compiled as a layer's are.

Building PennyLane's tape takes a hundred times longer than a metric. The first call of a QNode only notes how it was
called; a second one like it compiles the quantum function, by the same rules and with the same guards as
:mod:`fubini.compiled`, all tensors counting as weights. What is not affine in them, or has a batch, is not compiled.
"""

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini._arrays import is_tensor, to_numpy
from fubini.compiled import Affine, compile_function
from fubini.jacobian import Jacobian
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
    form: Affine | None = None
    jacobian: Jacobian | None = None  # by the weights alone
    tried: bool = False

    def holds(self, qnode: Any) -> bool:
        same = qnode.device is self.device and qnode.func is self.function
        return same and (self.form is None or self.form.guard.holds())


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
    shapes = tuple((n, tuple(v.shape)) for n, v in tensors.items())
    # 1 and True are equal, and so are 0.0 and -0.0: the representation tells them apart.
    key = (shapes, chosen, tuple((n, repr(v)) for n, v in constants.items()))
    calls = _known.setdefault(qnode, {})
    known = calls.get(key)
    if known is None or not known.holds(qnode):
        if len(calls) >= _REMEMBERED:
            calls.clear()
        calls[key] = _Known(qnode.device, qnode.func)
        return None
    if not known.tried:
        known.tried = True
        try:
            form = compile_function(qnode, None, tensors, (0,), constants)
        except Exception:  # noqa: BLE001 - a function that checks its arguments need not take made-up ones
            form = ""
        known.form = form if isinstance(form, Affine) else None
    if known.form is None:
        return None
    if known.jacobian is None:
        known.jacobian = _jacobian(known.form, tensors, chosen)
    jacobian = known.jacobian
    if not len(jacobian.rows):
        return None  # the way through the tape says which weights are missing
    flat = np.concatenate([to_numpy(v).reshape(-1) for v in tensors.values()])
    angles = known.form.angles(flat, np.zeros((1, 0)))
    every = frozenset(jacobian.rows.tolist())
    return Pullback(known.form.circuit, angles, jacobian, None, None, every)


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


def _jacobian(form: Affine, tensors: dict[str, torch.Tensor], chosen: tuple[str, ...]) -> Jacobian:
    ends = np.cumsum([v.numel() for v in tensors.values()]).tolist()
    stop = dict(zip(tensors, ends, strict=True))
    columns = [np.arange(stop[n] - tensors[n].numel(), stop[n]) for n in chosen]
    values = form.weights[:, np.concatenate(columns)]
    rows = np.flatnonzero(values.any(axis=1))
    return Jacobian(rows, values[rows][None])
