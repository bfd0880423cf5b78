"""What a forward pass depends on besides its arguments and the parameters, so that it can be run again as it was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch

from fubini.nn.random_state import AllRandom
from fubini.torch_private import checkpoint_switches, pytree

Tensor = torch.Tensor


class Surroundings(NamedTuple):
    """What surrounds a forward pass of a model when it begins.

    It does not hold the model: recorders keep it, and they belong to the model.

    Attributes:
        random: The random generators.
        training: Training flags of the modules, in the order of ``modules_of``.
        buffers: Copies of the buffers by name.
        autocast: Whether autocast was on.
    """

    random: AllRandom
    training: tuple[bool, ...]
    buffers: Mapping[str, Tensor]
    autocast: bool = False

    @classmethod
    def now(cls, model: torch.nn.Module, before: Surroundings | None = None) -> Surroundings:
        """Return what surrounds the model.

        Args:
            model: The model.
            before: Of an earlier pass; copies of buffers that have not changed since are shared with it.
        """
        modules = modules_of(model)
        training = tuple([m.training for m in modules])
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        buffers = {}
        known: Mapping[str, Tensor] = {} if before is None else before.buffers
        # Most models have no buffers, and looking for their names takes longer than for them.
        named = model.named_buffers() if [m for m in modules if m._buffers] else ()
        for name, buffer in named:
            last = known.get(name)
            kind = buffer.dtype, buffer.device
            if last is None or (last.dtype, last.device) != kind or not torch.equal(last, buffer):
                last = buffer.detach().clone()
            buffers[name] = last
        return cls(AllRandom.now(), training, buffers, autocast)

    @contextlib.contextmanager
    def flags(self, model: torch.nn.Module) -> Iterator[None]:
        """Put the modules' training flags as they were, and afterwards back."""
        modules = modules_of(model)
        now = [m.training for m in modules]
        if len(now) != len(self.training) or now == list(self.training):
            yield
            return
        try:
            for module, flag in zip(modules, self.training, strict=True):
                module.training = flag
            yield
        finally:
            for module, flag in zip(modules, now, strict=True):
                module.training = flag

    @contextlib.contextmanager
    def numbers(self) -> Iterator[None]:
        """Put the random generators as they were, and afterwards back."""
        now = AllRandom.now()
        self.random.restore()
        try:
            yield
        finally:
            now.restore()


def modules_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a module and all in it, each once, in the order of ``modules()``: a third of its time.

    Args:
        module: The module.
    """
    found, waiting = [], [module]
    seen = {id(module)}
    while waiting:
        one = waiting.pop()
        found.append(one)
        for child in reversed(one._modules.values()):
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
    return found


def parameters_of(module: torch.nn.Module) -> list[Tensor]:
    """Return a module's parameters, each once; a third of the time of ``module.parameters()``.

    Args:
        module: The module.
    """
    found: dict[int, Tensor] = {}
    for one in modules_of(module):
        for p in one._parameters.values():
            if p is not None:
                found[id(p)] = p
    return list(found.values())


def weights_now(module: torch.nn.Module) -> tuple[tuple[int, int, bool], ...]:
    """Return what passes note about a module's parameters, as it is now."""
    return versions_of(parameters_of(module))


def versions_of(parameters: Iterable[Tensor]) -> tuple[tuple[int, int, bool], ...]:
    """Return what passes note about parameters, as it is now."""
    return tuple([(id(p), p._version, p.requires_grad) for p in parameters])


@dataclass(frozen=True)
class Seen:
    """A forward pass of a model, to be run again.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        surroundings: What surrounded it.
        output: What it returned first, where that is known and a second run must return the same.
        targets: The loss's targets, or an ``OutputGradient``, where they are known.
        graph: What a recorder has read of it.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    surroundings: Surroundings
    output: Tensor | None = None
    targets: Any = None
    graph: Any = None


def copied(values: Any) -> Any:
    """Return the same with detached copies of the tensors, because the caller may reuse the buffers before the step."""
    if not values:
        return values
    if type(values) is tuple and all(type(value) is torch.Tensor for value in values):
        return tuple(value.detach().clone() for value in values)  # the usual case, without a tree

    def copy(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(copy, values)


def without_autocast() -> Any:
    """Return a context in which operations keep the precision of their tensors."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


class Plainly:
    """A context in which a model runs plainly in this thread, whatever its own forward turns on.

    Autocast stays off: the metric is computed in the precision of the parameters. Activation checkpoints keep what they
    would compute again: that happens with the layers as they are, and not at all where only gradients are asked for.

    Attributes:
        asked: Whether autocast was to be turned on.
    """

    _lock = threading.Lock()
    _inside = 0  # in how many threads
    _here = threading.local()
    _undo = contextlib.ExitStack()

    def __init__(self) -> None:
        self.asked = False
        self._outer: Any = None
        self._before: Plainly | None = None

    def __enter__(self) -> Self:
        self._outer = without_autocast()
        self._outer.__enter__()
        self._before = getattr(self._here, "context", None)
        self._here.context = self
        with self._lock:
            if not Plainly._inside:
                for owner, name, make in _switches():
                    if name in owner.__dict__:
                        self._undo.callback(setattr, owner, name, owner.__dict__[name])
                    else:  # inherited
                        self._undo.callback(delattr, owner, name)
                    setattr(owner, name, make(getattr(owner, name)))
            Plainly._inside += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._here.context = self._before
        with self._lock:
            Plainly._inside -= 1
            if not Plainly._inside:
                self._undo.close()
        self._outer.__exit__(*error)

    @classmethod
    def current(cls) -> Plainly | None:
        """Return the innermost context of this thread, if any."""
        return getattr(cls._here, "context", None)


def _switches() -> list[tuple[Any, str, Callable[[Any], Any]]]:
    """What is replaced meanwhile: owner, name, and what makes the replacement, which does the same in other threads."""
    # The one place that every way of turning autocast on by a context or decorator goes through.
    found: list[tuple[Any, str, Callable[[Any], Any]]] = [(torch.autocast, "__enter__", _entering)]
    return found + [(owner, name, _MAKERS[name]) for owner, name in checkpoint_switches()]


def _entering(original: Any) -> Any:
    def entered(context: Any) -> Any:
        result, here = original(context), Plainly.current()
        if here is not None and torch.is_autocast_enabled(context.device):
            here.asked = True
            torch.set_autocast_enabled(context.device, False)  # __exit__ restores what was before
        return result

    return entered


def _keeping(original: Any) -> Any:
    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        if Plainly.current() is None:
            return original(*args, **kwargs)  # type: ignore[no-any-return]
        return iter([None])

    return generator


def _calling(original: Any) -> Any:
    def apply(function: Any, preserve: Any, *args: Any) -> Any:
        return (
            function(*args)
            if Plainly.current() is not None
            else original(function, preserve, *args)
        )

    return staticmethod(apply)


_MAKERS = {"_checkpoint_without_reentrant_generator": _keeping, "apply": _calling}
