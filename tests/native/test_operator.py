"""MetricOperator against the dense metric, and its solutions against SciPy's."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg
import torch

import fubini
from angle_circuits import ansatz, drawn, shared_and_bent
from circuits import random_circuit
from fubini.circuit.jacobian import Jacobian
from fubini.metric import circuits
from fubini.native.metric_form import choose
from fubini.native.operator import MetricOperator
from fubini.native.pullback import Pullback

FORMS = ["dense", "dual", "matrix-free"]
TOLERANCE = 1e-11


def cases() -> list[Any]:
    def plain() -> tuple[Any, Any]:
        circuit = ansatz(4, 2)
        angles = np.random.default_rng(0).uniform(-3, 3, (3, circuit.num_angles))
        return circuit, angles

    def drawn_circuit() -> tuple[Any, Any]:
        _, circuit, angles = drawn(11, batch=2)
        return circuit, angles

    return [pytest.param(plain, id="ansatz"), pytest.param(drawn_circuit, id="drawn")]


def bent_operator(form: Any) -> MetricOperator:
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    w = torch.rand(5, dtype=torch.float64, generator=generator).requires_grad_()
    return fubini.metric_operator(qnode, form)(x, w)


def check_operator(operator: MetricOperator, dense: Any) -> None:
    size = len(dense)
    assert operator.shape == (size, size)
    vectors = np.random.default_rng(3).normal(size=(size, 3))
    np.testing.assert_allclose(operator @ vectors, dense @ vectors, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(operator @ vectors[:, 0], dense @ vectors[:, 0], atol=TOLERANCE)
    tensors = torch.from_numpy(vectors).to(torch.float32)
    product = operator @ tensors
    assert product.dtype == torch.float32
    np.testing.assert_allclose(product.numpy(), dense @ vectors, rtol=0, atol=1e-5)
    np.testing.assert_allclose(operator.diagonal(), np.diag(dense), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(operator.dense(), dense, rtol=0, atol=TOLERANCE)
    factor = np.asarray(operator.factor())
    np.testing.assert_allclose(factor @ factor.T, dense, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", cases())
def test_operator_of_a_circuit(case: Any, form: Any) -> None:
    circuit, angles = case()
    dense = circuits.metric(circuit, angles, reduce="mean")
    operator = circuits.metric_operator(circuit, angles, form)
    check_operator(operator, dense)
    found = np.concatenate([columns for columns, _ in operator.blocks()])
    assert sorted(found.tolist()) == list(range(len(dense)))
    for columns, block in operator.blocks():
        np.testing.assert_allclose(block, dense[np.ix_(columns, columns)], atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_operator_of_weights_that_are_shared_and_bent(form: Any) -> None:
    dense = np.asarray(bent_operator("dense").dense())
    check_operator(bent_operator(form), dense)
    covered = np.concatenate([columns for columns, _ in bent_operator(form).blocks()])
    assert sorted(covered.tolist()) == list(range(5))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_operator_of_a_qnode(seed: int, shared: bool) -> None:
    circuit = random_circuit(seed, shared=shared, gates=8)
    inputs, weights = circuit.draw(seed, 3)
    with torch.no_grad():
        dense = fubini.metric_tensor(circuit.qnode(), reduce="mean")(inputs, weights).numpy()
    operator = fubini.metric_operator(circuit.qnode(), "matrix-free")(inputs, weights)
    assert isinstance(operator.dense(), torch.Tensor)
    check_operator(operator, dense)


def test_operator_of_a_layer() -> None:
    def circuit(inputs: Any, w: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(3))
        qml.StronglyEntanglingLayers(w, wires=range(3))
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=3))
    layer = fubini.QuantumLayer(qnode, {"w": (2, 3, 3)}).double()
    x = torch.rand(7, 3, dtype=torch.float64)
    dense = fubini.metric_tensor(layer, reduce="mean", joint=True)(x).detach()
    operator = fubini.metric_tensor(layer, "auto")(x)
    assert operator.form == "dense"
    assert "it is predicted to take" in operator.explain()
    torch.testing.assert_close(operator.dense(), dense)
    free = fubini.metric_operator(layer, "matrix-free")(x)
    assert "the caller asked for it" in free.explain()
    b = torch.rand(18, dtype=torch.float64)
    torch.testing.assert_close(free @ b, dense @ b, rtol=0, atol=TOLERANCE)
    measured = fubini.metric_operator(layer, engine="device")(x)
    torch.testing.assert_close(measured @ b, dense @ b, rtol=0, atol=TOLERANCE)
    assert "measured as a matrix" in measured.explain()
    with pytest.raises(ValueError, match="form: 'matrix-free' needs the native engine"):
        fubini.metric_operator(layer, "matrix-free", engine="device")(x)


# -- solutions ------------------------------------------------------------------------------------------------------


DAMPINGS = [1e-3, fubini.Absolute(1e-2), fubini.Relative(1e-2), fubini.Diagonal(1e-2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_solutions_are_those_of_the_dense_system(form: Any, damping: Any, columns: Any) -> None:
    operator = bent_operator(form)
    dense = np.asarray(operator.dense())
    b = np.random.default_rng(5).normal(size=5 if columns is None else (5, columns))
    lam = damping if isinstance(damping, float) else damping.lam
    added = {
        "Relative": lam * np.diag(dense).mean() * np.eye(5),
        "Diagonal": lam * np.diag(np.diag(dense)),
    }.get(type(damping).__name__, lam * np.eye(5))
    expected = scipy.linalg.solve(dense + added, b, assume_a="pos")
    x, info = operator.solve(b, damping=damping, rtol=1e-12, return_info=True)
    np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(operator.solve(b, damping=damping, rtol=1e-12), x, rtol=1e-9)
    assert info.status.max() == 0
    assert info.residual.max() < 1e-10
    if form == "matrix-free":
        assert info.iterations.min() >= 1
        assert info.iterations.max() <= 40


def test_a_warm_start_needs_fewer_products() -> None:
    circuit = ansatz(6, 4)
    angles = np.random.default_rng(7).uniform(-3, 3, circuit.num_angles)
    operator = circuits.metric_operator(circuit, angles, "matrix-free")
    b = operator @ np.random.default_rng(8).normal(size=circuit.num_angles)
    x, cold = operator.solve(b, damping=1e-3, rtol=1e-8, return_info=True)
    again, none = operator.solve(b, damping=1e-3, rtol=1e-8, x0=x, return_info=True)
    assert none.iterations == 0
    np.testing.assert_array_equal(again, x)
    moved = circuits.metric_operator(circuit, angles + 1e-4, "matrix-free")
    warm = moved.solve(b, damping=1e-3, rtol=1e-8, x0=x, return_info=True)[1]
    assert 0 < warm.iterations < cold.iterations
    torch_x, info = operator.solve(torch.from_numpy(b), damping=1e-3, return_info=True)
    assert isinstance(torch_x, torch.Tensor)
    assert info.iterations.shape == ()


def test_the_preconditioner_saves_products() -> None:
    circuit = ansatz(6, 3)
    angles = np.random.default_rng(9).uniform(-3, 3, circuit.num_angles)
    angles[::2] *= 1e-2  # small rotations: scales of the metric differ by orders of magnitude
    operator = circuits.metric_operator(circuit, angles, "matrix-free")
    b = np.random.default_rng(10).normal(size=circuit.num_angles)
    _, info = operator.solve(b, damping=1e-6, rtol=1e-8, return_info=True)
    _, plain = fubini.solve(
        lambda v: v @ operator.dense(), b, damping=1e-6, method=fubini.CG(1e-8), return_info=True
    )
    assert info.iterations < plain.iterations


@pytest.mark.parametrize(
    ("wires", "layers", "weights"),
    [(8, 10, 160), pytest.param(12, 83, 1992, marks=pytest.mark.slow)],
)
def test_conjugate_gradients_reach_the_dense_solution(
    wires: int, layers: int, weights: int
) -> None:
    circuit = ansatz(wires, layers)
    assert circuit.num_angles == weights
    angles = np.random.default_rng(11).uniform(-3, 3, weights)
    b = np.random.default_rng(12).normal(size=weights)
    lam, rtol = 1e-3, 1e-9
    expected = circuits.metric_operator(circuit, angles, "dense").solve(b, damping=lam)
    operator = circuits.metric_operator(circuit, angles, "matrix-free")
    x, info = operator.solve(b, damping=lam, rtol=rtol, return_info=True)
    # |x - x*| <= |A^-1| |r|, and the damped metric is at least lam.
    assert np.linalg.norm(x - expected) <= 2 * rtol * np.linalg.norm(b) / lam
    assert info.residual <= rtol
    assert "_matrix" not in vars(operator)


# -- the choice -----------------------------------------------------------------------------------------------------


def test_the_form_is_chosen_by_predicted_cost_and_memory() -> None:
    small, large = ansatz(4, 2), ansatz(12, 150)
    few = choose(small, 16)
    assert few.form == "dense"
    assert choose(large, 3600).form == "matrix-free"
    assert "3600 weights, 12 qubits" in choose(large, 3600).explain()
    # Rows fewer than weights, and no products to be had cheaply.
    many = choose(ansatz(3, 400), 2400, iterations=100_000)
    assert many.form == "dual"
    assert many.seconds["dual"] < min(many.seconds["dense"], many.seconds["matrix-free"])
    tight = choose(small, 16, bound=100.0)
    assert tight.form == "matrix-free"
    assert "no other form fits" in tight.explain()
    assert choose(small, 16, inputs=50).bytes["dual"] > 40 * few.bytes["dual"]


def test_auto_says_what_it_took() -> None:
    circuit = ansatz(3, 2)
    operator = circuits.metric_operator(circuit, np.zeros(12))
    assert "12 weights, 1 inputs, form='dense'" in repr(operator)
    assert operator.choice is not None


# -- errors ---------------------------------------------------------------------------------------------------------


def test_bad_requests_say_what_is_wrong() -> None:
    operator = circuits.metric_operator(ansatz(2, 1), np.zeros(4), "matrix-free")
    with pytest.raises(ValueError, match=r"vectors: expected shape \(P,\) or \(P, c\) with P = 4"):
        operator @ np.zeros(3)
    with pytest.raises(
        ValueError, match=r"rhs: expected finite numbers, got NaN or infinity at rhs\[2\]"
    ):
        operator.solve([0, 0, np.nan, 0])
    with pytest.raises(ValueError, match=r"x0: expected the shape of rhs = \(4,\), got \(4, 1\)"):
        operator.solve(np.ones(4), damping=1.0, x0=np.zeros((4, 1)))
    with pytest.raises(ValueError, match="form: expected 'auto', 'dense', 'dual' or 'matrix-free'"):
        circuits.metric_operator(ansatz(2, 1), np.zeros(4), "sparse")
    with pytest.raises(ValueError, match=r"damping: expected"):
        operator.solve(np.ones(4), damping=-1.0)
    with pytest.raises(ValueError, match=r"nan at angles\[1\]"):
        circuits.metric_operator(ansatz(2, 1), [0, np.nan, 0, 0])
    with pytest.raises(fubini.NumericalError):  # the metric is zero in some directions
        operator.solve(np.ones(4), damping=0.0, max_iterations=50)


def test_jacobian_without_a_dense_matrix_is_that_of_the_dense_matrix() -> None:
    rng = np.random.default_rng(0)
    columns = np.array([2, 0, 2, 1, 4])
    coefficients = rng.normal(size=(3, 5))
    gathered = Jacobian.gather(np.arange(5), columns, coefficients, 6)
    dense = Jacobian(np.arange(5), gathered.values)
    assert dense.columns is not None
    mixed_values = gathered.values + 1e-3 * rng.normal(size=(3, 5, 6))
    mixed = Jacobian(np.arange(5), mixed_values)
    assert mixed.columns is None
    for jacobian, values in (
        (gathered, gathered.values),
        (dense, gathered.values),
        (mixed, mixed_values),
    ):
        v, u = rng.normal(size=(4, 6)), rng.normal(size=(3, 4, 5))
        np.testing.assert_allclose(jacobian.push(v), v @ values.swapaxes(1, 2), atol=1e-14)
        np.testing.assert_allclose(jacobian.pull(u), u @ values, atol=1e-14)
        g = rng.normal(size=(3, 5, 5))
        g = g + g.swapaxes(1, 2)
        total = np.zeros((3, 6, 6))
        at, matrices = jacobian.congruence((range(5), g))
        total[:, at[:, None], at] = matrices
        np.testing.assert_allclose(total, values.swapaxes(1, 2) @ g @ values, atol=1e-13)
        total = np.zeros((3, 6, 6))
        at, matrices = jacobian.congruence(([3, 1], np.ones((3, 2))))
        total[:, at[:, None], at] = matrices
        part = values[:, [3, 1]]
        np.testing.assert_allclose(total, part.swapaxes(1, 2) @ part, atol=1e-13)


def test_circuits_without_weights() -> None:
    circuit = ansatz(2, 1)
    pullback = Pullback(circuit, np.zeros((1, 4)), Jacobian(np.arange(0), np.zeros((1, 0, 0))))
    operator = MetricOperator(pullback, "matrix-free")
    assert operator.dense().shape == (0, 0)
    assert operator.diagonal().shape == (0,)
    assert (operator @ np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("form", FORMS)
def test_operators_refuse_inputs_that_are_not_finite(form: Any) -> None:  # products were NaN
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    w = torch.rand(5, dtype=torch.float64).requires_grad_()
    x = torch.tensor([0.1, torch.inf, 0.3], dtype=torch.float64)
    for _ in range(3):  # run, then compiled
        with pytest.raises(ValueError, match=r"NaN or infinite|got (nan|inf) at angles"):
            fubini.metric_operator(qnode, form)(x, w) @ np.ones(5)
    circuit = ansatz(4, 2)
    angles = np.zeros((2, circuit.num_angles))
    angles[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"got nan at angles\[1, 3\]"):
        circuits.metric_operator(circuit, angles, form)


def test_auto_checks_reduce() -> None:  # it was ignored
    qnode = qml.QNode(shared_and_bent, qml.device("default.qubit", wires=3))
    with pytest.raises(ValueError, match="reduce: expected None or 'mean', got 'sum'"):
        fubini.metric_tensor(qnode, "auto", reduce="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [None, 2])
def test_a_guess_of_the_wrong_length_is_scaled(columns: int | None) -> None:
    circuit = ansatz(6, 4)
    size = circuit.num_angles
    angles = np.random.default_rng(7).uniform(-3, 3, size)
    operator = circuits.metric_operator(circuit, angles, "matrix-free")
    b = np.random.default_rng(8).normal(size=size if columns is None else (size, columns))
    x = operator.solve(b, damping=1e-2, rtol=1e-10)
    for factor in (100.0, -1.0, 1e-6):
        _, info = operator.solve(b, damping=1e-2, rtol=1e-6, x0=factor * x, return_info=True)
        assert np.max(info.iterations) <= 1
        assert np.max(info.residual) <= 1e-6


def test_an_equal_circuit_is_compared_once() -> None:  # every call compared all gates
    first, second = ansatz(4, 2), ansatz(4, 2)
    angles = np.random.default_rng(0).uniform(-3, 3, first.num_angles)
    expected = circuits.metric(first, angles, "diag")
    np.testing.assert_array_equal(circuits.metric(second, angles, "diag"), expected)
    calls = []
    original = type(first).__eq__

    def counted(self: Any, other: object) -> Any:
        calls.append(other)
        return original(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(first), "__eq__", counted)
        np.testing.assert_array_equal(circuits.metric(second, angles, "diag"), expected)
    assert not calls
