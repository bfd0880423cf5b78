"""What QNGOptimizer refuses, by name, with the parameters as they were."""

import copy
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from models import entangler, hybrid


def nan_gradient(model: Any) -> None:
    model[0].weight.grad[0, 0] = float("nan")


def infinite_gradient(model: Any) -> None:
    model[1].weights.grad[0, 0, 0] = float("inf")


def nan_weight(model: Any) -> None:
    model[1].weights.data[0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_gradient, r"0\.weight: expected a finite gradient, got NaN"),
        (infinite_gradient, r"1\.weights: expected a finite gradient"),
        (nan_weight, r"1\.weights: expected finite weights"),
    ],
)
def test_non_finite_numbers(spoil: Callable[[Any], None], message: str) -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model)
    model(torch.rand(4, 3, dtype=torch.float64)).square().mean().backward()
    spoil(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fubini.NumericalError, match=message):
        opt.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))


def bare() -> tuple[torch.Tensor, fubini.QNGOptimizer]:
    p = torch.tensor([0.1, 0.2], requires_grad=True)
    p.grad = torch.ones(2)
    return p, fubini.QNGOptimizer([p], lam=0)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (
            torch.full((2, 2), float("nan")),
            fubini.NumericalError,
            "expected a finite metric, got NaN",
        ),
        (torch.ones(2, 2), fubini.NumericalError, "singular or not positive definite with lam = 0"),
        (torch.zeros(2, 2), fubini.NumericalError, "pass a larger lam"),
        (torch.ones(3, 3), ValueError, "expected a metric of 2 x 2 entries"),
        ((torch.eye(1), torch.eye(1)), ValueError, "expected one metric per parameter"),
    ],
)
def test_bad_metrics(metric: Any, error: Any, message: str) -> None:
    p, opt = bare()
    with pytest.raises(error, match=message):
        opt.step(lambda: (torch.tensor(0.0), lambda _: metric))
    assert torch.equal(p.detach(), torch.tensor([0.1, 0.2]))


def test_singular_circuit_metric_without_damping() -> None:
    circuit = qml.QNode(
        lambda inputs, w: (qml.RZ(w[0], 0), qml.RX(w[1], 0), qml.expval(qml.Z(0)))[-1],
        qml.device("default.qubit", wires=1),
    )
    layer = fubini.QuantumLayer(circuit, {"w": 2})
    opt = fubini.QNGOptimizer(layer, lam=0)
    layer(torch.zeros(1)).backward()
    with pytest.raises(fubini.NumericalError, match="pass a larger lam"):
        opt.step()


CONSTRUCTION: list[tuple[Any, dict[str, Any], Any, str]] = [
    (lambda m: m, {"lr": -0.1}, ValueError, "lr: expected a finite number >= 0, got -0.1"),
    (lambda m: m, {"lr": float("nan")}, ValueError, "lr: expected a finite number"),
    (lambda m: m, {"lam": -1.0}, ValueError, "lam: expected a finite number >= 0, got -1.0"),
    (lambda m: m, {"approx": "full"}, ValueError, "approx: expected None"),
    (
        lambda m: m,
        {"metric": "euclid"},
        ValueError,
        "metric: expected 'quantum', 'fisher' or 'hybrid', got 'euclid'",
    ),
    (lambda m: m, {"layers": "none"}, ValueError, "layers: expected one of"),
    (lambda m: [m[0].weight, m[0].weight], {}, ValueError, "params: expected every parameter once"),
    (lambda m: [{"params": [m[0].weight], "lam": -2}], {}, ValueError, "lam: expected"),
    (
        lambda m: [{"params": [m[0].weight]}, {"params": [m[0].weight]}],
        {},
        ValueError,
        "more than one",
    ),
    (lambda m: 3.0, {}, TypeError, "iterable"),
    (
        lambda m: list(m.parameters()),
        {"model": "net"},
        TypeError,
        "model: expected a torch.nn.Module, got str",
    ),
]


@pytest.mark.parametrize(("params", "options", "error", "message"), CONSTRUCTION)
def test_refused_construction(
    params: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        fubini.QNGOptimizer(params(hybrid()), **options)


def test_a_model_without_quantum_layers_warns() -> None:
    with pytest.warns(UserWarning, match="model: found no QuantumLayer or TorchLayer"):
        fubini.QNGOptimizer(torch.nn.Linear(2, 2))


def test_a_step_before_any_forward_pass() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError, match=r"call model\(inputs\) and loss\.backward\(\) before step"
    ):
        opt.step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_shared_parameter_of_conflicting_shape() -> None:
    dev = qml.device("default.qubit", wires=2)
    first = fubini.QuantumLayer(qml.QNode(entangler, dev), {"weights": (1, 2, 3)})
    second = fubini.QuantumLayer(qml.QNode(entangler, dev), {"weights": (2, 2, 3)})
    second.weights = first.weights
    with pytest.raises(
        ValueError,
        match=r"1\.weights: expected the shape \(2, 2, 3\) of this layer's weight_shapes",
    ):
        fubini.QNGOptimizer(torch.nn.Sequential(first, second))


@pytest.mark.parametrize(
    "result", [(torch.tensor(0.0), torch.eye(2), 3), (torch.tensor(0.0), "metric")]
)
def test_closures_that_return_something_else(result: Any) -> None:
    _, opt = bare()
    with pytest.raises(TypeError, match="closure: expected it to return the loss or"):
        opt.step(lambda: result)


def test_sparse_and_complex() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="expected a dense gradient"):
        fubini.QNGOptimizer([p]).step()
    c = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    c.grad = torch.ones_like(c)
    with pytest.raises(TypeError, match="expected a real parameter"):
        fubini.QNGOptimizer([c]).step()


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ValueError, "expected a symmetric metric"),
        (-torch.eye(2), fubini.NumericalError, "not positive definite"),
        (torch.eye(2) * 1j, TypeError, "expected a real metric"),
    ],
)
def test_metrics_that_are_none(metric: Any, error: Any, message: str) -> None:
    p, opt = bare()
    opt.param_groups[0]["lam"] = 1e-3
    with pytest.raises(error, match=message):
        opt.step(lambda: (torch.tensor(0.0), lambda _: metric))
    assert torch.equal(p.detach(), torch.tensor([0.1, 0.2]))
