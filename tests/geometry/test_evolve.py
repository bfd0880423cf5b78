"""Variational time evolution against exact evolution, and the right-hand side against explicit dense mathematics."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg
import torch
from scipy.sparse.linalg import expm_multiply

import fubini
from fubini.geometry.ansatz import ansatz
from fubini.geometry.flow import Flow, velocity
from fubini.geometry.hamiltonians import hamiltonian_of
from geometry_cases import (
    alternating,
    dense_tangents,
    ising,
    qnode,
    random_circuit,
    random_hamiltonian,
    universal,
)

# 1 - |<a|b>|^2 of two vectors that are equal to rounding.
ROUNDING = 1e-14


def infidelities(states, exact):
    overlaps = (exact.conj() * states).sum(axis=-1)
    norms = np.linalg.norm(exact, axis=-1) * np.linalg.norm(states, axis=-1)
    return 1 - abs(overlaps / norms) ** 2


def matrix(operator, wires):
    return qml.matrix(operator, wire_order=range(wires))


def start(wires, layers, scale):
    return scale * np.random.default_rng(3).normal(size=(layers, 2 * wires - 1))


@pytest.mark.parametrize(
    ("wires", "layers", "end", "scale"),
    [(4, 8, 1.0, 0.3), (4, 8, 1.0, 0.0), (6, 8, 0.6, 0.05), (8, 8, 0.3, 0.05)],
)
def test_a_quench_of_the_ising_chain_stays_below_its_bound(wires, layers, end, scale):
    hamiltonian = ising(wires)
    result = fubini.evolve(
        alternating(wires, hamiltonian), start(wires, layers, scale), np.linspace(0, end, 7)
    )
    states = result.states()
    exact = expm_multiply(-1j * matrix(hamiltonian, wires), states[0], 0, end, 7)
    found = infidelities(states, exact)
    assert (found <= result.infidelity_bound + ROUNDING).all()
    assert result.infidelity_bound[-1] < 1e-6
    # A constant Hamiltonian's energy is the same at all times, up to the error of the state.
    drift = abs(result.energies - result.energies[0])
    assert (drift <= 4 * wires * result.angle_bound + 1e-12).all()


def test_the_residual_at_the_points_of_fixed_steps_bounds_nothing():
    # What a Runge-Kutta method makes wrong is not in the residual of the principle: that is why
    # a sketch with fixed steps exceeded the bound that it had made of these residuals alone.
    hamiltonian = ising(4)
    node = alternating(4, hamiltonian)
    times = np.linspace(0, 1.0, 11)
    options = {"method": "RK4", "step": 0.1, "tolerance": 1e-6}
    result = fubini.evolve(node, start(4, 8, 0.3), times, **options)
    exact = expm_multiply(-1j * matrix(hamiltonian, 4), result.states()[0], 0, 1.0, 11)
    found = infidelities(result.states(), exact)
    of_residuals = np.trapezoid(result.residuals, times) ** 2
    assert found[-1] > 10 * of_residuals
    assert (found <= result.infidelity_bound + ROUNDING).all()
    assert result.steps == 10
    finer = fubini.evolve(node, start(4, 8, 0.3), times, **{**options, "step": 0.05})
    # The path is of the order of the method, 4: halved steps make 2^8 of the square, in the limit.
    assert finer.infidelity_bound[-1] < result.infidelity_bound[-1] / 30


@pytest.mark.parametrize("method", ["metric", "RK23", "RK45", "DOP853", "LSODA", "BDF", "Radau"])
def test_all_methods_stay_below_their_bounds(method):
    hamiltonian = ising(3)
    end = 0.1 if method in {"Radau", "BDF"} else 0.5
    result = fubini.evolve(
        alternating(3, hamiltonian), start(3, 5, 0.3), end, method=method, tolerance=1e-5
    )
    exact = [
        scipy.linalg.expm(-1j * t * matrix(hamiltonian, 3)) @ result.states()[0]
        for t in result.times
    ]
    found = infidelities(result.states(), np.array(exact))
    assert (found <= result.infidelity_bound + ROUNDING).all()
    assert result.infidelity_bound[-1] < 1e-6
    assert result.times[-1] == end
    assert len(result.times) == result.steps + 1


def test_imaginary_time_reaches_the_ground_state_and_the_energy_falls():
    hamiltonian = ising(4)
    exact = np.linalg.eigvalsh(matrix(hamiltonian, 4))[0]
    w = start(4, 3, 0.1) + 0.1
    node = alternating(4, hamiltonian, plus=True)
    result = fubini.evolve(node, w, 25.0, time="imaginary")
    assert -1e-13 <= result.energies[-1] - exact < 1e-8
    assert (np.diff(result.energies) < 1e-12).all()


def test_imaginary_time_is_the_flow_of_the_natural_gradient():
    node = universal(3, ising(3))
    w = np.random.default_rng(1).normal(size=(4, 2, 3))
    result = fubini.evolve(node, w, [0, 1e-6], time="imaginary", tolerance=1e-12)
    velocity = (result.weights[1] - result.weights[0]) / 1e-6
    leaf = torch.tensor(w, requires_grad=True)
    (slope,) = torch.autograd.grad(fubini.compiled(node)(leaf), leaf)
    metric = fubini.metric_tensor(node, joint=True)(leaf).detach().numpy()
    # Half the gradient, from differences over 1e-6 of velocities of up to 10.
    np.testing.assert_allclose(metric @ velocity.ravel(), -slope.numpy().ravel() / 2, atol=1e-4)


def test_imaginary_time_stays_below_its_bound():
    hamiltonian = ising(3)
    dense = matrix(hamiltonian, 3)
    times = np.linspace(0, 2, 9)
    w = np.random.default_rng(1).normal(size=(4, 2, 3))
    bounds = []
    for node, weights in (
        (universal(3, hamiltonian), w),
        (alternating(3, hamiltonian), start(3, 1, 0.3)),  # which cannot follow
    ):
        result = fubini.evolve(node, weights, times, time="imaginary")
        exact = np.array([scipy.linalg.expm(-t * dense) @ result.states()[0] for t in times])
        found = infidelities(result.states(), exact)
        assert (found <= result.infidelity_bound + ROUNDING).all()
        bounds.append(result.infidelity_bound[-1])
    assert bounds[0] < 1e-6 < bounds[1]


def test_hamiltonians_that_depend_on_time():
    wires, end, count = 3, 0.8, 1000
    field, bonds = qml.sum(*[-qml.X(k) for k in range(wires)]), ising(wires, field=0.0)

    def ramp(t):
        return np.array([1 + 0.5 * np.sin(3 * t), t])

    node = alternating(wires, field)
    w = start(wires, 7, 0.2)
    by_numbers = fubini.evolve(
        node, w, [0, 0.4, end], hamiltonian=[field, bonds], coefficients=ramp
    )
    by_operator = fubini.evolve(
        node,
        w,
        [0, 0.4, end],
        hamiltonian=lambda t: float(ramp(t)[0]) * field + float(ramp(t)[1]) * bonds,
    )
    dense = np.array([matrix(o, wires) for o in (field, bonds)])
    exact = by_numbers.states()[0]
    for k in range(count):  # midpoints: the error is of order (end / count)^2, 6e-7
        h = np.tensordot(ramp((k + 0.5) * end / count), dense, 1)
        exact = scipy.linalg.expm(-1j * end / count * h) @ exact
    for result in (by_numbers, by_operator):
        assert infidelities(result.states()[-1], exact) < result.infidelity_bound[-1] + 1e-14
        assert result.infidelity_bound[-1] < 1e-8
        psi = result.states()[-1]
        h = np.tensordot(ramp(end), dense, 1)
        np.testing.assert_allclose(result.energies[-1], (psi.conj() @ h @ psi).real, atol=1e-12)
    np.testing.assert_allclose(by_numbers.energies, by_operator.energies, atol=1e-7)
    node = universal(wires, field)
    w = np.random.default_rng(1).normal(size=(4, 2, wires))
    options = {"hamiltonian": [field, bonds], "coefficients": ramp, "time": "imaginary"}
    cooled = fubini.evolve(node, w, 0.2, **options)
    exact = cooled.states()[0]
    for k in range(count):
        h = np.tensordot(ramp((k + 0.5) * 0.2 / count), dense, 1)
        exact = scipy.linalg.expm(-0.2 / count * h) @ exact
    assert infidelities(cooled.states()[-1], exact) < cooled.infidelity_bound[-1] + 1e-14
    assert cooled.infidelity_bound[-1] < 1e-8


@pytest.mark.parametrize("seed", range(20))
def test_right_hand_sides_are_those_of_dense_mathematics(seed):
    rng = np.random.default_rng(seed)
    wires = 2 + seed % 7
    size = int(rng.integers(3, 14))
    circuit, hamiltonian = random_circuit(wires, size, rng), random_hamiltonian(wires, rng)
    w = rng.normal(size=size)
    a = ansatz(qnode(circuit, wires, hamiltonian), w)
    psi, derivative = dense_tangents(circuit, wires, w)
    dense = matrix(hamiltonian, wires)
    projected = derivative - np.outer(derivative @ psi.conj(), psi)
    moved = dense @ psi - (psi.conj() @ dense @ psi) * psi
    metric = (projected.conj() @ projected.T).real
    for time, phase in (("real", -1j), ("imaginary", -1.0)):
        flow = Flow(a, hamiltonian_of(a, None, None, 0.0), time, 1e-7)
        found, motion = flow(0.0, w[None])
        side = (projected.conj() @ (phase * moved)).real
        np.testing.assert_allclose(motion.tangents[0] @ motion.tangents[0].T, metric, atol=1e-12)
        np.testing.assert_allclose(motion.tangents[0] @ motion.states[0], side, atol=1e-11)
        damping = found.dampings[0]
        expected = np.linalg.solve(metric + damping * np.eye(size), side)
        scale = max(1.0, np.abs(expected).max())
        # Rounding of 1e-15 in the metric, over its damped eigenvalues
        least = np.linalg.eigvalsh(metric)[0] + damping
        np.testing.assert_allclose(
            found.weights[0], expected, atol=scale * max(1e-10, 1e-14 / least)
        )
        rest = found.weights[0] @ projected - phase * moved
        np.testing.assert_allclose(found.residuals[0], np.linalg.norm(rest), atol=1e-11)
        np.testing.assert_allclose(found.variances[0], np.vdot(moved, moved).real, atol=1e-10)
        # The cut-off: what it adds to the residual is what it may.
        squares, vectors = np.linalg.eigh(metric)
        trace = squares.sum()
        sides = (vectors.T @ side) ** 2 / (squares + 1e-10 * trace)
        most = 1e-4 * trace
        root = damping - 1e-10 * trace
        root = root * most / (most - root)  # before it was made to end smoothly
        added = root**2 * (sides / (squares + root) ** 2).sum()
        undamped = np.linalg.solve(metric + root * np.eye(size), side)
        total = np.linalg.norm(undamped @ projected - phase * moved) ** 2
        if damping < 0.999 * most:
            np.testing.assert_allclose(added, 1e-14 + 1e-4 * total, rtol=1e-3)
        else:
            assert added < 1e-14 + 1e-4 * total


def velocity_by_eigenvectors(tangents, state, allowed):
    """The velocity, its residual and damping, slowly: lambda by bisection on the definition of the principle's module."""
    squares, vectors = np.linalg.eigh(tangents @ tangents.T)
    squares, trace = np.maximum(squares, 0), (tangents**2).sum()
    side = vectors.T @ (tangents @ state)

    def rest(damping):
        return np.linalg.norm(state - (vectors @ (side / (squares + damping))) @ tangents)

    def too_large(damping):
        added = (damping * side / (squares + damping)) ** 2 / (squares + 1e-10 * trace)
        return added.sum() > allowed**2 + (0.01 * rest(damping)) ** 2

    low, high = 1e-16 * trace, trace
    for _ in range(80):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if too_large(middle) else (middle, high)
    most = 1e-4 * trace
    damping = low * most / (low + most) + 1e-10 * trace
    return vectors @ (side / (squares + damping)), rest(damping), damping


