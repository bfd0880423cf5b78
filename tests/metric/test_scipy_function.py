"""Value, gradient and metric of a circuit as functions of one flat NumPy array, against torch on default.qubit."""

import copy
import pickle
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import scipy.optimize
import torch

import fubini

WIRES = 3
SHAPE = (2, WIRES, 2)
# Rounding of a few dozen gates.
EXACT = {"rtol": 0.0, "atol": 1e-12}
HAMILTONIAN = qml.Hamiltonian(
    [1.0, 1.0, 0.7, 0.7, 0.7],
    [qml.Z(0) @ qml.Z(1), qml.Z(1) @ qml.Z(2), *(qml.X(i) for i in range(WIRES))],
)
settings = {"field": 1.0}


def ansatz(w: Any) -> None:
    for layer in w:
        for i in range(WIRES):
            qml.RY(layer[i, 0], i)
            qml.RZ(layer[i, 1], i)
        for i in range(WIRES - 1):
            qml.CNOT([i, i + 1])


def one(w: Any) -> Any:
    ansatz(w)
    return qml.expval(HAMILTONIAN)


def nonlinear(w: Any) -> Any:
    ansatz(torch.sin(w) * w[0, 0, 0])
    return qml.expval(HAMILTONIAN)


def branching(w: Any) -> Any:
    ansatz(w if w[0, 0, 0] > 0.2 else 2 * w)
    return qml.expval(HAMILTONIAN)


def prepared(w: Any) -> Any:
    qml.AmplitudeEmbedding(w[0, :, 0], range(2), pad_with=0.3, normalize=True)
    ansatz(w)
    return qml.expval(HAMILTONIAN)


def node(function: Any, name: str = "default.qubit", **options: Any) -> Any:
    return qml.QNode(function, qml.device(name, wires=WIRES, **options))


@qml.qnode(qml.device("default.qubit", wires=WIRES))
def module_energy(w: Any) -> Any:
    return one(w)


def start(seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.1, 1.5, SHAPE)


def reference(function: Any, *arrays: Any, **constants: Any) -> tuple[float, Any]:
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    value = node(function)(*tensors, **constants)
    parts = torch.autograd.grad(value, tensors)
    return value.item(), np.concatenate([p.numpy().reshape(-1) for p in parts])


@pytest.mark.parametrize("function", [one, nonlinear, branching, prepared])
@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit", "default.mixed"])
def test_value_and_gradient(function: Any, device: str) -> None:
    f = fubini.scipy_function(node(function, device), start())
    for seed in range(3):
        w = start(seed)
        x = w.reshape(-1)
        value, gradient = f(x)
        expected = reference(function, w)
        # default.mixed computes in single precision.
        close = EXACT if device != "default.mixed" else {"rtol": 0.0, "atol": 1e-6}
        assert type(value) is float
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(value, expected[0], **close)
        np.testing.assert_allclose(gradient, expected[1], **close)
        np.testing.assert_allclose(f.value(x), expected[0], **close)
        np.testing.assert_allclose(f.gradient(x), expected[1], **close)
    native = device != "default.mixed" and function is not branching
    assert ("on NumPy arrays" in f.explain()) is native


def test_the_gradient_by_differences() -> None:
    f = fubini.scipy_function(node(one), start())
    error = scipy.optimize.check_grad(f.value, f.gradient, f.x0)
    assert error < 1e-6  # of forward differences


def two(a: Any, b: Any, scale: float = 1.0, shift: Any = None) -> Any:
    ansatz(scale * torch.stack([a, b]))
    if shift is not None:
        qml.RX(shift[0] * a[0, 0], 0)
    return qml.expval(HAMILTONIAN)


@pytest.mark.parametrize("constants", [{}, {"scale": 0.5}, {"shift": np.array([0.3, 0.1])}])
def test_several_weights_and_constants(constants: Any) -> None:
    a, b = start()
    f = fubini.scipy_function(fubini.compiled(node(two)), a, b, **constants)
    tensors = {n: torch.from_numpy(v) if n == "shift" else v for n, v in constants.items()}
    for seed in range(2):
        a, b = start(seed)
        x = np.concatenate([a.reshape(-1), b.reshape(-1)])
        value, gradient = f(x)
        expected = reference(two, a, b, **tensors)
        np.testing.assert_allclose(value, expected[0], **EXACT)
        np.testing.assert_allclose(gradient, expected[1], **EXACT)
        for got, part in zip(f.arguments(x), (a, b), strict=True):
            np.testing.assert_array_equal(got, part)
        matrix = fubini.metric_tensor(node(two), argnums=(0, 1), joint=True)(
            torch.from_numpy(a), torch.from_numpy(b), **tensors
        )
        np.testing.assert_allclose(f.metric(x), matrix, **EXACT)
    assert "on NumPy arrays" in f.explain()


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("function", [one, branching])
def test_the_metric(approx: Any, function: Any) -> None:
    f = fubini.scipy_function(node(function), start())
    w = torch.from_numpy(start(1)).requires_grad_()
    expected = fubini.metric_tensor(node(function), approx, joint=True)(w).detach()
    np.testing.assert_allclose(f.metric(start(1).reshape(-1), approx), expected, **EXACT)


