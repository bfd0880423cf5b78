"""What a quantum function reads, and that every change of it is noticed: ordinary values and styles."""

import argparse
import array
import collections
import dataclasses
import enum
import functools
import itertools
import math
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from watching import INPUTS, WEIGHTS, angle, watched

# A lambda around a call makes the function look the callee up itself; attributes by name are the subject.
# ruff: noqa: PLW0108, B009
Case = tuple[Callable[[], Any], Callable[[], Any]]


class Plain:
    """A configuration in its simplest form."""

    CONSTANT = 3

    def __init__(self) -> None:
        self.depth = 3
        self.table = {"a": [1, 2], "b": 0.3}
        self.wires = [0, 1, 2]

    def method(self) -> int:
        return self.depth

    @property
    def computed(self) -> int:
        return self.depth + 1

    @functools.cached_property
    def kept(self) -> int:
        return self.depth + 2

    @staticmethod
    def static() -> int:
        return Plain.CONSTANT

    @classmethod
    def of_class(cls) -> int:
        return cls.CONSTANT


@dataclasses.dataclass
class Data:
    depth: int = 3
    wires: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])


@dataclasses.dataclass(frozen=True)
class Frozen:
    depth: int = 3


@dataclasses.dataclass(slots=True)
class Slots:
    depth: int = 3


class Kind(enum.Enum):
    DEEP = 3


class Depth(enum.IntEnum):
    DEEP = 3


class ByItem(dict[str, Any]):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class ByGet(dict[str, Any]):
    __getattr__ = dict.get


