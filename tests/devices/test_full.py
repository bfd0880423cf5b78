"""Full metric with and without an auxiliary wire, and second derivatives."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from circuits import ANGLE_GATES, random_circuit
from devices_common import Serial, check_statistics, tape_of
from fubini import UnsupportedCircuitError
from fubini.devices.executor import Executor
from fubini.devices.full_metric import fidelity_job, free_wire, full_metric_job
from fubini.devices.hessian import hessian_job, pair_plan
from fubini.devices.usage import Usage
from reference import geometric_tensor

METHODS: Any = ["hadamard", "fidelity"]
DEVICES = ["default.qubit", "lightning.qubit", "default.mixed"]
# Shift rules with up to a dozen terms of order one.
TOLERANCE = 1e-9


def run(tape: Any, dev: Any, method: Any, **options: Any) -> Any:
    auxiliary = free_wire(tape, dev) if method == "hadamard" else None
    return full_metric_job(tape, method, auxiliary=auxiliary, **options).run(Executor(dev))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", range(len(ANGLE_GATES)))
def test_every_gate(k: int, method: Any) -> None:
    gate, size = ANGLE_GATES[k]
    wires = max(size, 2)

    def function(w: Any) -> Any:
        for wire in range(wires):
            qml.RY(0.3 + 0.2 * wire, wire)
        gate(w[0], wires=list(range(size))[::-1])
        for wire in range(wires):
            qml.RX(0.4 + 0.1 * wire, wire)
        gate(w[1], wires=range(size))
        qml.RY(w[2], 0)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit")
    tape = tape_of(function, dev, [0.7, -1.3, 0.4])
    found = run(tape, dev, method)
    np.testing.assert_allclose(found.values[0], geometric_tensor(tape).real, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(4))
def test_random_circuits_and_batches(seed: int, device: str, method: Any) -> None:
    circuit = random_circuit(4000 + seed, gates=6)
    inputs, weights = circuit.draw(seed, [None, 1, 3, 2][seed])

    def function(x: Any, w: Any) -> Any:
        circuit.gates(x, w)
        return qml.expval(qml.Z(0))

    dev = qml.device(device, wires=circuit.wires + 1)
    tape = tape_of(function, dev, weights.detach(), inputs)
    found = run(tape, dev, method).values
    for b in range(1 if inputs.ndim == 1 else len(inputs)):
        expected = geometric_tensor(tape, b).real
        np.testing.assert_allclose(found[b % len(found)], expected, rtol=0, atol=TOLERANCE)


def layered(w: Any) -> Any:
    for k in range(2):
        qml.RY(w[0, k], k)
    qml.CNOT([0, 1])
    for k in range(2):
        qml.RX(w[1, k], k)
    return qml.expval(qml.Z(0) @ qml.Z(1))


def test_counts() -> None:
    dev = qml.device("default.qubit")
    tape = tape_of(layered, dev, torch.rand(2, 2))
    executor = Executor(dev)
    # Four pairs in different layers, and two layers.
    hadamard = full_metric_job(tape, "hadamard", auxiliary="a")
    assert hadamard.cost(executor) == Usage(1, 6, 6, 0)
    # 2 P (P - 1) + P settings of one circuit; P + 1 more... the circuit itself has fidelity 1.
    fidelity = full_metric_job(tape, "fidelity", shots=10)
    assert fidelity.cost(executor) == Usage(1, 1, 28, 280)
    assert hessian_job(tape).cost(executor) == Usage(1, 1, 29, 0)
    for job in (hadamard, fidelity):
        before = executor.usage
        job.run(executor)
        assert executor.usage - before == job.cost(executor)


@pytest.mark.parametrize("method", METHODS)
def test_300_repetitions_with_shots(method: Any) -> None:
    def function(x: Any, w: Any) -> Any:
        qml.RY(x[..., 0], 0)
        qml.RY(x[..., 1], 1)
        qml.RX(w[0], 0)
        qml.CRY(w[1], [0, 1])
        qml.RZ(w[2], 1)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit", wires=3, seed=8)
    inputs = torch.tensor([[0.5, 1.0]], dtype=torch.float64).repeat(300, 1)
    tape = tape_of(function, dev, [0.4, 0.9, -0.6], inputs)
    found = run(tape, dev, method, shots=200)
    check_statistics(found.values, found.errors, geometric_tensor(tape).real)


@pytest.mark.parametrize("method", METHODS)
def test_errors_over_weights_and_inputs(method: Any) -> None:
    """A mean that no input precedes is measured once, and enters the entries of all inputs."""

    def function(x: Any, w: Any) -> Any:
        qml.RY(0.8, 0)  # means of 0.7, whose errors are as large as those of the overlaps
        qml.RY(0.8, 1)
        qml.RX(w[0], 0)
        qml.RY(w[1], 0)
        qml.RY(x[..., 0], 0)
        qml.CNOT([0, 1])
        qml.RX(w[2], 1)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit", wires=3, seed=5)
    inputs = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64)[:, None]
    tape = tape_of(function, dev, [0.9, 0.4, 0.3], inputs)
    job = full_metric_job(tape, method, shots=100, auxiliary=2)
    executor = Executor(dev)
    found = [job.run(executor).pulled_back(tape.jacobian) for _ in range(300)]
    values, errors = (np.array(part) for part in zip(*found, strict=True))
    exact, none = (
        full_metric_job(tape, method, auxiliary=2).run(executor).pulled_back(tape.jacobian)
    )
    assert not none.any()
    check_statistics(values, errors, exact)


def test_some_entries_alone() -> None:
    dev = qml.device("default.qubit")
    tape = tape_of(layered, dev, [[0.3, 0.8], [-0.4, 1.1]])
    pairs = [(0, 3), (2, 2)]
    job = fidelity_job(tape, None, pairs)
    assert sum(s.rows for s in job.sweeps) == 4 + 1
    expected = geometric_tensor(tape).real
    mask = np.zeros((4, 4), dtype=bool)
    for i, j in pairs:
        mask[i, j] = mask[j, i] = True
    found = job.run(Executor(dev)).values[0]
    np.testing.assert_allclose(found, np.where(mask, expected, 0.0), rtol=0, atol=TOLERANCE)


def test_a_state_preparation_is_inverted() -> None:
    def function(x: Any, w: Any) -> Any:
        qml.StatePrep(x, wires=[0, 1])
        qml.RX(w[0], 0)
        qml.CNOT([0, 1])
        qml.RY(w[1], 1)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.qubit", wires=3)
    amplitudes = torch.tensor([0.1, -0.7, 0.5, 0.5], dtype=torch.float64)
    tape = tape_of(function, dev, [0.3, 0.5], amplitudes)
    expected = geometric_tensor(tape).real
    for method in METHODS:
        np.testing.assert_allclose(
            run(tape, dev, method).values[0], expected, rtol=0, atol=TOLERANCE
        )


def test_a_plugin_without_a_spare_wire() -> None:
    dev = Serial(wires=2)
    tape = tape_of(layered, dev, torch.rand(2, 2))
    with pytest.raises(
        UnsupportedCircuitError, match=r"one more wire than the circuit's.*fidelity"
    ):
        free_wire(tape, dev)
    with pytest.raises(
        ValueError, match="auxiliary: expected a wire that the circuit does not use, got 1"
    ):
        full_metric_job(tape, "hadamard", auxiliary=1)
    with pytest.raises(ValueError, match="method: expected"):
        full_metric_job(tape, "overlap")  # type: ignore[arg-type]
    found = run(tape, dev, "fidelity").values[0]
    np.testing.assert_allclose(found, geometric_tensor(tape).real, rtol=0, atol=TOLERANCE)


# -- second derivatives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_hessian_equals_backprop(seed: int) -> None:
    circuit = random_circuit(5000 + seed, shared=True, gates=6)
    inputs, weights = circuit.draw(seed, None)

    def function(x: Any, w: Any) -> Any:
        circuit.gates(x, w)
        return qml.expval(qml.Z(0)), qml.probs(wires=[1])

    dev = qml.device("default.qubit", wires=circuit.wires)
    oracle = qml.QNode(function, dev, diff_method="backprop")
    tape = tape_of(function, dev, weights.detach(), inputs)
    found = hessian_job(tape).run(Executor(dev))
    assert not found.errors.any()
    jacobian = tape.jacobian[0]  # angles are affine in the weights for one input
    for m in range(3):
        expected = torch.autograd.functional.hessian(
            lambda v, m=m: torch.cat([r.reshape(-1) for r in oracle(inputs, v)])[m],
            weights.detach(),
        )
        ours = jacobian.T @ found.values[0, m] @ jacobian
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-8)


def test_hessian_with_shots() -> None:
    dev = qml.device("default.qubit", wires=2, seed=2)
    weights = torch.tensor([[0.3, 0.8], [1.2, -0.5]], dtype=torch.float64)

    def repeated(x: Any, w: Any) -> Any:
        qml.RZ(x[..., 0], 0)
        return layered(w)

    exact = hessian_job(tape_of(layered, dev, weights)).run(Executor(dev)).values[0, 0]
    tape = tape_of(repeated, dev, weights, torch.zeros(300, 1, dtype=torch.float64))
    found = hessian_job(tape, shots=100).run(Executor(dev))
    observed = found.values.std(axis=0, ddof=1)[0]
    distance = np.abs(found.values.mean(axis=0)[0] - exact)
    assert (distance <= 4 * observed / np.sqrt(300) + 1e-12).all()
    reported = np.sqrt((found.errors**2).mean(axis=0))[0]
    assert (np.abs(reported / observed - 1) <= 0.2).all()


def test_equal_settings_are_merged() -> None:
    assert len(pair_plan([[1.0]]).settings) == 2  # pi, and the circuit itself
    assert len(pair_plan([[1.0], [1.0]]).settings) == 1 + 2 + 4
    # Sums of +-pi/2 and +-3pi/2: 0, +-pi, +-2pi, of which 2pi is half the period 4pi; pi from two pairs.
    assert len(pair_plan([[0.5, 1.0]]).settings) == 4


def test_hessian_refusals() -> None:
    def variance(w: Any) -> Any:
        qml.RX(w[0], 0)
        return qml.var(qml.Z(0))

    with pytest.raises(UnsupportedCircuitError, match="second derivatives of variances"):
        hessian_job(tape_of(variance, qml.device("default.qubit"), [0.1]))
