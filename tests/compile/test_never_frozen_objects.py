"""Regression tests: objects and functions whose change a compiled circuit once ignored."""

import builtins
import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.compile.watch import Watch

DEVICE = qml.device("default.qubit", wires=1)
# A lambda around a call makes the quantum function look the callee up itself.
# ruff: noqa: PLW0108
Function = Callable[[], float]
Change = Callable[[float], Any]


def with_method(name: str, method: Any, read: Any) -> tuple[Function, Change]:
    """An object whose special method reads an attribute that no other code names."""
    made = type("Made", (), {name: method})()
    made.hidden = 0.3
    return (lambda: read(made)), (lambda value: setattr(made, "hidden", value))


def replaced_method_of_class() -> tuple[Function, Change]:
    class Made:
        def value(self) -> float:
            return 0.3

    made = Made()
    return (lambda: made.value()), (lambda value: setattr(Made, "value", lambda self: value))


def replaced_method_of_object() -> tuple[Function, Change]:
    class Made:
        def value(self) -> float:
            return 0.3

    made = Made()
    return (lambda: made.value()), (lambda value: setattr(made, "value", lambda: value))


def base_class() -> tuple[Function, Change]:
    box = [0.3]

    class Base:
        def value(self) -> float:
            return box[0]

    class Derived(Base):
        def value(self) -> float:
            return super().value()

    made = Derived()
    return (lambda: made.value()), (lambda value: box.__setitem__(0, value))


def constructor() -> tuple[Function, Change]:
    box = [0.3]

    class Made:
        def __init__(self) -> None:
            self.value = box[0]

    return (lambda: Made().value), (lambda value: box.__setitem__(0, value))


def forward_of_module() -> tuple[Function, Change]:
    class Made(torch.nn.Module):
        hidden = 0.3

        def forward(self, x: float) -> float:
            return x * self.hidden

    made = Made()
    return (lambda: made(1.0)), (lambda value: setattr(made, "hidden", value))


def default_value() -> tuple[Function, Change]:
    def helper(value: float = 0.3) -> float:
        return value

    return (lambda: helper()), (lambda value: setattr(helper, "__defaults__", (value,)))


def keyword_default() -> tuple[Function, Change]:
    def helper(*, value: float = 0.3) -> float:
        return value

    return (lambda: helper()), (lambda v: setattr(helper, "__kwdefaults__", {"value": v}))


def partial() -> tuple[Function, Change]:
    helper = functools.partial(lambda value: value, value=0.3)
    return (lambda: helper()), (lambda value: helper.keywords.__setitem__("value", value))


def partial_of_list() -> tuple[Function, Change]:
    box = [0.3]
    helper = functools.partial(operator.itemgetter(0), box)
    wrapped = functools.partial(lambda values: values[0], box)
    return (lambda: wrapped()), (lambda value: helper.args[0].__setitem__(0, value))


