"""QNGOptimizer: where it ends, what it leaves alone, and what it refuses."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import DEVICES
from models import entangler, hybrid

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


# -- hybrid models --------------------------------------------------------------------------------------------------


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
    opt = fubini.QNGOptimizer(model, lr=0.1, approx=approx, lam=1e-2, metric="quantum")
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
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
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
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
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
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
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
    opt = fubini.QNGOptimizer(groups, model=model, metric="quantum")
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
    opt = fubini.QNGOptimizer(model, metric="quantum")
    model(x).square().mean().backward()
    opt.step()
    assert torch.equal(scale, model[2].scale)
    model[1].weights.requires_grad_(False)  # frozen, with a gradient of before
    before = model[1].weights.clone()
    opt.step()
    assert torch.equal(before, model[1].weights)
    unused = fubini.QNGOptimizer(hybrid(), metric="quantum")
    unused.step()  # no gradients at all: nothing to do


def test_bare_parameters_take_the_plain_step() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    opt = fubini.QNGOptimizer([p, q], lr=0.5, lam=0)
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
    torch.testing.assert_close(bias.detach(), 0.5 - 0.1 * bias.grad / 1.01)


# -- what once went wrong -------------------------------------------------------------------------------------------


def test_added_groups_of_a_quantum_layer_get_its_metric() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(
        list(model[0].parameters()) + list(model[2].parameters()),
        lr=0.1,
        model=model,
        metric="quantum",
    )
    opt.add_param_group({"params": model[1].parameters()})
    model.zero_grad()
    model(x).square().mean().backward()
    opt.step()
    check_parameters(model, expected)


def test_gradients_that_reach_no_grad_do_not_count() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    expected = expected_step(model, x, 0.1, 1e-3, "block-diag")
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    opt.zero_grad()
    model(x).square().mean().backward()
    torch.autograd.grad(model(torch.rand(9, 3, dtype=torch.float64)).sum(), model[1].weights)
    opt.step()
    check_parameters(model, expected)


def test_a_closure_may_return_a_list() -> None:
    p = torch.tensor([0.1, 0.2], requires_grad=True)
    p.grad = torch.ones(2)
    opt = fubini.QNGOptimizer([p], lam=0)
    opt.step(lambda: [torch.tensor(0.0), lambda _: 4 * torch.eye(2)])
    torch.testing.assert_close(p.detach(), torch.tensor([0.1, 0.2]) - 0.01 / 4)