@pytest.mark.parametrize(("weights", "width"), [(3, 8), (8, 8), (20, 8), (8, 32)])
def test_velocities_are_those_of_the_definition(weights, width):
    rng = np.random.default_rng(weights + width)
    for allowed in (1e-6, 1e-3):
        tangents = rng.normal(size=(3, weights, width)) * 10.0 ** -rng.integers(
            0, 4, (3, weights, 1)
        )
        states = rng.normal(size=(3, width))
        found = velocity(tangents, states, allowed)
        for b in range(3):
            expected, residual, damping = velocity_by_eigenvectors(tangents[b], states[b], allowed)
            # Directions of 1e-3 of the largest: rounding of 1e-16 over their squares and lambda.
            np.testing.assert_allclose(found.dampings[b], damping, rtol=1e-5)
            np.testing.assert_allclose(found.residuals[b], residual, rtol=1e-5)
            scale = abs(expected).max()
            np.testing.assert_allclose(found.weights[b], expected, atol=1e-5 * scale)
    assert np.isnan(velocity(tangents * np.nan, states, 1e-6).weights).all()


def test_trajectories_are_those_of_single_runs():
    node = alternating(3, ising(3))
    many = np.stack([start(3, 6, 0.1 * k) for k in range(3)])
    options = {"observables": {"z": qml.Z(0), "xx": qml.X(0) @ qml.X(1)}}
    together = fubini.evolve(node, many, [0, 0.2, 0.4], batched=True, **options)
    assert together.weights.shape == (3, 3, 6, 5)
    assert together.energies.shape == together.infidelity_bound.shape == (3, 3)
    assert together.states().shape == (3, 3, 8)
    assert "3 trajectories" in repr(together)
    for b, w in enumerate(many):
        alone = fubini.evolve(node, w, [0, 0.2, 0.4], **options)
        gap = alone.angle_bound[-1] + together.angle_bound[-1, b]
        assert infidelities(alone.states()[-1], together.states()[-1, b]) <= gap**2 + ROUNDING
        for name in ("z", "xx"):
            found = together.observables[name][:, b]
            np.testing.assert_allclose(found, alone.observables[name], atol=2 * gap)


