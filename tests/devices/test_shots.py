"""Estimates from shots: unbiased, with standard errors that are those observed over 300 repetitions."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from devices_common import Serial, check_statistics, metric_blocks, tape_of
from fubini import NumericalError, UnsupportedCircuitError
from fubini.circuit.pauli import dense
from fubini.devices.basis import diagonal_basis
from fubini.devices.block_metric import covariances, metric_job
from fubini.devices.executor import Executor
from fubini.devices.readout import sampled_readout
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.signal_to_noise import snr_direction, split_shots, variance_ratio
from fubini.devices.usage import Usage
from reference import geometric_tensor

REPETITIONS = 300


def gates(x: Any, w: Any) -> None:
    for k in range(3):
        qml.RY(x[..., k], k)
    qml.CNOT([0, 1])
    qml.RX(w[0], 0)
    qml.CRY(w[1], [1, 2])
    qml.IsingXY(w[2], [0, 1])
    qml.RZ(w[3], 2)
    qml.CNOT([1, 2])
    qml.RY(w[4], 1)
    qml.SingleExcitation(w[5], [2, 0])


def measured(x: Any, w: Any) -> Any:
    gates(x, w)
    return (
        qml.expval(0.4 * qml.Z(0) @ qml.Z(1) - 0.8 * qml.X(1) + 0.3 * qml.Y(0) + 0.2 * qml.I(0)),
        qml.probs(wires=[2, 1]),
        qml.var(qml.X(0)),
        qml.expval(qml.Hermitian(np.array([[1.0, 0.5j], [-0.5j, -0.3]]), wires=2)),
        qml.var(qml.Z(1) + 0.5 * qml.X(1)),
    )


WEIGHTS = np.array([0.5, -0.8, 1.1, 0.3, 0.9, -0.4])
INPUT = np.array([0.4, 1.0, -0.7])


@pytest.fixture(scope="module")
def tapes() -> Any:
    """The circuit once, and with the same input 300 times, whose samples are independent."""
    dev = qml.device("default.qubit", wires=3, seed=11)
    one = tape_of(measured, dev, WEIGHTS, torch.tensor(INPUT))
    many = tape_of(measured, dev, WEIGHTS, torch.tensor(np.tile(INPUT, (REPETITIONS, 1))))
    return dev, one, many


def test_values_and_gradient_over_300_repetitions(tapes: Any) -> None:
    dev, one, many = tapes
    executor = Executor(dev)
    exact = gradient_job(one, values=True).run(executor)
    found = gradient_job(many, shots=100, values=True).run(executor)
    check_statistics(found.jacobian, found.errors, exact.jacobian[0])
    distance = np.abs(found.values.mean(axis=0) - exact.values[0])
    assert (distance <= 4.0 * found.values.std(axis=0) / np.sqrt(REPETITIONS)).all()
    seen = values_job(many, shots=100).run(executor)
    unit = np.eye(len(seen.readout.constant))
    truth = seen.readout.constant + sum(
        qml.execute(
            [qml.tape.QuantumScript((*[g.operation for g in one.gates], *s.gates), s.measurements)],
            dev,
        )[0]
        @ s.matrix.T
        for s in seen.readout.settings
    )
    check_statistics(seen.features, np.sqrt(seen.variance(unit)), truth)


def test_covariance_of_a_pulled_back_gradient(tapes: Any) -> None:
    dev, one, many = tapes
    executor = Executor(dev)
    cotangents = np.array([0.7, -0.2, 0.4, 0.1, 0.3, 1.2, -0.5, 0.8])
    found = gradient_job(many, shots=100).run(executor)
    exact = gradient_job(one).run(executor).jacobian[0]
    gradients = np.einsum("m,bma->ba", cotangents, found.jacobian)
    covariance = found.covariance(np.tile(cotangents, (REPETITIONS, 1)))
    errors = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    check_statistics(gradients, errors, cotangents @ exact)
    observed = np.cov(gradients.T)
    scale = np.sqrt(np.outer(np.diagonal(observed), np.diagonal(observed)))
    # Four standard errors of 300 samples: 0.24 for a correlation, 0.33 for a relative variance; and second-order terms.
    tolerance = np.where(np.eye(6, dtype=bool), 0.4, 0.3)
    assert (np.abs(covariance.mean(axis=0) - observed) / scale <= tolerance).all()


def test_metric_over_300_repetitions(tapes: Any) -> None:
    dev, one, many = tapes
    executor = Executor(dev)
    exact = metric_job(one).run(executor)
    found = metric_job(many, shots=50).run(executor)
    assert exact.circuits == found.circuits
    check_statistics(found.values, found.errors, exact.values[0])


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
def test_exact_blocks_from_probabilities_equal_those_from_states(device: str, tapes: Any) -> None:
    _, one, _ = tapes
    dev = qml.device(device, wires=3)
    found = metric_job(one).run(Executor(dev)).values[0]
    expected = np.zeros_like(found)
    for block in metric_blocks(one, dev, diagonal=False):
        expected[np.ix_(block.angles, block.angles)] = block.values[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    full = geometric_tensor(one).real
    np.testing.assert_allclose(found[found != 0], full[found != 0], rtol=0, atol=1e-12)
    diagonal = metric_job(one, diagonal=True).run(Executor(dev)).values[0]
    np.testing.assert_allclose(diagonal, np.diag(np.diagonal(found)), rtol=0, atol=1e-12)


def test_errors_of_a_metric_over_weights() -> None:
    """Angles that share weights, inputs in front of some layers only."""

    def function(x: Any, w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RX(2 * w[0] + w[1], 1)
        qml.RY(x[..., 0], 0)
        qml.CNOT([0, 1])
        qml.RZ(w[1], 0)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit", wires=2, seed=5)
    inputs = torch.tensor([[0.3], [0.9], [1.7]], dtype=torch.float64)
    tape = tape_of(function, dev, [0.4, 0.8], inputs)
    executor = Executor(dev)
    exact, none = metric_job(tape).run(executor).pulled_back(tape.jacobian)
    assert not none.any()
    expected = np.mean(
        [tape.jacobian[0].T @ g @ tape.jacobian[0] for g in metric_job(tape).run(executor).values],
        axis=0,
    )
    np.testing.assert_allclose(exact, expected, atol=1e-14)
    job = metric_job(tape, shots=60)
    found = [job.run(executor).pulled_back(tape.jacobian) for _ in range(REPETITIONS)]
    values, errors = (np.array(part) for part in zip(*found, strict=True))
    check_statistics(values, errors, exact)


def test_counts(tapes: Any) -> None:
    dev, one, many = tapes
    executor = Executor(dev)
    # Wire 0 is needed in X, Y and Z; everything else fits into these three.
    settings = len(sampled_readout(one).settings)
    assert settings == 3
    # RX, RZ, RY: two terms; CRY, IsingXY, SingleExcitation: four; the variances need the circuit itself.
    rows = 3 * 2 + 3 * 4 + 1
    job = gradient_job(many, shots=10)
    expected = Usage(1, settings, settings * rows * REPETITIONS, 10 * settings * rows * REPETITIONS)
    assert job.cost(executor) == expected
    layers = metric_job(one).cost(executor)
    assert layers == Usage(1, 3, 3, 0)
    assert metric_job(one, shots=7, angles=[0]).cost(executor) == Usage(1, 1, 1, 7)


@pytest.mark.parametrize("device", ["plugin", "lightning.qubit", "default.mixed"])
def test_other_devices_with_shots(device: str) -> None:
    dev: Any = (
        Serial(wires=3, seed=2) if device == "plugin" else qml.device(device, wires=3, seed=2)
    )
    tape = tape_of(measured, dev, WEIGHTS, torch.tensor(INPUT))
    exact = gradient_job(tape).run(Executor(dev)).jacobian
    found = gradient_job(tape, shots=400).run(Executor(dev))
    assert (np.abs(found.jacobian - exact) <= 5 * found.errors + 1e-12).all()
    blocks = metric_job(tape, shots=400).run(Executor(dev))
    distance = np.abs(blocks.values - metric_job(tape).run(Executor(dev)).values)
    # The error of a variance near the largest possible, 1/4, is of second order: some 1/4 / 400.
    assert (distance <= 5 * blocks.errors + 10 * 0.25 / 400).all()


@pytest.mark.parametrize(
    ("words", "gates"),
    [
        ([[(0b10, 0b00, 1.0)], [(0b01, 0b01, 0.5)]], {"H", "S"}),
        ([[(0b11, 0b00, 0.5), (0b11, 0b11, 0.5)]], {"H", "CNOT", "CZ", "S"}),
        ([[(0b1100, 0b0110, 0.5), (0b0011, 0b1001, -0.2), (0b1111, 0b1111, 0.3)]], None),
        # XX + YY and XI + IX do not commute word by word, and not as sums: no basis.
        ([[(0b11, 0, 1.0), (0b11, 0b11, 1.0)], [(0b10, 0, 1.0), (0b01, 0, 1.0)]], "none"),
        # XX + YY and ZI + IZ commute as sums only.
        ([[(0b11, 0, 1.0), (0b11, 0b11, 1.0)], [(0, 0b10, 0.7), (0, 0b01, 0.7)]], None),
    ],
)
def test_diagonal_bases(words: Any, gates: Any) -> None:
    wires = 4 if max(max(x, z) for s in words for x, z, _ in s) > 3 else 2
    sums = [tuple(s) for s in words]
    basis = diagonal_basis(sums, list(range(wires)))
    if gates == "none":
        assert basis is None
        return
    assert basis is not None
    unitary = np.eye(2**wires)
    for gate in basis.gates:
        unitary = qml.matrix(gate, wire_order=range(wires)) @ unitary
    for s, values in zip(sums, basis.values(), strict=True):
        rotated = unitary @ dense(s, wires) @ unitary.conj().T
        shape = [w in basis.wires for w in range(wires)]
        assert all(shape) or wires == 2
        np.testing.assert_allclose(rotated, np.diag(values), atol=1e-12)


def test_covariances_against_numpy() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.integers(0, 8, 40)
    values = rng.normal(size=(3, 8))
    frequencies = np.bincount(outcomes, minlength=8)[None] / 40
    found, _, means = covariances(values, frequencies, 40)
    np.testing.assert_allclose(found[0], np.cov(values[:, outcomes]), atol=1e-13)
    np.testing.assert_allclose(means[0], values[:, outcomes].mean(axis=1), atol=1e-13)


def test_refusals() -> None:
    def noisy(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.PhaseDamping(0.1, 0)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.mixed", wires=1)
    tape = tape_of(noisy, dev, [0.1])
    with pytest.raises(UnsupportedCircuitError, match="PhaseDamping is a channel"):
        metric_job(tape)
    with pytest.raises(ValueError, match="shots: expected None or an integer >= 2, got 1"):
        gradient_job(tape, shots=1)


# -- directions -------------------------------------------------------------------------------------------------


def test_without_noise_the_direction_is_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 3))
    metric = root @ root.T
    gradient = metric @ rng.normal(size=5)
    zero = np.zeros((5, 5))
    found = snr_direction(gradient, zero, metric, zero)
    np.testing.assert_allclose(found.values, np.linalg.pinv(metric) @ gradient, atol=1e-9)
    np.testing.assert_array_equal(snr_direction(np.zeros(5), zero, metric, zero).values, 0.0)


def test_noise_is_filtered_direction_by_direction() -> None:
    metric = np.diag([0.25, 0.25, 1e-4])
    gradient = np.array([0.5, 0.01, 0.002])
    found = snr_direction(gradient, np.eye(3) * 0.02**2, metric, np.full((3, 3), 0.01))
    # The first is 25 errors long, the others are noise.
    assert found.values[0] == pytest.approx(2.0, rel=0.01)
    assert np.abs(found.values[1:]).max() < 1e-2
    at_threshold = snr_direction(
        np.array([0.04]), np.array([[4e-4]]), np.array([[0.25]]), np.zeros((1, 1))
    )
    assert at_threshold.weights[0] == pytest.approx(0.5)
    with pytest.raises(NumericalError, match="metric: expected finite"):
        snr_direction(gradient, np.eye(3), metric * np.nan, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="tolerance: expected"):
        snr_direction(gradient, np.eye(3), metric, np.zeros((3, 3)), tolerance=0.0)


def test_shots_are_split_by_variance() -> None:
    even = split_shots(1000, 8, 2)
    assert (even.gradient, even.metric) == (100, 100)
    # v_g n_g / (v_m n_m) = 16: four times as many shots for the gradient.
    split = split_shots(1000, 8, 2, ratio=4.0)
    assert (split.gradient, split.metric) == (100, 100)
    split = split_shots(1000, 2, 2, ratio=16.0)
    assert (split.gradient, split.metric) == (400, 100)
    assert split_shots(1000, 10, 0).gradient == 100
    assert split_shots(41, 10, 10, ratio=1e6).metric == 2
    with pytest.raises(ValueError, match="shots: expected at least 2 for each of 20 circuits"):
        split_shots(39, 10, 10)


def test_the_split_minimises_the_spread_of_the_direction() -> None:
    """Against the spread of simulated directions, for the split proposed and for lopsided ones."""
    rng = np.random.default_rng(4)
    metric = np.array([[0.25, 0.05], [0.05, 0.1]])
    gradient = np.array([0.3, -0.2])
    one_shot_gradient, one_shot_metric = np.diag([1.0, 1.0]), np.full((2, 2), 0.4)

    def spread(split: Any) -> float:
        inverse = np.linalg.inv(metric)
        total = []
        for _ in range(4000):
            noise = rng.normal(size=(2, 2)) * one_shot_metric / np.sqrt(split.metric)
            g = gradient + rng.normal(size=2) / np.sqrt(split.gradient)
            noisy = np.triu(noise) + np.triu(noise, 1).T
            total.append(inverse @ (g - gradient) - inverse @ noisy @ inverse @ gradient)
        return float(np.mean(np.square(total)))

    pilot = split_shots(40_000, 4, 2)
    ratio = variance_ratio(
        one_shot_gradient / pilot.gradient,
        metric,
        one_shot_metric / np.sqrt(pilot.metric),
        np.linalg.solve(metric, gradient),
        pilot,
    )
    best = split_shots(40_000, 4, 2, ratio)
    found = spread(best)
    for factor in (0.2, 5.0):
        other = split_shots(40_000, 4, 2, ratio * factor**2)
        assert found < spread(other)
