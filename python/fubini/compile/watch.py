"""Learns what a quantum function reads besides its arguments, and says later whether all of it is as it was.

A compiled circuit replaces the quantum function, so whatever the function read is frozen into it. The function is
watched while it runs once: which code ran, what that code names, which attributes were asked for, and which functions of
libraries were called. All of these must be on a list of what is understood (known.py, values.py); the first that is not
is the reason why the function cannot be compiled.
"""

import gc
import inspect
import sys
import types
from collections.abc import Iterable
from typing import Any, Self

import pennylane as qml
import torch

from fubini.compile import known
from fubini.compile.hooks import begin_making, end_making, running, without_hooks
from fubini.compile.libraries import Libraries, known_calls
from fubini.compile.making import Making
from fubini.compile.objects import Objects
from fubini.compile.scan import HARMLESS, Scan, scan
from fubini.compile.snapshot import LABELS, MISSING, Snapshot


class Watch:
    """What a quantum function reads.

    ``with`` it, the function runs on the caller's own numbers; the block may be entered again for more that belongs to
    the same circuit, such as users' decompositions of gates.

    Args:
        function: The quantum function: a function, a method, a partial, an object that can be called.

    Attributes:
        problem: Why the function cannot be compiled, in words; None if it can.
    """

    def __init__(self, function: Any) -> None:
        self.problem: str | None = None
        self._snapshot = Snapshot(self._other, self._fail)
        self._objects = Objects(self._snapshot, self._fail)
        self._libraries = Libraries(self._snapshot, self._objects, self._fail)
        self._making = Making()
        self._functions: dict[int, list[types.FunctionType]] = {}  # by code, not followed yet
        self._made: set[int] = set()  # code of functions that the function itself defines
        self._entered: dict[int, tuple[types.CodeType, Any]] = {}
        self._users: dict[int, bool] = {}  # globals: whether a user's
        self._scopes: list[Any] = []  # keeps them alive, as their identity is their name
        self._followed: dict[int, Any] = {}
        self._attributes: set[str] = set()
        self._gates: set[type] = set()
        self._strings: set[str] = set()
        self._runs = 0  # of code of users
        self._sets = False  # whether that may replace parts of a library
        self._default = torch.get_default_dtype()
        self._before: Any = None
        self._base: types.FrameType | None = None
        self._told: Any = None
        self._active = self._collects = False
        self._objects.on_function = self._register
        self._objects.on_library_module = self._libraries.value
        if (why := self._snapshot.look(function)) is not None:
            self._fail(f"it is {why}")

    def also(self, value: Any, name: str) -> None:
        """Watch what belongs to the same circuit besides the function, such as a user's transform and its arguments.

        Args:
            value: The transform, or what it was given.
            name: What it is, for ``problem``.
        """
        if (why := self._snapshot.look(value)) is not None:
            self._fail(f"{name} is {why}")
        self._snapshot.seal()

    def gates(self, operations: Iterable[Any]) -> None:
        """Watch what PennyLane's classes make of the gates of a circuit, which users may replace.

        Args:
            operations: The gates, before or after they are taken apart.
        """
        for kind in {type(op) for op in operations}:
            self._gate(kind)
        self._snapshot.seal()

    def _gate(self, kind: type) -> None:
        if kind not in self._gates and known.is_library_name(kind.__module__):
            self._gates.add(kind)
            scope = vars(kind)
            for name in _MAKING:
                self._snapshot.entry(scope, name, scope.get(name, MISSING))

    def holds(self) -> bool:
        """Say whether everything that was read is as it was; False where there is a problem."""
        same = self.problem is None and torch.get_default_dtype() is self._default
        return same and self._snapshot.changed() is None

    # -- the run --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._base = sys._getframe(1)
        self._before = sys.getprofile()
        if self._before is not None and not callable(self._before):
            if not hasattr(self._before, "disable"):
                self._fail("a profiler that cannot be interrupted is running")
                return self
            self._before.disable()
        # What is collected by chance is no part of the function, nor are those who are told of it.
        self._collects = gc.isenabled()
        gc.disable()
        self._active = True
        running.readers.append(self._objects)
        self._objects.begin()
        self._making.begin()
        told = self._callback()
        self._maker = begin_making(self, told)
        sys.setprofile(told)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._active:
            return
        self._active = False
        end_making(self._maker)
        now = sys.getprofile()
        if now is self._told or (now is None and self.problem):
            sys.setprofile(None)
            if callable(self._before):
                sys.setprofile(self._before)
            elif self._before is not None:
                self._before.enable()
        else:
            self._fail("it sets a profiler")
        running.readers.remove(self._objects)
        self._objects.end()
        if self._collects:
            gc.enable()
        self._before = self._base = self._told = None
        if error is not None:
            without_hooks(error)
            self._fail(f"it raised {type(error).__name__}")
        self._finish()

    def _finish(self) -> None:
        """What can only be said when all that ran is known."""
        try:
            libraries = self._libraries
            names = self._attributes | (self._strings if libraries.by_string else set())
            libraries.finish(names)
            for name, why in self._objects.deferred.items():
                if name in names or libraries.by_name:
                    self._fail(f"it reads {name}, {why}")
            if libraries.by_string:
                for text in sorted(self._strings):
                    if text.startswith("__") and text.endswith("__") and text not in HARMLESS:
                        self._fail(f"it reads {text}, through which anything may be reached")
            if libraries.by_name or not (self._attributes | self._strings).isdisjoint(LABELS):
                self._snapshot.labels(self._objects.classes)
            self._snapshot.seal()
            changed = self._snapshot.changed()
        except Exception as error:  # noqa: BLE001 - may not reach the function
            self._fail(f"what it reads cannot be compared ({type(error).__name__}: {error})")
            return
        if changed is not None:
            self._fail(f"it changes {changed}, which it also reads")

    def _callback(self) -> Any:
        users, base, objects = self._users, self._base, self._objects
        entered, functions, nothing = self._entered, self._functions, (None, None)
        classify = self._is_user

        def told(frame: types.FrameType, event: str, arg: Any) -> None:
            if self.problem is not None:  # nothing more is to be learnt
                objects.disarm()
                sys.setprofile(None)
            elif event == "call":
                scope = frame.f_globals
                user = users.get(id(scope))
                if user is None:
                    user = classify(scope)
                if user:
                    self._runs += 1
                    key = id(frame.f_code)
                    if entered.get(key, nothing)[1] is not scope or key in functions:
                        objects.safely(_DOES, self._enter, frame)
                else:
                    back = frame.f_back
                    if back is not None and users.get(id(back.f_globals)) and back is not base:
                        known_one = known_calls.get(id(frame.f_code))
                        if known_one is None or known_one[1] is not scope:
                            objects.safely(_DOES, self._libraries.calls, frame)
            elif event == "c_call":
                if users.get(id(frame.f_globals)) and frame is not base:
                    objects.safely(_DOES, self._libraries.calls_c, frame, arg)
            elif objects.armed and event != "return":
                objects.disarm()

        self._told = told
        return told

    def _is_user(self, scope: dict[str, Any]) -> bool:
        self._scopes.append(scope)
        return self._users.setdefault(id(scope), known.home(scope) is None)

    def _fail(self, why: str) -> None:
        self.problem = self.problem or why
        if running.maker is self:
            running.told = None  # nothing more is to be learnt

    # -- code of users --------------------------------------------------------------------------------------------

    def _enter(self, frame: types.FrameType) -> None:
        code = frame.f_code
        first = id(code) not in self._entered
        self._entered[id(code)] = (code, frame.f_globals)
        functions = self._functions.pop(id(code), [])
        known_code = functions or id(code) in self._made or id(code) in self._objects.owners
        if first and not known_code:
            back = frame.f_back
            scope = sys.modules.get(str(frame.f_globals.get("__name__")))
            made_by_library = scope is None and back is not None and known.home(back.f_globals)
            if made_by_library:  # code that a library writes for itself
                self._users[id(frame.f_globals)] = False
                return
            self._fail(f"it calls {code.co_qualname}, and where that comes from is not understood")
        for function in functions:
            self._follow(function)
        self._objects.ran(code)
        if first:
            names = scan(code)
            self._sets |= names.sets
            if names.problem:
                self._fail(names.problem)
            self._made.update(map(id, names.made))
            self._attributes |= names.attributes
            self._strings |= names.strings
        self._uses(frame, scan(code))

    def _uses(self, frame: types.FrameType, names: Scan) -> None:
        scope, builtin = frame.f_globals, frame.f_builtins
        for name in names.written:
            self._global(scope, builtin, name)
        for use in names.uses:
            if use.free:
                value = frame.f_locals.get(use.name, MISSING)
            else:
                value = self._global(scope, builtin, use.name)
            if known.is_library(value):
                self._libraries.chain(value, use)
            elif not (use.free or (not use.chain and known.is_told_of(value, use.called))):
                self._snapshot.reads(f"it reads {use.name}", value)
        for name, parts, level in names.imports:
            self._import(frame, name, parts, level)

    def _global(self, scope: dict[str, Any], builtin: dict[str, Any], name: str) -> Any:
        value = scope.get(name, MISSING)
        self._snapshot.entry(scope, name, value)
        if value is MISSING:
            value = builtin.get(name, MISSING)
            self._snapshot.entry(builtin, name, value)
        return value

    def _import(
        self, frame: types.FrameType, name: str, parts: tuple[str, ...], level: int
    ) -> None:
        if level:
            package = str(frame.f_globals.get("__package__") or "")
            above = package.rsplit(".", level - 1)[0] if level > 1 else package
            name = f"{above}.{name}" if name else above
        pieces = name.split(".")
        whole = [".".join(pieces[: k + 1]) for k in range(len(pieces))]
        whole += [f"{name}.{part}" for part in parts if f"{name}.{part}" in sys.modules]
        for each in whole:
            module = sys.modules.get(each, MISSING)
            self._snapshot.entry(sys.modules, each, module)
            if module is MISSING:
                self._fail(f"it imports {each} for the first time")
            self._snapshot.reads(f"it imports {each}", module)

    def _follow(self, function: types.FunctionType) -> None:
        """What a function has with it: code, default values, variables of functions around it."""
        if id(function) in self._followed:
            return
        self._followed[id(function)] = function
        self._snapshot.function(function)
        name = function.__name__
        for part in (function.__defaults__, function.__kwdefaults__):
            self._snapshot.reads(f"it reads a default value of {name}", part)
        cells = function.__closure__ or ()
        for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                value = MISSING
            self._snapshot.cell(cell, value, variable)
            if not known.is_library(value):  # what is read of those is found where the code is
                self._snapshot.reads(f"it reads {variable}", value)

    def _register(self, function: types.FunctionType) -> None:
        if id(function) not in self._followed:
            waiting = self._functions.setdefault(id(function.__code__), [])
            if not any(function is other for other in waiting):
                waiting.append(function)

    # -- libraries ------------------------------------------------------------------------------------------------

    def unwatched(self, kind: type, args: Any, kwargs: Any, frame: types.FrameType) -> Any:
        """Say whether an object of a PennyLane class need not be watched while it is made: True, or what ``made`` wants."""
        if self._making.draws(kind):  # whoever makes it: qml.adjoint and qml.ctrl do so too
            self._objects.safely(_DOES, self._libraries.seeded, kind, args, kwargs)
        if frame is self._base or not self._users.get(id(frame.f_globals)) or self._sets:
            return None
        return self._making.token(kind, args, kwargs, self._runs)

    def made(self, token: Any) -> None:
        """Note that an object was made under the watch, see ``unwatched``."""
        if self.problem is None:
            self._making.made(token, self._runs)

    # -- values that are no plain data ----------------------------------------------------------------------------

    def _other(self, value: Any) -> str | None:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self._function_value(value)
        if kind is types.MethodType:
            return self._snapshot.look(value.__self__) or self._snapshot.look(value.__func__)
        if issubclass(kind, types.ModuleType):
            if not known.is_library_name(value.__name__):
                return self._objects.reach_module(value)
            self._libraries.escaped[id(value)] = value
            return None
        if issubclass(kind, type):
            if known.is_library_name(value.__module__):
                if issubclass(value, qml.operation.Operator):
                    self._gate(value)
                listed = known.known_type(value)
                return None if listed else f"{known.shown(value)}, which is not on the list"
            return self._objects.reach_class(value)
        if issubclass(kind, types.BuiltinFunctionType | types.MethodDescriptorType):
            if not known.known_c(value):
                return f"the function {known.shown(value)}, which is not on the list"
            this = getattr(value, "__self__", None)
            plain = this is None or isinstance(this, types.ModuleType | type)
            return None if plain else self._snapshot.look(this)
        if known.known_callable(value):
            return None
        return self._objects.reach(value)

    def _function_value(self, value: types.FunctionType) -> str | None:
        module = known.home(value.__globals__)
        if module is None:
            self._register(value)
        elif known.known_dispatch(
            value.__code__, inspect.getclosurevars(value).nonlocals.get("dispatch")
        ):
            return None
        elif not known.known_code(module, value.__code__):
            return f"the function {known.shown(value)}, which is not on the list"
        elif value.__closure__:
            self._follow(value)
        self._objects.attributes_of_function(value, value.__dict__)
        return None


_DOES = "what it does is"
# What a class of PennyLane makes a gate of, and takes it apart into.
_MAKING = ("__new__", "__init__", "compute_decomposition", "decomposition")
