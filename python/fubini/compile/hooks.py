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
        makers: Those that were before.
    """

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.maker: Maker | None = None
        self.told: Any = None
        self.makers: list[tuple[Maker | None, Any]] = []


running = _Running()
_classes: dict[type, tuple[int, dict[str, Any]]] = {}
_modules: dict[int, tuple[int, types.ModuleType, type]] = {}
_recording: dict[type, type] = {}
_ABSENT: Any = object()
_making = 0
_plain_make: Any = CaptureMeta.__dict__["__call__"]
_CODES: set[types.CodeType] = set()


class Reader(Protocol):
    """Who is told."""

    def read(self, value: Any, name: str, original: Any) -> Any:
        """An attribute of an object is read: gives what the original method gives."""

    def written(self, value: Any, name: str) -> None:
        """An attribute of an object is about to be set or deleted."""

    def read_of_module(self, module: types.ModuleType, name: str, value: Any) -> None:
        """An attribute of a module was read; ``MISSING_ATTRIBUTE`` if it has none."""

    def written_to_module(self, module: types.ModuleType, name: str) -> None:
        """An attribute of a module is about to be set or deleted."""


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


MISSING_ATTRIBUTE: Any = object()


def readers() -> list[Reader]:
    """The readers of the running thread, the innermost last."""
    return running.readers


def find(kind: type, name: str) -> Any:
    """What a class and its bases have under a name, as it stands there; None if nothing."""
    for base in type.__getattribute__(kind, "__mro__"):
        scope = type.__getattribute__(base, "__dict__")
        if name in scope:
            return scope[name]
    return None


def is_hook(function: Any) -> bool:
    """Say whether a method is one of those put in place here."""
    return isinstance(function, types.FunctionType) and function.__code__ in _CODES


def original(kind: type, name: str) -> Any:
    """The method of a class that is in force without this module."""
    for base in type.__getattribute__(kind, "__mro__"):
        if base in _classes:
            found = _classes[base][1].get(name, _ABSENT)
        else:
            found = type.__getattribute__(base, "__dict__").get(name, _ABSENT)
        if found is not _ABSENT:
            return found
    return None


def names(kind: type) -> tuple[str, ...]:
    """The names that a class has without this module."""
    before = _classes.get(kind, (0, {}))[1]
    scope = type.__getattribute__(kind, "__dict__")
    return tuple(name for name in scope if before.get(name) is not _ABSENT)


def install(kind: type) -> bool:
    """Make a class report; False if it cannot be changed. Every call wants one of ``remove``."""
    with _lock:
        if kind in _classes:
            count, before = _classes[kind]
            _classes[kind] = (count + 1, before)
            return True
        names = ("__getattribute__", "__setattr__", "__delattr__")
        scope = type.__getattribute__(kind, "__dict__")
        before = {name: scope.get(name, _ABSENT) for name in names}
        methods = dict(zip(names, _methods(*(original(kind, name) for name in names)), strict=True))
        try:
            for name, method in methods.items():
                type.__setattr__(kind, name, method)
        except TypeError:
            return False
        _classes[kind] = (1, before)
        return True


def remove(kind: type) -> None:
    """Undo one ``install``."""
    with _lock:
        if kind not in _classes:
            return
        count, before = _classes[kind]
        if count > 1:
            _classes[kind] = (count - 1, before)
            return
        del _classes[kind]
        for name, method in before.items():
            if not is_hook(type.__getattribute__(kind, "__dict__").get(name)):
                continue  # somebody else has put another one there
            if method is _ABSENT:
                type.__delattr__(kind, name)
            else:
                type.__setattr__(kind, name, method)


def _methods(get: Any, set_: Any, delete: Any) -> tuple[Any, Any, Any]:
    def __getattribute__(self: Any, name: str) -> Any:
        for reader in reversed(readers()):
            return reader.read(self, name, get)
        return get(self, name)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        for reader in readers():
            reader.written(self, name)
        set_(self, name, value)

    def __delattr__(self: Any, name: str) -> None:
        for reader in readers():
            reader.written(self, name)
        delete(self, name)

    _CODES.update(f.__code__ for f in (__getattribute__, __setattr__, __delattr__))
    return __getattribute__, __setattr__, __delattr__


def install_module(module: types.ModuleType) -> bool:
    """Make a module report; False if it cannot be changed. Every call wants one of ``remove_module``."""
    with _lock:
        if id(module) in _modules:
            count, _, before = _modules[id(module)]
            _modules[id(module)] = (count + 1, module, before)
            return True
        before = type(module)
        if find(before, "__getattribute__") is not types.ModuleType.__getattribute__:
            return False
        try:
            module.__class__ = _recording_class(before)
        except TypeError:
            return False
        _modules[id(module)] = (1, module, before)
        return True


def remove_module(module: types.ModuleType) -> None:
    """Undo one ``install_module``."""
    with _lock:
        if id(module) not in _modules:
            return
        count, _, before = _modules[id(module)]
        if count > 1:
            _modules[id(module)] = (count - 1, module, before)
            return
        del _modules[id(module)]
        object.__setattr__(module, "__class__", before)


def _recording_class(kind: type) -> type:
    if kind not in _recording:
        get: Any = types.ModuleType.__getattribute__
        set_: Any = kind.__setattr__
        delete: Any = kind.__delattr__

        def __getattribute__(self: Any, name: str) -> Any:
            try:
                value = get(self, name)
            except AttributeError:
                for reader in readers():
                    reader.read_of_module(self, name, MISSING_ATTRIBUTE)
                raise
            for reader in readers():
                reader.read_of_module(self, name, value)
            return value

        def __setattr__(self: Any, name: str, value: Any) -> None:
            for reader in readers():
                reader.written_to_module(self, name)
            set_(self, name, value)

        def __delattr__(self: Any, name: str) -> None:
            for reader in readers():
                reader.written_to_module(self, name)
            delete(self, name)

        _CODES.update(f.__code__ for f in (__getattribute__, __setattr__, __delattr__))
        methods = {f.__name__: f for f in (__getattribute__, __setattr__, __delattr__)}
        _recording[kind] = type(
            kind.__name__, (kind,), {**methods, "__slots__": (), "__module__": kind.__module__}
        )
    return _recording[kind]


def begin_making(maker: Maker, told: Callable[..., None]) -> None:
    """Ask a maker about the objects of PennyLane's classes that the running thread makes.

    Args:
        maker: Whom to ask; ``end_making`` ends it.
        told: The profile function that it goes with.
    """
    global _making, _plain_make
    with _lock:
        if not _making:
            _plain_make = CaptureMeta.__dict__["__call__"]
            CaptureMeta.__call__ = _make
        _making += 1
    running.makers.append((running.maker, running.told))
    running.maker, running.told = maker, told


def end_making() -> None:
    """Undo one ``begin_making`` of the running thread."""
    global _making
    running.maker, running.told = running.makers.pop()
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
