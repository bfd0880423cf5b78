"""QN-SPSA, the Fisher information of measurements, and its mean over random bases."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from devices_common import check_statistics, tape_of
from fubini import NumericalError, UnsupportedCircuitError
from fubini.circuit.angles import gate_tape
from fubini.devices.block_metric import metric_job
from fubini.devices.executor import Executor
from fubini.devices.fisher import classical_fisher, fisher_job, random_basis_metric_job
from fubini.devices.qnspsa import QNSPSA
from fubini.devices.shifts import gradient_job
from fubini.devices.usage import Usage
from reference import geometric_tensor


def gates(x: Any, w: Any) -> None:
    qml.RY(x[..., 0], 0)
    qml.RX(w[0], 0)
    qml.RY(2 * w[1], 1)
    qml.CRX(w[2] * x[..., 1], [0, 1])
    qml.RZ(w[0], 1)
    qml.RX(0.4, 1)


def function(x: Any, w: Any) -> Any:
    gates(x, w)
    return qml.expval(qml.Z(0))


WEIGHTS = [0.4, 0.7, -0.9]
INPUTS = torch.tensor([[0.3, 1.1], [0.8, -0.5]], dtype=torch.float64)


def exact(tape: Any) -> Any:
    """Over the weights, averaged over the inputs."""
    rows = [
        tape.jacobian[b].T @ geometric_tensor(tape, b).real @ tape.jacobian[b] for b in range(2)
    ]
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("shots", [None, 400])
def test_qnspsa_has_the_metric_as_its_mean(shots: int | None) -> None:
    dev = qml.device("default.qubit", wires=2, seed=1)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    estimator = QNSPSA(resamplings=1, step=0.02 if shots is None else 0.2, seed=3)
    executor = Executor(dev)
    found = np.array([estimator.job(tape, shots=shots).run(executor) for _ in range(300)])
    for estimate in found:
        estimator.update(estimate)
    np.testing.assert_allclose(estimator.mean, found.mean(axis=0), atol=1e-12)
    error = found.std(axis=0, ddof=1) / np.sqrt(300)
    np.testing.assert_allclose(estimator.errors, error, atol=1e-12)
    # The bias is of the order of the squared step.
    bias = 1e-3 if shots is None else 0.06
    assert (np.abs(found.mean(axis=0) - exact(tape)) <= 4 * error + bias).all()
    assert (error < 0.1).all()
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))


def test_qnspsa_costs_four_fidelities() -> None:
    dev = qml.device("default.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    estimator = QNSPSA(resamplings=3, seed=0)
    job = estimator.job(tape, shots=10)
    assert job.cost(Executor(dev)) == Usage(1, 1, 4 * 3 * 2, 240)
    np.testing.assert_array_equal(
        job.run(Executor(qml.device("default.qubit", wires=2, seed=1))).shape, (3, 3)
    )


def test_qnspsa_metric_is_positive() -> None:
    estimator = QNSPSA(regularisation=0.5)
    with pytest.raises(ValueError, match="metric: expected at least one estimate"):
        estimator.metric()
    estimator.update(np.array([[0.0, 2.0], [2.0, 0.0]]))
    assert np.isinf(estimator.errors).all()
    # |eigenvalues| are 2 and 2.
    np.testing.assert_allclose(estimator.metric(), np.eye(2) * (2.0 + 0.5) / 1.5, atol=1e-14)
    with pytest.raises(NumericalError, match="estimate: expected finite"):
        estimator.update(np.full((2, 2), np.nan))
    assert estimator.count == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"resamplings": 0}, "resamplings"),
        ({"step": 0.0}, "step"),
        ({"regularisation": -1.0}, "regularisation"),
    ],
)
def test_qnspsa_arguments(options: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        QNSPSA(**options)


def test_qnspsa_refuses_channels() -> None:
    def noisy(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.BitFlip(0.1, 0)
        return qml.expval(qml.Z(0))

    tape = tape_of(noisy, qml.device("default.mixed", wires=1), [0.1])
    with pytest.raises(UnsupportedCircuitError, match="BitFlip is a channel"):
        QNSPSA().job(tape)


@pytest.mark.parametrize("wires", [None, [1]])
def test_classical_fisher_against_backprop(wires: Any) -> None:
    dev = qml.device("default.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    estimate = fisher_job(tape, wires=wires).run(Executor(dev))
    found = estimate.values
    assert not estimate.errors.any()

    def probabilities(w: torch.Tensor, b: int) -> Any:
        @qml.qnode(qml.device("default.qubit", wires=2), diff_method="backprop")
        def circuit() -> Any:
            gates(INPUTS[b], w)
            return qml.probs(wires=[0, 1] if wires is None else wires)

        return circuit()

    for b in range(2):
        w = torch.tensor(WEIGHTS, dtype=torch.float64)
        p = probabilities(w, b)
        j = torch.autograd.functional.jacobian(lambda v, b=b: probabilities(v, b), w)
        expected = (j / p[:, None]).T @ j
        ours = tape.jacobian[b].T @ found[b] @ tape.jacobian[b]
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-9)
        # Never more than the quantum Fisher information.
        gap = 4 * geometric_tensor(tape, b).real - found[b]
        assert np.linalg.eigvalsh(gap).min() >= -1e-9


def test_impossible_outcomes_count_nothing() -> None:
    found = classical_fisher(np.array([[1.0, 0.0]]), np.array([[[0.0], [0.0]]]))
    np.testing.assert_array_equal(found, [[[0.0]]])


def test_fisher_counts() -> None:
    dev = qml.device("default.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    # RX, RY, RZ: two terms; CRX: four; the circuit itself; two inputs.
    assert fisher_job(tape).cost(Executor(dev)) == Usage(1, 1, 2 * (3 * 2 + 4 + 1), 0)
    job = random_basis_metric_job(tape, bases=3, seed=0, shots=5)
    assert job.cost(Executor(dev)) == Usage(1, 3, 3 * 22, 5 * 3 * 22)
    for name in ("bases", "depth"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
            random_basis_metric_job(tape, **{name: 0})


@pytest.mark.parametrize(("wires", "shots"), [(1, None), (1, 200), (2, None)])
def test_random_bases_have_the_metric_as_their_mean(wires: int, shots: int | None) -> None:
    def small(w: Any) -> Any:
        for k in range(wires):
            qml.RY(w[k], k)
        if wires == 2:
            qml.CNOT([0, 1])
        qml.RZ(w[wires], 0)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit", wires=wires)
    tape = tape_of(small, dev, np.linspace(0.6, 1.4, wires + 1))
    executor = Executor(dev)
    jobs = [random_basis_metric_job(tape, bases=2, seed=k, shots=shots) for k in range(300)]
    estimates = [job.run(executor) for job in jobs]
    found = np.stack([e.values[0] for e in estimates])
    expected = geometric_tensor(tape).real
    check_statistics(found, np.stack([e.errors[0] for e in estimates]), expected)
    # Two bases say little: half of the information is not seen, or twice that.
    assert np.abs(found[0] - expected).max() > 1e-3
    single = random_basis_metric_job(tape, seed=0).run(executor)
    assert np.isinf(single.errors).all()


@pytest.mark.parametrize("wires", [None, [0]])
@pytest.mark.parametrize("shots", [500, 2000])  # the rarest outcome 10 times and more
def test_classical_fisher_from_shots_over_300_repetitions(wires: Any, shots: int) -> None:
    """The plug-in estimate is biased by many standard errors."""
    dev = qml.device("default.qubit", wires=2, seed=7)
    one = tape_of(function, dev, WEIGHTS, INPUTS[:1])
    many = tape_of(function, dev, WEIGHTS, INPUTS[:1].repeat(300, 1))
    exact = fisher_job(one, wires=wires).run(Executor(dev)).values[0]
    found = fisher_job(many, wires=wires, shots=shots).run(Executor(dev))
    check_statistics(found.values, None, exact, found.variances)
    np.testing.assert_array_equal(found.errors**2 > 0, found.variances > 0)
    np.testing.assert_array_equal(found.values, np.swapaxes(found.values, 1, 2))
    np.testing.assert_array_equal(found.errors, np.swapaxes(found.errors, 1, 2))
    measured = replace(many, measurements=(qml.probs(wires=[0, 1] if wires is None else wires),))
    naive = gradient_job(measured, shots=shots, values=True).run(Executor(dev))
    plugged = classical_fisher(naive.values, naive.jacobian)
    bias = np.abs(plugged.mean(axis=0) - exact) / (plugged.std(axis=0) / np.sqrt(300))
    assert bias.max() > 4.0


def test_qnspsa_errors_over_300_repetitions() -> None:
    dev = qml.device("default.qubit", wires=2, seed=1)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    executor = Executor(dev)
    means, errors = [], []
    for seed in range(300):
        estimator = QNSPSA(resamplings=2, step=0.2, seed=seed)
        for _ in range(3):
            estimator.update(estimator.job(tape, shots=500).run(executor))
        means.append(estimator.mean)
        errors.append(estimator.errors)
    observed = np.std(means, axis=0, ddof=1)
    reported = np.sqrt(np.mean(np.square(errors), axis=0))
    assert (np.abs(reported / observed - 1.0) <= 0.2).all()


def test_probabilities_of_layers_and_bases_share_one_execution() -> None:
    from fubini.devices.job import together

    dev = qml.device("default.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    executor = Executor(dev)
    together(metric_job(tape), fisher_job(tape)).run(executor)
    assert executor.usage.calls == 1


# -- outcomes of probability zero ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit", "default.mixed"])
@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-8, 1e-6, 1e-3, np.pi, 2 * np.pi, 0.7])
def test_information_of_one_rotation_is_one_everywhere(angle: float, device: str) -> None:
    """p = sin(t/2)^2 and 1 - p have (dp)^2/p + (dp)^2/(1 - p) = 1 for every t; small p once counted nothing."""
    dev = qml.device(device, wires=2)
    gates: list[Callable[[Any], Any]] = [
        lambda t: qml.RY(t, 0),
        lambda t: qml.IsingXY(t, [0, 1]),
        lambda t: qml.CRX(t, [1, 0]),
    ]
    for gate in gates:

        @qml.qnode(dev)
        def circuit(w: Any) -> Any:
            qml.X(1)
            gate(w[0])  # noqa: B023 - called within the loop
            return qml.expval(qml.Z(0))

        tape = gate_tape(circuit, (np.array([angle]),), {}, weights=[0], pure=False)
        found = fisher_job(tape).run(Executor(dev)).values
        # Rounding of 1e-16 in the derivative, relative to 1e-9, at the smallest p that is divided by.
        np.testing.assert_allclose(found, 1.0, rtol=0, atol=1e-6)


def test_outcome_that_several_angles_make_possible_is_refused() -> None:
    dev = qml.device("default.qubit", wires=2)

    @qml.qnode(dev)
    def circuit(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.RX(w[1], 0)
        qml.RY(w[2], 1)
        return qml.expval(qml.Z(0))

    def information(w: Any) -> Any:
        tape = gate_tape(circuit, (np.array(w),), {}, weights=[0])
        return fisher_job(tape).run(Executor(dev)).values[0]

    with pytest.raises(NumericalError, match=r"outcome 2 .* probability 0.*angles \[0, 1\]"):
        information([0.0, 0.0, 0.3])
    # Away from there, whatever the direction, it is that of the two wires: the second one has information 1.
    np.testing.assert_allclose(information([1e-3, 2e-3, 0.0])[2, 2], 1.0, atol=1e-6)
