"""Rare branches of quantum functions, and captured state that changes, for tests of what is compiled."""

import array
import collections
import functools
import os
import sys
import types
from typing import Any

import numpy as np
import pennylane as qml
import torch

import fubini

DEVICE = qml.device("default.qubit", wires=1)


def layer_of(angle: Any) -> fubini.QuantumLayer:
    """RX(angle(inputs, weights)) RY(weights[0]), <Z>."""

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(angle(inputs, weights), 0)
        qml.RY(weights[0], 0)
        return qml.expval(qml.Z(0))

    return fubini.QuantumLayer(qml.QNode(circuit, DEVICE), {"weights": 2}).double()


def check(layer: fubini.QuantumLayer, x: torch.Tensor) -> None:
    expected = layer.qnode(x, **{n: w.detach() for n, w in layer.qnode_weights.items()})
    torch.testing.assert_close(
        layer(x).detach(), expected.to(x.dtype), rtol=0, atol=1e-6, equal_nan=True
    )


# -- branches that random numbers do not reach ----------------------------------------------------------------------

RARE = {
    "where ==": lambda x, w: torch.where(x[..., 0] == 0, torch.pi, x[..., 0]),
    "where abs": lambda x, w: torch.where(x[..., 0].abs() > 10, x[..., 0] * 2, x[..., 0]),
    "clamp": lambda x, w: torch.clamp(x[..., 0], -20, 20),
    "hardtanh": lambda x, w: torch.nn.functional.hardtanh(x[..., 0], -12, 12),
    "leaky relu": lambda x, w: torch.nn.functional.leaky_relu(x[..., 0] + 15),
    "relu of a weight": lambda x, w: x[..., 0] + torch.relu(w[1] - 20),
    "mask": lambda x, w: x[..., 0] * (x[..., 0] < 9).double(),
    "mask by qml.math": lambda x, w: x[..., 0] * qml.math.cast(x[..., 0] < 9, float),
    "nan_to_num": lambda x, w: torch.nan_to_num(x[..., 0]),
    "round": lambda x, w: x[..., 0] + torch.round(x[..., 0] / 100),
    "dtype": lambda x, w: x[..., 0] * (2.0 if x.dtype == torch.float32 else 1.0),
    "requires_grad": lambda x, w: x[..., 0] * (2.0 if x.requires_grad else 1.0),
    "grad mode": lambda x, w: x[..., 0] * (2.0 if torch.is_grad_enabled() else 1.0),
    "number of inputs": lambda x, w: x[..., 0] * (2.0 if x.ndim > 1 and x.shape[0] > 6 else 1.0),
}


# -- captured state -------------------------------------------------------------------------------------------------

MODULE = types.ModuleType("fubini_test_configuration")
MODULE.__dict__.update(VALUE=0.3, TABLE={"a": 0.3})
sys.modules[MODULE.__name__] = MODULE
exec("def get():\n    return VALUE", MODULE.__dict__)


class Options:
    depth = 0.3
    table = {"a": 0.3}  # noqa: RUF012

    @staticmethod
    def helper() -> float:
        return Options.depth


class State:
    """One number in many places."""

    def __init__(self) -> None:
        self.deque = collections.deque([0.3])
        self.array = array.array("d", [0.3])
        self.namespace = types.SimpleNamespace(a=0.3)
        self.number = 0.3
        self.matrix = np.diag([0.3, -0.3])
        self.gate = qml.RX(0.3, 0)


STATE = State()
GLOBAL = 0.3
DEQUE, ARRAY, NAMESPACE, GATE = STATE.deque, STATE.array, STATE.namespace, STATE.gate


@functools.lru_cache
def cached() -> float:
    return GLOBAL


def with_attribute(x: Any, w: Any) -> Any:
    return x[..., 0] + with_attribute.offset  # type: ignore[attr-defined]


with_attribute.offset = 0.3  # type: ignore[attr-defined]


def importing(x: Any, w: Any) -> Any:
    import fubini_test_configuration as configuration  # type: ignore[import-not-found]

    return x[..., 0] + configuration.VALUE


def set_everything(value: float) -> None:
    global GLOBAL
    GLOBAL = value
    MODULE.VALUE = value  # type: ignore[attr-defined]
    MODULE.TABLE["a"] = value  # type: ignore[attr-defined]
    Options.depth = value
    Options.table["a"] = value
    DEQUE[0] = ARRAY[0] = NAMESPACE.a = value
    os.environ["FUBINI_TEST_VALUE"] = str(value)
    with_attribute.offset = value  # type: ignore[attr-defined]
    GATE.data = (value,)
    cached.cache_clear()


CAPTURED = {
    "module attribute": lambda x, w: x[..., 0] + MODULE.VALUE,  # type: ignore[attr-defined]
    "module table": lambda x, w: x[..., 0] + MODULE.TABLE["a"],  # type: ignore[attr-defined]
    "module function": lambda x, w: x[..., 0] + MODULE.get(),  # type: ignore[attr-defined]
    "import": importing,
    "class attribute": lambda x, w: x[..., 0] + Options.depth,
    "class table": lambda x, w: x[..., 0] + Options.table["a"],
    "static method": lambda x, w: x[..., 0] + Options.helper(),
    "deque": lambda x, w: x[..., 0] + DEQUE[0],
    "array": lambda x, w: x[..., 0] + ARRAY[0],
    "getattr": lambda x, w: x[..., 0] + getattr(NAMESPACE, "a"),  # noqa: B009
    "namespace": lambda x, w: x[..., 0] + NAMESPACE.a,
    "globals()": lambda x, w: x[..., 0] + globals()["GLOBAL"],
    "environment": lambda x, w: x[..., 0] + float(os.environ["FUBINI_TEST_VALUE"]),
    "function attribute": with_attribute,
    "cache": lambda x, w: x[..., 0] + cached(),
    "operator data": lambda x, w: x[..., 0] + GATE.data[0],
}
