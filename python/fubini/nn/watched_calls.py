"""QNodes that a model calls with its parameters: which went in as weights, and what else the circuit saw.

``fubini.compiled(qnode)`` belongs to no module: it may be an attribute, a global or in a closure, and the parameters are
the caller's. So an optimizer watches all calls of compiled QNodes for its own parameters. A weight gets a mark, a view with
a hook, as in a layer's evaluation; the calls whose marks a backward pass reached, and whose gradients came into ``.grad``,
are those of the step.
"""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fubini.nn.evaluations import without_graph
from fubini.nn.recorder import Pass, PassRecorder
from fubini.nn.roles import Origin, leaves_of, origin_of, selection
from fubini.nn.surroundings import versions_of
from fubini.options import Index, Real
from fubini.torch_private import is_wrapped, pytree

Tensor = torch.Tensor
#: An argument of a call: its position or its name.
Slot = int | str
#: The arguments of a call, positions first.
Call = Mapping[Slot, Any]


@dataclass(eq=False)
class WeightSeen:
    """A weight as a call saw it.

    Attributes:
        leaves: The watched parameters that it is computed from.
        value: Its value then; None where it is a parameter, or entries of one.
        entries: Which entries of the one parameter it consists of, else None.
        jacobians: Its derivatives by the parameters, (entries of the weight, entries of the parameter), where it is
            computed otherwise; known after the backward pass.
        shape: Its shape.
        dtype: Its type.
        plain: Whether it is all of the one parameter, in order.
    """

    leaves: tuple[Tensor, ...]
    value: Tensor | None
    entries: Index | None
    shape: torch.Size
    dtype: torch.dtype
    plain: bool
    jacobians: dict[Tensor, Tensor] = field(default_factory=dict)

    def now(self) -> Tensor:
        """Return its value: of what are parameters, as they are now."""
        if self.value is not None:
            return self.value
        (leaf,) = self.leaves
        flat = leaf.detach().reshape(-1)
        if not self.plain:
            flat = flat[torch.from_numpy(self.entries).to(flat.device)]
        return flat.reshape(self.shape).to(self.dtype)

    def key(self) -> tuple[Any, ...]:
        """Return what weights of several calls have in common that are the same function of the same parameters."""
        ids = tuple([id(p) for p in self.leaves])
        if self.entries is None:
            return ids
        return (*ids, None if self.plain else self.entries.tobytes())

    def jacobian(self, starts: Mapping[Tensor, int], size: int) -> Real:
        """Return its derivative, (entries of the weight, size).

        Args:
            starts: Where the entries of each parameter begin.
            size: Number of columns.
        """
        count = self.shape.numel()
        result = np.zeros((count, size))
        if self.entries is not None:
            result[np.arange(count), starts[self.leaves[0]] + self.entries] = 1.0
        for leaf, block in self.jacobians.items():
            start = starts[leaf]
            result[:, start : start + leaf.numel()] = block.cpu().numpy()
        return result


@dataclass(eq=False)
class SeenCall(Pass):
    """A call of a compiled QNode.

    Attributes:
        qnode: The QNode.
        arguments: As they were passed, tensors detached and copied; None for weights.
        of_weights: The weights by their slot.
        unclear: Names of arguments that may be weights or not, with the reason.
        names: Of the arguments by slot.
        fixed: Slots of parameters that require no gradient.
        mapped: Whether the one other tensor is many inputs, (inputs, features), of calls under ``vmap``.
    """

    qnode: Any = None
    arguments: Call = field(default_factory=dict)
    of_weights: dict[Slot, WeightSeen] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)
    names: Mapping[Slot, str] = field(default_factory=dict)
    fixed: frozenset[Slot] = frozenset()
    mapped: bool = False

    def key(self) -> tuple[Any, ...]:
        """Return what calls of the same function of the same parameters have in common: inputs of one metric."""
        return id(self.qnode), tuple((slot, w.key()) for slot, w in self.of_weights.items())


class CallWatch(PassRecorder):
    """What an optimizer sees of the calls of compiled QNodes. It has no passes of its own.

    Attributes:
        weights: Parameters that went into a call as weights, since the watch began, in order.
        known: By parameters, the recorder of the calls whose weights come from these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[Tensor, None] = {}
        self.known: dict[tuple[int, ...], PassRecorder] = {}
        _watches.append(weakref.ref(self))

    @property
    def recorders(self) -> list[PassRecorder]:
        """The recorders of the calls."""
        return list(self.known.values())

    @property
    def calls(self) -> list[SeenCall]:
        """The calls whose gradients are waiting for a step, in the order of the backward passes."""
        return [call for recorder in self.known.values() for call in recorder.passes]  # type: ignore[misc]

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Say whose gradients count, see PassRecorder."""
        super().watch(parameters)
        self.weights = {p: None for p in self.weights if id(p) in self._watched}
        for recorder in self.known.values():
            recorder.watch(self._watched.values())

    def detach(self) -> None:
        """Record nothing any more."""
        super().detach()
        for recorder in self.known.values():
            recorder.detach()
        self.known, self.weights = {}, {}

    def begin(self, compiled: Any, call: Call, to: dict[Slot, Any]) -> None:
        """Take note of a call.

        Args:
            compiled: The ``CompiledQNode``.
            call: The arguments as the caller passed them.
            to: The arguments to use instead, changed in place.
        """
        if not self._active or self.paused or not self._watched or not torch.is_grad_enabled():
            return
        origins = origins_of(compiled, call, self._watched)
        if not origins:
            return
        used = {id(p) for o in origins.values() for p in o.leaves}
        parameters = [p for i, p in self._watched.items() if i in used]
        key = tuple([id(p) for p in parameters])
        recorder = self.known.get(key)
        if recorder is None:
            recorder = self.known[key] = PassRecorder()
            recorder.watch(self._watched.values())
        seen = SeenCall((), {}, versions_of(parameters), parameters, 1, qnode=compiled.qnode)
        seen.names = names = compiled.names_of(call)
        for slot, origin in origins.items():
            if origin.role == "weight":
                seen.of_weights[slot] = weight_seen(call[slot], origin)
            else:
                kind = type(call[slot]).__name__
                reason = f"its tensors are in a {kind}; pass each as an argument of its own"
                inside = not isinstance(call[slot], Tensor)
                seen.unclear[names.get(slot, str(slot))] = reason if inside else ""
        _keep_arguments(seen, call, names)

        def marked(value: Any) -> Any:
            tracked = isinstance(value, Tensor) and value.requires_grad and not is_wrapped(value)
            return recorder.mark(value, seen) if tracked else value

        for slot in origins:
            weight = seen.of_weights.get(slot)
            if weight is None:
                to[slot] = pytree.tree_map(marked, to[slot])
            else:
                jacobians = weight.jacobians if weight.entries is None else None
                to[slot] = recorder.mark(to[slot], seen, weight.leaves, jacobians)
        self.weights.update(dict.fromkeys(p for w in seen.of_weights.values() for p in w.leaves))


