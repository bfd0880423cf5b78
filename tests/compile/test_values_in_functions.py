"""Quantum functions that look at numbers: casts, tables, NumPy, checks of inputs, settings; every call is right."""

import contextlib
from typing import Any
from unittest import mock

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini

TABLE = torch.tensor([0.1, 0.8, 1.5, 2.2])
START = torch.tensor([0.5, 0.875])  # the same in float32 and float64
# Beyond every number that might be tried instead, on both sides of every threshold below.
BATCHES = [
    torch.tensor([[0.0], [10.0], [90.0], [160.0], [250.0]]),
    torch.tensor([[250.0], [0.0]]),
    torch.tensor([[1.0], [127.5], [3.0]]),
]


def without_gradient(x: Any) -> Any:
    with torch.no_grad():
        return torch.relu(x - 127.5) / 127.5


def in_inference_mode(x: Any) -> Any:
    with torch.inference_mode():
        return torch.clamp(x - 100, 0, 2)


ANGLES: dict[str, Any] = {
    "to bool": lambda x, w: 2.0 * x.to(torch.bool),
    "type": lambda x, w: 2.0 * x.type(torch.bool),
    "bool": lambda x, w: 2.0 * x.bool(),
    "inverted": lambda x, w: 2.0 * ~x.to(torch.bool),
    "to int64": lambda x, w: 2.0 * (x / 128).to(torch.int64),
    "long": lambda x, w: 2.0 * (x / 128).long(),
    "bits": lambda x, w: 2.0 * ((x.to(torch.int64) >> 7) & 1),
    "heaviside": lambda x, w: torch.heaviside(x - 127.5, torch.zeros((), dtype=x.dtype)),
    "logical_xor": lambda x, w: 2.0 * torch.logical_xor(x, torch.ones_like(x)),
    "isin": lambda x, w: 2.0 * torch.isin(x, torch.tensor([1.0, 250.0])),
    "table": lambda x, w: TABLE[(x / 100).to(torch.int64)],
    "index_select": lambda x, w: TABLE.index_select(0, (x / 100).long()),
    "embedding": lambda x, w: torch.nn.functional.embedding((x / 100).long(), TABLE[:, None])[:, 0],
    "bucketize": lambda x, w: torch.bucketize(x, torch.tensor([50.0, 127.5])) * 0.7,
    "no_grad": lambda x, w: without_gradient(x),
    "inference_mode": lambda x, w: in_inference_mode(x),
    "detach": lambda x, w: 0.01 * x.detach(),
    "cast weight": lambda x, w: 0.01 * x + (w[1] * 10).detach().to(torch.int64),
    "in": lambda x, w: 0.01 * x + (1.0 if 0.875 in w.detach() else 0.3),
    "is_nonzero": lambda x, w: 0.01 * x + (1.0 if torch.is_nonzero(w[1].detach()) else 0.3),
    "np.arcsin": lambda x, w: np.arcsin(x / 300),
    "np.arctan": lambda x, w: np.arctan(x),
    "numpy": lambda x, w: 0.01 * x.numpy(),
    "asarray": lambda x, w: np.asarray(x) * 0.01,
    "times array": lambda x, w: x * np.array(0.02),
    "np.where": lambda x, w: torch.as_tensor(np.where(x.numpy() > 127, 1.0, 0.3)),
}


def looking(angle: Any) -> Any:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RY(weights[0], 0)
        qml.RX(angle(inputs[..., 0], weights), 0)
        qml.RZ(weights[1], 0)
        return qml.expval(qml.Z(0))

    return qml.QNode(circuit, qml.device("default.qubit", wires=1))


def layer_of(qnode: Any) -> Any:
    return fubini.QuantumLayer(qnode, {"weights": 2}, {"weights": START})


@pytest.mark.parametrize("name", ANGLES)
def test_what_a_function_makes_of_values_is_right_in_every_call(name: str) -> None:
    layer = layer_of(looking(ANGLES[name]))
    for x in [*BATCHES, *BATCHES]:
        angle = torch.as_tensor(ANGLES[name](x[:, 0], START)).double()
        # <Z> after RY(w) and RX(a) is cos(w) cos(a); its derivative by w follows.
        got = layer(x)
        want = np.cos(0.5) * torch.cos(angle)
        torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=0)  # float32 results
        layer.zero_grad()
        got.sum().backward()
        slope = -np.sin(0.5) * torch.cos(angle).sum()
        torch.testing.assert_close(layer.weights.grad[0].double(), slope, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ANGLES)
def test_metric_of_a_function_that_looks_at_values_is_right_in_every_call(name: str) -> None:
    metric = fubini.metric_tensor(looking(ANGLES[name]), argnums=1)
    w = START.clone().requires_grad_()
    for x in [*BATCHES[:1], *BATCHES, BATCHES[1]]:
        angle = torch.as_tensor(ANGLES[name](x[:, 0], START)).double()
        # Variances and covariance of Y / 2 and Z / 2, both moved behind the rotation by the angle.
        want = torch.empty(len(x), 2, 2, dtype=torch.float64)
        want[:, 0, 0] = 0.25
        want[:, 0, 1] = want[:, 1, 0] = torch.sin(angle) / 4
        want[:, 1, 1] = (1 - (np.cos(0.5) * torch.cos(angle)) ** 2) / 4
        torch.testing.assert_close(metric(x, w).detach().double(), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["auto", "device"])