def test_trajectories_of_several_hamiltonians():
    field, bonds = ising(3, coupling=0.0), ising(3, field=0.0)
    node = alternating(3, field)
    rows = np.array([[1.0, 0.5], [0.3, 1.2]])
    together = fubini.evolve(
        node, start(3, 6, 0.2), 0.3, hamiltonian=[field, bonds], coefficients=rows
    )
    assert together.energies.shape[1] == 2
    for b, row in enumerate(rows):
        dense = row[0] * matrix(field, 3) + row[1] * matrix(bonds, 3)
        exact = scipy.linalg.expm(-0.3j * dense) @ together.states()[0, b]
        found = infidelities(together.states()[-1, b], exact)
        assert found <= together.infidelity_bound[-1, b] + ROUNDING
    alone = fubini.evolve(
        node, start(3, 6, 0.2), 0.3, hamiltonian=[field, bonds], coefficients=rows[0]
    )
    np.testing.assert_allclose(alone.energies[-1], together.energies[-1, 0], atol=1e-5)
    assert alone.energies.ndim == 1


def test_an_evolution_goes_on_from_its_end():
    hamiltonian = ising(3)
    node = alternating(3, hamiltonian)
    w = torch.tensor(start(3, 6, 0.2), dtype=torch.float64)
    observables = [qml.Z(0)]
    half = fubini.evolve(node, w, [0, 0.1, 0.2], observables=observables)
    whole = half.extend([0.3, 0.4])
    assert isinstance(whole.weights, torch.Tensor)
    assert whole.weights.shape == (5, 6, 5)
    assert torch.equal(whole.weights[:3], half.weights)
    np.testing.assert_array_equal(whole.times, [0, 0.1, 0.2, 0.3, 0.4])
    exact = expm_multiply(-1j * matrix(hamiltonian, 3), whole.states()[0], 0, 0.4, 5)
    assert (infidelities(whole.states(), exact) <= whole.infidelity_bound + ROUNDING).all()
    assert whole.steps > half.steps
    assert whole.observables["0"].shape == (5,)
    again = fubini.evolve(node, half.final, [0.2, 0.4], observables=observables)
    np.testing.assert_allclose(again.energies[-1], whole.energies[-1], atol=1e-5)
    with pytest.raises(ValueError, match=r"increasing times, got 0.1 after 0.2, the last time"):
        half.extend([0.1])
    assert whole.extend(0.5).times[-1] == 0.5


