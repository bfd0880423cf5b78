"""Notices when Python values that a quantum function captured have changed since its circuit was compiled.

A compiled circuit replaces the quantum function, so whatever the function reads besides its arguments is frozen into
it: closure cells, globals that it names, attributes of objects that it reaches. Each is remembered and compared before
the circuit is used: plain values by value, arrays and tensors by content, functions by what they capture themselves,
everything else by identity. What can change unseen makes the function unguardable.
"""

import builtins
import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

_PLAIN = (
    int,
    float,
    complex,
    str,
    bytes,
    bool,
    type(None),
    range,
    slice,
    type(...),
    type(NotImplemented),
)
_MAX_ELEMENTS = (
    100_000  # content of larger arrays would cost more to compare than the circuit to run
)
_MAX_DEPTH = 6
# Names whose values differ from call to call, where a library of arrays has them; and those of modules and methods.
_RANDOM_MODULES = {"random", "secrets", "time", "datetime", "uuid"}
_RANDOM_NAMES = {
    "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "normal", "uniform", "poisson",
    "multinomial", "bernoulli", "binomial", "permutation", "default_rng", "choice", "shuffle", "now", "perf_counter",
    "dropout", "alpha_dropout", "feature_dropout",
}  # fmt: skip
_RANDOM_METHODS = {
    "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_",
}  # fmt: skip
_RANDOM_LIBRARIES = {"numpy", "torch", "pennylane"}
# Methods that run when an object is made, copied or changed: they tell nothing about reading it.
_NOT_READ = {
    "__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__", "__setattr__",
    "__delattr__", "__setitem__", "__delitem__", "__del__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__",
}  # fmt: skip

# Ways to reach values that no name in the code tells, or that belong to the caller's situation.
_OPAQUE_NAMES = {
    "Parameter", "getattr", "globals", "locals", "vars", "eval", "exec", "__import__", "__dict__", "environ", "getenv", "open", "input",
    "is_grad_enabled", "is_inference_mode_enabled", "get_default_dtype", "is_autocast_enabled", "import_module", "modules",
}  # fmt: skip
# Libraries whose attributes do not change while a program runs.
_STABLE_MODULES = {
    "pennylane", "torch", "numpy", "math", "cmath", "scipy", "functools", "itertools", "operator", "typing", "collections",
    "jax", "autograd", "builtins", "fubini",
}  # fmt: skip

# Modules of the standard library whose decorators read nothing but what they decorate.
_DECORATORS = {"dataclasses", "reprlib", "contextlib"}
_OF_EVERY_CLASS = {
    "__class__",
    "__name__",
    "__qualname__",
    "__module__",
    "__bases__",
    "__mro__",
    "__doc__",
}

Check = Callable[[], bool]