class ByMethod(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Fallback:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


Pair = collections.namedtuple("Pair", "depth other")  # noqa: PYI024
DEPTH = 3
SETTINGS = types.ModuleType("watched_settings")
SETTINGS.__dict__.update(DEPTH=3, TABLE={"a": 3})
sys.modules[SETTINGS.__name__] = SETTINGS
exec("def get():\n    return DEPTH", SETTINGS.__dict__)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = 3
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("mask", torch.ones(2))
        self.config = Plain()


def with_global(value: Any) -> None:
    globals()["DEPTH"] = value


def cell() -> Case:
    depth = 3

    def change() -> None:
        nonlocal depth
        depth = 4

    return (lambda: depth), change


def default() -> Case:
    def read(depth: int = 3) -> int:
        return depth

    return (lambda: read()), lambda: setattr(read, "__defaults__", (4,))


def keyword() -> Case:
    def read(*, depth: int = 3) -> int:
        return depth

    return (lambda: read()), lambda: setattr(read, "__kwdefaults__", {"depth": 4})


def code() -> Case:
    def read() -> int:
        return 3

    return (lambda: read()), lambda: setattr(read, "__code__", (lambda: 4).__code__)


def of_function() -> Case:
    def read() -> Any:
        return read.depth  # type: ignore[attr-defined]

    read.depth = 3  # type: ignore[attr-defined]
    return (lambda: read.depth), lambda: setattr(read, "depth", 4)  # type: ignore[attr-defined]


def value_of(
    value: Any, read: Callable[[Any], Any], change: Callable[[Any], Any]
) -> Callable[[], Case]:
    def make() -> Case:
        made = value()
        return (lambda: read(made)), (lambda: change(made))

    return make


def setting(name: str, value: Any = 4) -> Callable[[Any], Any]:
    return lambda made: setattr(made, name, value)


depth = operator.attrgetter("depth")
SEEN: dict[str, Callable[[], Case]] = {
    "cell": cell, "default": default, "keyword default": keyword, "code": code, "attribute of a function": of_function,
    "global": lambda: ((lambda: DEPTH), lambda: with_global(4 if DEPTH == 3 else 3)),
    "attribute": value_of(Plain, lambda m: m.depth, setting("depth")),
    "attribute by getattr": value_of(Plain, lambda m: getattr(m, "depth"), setting("depth")),
    "attribute by a computed name": value_of(Plain, lambda m: getattr(m, "de" + "pth"[len("de") - 2:]), setting("depth")),
    "attribute in a list": value_of(Plain, lambda m: m.wires[0], lambda m: m.wires.append(3)),
    "attribute in a dict": value_of(Plain, lambda m: m.table["b"], lambda m: m.table.update(b=1.0)),
    "attribute in a list in a dict": value_of(Plain, lambda m: m.table["a"][0], lambda m: m.table["a"].append(1)),
    "method": value_of(Plain, lambda m: m.method(), setting("depth")),
    "property": value_of(Plain, lambda m: m.computed, setting("depth")),
    "cached property": value_of(Plain, lambda m: m.kept, setting("kept")),
    "deleted attribute": value_of(Plain, lambda m: m.depth, lambda m: delattr(m, "depth")),
    "shadowed class constant": value_of(Plain, lambda m: m.CONSTANT, setting("CONSTANT")),
    "no attribute yet": value_of(Plain, lambda m: 1 if hasattr(m, "extra") else 0, setting("extra")),
    "no attribute yet, by default": value_of(Plain, lambda m: getattr(m, "extra", 0), setting("extra")),
    "replaced dict of an object": value_of(Plain, lambda m: m.depth, setting("__dict__", {"depth": 5})),
    "other class": value_of(Plain, lambda m: m.method(), setting("__class__", type("Other", (Plain,), {}))),
    "dataclass": value_of(Data, lambda m: m.depth, setting("depth")),
    "list of a dataclass": value_of(Data, lambda m: len(m.wires), lambda m: m.wires.pop()),
    "frozen dataclass": value_of(Frozen, lambda m: m.depth, lambda m: object.__setattr__(m, "depth", 4)),
    "dataclass with slots": value_of(Slots, lambda m: m.depth, setting("depth")),
    "namespace": value_of(lambda: types.SimpleNamespace(depth=3), lambda m: m.depth, setting("depth")),
    "new in a namespace": value_of(lambda: types.SimpleNamespace(), lambda m: hasattr(m, "depth"), setting("depth")),
    "argparse": value_of(lambda: argparse.Namespace(depth=3), lambda m: m.depth, setting("depth")),
    "dict": value_of(lambda: {"depth": 3}, lambda m: m["depth"], lambda m: m.update(depth=4)),
    "get of a dict": value_of(dict, lambda m: m.get("depth", 3), lambda m: m.update(depth=4)),
    "order of a dict": value_of(lambda: {"a": 1, "b": 2}, lambda m: 1 if next(iter(m)) == "a" else 0, lambda m: m.update(a=m.pop("a"))),
    "defaultdict": value_of(lambda: collections.defaultdict(int, a=1), lambda m: m["a"], lambda m: m.update(a=2)),
    "attributes by item": value_of(lambda: ByItem(depth=3), lambda m: m.depth, setting("depth")),
    "attributes by get": value_of(lambda: ByGet(depth=3), lambda m: m.depth, lambda m: m.update(depth=4)),
    "attributes by method": value_of(lambda: ByMethod(depth=3), lambda m: m.depth, lambda m: m.update(depth=4)),
    "nested attributes": value_of(lambda: ByItem(a=ByItem(b=3)), lambda m: m.a.b, lambda m: m.a.update(b=4)),
    "fallback": value_of(lambda: Fallback(Plain()), lambda m: m.depth, lambda m: setattr(m.inner, "depth", 4)),
    "list": value_of(lambda: [1, 2], lambda m: m[0], lambda m: m.__setitem__(0, 3)),
    "nested list": value_of(lambda: [[1], [2]], lambda m: m[0][0], lambda m: m[0].__setitem__(0, 3)),
    "list in a tuple": value_of(lambda: ([1], 2), lambda m: m[0][0], lambda m: m[0].__setitem__(0, 3)),
    "deque": value_of(lambda: collections.deque([1]), lambda m: m[0], lambda m: m.append(3)),
    "set": value_of(lambda: {1, 2}, lambda m: len(m), lambda m: m.add(3)),
    "array": value_of(lambda: np.ones(3), lambda m: m[0], lambda m: m.__setitem__(0, 3)),
    "view of an array": value_of(lambda: np.ones((3, 3))[1], lambda m: m[0], lambda m: m.base.__setitem__((1, 0), 3)),
    "number in an array": value_of(lambda: np.array(1.0), lambda m: float(m), lambda m: m.__setitem__((), 3)),
    "sign of zero": value_of(lambda: np.zeros(1), lambda m: m[0], lambda m: m.__setitem__(0, -0.0)),
    "array of PennyLane": value_of(lambda: qml.numpy.ones(2), lambda m: m[0], lambda m: m.__setitem__(0, 3)),
    "bytearray": value_of(lambda: bytearray(b"a"), lambda m: m[0], lambda m: m.append(1)),
    "array of array": value_of(lambda: array.array("d", [1]), lambda m: m[0], lambda m: m.append(1)),
    "tensor": value_of(lambda: torch.ones(3), lambda m: m[0], lambda m: m.fill_(3)),
    "data of a tensor": value_of(lambda: torch.ones(3), lambda m: m[0], lambda m: m.data.fill_(3)),
    "memory of a tensor": value_of(lambda: torch.ones(3), lambda m: m[0], lambda m: m.numpy().fill(3)),
    "replaced data": value_of(lambda: torch.ones(3), lambda m: m[0], setting("data", torch.zeros(3))),
    "number in a tensor": value_of(lambda: torch.tensor(1.0), lambda m: m + 1, lambda m: m.data.fill_(3)),
    "element of a tensor": value_of(lambda: torch.ones(3)[1], lambda m: m + 1, lambda m: m._base.fill_(3)),
    "a column of a tensor": value_of(lambda: torch.ones(3, 3)[:, 1], lambda m: m[0], lambda m: m.fill_(3)),
    "a tensor that is to be trained": value_of(lambda: torch.ones(3), lambda m: m[0], lambda m: m.requires_grad_()),
    "a number that is to be trained": value_of(lambda: torch.tensor(1.0), lambda m: m, lambda m: m.requires_grad_()),
    "NaN": value_of(lambda: torch.ones(1), lambda m: m[0], lambda m: m.fill_(math.nan)),
    "partial": value_of(lambda: functools.partial(lambda d: d, d=3), lambda m: m(), lambda m: m.keywords.update(d=4)),
    "list in a partial": value_of(lambda: functools.partial(lambda d: d[0], [3]), lambda m: m(), lambda m: m.args[0].append(4)),
    "module": lambda: ((lambda: SETTINGS.DEPTH), lambda: setattr(SETTINGS, "DEPTH", SETTINGS.DEPTH + 1)),
    "table in a module": lambda: ((lambda: SETTINGS.TABLE["a"]), lambda: SETTINGS.TABLE.update(a=SETTINGS.TABLE["a"] + 1)),
    "function in a module": lambda: ((lambda: SETTINGS.get()), lambda: setattr(SETTINGS, "DEPTH", SETTINGS.DEPTH + 1)),
    "not yet in a module": lambda: ((lambda: getattr(SETTINGS, "EXTRA", 0)), lambda: setattr(SETTINGS, "EXTRA", 1 + getattr(SETTINGS, "EXTRA", 0))),
    "attribute of a model": value_of(Model, lambda m: m.depth, setting("depth")),
    "buffer": value_of(Model, lambda m: m.mask[0], lambda m: m.mask.fill_(3)),
    "replaced buffer": value_of(Model, lambda m: m.mask[0], setting("mask", torch.zeros(2))),
    "new buffer": value_of(Model, lambda m: hasattr(m, "extra"), lambda m: m.register_buffer("extra", torch.ones(1))),
    "new submodule": value_of(Model, lambda m: 1 if getattr(m, "extra", 0) else 0, lambda m: m.add_module("extra", torch.nn.ReLU())),
    "mode of a model": value_of(Model, lambda m: m.training, lambda m: m.eval()),
    "in a submodule": value_of(Model, lambda m: m.linear.in_features, lambda m: setattr(m.linear, "in_features", 5)),
    "object of a model": value_of(Model, lambda m: m.config.depth, lambda m: setattr(m.config, "depth", 5)),
    "another object of a model": value_of(Model, lambda m: m.config.depth, setting("config", Plain())),
    "wires of a device": value_of(lambda: qml.device("default.qubit", wires=3), lambda m: len(m.wires), setting("_wires", qml.wires.Wires([0]))),
}  # fmt: skip


@pytest.mark.parametrize("make", SEEN.values(), ids=SEEN.keys())
def test_a_change_of_what_was_read_is_noticed(make: Callable[[], Case]) -> None:
    read, change = make()
    watch = watched(angle(read))
    if (
        watch.problem is not None and "changes" in watch.problem
    ):  # a cached property: kept by the first run
        watch = watched(angle(read))
    assert watch.problem is None
    assert watch.holds()
    assert watch.holds()
    change()
    assert not watch.holds()
    again = watched(angle(read)) if make is not SEEN["deleted attribute"] else None
    assert again is None or again.holds() or again.problem


UNREAD: dict[str, Callable[[], Case]] = {
    "attribute": value_of(Plain, lambda m: m.depth, setting("other")),
    "table": value_of(Plain, lambda m: m.depth, lambda m: m.table.clear()),
    "counter of a model": value_of(Model, lambda m: m.depth, setting("steps")),
    "weights of a model": value_of(Model, lambda m: m.depth, lambda m: m.linear.weight.data.fill_(2)),
    "buffer of a model": value_of(Model, lambda m: m.depth, lambda m: m.mask.fill_(2)),
    "equal number": value_of(Plain, lambda m: m.depth, lambda m: setattr(m, "depth", int("3"))),
    "equal float": value_of(lambda: types.SimpleNamespace(d=0.1), lambda m: m.d, lambda m: setattr(m, "d", float("0.1"))),
    "NaN": value_of(lambda: types.SimpleNamespace(d=math.nan), lambda m: 0 * m.d, lambda m: setattr(m, "d", float("nan"))),
    "another attribute of a module": lambda: ((lambda: SETTINGS.DEPTH), lambda: setattr(SETTINGS, "UNREAD", object())),
}  # fmt: skip


@pytest.mark.parametrize("make", UNREAD.values(), ids=UNREAD.keys())
def test_what_was_not_read_may_change(make: Callable[[], Case]) -> None:
    read, change = make()
    watch = watched(angle(read))
    assert watch.problem is None
    change()
    assert watch.holds()


TYPES = [
    (1, True),
    (0, False),
    (1, 1.0),
    (0.0, -0.0),
    ("a", b"a"),
    (1.0, np.float64(1.0)),
    ((1,), [1]),
    (None, False),
]


@pytest.mark.parametrize(("first", "then"), TYPES, ids=str)
def test_values_that_compare_equal_but_are_not(first: Any, then: Any) -> None:
    made = types.SimpleNamespace(value=first)
    watch = watched(angle(lambda: 0 if made.value else 1))
    assert watch.holds()
    made.value = then
    assert not watch.holds()


# -- ordinary ways of writing quantum functions -----------------------------------------------------------------------

DEVICE = qml.device("default.qubit", wires=3)
HAMILTONIAN = qml.Hamiltonian([0.5, 0.3], [qml.Z(0), qml.X(0) @ qml.Z(1)])
CONFIG = {"n": 3, "rotation": "Y", "wires": [0, 1, 2], "scale": np.pi / 2}
PATTERN = [[0, 1], [1, 2]]
TABLE = np.linspace(0, 1, 8)
MASK = torch.ones(3)


def layer(weights: Any, wires: Any) -> None:
    for k in wires:
        qml.Rot(*weights[k], wires=k)
    for a, b in PATTERN:
        qml.CNOT(wires=[a, b])


def embed(x: Any, gate: Any = qml.RY) -> None:
    for k in range(3):
        gate(x[..., k], wires=k)


@qml.for_loop(0, 3)
def loop(k: Any) -> None:
    qml.H(k)


def style(function: Any) -> Any:
    return pytest.param(function, id=function.__name__)


def globals_and_helpers(inputs: Any, weights: Any) -> Any:
    embed(inputs * CONFIG["scale"])
    layer(weights[0], CONFIG["wires"])
    return [qml.expval(qml.PauliZ(k)) for k in range(CONFIG["n"])]


def templates(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3), rotation=CONFIG["rotation"])
    qml.templates.StronglyEntanglingLayers(weights, wires=DEVICE.wires)
    qml.BasicEntanglerLayers(weights[:, :, 0], wires=range(3), rotation=qml.RZ)
    return qml.probs(wires=[0, 1])