def test_every_kind_of_circuit_evolves():
    hamiltonian = ising(3)
    node = alternating(3, hamiltonian)
    w = start(3, 4, 0.2)
    expected = fubini.evolve(node, w, 0.2)
    layer = fubini.QuantumLayer(node, {"w": w.shape}, {"w": torch.tensor(w)})
    circuit = fubini.Circuit.from_qnode(node, w)
    found = [
        fubini.evolve(fubini.compiled(node), torch.tensor(w), 0.2),
        fubini.evolve(circuit, w.reshape(-1), 0.2),
        fubini.evolve(layer, (torch.tensor(w),), 0.2),
    ]
    for result in found:
        np.testing.assert_allclose(
            np.asarray(result.final).ravel(), expected.final.ravel(), atol=1e-9
        )

    def decided(w):  # by the value of a weight: the function runs in every call
        if float(w[0, 0]) < 10:
            qml.RZ(0.0, 0)
        return node.func(w)

    fixed = {"method": "RK4", "step": 0.05}
    called = fubini.evolve(qml.QNode(decided, node.device), w, [0, 0.1], **fixed)
    assert type(called._ansatz).__name__ == "_Called"
    np.testing.assert_allclose(
        fubini.evolve(node, w, [0, 0.1], **fixed).energies, called.energies, atol=1e-9
    )
    before = layer.qnode_weights["w"].detach().clone()
    own = fubini.evolve(layer.float(), times=0.2)
    assert own.final.dtype == torch.float32
    assert torch.equal(layer.qnode_weights["w"], before.float())
    np.testing.assert_allclose(own.energies[-1], expected.energies[-1], atol=1e-5)