def test_a_minimisation_and_a_natural_gradient() -> None:
    f = fubini.scipy_function(node(one), start())
    lowest = np.linalg.eigvalsh(qml.matrix(HAMILTONIAN, wire_order=range(WIRES)))[0]
    found = scipy.optimize.minimize(f, f.x0, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    assert found.fun > lowest - 1e-12
    x, value = f.x0, f(f.x0)[0]
    for _ in range(100):
        x = x - 0.2 * fubini.solve(f.metric(x), f.gradient(x), damping=1e-3)
    assert f(x)[0] < found.fun + 0.3 < value


def test_what_is_read_besides_is_compared() -> None:
    def of_field(w: Any) -> Any:
        ansatz(w * settings["field"])
        return qml.expval(HAMILTONIAN)

    f, w = fubini.scipy_function(node(of_field), start()), start(2)
    for field in (1.0, 2.0, 1.0, -0.5):
        settings["field"] = field
        value, gradient = f(w.reshape(-1))
        expected = reference(of_field, w)
        np.testing.assert_allclose(value, expected[0], **EXACT)
        np.testing.assert_allclose(gradient, expected[1], **EXACT)
    settings["field"] = 1.0


def test_results_are_the_caller_s() -> None:
    """SciPy keeps gradients, and changes x in place."""
    f = fubini.scipy_function(node(one), start())
    x = f.x0.copy()
    _, first = f(x)
    kept = first.copy()
    x += 0.5
    _, second = f(x)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(f.x0, start().reshape(-1))
    strided = np.repeat(x, 2)[::2]
    np.testing.assert_array_equal(f(strided)[1], second)
    np.testing.assert_allclose(f(list(x))[1], second, **EXACT)


def test_copies_and_pickles() -> None:
    f = fubini.scipy_function(module_energy, start())
    for other in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        np.testing.assert_array_equal(other(f.x0)[1], f(f.x0)[1])


def test_shots() -> None:
    f = fubini.scipy_function(qml.set_shots(node(one, seed=1), 20000), start())
    value, gradient = f(f.x0)
    expected = reference(one, start())
    # Five words of 20000 shots each, in the gradient twice: standard errors of about 0.01.
    assert abs(value - expected[0]) < 0.1
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=0.1)
    assert "shots" in f.explain()


def test_a_circuit_that_does_not_move() -> None:
    f = fubini.scipy_function(node(lambda w: (qml.X(0), qml.expval(qml.Z(0)))[1]), [0.1, 0.2])
    assert f([0.3, 0.4])[0] == -1.0
    np.testing.assert_array_equal(f([0.3, 0.4])[1], [0.0, 0.0])


def listed(w: Any) -> Any:
    ansatz(w)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def probabilities(w: Any) -> Any:
    ansatz(w)
    return qml.probs(wires=[0])


def state(w: Any) -> Any:
    ansatz(w)
    return qml.state()


@pytest.mark.parametrize("device", ["default.qubit", "default.mixed"])
@pytest.mark.parametrize("function", [listed, probabilities, state])
def test_results_that_are_not_one_number(function: Any, device: str) -> None:
    with pytest.raises(
        TypeError, match="qnode: expected a QNode that returns one expectation value"
    ):
        fubini.scipy_function(node(function, device), start())


def test_refused_arguments() -> None:
    qnode = node(one)
    with pytest.raises(TypeError, match="qnode: expected a QNode, got function"):
        fubini.scipy_function(one, start())
    with pytest.raises(TypeError, match="weights: expected at least one array"):
        fubini.scipy_function(qnode)
    with pytest.raises(
        TypeError, match="w: expected an array of real numbers to start from, got complex128"
    ):
        fubini.scipy_function(qnode, start() * 1j)
    with pytest.raises(ValueError, match="w: expected finite numbers"):
        fubini.scipy_function(qnode, start() * np.nan)
    f = fubini.scipy_function(qnode, start())
    for call in (f, f.value, f.gradient, f.metric, f.arguments):
        with pytest.raises(ValueError, match=r"x: expected all weights side by side, \(12,\)"):
            call(np.zeros(11))
    with pytest.raises(ValueError, match="approx: expected"):
        f.metric(f.x0, "full")
