"""Energies of compiled QNodes, several calls and circuits: the optimizer knows their weights.

The references are explicit metrics.
"""

import copy
import pickle
import warnings
from typing import Any

import pennylane as qml
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fubini
from compiled_weights import (
    EXACT,
    SHAPE,
    WIRES,
    Bare,
    Layered,
    Tensor,
    X,
    Y,
    batch,
    body,
    circuit,
    device,
    energy,
    energy_of,
    first_weights,
    node,
    observables,
    other_energy,
    rows,
    trained,
)


def natural(w: Tensor, gradient: Tensor, g: Tensor, lam: float = 0.1) -> Tensor:
    damped = g + lam * torch.eye(len(g)).double()
    return w - 0.1 * torch.linalg.solve(damped, gradient.reshape(-1)).reshape(w.shape)


def full_metric(q: Any, w: Tensor) -> Tensor:
    return fubini.metric_tensor(q, joint=True)(w.detach().requires_grad_()).detach()


@pytest.mark.parametrize("make", [torch.nn.Parameter, lambda t: t.requires_grad_()])
def test_bare_parameters_and_no_metric_function(make: Any) -> None:
    w = make(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.1, approx=None)
    for _ in range(2):
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        expected = natural(w.detach(), w.grad, full_metric(energy, w))
        opt.step()
        torch.testing.assert_close(w.detach(), expected, **EXACT)


def test_two_circuits_that_share_a_weight_and_a_layer_besides() -> None:
    layer = fubini.QuantumLayer(node, {"w": SHAPE}, {"w": first_weights()})
    w = layer.w
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.1, approx=None)
    x = X[:, :3]
    (energy(w) + other_energy(w) + layer(x).sum()).backward()
    metrics = [full_metric(q, w) for q in (energy, other_energy)]
    metrics.append(fubini.metric_tensor(layer, reduce="mean", joint=True)(x).detach())
    expected = natural(w.detach(), w.grad, sum(metrics))
    opt.step()
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-11)


def test_only_calls_whose_gradients_count() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.1, approx=None)
    with torch.no_grad():
        circuit(X[0, :3], w)
    circuit(X[1, :3], w)  # never differentiated
    torch.autograd.grad(circuit(X[2, :3], w)[0], w)
    torch.func.grad(lambda v: circuit(X[3, :3], v)[0])(w.detach())
    sum(circuit(X[4, :3], w)).backward()
    g = fubini.metric_tensor(node, argnums=1, joint=True)(X[4, :3], w).detach()
    expected = natural(w.detach(), w.grad, g)
    opt.step()
    torch.testing.assert_close(w.detach(), expected, **EXACT)


def test_gradients_that_are_accumulated_and_those_that_are_not() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.1, approx=None)
    for k in (0, 1):
        sum(circuit(X[k, :3], w)).backward()
    w.grad = None
    for k in (2, 3, 4):
        sum(circuit(X[k, :3], w)).backward()
    metric = fubini.metric_tensor(node, argnums=1, reduce="mean", joint=True)
    expected = natural(w.detach(), w.grad, metric(X[2:5, :3], w).detach())
    opt.step()
    torch.testing.assert_close(w.detach(), expected, **EXACT)


def test_a_step_without_a_call_is_refused() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1)
    energy(w).backward()
    opt.step()
    opt.zero_grad()
    with torch.no_grad():
        w.add_(0.1)
    energy(w).backward()
    with torch.no_grad():
        w.add_(0.1)
    energy(w).backward()
    with pytest.raises(RuntimeError, match=r"energy_of\(w\): .*used different weights"):
        opt.step()


def test_losses_made_of_derivatives() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.1, approx=None)
    (gradient,) = torch.autograd.grad(energy(w), w, create_graph=True)
    gradient.square().sum().backward()
    expected = natural(w.detach(), w.grad, full_metric(energy, w))
    opt.step()
    torch.testing.assert_close(w.detach(), expected, **EXACT)