def test_eigenstates_rest_and_idle_weights_do_not_move():
    def function(w):
        qml.RZ(w[0], 0)
        qml.RX(w[1], 1)
        return qml.expval(qml.Z(0))

    node = qml.QNode(function, qml.device("default.qubit", wires=2))
    for time in ("real", "imaginary"):
        result = fubini.evolve(node, np.array([0.3, 0.2]), 2.0, time=time)
        np.testing.assert_allclose(result.final, [0.3, 0.2], atol=1e-14)
        assert result.infidelity_bound[-1] < 1e-25


def test_weights_that_no_gate_has_stay():
    def function(w):
        qml.Hadamard(0)
        return qml.expval(qml.Z(0))

    node = qml.QNode(function, qml.device("default.qubit", wires=1))
    result = fubini.evolve(node, np.array([0.3]), 0.1)
    np.testing.assert_allclose(result.final, [0.3], atol=1e-15)
    np.testing.assert_allclose(result.residuals, 1.0)  # the standard deviation of Z
    assert result.angle_bound[-1] == pytest.approx(0.1)


NODE = alternating(2, ising(2))
W = np.zeros((1, 3))


def _with_data(w, x):
    qml.RX(x, 0)
    qml.RY(w, 0)
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hamiltonian": qml.Z(5)}, r"hamiltonian: expected an operator on wires of the circuit"),
        ({"hamiltonian": 1j * qml.Z(0)}, "hamiltonian: expected a Hermitian operator"),
        ({"hamiltonian": lambda t: 1j * qml.Z(0)}, r"hamiltonian\(0\): expected a Hermitian"),
        ({"hamiltonian": np.eye(4)}, r"hamiltonian: expected a PennyLane operator"),
        ({"hamiltonian": []}, "coefficients: expected one number for each of the 0 operators"),
        ({"hamiltonian": [qml.Z(0)]}, "coefficients: expected one number for each of the 1"),
        ({"coefficients": [1.0]}, "coefficients: expected None without a list of operators"),
        ({"hamiltonian": [qml.Z(0)], "coefficients": [1, 2]}, "coefficients: expected 1 numbers"),
        ({"hamiltonian": [qml.Z(0)], "coefficients": [np.nan]}, "coefficients: expected finite"),
        (
            {
                "hamiltonian": [qml.Z(0)],
                "coefficients": lambda t: [1 / (t < 0.5) if t < 0.5 else np.inf],
            },
            "coefficients: expected finite",
        ),
        ({"times": [0, 1, 1]}, r"times: expected increasing times, got 1 after 1, times\[1\]"),
        ({"times": [1, 0]}, r"times: expected increasing times, got 0 after 1, times\[0\]"),
        ({"times": [1.0]}, "times: expected at least two"),
        ({"times": -1.0}, "times: expected a time after 0, got -1"),
        ({"times": [0, np.nan]}, r"times: expected finite numbers, got nan at times\[1\]"),
        ({"times": np.zeros((2, 2))}, r"times: expected a number or a sequence"),
        ({"weights": W * np.nan}, r"w: expected finite numbers, got nan"),
        ({"weights": None}, "weights: expected the QNode's arguments"),
        ({"time": "virtual"}, "time: expected 'real' or 'imaginary'"),
        ({"method": "Euler"}, "method: expected one of 'metric', 'RK4'"),
        ({"method": "RK4"}, "step: expected a length of the steps"),
        ({"step": 0.1}, "step: expected None, as only 'RK4' has one"),
        ({"method": "RK4", "step": -0.1}, "step: expected a positive number, got -0.1"),
        ({"tolerance": 0}, "tolerance: expected a positive number, got 0"),
        ({"tolerance": "small"}, "tolerance: expected a positive number, got str"),
        ({"batched": True, "weights": np.float64(0.1)}, "expected an axis of trajectories"),
        ({"observables": qml.Z(0)}, "observables: expected a dictionary or a list"),
        ({"observables": {"a": qml.Z(9)}}, r"observables\['a'\]: expected an operator on wires"),
        (
            {
                "batched": True,
                "weights": np.zeros((3, 1, 3)),
                "hamiltonian": [qml.Z(0)],
                "coefficients": np.ones((2, 1)),
            },
            "coefficients: expected rows for the 3 trajectories of weights, got 2",
        ),
    ],
)
def test_bad_arguments_are_named(change, words):
    arguments = {"weights": W, "times": 1.0, **change}
    with pytest.raises((TypeError, ValueError), match=words):
        fubini.evolve(NODE, **arguments)


