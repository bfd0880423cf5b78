"""What cannot be understood is named, and a change of what was read is noticed."""

import contextvars
import datetime
import functools
import io
import itertools
import logging
import math
import operator
import os
import random
import sys
import threading
import time
import types
import unittest.mock
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from watching import INPUTS, Meta, Strict, WithMeta, angle, watched

# Attributes by name, calls in lambdas and the like are the subject.
# ruff: noqa: PLW0108, B009, NPY002
Case = tuple[Callable[[], Any], Callable[[], Any]]


class Box:
    CONSTANT = 3

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def method(self) -> Any:
        return self.depth

    @property
    def computed(self) -> Any:
        return self.depth

    @functools.lru_cache  # noqa: B019
    def cached(self) -> Any:
        return self.depth

    def __bool__(self) -> bool:
        return True


class Derived(Box):
    CONSTANT = 4

    def of_base(self) -> Any:
        return super().CONSTANT

    def of_class(self) -> Any:
        return type(self).CONSTANT + self.__class__.CONSTANT


class Reader:
    """A descriptor that keeps its value to itself."""

    def __init__(self) -> None:
        self.value = 0

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self.value

    def __set__(self, owner: Any, value: Any) -> None:
        self.value = value


class Described:
    depth = Reader()


def counted() -> Iterator[int]:
    yield from itertools.count()


@functools.singledispatch
def dispatched(value: Any) -> Any:
    return 0.3


def with_attributes() -> None:
    pass


def plain_helper() -> float:
    return 0.3


COUNTER = 0
LATEST = None
NAMES = types.SimpleNamespace(depth=3)
LOCAL = threading.local()
LOCAL.depth = 3
CONTEXT: contextvars.ContextVar[int] = contextvars.ContextVar("depth", default=3)
LOGGER = logging.getLogger("watched")


def opened() -> int:
    with open(__file__, encoding="utf-8") as file:
        return len(file.readline())


def count_global() -> int:
    global COUNTER
    COUNTER += 1
    return 0


def keep_global() -> int:
    global LATEST
    LATEST = object()
    return 0


def count_nonlocal() -> Callable[[], int]:
    calls = 0

    def read() -> int:
        nonlocal calls
        calls += 1
        return 0

    return read


def append(values: Any) -> int:
    values.append(1)
    return 0


def count(value: Any) -> int:
    value.calls = getattr(value, "calls", 0) + 1
    return 0


def count_item(values: Any) -> int:
    values["calls"] = values.get("calls", 0) + 1
    return 0


RNG, GENERATOR, ENDLESS, LISTED = (
    np.random.default_rng(0),
    torch.Generator(),
    counted(),
    iter([1, 2, 3, 4, 5, 6]),
)
COUNT, FILE, BOX = itertools.count(), io.StringIO("1\n2\n3"), Box(depth=3, calls=0, history=[])
MASKED = np.ma.masked_array([0.3, 0.4], mask=[False, False])
OBJECTS = np.array([[1], 2], dtype=object)
TRAINED = torch.ones(2, requires_grad=True)
GETATTR, ATTRIBUTE, DRAWN = getattr, operator.attrgetter("depth"), torch.rand
IN_A_DICT = {"draw": np.random.rand, "abs": abs}
DRAW_LATER = functools.partial(random.gauss, 0, 1)
WEAK = weakref.ref(BOX)
MOCK = unittest.mock.Mock()
METHOD = RNG.normal
NOISE = torch.nn.Dropout(0.5)

