"""Evolution on devices with shots, against explicit dense mathematics and the exact evolution."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.geometry.ansatz import ansatz
from fubini.geometry.device_ansatz import device_ansatz
from fubini.geometry.evolution_result import SampledEvolution
from fubini.geometry.flow import Flow
from fubini.geometry.flow_shots import SampledFlow
from fubini.geometry.hamiltonians import hamiltonian_of
from fubini.geometry.operators import matrix, terms_of
from geometry_cases import ising, qnode, random_circuit, random_hamiltonian


def _explicit(node: Any, operator: Any, w: Any, time: str) -> tuple[Any, Any, float]:
    """The metric, b and Var H from states and differences of states."""
    form = ansatz(node, w)

    def state(at: Any) -> Any:
        return form.circuit.state(form.angles(at[None]))[0]

    step, psi = 1e-3, state(w)
    tangents = []
    for k in range(len(w)):
        d = np.eye(len(w))[k] * step
        # Differences of order 4: an error of about step^4 = 1e-12, and 1e-13 of rounding.
        near, far = state(w + d) - state(w - d), state(w + 2 * d) - state(w - 2 * d)
        tangents.append((8 * near - far) / (12 * step))
    rows = np.array(tangents)
    rows = rows - np.outer(rows @ psi.conj(), psi)
    h = matrix(terms_of("h", operator, form.circuit), form.circuit.num_wires) @ psi
    h = h - (psi.conj() @ h) * psi
    moved = -1j * h if time == "real" else -h
    return (rows.conj() @ rows.T).real, (rows.conj() @ moved).real, float(np.vdot(h, h).real)


def _sampled(
    function: Any, w: Any, time: Any, shots: int | None, seed: int = 0
) -> tuple[Any, Any, SampledFlow]:
    device = qml.device("default.qubit", seed=seed)
    source = device_ansatz(qml.QNode(function, device, shots=shots), w, None)
    flow = SampledFlow(source, hamiltonian_of(source, None, None, 0.0), time, 1e-9)
    return *flow(0.0, source.weights[0], values=True), flow


@pytest.mark.parametrize("time", ["real", "imaginary"])
@pytest.mark.parametrize("seed", range(4))
def test_without_shots_the_velocity_is_that_of_dense_mathematics(seed, time):
    rng = np.random.default_rng(seed)
    wires = 2 + seed % 2
    operator = random_hamiltonian(wires, rng)
    node = qnode(random_circuit(wires, 4, rng), wires, operator)
    w = rng.normal(size=4)
    found, values, _ = _sampled(node.func, w, time, None)
    metric, force, variance = _explicit(node, operator, w, time)
    np.testing.assert_allclose(found.metric, metric, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.force, force, rtol=0, atol=1e-9)
    # The same cut-off as of the native engine.
    native = ansatz(node, w)
    expected = Flow(native, hamiltonian_of(native, None, None, 0.0), time, 1e-9)(0.0, w[None])[0]
    expected = expected.weights[0]
    np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(values[0], [float(node(w)), variance], rtol=0, atol=1e-10)
    rest = variance - 2 * force @ expected + expected @ metric @ expected
    np.testing.assert_allclose(found.missed(values[0, 1], 0.0), (rest, 0.0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("time", ["real", "imaginary"])
def test_with_shots_estimates_scatter_as_their_errors_say(time):
    rng = np.random.default_rng(5)
    operator = random_hamiltonian(2, rng)
    node = qnode(random_circuit(2, 3, rng), 2, operator)
    w = rng.normal(size=3)
    exact, values, _ = _sampled(node.func, w, time, None)
    rest = exact.missed(values[0, 1], 0.0)[0]
    runs = [_sampled(node.func, w, time, 2000, seed)[:2] for seed in range(12)]
    inverse = np.linalg.inv(exact.metric)
    pulls = []
    for found, seen in runs:
        # To first order dv = g^-1 (db - dg v); entries of g are independent of each other.
        spread = found.metric_errors**2
        v = exact.weights
        noise = found.force_covariance + np.outer(v, v) * spread
        noise += np.diag(spread @ v**2 - np.diagonal(spread) * v**2)
        errors = np.sqrt(np.diagonal(inverse @ noise @ inverse))
        pulls.append((found.weights - v) / errors)
        assert np.abs(pulls[-1]).max() < 5
        np.testing.assert_array_less(np.abs(seen[0] - values[0]), 5 * seen[1])
        square, error = found.missed(*seen[:, 1])
        assert abs(square - rest) < 5 * error
    # 36 pulls: their mean square is 1 +- .24, somewhat less where directions are weighed.
    assert 0.3 < np.mean(np.square(pulls)) < 2.0


def _alternating(w: Any) -> Any:
    for row in w:
        qml.IsingZZ(row[0], [0, 1])
        qml.RX(row[1], 0)
        qml.RX(row[2], 1)
    return qml.expval(ising(2))


_QUENCH: dict[str, Any] = {"observables": {"Z": qml.Z(0), "all": qml.I(0)}, "times": [0, 0.1, 0.2]}
_W = 0.3 + 0.1 * np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("time", ["real", "imaginary"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_residual_is_that_of_the_velocity_that_was_taken(layers, time):
    """With redundant weights as well, whose direction is flat: its fidelities, all ones, have no error."""

    def function(w: Any) -> Any:
        return _alternating(w.reshape(-1, 3))

    w = _W[:layers].reshape(-1)
    node = qml.QNode(function, qml.device("default.qubit"))
    metric, force, variance = _explicit(node, ising(2), w, time)
    pulls, largest = [], {}
    for shots in (300, 3000):
        for seed in range(10):
            found, values, _ = _sampled(function, w, time, shots, seed)
            v = found.weights
            square, error = found.missed(*values[:, 1])
            pulls.append((square - (variance - 2 * force @ v + v @ metric @ v)) / error)
            largest[shots] = max(largest.get(shots, 0.0), float(np.abs(v).max()))
    assert np.abs(pulls).max() < 5
    # Without what the velocity fits of the noise, most would be negative. Errors are cautious, by a factor of two, where
    # several directions are at the threshold of being left out.
    assert abs(np.mean(pulls)) < 0.7
    assert 0.15 < np.mean(np.square(pulls)) < 2.0
    assert largest[3000] < 50


def test_a_quench_with_shots_follows_the_exact_one():
    w = _W[:1]
    exact = fubini.evolve(qml.QNode(_alternating, qml.device("default.qubit")), w, **_QUENCH)
    runs = []
    for seed in range(5):
        noisy = qml.QNode(_alternating, qml.device("default.qubit", seed=seed), shots=1000)
        runs.append(fubini.evolve(noisy, w, method="RK4", step=0.1, **_QUENCH))
    found = runs[0]
    for values, wanted in (
        (np.array([r.energies for r in runs]), exact.energies),
        (np.array([r.observables["Z"] for r in runs]), exact.observables["Z"]),
    ):
        # Noise of the path and of what is measured at its end.
        error = values.std(axis=0, ddof=1) / np.sqrt(len(runs))
        assert (np.abs(values.mean(axis=0) - wanted) < 5 * error).all()
        assert (values.std(axis=0) < 0.2).all()
    again = [
        fubini.evolve(
            qml.QNode(_alternating, qml.device("default.qubit", seed=0), shots=1000),
            w,
            method="RK4",
            step=0.1,
            **_QUENCH,
        )
    ]
    np.testing.assert_array_equal(again[0].weights, found.weights)
    assert isinstance(found, SampledEvolution)
    assert (found.steps, found.evaluations, found.shots) == (2, 9, 1000)
    assert found.usage.shots == 1000 * found.usage.circuits > 0
    assert found.weights.shape == (3, 1, 3)
    np.testing.assert_allclose(found.observables["all"], 1.0, rtol=0, atol=1e-12)
    assert (found.residuals == np.sqrt(np.maximum(found.residual_squares, 0.0))).all()
    pulls = (found.residual_squares - exact.residuals**2) / found.residual_square_errors
    assert (np.abs(pulls) < 5).all()
    longer = found.extend(0.3)
    assert longer.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert len(longer.residual_square_errors) == len(longer.observable_errors["Z"]) == 4
    assert (longer.usage - found.usage).shots > 0


def test_an_exact_device_without_states_takes_the_steps_of_the_native_engine():
    steps: dict[str, Any] = {"method": "RK4", "step": 0.02, **_QUENCH}
    found = fubini.evolve(
        qml.QNode(_alternating, qml.device("default.mixed", wires=2)), _W, **steps
    )
    native = fubini.evolve(qml.QNode(_alternating, qml.device("default.qubit")), _W, **steps)
    # Metrics that are nearly singular, with velocities of up to 50, amplify rounding.
    for a, b in (
        (found.energies, native.energies),
        (found.observables["Z"], native.observables["Z"]),
        (found.variances, native.variances),
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert np.isnan(found.infidelity_bound).all()
    assert "exact circuits" in repr(found)
    assert "no bound of the infidelity: the device returns no states" in repr(found)


def test_cooling_with_shots_lowers_the_energy():
    layer = fubini.QuantumLayer(
        qml.QNode(_alternating, qml.device("default.qubit", seed=1), shots=500),
        {"w": (2, 3)},
        {"w": torch.as_tensor(_W)},
    )
    found = fubini.evolve(layer, times=1.0, time="imaginary", method="RK4", step=0.25)
    assert found.energies[-1] + 5 * found.energy_errors[-1] < found.energies[0]
    assert "noise moves the weights" in repr(found)
    assert torch.is_tensor(found.final) or found.final.shape == (2, 3)
    found.plot()


def test_a_schedule_that_starts_at_nothing():
    def amount(t: float) -> list[float]:
        return [t, 0.0]

    node = qml.QNode(
        lambda w: [qml.RX(w, 0), qml.probs(wires=0)][1], qml.device("default.mixed", 1)
    )
    found = fubini.evolve(
        node,
        0.2,
        [0, 1],
        hamiltonian=[qml.X(0), qml.Z(0)],
        coefficients=amount,
        method="RK4",
        step=0.5,
        observables=[qml.I(0)],
    )
    # exp(-i X / 2) = RX(1): half of t^2 is the angle s, and RX turns by twice that; the tolerance is 1e-6.
    assert float(found.final) == pytest.approx(0.2 + 1.0, abs=1e-5)
    assert found.variances[0] == found.residuals[0] == 0.0


def test_what_makes_no_sense_with_shots_is_refused_by_name():
    node = qml.QNode(_alternating, qml.device("default.qubit", seed=0), shots=100)
    with pytest.raises(ValueError, match=r"method: expected 'RK4'.*it has 100 shots.*step="):
        fubini.evolve(node, _W)
    steps: dict[str, Any] = {"method": "RK4", "step": 0.5}
    with pytest.raises(ValueError, match="tolerance: expected none"):
        fubini.evolve(node, _W, tolerance=1e-3, **steps)
    with pytest.raises(ValueError, match="batched: expected False, for one trajectory"):
        fubini.evolve(node, _W[None], batched=True, **steps)
    with pytest.raises(ValueError, match="coefficients: expected a row of numbers"):
        fubini.evolve(node, _W, hamiltonian=[qml.Z(0)], coefficients=[[1.0], [2.0]], **steps)
    with pytest.raises(ValueError, match="hamiltonian: expected an operator on wires"):
        fubini.evolve(node, _W, hamiltonian=qml.Z(7), **steps)

    def damped(w: Any) -> Any:
        qml.RX(w, 0)
        qml.AmplitudeDamping(0.1, 0)
        return qml.expval(qml.Z(0))

    channel = qml.QNode(damped, qml.device("default.mixed", wires=1))
    with pytest.raises(fubini.UnsupportedCircuitError, match="AmplitudeDamping is a channel"):
        fubini.evolve(channel, 0.1, **steps)

    def thermal(w: Any) -> Any:
        qml.QubitDensityMatrix(np.diag([0.8, 0.2]), wires=0)
        qml.RX(w, 0)
        return qml.expval(qml.Z(0))

    warm = qml.QNode(thermal, qml.device("default.mixed", wires=1))
    with pytest.raises(fubini.UnsupportedCircuitError, match="QubitDensityMatrix"):
        fubini.evolve(warm, 0.1, **steps)
    result = fubini.evolve(node, _W, 0.5, **steps)
    with pytest.raises(fubini.UnsupportedCircuitError, match="states: the circuit ran on a device"):
        result.states()
    layer = fubini.QuantumLayer(node, {"w": (2, 3)})
    with pytest.raises(ValueError, match=r"w: expected the layer's shape \(2, 3\), got \(3,\)"):
        fubini.evolve(layer, np.zeros(3), **steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fubini.evolve(layer, times=0.5, **steps)