def test_circuits_that_cannot_evolve_are_refused_with_a_remedy():
    device = qml.device("default.qubit", wires=1)
    node = qml.QNode(_with_data, device)
    with pytest.raises(ValueError, match="inputs: the circuit's argument 'x' has no value"):
        fubini.evolve(node, 0.1)
    fubini.evolve(node, 0.1, 0.1, inputs={"x": 0.3})
    assert len(fubini.evolve(node, (0.1, 0.2), 0.1).final) == 2
    with pytest.raises(fubini.UnsupportedCircuitError, match="it has 10 shots"):
        ansatz(qml.set_shots(node, 10), 0.1, {"x": 0.3})
    with pytest.raises(ValueError, match=r"it has 10 shots.*method='RK4', step="):
        fubini.evolve(qml.set_shots(node, 10), 0.1, inputs={"x": 0.3})
    steps = {"method": "RK4", "step": 0.1}
    fubini.evolve(qml.set_shots(node, 10), 0.1, 0.1, inputs={"x": 0.3}, **steps)
    exact = qml.QNode(qml.set_shots(node, 10).func, qml.device("default.qubit"))
    fubini.evolve(exact, 0.1, 0.1, inputs={"x": 0.3})
    shots = fubini.QuantumLayer(qml.set_shots(alternating(2, ising(2)), 10), {"w": (1, 3)})
    with pytest.raises(fubini.UnsupportedCircuitError, match=r"native engine.*QuantumLayer\(qml"):
        ansatz(shots)
    fubini.evolve(shots, times=0.1, **steps)
    layer = fubini.QuantumLayer(
        qml.QNode(shots.qnode.func, qml.device("default.qubit")),
        shots.weight_shapes,
        dict(shots.qnode_weights),
    )
    fubini.evolve(layer, times=0.1)
    mixed = qml.QNode(_with_data, qml.device("default.mixed", wires=1))
    with pytest.raises(fubini.UnsupportedCircuitError, match=r"qml.QNode\(qnode.func"):
        ansatz(mixed, 0.1, {"x": 0.3})
    fubini.evolve(mixed, 0.1, 0.1, inputs={"x": 0.3}, **steps)
    several = qml.QNode(lambda w: [qml.RX(w, 0), qml.probs()][1], device)
    with pytest.raises(ValueError, match=r"one expectation value, got .'probs'.; pass hamiltonian"):
        fubini.evolve(several, 0.1)
    fubini.evolve(several, 0.1, 0.1, hamiltonian=qml.Z(0))