def hamiltonian(inputs: Any, weights: Any) -> Any:
    embed(inputs)
    return qml.expval(HAMILTONIAN)


def new_hamiltonian(inputs: Any, weights: Any) -> Any:
    embed(inputs)
    return qml.expval(0.5 * qml.Z(0) @ qml.Z(1) + qml.X(2))


def nested(inputs: Any, weights: Any) -> Any:
    def block(w: Any) -> None:
        for k in range(DEPTH):
            qml.RX(w[0, k % 3, 0], wires=k % 3)

    block(weights)
    rotate = lambda x: qml.RZ(x, 0)
    rotate(inputs[..., 1])
    return [qml.expval(op(0)) for op in (qml.X, qml.Y, qml.Z)]


def loops(inputs: Any, weights: Any) -> Any:
    loop()

    @qml.for_loop(0, 3, 1)
    def encode(k: Any) -> None:
        qml.RX(inputs[..., k], k)

    encode()
    for k, (a, b) in enumerate(zip(range(3), reversed(range(3)), strict=True)):
        if a != b and k in {0, 1}:
            qml.CZ([a, b])
    for a, b in itertools.combinations(range(3), 2):
        qml.IsingZZ(weights[0, a, b], wires=[a, b])
    return qml.expval(qml.prod(*map(qml.Z, range(3))))