def test_metric_of_a_layer_decides_at_a_threshold_as_its_forward_pass_does(
    dtype: torch.dtype, engine: Any
) -> None:
    qnode = looking(lambda x, w: torch.where(x > 0.3, 1.0, 0.3))
    start = {"weights": START}
    layer = fubini.QuantumLayer(qnode, {"weights": 2}, start, engine=engine).to(dtype)
    x = torch.tensor([[0.3], [0.5]], dtype=dtype)  # a float32 0.3 is above 0.3 in float64 alone
    angles = torch.tensor([0.3, 1.0], dtype=torch.float64)
    want = np.cos(0.5) * torch.cos(angles)
    torch.testing.assert_close(layer(x).detach().double(), want, atol=1e-6, rtol=0)
    metric = fubini.metric_tensor(layer)(x).detach().double().reshape(2, 2, 2)
    torch.testing.assert_close(metric[:, 0, 1], torch.sin(angles) / 4, atol=1e-6, rtol=0)


# -- checks of the inputs -----------------------------------------------------------------------------------------------


class OwnError(Exception):
    """Of a user."""


def asserted(x: Any) -> Any:
    assert bool((x >= 0).all()), "negative"
    return x


def own(x: Any) -> Any:
    if x.min() < 0:
        raise OwnError("negative")
    return x


def overflow(x: Any) -> Any:
    if float(x.min()) < 0:
        raise OverflowError("negative")
    return x


def looked_up(x: Any) -> Any:
    return x + {0: 0.3, 1: 0.5}[int(x.sum() >= 0) + 5 * int(x.sum() < 0)]


def next_of(x: Any) -> Any:
    return x + next(v for v in (0.3, 0.5) if v > -float(x.min()) * 100)


def divided(x: Any) -> Any:
    return x + 1 // int(x.min() >= 0)


CHECKS = [
    (asserted, AssertionError),
    (own, OwnError),
    (overflow, OverflowError),
    (looked_up, KeyError),
    (next_of, StopIteration),
    (divided, ZeroDivisionError),
]


@pytest.mark.parametrize(("check", "error"), CHECKS)
@pytest.mark.parametrize("first", ["right", "wrong"])
def test_checks_of_inputs_see_the_inputs_and_nothing_else(
    check: Any, error: Any, first: str
) -> None:
    layer = layer_of(looking(lambda x, w: check(x)))
    right, wrong = torch.tensor([[0.2], [0.9]]), torch.tensor([[-0.2], [-0.9]])
    if first == "wrong":
        with pytest.raises(error):
            layer(wrong)
    for _ in range(2):
        want = np.cos(0.5) * torch.cos(check(right[:, 0]))
        torch.testing.assert_close(layer(right), want, atol=1e-6, rtol=0)
        with pytest.raises(error):
            layer(wrong)


# -- settings -----------------------------------------------------------------------------------------------------------


class ByKey(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class ByGet(dict):  # type: ignore[type-arg]
    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


class Endless(dict):  # type: ignore[type-arg]
    """Every attribute exists."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.setdefault(name, Endless())

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Computed:
    def __init__(self, **values: Any) -> None:
        self.__dict__["values"] = values

    def __getattr__(self, name: str) -> Any:
        with contextlib.suppress(KeyError):
            return self.__dict__["values"][name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.values[name] = value


@pytest.mark.parametrize("kind", [ByKey, ByGet, Endless, Computed, mock.MagicMock])
def test_settings_with_attributes_of_their_own_kind_are_read_anew(kind: Any) -> None:
    settings = kind(scale=0.5)
    layer = layer_of(looking(lambda x, w: settings.scale * x))
    x = torch.tensor([[0.2], [0.9]])
    for scale in (0.5, 0.5, 1.5, 0.5, -2.0):
        settings.scale = scale
        want = np.cos(0.5) * torch.cos(scale * x[:, 0])
        torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [dict, ByKey])
def test_transforms_of_users_read_their_settings_anew(kind: Any) -> None:
    settings = kind(scale=1.0)

    @qml.transform
    def scaled(tape: Any) -> Any:
        operations = [
            qml.RX(settings["scale"] * op.data[0], op.wires) if op.name == "RX" else op
            for op in tape.operations
        ]
        return [tape.copy(operations=operations)], lambda results: results[0]

    layer = layer_of(scaled(looking(lambda x, w: x)))
    x = torch.tensor([[0.2], [0.9]])
    for scale in (1.0, 1.0, 2.0, 1.0):
        settings["scale"] = scale
        want = np.cos(0.5) * torch.cos(scale * x[:, 0])
        torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=0)
