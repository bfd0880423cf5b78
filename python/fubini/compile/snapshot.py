"""Copies of values that a quantum function read, and whether they are still what they were.

Values of a closed list of types are understood: what cannot change is compared by identity, containers by what they hold,
arrays and tensors by content, operators by what they are made of.
"""

import array
import collections
import ctypes
import functools
import inspect
import itertools
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.torch_names import words
from fubini.compile import known
from fubini.compile.equality import (
    ATOMS,
    bytes_of,
    flat,
    items_of,
    mapping_of,
    metadata,
    parts_of_partial,
    parts_of_sparse,
    same,
    same_content,
)

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()
_MAX_ELEMENTS = 100_000  # content of larger arrays costs more to compare than a circuit to run
_MAX_ITEMS = 10_000
_MAX_DEPTH = 12
_MAX_NODES = 16  # operators with more parts are watched by their numbers alone


# What any code may read of a function, a class or a module where nothing tells of it.
LABELS = ("__name__", "__qualname__", "__module__", "__doc__")


def _labels(value: Any) -> tuple[Any, ...]:
    if isinstance(value, types.ModuleType):
        return tuple(map(vars(value).get, LABELS))
    if isinstance(value, type):
        return tuple(type.__getattribute__(value, name) for name in LABELS)
    return tuple(getattr(value, name) for name in LABELS)


_DATA_PTR: Any = torch.Tensor.data_ptr
_REQUIRES_GRAD: Any = operator.attrgetter("requires_grad")
_MRO: Any = type.__dict__["__mro__"].__get__
_DTYPE: Any = operator.attrgetter("dtype")
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_OPERATOR_PARTS = words(
    "data _data operands _operands _coeffs _ops _hyperparameters _wires scalar base obs _name coeffs ops mv"
)
_OPERATOR_TREE = frozenset(
    words("data _data operands _coeffs _ops _hyperparameters scalar base obs _eigvals")
)
_PAULIS = (qml.X, qml.Y, qml.Z, qml.I)  # have nothing but wires
Look = Callable[[Any], "str | None"]


