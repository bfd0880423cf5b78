"""Compiled QNodes as torch functions, and PennyLane's optimizers with our metric."""

import copy
import pickle
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane import numpy as pnp

import fubini
from circuits_without_data import (
    EXACT,
    ISING,
    SHAPE,
    ansatz,
    branching,
    flat,
    layer_of,
    listed,
    matrix,
    module_energy,
    node,
    nonlinear,
    one,
    paired,
    start,
)


# -- compiled QNodes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [one, nonlinear, branching, listed, paired])
def test_a_compiled_qnode_is_the_qnode(function: Any) -> None:
    qnode = node(function)
    energy, w = fubini.compiled(qnode), start()
    for _ in range(2):
        got, expected = energy(w), qnode(w)
        assert type(got) is type(expected)
        torch.testing.assert_close(got, expected, **EXACT)
        (a,), (b,) = (torch.autograd.grad((flat(r) ** 2).sum(), w) for r in (got, expected))
        torch.testing.assert_close(a, b, **EXACT)
        assert "native" in energy.explain()


@pytest.mark.parametrize("function", [one, nonlinear])
def test_hessians_of_a_compiled_qnode(function: Any) -> None:
    energy, w = fubini.compiled(node(function)), start().detach()
    expected = torch.autograd.functional.hessian(node(function), w)
    torch.testing.assert_close(torch.autograd.functional.hessian(energy, w), expected, **EXACT)
    torch.testing.assert_close(torch.func.hessian(energy)(w), expected, **EXACT)


def rotated(theta: Any, x: Any, scale: float = 1.0, flip: bool = False) -> Any:
    qml.RY(scale * theta[..., 0], 0)
    qml.RX(x * theta[..., 1], 1)
    if flip:
        qml.X(0)
    qml.CNOT([0, 1])
    return qml.expval(qml.Z(0) @ qml.Z(1))