# Each of these reads what may differ from call to call, or changes something.
NOT_UNDERSTOOD: dict[str, Callable[[], Any]] = {
    "print": lambda: print(end="") or 0,
    "open": lambda: opened(),
    "load": lambda: np.load("nothing.npy") if COUNTER < 0 else np.fromfile(__file__, dtype=np.uint8, count=1)[0],
    "time": lambda: 0 * time.time(), "clock": lambda: 0 * time.perf_counter(), "now": lambda: datetime.datetime.now().year,
    "today": lambda: datetime.date.today().year, "uuid": lambda: uuid.uuid4().int * 0, "environment": lambda: len(os.environ),
    "getenv": lambda: len(os.getenv("HOME", "")), "urandom": lambda: os.urandom(1)[0], "random": lambda: random.random(),
    "gauss": lambda: random.gauss(0, 1), "numpy.random": lambda: np.random.rand(), "normal": lambda: np.random.normal(),
    "default_rng": lambda: np.random.default_rng().normal(), "torch.rand": lambda: torch.rand(1), "randn": lambda: torch.randn(1),
    "randn_like": lambda: torch.randn_like(INPUTS[0, 0]), "normal_": lambda: torch.zeros(1).normal_(),
    "bernoulli": lambda: torch.bernoulli(torch.ones(1)), "manual_seed": lambda: torch.manual_seed(0).initial_seed() * 0,
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(1)).sum(), "dropout module": lambda: NOISE(torch.ones(1)).sum(),
    "gumbel": lambda: torch.nn.functional.gumbel_softmax(torch.ones(2))[0], "rrelu": lambda: torch.rrelu(-torch.ones(1), training=True).sum(),
    "random of PennyLane": lambda: qml.numpy.random.rand(), "alias": lambda: DRAWN(1), "in a dict": lambda: IN_A_DICT["draw"](),
    "partial": lambda: DRAW_LATER(), "partial made inside": lambda: functools.partial(torch.rand, 1)(),
    "mapped": lambda: next(map(torch.rand, [1])), "mapped and printed": lambda: len(list(map(print, []))),
    "reduced": lambda: functools.reduce(np.random.uniform, [0, 1]), "bound method": lambda: METHOD(),
    "by a computed name": lambda: getattr(torch, "ra" + "nd"[COUNTER * 0:])(1), "captured generator": lambda: RNG.normal(),
    "generator of torch": lambda: GENERATOR.initial_seed() * 0, "iterator": lambda: next(LISTED), "endless": lambda: next(ENDLESS),
    "itertools": lambda: next(COUNT), "file": lambda: len(FILE.readline()), "default dtype": lambda: len(str(torch.get_default_dtype())),
    "grad mode": lambda: int(torch.is_grad_enabled()), "thread": lambda: threading.get_ident() * 0, "local": lambda: LOCAL.depth,
    "context": lambda: CONTEXT.get(), "weak": lambda: WEAK().depth, "globals": lambda: globals()["COUNTER"] * 0,  # type: ignore[union-attr]
    "vars": lambda: vars(BOX)["depth"], "__dict__": lambda: BOX.__dict__["depth"], "eval": lambda: eval("0"), "exec": lambda: exec("0") or 0,
    "object.__getattribute__": lambda: object.__getattribute__(BOX, "depth"), "computed attributes": lambda: Strict().depth * 0 + STRICT.depth,
    "globals of a function": lambda: plain_helper.__globals__["COUNTER"] * 0,
    "by dunder": lambda: getattr(plain_helper, "__globals__")["COUNTER"] * 0,
    "modules": lambda: len(sys.modules) * 0, "frame": lambda: sys._getframe().f_lineno * 0, "id": lambda: id(BOX) * 0,
    "masked array": lambda: float(MASKED.sum()), "array of objects": lambda: OBJECTS[1], "trained": lambda: TRAINED.sum(),
    "singledispatch": lambda: dispatched(1), "cache": lambda: BOX.cached(), "log": lambda: LOGGER.info("x") or 0,
    "attrgetter": lambda: ATTRIBUTE(BOX), "mock": lambda: 0 if MOCK.depth else 1, "warn": lambda: sys.stderr.write("") * 0,
    "counter": lambda: count_global(), "kept": lambda: keep_global(), "nonlocal": count_nonlocal(), "history": lambda: append(BOX.history),
    "counter of an object": lambda: count(BOX), "counter of a function": lambda: count(with_attributes),
    "counter of a class": lambda: count(Derived), "counter of a namespace": lambda: count(NAMES), "counter in a dict": lambda: count_item(IN_A_DICT),
    "deleted": lambda: delattr(BOX, "gone") or 0, "setattr": lambda: setattr(BOX, "calls", BOX.calls + 1) or 0,
    "patched library": lambda: setattr(math, "watched", object()) or 0, "seed": lambda: random.seed(0) or 0,
    "sleep": lambda: time.sleep(0) or 0, "input of a tensor": lambda: torch.load("x") if COUNTER < 0 else torch.empty(1).sum() * 0,
}  # fmt: skip
STRICT = Strict()


@pytest.mark.parametrize("read", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD.keys())
def test_what_is_not_understood_is_named(read: Callable[[], Any]) -> None:
    BOX.gone = 1
    watch = watched(angle(read))
    assert watch.problem is not None
    assert watch.problem.startswith("it ")
    assert "not understood (" not in watch.problem
    assert not watch.holds()


