"""QNGOptimizer: where it ends, what it leaves alone, and what it refuses."""

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import DEVICES

START = (0.432, -0.123, 0.543, 0.233)


def stokes(p: Any) -> Any:
    qml.RY(np.pi / 4, 0)
    qml.RY(np.pi / 3, 1)
    qml.RY(np.pi / 7, 2)
    qml.RZ(p[0], 0)
    qml.RZ(p[1], 1)
    qml.CNOT([0, 1])
    qml.CNOT([1, 2])
    qml.RY(p[2], 1)
    qml.RX(p[3], 2)
    qml.CNOT([0, 1])
    qml.CNOT([1, 2])
    return qml.expval(qml.Y(0))


def pennylane_end(approx: str, steps: int = 200) -> Any:
    from pennylane import numpy as pnp

    qnode = qml.QNode(stokes, qml.device("default.qubit", wires=3), interface="autograd")
    p = pnp.array(START, requires_grad=True)
    optimizer = qml.QNGOptimizer(0.01, approx=approx, lam=0)
    for _ in range(steps):
        p = optimizer.step(qnode, p)
    return np.asarray(p)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("approx", ["block-diag", "diag"])
def test_both_ways_end_where_pennylane_ends(device: str, approx: Any) -> None:
    expected = pennylane_end(approx)
    dev = qml.device(device, wires=3)

    circuit = qml.QNode(stokes, dev, interface="torch")
    params = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    opt = fubini.QNGOptimizer([params], lr=0.01, lam=0)

    def closure() -> Any:
        opt.zero_grad()
        loss = circuit(params)
        loss.backward()
        return loss, fubini.metric_tensor(circuit, approx=approx)

    layer = fubini.QuantumLayer(
        qml.QNode(lambda inputs, p: stokes(p), dev),
        {"p": 4},
        {"p": torch.tensor(START, dtype=torch.float64)},
    )
    model_opt = fubini.QNGOptimizer(layer, lr=0.01, lam=0, approx=approx)
    for _ in range(200):
        loss = opt.step(closure)
        model_opt.zero_grad()
        layer(torch.zeros(1, dtype=torch.float64)).backward()
        model_opt.step()
    assert loss.item() == pytest.approx(circuit(params).item(), abs=1e-3)
    # 200 steps of a contracting iteration, each right to 1e-13.
    np.testing.assert_allclose(params.detach(), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(layer.p.detach(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("approx", ["block-diag", "diag"])
def test_metric_tensor_inside_pennylanes_optimizer(approx: Any) -> None:
    from pennylane import numpy as pnp

    qnode = qml.QNode(stokes, qml.device("default.qubit", wires=3), interface="autograd")
    p = pnp.array(START, requires_grad=True)
    optimizer = qml.QNGOptimizer(0.01, lam=0)
    for _ in range(20):
        p = optimizer.step(qnode, p, metric_tensor_fn=fubini.metric_tensor(qnode, approx=approx))
    np.testing.assert_allclose(p, pennylane_end(approx, 20), rtol=0, atol=1e-10)


# -- hybrid models -------------------------------------------------------------------------------------------------


def entangler(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def reuploading(inputs: Any, weights: Any, scale: Any) -> Any:
    for k in range(2):
        qml.RX(scale * inputs[..., 0], 0)
        qml.RY(weights[k, 0] * inputs[..., 1], 1)
        qml.CNOT([0, 1])
        qml.RY(weights[k, 1], 0)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def hybrid(
    device: str = "default.qubit",
    foreign: bool = False,
    second: bool = False,
    engine: Any = "auto",
) -> torch.nn.Sequential:
    dev = qml.device(device, wires=2)
    kind: Any = (
        qml.qnn.TorchLayer if foreign else functools.partial(fubini.QuantumLayer, engine=engine)
    )
    parts: list[torch.nn.Module] = [
        torch.nn.Linear(3, 2),
        kind(qml.QNode(entangler, dev), {"weights": (2, 2, 3)}),
    ]
    if second:
        parts += [kind(qml.QNode(reuploading, dev), {"weights": (2, 2), "scale": 1})]
    return torch.nn.Sequential(*parts, torch.nn.Linear(2, 1)).double()


def expected_step(
    model: torch.nn.Sequential, x: torch.Tensor, lr: float, lam: float, approx: Any
) -> dict[str, Any]:
    """The rule written out: one metric per layer, mean over the inputs it sees, dense solve."""
    model.zero_grad()
    model(x).square().mean().backward()
    new = {n: p.detach() - lr * p.grad for n, p in model.named_parameters() if p.grad is not None}
    hidden = x
    for name, module in model.named_children():
        if isinstance(module, fubini.QuantumLayer | qml.qnn.TorchLayer):
            metric = fubini.metric_tensor(module, approx, reduce="mean", joint=True)(
                hidden.detach()
            )
            weights = module.qnode_weights
            gradient = torch.cat([w.grad.reshape(-1) for w in weights.values()])
            direction = torch.linalg.solve(
                metric + lam * torch.eye(len(metric), dtype=metric.dtype), gradient
            )
            sizes = [w.numel() for w in weights.values()]
            for (weight, p), part in zip(weights.items(), direction.split(sizes), strict=True):
                new[f"{name}.{weight}"] = p.detach() - lr * part.reshape(p.shape)
        hidden = module(hidden)
    return new


def check_parameters(model: torch.nn.Module, expected: dict[str, Any]) -> None:
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("foreign", [False, True], ids=["QuantumLayer", "TorchLayer"])
@pytest.mark.parametrize("second", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("approx", ["block-diag", "diag", None])
def test_a_step_of_a_hybrid_model(foreign: bool, second: bool, approx: Any) -> None:
    model = hybrid(foreign=foreign, second=second)
    x = torch.rand(6, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-2, approx)
    opt = fubini.QNGOptimizer(model, lr=0.1, approx=approx, lam=1e-2)
    opt.zero_grad()
    model(x).square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    assert opt.step() is None
    check_parameters(model, expected)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))


@pytest.mark.parametrize("zero_first", [True, False])
def test_only_differentiated_passes_count(zero_first: bool) -> None:
    model, x = hybrid(), torch.rand(6, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(model, lr=0.1)
    model(torch.rand(3, 3, dtype=torch.float64)).sum().backward()  # an older batch, then zeroed
    if zero_first:
        model.zero_grad()
    loss = model(x).square().mean()
    model(torch.rand(50, 3, dtype=torch.float64))  # looked at, never differentiated
    with torch.no_grad():
        model(torch.rand(50, 3, dtype=torch.float64))
    if not zero_first:
        opt.zero_grad()
    loss.backward()
    opt.step()
    check_parameters(model, expected)


def test_gradient_accumulation_counts_all_passes() -> None:
    model, x = hybrid(), torch.rand(6, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(model, lr=0.1)
    opt.zero_grad()
    for part in x.split(2):
        (model(part).square().sum() / 6).backward()
    opt.step()
    check_parameters(model, expected)


def test_a_layer_used_twice_in_one_pass() -> None:
    layer = fubini.QuantumLayer(
        qml.QNode(entangler, qml.device("default.qubit", wires=2)), {"weights": (1, 2, 3)}
    )
    layer.double()
    a, b = torch.rand(2, 3, 2, dtype=torch.float64)
    opt = fubini.QNGOptimizer(layer, lr=0.1)
    before = layer.weights.detach().clone()
    (layer(a) + layer(b)).square().mean().backward()
    metric = fubini.metric_tensor(layer, "block-diag", reduce="mean", joint=True)(torch.cat([a, b]))
    direction = torch.linalg.solve(
        metric + 1e-3 * torch.eye(6, dtype=torch.float64), layer.weights.grad.reshape(-1)
    )
    opt.step()
    torch.testing.assert_close(
        layer.weights.detach(), before - 0.1 * direction.reshape(1, 2, 3), rtol=1e-9, atol=1e-12
    )


def test_layers_that_share_a_parameter_are_one_system() -> None:
    dev = qml.device("default.qubit", wires=2)
    first = fubini.QuantumLayer(qml.QNode(entangler, dev), {"weights": (1, 2, 3)}).double()
    second = fubini.QuantumLayer(qml.QNode(entangler, dev), {"weights": (1, 2, 3)}).double()
    second.weights = first.weights
    model = torch.nn.Sequential(first, second)
    x = torch.rand(4, 2, dtype=torch.float64)
    opt = fubini.QNGOptimizer(model, lr=0.1)
    before = first.weights.detach().clone()
    model(x).square().mean().backward()
    options: Any = {"approx": "block-diag", "reduce": "mean", "joint": True}
    total = fubini.metric_tensor(first, **options)(x) + fubini.metric_tensor(second, **options)(
        first(x).detach()
    )
    direction = torch.linalg.solve(
        total + 1e-3 * torch.eye(6, dtype=torch.float64), first.weights.grad.reshape(-1)
    )
    opt.step()
    torch.testing.assert_close(
        first.weights.detach(), before - 0.1 * direction.reshape(1, 2, 3), rtol=1e-9, atol=1e-12
    )


def test_a_step_runs_few_circuits() -> None:
    """Layers plus two: one forward pass (backprop differentiates it), one circuit per layer of gates."""
    model, x = hybrid(engine="device"), torch.rand(32, 3, dtype=torch.float64)
    dev = model[1].qnode.device
    opt = fubini.QNGOptimizer(model, lr=0.1)
    with qml.Tracker(dev) as tracker:
        model(x).square().mean().backward()
        opt.step()
    layers = 6  # two entangling layers of RZ RY RZ
    assert tracker.totals["simulations"] <= layers + 2
    assert tracker.totals["batches"] == 2


def test_groups_have_their_own_lr_and_lam() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.2, 1e-1, "block-diag")
    classical = [p for n, p in model.named_parameters() if not n.startswith("1.")]
    before = [p.detach().clone() for p in classical]
    groups = [
        {"params": [model[1].weights], "lr": 0.2, "lam": 1e-1},
        {"params": classical, "lr": 0.0},
    ]
    opt = fubini.QNGOptimizer(groups, model=model)
    model.zero_grad()
    model(x).square().mean().backward()
    opt.step()
    torch.testing.assert_close(
        model[1].weights.detach(), expected["1.weights"], rtol=1e-9, atol=1e-12
    )
    assert all(torch.equal(a, b) for a, b in zip(before, classical, strict=True))


def test_parameters_without_gradient_are_skipped() -> None:
    model, x = hybrid(second=True), torch.rand(4, 3, dtype=torch.float64)
    model[2].scale.requires_grad_(False)
    scale = model[2].scale.clone()
    opt = fubini.QNGOptimizer(model)
    model(x).square().mean().backward()
    opt.step()
    assert torch.equal(scale, model[2].scale)
    unused = fubini.QNGOptimizer(hybrid())
    unused.step()  # no gradients at all: nothing to do


def test_bare_parameters_take_the_plain_step() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    opt = fubini.QNGOptimizer([p, q], lr=0.5)
    (p.sum() * 2).backward()
    opt.step()
    assert torch.equal(p, torch.zeros(2))
    assert torch.equal(q, torch.ones(3))
    loss = opt.step(lambda: p.square().sum() + 1.0)
    assert loss.item() == 1.0


def test_a_closure_metric_covers_the_first_parameters() -> None:
    circuit = qml.QNode(stokes, qml.device("default.qubit", wires=3))
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    opt = fubini.QNGOptimizer([p, bias], lr=0.1, lam=0.01)
    before = p.detach().clone()

    def closure() -> Any:
        opt.zero_grad()
        loss = (circuit(p) + bias).square()
        loss.backward()
        return loss, fubini.metric_tensor(circuit, "block-diag")

    opt.step(closure)
    metric = fubini.metric_tensor(circuit, "block-diag")(before.requires_grad_())
    expected = before - 0.1 * torch.linalg.solve(
        metric + 0.01 * torch.eye(4, dtype=torch.float64), p.grad
    )
    torch.testing.assert_close(p.detach(), expected.detach())
    torch.testing.assert_close(bias.detach(), 0.5 - 0.1 * bias.grad)


def test_state_dict_and_copies() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    opt = fubini.QNGOptimizer(model, lr=0.3, lam=0.2)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    other_model = copy.deepcopy(model)
    other = fubini.QNGOptimizer(other_model, lr=0.1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["lr"] == 0.3
    assert other.param_groups[0]["lam"] == 0.2
    twin_model, twin = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (other_model, other), (twin_model, twin)):
        m.zero_grad()
        m(x).square().mean().backward()
        o.step()
    for p, q, r in zip(
        model.parameters(), other_model.parameters(), twin_model.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_float32_models() -> None:
    model, x = hybrid().float(), torch.rand(4, 3)
    opt = fubini.QNGOptimizer(model, lr=0.1)
    losses = []
    for _ in range(10):
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model[1].weights.dtype == torch.float32


def test_lr_scheduler_and_hooks() -> None:
    p = torch.ones(1, requires_grad=True)
    opt = fubini.QNGOptimizer([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    calls: list[str] = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    p.grad = torch.ones(1)
    opt.step()
    scheduler.step()
    opt.step()
    assert p.item() == -0.5
    assert calls == ["pre", "post"] * 2


# -- refusals: the parameters stay as they were ---------------------------------------------------------------------


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
    (lambda m: m, {"metric": "euclid"}, ValueError, "metric: expected 'quantum', got 'euclid'"),
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


# -- what once went wrong -------------------------------------------------------------------------------------------


def test_added_groups_of_a_quantum_layer_get_its_metric() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(
        list(model[0].parameters()) + list(model[2].parameters()), lr=0.1, model=model
    )
    opt.add_param_group({"params": model[1].parameters()})
    model.zero_grad()
    model(x).square().mean().backward()
    opt.step()
    check_parameters(model, expected)


def test_gradients_that_reach_no_grad_do_not_count() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(model, lr=0.1)
    opt.zero_grad()
    model(x).square().mean().backward()
    torch.autograd.grad(model(torch.rand(9, 3, dtype=torch.float64)).sum(), model[1].weights)
    opt.step()
    check_parameters(model, expected)


def test_a_closure_may_return_a_list() -> None:
    p, opt = bare()
    opt.step(lambda: [torch.tensor(0.0), lambda _: 4 * torch.eye(2)])
    torch.testing.assert_close(p.detach(), torch.tensor([0.1, 0.2]) - 0.01 / 4)


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