class Snapshot:
    """What was read, as it was.

    Args:
        other: Understands values that are no plain data, such as functions, modules and objects: says None, or why not.
        fail: Told of what is not understood.
    """

    def __init__(self, other: Look, fail: Callable[[str], None]) -> None:
        self._other, self._fail = other, fail
        self._seen: dict[int, Any] = {}
        self._labelled: set[int] = set()
        self._depth = 0
        self._entries: dict[int, tuple[Any, list[str], list[Any]]] = {}
        self._cells: list[tuple[Any, Any, str]] = []
        self._sequences: list[tuple[Any, tuple[Any, ...]]] = []
        self._mappings: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self._kinds: list[tuple[Any, type, Any]] = []
        self._keys: list[tuple[type, Any, Any, tuple[str, ...]]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._arrays: list[tuple[Any, Any, Any, bytes]] = []
        self._tensors: list[tuple[torch.Tensor, tuple[Any, ...], Any]] = []
        # Numbers that are arrays or tensors of their own, as an operator may have in thousands, are compared together.
        self._numbers: list[Any] = []
        self._scalars: list[torch.Tensor] = []
        self._digits: list[bytes] = []
        self._scalar_parts: list[tuple[int, bytes, torch.dtype]] = []
        self._getters: list[tuple[Callable[[], Any], Any, str]] = []
        self._ready: Any = None

    # -- what is watched ------------------------------------------------------------------------------------------

    def entry(self, scope: Mapping[str, Any], name: str, value: Any) -> None:
        """An entry of a dictionary of names, or its absence."""
        _, names, values = self._entries.setdefault(id(scope), (scope, [], []))
        if name not in names:
            names.append(name)
            values.append(value)

    def cell(self, cell: Any, value: Any, name: str) -> None:
        """A variable of a function around the quantum function."""
        self._cells.append((cell, value, name))

    def kind(self, value: Any, scope: Any) -> None:
        """The class of an object and the identity of its dictionary."""
        self._kinds.append((value, type(value), scope))

    def replace(self, scope: Mapping[str, Any], name: str, value: Any) -> None:
        """An entry that came to be while the function ran."""
        _, names, values = self._entries[id(scope)]
        values[names.index(name)] = value

    def keys(self, kind: type, scope: Mapping[str, Any], names: tuple[str, ...]) -> None:
        """Which names a class has, and which bases."""
        self._keys.append((kind, _MRO(kind), scope, names))

    def function(self, function: types.FunctionType) -> None:
        """A function's code and default values."""
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__)
        self._functions.append((function, *parts))

    def getter(self, get: Callable[[], Any], value: Any, name: str) -> None:
        """What a call without side effects gives."""
        self._getters.append((get, value, name))

    def labels(self, others: Iterable[type]) -> None:
        """The names and descriptions of all functions, classes and modules met so far."""
        kinds = types.FunctionType | type | types.ModuleType
        for value in [*(v for v in self._seen.values() if isinstance(v, kinds)), *others]:
            if id(value) not in self._labelled:
                self._labelled.add(id(value))
                self.getter(functools.partial(_labels, value), _labels(value), "a name")

    def look(self, value: Any) -> str | None:
        """Watch what may change inside a value; None, or what it is, and why it is not understood."""
        kind = type(value)
        if kind in ATOMS or id(value) in self._seen or value is MISSING:
            return None
        if issubclass(kind, np.generic | np.dtype):
            return "a structured scalar" if issubclass(kind, np.void) else None
        if issubclass(kind, BaseException):
            return f"a {kind.__name__}, which may change unseen"
        if self._depth > _MAX_DEPTH:
            return "values nested too deeply to compare"
        self._seen[id(value)] = value
        self._depth += 1
        try:
            why = self._look(value, kind)
        finally:
            self._depth -= 1
        if why is not None:
            del self._seen[id(value)]
        return why

    def reads(self, what: str, value: Any) -> None:
        """Watch a value; one that is not understood is a reason why the function cannot be compiled, with what it does."""
        if (why := self.look(value)) is not None:
            self._fail(f"{what}, {why}")

    def _first(self, values: Iterable[Any]) -> str | None:
        return next((why for v in values if (why := self.look(v)) is not None), None)

    def content(self, value: Any) -> str | None:
        """Watch what a container holds, whatever its class adds to it."""
        if len(value) > _MAX_ITEMS:
            return f"a {type(value).__name__} of more than {_MAX_ITEMS} items"
        if isinstance(value, types.MappingProxyType):
            return self.content(dict(value)) or "a read-only view of a dictionary"
        return self._first(self._held(value))

    def _held(self, value: Any) -> tuple[Any, ...]:
        """Compare which items a container has from now on, and return them."""
        if isinstance(value, dict):
            kind = mapping_of(value)
            keys, held = tuple(kind.keys(value)), tuple(kind.values(value))
            self._mappings.append((value, keys, held))
            return (*held, *(k for k in keys if type(k) not in ATOMS))
        held = tuple(items_of(value))
        if not isinstance(value, tuple | frozenset):
            self._sequences.append((value, held))
        return held

    def _look(self, value: Any, kind: type) -> str | None:
        if kind in {tuple, list, set, frozenset, torch.Size, collections.deque}:
            return self.content(value)
        if kind in _MAPPINGS:
            return self.look(getattr(value, "default_factory", None)) or self.content(value)
        if kind in {np.ndarray, qml.numpy.tensor}:
            return self._array(value)
        if kind in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}:
            return self._tensor(value)
        if issubclass(kind, known.OPERATORS):
            return self._operator(value)
        if kind in {array.array, bytearray}:
            copy = bytes(value)
            self.getter(functools.partial(bytes, value), copy, f"a {kind.__name__}")
            return None
        if kind is types.SimpleNamespace:
            self._kinds.append((value, kind, value.__dict__))
            return self.content(value.__dict__)
        if kind is functools.partial:
            self._kinds.append((value, kind, value.__dict__))
            return self._made_of(value, parts_of_partial, "a partial") or self.look(value.__dict__)
        if kind in {staticmethod, classmethod}:
            return self.look(value.__func__)
        if kind.__module__.startswith("scipy.sparse") and hasattr(value, "indptr"):
            return self._made_of(value, parts_of_sparse, "a sparse matrix")
        return self._other(value)

    def _array(self, value: Any) -> str | None:
        if value.dtype.hasobject:
            return "an array of objects"
        if value.size > _MAX_ELEMENTS:
            return f"an array of more than {_MAX_ELEMENTS} elements"
        base = value.base
        if value.ndim == 0 and type(base) in {np.ndarray, qml.numpy.tensor}:
            return self.look(base)  # many numbers of one array are compared at once
        if value.ndim == 0:
            self._numbers.append(value)
            self._digits.append(value.tobytes())
        else:
            self._arrays.append((value, value.dtype, value.shape, value.tobytes()))
        if isinstance(value, qml.numpy.tensor):
            self._kinds.append((value, type(value), value.__dict__))
            return self.content(value.__dict__)
        return None

    def _made_of(self, value: Any, parts_of: Callable[[Any], Any], name: str) -> str | None:
        parts = parts_of(value)
        self.getter(functools.partial(parts_of, value), parts, name)
        return self._first(parts)

    def _tensor(self, value: torch.Tensor) -> str | None:
        if value.requires_grad:
            return "a tensor that requires grad but is no argument, so its gradient would be lost"
        if value.numel() > _MAX_ELEMENTS:
            return f"a tensor of more than {_MAX_ELEMENTS} elements"
        strange = value.is_conj() or value.is_neg() or value.grad is not None
        if value.layout != torch.strided or strange:
            return f"a tensor of layout {value.layout}"
        if value.is_quantized or value.device.type == "meta":
            return "a tensor without ordinary elements"
        base = value._base
        if base is not None and value.ndim == 0 and base.numel() <= _MAX_ELEMENTS:
            return self.look(base)
        if value.ndim == 0 and value.device.type == "cpu":
            self._scalars.append(value)
            self._scalar_parts.append((value.data_ptr(), bytes_of(value), value.dtype))
        else:
            self._tensors.append((value, metadata(value), bytes_of(value)))
        return self.look(value.__dict__) if value.__dict__ else None

    def _operator(self, value: Any) -> str | None:
        # Small operators by all that they are made of; large ones by their numbers and their outermost parts: PennyLane's
        # operators are not to be changed once they are made, but their numbers may be arrays that others change.
        nodes, leaves, todo = [], [], [value]
        met = {id(value)}
        trees: dict[type, tuple[str, ...]] = {}
        operators: dict[type, bool] = dict.fromkeys(ATOMS, False)
        while todo:
            node = todo.pop()
            nodes.append(node)
            kind = type(node)
            names = trees.get(kind)
            if names is None:
                if not known.is_library_name(kind.__module__) and (why := self._other(kind)):
                    return why
                # Properties are made of the others. Not vars(): it would make thousands of dictionaries.
                find = functools.partial(inspect.getattr_static, kind)
                own = (n for n in _OPERATOR_TREE if not isinstance(find(n, None), property))
                names = trees[kind] = () if kind in _PAULIS else tuple(own)
            for name in names:
                part = getattr(node, name, None)
                if part is None or (type(part) in {tuple, dict} and not part):
                    continue
                for item in flat(part):
                    operator_ = operators.get(type(item))
                    if operator_ is None:
                        operator_ = operators[type(item)] = issubclass(type(item), known.OPERATORS)
                    if operator_ and id(item) not in met:
                        met.add(id(item))
                        todo.append(item)
                    elif not operator_ and type(item) not in ATOMS:
                        leaves.append(item)
        for node in nodes if len(nodes) <= _MAX_NODES else nodes[:1]:
            scope = vars(node)
            for part in _OPERATOR_PARTS:
                if part in scope:
                    self.entry(scope, part, scope[part])
            for part in scope.values():
                small = type(part) in {list, dict} and len(part) <= _MAX_NODES
                if small and id(part) not in self._seen:
                    self._seen[id(part)] = part
                    self._held(part)
        return self._first(leaves)

    # -- whether it is as it was ----------------------------------------------------------------------------------

    def seal(self) -> None:
        """Prepare the comparison."""
        pointers, contents, kinds = (
            zip(*self._scalar_parts, strict=True) if self._scalars else ((),) * 3
        )
        views = [
            memoryview((ctypes.c_char * len(content)).from_address(pointer))
            for pointer, content in zip(pointers, contents, strict=True)
        ]
        self._ready = (
            [(scope.get, names, values) for scope, names, values in self._entries.values()],
            [(v, items, len(items)) for v, items in self._sequences],
            b"".join(self._digits),
            (pointers, views, b"".join(contents), kinds),
        )

    def changed(self) -> str | None:
        """The first thing that is not as it was, in words; None if all is."""
        entries, sequences, numbers, scalars = self._ready
        for get, names, values in entries:
            if not all(map(operator.is_, map(get, names, itertools.repeat(MISSING)), values)):
                for k, name in enumerate(names):
                    if not same(now := get(name, MISSING), values[k]):
                        return str(name)
                    values[k] = now
        for cell, value, name in self._cells:
            try:
                now = cell.cell_contents
            except ValueError:
                now = MISSING
            if now is not value and not same(now, value):
                return str(name)
        for function, code, defaults, keywords in self._functions:
            same_code = function.__code__ is code and function.__defaults__ is defaults
            if not same_code or function.__kwdefaults__ is not keywords:
                return function.__name__
        for value, kind, scope in self._kinds:
            if type(value) is not kind or (
                scope is not None and object.__getattribute__(value, "__dict__") is not scope
            ):
                return f"a {kind.__name__}"
        for class_, bases, scope, keys in self._keys:
            if tuple(scope) != keys or _MRO(class_) is not bases:
                return f"the class {class_.__name__}"
        for value, items, size in sequences:
            if len(value) != size or (
                not all(map(operator.is_, items_of(value), items))
                and not all(map(same, items_of(value), items))
            ):
                return f"a {type(value).__name__}"
        for value, keys, held in self._mappings:
            if len(value) != len(keys) or not (
                all(map(same, mapping_of(value).keys(value), keys))
                and all(map(same, mapping_of(value).values(value), held))
            ):
                return f"a {type(value).__name__}"
        for value, dtype, shape, content in self._arrays:
            if value.tobytes() != content or value.dtype != dtype or value.shape != shape:
                return "an array"
        for value, data, held_bytes in self._tensors:
            if metadata(value) != data or not same_content(value, held_bytes):
                return "a tensor"
        if self._numbers and b"".join(self._numbers) != numbers:
            return "a number"
        if self._scalars and not self._same_scalars(*scalars):
            return "a tensor"
        for getter, value, name in self._getters:
            if not same(getter(), value):
                return name
        return None

    def _same_scalars(self, pointers: Any, views: Any, content: bytes, kinds: Any) -> bool:
        return (
            tuple(map(_DATA_PTR, self._scalars)) == pointers  # then the memory is still theirs
            and b"".join(views) == content
            and not any(map(_REQUIRES_GRAD, self._scalars))
            and tuple(map(_DTYPE, self._scalars)) == kinds
        )