def made(
    value: Callable[[], Any], read: Callable[[Any], Any], change: Callable[[Any], Any]
) -> Callable[[], Case]:
    def make() -> Case:
        this = value()
        return (lambda: read(this)), (lambda: change(this))

    return make


def fresh(**body: Any) -> Any:
    return type("Fresh", (Box,), body)(depth=3)


def gate() -> Any:
    with qml.QueuingManager.stop_recording():
        return qml.PauliRot(0.9, "XX", wires=[0, 1])


def applied(op: Any) -> int:
    qml.apply(op)
    return 0


def expectation(op: Any) -> int:
    qml.expval(op)
    return 0


def annealed() -> Any:
    lam = torch.tensor(1.0)
    return lam, lam * qml.Z(0) + (1 - lam) * qml.X(0)


def absent_name() -> Any:
    try:
        return WATCHED_NAME  # type: ignore[name-defined]
    except NameError:
        return 0


def absent_attribute(value: Any) -> Any:
    try:
        return value.extra
    except AttributeError:
        return 0


def matched(value: Any) -> Any:
    match value:
        case Box(depth=3):
            return 1
        case _:
            return 2


def replaced(scope: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: scope.__setitem__(name, value)


def of_module() -> Case:
    module = types.ModuleType("watched_later")
    sys.modules["watched_later"] = module
    module.depth = 3  # type: ignore[attr-defined]

    def read() -> Any:
        import watched_later  # type: ignore[import-not-found]

        return watched_later.depth

    other = types.ModuleType("watched_later")
    return read, lambda: sys.modules.__setitem__("watched_later", other)


def scope_of(text: str, **values: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    scope: dict[str, Any] = dict(values)
    exec(text, scope)
    return scope["read"], scope


def shadowed() -> Case:
    read, scope = scope_of("def read():\n    return len('abc') + abs(-1)")
    return read, lambda: scope.update(abs=lambda v: 5)


def helper_replaced() -> Case:
    read, scope = scope_of("def helper():\n    return 1\ndef read():\n    return helper()")
    return read, lambda: scope.update(helper=lambda: 5)


def new_global() -> Case:
    read, scope = scope_of(
        "def read():\n    try:\n        return EXTRA\n    except NameError:\n        return 0"
    )
    return read, lambda: scope.update(EXTRA=5)


def patched_gate() -> Case:
    return (lambda: getattr(qml, "watched_extra", 0)), lambda: setattr(qml, "watched_extra", 5)


CHANGES: dict[str, Callable[[], Case]] = {
    "replaced method of a class": made(fresh, lambda m: m.method(), lambda m: setattr(type(m), "method", lambda s: 5)),
    "replaced property": made(fresh, lambda m: m.computed, lambda m: setattr(type(m), "computed", property(lambda s: 5))),
    "replaced operator": made(lambda: fresh(__add__=lambda s, o: 1), lambda m: m + 1, lambda m: setattr(type(m), "__add__", lambda s, o: 2)),
    "new operator": made(fresh, lambda m: 1 if m else 0, lambda m: setattr(type(m), "__bool__", lambda s: False)),
    "new getattr": made(fresh, lambda m: getattr(m, "extra", 0), lambda m: setattr(type(m), "__getattr__", lambda s, n: 5)),
    "new in a base": made(fresh, lambda m: getattr(m, "extra2", 0), lambda m: setattr(Box, "extra2", 5)),
    "constant of a class": made(lambda: type(fresh(C=3)), lambda m: m.C, lambda m: setattr(m, "C", 4)),
    "new constant of a class": made(lambda: type(fresh()), lambda m: getattr(m, "C", 0), lambda m: setattr(m, "C", 4)),
    "table of a class": made(lambda: type(fresh(T=[1])), lambda m: m.T[0], lambda m: m.T.append(4)),
    "constant by type()": made(lambda: Derived(), lambda m: m.of_class(), lambda m: setattr(Derived, "CONSTANT", Derived.CONSTANT + 1)),
    "constant by super()": made(lambda: Derived(), lambda m: m.of_base(), lambda m: setattr(Box, "CONSTANT", Box.CONSTANT + 1)),
    "descriptor": made(lambda: Described(), lambda m: m.depth, lambda m: setattr(m, "depth", 5)),
    "attribute of a metaclass": made(lambda: WithMeta, lambda m: m.depth, lambda m: setattr(Meta, "hidden", Meta.hidden + 1)),
    "alias of getattr": made(lambda: Box(depth=3), lambda m: GETATTR(m, "depth"), lambda m: setattr(m, "depth", 5)),
    "match": made(lambda: Box(depth=3), matched, lambda m: setattr(m, "depth", 5)),
    "absent attribute": made(lambda: Box(), absent_attribute, lambda m: setattr(m, "extra", 5)),
    "absent name": new_global, "shadowed builtin": shadowed, "replaced helper": helper_replaced, "other module": of_module,
    "attribute of a function": made(lambda: scope_of("def read():\n    return 0")[0], lambda m: getattr(m, "scale", 1), lambda m: setattr(m, "scale", 2)),
    "patched library": patched_gate,
    "default dtype": made(lambda: None, lambda m: torch.zeros(1).sum(), lambda m: torch.set_default_dtype(torch.float64)),
    "data of a gate": made(gate, applied, lambda m: setattr(m, "data", (0.3,))),
    "word of a gate": made(gate, applied, lambda m: m.hyperparameters.update(pauli_word="YX")),
    "matrix of an observable": made(lambda: qml.Hermitian(np.eye(2), 0), expectation, lambda m: m.data[0].__setitem__((0, 0), 3)),
    "coefficients": made(lambda: qml.Hamiltonian(torch.ones(2), [qml.Z(0), qml.X(0)]), expectation, lambda m: m.data[0]._base.fill_(3) if m.data[0]._base is not None else m.data[0].fill_(3)),
    "coefficients of NumPy": made(lambda: qml.Hamiltonian(qml.numpy.ones(2), [qml.Z(0), qml.X(0)]), expectation, lambda m: m.data[0].__setitem__((), 3)),
    "annealed": made(annealed, lambda m: expectation(m[1]), lambda m: m[0].fill_(0.5)),
    "annealed by data": made(annealed, lambda m: expectation(m[1]), lambda m: m[0].data.fill_(0.5)),
    "part of a product": made(lambda: 2.0 * qml.Z(0) @ qml.Hermitian(np.eye(2), 1), expectation, lambda m: [d.__setitem__((0, 0), 3) for d in m.data if np.ndim(d)]),
    "base of an adjoint": made(lambda: qml.adjoint(qml.RX(0.3, 0)), applied, lambda m: setattr(m.base, "data", (0.9,))),
    "measurement": made(lambda: qml.expval(qml.Hermitian(np.eye(2), 0)), applied, lambda m: m.obs.data[0].__setitem__((0, 0), 3)),
    "list of gates": made(lambda: [qml.RX(0.3, 0)], lambda m: applied(m[0]), lambda m: m.__setitem__(0, qml.RX(0.4, 0))),
    "value of an enumeration's member": made(lambda: types.SimpleNamespace(m=Box(depth=3)), lambda m: m.m.depth, lambda m: setattr(m.m, "depth", 4)),
    "attribute of a list": made(lambda: type("L", (list,), {})([1]), lambda m: getattr(m, "extra", 0), lambda m: setattr(m, "extra", 5)),
    "item of a list of a class": made(lambda: type("L", (list,), {})([1]), lambda m: m[0], lambda m: m.__setitem__(0, 5)),
}  # fmt: skip


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_was_read_is_noticed(make: Callable[[], Case]) -> None:
    read, change = make()
    try:
        watch = watched(angle(read))
        assert watch.problem is None
        assert watch.holds()
        change()
        assert not watch.holds()
    finally:
        torch.set_default_dtype(torch.float32)
        vars(qml).pop("watched_extra", None)
        if "extra2" in vars(Box):
            del Box.extra2


def test_large_hamiltonians_are_compared_by_their_numbers() -> None:
    words = [qml.Z(k % 8) @ qml.X((k + 1) % 8) for k in range(300)]
    coefficients = torch.ones(300)
    for these in (coefficients, [0.1] * 300, np.ones(300), list(coefficients.clone())):
        observable = qml.Hamiltonian(these, words)
        watch = watched(angle(lambda observable=observable: expectation(observable)))
        assert watch.problem is None
        assert watch.holds()
        if these is coefficients:
            coefficients[7] = 2.0
            assert not watch.holds()
    observable.data[9].data.fill_(3.0)
    assert not watch.holds()
