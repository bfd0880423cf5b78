"""Tells which attributes of captured objects and modules are read, and which are set, while a function runs.

For that time the classes of these objects have ``__getattribute__``, ``__setattr__`` and ``__delattr__`` that report to
the reader of the running thread and do what they did before; modules have a class that does. Nothing is asked of an
object that the function does not ask for.
"""

import sys
import threading
import types
from collections.abc import Callable
from typing import Any, Protocol

from pennylane.capture import CaptureMeta

_lock = threading.RLock()


class _Running(threading.local):
    """What is in force in the running thread.

    Attributes:
        readers: Who is told of reads, the innermost last.
        maker: Who is asked about what is made, with ``told``, its profile function.
    """

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.maker: Maker | None = None
        self.told: Any = None


running = _Running()
#: What reports, by identity: how often it is wanted; it; the methods, or the class, that it had before.
_installed: dict[int, tuple[int, Any, Any]] = {}
_recording: dict[type, type] = {}
_METHODS = ("__getattribute__", "__setattr__", "__delattr__")
_ABSENT: Any = object()
_making = 0
_plain_make: Any = CaptureMeta.__dict__["__call__"]
_CODES: set[types.CodeType] = set()


class Reader(Protocol):
    """Who is told."""

    def read(self, value: Any, name: str, original: Any) -> Any:
        """An attribute of an object or a module is read: gives what the original method gives."""

    def written(self, value: Any, name: str) -> None:
        """An attribute is about to be set or deleted."""


class Maker(Protocol):
    """Who is asked when an object of a PennyLane class is made.

    Attributes:
        problem: Not None where nothing is to be learnt any more.
    """

    problem: str | None

    def unwatched(self, kind: type, args: Any, kwargs: Any, frame: types.FrameType) -> Any:
        """Before an object is made: True where nothing is to be learnt from it, else what ``made`` is to be given."""

    def made(self, token: Any) -> None:
        """After it was made, while the profile function was told of everything."""


def is_hook(function: Any) -> bool:
    """Say whether a method is one of those put in place here."""
    return isinstance(function, types.FunctionType) and function.__code__ in _CODES


def _before(kind: type) -> Any:
    """The methods that a class that reports had before."""
    return _installed[id(kind)][2] if id(kind) in _installed else {}


def lookup(kind: type, name: str) -> tuple[Any, Any]:
    """The dictionary in which a class finds a name, and what is there without this module; None and None if nothing."""
    for base in type.__getattribute__(kind, "__mro__"):
        scope = type.__getattribute__(base, "__dict__")
        entry = _before(base).get(name, scope.get(name, _ABSENT))
        if entry is not _ABSENT:
            return scope, entry
    return None, None


def names(kind: type) -> tuple[str, ...]:
    """The names that a class has without this module."""
    before = _before(kind)
    scope = type.__getattribute__(kind, "__dict__")
    return tuple(name for name in scope if before.get(name) is not _ABSENT)


def install(thing: Any) -> bool:
    """Make a class or a module report; False if it cannot be changed. Every call wants one of ``remove``."""
    with _lock:
        count, _, before = _installed.get(id(thing), (0, thing, None))
        if not count:
            try:
                # Not isinstance(thing, type), which would ask a module that reports for its class.
                before = (_change if issubclass(type(thing), type) else _change_module)(thing)
            except TypeError:
                return False
        _installed[id(thing)] = (count + 1, thing, before)
        return True


def remove(thing: Any) -> None:
    """Undo one ``install``."""
    with _lock:
        count, _, before = _installed.pop(id(thing), (0, thing, None))
        if count > 1:
            _installed[id(thing)] = (count - 1, thing, before)
        elif isinstance(before, type):
            object.__setattr__(thing, "__class__", before)
        elif count:
            for name, method in before.items():
                if not is_hook(type.__getattribute__(thing, "__dict__").get(name)):
                    continue  # somebody else has put another one there
                if method is _ABSENT:
                    type.__delattr__(thing, name)
                else:
                    type.__setattr__(thing, name, method)


def _change(kind: type) -> dict[str, Any]:
    scope = type.__getattribute__(kind, "__dict__")
    before = {name: scope.get(name, _ABSENT) for name in _METHODS}
    for name, method in _methods(*(lookup(kind, name)[1] for name in _METHODS)).items():
        type.__setattr__(kind, name, method)
    return before


def _change_module(module: types.ModuleType) -> type:
    before = type(module)
    if lookup(before, "__getattribute__")[1] is not types.ModuleType.__getattribute__:
        raise TypeError("it computes its attributes")
    if before not in _recording:
        methods = _methods(*(getattr(before, name) for name in _METHODS))
        scope = {**methods, "__slots__": (), "__module__": before.__module__}
        _recording[before] = type(before.__name__, (before,), scope)
    module.__class__ = _recording[before]
    return before


def _methods(get: Any, set_: Any, delete: Any) -> dict[str, Any]:
    def __getattribute__(self: Any, name: str) -> Any:
        for reader in reversed(running.readers):
            return reader.read(self, name, get)
        return get(self, name)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        for reader in running.readers:
            reader.written(self, name)
        set_(self, name, value)

    def __delattr__(self: Any, name: str) -> None:
        for reader in running.readers:
            reader.written(self, name)
        delete(self, name)

    methods = (__getattribute__, __setattr__, __delattr__)
    _CODES.update(method.__code__ for method in methods)
    return dict(zip(_METHODS, methods, strict=True))


def begin_making(maker: Maker, told: Callable[..., None]) -> tuple[Maker | None, Any]:
    """Ask a maker about the objects of PennyLane's classes that the running thread makes.

    Args:
        maker: Whom to ask.
        told: The profile function that it goes with.

    Returns:
        Who was asked before, for ``end_making``, which ends it.
    """
    global _making, _plain_make
    with _lock:
        if not _making:
            _plain_make = CaptureMeta.__dict__["__call__"]
            CaptureMeta.__call__ = _make
        _making += 1
    before = running.maker, running.told
    running.maker, running.told = maker, told
    return before


def end_making(before: tuple[Maker | None, Any]) -> None:
    """Undo one ``begin_making`` of the running thread."""
    global _making
    running.maker, running.told = before
    with _lock:
        _making -= 1
        if not _making and CaptureMeta.__dict__["__call__"] is _make:
            CaptureMeta.__call__ = _plain_make


def _make(cls: Any, *args: Any, **kwargs: Any) -> Any:
    maker = running.maker
    if maker is None or maker.problem is not None:
        return _plain_make(cls, *args, **kwargs)
    sys.setprofile(None)
    try:
        token = maker.unwatched(cls, args, kwargs, sys._getframe(1))
        if token is True:
            return _plain_make(cls, *args, **kwargs)
    finally:
        sys.setprofile(running.told)
    result = _plain_make(cls, *args, **kwargs)
    maker.made(token)
    return result


MAKE: types.CodeType = _make.__code__
_CODES.add(MAKE)


def without_hooks(error: BaseException) -> None:
    """Take the frames of the methods above out of an error's traceback."""
    trace = error.__traceback__
    while trace is not None:
        while trace.tb_next is not None and _ours(trace.tb_next):
            trace.tb_next = trace.tb_next.tb_next
        trace = trace.tb_next


def _ours(trace: types.TracebackType) -> bool:
    return trace.tb_frame.f_globals.get("__name__") in {__name__, "fubini.compile.objects"}