class Guard:
    """What a function captures.

    Args:
        function: The quantum function.

    Attributes:
        problem: Why the function cannot be guarded, in words; None if it can.
    """

    def __init__(self, function: Any) -> None:
        self.problem: str | None = None
        self._checks: list[Check] = []
        self._seen: set[Any] = set()
        # Attribute names in the code of any function that is reached: an object may be handed from one to another, so
        # all of them are watched on every object.
        self._names: frozenset[str] = frozenset()
        self._found: set[str] = set()
        while True:
            self._watch_function(function, 0)
            if self._found <= self._names:
                break
            self._names = frozenset(self._found)
            self.problem, self._checks, self._seen = None, [], set()

    def holds(self) -> bool:
        """Say whether everything is as it was."""
        for check in self._checks:  # noqa: SIM110 - in every call of a layer: a generator takes twice as long
            if not check():
                return False
        return True

    def __len__(self) -> int:
        return len(self._checks)

    # -- collection ---------------------------------------------------------------------------------------------

    def _fail(self, name: str, why: str) -> None:
        self.problem = self.problem or f"it uses {name}, {why}"

    def _watch_function(self, function: Any, depth: int) -> None:
        home = str(getattr(function, "__globals__", {}).get("__name__", ""))
        if hasattr(function, "__wrapped__") and (_stable(home) or home in _DECORATORS):
            function = function.__wrapped__
        if isinstance(function, functools.partial):
            for part in ("func", "args", "keywords"):
                get = functools.partial(getattr, function, part)
                self._watch_value(f"{part} of a partial", get(), get, depth)
            return
        if isinstance(function, types.MethodType):
            self._watch_object("self", function.__self__, depth)
            function = function.__func__
        if isinstance(function, types.BuiltinFunctionType | type) or id(function) in self._seen:
            return
        if not isinstance(
            function, types.FunctionType
        ):  # an object with __call__, or a wrapper such as a cache
            if hasattr(function, "__dict__") and not _stable(type(function).__module__):
                self._watch_object("the function", function, depth)
            else:
                self._fail("the function", f"a {type(function).__name__}, which may change unseen")
            return
        self._seen.add(id(function))
        if depth > _MAX_DEPTH:
            self._fail(function.__name__, "too deep a chain of functions to follow")
            return
        code = function.__code__
        self._checks.append(lambda: function.__code__ is code)
        names = _names(code)
        self._found |= names
        opaque, random = names & _OPAQUE_NAMES, names & _RANDOM_METHODS
        if opaque:
            self._fail(min(opaque), "through which anything may be read")
        if random:
            self._fail(min(random), "whose values differ from call to call")
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME" and not _stable(str(instruction.argval)):
                self._fail(f"import {instruction.argval}", "whose values may change")
        for name in sorted(names & set(vars(function))):  # attributes of the function itself
            get = functools.partial(getattr, function, name)
            self._watch_value(f"{function.__name__}.{name}", get(), get, depth + 1)
        for name in ("__defaults__", "__kwdefaults__"):
            get = functools.partial(getattr, function, name)
            self._watch_value("default values", get(), get, depth)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                self._fail(name, "which has no value yet")
                continue
            self._watch_value(name, value, functools.partial(getattr, cell, "cell_contents"), depth)
        builtin = vars(builtins)
        for name in sorted(names):
            # A name of an attribute may be among them; watching a global of that name as well does no harm.
            if name in function.__globals__ or name in builtin:
                get = functools.partial(_global, function.__globals__, builtin, name)
                self._watch_value(name, get(), get, depth)

    def _watch_value(self, name: str, value: Any, get: Callable[[], Any], depth: int) -> None:
        if isinstance(value, types.ModuleType):
            self._watch_module(name, value, get, depth)
        elif isinstance(value, _PLAIN):
            self._checks.append(
                lambda: type(now := get()) is type(value) and _same_plain(now, value)
            )
            self._watch_subclass(name, value, depth)
        elif isinstance(value, torch.Tensor):
            self._watch_tensor(name, value, get)
        elif isinstance(value, np.ndarray | np.generic):
            self._watch_array(name, value, get)
            self._watch_subclass(name, value, depth)
        elif isinstance(value, tuple | list | set | frozenset | dict):
            self._watch_container(name, value, get, depth)
            self._watch_subclass(name, value, depth)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self._checks.append(lambda: get() is value or get() == value)
            partial = isinstance(value, functools.partial)
            if partial or not _stable(getattr(value, "__module__", None) or ""):
                self._watch_function(value, depth + 1)
            elif getattr(value, "__name__", "") in _RANDOM_NAMES:
                self._fail(name, "whose values differ from call to call")
        elif isinstance(value, qml.operation.Operator):
            self._checks.append(lambda: get() is value)
            for k, parameter in enumerate(value.data):
                self._watch_value(f"{name}.data[{k}]", parameter, _parameter(get, k), depth + 1)
        elif isinstance(value, types.BuiltinFunctionType):
            self._checks.append(lambda: get() is value)
            home = getattr(value, "__module__", None) or type(value.__self__).__module__
            if value.__name__ in _RANDOM_NAMES or not _stable(home):
                self._fail(name, "whose values may differ from call to call")
        elif isinstance(value, qml.wires.Wires | qml.devices.Device | np.ufunc | np.dtype):
            self._checks.append(lambda: get() is value)
        elif isinstance(value, torch.dtype | torch.device):
            self._checks.append(lambda: get() == value)
        elif isinstance(value, type) and _stable(value.__module__):
            self._checks.append(lambda: get() is value)
        elif isinstance(value, type) and _stable(type(value).__module__):
            self._checks.append(lambda: get() is value)
            self._watch_object(name, value, depth, handed_out=True)
        elif _stable(type(value).__module__) or not (
            isinstance(value, type) or hasattr(value, "__dict__")
        ):
            # Objects of libraries and of compiled extensions may change inside.
            self._fail(name, f"a {type(value).__name__}, which may change unseen")
        else:
            self._checks.append(lambda: get() is value)
            self._watch_object(name, value, depth, handed_out=True)

    def _watch_module(
        self, name: str, value: types.ModuleType, get: Callable[[], Any], depth: int
    ) -> None:
        root = value.__name__.split(".")[0]
        random = root in _RANDOM_MODULES or value.__name__.endswith(".random")
        if (
            root == "pennylane" and not {"numpy", "random"} <= self._names
        ):  # it has its own numpy.random
            root = ""
        if random or (self._names & _RANDOM_NAMES and root in _RANDOM_LIBRARIES):
            self._fail(name, "whose values differ from call to call")
        self._checks.append(lambda: get() is value)
        if not _stable(value.__name__):
            self._watch_object(name, value, depth)
            return
        for attribute in sorted(
            self._names & set(vars(value))
        ):  # constants that somebody put there
            if isinstance(vars(value)[attribute], _PLAIN):
                found = functools.partial(getattr, value, attribute)
                self._watch_value(f"{name}.{attribute}", found(), found, depth)

    def _watch_subclass(self, name: str, value: Any, depth: int) -> None:
        """What a user's subclass of a plain type, an array or a container has besides its content."""
        if hasattr(value, "__dict__") and not _stable(type(value).__module__):
            self._watch_object(name, value, depth)

    def _watch_tensor(self, name: str, value: torch.Tensor, get: Callable[[], Any]) -> None:
        if value.requires_grad:
            self._fail(
                name,
                "a tensor that requires grad but is no argument, so its gradient would be lost",
            )
        elif value.numel() > _MAX_ELEMENTS:
            self._fail(name, f"a tensor of more than {_MAX_ELEMENTS} elements")
        else:
            copy = value.detach().clone()
            self._checks.append(
                lambda: isinstance(now := get(), torch.Tensor) and _same_tensor(now, copy)
            )

    def _watch_array(self, name: str, value: Any, get: Callable[[], Any]) -> None:
        if value.size > _MAX_ELEMENTS or value.dtype.hasobject:
            self._fail(name, f"an array of objects or of more than {_MAX_ELEMENTS} elements")
        else:
            copy = np.array(value)
            self._checks.append(
                lambda: (
                    isinstance(now := get(), np.ndarray | np.generic)
                    and now.dtype == copy.dtype
                    and np.array_equal(now, copy, equal_nan=copy.dtype.kind in "fc")
                )
            )

    def _watch_container(self, name: str, value: Any, get: Callable[[], Any], depth: int) -> None:
        if depth > _MAX_DEPTH or len(value) > 1000:
            self._fail(name, "a container too large or too deep to compare")
            return
        kind, size = type(value), len(value)
        self._checks.append(lambda: type(now := get()) is kind and len(now) == size)
        if isinstance(value, set | frozenset):
            if not all(isinstance(v, _PLAIN) for v in value):
                self._fail(name, "a set of objects")
            copy = frozenset(value)
            self._checks.append(lambda: frozenset(get()) == copy)
            return
        keys = list(value) if isinstance(value, dict) else list(range(size))
        if isinstance(value, dict):
            self._checks.append(lambda: list(get()) == keys)
        for key in keys:
            self._watch_value(f"{name}[{key!r}]", value[key], _entry(get, key), depth + 1)

    def _watch_object(self, name: str, value: Any, depth: int, handed_out: bool = False) -> None:
        """Attributes that the code names; an object that computes them on access cannot be followed.

        An object that is handed out to a library may have any of its methods called there: a module its ``forward``,
        an operator its decomposition.
        """
        if depth > _MAX_DEPTH or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if (
            not isinstance(value, type | types.ModuleType)
            and any(
                hasattr(type(value), hook)
                and getattr(type(value), hook) is not getattr(object, hook, None)
                for hook in ("__getattr__", "__getattribute__")
            )
            and not isinstance(value, torch.nn.Module)
        ):
            self._fail(name, "an object that computes its attributes")
        for attribute in sorted(self._names | _implicit_methods(value, handed_out)):
            if attribute == "__class__" and not isinstance(value, type):
                kind = functools.partial(type, value)
                self._watch_value(f"{name}.__class__", kind(), kind, depth)
                continue
            if isinstance(value, type) and attribute in _OF_EVERY_CLASS:
                continue
            found = inspect.getattr_static(value, attribute, None)
            computed = hasattr(type(found), "__get__") and not callable(found)
            computed = computed and not isinstance(
                found, staticmethod | classmethod | types.MemberDescriptorType
            )
            if isinstance(found, property) or (found is not None and computed):
                self._fail(f"{name}.{attribute}", "which is computed when it is read")
            elif isinstance(found, staticmethod | classmethod | types.FunctionType):
                self._checks.append(functools.partial(_still, value, attribute, found))
                for function in (found, *_inherited(value, attribute)):
                    function = getattr(function, "__func__", function)
                    if not _stable(getattr(function, "__module__", None) or ""):
                        self._watch_function(function, depth + 1)
            elif attribute != "__call__" and hasattr(value, attribute):
                get = functools.partial(getattr, value, attribute)
                self._watch_value(f"{name}.{attribute}", get(), get, depth + 1)


