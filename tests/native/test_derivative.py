"""Derivatives of the metric: against differences of the metric, gradcheck, PennyLane, and Christoffel symbols."""

import sys
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from angle_circuits import drawn, shared_and_bent
from circuits import random_circuit
from fubini.metric import circuits
from fubini.native.derivative import along, gradient, tangent_states, without_state

#: Differences of fourth order with step 1e-3 of functions of order one, whose fifth derivatives are of order 1e2.
DIFFERENCES = 1e-9


def difference(function: Any, step: float = 1e-3) -> Any:
    """d/dt function(t) at 0, to fourth order."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("seed", range(12))
def test_derivatives_over_the_angles(seed: int) -> None:
    tape, circuit, angles = drawn(seed, prepared=seed % 2 == 1)
    state = circuit.state_of(tape)
    states = None if state is None else np.asarray(state)[None]
    rows = np.arange(circuit.num_angles)[seed % 3 :]
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(rows),) * 2) + 1j * rng.normal(size=(len(rows),) * 2)
    direction = rng.normal(size=len(angles))

    def tensor(t: float) -> Any:
        row = (angles + t * direction)[None]
        psi, tangents = tangent_states(circuit, row, states, rows)
        tangents = without_state(psi, tangents)
        return tangents.conj() @ tangents.T

    expected = difference(tensor)
    for w in (weights, weights.real):
        slope = gradient(circuit, angles[None], states, rows, w) @ direction
        assert slope == pytest.approx((w * expected).sum().real, abs=DIFFERENCES * 10)
    rate = along(circuit, angles[None], states, rows, direction)
    np.testing.assert_allclose(rate, expected.real, rtol=0, atol=DIFFERENCES)
    assert (rate == rate.T).all()
    whole = circuits.metric_derivative(circuit, angles, direction, state=state)
    np.testing.assert_allclose(whole[np.ix_(rows, rows)], rate, rtol=0, atol=1e-13)


def test_batches_of_angles() -> None:
    _, circuit, angles = drawn(3, batch=3)
    directions = np.random.default_rng(0).normal(size=angles.shape)
    each = circuits.metric_derivative(circuit, angles, directions)
    for b in range(3):
        alone = circuits.metric_derivative(circuit, angles[b], directions[b])
        np.testing.assert_allclose(each[b], alone, rtol=0, atol=1e-14)
    mean = circuits.metric_derivative(circuit, angles, directions, reduce="mean")
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="direction: expected shape"):
        circuits.metric_derivative(circuit, angles, np.zeros(3))
    with pytest.raises(ValueError, match=r"nan at direction\[1\]"):
        circuits.metric_derivative(
            circuit, angles, np.array([0, np.nan, *np.zeros(circuit.num_angles - 2)])
        )


# -- over weights ---------------------------------------------------------------------------------------------------


def bent() -> tuple[Any, torch.Tensor, torch.Tensor]:
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    x = torch.rand(2, 3, dtype=torch.float64)
    return qnode, x, torch.rand(5, dtype=torch.float64, requires_grad=True)


CASES: list[dict[str, Any]] = [
    {},
    {"reduce": "mean"},
    {"approx": "block-diag"},
    {"approx": "diag", "layers": "maximal"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("function", [fubini.metric_tensor, fubini.quantum_fisher])
def test_torch_differentiates_through_weights_and_angles(function: Any, options: Any) -> None:
    qnode, x, w = bent()
    fn = function(qnode, **options)
    assert torch.autograd.gradcheck(lambda v: fn(x, v), (w,), atol=1e-6, fast_mode=True)


def test_torch_differentiates_the_geometric_tensor() -> None:
    qnode, x, w = bent()
    fn = fubini.geometric_tensor(qnode)
    assert torch.autograd.gradcheck(lambda v: fn(x[0], v), (w,), atol=1e-6, fast_mode=True)


def test_torch_differentiates_by_inputs_and_by_several_arguments() -> None:
    qnode, x, w = bent()

    def circuit(a: Any, b: Any, x: Any) -> Any:
        return shared_and_bent(x, torch.cat([a, b.reshape(-1)]))

    split = qml.QNode(circuit, qnode.device)
    a, b = (t.detach().clone().requires_grad_() for t in (w[:3], w[3:].reshape(1, 2)))
    fn = fubini.metric_tensor(split)
    assert torch.autograd.gradcheck(lambda a, b: fn(a, b, x=x), (a, b), atol=1e-6, fast_mode=True)
    x.requires_grad_()
    named = fubini.metric_tensor(split, joint=True)
    assert torch.autograd.gradcheck(lambda x: named(a, b, x=x), (x,), atol=1e-6, fast_mode=True)


def gradients(circuit: Any, w: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
    return [
        torch.autograd.grad((library.metric_tensor(circuit)(w) * weights).sum(), w)[0]
        for library in (qml, fubini)
    ]


def test_gradient_is_that_of_pennylane() -> None:
    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RY(w[1] + 2 * w[0], 1)
        qml.CNOT([0, 1])
        qml.RZ(w[2], 1)
        qml.RY(w[1], 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.3, 0.7, -0.4], dtype=torch.float64, requires_grad=True)
    theirs, mine = gradients(circuit, w)
    assert mine.abs().max() > 0.1
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-10)


def test_gradient_includes_that_of_the_classical_jacobian() -> None:
    """PennyLane differentiates J^T g J as if J were constant: silently wrong where angles are not affine."""

    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RY(w[1] * w[0], 1)
        qml.CNOT([0, 1])
        qml.RZ(torch.sin(w[2]), 1)
        qml.RY(w[1], 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.3, 0.7, -0.4], dtype=torch.float64, requires_grad=True)
    _, mine = gradients(circuit, w)
    weights = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
    for i, step in enumerate(torch.eye(3, dtype=torch.float64)):

        def value(t: float, step: torch.Tensor = step) -> float:
            moved = (w.detach() + t * step).requires_grad_()
            return float((fubini.metric_tensor(circuit)(moved).detach() * weights).sum())

        assert mine[i].item() == pytest.approx(difference(value), abs=DIFFERENCES)


@pytest.mark.parametrize("kind", ["QuantumLayer", "TorchLayer"])
def test_layers(kind: str) -> None:
    def circuit(inputs: Any, a: Any, b: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(a, wires=range(2))
        qml.RX(b * inputs[..., 0], 1)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    shapes = {"a": (1, 2, 3), "b": 1}
    layer = (fubini.QuantumLayer if kind == "QuantumLayer" else qml.qnn.TorchLayer)(qnode, shapes)
    layer = layer.double()
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    fn = fubini.metric_tensor(layer, reduce="mean", joint=True)
    slope = torch.autograd.grad(fn(x)[0, 3], [*layer.parameters(), x])
    weight = layer.qnode_weights["a"]

    def shifted(t: float) -> float:
        with torch.no_grad():
            weight.add_(t)
            value = fn(x)[0, 3].item()
            weight.sub_(t)
        return value

    assert slope[0].sum().item() == pytest.approx(difference(shifted), abs=DIFFERENCES)
    moved = difference(lambda t: fn((x + t).detach())[0, 3].item())
    assert slope[-1].sum().item() == pytest.approx(moved, abs=DIFFERENCES)


@pytest.mark.parametrize("seed", range(4))
def test_directional_derivative_over_weights(seed: int) -> None:
    circuit = random_circuit(40 + seed, shared=True, gates=8)
    inputs, weights = circuit.draw(seed, [None, 3][seed % 2])
    direction = torch.randn(weights.shape, dtype=torch.float64)
    for options in CASES:
        fn = fubini.metric_tensor(circuit.qnode(), joint=True, **options)

        def at(t: float, fn: Any = fn) -> torch.Tensor:
            moved = weights.detach() + t * direction
            return fn(inputs, moved.requires_grad_()).detach()

        rate = fubini.metric_derivative(circuit.qnode(), direction, **options)(inputs, weights)
        torch.testing.assert_close(rate, difference(at), rtol=0, atol=DIFFERENCES)


def test_directional_derivative_with_angles_that_bend() -> None:
    qnode, x, w = bent()
    direction = torch.rand(5, dtype=torch.float64)
    for options in CASES:
        fn = fubini.metric_tensor(qnode, joint=True, **options)

        def at(t: float, fn: Any = fn) -> torch.Tensor:
            return fn(x, (w.detach() + t * direction).requires_grad_()).detach()

        rate = fubini.metric_derivative(qnode, direction, **options)(x, w)
        torch.testing.assert_close(rate, difference(at), rtol=0, atol=DIFFERENCES)
    layer_weights = {"w": 5}

    def circuit(inputs: Any, w: Any) -> Any:
        return shared_and_bent(inputs, w)

    layer = fubini.QuantumLayer(qml.QNode(circuit, qnode.device), layer_weights, {"w": w.detach()})
    of_layer = fubini.metric_derivative(layer, direction, reduce="mean")(x)
    of_qnode = fubini.metric_derivative(qnode, direction, reduce="mean")(x, w)
    torch.testing.assert_close(of_layer, of_qnode, rtol=0, atol=1e-12)


def test_christoffel_symbols_of_a_sphere() -> None:
    """g = diag(1, sin^2 theta) / 4: the great circle theta'' = sin theta cos theta phi'^2."""

    @qml.qnode(qml.device("default.qubit", wires=1))
    def spin(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.RZ(w[1], 0)
        return qml.state()

    theta, velocity = 0.7, torch.tensor([0.3, 0.9], dtype=torch.float64)
    w = torch.tensor([theta, 0.2], dtype=torch.float64, requires_grad=True)
    metric = fubini.metric_tensor(spin)(w)
    rate = fubini.metric_derivative(spin, velocity)(w)
    (slope,) = torch.autograd.grad(velocity @ metric @ velocity, w)
    symbols = rate @ velocity - slope / 2
    acceleration = -torch.linalg.solve(metric.detach(), symbols)
    expected = [
        np.sin(theta) * np.cos(theta) * 0.9**2,
        -2 / np.tan(theta) * 0.3 * 0.9,
    ]
    np.testing.assert_allclose(acceleration.numpy(), expected, rtol=0, atol=1e-12)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_no_graph_without_grad_and_no_second_derivative() -> None:
    qnode, x, w = bent()
    with torch.no_grad():
        assert not fubini.metric_tensor(qnode)(x, w).requires_grad
    assert not fubini.metric_tensor(qnode, engine="device")(x, w).requires_grad
    metric = fubini.metric_tensor(qnode)(x, w)
    (slope,) = torch.autograd.grad(metric.sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a metric"):
        torch.autograd.grad(slope.sum(), w)


@pytest.mark.parametrize(
    "name", ["metric_tensor", "quantum_fisher", "geometric_tensor", "block-diag", "diag", "joint"]
)
@pytest.mark.parametrize("function", ["sum", "entry", "square", "weights times metric"])
def test_second_derivatives_are_refused_and_not_zero(name: str, function: str) -> None:
    qnode, x, w = bent()
    metric = {
        "metric_tensor": fubini.metric_tensor(qnode),
        "quantum_fisher": fubini.quantum_fisher(qnode),
        "geometric_tensor": fubini.geometric_tensor(qnode),
        "block-diag": fubini.metric_tensor(qnode, approx="block-diag"),
        "diag": fubini.metric_tensor(qnode, approx="diag"),
        "joint": fubini.metric_tensor(qnode, joint=True, reduce="mean"),
    }[name]

    def value(w: Any) -> Any:
        g = metric(x, w)
        g = (g.real + 2 * g.imag if g.is_complex() else g).reshape(-1)
        if function == "sum":
            return g.sum()
        if function == "entry":
            return g[0]
        return g.square().sum() if function == "square" else (g[: w.numel()] * w.reshape(-1)).sum()

    (slope,) = torch.autograd.grad(value(w), w, create_graph=True)
    plain = torch.autograd.grad(value(w), w)[0]
    torch.testing.assert_close(slope.detach(), plain, rtol=0, atol=0)  # the value is the same
    with pytest.raises(NotImplementedError, match="second derivatives of a metric"):
        slope.sum().backward()
    with pytest.raises(NotImplementedError, match="second derivatives of a metric"):
        torch.autograd.functional.hessian(value, w)


@pytest.mark.parametrize("transform", [torch.func.hessian, torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize(
    "call", [fubini.metric_tensor, fubini.quantum_fisher, fubini.geometric_tensor]
)
def test_transforms_of_torch_func_are_refused_by_name(call: Any, transform: Any) -> None:
    qnode, x, w = bent()
    with pytest.raises(NotImplementedError, match=r"inside of a transform of torch.func"):
        transform(lambda w: call(qnode, argnums=1)(x, w).real.sum())(w.detach())


def test_a_function_that_changed_is_noticed() -> None:
    captured = [0.3]

    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w: Any) -> Any:
        qml.RY(captured[0], 0)
        qml.RX(w[0], 0)
        if len(captured) > 1:
            qml.RZ(0.2, 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    metric = fubini.metric_tensor(circuit)(w)
    captured[0] = 0.5
    with pytest.raises(RuntimeError, match="computes others; call backward"):
        metric.sum().backward()
    metric = fubini.metric_tensor(circuit)(w)
    captured.append(0.0)
    with pytest.raises(RuntimeError, match="now makes another one"):
        metric.sum().backward()


def test_bad_directions() -> None:
    qnode, x, w = bent()
    with pytest.raises(
        ValueError, match=r"direction: expected tensors of the weights' shapes \[\(5,\)\]"
    ):
        fubini.metric_derivative(qnode, torch.zeros(4))(x, w)
    with pytest.raises(
        ValueError, match=r"direction: expected finite numbers, got nan at direction\[0\]"
    ):
        fubini.metric_derivative(qnode, torch.tensor([np.nan, 0, 0, 0, 0]))(x, w)
    array = qml.numpy.array([0.1], requires_grad=True)
    plain = qml.QNode(lambda v: (qml.RX(v[0], 0), qml.state())[-1], qml.device("default.qubit"))
    rate = fubini.metric_derivative(plain, torch.zeros(1))
    with pytest.raises(TypeError, match="expected weights that are torch tensors, got tensor"):
        rate(array)


def refuse(*_: Any) -> Any:
    raise AssertionError("a derivative along nothing is computed")


def test_directions_of_zero_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    x, w = torch.rand(4, 3).double(), torch.rand(5).double().requires_grad_()
    _, circuit, angles = drawn(3, batch=3)
    directions = np.random.default_rng(0).normal(size=angles.shape)
    directions[1] = 0.0
    expected = circuits.metric_derivative(circuit, angles, directions)
    assert not expected[1].any()
    assert expected[0].any()
    for name in ("metric.circuits", "native.derivative", "metric.gradient"):
        monkeypatch.setattr(sys.modules[f"fubini.{name}"], "along", refuse)
    still = fubini.metric_derivative(qnode, torch.zeros(5), reduce="mean")(x, w)
    assert not still.any()
    assert not circuits.metric_derivative(circuit, angles, 0 * directions).any()


def test_inputs_that_are_not_finite_are_refused() -> None:  # the derivative was NaN
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    x, w = torch.rand(4, 3).double(), torch.rand(5).double().requires_grad_()
    x[2, 1] = torch.nan
    for _ in range(3):  # run, then compiled
        with pytest.raises(ValueError, match=r"NaN or infinite|expected finite numbers"):
            fubini.metric_derivative(qnode, torch.ones(5))(x, w)
        with pytest.raises(ValueError, match=r"NaN or infinite|expected finite numbers"):
            fubini.metric_derivative(qnode, torch.ones(5))(x[2], w)


def test_derivatives_beyond_the_bound_are_refused() -> None:
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    x, w = torch.rand(40, 3).double(), torch.rand(5).double().requires_grad_()
    _, circuit, angles = drawn(3, batch=3)
    derivative = fubini.metric_derivative(qnode, torch.ones(5))
    try:
        fubini.set_memory_limit(100.0)
        # The derivative of the angles by the weights, one for each input, is larger than that of the metric.
        with pytest.raises(MemoryError, match=r"the Jacobian would take .*use a smaller batch"):
            derivative(x, w)
        with pytest.raises(MemoryError, match=r"the derivative of the metric .*set_memory_limit"):
            circuits.metric_derivative(circuit, angles, np.ones(circuit.num_angles))
        with pytest.raises(MemoryError, match=r"derivative states of .* fubini.metric_operator"):
            tangent_states(circuit, angles[:1], None, np.arange(circuit.num_angles))
    finally:
        fubini.set_memory_limit(0)
    assert derivative(x, w).shape == (40, 5, 5)