def decorator() -> tuple[Function, Change]:
    box = [0.3]

    def plus(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper() -> float:
            return function() + box[0]

        return wrapper

    @plus
    def helper() -> float:
        return 0.2

    return (lambda: helper()), (lambda value: box.__setitem__(0, value))


def cleared_cache() -> tuple[Function, Change]:
    box = [0.3]

    @functools.lru_cache
    def helper() -> float:
        return box[0]

    helper()

    def change(value: float) -> None:
        if box[0] != value:
            box[0] = value
        else:
            helper.cache_clear()

    return (lambda: helper()), change


def attribute_of(kind: Any, content: Any) -> tuple[Function, Change]:
    """An attribute on a subclass of a type that is compared by its content."""
    made = type("Made", (kind,), {})(content)
    made.value = 0.3
    return (lambda: made.value), (lambda value: setattr(made, "value", value))


def attribute_of_array() -> tuple[Function, Change]:
    made: Any = np.zeros(1).view(type("Made", (np.ndarray,), {}))
    made.value = 0.3
    return (lambda: made.value), (lambda value: setattr(made, "value", value))


def name_in_builtins() -> tuple[Function, Change]:
    builtins.fubini_test_value = 0.3  # type: ignore[attr-defined]
    read = eval("lambda: fubini_test_value")
    return read, (lambda value: setattr(builtins, "fubini_test_value", value))


def shadowed_builtin() -> tuple[Function, Change]:
    scope: dict[str, Any] = {}
    exec("def read():\n    return abs(-0.3)", scope)
    return scope["read"], (lambda value: scope.__setitem__("abs", lambda _: value))


def constant_of_library() -> tuple[Function, Change]:
    qml.fubini_test_value = 0.3
    return (lambda: qml.fubini_test_value), (lambda v: setattr(qml, "fubini_test_value", v))


CASES: dict[str, Callable[[], tuple[Function, Change]]] = {
    function.__name__: function
    for function in (
        replaced_method_of_class, replaced_method_of_object, base_class, constructor, forward_of_module, default_value,
        keyword_default, partial, partial_of_list, decorator, cleared_cache, attribute_of_array, name_in_builtins,
        shadowed_builtin, constant_of_library,
    )
} | {
    "attribute of a list": lambda: attribute_of(list, [1]),
    "attribute of a float": lambda: attribute_of(float, 1.0),
    "len": lambda: with_method("__len__", lambda s: round(10 * s.hidden), lambda s: 0.1 * len(s)),
    "float": lambda: with_method("__float__", lambda s: s.hidden, float),
    "getitem": lambda: with_method("__getitem__", lambda s, _: s.hidden, lambda s: s[0]),
    "iter": lambda: with_method("__iter__", lambda s: iter([s.hidden]), lambda s: next(iter(s))),
    "add": lambda: with_method("__add__", lambda s, o: s.hidden + o, lambda s: s + 0),
    "bool": lambda: with_method("__bool__", lambda s: s.hidden > 1, lambda s: 0.3 if s else 0.5),
    "str": lambda: with_method("__str__", lambda s: str(s.hidden), lambda s: float(f"{s}")),
    "call": lambda: with_method("__call__", lambda s: s.hidden, lambda s: s()),
    "array": lambda: with_method(
        "__array__", lambda s, dtype=None, copy=None: np.array(s.hidden), lambda s: float(np.asarray(s))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_changed_object(case: Callable[[], tuple[Function, Change]]) -> None:
    read, change = case()

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0] + weights[0] + read(), 0)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(qml.QNode(circuit, DEVICE), {"weights": 2}).double()
    x = torch.tensor([[0.2, 0.0], [0.4, 0.0]]).double()
    for value in (None, 1.7, 1.7, 0.3):
        if value is not None:
            change(value)
        expected = layer.qnode(x, layer.weights)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@dataclasses.dataclass
class Options:
    angle: float = 0.3


OPTIONS = Options()


class Model(torch.nn.Module):
    """The usual place of a quantum function: a method of the model that holds the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.linear = 2, torch.nn.Linear(2, 2)

    def circuit(self, inputs: Any, weights: Any) -> Any:
        for k in range(self.depth):
            qml.RX(inputs[..., k] + weights[k], 0)
        return qml.expval(qml.Z(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    "function",
    [
        Model().circuit,
        lambda inputs, weights: qml.RX(OPTIONS.angle * inputs[..., 0], 0),
        lambda inputs, weights: qml.RX(torch.pi * inputs[..., 0] + np.pi, 0),
    ],
    ids=["method of a model", "dataclass", "constants"],
)
def test_usual_functions_can_still_be_guarded(function: Any) -> None:
    watch = Watch(function)
    with watch:
        function(torch.ones(2, 2), torch.ones(3))
    assert watch.problem is None


def test_captured_random_functions_are_named() -> None:
    for random in (np.random.normal, torch.rand, torch.randn):

        def circuit(inputs: Any, weights: Any, draw: Any = random) -> Any:
            qml.RX(inputs[..., 0] + draw(1), 0)
            return qml.expval(qml.Z(0))

        watch = Watch(circuit)
        with watch:
            circuit(torch.ones(2, 1), torch.ones(1))
        assert watch.problem is not None
