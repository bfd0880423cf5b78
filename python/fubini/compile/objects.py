"""Objects, classes and modules of users: only what is asked of them is watched."""

import functools
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fubini.compile import hooks, known
from fubini.compile.snapshot import MISSING, Snapshot

_IMMUTABLE, _HEAP = 1 << 8, 1 << 9  # flags of types
_C_PARTS = (
    types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip
# C types whose objects hold nothing but what ``Snapshot.content`` or their immutability covers.
_CONTAINERS = (dict, list, set, tuple, frozenset)
_BASES = {object, *_CONTAINERS, int, float, complex, str, bytes}
_SILENT = frozenset({"__class__", "__init_subclass__"})
# Read by Python's own import system.
_SILENT_IN_MODULES = _SILENT | {"__spec__", "__path__", "__name__", "__module__"}
_READERS = (torch.nn.Module.__getattr__, functools.cached_property.__get__)
_DICTIONARY_READERS = {reader.__code__ for reader in _READERS}
_OF_ALL_CLASSES = ("__dict__", "__weakref__")
_LOOKUPS: tuple[Any, ...] = (dict.__getitem__, dict.get)


class Objects:
    """Reads of attributes, reported by ``hooks``.

    Args:
        snapshot: Where what is read is kept.
        fail: Told why the function cannot be compiled.

    Attributes:
        deferred: Attributes of classes whose values are not understood: a problem once their name is used.
        owners: Functions of classes by code: dictionary of the class, name and entry.
        armed: Whether modules of libraries report for the moment.
        busy: Whether the reads at hand are not the function's.
        classes: Those of users that were met as those of objects.
    """

    on_function: Callable[[types.FunctionType], None]
    on_library_module: Callable[..., None]

    def __init__(self, snapshot: Snapshot, fail: Callable[[str], None]) -> None:
        self._snapshot, self._fail = snapshot, fail
        self.deferred: dict[str, str] = {}
        self.owners: dict[int, list[tuple[Any, str, Any]]] = {}
        self.armed: list[types.ModuleType] = []
        self.busy = False
        self._active = False
        self._captured: dict[int, tuple[Any, Any]] = {}  # objects and their dictionaries
        self._read: set[tuple[int, str]] = set()
        self.classes: list[type] = []
        self._hooked: list[type] = []
        self._modules: dict[int, types.ModuleType] = {}
        self._library: dict[int, types.ModuleType] = {}

    # -- while the function runs ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Have everything that is known report."""
        self._active = True
        for kind in self._hooked:
            if not hooks.install(kind):
                self._fail(f"it uses a {kind.__name__}, whose class cannot be watched")
        for module in self._modules.values():
            if not hooks.install(module):
                self._fail(f"it uses {module.__name__}, a module that computes its attributes")

    def end(self) -> None:
        """Leave everything as it was."""
        self.disarm()
        self._active = False
        for thing in (*self._hooked, *self._modules.values()):
            hooks.remove(thing)

    def arm(self, modules: list[types.ModuleType]) -> None:
        """Have modules of libraries report until ``disarm``."""
        self.disarm()
        for module in modules:
            if hooks.install(module):
                self.armed.append(module)
                self._library[id(module)] = module

    def disarm(self) -> None:
        """End what ``arm`` began."""
        while self.armed:
            hooks.remove(self.armed.pop())

    def ran(self, code: types.CodeType) -> None:
        """A method of a class ran: that it is this one that the class has is part of what was read."""
        for scope, name, entry in self.owners.get(id(code), ()):
            self._snapshot.entry(scope, name, entry)

    # -- what is reached ------------------------------------------------------------------------------------------

    def reach(self, value: Any) -> str | None:
        """An object of some class; None if its attributes can be watched, or why not."""
        kind = type(value)
        why = self._watchable(kind)
        if why is not None:
            return f"a {kind.__name__}, {why}"
        scope = None
        if isinstance(hooks.lookup(kind, "__dict__")[1], types.GetSetDescriptorType):
            scope = object.__getattribute__(value, "__dict__")
        self._captured[id(value)] = value, scope
        self._snapshot.kind(value, scope)
        why = self.reach_class(kind)
        if why is None and issubclass(kind, _CONTAINERS):
            why = self._snapshot.content(value)
        if why is None and kind not in self._hooked:
            if self._active and not hooks.install(kind):
                return f"a {kind.__name__}, whose class cannot be watched"
            self._hooked.append(kind)
        return why

    def _watchable(self, kind: type) -> str | None:
        if issubclass(kind, np.ndarray | np.generic | torch.Tensor | BaseException | type):
            return "which may change unseen"
        for base in type.__getattribute__(kind, "__mro__"):
            heap = base.__flags__ & (_HEAP | _IMMUTABLE) == _HEAP
            if base not in _BASES and not (heap and _made_in_python(base)):
                return "which may change unseen"
        get = hooks.lookup(kind, "__getattribute__")[1]
        if isinstance(get, types.FunctionType):
            return "which computes its attributes"
        missing = hooks.lookup(kind, "__getattr__")[1]
        if missing is None or isinstance(missing, types.FunctionType):
            return None
        if issubclass(kind, dict) and any(missing is lookup for lookup in _LOOKUPS):
            return None
        return "which computes its attributes"

    def reach_class(self, kind: type) -> str | None:
        """Watch a class of a user's, with those that it is made of: its functions and its values; returns None."""
        for base in type.__getattribute__(kind, "__mro__"):
            if base in self.classes or known.is_library_name(base.__module__):
                continue
            self.classes.append(base)
            scope = type.__getattribute__(base, "__dict__")
            self._snapshot.keys(base, scope, hooks.names(base))
            for name, entry in list(scope.items()):
                if hooks.is_hook(entry):
                    continue
                for function in functions_of(entry):
                    self.owners.setdefault(id(function.__code__), []).append((scope, name, entry))
                    self.on_function(function)
                if name.startswith("__") or isinstance(entry, types.FunctionType | property):
                    continue
                if isinstance(entry, types.MemberDescriptorType | types.GetSetDescriptorType):
                    continue
                self._snapshot.entry(scope, name, entry)
                self._later(name, entry)
        if type(kind) is not type:
            self.reach_class(type(kind))
        return None

    def reach_module(self, module: types.ModuleType) -> str | None:
        """A module of a user's; None if its attributes can be watched, or why not."""
        if id(module) not in self._modules:
            if self._active and not hooks.install(module):
                return "a module that computes its attributes"
            self._modules[id(module)] = module
            missing = vars(module).get("__getattr__")
            if isinstance(missing, types.FunctionType):
                self.on_function(missing)
        return None

    def attributes_of_function(self, function: types.FunctionType, own: dict[str, Any]) -> None:
        """Attributes that were put on a function."""
        self._snapshot.getter(functools.partial(_keys_of, function), tuple(own), function.__name__)
        for name, value in own.items():
            self._snapshot.entry(own, name, value)
            self._later(name, value)

    # -- reports of hooks -----------------------------------------------------------------------------------------

    def read(self, value: Any, name: str, original: Any) -> Any:
        """An attribute of an object or a module is read."""
        if issubclass(type(value), types.ModuleType):
            return self._read_of_module(value, name, original)
        if self.busy or id(value) not in self._captured or (id(value), name) in self._read:
            return original(value, name)
        if issubclass(type(value), logging.Logger) and sys._getframe(2).f_globals is vars(logging):
            return original(value, name)  # the answer is watched, see Watch
        self._read.add((id(value), name))
        computed = self.safely(f"it reads {name}, which is", self._report, value, name)
        found = original(value, name)
        if computed is not None:
            computed(found)
        return found

    def written(self, value: Any, name: str) -> None:
        """An attribute is about to be set."""
        if self.busy:
            return
        if id(value) in self._captured:
            self._fail(f"it sets {name} of a {type(value).__name__} that is not its own")
        elif id(value) in self._modules or id(value) in self._library:
            self._fail(f"it sets {name} of {value.__name__}")

    def _read_of_module(self, module: types.ModuleType, name: str, original: Any) -> Any:
        """An attribute of a module is read."""
        found: Any = MISSING
        try:
            found = original(module, name)
            return found
        finally:
            if not self.busy and name not in _SILENT_IN_MODULES:
                self.safely(f"it reads {name}, which is", self._report_module, module, name, found)

    def safely(self, what: str, step: Callable[..., Any], *args: Any) -> Any:
        """What a step that looks at what the function does gives; nothing that goes wrong may reach the function."""
        self.busy = True
        try:
            return step(*args)
        except Exception as error:  # noqa: BLE001 - may not reach the function
            self._fail(f"{what} not understood ({type(error).__name__}: {error})")
            return None
        finally:
            self.busy = False

    def _report_module(self, module: types.ModuleType, name: str, value: Any) -> None:
        """Keep what a module has under a name."""
        own = vars(module)
        if value is not MISSING and id(module) not in self._modules:
            self.on_library_module(module, name, value)
        elif name == "__dict__":
            self._fail(f"it reads everything in {module.__name__}")
        else:  # nothing, or computed by the module's own __getattr__, where it is not among them
            self._snapshot.entry(own, name, own.get(name, MISSING))
            if name in own:
                self._value(name, value)

    def _report(self, value: Any, name: str) -> Any:
        """Keep what is found under a name.

        Returns:
            None, or a function that is to be told of the value that the read gives.
        """
        kind, scope = type(value), self._captured[id(value)][1]
        if name == "__dict__":
            if sys._getframe(4).f_code not in _DICTIONARY_READERS:
                self._value("__dict__", scope)
            return None
        if name in _SILENT:
            return None
        owner, entry = hooks.lookup(kind, name)
        if owner is not None:
            self._snapshot.entry(owner, name, entry)
            if hasattr(type(entry), "__set__"):
                self._descriptor(value, name, entry)
                return None
        if scope is not None:
            held = dict.get(scope, name, MISSING)
            self._snapshot.entry(scope, name, held)
            if held is not MISSING:
                self._value(name, held)
                return None
        if owner is None:
            if issubclass(kind, torch.nn.Module) and scope is not None:
                self._of_module(scope, name)
            return None
        return self._of_class(value, name, entry)

    def _value(self, name: str, value: Any) -> None:
        self._snapshot.reads(f"it reads {name}", value)

    def _later(self, name: str, value: Any) -> None:
        """Watch a value that is a problem only if its name is used."""
        if (why := self._snapshot.look(value)) is not None:
            self.deferred.setdefault(name, why)

    def _descriptor(self, value: Any, name: str, entry: Any) -> None:
        if isinstance(entry, types.MemberDescriptorType):  # a slot
            slot = functools.partial(_slot, entry, value)
            held = slot()
            self._snapshot.getter(slot, held, name)
            self._value(name, held)
        elif isinstance(entry, property):
            self._value(name, entry.fget)  # a user's function is watched as it runs
        elif isinstance(get := getattr(type(entry), "__get__", None), types.FunctionType):
            self._value(name, get)
            self._value(name, entry)
            if isinstance(entry, types.DynamicClassAttribute):
                self._value(name, entry.fget)
        elif type(entry).__name__ != "_tuplegetter":  # whose tuple itself is watched
            self._fail(f"it reads {name}, which is computed when it is read")

    def _of_class(self, value: Any, name: str, entry: Any) -> Any:
        """What the class has under a name: a method, a constant, something that makes a value."""
        kind = type(entry)
        if isinstance(entry, functools.cached_property):
            scope = self._captured[id(value)][1]

            def computed(found: Any) -> None:
                self._snapshot.replace(scope, name, found)
                self._value(name, found)

            return computed
        if isinstance(entry, types.FunctionType | staticmethod | classmethod):
            for function in functions_of(entry):
                self._value(name, function)
        elif isinstance(entry, _C_PARTS) or kind is types.BuiltinFunctionType:
            return None  # calls of it will be seen, or were on the list
        elif hasattr(kind, "__get__"):
            if isinstance(kind.__get__, _C_PARTS):
                self._fail(f"it reads {name}, which is computed when it is read")
        else:
            self._value(name, entry)
        return None

    def _of_module(self, scope: dict[str, Any], name: str) -> None:
        """Parameters, buffers and submodules, in the order in which torch looks."""
        for part in ("_parameters", "_buffers", "_modules"):
            held = scope.get(part)
            self._snapshot.entry(scope, part, MISSING if part not in scope else held)
            if held is not None:
                found = held.get(name, MISSING)
                self._snapshot.entry(held, name, found)
                if found is not MISSING:
                    self._value(name, found)
                    return


def functions_of(entry: Any) -> list[types.FunctionType]:
    """The functions behind an entry of a class."""
    if isinstance(entry, types.FunctionType):
        return [entry]
    if isinstance(entry, staticmethod | classmethod):
        return functions_of(entry.__func__)
    if isinstance(entry, property):
        return [f for part in (entry.fget, entry.fset, entry.fdel) for f in functions_of(part)]
    if isinstance(entry, functools.cached_property | functools.partialmethod):
        return functions_of(entry.func)
    return []


def _made_in_python(kind: type) -> bool:
    """Say whether a class was made by a class statement, so that it holds nothing but its attributes."""
    if type(kind) is not type and not _made_in_python(type(kind)):
        return False
    for name, entry in type.__getattribute__(kind, "__dict__").items():
        if isinstance(entry, _C_PARTS) and entry.__objclass__ is kind:
            return False
        if isinstance(entry, types.GetSetDescriptorType) and name not in _OF_ALL_CLASSES:
            return False
        if type(entry).__name__ in {"instancemethod", "nb_method", "cython_function_or_method"}:
            return False
    return True


def _slot(entry: Any, value: Any) -> Any:
    try:
        return entry.__get__(value)
    except AttributeError:
        return MISSING


def _keys_of(function: types.FunctionType) -> tuple[str, ...]:
    return tuple(function.__dict__)