def test_the_picture_and_the_words(tmp_path):
    result = fubini.evolve(NODE, W + 0.1, 0.3, observables={"magnetisation": qml.Z(0)})
    figure = result.plot()
    figure.savefig(tmp_path / "evolution.png")
    assert len(figure.axes) == 3
    assert "real time 0 to 0.3" in repr(result)
    assert "infidelity at most" in repr(result)


SINGULAR = qml.sum(
    *(-1.0 * qml.Z(k) @ qml.Z(k + 1) for k in range(3)), *(-1.0 * qml.X(k) for k in range(4))
)


@pytest.mark.parametrize("method", ["metric", "RK45"])
def test_a_metric_that_loses_rank_stops_adaptive_steps_by_name(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # weights race where the metric degenerates: with tolerance=1e-4, steps shrank without an end
    @qml.qnode(qml.device("default.qubit", wires=4))
    def real(w: np.ndarray) -> object:
        for layer in w:
            for k in range(4):
                qml.RY(layer[k], k)
            for k in range(3):
                qml.CNOT([k, k + 1])
        return qml.expval(SINGULAR)

    monkeypatch.setattr("fubini.geometry.evolution_steps._MOST", 500)
    start = 0.3 * np.random.default_rng(0).normal(size=(4, 4))
    options = {"time": "imaginary", "tolerance": 1e-4}
    with pytest.raises(fubini.NumericalError, match="method='RK4' with step"):
        fubini.evolve(real, start, 2.0, method=method, **options)
    found = fubini.evolve(real, start, 12.0, time="imaginary", method="RK4", step=0.05)
    lowest = np.linalg.eigvalsh(qml.matrix(SINGULAR, wire_order=range(4)))[0]
    assert found.energies[-1] - lowest < 1e-5
