"""Energies: layers without data, QNodes as compiled torch functions, and PennyLane's optimizers with our metric."""

import copy
import pickle
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits_without_data import (
    EXACT,
    SHAPE,
    WIRES,
    branching,
    flat,
    layer_of,
    listed,
    module_energy,
    node,
    nonlinear,
    one,
    paired,
    start,
)


# -- layers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [one, nonlinear, branching, listed, paired])
def test_a_layer_without_data_gives_the_qnode_s_values_and_gradients(function: Any) -> None:
    layer, w = layer_of(function), start()
    for _ in range(2):
        got, expected = layer(), flat(node(function)(w))
        assert got.shape == (() if len(expected) == 1 else expected.shape)
        torch.testing.assert_close(got.reshape(-1), expected, **EXACT)
        (a,) = torch.autograd.grad((got.reshape(-1) ** 2).sum(), layer.w)
        (b,) = torch.autograd.grad((expected**2).sum(), w)
        torch.testing.assert_close(a, b, **EXACT)
    assert layer.engine == "native"


def test_its_second_derivatives_and_torch_func() -> None:
    layer, w = layer_of(), start().detach()
    expected = torch.autograd.functional.hessian(node(one), w)

    def f(w: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"w": w}, ())

    torch.testing.assert_close(torch.autograd.functional.hessian(f, w), expected, **EXACT)
    torch.testing.assert_close(torch.func.hessian(f)(w), expected, **EXACT)
    several = torch.stack([w, 2 * w])
    each = torch.stack([node(one)(v) for v in several])
    torch.testing.assert_close(torch.vmap(f)(several), each, **EXACT)


@pytest.mark.parametrize("approx", [None, "block-diag", "diag", "auto"])
@pytest.mark.parametrize("function", [one, nonlinear, branching])
@pytest.mark.parametrize("engine", ["auto", "device"])
def test_a_step_of_natural_gradient_is_that_of_the_metric(
    approx: Any, function: Any, engine: Any
) -> None:
    layer, w = layer_of(function, engine=engine), start()
    kept = None if approx == "auto" else approx
    metric = fubini.metric_tensor(node(function), kept, joint=True, engine="native")(w).detach()
    (gradient,) = torch.autograd.grad(node(function)(w), w)
    size = w.numel()
    change = torch.linalg.solve(metric + 0.1 * torch.eye(size).double(), gradient.reshape(-1))
    opt = fubini.QNGOptimizer(layer, lr=0.2, approx=approx, lam=0.1)
    layer().backward()
    opt.step()
    expected = w.detach() - 0.2 * change.reshape(SHAPE)
    torch.testing.assert_close(layer.w.detach(), expected, rtol=0, atol=1e-9)


class Scaled(torch.nn.Module):
    """A model in which the circuit is evaluated twice, behind a factor."""

    def __init__(self, layer: fubini.QuantumLayer) -> None:
        super().__init__()
        self.layer, self.factor = layer, torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.factor * (self.layer() + self.layer() ** 2)


@pytest.mark.parametrize("approx", [None, "block-diag", "auto"])
def test_a_model_that_evaluates_it_twice(approx: Any) -> None:
    model, w = Scaled(layer_of()), start()
    kept = None if approx == "auto" else approx
    metric = fubini.metric_tensor(node(one), kept, joint=True)(w).detach()
    energy = node(one)(w)
    (gradient,) = torch.autograd.grad(0.5 * (energy + energy**2), w)
    opt = fubini.QNGOptimizer(model, lr=0.2, approx=approx, lam=0.1, metric="quantum")
    model().backward()
    opt.step()
    change = torch.linalg.solve(metric + 0.1 * torch.eye(w.numel()).double(), gradient.reshape(-1))
    expected = w.detach() - 0.2 * change.reshape(SHAPE)
    torch.testing.assert_close(model.layer.w.detach(), expected, rtol=0, atol=1e-9)


def stepped(w: torch.Tensor, metric: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    damped = metric + 0.1 * torch.eye(w.numel()).double()
    return w - 0.1 * torch.linalg.solve(damped, gradient.reshape(-1)).reshape(w.shape)


def test_a_weight_that_is_computed_from_a_parameter() -> None:
    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    layer = layer_of()
    torch.nn.utils.parametrize.register_parametrization(layer, "w", Square())
    (p,) = layer.parameters()
    before = p.detach().clone()
    metric = fubini.metric_tensor(node(one), joint=True)((before**2).requires_grad_()).detach()
    jacobian = torch.diag(2 * before.reshape(-1))
    opt = fubini.QNGOptimizer(layer, lr=0.1, approx=None, lam=0.1)
    layer().backward()
    opt.step()
    expected = stepped(before, jacobian @ metric @ jacobian, p.grad)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-9)