def mathematics(inputs: Any, weights: Any) -> Any:
    a = torch.arctan(inputs[..., 0]) + math.sqrt(2) * np.pi + np.sum(TABLE) + TABLE[2]
    b = torch.nn.functional.softplus(inputs[..., 1]) + torch.tensor([1.0, 2.0]).sum() * MASK[0]
    c = (math.pi - inputs[..., 0]) * (torch.pi - inputs[..., 1]) + qml.math.sin(weights[0, 0, 0])
    qml.RX(a, 0)
    qml.RY(b.clamp(-1, 1), 1)
    qml.RZ(c, 2)
    return qml.expval(qml.Z(sum([1, 1], start=-2)))


def adjoints(inputs: Any, weights: Any) -> Any:
    qml.adjoint(embed)(inputs)
    qml.ctrl(qml.RX, control=0)(weights[0, 0, 0], wires=1)
    qml.cond(DEPTH > 2, qml.X)(0)
    qml.adjoint(qml.S(0))
    qml.pow(qml.RX(weights[0, 0, 1], 0), 2)
    return qml.expval(qml.Hermitian(np.eye(2), 0)), qml.var(qml.Z(1))


def checks(inputs: Any, weights: Any) -> Any:
    if inputs.shape[-1] != 3 or not isinstance(inputs, torch.Tensor):
        raise ValueError(f"expected 3 features, got {inputs.shape}")
    assert weights.ndim == 3, "weights"
    try:
        gate = {"X": qml.RX, "Y": qml.RY}[CONFIG["rotation"]]
    except KeyError:
        gate = qml.RZ
    gate(inputs[..., 0], wires=0)
    return qml.expval(qml.Z(0))