@pytest.mark.parametrize(
    ("theta", "x", "options"),
    [
        ((2,), (), {}),
        ((2,), (), {"scale": 2.0}),
        ((2,), (), {"flip": True}),
        ((2,), (5,), {}),
        ((5, 2), (5,), {"scale": 0.5}),
        ((5, 2), (), {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_several_arguments_constants_and_batches(
    theta: Any, x: Any, options: Any, dtype: Any
) -> None:
    qnode = node(rotated)
    energy = fubini.compiled(qnode)
    torch.manual_seed(1)
    leaves = [torch.rand(s, dtype=dtype, requires_grad=True) for s in (theta, x)]
    # In float32 both compute the angles and their derivatives with its rounding.
    close = EXACT if dtype == torch.float64 else {"rtol": 0.0, "atol": 1e-5}
    for _ in range(2):
        got, expected = energy(leaves[0], x=leaves[1], **options), qnode(*leaves, **options)
        assert got.dtype == expected.dtype == torch.float64
        torch.testing.assert_close(got, expected, **close)
        for a, b in zip(
            torch.autograd.grad((got**2).sum(), leaves),
            torch.autograd.grad((expected**2).sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **close)
        assert "native" in energy.explain()


@pytest.mark.parametrize("function", [one, branching])
def test_two_views_of_one_parameter_keep_their_graph_in_the_first_call(function: Any) -> None:
    """Arguments that share memory: what the first call computes is differentiated as the second's is."""

    def two(a: Any, b: Any) -> Any:
        return function(torch.stack([a, b]))

    p = start()
    (expected,) = torch.autograd.grad(node(function)(p), p)
    energy = fubini.compiled(node(two))
    for _ in range(2):
        (got,) = torch.autograd.grad(energy(p[0], p[1]), p)
        torch.testing.assert_close(got, expected, **EXACT)


def test_what_is_the_qnode_s_own_matter() -> None:
    w = start()
    shots = fubini.compiled(qml.set_shots(node(one), 10))
    assert "10 shots" in shots.explain()
    shots(w)
    assert "10 shots" in shots.explain()
    energy = fubini.compiled(node(one))
    assert isinstance(energy(w.detach().numpy()), float | np.ndarray)
    assert "none of its arguments is a torch tensor" in energy.explain()

    def star(*w: Any) -> Any:
        return one(w[0])

    starred = fubini.compiled(node(star))
    torch.testing.assert_close(starred(w), node(one)(w), **EXACT)
    assert "without names" in starred.explain()
    with pytest.raises(TypeError):
        energy(w, 1, 2)
    with pytest.raises(TypeError, match="qnode: expected a QNode, got function"):
        fubini.compiled(one)


def test_captured_numbers_are_compared() -> None:
    settings = {"field": 1.0}

    def energy_of(w: Any) -> Any:
        ansatz(w * settings["field"])
        return qml.expval(ISING)

    energy, w = fubini.compiled(node(energy_of)), start()
    for field in (1.0, 2.0, 1.0, -0.5):
        settings["field"] = field
        torch.testing.assert_close(energy(w), node(energy_of)(w), **EXACT)


def weighed(c: Any, w: Any) -> Any:
    ansatz(w)
    return qml.expval(c[0] * qml.Z(0) + c[1] * qml.X(1))


def unitary(c: Any, w: Any) -> Any:
    ansatz(w)
    qml.QubitUnitary(torch.diag(torch.exp(1j * c)), 1)
    return qml.expval(qml.X(1))


def counted(c: Any, w: Any) -> Any:
    for _ in range(int(3 * c[0])):
        ansatz(w)
    return qml.expval(qml.X(1))


def evolved(c: Any, w: Any) -> Any:
    ansatz(w)
    qml.ApproxTimeEvolution(qml.Hamiltonian([c[0], c[1]], [qml.Z(0), qml.X(1)]), 0.3, 2)
    return qml.expval(qml.Z(1))


@pytest.mark.parametrize("function", [weighed, matrix, unitary, counted, evolved])
def test_arguments_that_are_no_angles_are_never_kept(function: Any) -> None:
    """Coefficients, matrices and counts of one call are not those of the next."""
    qnode, w = node(function), start()
    energy = fubini.compiled(qnode)
    layer = fubini.QuantumLayer(node(function), {"c": (2,), "w": SHAPE}).double()
    layer.c.requires_grad_(False)
    for c in ([0.4, 0.5], [0.8, 0.9], [0.8, -0.1]):
        c = torch.tensor(c, dtype=torch.float64)
        with torch.no_grad():
            layer.c.copy_(c)
            layer.w.copy_(w)
        torch.testing.assert_close(energy(c, w), qnode(c, w), **EXACT)
        torch.testing.assert_close(layer(), qnode(c, w), **EXACT)


def test_a_captured_tensor_keeps_its_gradient() -> None:
    w, angle = start(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def captured(w: Any) -> Any:
        ansatz(w)
        qml.RX(angle, 0)
        return qml.expval(qml.Z(0))

    energy = fubini.compiled(node(captured))
    (expected,) = torch.autograd.grad(node(captured)(w), angle)
    for _ in range(2):
        (got,) = torch.autograd.grad(energy(w), angle)
        torch.testing.assert_close(got, expected, **EXACT)


def embedded(x: Any, w: Any) -> Any:
    qml.AngleEmbedding(x, wires=range(3))
    ansatz(w)
    return [qml.expval(ISING), qml.probs(wires=[0])]


def multiplied(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] * w[0, 0, 0] + torch.sin(x[:, 1]), 0)
    return qml.expval(ISING)


def projected(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x @ w[0, :, 0], 0)
    return qml.expval(ISING)


def centred(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] - x[:, 0].mean(), 0)
    return qml.expval(ISING)


def turned(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x.flip(0)[:, 0], 0)
    return qml.expval(ISING)


def by_the_first(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0], 0)
    qml.RZ(x[0, 1], 0)
    return qml.expval(ISING)


def along_features(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[0], 0)
    return qml.expval(ISING)


def by_position(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(torch.arange(len(x)).double() * x[:, 0], 0)
    return qml.expval(ISING)


def by_row(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] * w[0, :, 0], 0)
    return qml.expval(ISING)


@pytest.mark.parametrize(
    ("function", "understood"),
    [
        (embedded, True),
        (multiplied, True),
        (projected, True),
        *((f, False) for f in (centred, turned, by_the_first, along_features)),
        *((f, False) for f in (by_position, by_row)),
    ],
)
def test_an_argument_whose_rows_are_inputs(function: Any, understood: bool) -> None:
    """Its batch is compiled where row b of the results is that of row b alone, and only there."""
    qnode, w = node(function), start()
    energy = fubini.compiled(qnode)
    # As many rows as features and wires: nothing but what is computed tells axes apart.
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
        got, expected = flat(energy(x, w)), flat(qnode(x, w))
        torch.testing.assert_close(got, expected, **EXACT)
        for a, b in zip(
            torch.autograd.grad((got**2).sum(), (x, w)),
            torch.autograd.grad((expected**2).sum(), (x, w)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **EXACT)
    assert ("compiled circuit" in energy.explain()) is understood
    metric = fubini.metric_tensor(energy)(x.detach(), w)
    on_device = fubini.metric_tensor(qnode, engine="device")(x.detach(), w)
    torch.testing.assert_close(metric, on_device, rtol=0, atol=1e-9)


def test_metrics_copies_and_siblings_of_a_compiled_qnode() -> None:
    energy, w = fubini.compiled(module_energy), start()
    expected = fubini.metric_tensor(node(one), "block-diag")(w)
    torch.testing.assert_close(energy.metric("block-diag")(w), expected, **EXACT)
    torch.testing.assert_close(fubini.metric_tensor(energy, "block-diag")(w), expected, **EXACT)
    assert fubini.metric_spectrum(energy)(w).rank > 0
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        torch.testing.assert_close(other(w), energy(w), **EXACT)
    assert fubini.compiled(energy).qnode is energy.qnode


# -- recipes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("approx", [None, "block-diag"])
def test_the_recipe_of_a_closure_with_bare_parameters(approx: Any) -> None:
    """It takes the steps of the layer, and the unchanged QNode in ``metric_tensor`` is compiled once."""
    qnode = node(one)
    energy = fubini.compiled(qnode)
    w = torch.nn.Parameter(start().detach())
    opt = fubini.QNGOptimizer([w], lr=0.1, lam=0.01)

    def closure() -> Any:
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        return loss, fubini.metric_tensor(qnode, approx)

    layer = layer_of()
    other = fubini.QNGOptimizer(layer, lr=0.1, lam=0.01, approx=approx)
    for _ in range(4):
        opt.step(closure)
        other.zero_grad()
        layer().backward()
        other.step()
    torch.testing.assert_close(w.detach(), layer.w.detach(), rtol=0, atol=1e-9)
    assert "compiled circuit" in energy.explain()


def test_the_unchanged_qnode_in_a_closure_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []
    compiling = fubini.compile.calls.compile_function

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return compiling(*args, **kwargs)

    monkeypatch.setattr(fubini.compile.calls, "compile_function", counted)
    qnode = node(one)
    energy, w = fubini.compiled(qnode), start()
    for _ in range(3):
        energy(w).backward()
        fubini.metric_tensor(qnode)(w)
        fubini.metric_tensor(energy, "diag")(w)
    assert len(runs) == 1


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_pennylane_s_optimizers_with_our_metric(momentum: float | None) -> None:
    cost = node(one)
    w = pnp.array(start().detach().numpy(), requires_grad=True)
    if momentum is None:
        opt, reference = (qml.QNGOptimizer(0.1, lam=0.01) for _ in range(2))
    else:
        opt, reference = (qml.MomentumQNGOptimizer(0.1, momentum, lam=0.01) for _ in range(2))
    a = b = w
    theirs = qml.metric_tensor(cost, approx="block-diag")
    ours = fubini.metric_tensor(cost, "block-diag", layers="queue")  # PennyLane's layers
    for _ in range(2):
        a = opt.step(cost, a, metric_tensor_fn=ours)
        b = reference.step(cost, b, metric_tensor_fn=theirs)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    assert cost(a) < cost(w)


def full(w: Any) -> Any:
    """The full metric over angles, by PennyLane's adjoint method."""
    return qml.adjoint_metric_tensor(node(one))(w)


@pytest.mark.parametrize("made", ["metric_tensor", "compiled"])
def test_pennylane_s_optimizer_with_the_full_metric_and_step_and_cost(made: str) -> None:
    """``metric_tensor_fn=fubini.metric_tensor(cost)`` as it stands, and what ``fubini.compiled`` has."""
    cost = node(one)
    ours = fubini.metric_tensor(cost) if made == "metric_tensor" else fubini.compiled(cost).metric()
    opt, reference = (qml.QNGOptimizer(0.1, lam=0.01) for _ in range(2))
    a = b = pnp.array(start().detach().numpy(), requires_grad=True)
    for _ in range(2):
        a, value = opt.step_and_cost(cost, a, metric_tensor_fn=ours)
        b, expected = reference.step_and_cost(cost, b, metric_tensor_fn=full)
        np.testing.assert_allclose(value, expected, **EXACT)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)


def test_pennylane_s_optimizer_with_several_weights_and_a_classical_function_of_the_cost() -> None:
    def two(v: Any, w: Any) -> Any:
        ansatz(v)
        ansatz(w)
        return qml.expval(ISING)

    cost, w = node(two), start().detach().numpy()
    ours = fubini.metric_tensor(cost, "block-diag", layers="queue")
    theirs = qml.metric_tensor(cost, approx="block-diag")

    def loss(v: Any, w: Any) -> Any:
        return cost(v, w) ** 2

    for function in (cost, loss):
        weights = [[pnp.array(k * w, requires_grad=True) for k in (1.0, 0.5)] for _ in range(2)]
        for parts, metric in zip(weights, (ours, theirs), strict=True):
            # A function that is no QNode takes its gradient from autograd, and its metric from the QNode.
            parts[:] = qml.QNGOptimizer(0.1, lam=0.01).step(
                function, *parts, metric_tensor_fn=metric
            )
        np.testing.assert_allclose(weights[0], weights[1], rtol=0, atol=1e-8)


def test_siblings_that_take_no_metric_function_say_so() -> None:
    """QNSPSA estimates its own metric: PennyLane hands what it is given to the circuit, which refuses it."""
    cost = node(one)
    w = pnp.array(start().detach().numpy(), requires_grad=True)
    opt = qml.QNSPSAOptimizer(stepsize=0.1, blocking=False, seed=1)
    assert cost(opt.step(cost, w)).shape == ()
    with pytest.raises(TypeError, match="metric_tensor_fn"):
        opt.step(cost, w, metric_tensor_fn=fubini.metric_tensor(cost))


@pytest.mark.parametrize("rows", [False, True])
def test_compiled_qnodes_in_a_model_are_compiled_in_the_first_step(
    monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    runs = []
    compiling = fubini.compile.calls.compile_function

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return compiling(*args, **kwargs)

    monkeypatch.setattr(fubini.compile.calls, "compile_function", counted)
    qnode = node(embedded)
    circuit, w = fubini.compiled(qnode), torch.nn.Parameter(start().detach())
    opt = fubini.QNGOptimizer([w], 0.1)
    x = torch.rand(4, 3, dtype=torch.float64)

    def closure() -> Any:
        opt.zero_grad()
        results = [circuit(row, w) for row in x] if rows else [circuit(x, w)]
        loss = sum(one.sum() for result in results for one in result)
        loss.backward()
        return loss

    opt.step(closure)
    # For the call, where all tensors count as weights, which finds a batch, and for the metric.
    assert len(runs) <= 3
    before = len(runs)
    for _ in range(3):
        opt.step(closure)
    assert len(runs) == before