def test_two_layers_that_share_their_weight() -> None:
    first, second = layer_of(), layer_of(nonlinear)
    second.w = first.w
    w = start()
    metrics = [fubini.metric_tensor(node(f), joint=True)(w).detach() for f in (one, nonlinear)]
    opt = fubini.QNGOptimizer(torch.nn.ModuleList([first, second]), lr=0.1, approx=None, lam=0.1)
    (first() + second()).backward()
    opt.step()
    expected = stepped(w.detach(), sum(metrics), first.w.grad)
    torch.testing.assert_close(first.w.detach(), expected, rtol=0, atol=1e-9)


def test_the_metric_of_a_layer_without_data_and_its_siblings() -> None:
    layer, w = layer_of(), start()
    expected = fubini.metric_tensor(node(one))(w)
    torch.testing.assert_close(fubini.metric_tensor(layer)(), expected, **EXACT)
    on_device = fubini.metric_tensor(layer, engine="device")()
    torch.testing.assert_close(on_device, expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(fubini.quantum_fisher(layer)(), 4 * expected, **EXACT)
    size = w.numel()
    matrix = expected.detach().reshape(size, size).numpy()
    np.testing.assert_allclose(fubini.metric_spectrum(layer)().matrix, matrix, **EXACT)
    dense = fubini.metric_operator(layer)().dense()
    np.testing.assert_allclose(np.asarray(dense), matrix, **EXACT)


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
def test_the_device_engine(device: str) -> None:
    layer, w = layer_of(node(one, device), engine="device"), start()
    got, expected = layer(), node(one)(w)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    (a,), (b,) = torch.autograd.grad(got, layer.w), torch.autograd.grad(expected, w)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert "device" in layer.explain()


def test_shots() -> None:
    device = qml.device("default.qubit", wires=WIRES, seed=3)
    qnode = qml.set_shots(qml.QNode(one, device), 20000)
    layer = layer_of(qnode)
    plan = layer.cost()
    before = layer.usage.shots
    energy = layer()
    energy.backward()
    assert energy.shape == ()
    assert layer.usage.shots - before == plan.forward.shots + plan.backward.shots > 0
    (expected,) = torch.autograd.grad(node(one)(w := start()), w)
    # Six words and shifts of 20000 shots: standard errors of about 0.01.
    torch.testing.assert_close(layer.w.grad, expected, rtol=0, atol=0.1)
    opt = fubini.QNGOptimizer(layer, lr=0.1, lam=fubini.SignalToNoise())
    opt.zero_grad()
    layer().backward()
    opt.step()
    assert node(one)(layer.w.detach()) < node(one)(start().detach())


def test_copies_and_pickles() -> None:
    layer = layer_of(module_energy)
    expected = layer()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(), expected, **EXACT)
        assert other.input_arg is None


def test_export() -> None:
    layer = layer_of()
    program = torch.export.export(layer, ())
    torch.testing.assert_close(program.module()(), layer(), **EXACT)


def test_inputs_where_none_belong_and_none_where_they_do() -> None:
    layer = layer_of()
    with pytest.raises(TypeError, match=r"inputs: expected none.*call layer\(\)"):
        layer(torch.zeros(2))
    with pytest.raises(TypeError, match="inputs: expected none for a layer without data"):
        fubini.metric_tensor(layer)(torch.zeros(2))

    def with_data(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        return one(w)

    with pytest.raises(TypeError, match=r"inputs: expected a torch tensor.*call layer\(inputs\)"):
        layer_of(with_data)()


def test_a_batch_of_weights_is_no_layer() -> None:
    layer = fubini.QuantumLayer(node(one), {"w": (*SHAPE, 4)})
    with pytest.raises(ValueError, match="weight_shapes: expected weights of one circuit"):
        layer()
    noisy = fubini.QuantumLayer(qml.set_shots(node(one), 10), {"w": (*SHAPE, 4)})
    with pytest.raises(ValueError, match="weight_shapes: expected weights of one circuit"):
        noisy()


def test_the_fisher_metric_of_a_model_with_it() -> None:
    """With a batch of data in front of a circuit that is the same for all, the joint metric is the definition's."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.linear = layer_of(paired), torch.nn.Linear(2, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.layer()

    torch.manual_seed(0)
    model, x, y = Model(), torch.rand(4, 2).double(), torch.rand(4, 2).double()
    parameters = list(model.parameters())
    rows = []
    for out in model(x).reshape(-1):
        found = torch.autograd.grad(out, parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    jacobian = torch.stack(rows)
    loss = torch.nn.functional.mse_loss(model(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
    # The mean over four inputs of J^T J, with the variance of mse_loss as a likelihood: 2 / 2 outputs.
    metric = jacobian.T @ jacobian / 4
    change = torch.linalg.solve(metric + 0.1 * torch.eye(len(metric)).double(), gradient)
    opt = fubini.QNGOptimizer(
        model, lr=1.0, metric="fisher", likelihood=torch.nn.MSELoss(), approx=None, lam=0.1
    )
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    torch.nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    after = torch.cat([p.detach().reshape(-1) for p in parameters])
    torch.testing.assert_close(after, before - change, rtol=0, atol=1e-8)