def test_damping_that_judges_the_loss() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 1.0, approx=None, lam=fubini.LevenbergMarquardt())

    def closure() -> Tensor:
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        return loss

    values = [float(opt.step(closure).detach()) for _ in range(20)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < -1.29  # the ground state of Z Z + .3 X is at -1.3


def test_a_closure_s_own_metric_goes_first() -> None:
    w = torch.nn.Parameter(first_weights())
    opt = fubini.QNGOptimizer([w], 0.1, lam=0.0)

    def closure() -> Any:
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        return loss, lambda _: 2.0 * torch.eye(w.numel()).double()

    before = w.detach().clone()
    opt.step(closure)
    torch.testing.assert_close(w.detach(), before - 0.05 * w.grad, **EXACT)


def test_weights_that_move_no_state() -> None:
    def weighed(c: Tensor, w: Tensor) -> Any:
        body(torch.zeros(WIRES), w)
        return qml.expval(c[0] * qml.Z(0) + c[1] * qml.X(1))

    q = fubini.compiled(qml.QNode(weighed, device()))
    c, w = (
        torch.nn.Parameter(torch.tensor([0.4, 0.3]).double()),
        torch.nn.Parameter(first_weights()),
    )
    layer = fubini.QuantumLayer(q.qnode, {"c": (2,), "w": SHAPE}, {"c": c, "w": w})
    opt = fubini.QNGOptimizer([c, w], 0.1, approx=None)
    other = fubini.QNGOptimizer(layer, 0.1, approx=None)
    q(c, w).backward()
    layer().backward()
    opt.step()
    other.step()
    torch.testing.assert_close(c, layer.c, **EXACT)
    torch.testing.assert_close(w, layer.w, **EXACT)


def test_a_frozen_weight() -> None:
    def two(inputs: Tensor, v: Tensor, w: Tensor) -> Any:
        body(inputs, v)
        body(inputs, w)
        return observables()

    q = fubini.compiled(qml.QNode(two, device()))
    v, w = (
        torch.nn.Parameter(first_weights(), requires_grad=False),
        torch.nn.Parameter(first_weights()),
    )
    layer = fubini.QuantumLayer(q.qnode, {"v": SHAPE, "w": SHAPE}, {"v": v, "w": w})
    layer.v.requires_grad_(False)
    opt = fubini.QNGOptimizer([v, w], 0.1)
    other = fubini.QNGOptimizer(layer, 0.1)
    for x in X[:, :3]:
        sum(q(x, v, w)).backward()
        layer(x).sum().backward()
    opt.step()
    other.step()
    torch.testing.assert_close(w, layer.w, **EXACT)


# -- where it is, and what is around it -----------------------------------------------------------------------------
def test_attributes_globals_closures_copies_and_pickles() -> None:
    _, expected = trained(Layered())
    inner = fubini.compiled(node)
    models = [Bare(), Bare(batch, inner), Bare(lambda q, x, w: batch(inner, x, w))]
    models += [copy.deepcopy(models[0]), pickle.loads(pickle.dumps(models[1]))]
    for model in models:
        _, got = trained(model)
        torch.testing.assert_close(got, expected, **EXACT)


def test_two_optimizers_and_one_that_is_gone() -> None:
    model, expected = Bare(), trained(Layered(), steps=1)[1]
    others = [fubini.QNGOptimizer(m, 0.1, metric="quantum") for m in (model, Bare())]
    del others[1]
    _, got = trained(model, steps=1)
    torch.testing.assert_close(got, expected, **EXACT)
    others[0].step()


def test_checkpoints() -> None:
    class Saving(Bare):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]

    _, expected = trained(Layered())
    for call in (batch, rows):
        _, got = trained(Saving(call))
        torch.testing.assert_close(got, expected, **EXACT)


def test_copies_and_states_of_the_optimizer() -> None:
    model = Bare()
    opt, _ = trained(model)
    model, opt = pickle.loads(pickle.dumps((model, opt)))
    torch.nn.functional.mse_loss(model(X), Y).backward()
    opt.step()
    assert "node(w)" in opt.explain()


def test_what_is_classical_is_told_once() -> None:
    model = Bare()
    opt = fubini.QNGOptimizer(model, 0.1)
    torch.nn.functional.mse_loss(model(X), Y).backward()
    with pytest.warns(
        UserWarning, match=r"classical parameters \(pre\.weight, pre\.bias, post\.weight, \.\.\.\)"
    ):
        opt.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()


def test_shots_and_signal_to_noise() -> None:
    q = fubini.compiled(
        qml.set_shots(qml.QNode(energy_of, qml.device("default.qubit", wires=3, seed=1)), 50)
    )
    w = torch.nn.Parameter(first_weights())

    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = w

        def forward(self) -> Tensor:
            return q(self.w)

    model = Energy()
    opt = fubini.QNGOptimizer(model, 0.1, metric="quantum")
    model().backward()
    opt.step()
    assert "energy_of(w), which runs on its device" in opt.explain()
    opt = fubini.QNGOptimizer(model, 0.1, lam=fubini.SignalToNoise())
    opt.zero_grad()
    model().backward()
    with pytest.raises(
        ValueError, match=r"energy_of\(w\): a compiled QNode with shots.*QuantumLayer"
    ):
        opt.step()