def origins_of(compiled: Any, call: Call, watched: Mapping[int, Tensor]) -> dict[Slot, Origin]:
    """Return where every argument comes from that has anything to do with some parameters.

    Args:
        compiled: The ``CompiledQNode``.
        call: The arguments.
        watched: The parameters by identity.
    """
    found: dict[Slot, Origin] = {}
    for slot, value in call.items():
        if isinstance(value, Tensor):
            if not value.requires_grad or is_wrapped(value):
                continue
            if compiled.weights is None:
                origin = origin_of(value, watched)
            elif compiled.names_of(call)[slot].split("[")[0] in compiled.weights:
                origin = Origin("weight", leaves_of(value, watched))
            else:
                continue
        elif isinstance(value, list | tuple | dict):
            tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
            inner = {
                id(p): p
                for t in tensors
                if t.requires_grad and not is_wrapped(t) and origin_of(t, watched).role != "data"
                for p in leaves_of(t, watched)
            }
            origin = Origin("unclear", tuple(inner.values()))
        else:
            continue
        if origin.leaves:
            found[slot] = origin
    return found


_watches: "list[weakref.ReferenceType[CallWatch]]" = []


def watched(compiled: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Let all optimizers that watch take note of a call.

    Args:
        compiled: The ``CompiledQNode``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The arguments to use instead, a list and a dictionary.
    """
    call = slotted(args, kwargs)
    to = dict(call)
    for reference in list(_watches):
        watch = reference()
        if watch is None or not watch._active:
            _watches.remove(reference)
        else:
            watch.begin(compiled, call, to)
    return unslotted(to)


def anyone_watches() -> bool:
    """Return whether calls have to be shown to ``watched``."""
    return bool(_watches)


def watch_calls(owner: Any) -> CallWatch:
    """Watch the calls of compiled QNodes for as long as an optimizer lives."""
    watch = CallWatch()
    weakref.finalize(owner, watch.detach)
    return watch


def weight_seen(value: Tensor, origin: Origin) -> WeightSeen:
    """Return a weight as a call sees it."""
    leaves = origin.leaves
    entries = selection(value, leaves[0]) if len(leaves) == 1 else None
    kept = without_graph(value) if entries is None else None
    plain = value is leaves[0] or (
        entries is not None and np.array_equal(entries, np.arange(leaves[0].numel()))
    )
    return WeightSeen(leaves, kept, entries, value.shape, value.dtype, plain)


def _keep_arguments(seen: SeenCall, call: Call, names: Mapping[Slot, str]) -> None:
    """Put copies of everything but the weights into a call."""
    rest = {s: v for s, v in call.items() if s not in seen.of_weights}
    others = {s: v for s, v in rest.items() if isinstance(v, Tensor)}
    parameters = {s: v for s, v in others.items() if isinstance(v, torch.nn.Parameter)}
    seen.fixed = frozenset(s for s, v in parameters.items() if not v.requires_grad)
    data = [s for s in others if s not in seen.fixed]
    hidden = [s for s, v in others.items() if is_wrapped(v)]
    if hidden and (len(data) > 1 or others[data[0]].ndim != 1):
        seen.unclear[names.get(hidden[0], str(hidden[0]))] = (
            "torch.func.vmap maps it; call the circuit with a batch, (batch, features), as its one argument for data"
        )
        return
    copies = {s: without_graph(v) for s, v in others.items()}
    if hidden:
        rows = copies[hidden[0]]
        copies[hidden[0]] = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
        seen.mapped = True
    if len(data) == 1 and copies[data[0]].ndim == 2:
        seen.count = len(copies[data[0]])
    seen.arguments = {**dict.fromkeys(call), **rest, **copies}


def slotted(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Slot, Any]:
    """Return the arguments of a call by their slots."""
    return dict([*enumerate(args), *kwargs.items()])


def unslotted(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments of a call."""
    positional = [v for s, v in call.items() if isinstance(s, int)]
    return positional, {s: v for s, v in call.items() if isinstance(s, str)}
