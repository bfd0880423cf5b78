"""Metrics of QNodes that are called again: compiled calls against the quantum function run anew."""

import gc
import weakref
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from captured import CAPTURED, RARE, set_everything
from fubini.compile import calls as compiled_calls
from fubini.metric import engines as points

DEVICE = qml.device("default.qubit", wires=1)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"approx": "block-diag"},
    {"approx": "block-diag", "layers": "maximal"},
    {"approx": "diag"},
]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call was served by a compiled circuit."""
    seen: list[bool] = []

    def spy(*args: Any) -> Any:
        result = compiled_calls.compiled_call(*args)
        seen.append(result is not None)
        return result

    monkeypatch.setattr(points, "compiled_call", spy)
    return seen


def metric(qnode: Any, *args: Any, engine: Any = "native", **kwargs: Any) -> torch.Tensor:
    return fubini.metric_tensor(qnode, joint=True, engine=engine)(*args, **kwargs).detach()


def entangling(w: Any) -> Any:
    qml.StronglyEntanglingLayers(w[:12].reshape(1, 4, 3), wires=range(4))
    qml.BasicEntanglerLayers(w[12:20].reshape(2, 4), wires=range(4), rotation=qml.RY)
    return qml.probs()


def composite(w: Any) -> Any:
    qml.RY(0.4, 0)
    qml.U3(w[0], w[1], w[2], wires=0)
    qml.CRot(w[3], w[4], w[5], wires=[2, 0])
    qml.IsingXY(w[6], [1, 3])
    qml.PauliRot(w[7], "XYZ", wires=[3, 0, 2])
    qml.adjoint(qml.CRX(w[8], [0, 1]))
    qml.ctrl(qml.RY(w[9], 2), control=[0, 1], control_values=[1, 0])
    qml.U2(w[10], w[11], wires=3)
    qml.MultiRZ(w[12], wires=[0, 2, 3])
    qml.evolve(qml.Z(0) @ qml.Z(1) + 0.5 * qml.Z(2), w[13])
    qml.ControlledPhaseShift(w[14], [1, 0])
    for k in range(4):
        qml.RX(w[15 + k], k)
    qml.GlobalPhase(w[19])
    return qml.expval(qml.Z(0))


def shared(w: Any) -> Any:
    qml.BasisState([1, 1, 0, 0], wires=range(4))
    qml.DoubleExcitation(2 * w[0] + 0.3, wires=range(4))
    qml.SingleExcitation(w[1] - w[2], wires=[0, 2])
    for k in range(4):
        qml.PhaseShift(w[k], k)
        qml.RY(0.5 * w[k + 1], k)
    qml.OrbitalRotation(w[5], wires=range(4))
    qml.CRZ(w[0] + w[6], [3, 1])
    return qml.state()


@pytest.mark.parametrize("function", [entangling, composite, shared])
def test_later_calls_are_those_of_the_first(function: Any, compiled: list[bool]) -> None:
    qnode = qml.QNode(function, qml.device("default.qubit", wires=4))
    weights = torch.rand(20, dtype=torch.float64, requires_grad=True)
    other = (weights.detach() + 0.3).requires_grad_()
    expected = {}
    for w in (weights, other):  # the device never compiles
        for k, options in enumerate(OPTIONS):
            fn = fubini.metric_tensor(qnode, engine="device", **options)
            expected[w, k] = fn(w)
    for w in (weights, other, weights):
        for k, options in enumerate(OPTIONS):
            got = fubini.metric_tensor(qnode, **options)(w)
            torch.testing.assert_close(got.detach(), expected[w, k], rtol=0, atol=1e-11)
    assert all(compiled)
    tensor = fubini.geometric_tensor(qnode)(weights).detach()
    torch.testing.assert_close(
        tensor, fubini.geometric_tensor(qnode, engine="device")(weights), rtol=0, atol=1e-11
    )


def test_derivatives_of_compiled_calls(compiled: list[bool]) -> None:
    qnode = qml.QNode(shared, qml.device("default.qubit", wires=4))
    weights = torch.rand(20, dtype=torch.float64, requires_grad=True)
    slopes = []
    for _ in range(3):
        value = fubini.metric_tensor(qnode)(weights)
        mask = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
        slopes.append(torch.autograd.grad((value * mask).sum(), weights)[0])
    assert compiled == [True, True, True]
    assert slopes[0].abs().max() > 1e-3
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(slopes[2], slopes[0], rtol=0, atol=1e-11)


def test_arguments_constants_and_data(compiled: list[bool]) -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(a: Any, x: Any, depth: int = 1, *, b: Any) -> Any:
        for k in range(depth):
            qml.RX(a[k] + x[0, 1], 0)
            qml.RY(2 * b, 1)
            qml.CNOT([0, 1])
            qml.RZ(x[1, 0], 1)
        return qml.expval(qml.Z(0))

    a = torch.rand(3, dtype=torch.float64, requires_grad=True)
    b = torch.rand((), dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 2, dtype=torch.float64)
    for depth in (1, 2, 1, 2, 3):
        for data in (x, x + 1):
            for args, kwargs in (
                ((a, data, depth), {"b": b}),
                ((a, data), {"b": b.detach(), "depth": depth}),
                ((a.detach(), data), {"b": b, "depth": depth}),
            ):
                got = metric(circuit, *args, **kwargs)
                expected = metric(circuit, *args, engine="device", **kwargs)
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert sum(compiled) > len(compiled) // 2
    with pytest.raises(ValueError, match="angles: expected finite numbers, got nan"):
        metric(circuit, a, x * torch.nan, 2, b=b)


def test_batches_and_products_are_compiled(compiled: list[bool]) -> None:
    @qml.qnode(DEVICE)
    def circuit(x: Any, w: Any) -> Any:
        qml.RX(x[..., 0], 0)
        qml.RY(w[0] * w[1], 0)
        return qml.expval(qml.Z(0))

    w = torch.rand(2, dtype=torch.float64, requires_grad=True)
    for x in (torch.rand(3, 1), torch.rand(1)):
        for _ in range(3):
            got = metric(circuit, x.double(), w)
            assert got.shape == ((3, 2, 2) if x.ndim > 1 else (2, 2))
            expected = metric(circuit, x.double(), w, engine="device")
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert compiled == [True] * 6


def number_by_number(x: Any, w: Any) -> Any:
    for k in range(2):
        qml.RX(x * w[k], 0)
        qml.RY(torch.sin(x) + w[k + 1], 1)
        qml.CNOT([0, 1])
    return qml.expval(qml.Z(0)), qml.probs(wires=[1])


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_numbers_are_a_batch_of_inputs(approx: Any, compiled: list[bool]) -> None:
    qnode = qml.QNode(number_by_number, qml.device("default.qubit", wires=2))
    call = fubini.compiled(qnode)
    w = torch.rand(3, dtype=torch.float64, requires_grad=True)
    for count in (5, 4, 5, 5):
        x = torch.rand(count, dtype=torch.float64, requires_grad=True)
        values, want = call(x, w), qnode(x, w)
        for got, expected in zip(values, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        loss = [sum((part**2).sum() for part in parts) for parts in (values, want)]
        for got, expected in zip(*(torch.autograd.grad(one, (x, w)) for one in loss), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
        x = x.detach()
        found = fubini.metric_tensor(qnode, approx, joint=True)(x, w)
        one_by_one = [fubini.metric_tensor(qnode, approx, joint=True)(v, w) for v in x]
        torch.testing.assert_close(found, torch.stack(one_by_one), rtol=0, atol=1e-12)
    assert "compiled circuit" in call.explain()
    assert all(compiled)


def test_numbers_that_weights_are_taken_of_are_no_batch() -> None:
    """The one tensor of the batch's length is read element by element, too."""

    def function(x: Any, w: Any) -> Any:
        qml.RX(x, 0)
        qml.RY(x[0] * w, 0)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(function, qml.device("default.qubit", wires=1))
    call = fubini.compiled(qnode)
    w = torch.rand((), dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        x = torch.rand(3, dtype=torch.float64)
        torch.testing.assert_close(call(x, w), qnode(x, w), rtol=0, atol=1e-12)


def test_derivatives_of_batches(compiled: list[bool]) -> None:
    """The metric of a batch, differentiated by the weights, against the tape's."""

    def function(x: Any, w: Any) -> Any:
        qml.RX(x[:, 0] * w[0], 0)
        qml.RY(w[1] * w[2], 0)
        qml.RX(w[2] + x[:, 1], 0)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(function, qml.device("default.qubit", wires=1))
    x = torch.rand(3, 2, dtype=torch.float64)
    w = torch.rand(3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 3, dtype=torch.float64)
    for reduce in (None, "mean"):
        got = fubini.metric_tensor(qnode, joint=True, reduce=reduce)(x, w)
        slope = torch.autograd.grad((got * weight).sum(), w)[0]
        numbers = torch.zeros(3, dtype=torch.float64)
        for k in range(3):
            step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
            ends = [
                fubini.metric_tensor(qnode, joint=True, reduce=reduce, engine="device")(x, w + s)
                for s in (step, -step)
            ]
            numbers[k] = ((ends[0] - ends[1]) / 2e-5 * weight).sum().detach()
        # Differences of this width lose half of the digits.
        torch.testing.assert_close(slope, numbers, rtol=0, atol=1e-8)
    assert compiled[0]


def qnode_of(angle: Any) -> Any:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(angle(inputs, weights), 0)
        qml.RY(weights[0], 0)
        qml.RX(weights[1], 0)
        return qml.expval(qml.Z(0))

    return qml.QNode(circuit, DEVICE)


@pytest.mark.parametrize("angle", RARE.values(), ids=RARE.keys())
def test_rare_branches(angle: Any) -> None:
    qnode = qnode_of(angle)
    w = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    bent = torch.tensor([0.3, 25.0], dtype=torch.float64, requires_grad=True)
    for value in (0.5, 0.5, 0.5, 0.0, 11.0, -25.0, 70.0):
        for weights in (w, bent):
            for x in (torch.tensor([value, 0.0]).double(), torch.tensor([value, 0.0])):
                got = metric(qnode, x, weights)
                fresh = metric(qnode_of(angle), x, weights)
                torch.testing.assert_close(got, fresh, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angle", CAPTURED.values(), ids=CAPTURED.keys())
def test_captured_state(angle: Any) -> None:
    set_everything(0.3)
    qnode = qnode_of(angle)
    x = torch.tensor([0.2, 0.0], dtype=torch.float64)
    w = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    for value in (0.3, 0.3, 0.3, 1.7, 1.7, 0.3, -0.9):
        set_everything(value)
        got = metric(qnode, x, w)
        torch.testing.assert_close(got, metric(qnode_of(angle), x, w), rtol=0, atol=1e-12)


def test_another_function_or_device() -> None:
    qnode = qnode_of(lambda x, w: x[0])
    x = torch.tensor([0.2, 0.0], dtype=torch.float64)
    w = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    before = [metric(qnode, x, w) for _ in range(3)][-1]
    qnode.func = qnode_of(lambda x, w: x[0] + 1.0).func
    after = metric(qnode, x, w)
    torch.testing.assert_close(after, metric(qnode, x, w, engine="device"), rtol=0, atol=1e-12)
    assert not torch.allclose(after, before)
    shots = qml.set_shots(qnode, 10)
    with pytest.raises(fubini.UnsupportedCircuitError, match="10 shots"):
        metric(shots, x, w)


def test_nothing_outlives_the_qnode() -> None:
    qnode = qnode_of(lambda x, w: x[0])
    x = torch.tensor([0.2, 0.0], dtype=torch.float64)
    w = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        metric(qnode, x, w)
    gone = weakref.ref(qnode)
    del qnode
    gc.collect()
    assert gone() is None


def test_many_ways_to_call_are_forgotten(compiled: list[bool]) -> None:
    @qml.qnode(DEVICE)
    def circuit(w: Any, depth: int) -> Any:
        for _ in range(depth):
            qml.RX(w[0], 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for depth in range(1, 60):
        got = metric(circuit, w, depth)
        np.testing.assert_allclose(got.item(), depth**2 / 4, rtol=1e-12)
    calls = compiled_calls._calls[circuit].known
    assert len(calls) <= 16


def between(x: Any) -> None:
    if not bool((abs(x) <= 1).all()):
        raise AssertionError("x: expected numbers from -1 to 1")
    qml.RX(torch.acos(x[0]), 0)


@pytest.mark.parametrize(
    ("prepare", "x"),
    [
        (lambda x: qml.BasisEmbedding(x, wires=range(2)), torch.tensor([0, 1])),
        (lambda x: qml.BasisState(x.int(), wires=range(2)), torch.tensor([1.0, 0.0])),
        (lambda x: qml.AmplitudeEmbedding(x, range(2)), torch.tensor([0.6, 0.0, 0.8, 0.0])),
        (between, torch.tensor([0.3, -0.2])),
    ],
    ids=["basis embedding", "basis state", "amplitudes", "assertion"],
)
def test_functions_that_check_their_arguments(prepare: Any, x: torch.Tensor) -> None:
    # The second call ran them with random numbers, and raised what they raise for these.
    def circuit(x: Any, w: Any) -> Any:
        prepare(x)
        qml.RY(w[0], 0)
        qml.CNOT([0, 1])
        qml.RX(w[1], 1)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    w = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)
    expected = metric(qnode, x.double() if x.is_floating_point() else x, w, engine="device")
    for _ in range(3):
        found = metric(qnode, x.double() if x.is_floating_point() else x, w)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