def _implicit_methods(value: Any, handed_out: bool) -> set[str]:
    """Methods of users' classes that run without being named: operators, built-in functions and libraries call them."""
    if isinstance(value, types.ModuleType):
        return set()
    kind = value if isinstance(value, type) else type(value)
    own = [base for base in kind.__mro__ if not _stable(base.__module__)]
    names = {
        n for base in own for n in vars(base) if callable(inspect.getattr_static(kind, n, None))
    }
    special = {n for n in names if n.startswith("__") and n.endswith("__")}
    found = special - _NOT_READ | {"__call__"}
    if isinstance(value, type):
        found |= special & {"__init__", "__new__", "__post_init__"}
    if handed_out and any(
        _stable(base.__module__) for base in kind.__mro__ if base.__module__ != "builtins"
    ):
        found |= names - special
    return found


def _inherited(value: Any, attribute: str) -> list[Any]:
    """The methods of that name in all base classes, for super()."""
    bases = value.__mro__ if isinstance(value, type) else type(value).__mro__
    found = [vars(base).get(attribute) for base in bases if not _stable(base.__module__)]
    return [f for f in found if isinstance(f, staticmethod | classmethod | types.FunctionType)]


def _still(value: Any, attribute: str, found: Any) -> bool:
    return inspect.getattr_static(value, attribute, None) is found


def _global(values: dict[str, Any], builtin: dict[str, Any], name: str) -> Any:
    return values[name] if name in values else builtin.get(name)


def _same_plain(a: Any, b: Any) -> bool:
    """Equal, with NaN equal to itself and 0.0 unequal to -0.0."""
    if isinstance(a, float | complex):
        return repr(a) == repr(b)
    return bool(a == b)


def _parameter(get: Callable[[], Any], k: int) -> Callable[[], Any]:
    return lambda: get().data[k]


def _stable(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in _STABLE_MODULES


def _entry(get: Callable[[], Any], key: Any) -> Callable[[], Any]:
    return lambda: get()[key]


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and not a.requires_grad and torch.equal(a, b)


def _names(code: types.CodeType) -> frozenset[str]:
    """Global and attribute names in a function and in the functions and comprehensions defined inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return frozenset(names)
