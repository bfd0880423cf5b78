"""Learns what a quantum function reads besides its arguments, and says later whether all of it is as it was.

A compiled circuit replaces the quantum function, so whatever the function read is frozen into it. The function is
watched while it runs once: which code ran, what that code names, which attributes were asked for, and which functions of
libraries were called. All of these must be on a list of what is understood (known.py, values.py); the first that is not
is the reason why the function cannot be compiled.
"""

import abc
import functools
import gc
import inspect
import logging
import sys
import types
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pennylane as qml
import torch

from fubini.compile import hooks, known
from fubini.compile.equality import ATOMS
from fubini.compile.hooks import MAKE, begin_making, end_making, readers, running, without_hooks
from fubini.compile.objects import Objects
from fubini.compile.scan import HARMLESS, Scan, Use, scan
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
        self._snapshot = Snapshot(self._other)
        self._objects = Objects(self._snapshot, self._fail)
        self._functions: dict[int, list[types.FunctionType]] = {}  # by code, not followed yet
        self._made: set[int] = set()  # code of functions that the function itself defines
        self._entered: dict[int, tuple[types.CodeType, Any]] = {}
        self._users: dict[int, bool] = {}  # globals: whether a user's
        self._scopes: list[Any] = []  # keeps them alive, as their identity is their name
        self._followed: dict[int, Any] = {}
        self._attributes: set[str] = set()
        self._gates: set[type] = set()
        self._strings: set[str] = set()
        self._escaped: dict[int, types.ModuleType] = {}
        self._names_in_strings = False  # whether an attribute is read by a string
        self._by_name = False  # whether by one that is computed
        self._runs = 0  # of code of users
        self._sets = False  # whether that may replace parts of a library
        # PennyLane's that were made: whether they draw numbers, and are its own.
        self._kinds: dict[type, tuple[bool, bool]] = {}
        # How objects were made without code of users: whether of numbers alone.
        self._understood: dict[Any, bool] = {}
        self._modes = (0, 0)
        self._default = torch.get_default_dtype()
        self._before: Any = None
        self._base: types.FrameType | None = None
        self._told: Any = None
        self._active = self._collects = False
        self._objects.on_function = self._register
        self._objects.on_library_module = self._library_value
        self._start(function)

    def _start(self, function: Any) -> None:
        why = self._snapshot.look(function)
        if why is not None:
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
        return (
            self.problem is None
            and torch.get_default_dtype() is self._default
            and self._snapshot.changed() is None
        )

    def __len__(self) -> int:
        return len(self._snapshot)

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
        readers().append(self._objects)
        self._objects.begin()
        self._modes = _modes()
        told = self._callback()
        begin_making(self, told)
        sys.setprofile(told)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._active:
            return
        self._active = False
        end_making()
        now = sys.getprofile()
        if now is self._told or (now is None and self.problem):
            sys.setprofile(None)
            if callable(self._before):
                sys.setprofile(self._before)
            elif self._before is not None:
                self._before.enable()
        else:
            self._fail("it sets a profiler")
        readers().remove(self._objects)
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
            names = self._attributes | (self._strings if self._names_in_strings else set())
            todo = list(self._escaped.values())
            while todo:
                module = todo.pop()
                known_before = set(self._escaped)
                for name in sorted(names & vars(module).keys()):
                    self._library_value(module, name, vars(module)[name], called=False)
                todo += [m for key, m in self._escaped.items() if key not in known_before]
            for name, why in self._objects.deferred.items():
                if name in names or self._by_name:
                    self._fail(f"it reads {name}, {why}")
            if self._names_in_strings:
                for text in sorted(self._strings):
                    if text.startswith("__") and text.endswith("__") and text not in HARMLESS:
                        self._fail(f"it reads {text}, through which anything may be reached")
            if self._by_name or not (self._attributes | self._strings).isdisjoint(LABELS):
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
                        self._safely(self._enter, frame)
                else:
                    back = frame.f_back
                    if back is not None and users.get(id(back.f_globals)) and back is not base:
                        known_one = _known_calls.get(id(frame.f_code))
                        if known_one is None or known_one[1] is not scope:
                            self._safely(self._calls_library, frame)
            elif event == "c_call":
                if users.get(id(frame.f_globals)) and frame is not base:
                    self._safely(self._calls_c, frame, arg)
            elif objects.armed and event != "return":
                objects.disarm()

        self._told = told
        return told

    def _safely(self, step: Any, *args: Any) -> None:
        """Nothing that goes wrong here may reach the user's function."""
        self._objects.busy = True
        try:
            step(*args)
        except Exception as error:  # noqa: BLE001 - may not reach the function
            self._fail(f"what it does is not understood ({type(error).__name__}: {error})")
        finally:
            self._objects.busy = False

    def _is_user(self, scope: dict[str, Any]) -> bool:
        self._scopes.append(scope)
        user = self._users[id(scope)] = known.home(scope) is None
        return user

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
        if first and (
            not functions and id(code) not in self._made and id(code) not in self._objects.owners
        ):
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
                if isinstance(value, types.ModuleType) and known.is_library_name(value.__name__):
                    self._library_chain(value, use)
                continue
            value = self._global(scope, builtin, use.name)
            if value is MISSING:
                continue
            if isinstance(value, types.ModuleType) and known.is_library_name(value.__name__):
                self._library_chain(value, use)
            elif isinstance(value, types.BuiltinFunctionType) and use.called and not use.chain:
                continue  # the call itself will be seen
            elif (
                isinstance(value, types.FunctionType)
                and use.called
                and not use.chain
                and known.home(value.__globals__)
                and not value.__closure__
            ):
                continue
            elif (why := self._snapshot.look(value)) is not None:
                self._fail(f"it reads {use.name}, {why}")
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
            elif (why := self._snapshot.look(module)) is not None:
                self._fail(f"it imports {each}, {why}")

    def _follow(self, function: types.FunctionType) -> None:
        """What a function has with it: code, default values, variables of functions around it."""
        if id(function) in self._followed:
            return
        self._followed[id(function)] = function
        self._snapshot.function(function)
        name = function.__name__
        for part in (function.__defaults__, function.__kwdefaults__):
            if part and (why := self._snapshot.look(part)) is not None:
                self._fail(f"it reads a default value of {name}, {why}")
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                value = cell.cell_contents
            except ValueError:
                value = MISSING
            self._snapshot.cell(cell, value, variable)
            if isinstance(value, types.ModuleType) and known.is_library_name(value.__name__):
                continue  # what is read of it is found where the code is
            if (why := self._snapshot.look(value)) is not None:
                self._fail(f"it reads {variable}, {why}")

    def _register(self, function: types.FunctionType) -> None:
        if id(function) not in self._followed:
            waiting = self._functions.setdefault(id(function.__code__), [])
            if not any(function is other for other in waiting):
                waiting.append(function)

    # -- libraries ------------------------------------------------------------------------------------------------

    def _library_chain(self, module: types.ModuleType, use: Use) -> None:
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
            if not isinstance(value, types.ModuleType) or not known.is_library_name(value.__name__):
                self._library_value(owner, name, value, called=last and use.called)
            else:
                self._snapshot.entry(vars(owner), name, value)
        if isinstance(value, types.ModuleType):
            if use.changed:
                self._fail(f"it changes {value.__name__}")
            self._escaped[id(value)] = value

    def _library_value(
        self, module: types.ModuleType, name: str, value: Any, called: bool = False
    ) -> None:
        if name in vars(module):
            self._snapshot.entry(vars(module), name, value)
        if isinstance(value, types.ModuleType) and known.is_library_name(value.__name__):
            self._escaped[id(value)] = value
            return
        if called and isinstance(value, types.BuiltinFunctionType):
            return  # the call itself will be seen
        if called and isinstance(value, types.FunctionType) and not value.__closure__:
            return
        if not known.constants_are_fixed(module.__name__) and type(value) not in ATOMS:
            self._fail(f"it uses {module.__name__}.{name}")
        elif (why := self._snapshot.look(value)) is not None:
            self._fail(f"it uses {module.__name__}.{name}, {why}")

    def _calls_library(self, frame: types.FrameType) -> None:
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
                    if (why := self._snapshot.look(hooks)) is not None:
                        self._fail(f"it calls a module with {name}, {why}")
        elif module == "logging":
            self._logs(frame)
        elif module == "abc":  # classes may be registered later
            self._snapshot.getter(abc.get_cache_token, abc.get_cache_token(), "an abstract class")
        elif module.startswith("autoray") and code.co_name == "do":
            asked = frame.f_locals.get("fn")
            if not known.known_by_name(asked):
                self._fail(f"it calls {asked}, which is not on the list")
        elif _MAKER_NAMES.isdisjoint(code.co_varnames):
            _known_calls[id(code)] = code, frame.f_globals
        else:
            kind = _made_by(frame)
            if kind is not None and _draws(kind):
                self._seeded(kind, frame.f_locals["args"], frame.f_locals["kwargs"])

    def unwatched(self, kind: type, args: Any, kwargs: Any, frame: types.FrameType) -> Any:
        """Say whether an object of a PennyLane class need not be watched while it is made.

        An object like it was made under the watch, and no code of users ran.

        Returns:
            True, or what ``made`` wants.
        """
        if frame is self._base or not self._users.get(id(frame.f_globals)) or self._sets:
            return None
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = _draws(kind), known.is_library_name(kind.__module__)
        draws, of_library = found
        if draws:
            self._safely(self._seeded, kind, args, kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        queue = type(_active_queue())
        key = (kind, queue, *map(type, values), *kwargs)
        plain = self._understood.get(key)
        if plain is not None:
            same = plain or all(map(_is_inert, values))
            return True if same and _modes() == self._modes else None
        if not (
            of_library
            and known.is_library_name(queue.__module__)
            and all(map(_is_inert, values))
            and _modes() == self._modes
        ):
            return None
        return key, self._runs, _INERT.issuperset(map(type, values))

    def made(self, token: Any) -> None:
        """Note that an object was made under the watch.

        Args:
            token: What ``unwatched`` gave.
        """
        if token is not None and token[1] == self._runs and self.problem is None:
            self._understood[token[0]] = token[2]

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

    def _seeded(self, kind: type, args: Any, kwargs: Any) -> None:
        """A template that draws its gates: the same ones only if it is given a seed."""
        args = args[1:] if args and args[0] is kind else args  # others may be tensors: no ==
        bound = inspect.signature(vars(kind)["__init__"]).bind(None, *args, **kwargs)
        bound.apply_defaults()
        if not isinstance(bound.arguments.get("seed"), int):
            self._fail(f"it draws the gates of {kind.__name__} without a seed")

    def _calls_c(self, frame: types.FrameType, function: Any) -> None:
        if not known.known_c(function):
            self._fail(f"it calls {known.shown(function)}")
        elif function.__name__ in _BY_NAME and function.__self__ is _BUILTINS:
            self._names_in_strings = True
            if frame.f_lasti not in scan(frame.f_code).by_constant:
                self._by_name = True
            self._objects.arm(list(self._escaped.values()))

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
            self._escaped[id(value)] = value
            return None
        if issubclass(kind, type):
            if known.is_library_name(value.__module__):
                if issubclass(value, qml.operation.Operator):
                    self._gate(value)
                return (
                    None
                    if known.known_type(value)
                    else f"{known.shown(value)}, which is not on the list"
                )
            return self._objects.reach_class(value)
        if issubclass(kind, types.BuiltinFunctionType | types.MethodDescriptorType):
            if not known.known_c(value):
                return f"the function {known.shown(value)}, which is not on the list"
            this = getattr(value, "__self__", None)
            return (
                None
                if this is None or isinstance(this, types.ModuleType | type)
                else self._snapshot.look(this)
            )
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
        own = value.__dict__
        self._objects.attributes_of_function(value, own)
        return None


def _made_by(frame: types.FrameType) -> type | None:
    """The class of PennyLane whose object a call makes; None if it is another call."""
    kind = frame.f_locals.get("cls")
    if kind is None:
        kind = next(iter(frame.f_locals.get("args") or (None,)), None)
    return kind if type(kind) is not type and isinstance(kind, type) else None


def _draws(kind: type) -> bool:
    """Whether a class of PennyLane draws numbers unless it is given a seed."""
    return not known.SEEDED.isdisjoint(c.__name__ for c in kind.__mro__)


def _modes() -> tuple[int, int]:
    """How many modes of torch, which see what is done with tensors, are in force."""
    return _function_modes(), _dispatch_modes()


_function_modes, _dispatch_modes = (
    torch._C._len_torch_function_stack,
    torch._C._len_torch_dispatch_stack,
)
_active_queue = qml.QueuingManager.active_context


def _is_inert(value: Any) -> bool:
    """Whether nothing that is done with a value runs code of users."""
    kind = type(value)
    if kind in (list, tuple):
        return all(map(_is_inert, value))
    return kind in _INERT or (kind is np.ndarray and value.dtype.kind in "bifc")


_INERT = frozenset(
    {int, float, complex, bool, str, type(None), range, torch.Tensor, torch.nn.Parameter, np.float64, np.float32,
     np.int64, np.bool_}
)  # fmt: skip
# Python functions of libraries that may be called whatever they are given, by code, with their globals: in all watches.
_known_calls: dict[int, tuple[types.CodeType, Any]] = {id(MAKE): (MAKE, vars(hooks))}
# Where a function has the class that it makes an object of.
_MAKER_NAMES = frozenset({"cls", "args"})

# What a class of PennyLane makes a gate of, and takes it apart into.
_MAKING = ("__new__", "__init__", "compute_decomposition", "decomposition")
_BUILTINS = sys.modules["builtins"]
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