def by_name(inputs: Any, weights: Any) -> Any:
    for name in ("RX", "RY", "RZ"):
        getattr(qml, name)(inputs[..., 0], wires=0)
    return qml.expval(getattr(qml, "PauliZ")(0))


def imports(inputs: Any, weights: Any) -> Any:
    from math import pi

    import pennylane as inner

    inner.RX(pi * inputs[..., 0], 0)
    return inner.expval(inner.Z(0))


def enumerations(inputs: Any, weights: Any) -> Any:
    for k in range(Kind.DEEP.value):
        qml.RX(inputs[..., k], k)
    qml.RZ(float(Depth.DEEP) * inputs[..., 0], Kind["DEEP"].value - 1)
    match CONFIG["rotation"]:
        case "Y":
            qml.H(0)
        case _:
            qml.X(0)
    return qml.expval(qml.Z(0))


@functools.wraps(embed)
def wrapped(inputs: Any, weights: Any) -> Any:
    embed(inputs, gate=qml.RX)
    return qml.expval(qml.Z(0))


class Callable_:
    def __init__(self) -> None:
        self.n = 3

    def __call__(self, inputs: Any, weights: Any) -> Any:
        for k in range(self.n):
            self.encode(inputs[..., k], k)
        return [qml.expval(qml.Z(k)) for k in range(self.n)]

    def encode(self, x: Any, k: int) -> None:
        qml.RY(x, wires=k)

    def circuit(self, inputs: Any, weights: Any) -> Any:
        return self(inputs, weights)


