"""What is read and called of libraries, whose code is not followed: all of it must be on a list, see ``known``."""

import abc
import functools
import inspect
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

from fubini.compile import hooks, known
from fubini.compile.equality import ATOMS
from fubini.compile.hooks import MAKE
from fubini.compile.objects import Objects
from fubini.compile.scan import Use, scan
from fubini.compile.snapshot import MISSING, Snapshot

# Python functions of libraries that may be called whatever they are given, by code, with their globals: in all watches.
known_calls: dict[int, tuple[types.CodeType, Any]] = {id(MAKE): (MAKE, vars(hooks))}
_BUILTINS = sys.modules["builtins"]
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}


class Libraries:
    """What a quantum function reads and calls of libraries.

    Args:
        snapshot: Where what is read is kept.
        objects: Told when any attribute of a module may be read by its name.
        fail: Told why the function cannot be compiled.

    Attributes:
        escaped: Modules that the function holds, of which it may read any attribute.
        by_string: Whether an attribute is read by a string.
        by_name: Whether by one that is computed.
    """

    def __init__(self, snapshot: Snapshot, objects: Objects, fail: Callable[[str], None]) -> None:
        self._snapshot, self._objects, self._fail = snapshot, objects, fail
        self.escaped: dict[int, types.ModuleType] = {}
        self.by_string = self.by_name = False

    def finish(self, names: set[str]) -> None:
        """Watch what the function may have read of the modules that it holds: attributes of these names."""
        looked_at = 0
        while looked_at < len(self.escaped):  # more of them are met on the way
            module = list(self.escaped.values())[looked_at]
            looked_at += 1
            for name in sorted(names & vars(module).keys()):
                self.value(module, name, vars(module)[name])

    def chain(self, module: types.ModuleType, use: Use) -> None:
        """Attributes that are read of a library's module where it is named."""
        value: Any = module
        for k, name in enumerate(use.chain):
            last = k == len(use.chain) - 1
            if not isinstance(value, types.ModuleType):
                return
            owner, value = value, vars(value).get(name, MISSING)
            if value is MISSING:
                value = getattr(owner, name, MISSING)  # modules that import when they are asked
                self._snapshot.entry(vars(owner), name, vars(owner).get(name, MISSING))
                if value is MISSING:
                    return
            if known.is_library(value):
                self._snapshot.entry(vars(owner), name, value)
            else:
                self.value(owner, name, value, called=last and use.called)
        if isinstance(value, types.ModuleType):
            if use.changed:
                self._fail(f"it changes {value.__name__}")
            self.escaped[id(value)] = value

    def value(self, module: types.ModuleType, name: str, value: Any, called: bool = False) -> None:
        """An attribute of a library's module is read."""
        if name in vars(module):
            self._snapshot.entry(vars(module), name, value)
        what = f"it uses {module.__name__}.{name}"
        if known.is_library(value):
            self.escaped[id(value)] = value
        elif known.is_told_of(value, called):
            return
        elif not known.constants_are_fixed(module.__name__) and type(value) not in ATOMS:
            self._fail(what)
        else:
            self._snapshot.reads(what, value)

    def calls(self, frame: types.FrameType) -> None:
        """A Python function of a library is called."""
        module = str(frame.f_globals.get("__name__"))
        code = frame.f_code
        if not known.known_code(module, code):
            if not known.known_dispatch(code, frame.f_locals.get("dispatch")):
                self._fail(f"it calls {module}.{code.co_qualname}")
        elif module == "copy":
            copied = frame.f_locals.get("x")
            if not known.copyable(copied, deep=code.co_name == "deepcopy"):
                self._fail(f"it copies a {type(copied).__name__}")
        elif module == "torch.nn.modules.module":  # hooks of all modules
            for name, hooks in frame.f_globals.items():
                if name.startswith("_global_") and isinstance(hooks, dict):
                    self._snapshot.entry(frame.f_globals, name, hooks)
                    self._snapshot.reads(f"it calls a module with {name}", hooks)
        elif module == "logging":
            self._logs(frame)
        elif module == "abc":  # classes may be registered later
            self._snapshot.getter(abc.get_cache_token, abc.get_cache_token(), "an abstract class")
        elif module.startswith("autoray") and code.co_name == "do":
            asked = frame.f_locals.get("fn")
            if not known.known_by_name(asked):
                self._fail(f"it calls {asked}, which is not on the list")
        else:
            known_calls[id(code)] = code, frame.f_globals

    def _logs(self, frame: types.FrameType) -> None:
        """A logger that says nothing at this level, as long as it says nothing."""
        logger: Any = frame.f_locals.get("self")
        name = frame.f_code.co_name
        level = known.LOG_LEVELS[name]
        level = frame.f_locals.get("level") if level is None else level
        if type(logger) not in {logging.Logger, logging.RootLogger} or type(level) is not int:
            self._fail(f"it calls {name} of a {type(logger).__name__}")
            return
        answer = logging.Logger.isEnabledFor(logger, level)
        if answer and name != "isEnabledFor":
            self._fail("it logs")
        self._snapshot.getter(
            functools.partial(logging.Logger.isEnabledFor, logger, level),
            answer,
            "a logger's level",
        )

    def seeded(self, kind: type, args: Any, kwargs: Any) -> None:
        """A template that draws its gates: the same ones only if it is given a seed."""
        bound = inspect.signature(vars(kind)["__init__"]).bind(None, *args, **kwargs)
        bound.apply_defaults()
        if not isinstance(bound.arguments.get("seed"), int):
            self._fail(f"it draws the gates of {kind.__name__} without a seed")

    def calls_c(self, frame: types.FrameType, function: Any) -> None:
        """A function that is written in C is called."""
        if not known.known_c(function):
            self._fail(f"it calls {known.shown(function)}")
        elif function.__name__ in _BY_NAME and function.__self__ is _BUILTINS:
            self.by_string = True
            if frame.f_lasti not in scan(frame.f_code).by_constant:
                self.by_name = True
            self._objects.arm(list(self.escaped.values()))
