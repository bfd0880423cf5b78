"""What QNGOptimizer refuses, by name, with the parameters as they were."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from fubini.arrays import all_finite, first_not_finite
from fubini.optim.checks import check_group
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
    opt = fubini.QNGOptimizer(model, metric="quantum")
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
        "metric: expected 'quantum', 'fisher', 'hybrid' or 'energy', got 'euclid'",
    ),
    (lambda m: m, {"layers": "none"}, ValueError, "layers: expected 'wires'"),
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
    model = torch.nn.Linear(2, 2)
    opt = fubini.QNGOptimizer(model)  # it may call a compiled QNode
    model(torch.ones(2)).sum().backward()
    with pytest.warns(UserWarning, match="model: found no QuantumLayer or TorchLayer"):
        opt.step()


def test_a_step_before_any_forward_pass() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model, metric="quantum")
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


# -- one named error for every misuse --------------------------------------------------------------------------------


def fisher(model: Any, **options: Any) -> fubini.QNGOptimizer:
    return fubini.QNGOptimizer(model, metric="fisher", **{"likelihood": "bernoulli", **options})


LM = fubini.LevenbergMarquardt
MISUSES: list[tuple[Callable[[Any], Any], Any, str]] = [
    (
        lambda m: fisher(m, likelihood=None),
        ValueError,
        "likelihood: expected 'categorical', 'bernoulli' or 'gaussian' for metric='fisher'",
    ),
    (lambda m: fisher(m, likelihood="poisson"), ValueError, "likelihood: expected"),
    (lambda m: fisher(list(m.parameters())), ValueError, "model: expected a module for metric"),
    (
        lambda m: fubini.QNGOptimizer(m, likelihood="bernoulli"),
        ValueError,
        "likelihood: expected None with metric='quantum'",
    ),
    (lambda m: fubini.QNGOptimizer(m, fisher="empirical"), ValueError, "fisher: expected 'true' w"),
    (lambda m: fubini.QNGOptimizer(m, samples=3), ValueError, "samples: expected None with metric"),
    (lambda m: fisher(m, fisher="sampled"), ValueError, "fisher: expected 'true' or 'empirical'"),
    (lambda m: fisher(m, fallback="none"), ValueError, "fallback: expected None, 'diagonal' or"),
    (lambda m: fisher(m, samples=0), ValueError, "samples: expected a whole number >= 1, got 0"),
    (lambda m: fisher(m, approx="kfac"), ValueError, "approx: expected None"),
    (lambda m: fubini.QNGOptimizer(m, update_every=0), ValueError, "update_every: expected"),
    (
        lambda m: fubini.QNGOptimizer(m, averaging=1.0),
        ValueError,
        "averaging: expected a number in",
    ),
    (lambda m: fubini.QNGOptimizer(m, momentum=1.0), ValueError, "momentum: expected a number in"),
    (lambda m: fubini.QNGOptimizer(m, weight_decay=-1), ValueError, "weight_decay: expected"),
    (lambda m: fubini.QNGOptimizer(m, step_rule=0.1), TypeError, "step_rule: expected TrustRegion"),
    (lambda m: fubini.QNGOptimizer(m, lam="small"), TypeError, "lam: expected a number"),
    (
        lambda m: fubini.QNGOptimizer(m, lam=LM(), step_rule=fubini.Armijo()),
        ValueError,
        "step_rule: expected none but TrustRegion with LevenbergMarquardt",
    ),
    (
        lambda m: fubini.QNGOptimizer([{"params": m.parameters(), "lam": LM()}], model=m),
        ValueError,
        "lam: expected a number, Relative or Diagonal for a group",
    ),
    (
        lambda m: fubini.QNGOptimizer([{"params": m.parameters(), "lam": 1.0}], model=m, lam=LM()),
        ValueError,
        "lam: expected a number, Relative or Diagonal for a group",
    ),
    (
        lambda m: fubini.QNGOptimizer([torch.ones(2, dtype=torch.complex128)]),
        TypeError,
        "parameter 0: expected a real parameter, got torch.complex128",
    ),
    (lambda m: fubini.QNGOptimizer(m, foreach=True), TypeError, "foreach"),
    (lambda m: fubini.QNGOptimizer(m, lr=torch.ones(2)), ValueError, "lr: expected one number"),
]


@pytest.mark.parametrize(("make", "error", "message"), MISUSES)
def test_misuse(make: Callable[[Any], Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(hybrid())


@pytest.mark.parametrize("rule", [{"lam": LM()}, {"step_rule": fubini.Armijo()}])
def test_rules_that_judge_need_a_closure(rule: dict[str, Any]) -> None:
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    opt = fubini.QNGOptimizer([p], **rule)
    with pytest.raises(RuntimeError, match="step: expected a closure"):
        opt.step()
    with pytest.raises(fubini.NumericalError, match="closure: expected a finite loss, got nan"):
        opt.step(lambda: torch.tensor(float("nan")))
    assert torch.equal(p.detach(), torch.ones(2))
    opt.add_param_group({"params": [torch.ones(1, requires_grad=True)], "maximize": True})
    with pytest.raises(ValueError, match="maximize: expected the same in all groups"):
        opt.step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize("metric", ["quantum", "fisher"])
def test_a_model_called_with_different_weights(metric: Any) -> None:
    """Gradients of two points have no common metric."""
    model = hybrid()
    known = {} if metric == "quantum" else {"likelihood": "gaussian"}
    opt = fubini.QNGOptimizer(model, metric=metric, **known)
    x = torch.rand(4, 3, dtype=torch.float64)
    model(x).sum().backward()
    with torch.no_grad():
        model[1].weights.add_(1.0)
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"(1|model): the passes .* used different weights"):
        opt.step()
    opt.zero_grad()
    model(x).sum().backward()
    opt.step()


def test_a_fisher_step_before_any_forward_pass() -> None:
    model = hybrid()
    opt = fisher(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="model: the parameters have gradients, but no backward"):
        opt.step()


def test_layers_without_a_rule_are_named() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gain

    model = torch.nn.Sequential(Odd(), *hybrid())
    x = torch.rand(4, 3, dtype=torch.float64)
    opt = fisher(model)
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="Odd"):
        opt.step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    opt = fisher(model, fallback="diagonal")
    opt.zero_grad()
    model(x).sum().backward()
    opt.step()
    assert not torch.equal(model[0].gain, before["0.gain"])


def test_matrix_free_metrics_cannot_be_averaged(monkeypatch: Any) -> None:
    monkeypatch.setattr("fubini.fisher.blocks.DENSE_LIMIT", 0)
    monkeypatch.setattr("fubini.fisher.blocks.FACTOR_LIMIT", 0)
    model = hybrid()
    opt = fisher(model, approx=None, averaging=0.5)
    model(torch.rand(4, 3, dtype=torch.float64)).sum().backward()
    with pytest.raises(ValueError, match="averaging, update_every: expected 0 and 1"):
        opt.step()


def test_empirical_matrices_under_a_scaler_need_targets() -> None:
    model = hybrid().float()
    opt = fisher(model, fisher="empirical")
    scaler = torch.amp.GradScaler("cpu")
    x, y = torch.rand(4, 3), torch.ones(4, 1)
    scaler.scale(torch.nn.BCEWithLogitsLoss()(model(x), y)).backward()
    with pytest.raises(ValueError, match=r"targets: expected step\(targets=\.\.\.\)"):
        scaler.step(opt)
    del opt.found_inf, opt.grad_scale
    opt.step(targets=y)


def test_policies_refuse_the_state_of_others() -> None:
    p = torch.ones(2, requires_grad=True)
    saved = fubini.QNGOptimizer([p]).state_dict()
    with pytest.raises(ValueError, match="state: expected a strength"):
        fubini.QNGOptimizer([p], lam=LM()).load_state_dict(saved)


def test_numbers_of_a_group_are_checked_as_far_as_they_are_there() -> None:
    check_group({"lr": 0.1, "lam": 0.0, "weight_decay": 0.0, "momentum": 0.9})
    check_group({"lr": 0.1})
    for name, value in {
        "lr": -0.1,
        "lam": math.inf,
        "weight_decay": math.nan,
        "momentum": 1.0,
    }.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            check_group({name: value})
    with pytest.raises(TypeError, match="lr: expected a number"):
        check_group({"lr": "fast"})


def test_numbers_that_are_not_finite_are_found_in_any_tensor() -> None:
    good = torch.full((17,), 1e308, dtype=torch.float64)  # whose sum is not finite
    others = [
        torch.ones(3, 2).mT,
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.float32, requires_grad=True),
        torch.empty(0),
    ]
    assert first_not_finite([good, *others]) is None
    assert first_not_finite([]) is None
    for number, value in enumerate(others[:3], start=1):
        bad = [good, *(t.detach().clone() for t in others)]
        bad[number][(0,) * bad[number].ndim] = math.inf
        assert first_not_finite(bad) == number, value
    assert not all_finite(torch.tensor([1.0, math.nan]))