class Own(qml.operation.Operation):
    num_wires = 1
    num_params = 1

    @staticmethod
    def compute_decomposition(theta: Any, wires: Any) -> Any:
        return [qml.RX(theta, wires)]


def own_gate(inputs: Any, weights: Any) -> Any:
    Own(inputs[..., 0], wires=0)
    return qml.expval(qml.Z(0))


PAIR, DATA = Pair(3, 1), Data()


def containers(inputs: Any, weights: Any) -> Any:
    for k in range(PAIR.depth):
        qml.RX(inputs[..., k], DATA.wires[k])
    first, *others = PAIR
    made = {k: v for k, v in zip("abc", others * 3, strict=True)}  # noqa: C416
    made["d"] = sorted(made.values(), key=lambda v: -v)[1]
    angles = [a for a in torch.unbind(weights[0, 0])]  # noqa: C416
    angles.append(inputs[..., first - 1])
    for a in angles:
        qml.RZ(a * made["d"], 0)
    return qml.expval(qml.Z(0))


STYLES = [
    style(f)
    for f in (
        globals_and_helpers, templates, hamiltonian, new_hamiltonian, nested, loops, mathematics, adjoints, checks, by_name,
        imports, enumerations, wrapped, own_gate, containers,
    )
] + [
    pytest.param(Callable_(), id="callable"),
    pytest.param(Callable_().circuit, id="method"),
    pytest.param(functools.partial(lambda gate, inputs, weights: gate(inputs[..., 0], 0), qml.RX), id="partial"),
    pytest.param(torch.no_grad()(containers), id="decorated"),
]  # fmt: skip


@pytest.mark.parametrize("function", STYLES)
def test_ordinary_functions_are_understood(function: Any) -> None:
    watch = watched(function)
    assert watch.problem is None
    assert watch.holds()
    assert watch._snapshot._entries


def test_a_circuit_over_self_inside_a_model() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_qubits = 3
            self.dense = torch.nn.Linear(3, 3)

            def circuit(inputs: Any, weights: Any) -> Any:
                qml.AngleEmbedding(inputs, wires=range(self.n_qubits))
                qml.StronglyEntanglingLayers(weights, wires=range(self.n_qubits))
                return [qml.expval(qml.PauliZ(k)) for k in range(self.n_qubits)]

            self.circuit = circuit

        def forward(self, x: Any) -> Any:
            print(x)
            return self.dense(x)

    model = Network()
    watch = watched(model.circuit, INPUTS, WEIGHTS)
    assert watch.problem is None
    model.dense.weight.data.fill_(0)
    model.epoch = 4
    assert watch.holds()
    model.n_qubits = 2
    assert not watch.holds()
