"""Derivatives on devices: every gate against the native engine, counted circuits, word rules, second derivatives."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import ANGLE_GATES, random_circuit
from devices_common import Serial, spread, tape_of
from fubini import UnsupportedCircuitError, _core
from fubini.devices.executor import Executor
from fubini.devices.job import together
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.usage import Usage
from fubini.native.circuit import Circuit
from fubini.nn.expval import expval

DEVICES = ["default.qubit", "lightning.qubit", "default.mixed"]
# A dozen shifted results of order one, with coefficients of order one.
TOLERANCE = 1e-9


def native_jacobian(function: Any, wires: int, weights: Any) -> Any:
    """Values and derivatives by the weights, on the native engine."""
    qnode = qml.QNode(function, qml.device("default.qubit", wires=wires))
    weights = torch.as_tensor(weights, dtype=torch.float64)
    circuit = Circuit.from_qnode(qnode, weights)

    def values(w: torch.Tensor) -> torch.Tensor:
        tape = qml.workflow.construct_tape(qnode, level="user")(w)
        return expval(circuit, circuit.angles_of(tape)[None])[0]

    return values(weights).numpy(), torch.autograd.functional.jacobian(values, weights).numpy()


def measured(wires: int) -> Any:
    return (
        qml.expval(qml.Z(0)),
        qml.expval(0.3 * qml.X(0) + 0.7 * qml.Y(wires - 1) @ qml.Z(0)),
        qml.probs(wires=[wires - 1]),
        qml.var(qml.X(0)),
        qml.var(qml.Z(0) + 0.4 * qml.X(wires - 1)),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", range(len(ANGLE_GATES)))
def test_every_gate(k: int, device: str) -> None:
    gate, size = ANGLE_GATES[k]
    wires = max(size, 2)

    def function(w: Any) -> Any:
        spread(wires)
        gate(w[0], wires=list(range(size))[::-1])
        for wire in range(wires):
            qml.RX(0.4 + 0.1 * wire, wire)
        gate(w[1], wires=range(size))
        return measured(wires)

    weights = [0.7, -1.3]
    dev = qml.device(device, wires=wires)
    tape = tape_of(function, dev, weights)
    found = gradient_job(tape, values=True, rule="shift").run(Executor(dev))
    values, jacobian = native_jacobian(function, wires, weights)
    np.testing.assert_allclose(found.values[0], values, rtol=0, atol=TOLERANCE)
    ours = found.jacobian[0] @ tape.jacobian[0]
    np.testing.assert_allclose(ours, jacobian, rtol=0, atol=TOLERANCE)
    assert not found.errors.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", ["shift", "hadamard"])
def test_random_circuits_and_batches(seed: int, device: str, rule: Any) -> None:
    circuit = random_circuit(2000 + seed, shared=True, gates=8)
    inputs, weights = circuit.draw(seed, [None, 1, 3][seed % 3])

    def function(x: Any, w: Any) -> Any:
        circuit.gates(x, w)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(0)), qml.probs(wires=[1])

    dev = qml.device(device, wires=[*range(circuit.wires), "aux"])
    oracle = qml.QNode(
        function, qml.device("default.qubit", wires=circuit.wires), diff_method="backprop"
    )
    tape = tape_of(function, dev, weights.detach(), inputs)
    found = gradient_job(tape, rule=rule, auxiliary="aux").run(Executor(dev))
    jacobian = found.jacobian @ tape.jacobian
    for b in range(1 if inputs.ndim == 1 else len(inputs)):
        x = inputs if inputs.ndim == 1 else inputs[b]
        expected = torch.autograd.functional.jacobian(
            lambda v, x=x: torch.cat([r.reshape(-1) for r in oracle(x, v)]), weights.detach()
        )
        np.testing.assert_allclose(jacobian[b], expected.numpy(), rtol=0, atol=TOLERANCE)


def layered(wires: int, layers: int) -> Any:
    def function(w: Any) -> Any:
        w = w.reshape(layers, 2, wires)
        for layer in range(layers):
            for k in range(wires):
                qml.RY(w[layer, 0, k], k)
                qml.CRZ(w[layer, 1, k], [k, (k + 1) % wires])
        return qml.expval(qml.Z(0)), qml.expval(qml.Z(1))

    return function


def test_all_shifts_are_one_broadcast_tape() -> None:
    dev = qml.device("default.qubit", wires=3)
    tape = tape_of(layered(3, 2), dev, torch.rand(12))
    job = gradient_job(tape)
    executor = Executor(dev)
    # Two terms for each RY, four for each CRZ.
    expected = Usage(calls=1, tapes=1, circuits=6 * 2 + 6 * 4, shots=0)
    assert job.cost(executor) == expected
    with qml.Tracker(dev) as tracker:
        job.run(executor)
    assert executor.usage == expected
    assert tracker.totals["simulations"] == 1


def test_without_broadcasting_all_shifts_are_one_call() -> None:
    dev = qml.device("lightning.qubit", wires=3)
    tape = tape_of(layered(3, 2), dev, torch.rand(12))
    job = gradient_job(tape, values=True, rule="shift")
    executor = Executor(dev)
    expected = Usage(calls=1, tapes=37, circuits=37, shots=0)
    assert job.cost(executor) == expected
    with qml.Tracker(dev) as tracker:
        job.run(executor)
    assert executor.usage == expected
    assert tracker.totals["batches"] == 1
    assert tracker.totals["executions"] == 37


def test_chunks_of_stated_memory_give_the_same() -> None:
    dev = qml.device("default.qubit", wires=3)
    tape = tape_of(layered(3, 2), dev, torch.rand(12))
    job = gradient_job(tape)
    small = Executor(dev, memory=64 * 8 * 7)  # seven rows of three wires
    assert job.cost(small).tapes == 6
    whole = job.run(Executor(dev)).jacobian
    # Broadcast over other numbers of rows, sums may be ordered differently.
    np.testing.assert_allclose(job.run(small).jacobian, whole, rtol=0, atol=1e-14)


def test_equal_settings_are_executed_once() -> None:
    dev = qml.device("default.qubit", wires=2)

    def function(x: Any, w: Any) -> Any:
        qml.RX(x[..., 0], 0)
        qml.CNOT([0, 1])
        qml.RY(w[0], 1)
        return qml.expval(qml.Z(1))

    inputs = torch.tensor([[0.1], [0.2], [0.1], [0.1]], dtype=torch.float64)
    tape = tape_of(function, dev, [0.5], inputs)
    executor = Executor(dev)
    jacobian = gradient_job(tape).run(executor).jacobian
    assert executor.usage.circuits == 2 * 2
    np.testing.assert_array_equal(jacobian[[0, 0]], jacobian[[2, 3]])
    # Samples must be independent.
    assert gradient_job(tape, shots=10).cost(executor) == Usage(1, 1, 8, 80)


def test_a_generator_without_a_rule_goes_word_by_word() -> None:
    # Differences 1, 1 + 1e-7 and their sums are too close for a shift rule.
    observable = 0.5 * qml.Z(0) + (0.5 + 5e-8) * qml.Z(1) + 0.2 * qml.X(2)

    def function(w: Any) -> Any:
        for k in range(3):
            qml.RY(0.4 + 0.3 * k, k)
        qml.evolve(observable, w[0])
        for k in range(3):
            qml.RX(0.7 - 0.2 * k, k)
        qml.CNOT([0, 1])
        return qml.expval(qml.Z(1)), qml.probs(wires=[0, 2])

    dev = qml.device("default.qubit")
    tape = tape_of(function, dev, [0.8])
    _, expected = native_jacobian(function, 3, [0.8])
    executor = Executor(dev)
    by_rotations, by_test = gradient_job(tape), gradient_job(tape, auxiliary="aux")
    assert by_rotations.cost(executor).circuits == 2 * 3
    assert by_test.cost(executor).circuits == 3
    for job in (by_rotations, by_test):
        np.testing.assert_allclose(job.run(executor).jacobian[0], expected, rtol=0, atol=TOLERANCE)


def test_custom_shifts() -> None:
    dev = qml.device("default.qubit", wires=3)
    tape = tape_of(layered(3, 1), dev, torch.rand(6))
    shifts = [[0.4] if k % 2 == 0 else [0.6, 2.1] for k in range(6)]
    executor = Executor(dev)
    expected = gradient_job(tape).run(executor).jacobian
    found = gradient_job(tape, shifts=shifts).run(executor).jacobian
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="shifts: expected one per frequency"):
        gradient_job(tape, shifts=[[0.4, 0.5]] * 6)
    with pytest.raises(ValueError, match="shifts: no rule"):
        _core.shift_rule([1.0], [np.pi])


def test_jobs_together_are_one_call() -> None:
    dev = qml.device("default.qubit", wires=3)
    tape = tape_of(layered(3, 1), dev, torch.rand(6))
    executor = Executor(dev)
    seen, gradient = together(values_job(tape), gradient_job(tape)).run(executor)
    assert executor.usage.calls == 1
    alone = gradient_job(tape, values=True).run(executor)
    np.testing.assert_allclose(seen.readout.results(seen.features), alone.values, atol=1e-14)
    np.testing.assert_allclose(gradient.jacobian, alone.jacobian, atol=1e-14)


def test_channels_and_a_plugin() -> None:
    def function(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.AmplitudeDamping(0.2, 0)
        qml.CRX(w[1], [0, 1])
        qml.DepolarizingChannel(0.1, 1)
        return qml.expval(qml.Z(1))

    dev = qml.device("default.mixed", wires=2)
    weights = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.functional.jacobian(
        qml.QNode(function, dev, diff_method="backprop"), weights
    )
    tape = tape_of(function, dev, weights.detach())
    found = gradient_job(tape).run(Executor(dev)).jacobian
    np.testing.assert_allclose(found[0, 0], expected.numpy(), rtol=0, atol=TOLERANCE)

    plugin = Serial(wires=3)
    tape = tape_of(layered(3, 1), plugin, torch.arange(6.0))
    job = gradient_job(tape)
    assert job.cost(Executor(plugin)).tapes == 18
    _, expected = native_jacobian(layered(3, 1), 3, torch.arange(6.0))
    np.testing.assert_allclose(
        job.run(Executor(plugin)).jacobian[0] @ tape.jacobian[0], expected, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize(
    ("measurement", "name"),
    [(lambda: qml.purity(wires=[0]), "purity"), (qml.state, "state")],
)
def test_measurements_without_a_rule_are_refused(measurement: Any, name: str) -> None:
    def function(w: Any) -> Any:
        qml.RY(w[0], 0)
        return measurement()

    dev = qml.device("default.qubit", wires=1)
    with pytest.raises(UnsupportedCircuitError, match=name):
        gradient_job(tape_of(function, dev, [0.1]))


def test_trainable_channels_are_refused() -> None:
    def function(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.DepolarizingChannel(w[1], 0)
        return qml.expval(qml.Z(0))

    with pytest.raises(UnsupportedCircuitError, match="DepolarizingChannel on wires"):
        tape_of(function, qml.device("default.mixed", wires=1), [0.1, 0.1])


PARAMETRISED = [(name, wires, count) for name, wires, count in _core.gate_table() if count]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "size", "count"), PARAMETRISED, ids=[p[0] for p in PARAMETRISED])
def test_the_whole_gate_table(name: str, size: int, count: int, device: str) -> None:
    """Gradient and both metrics of a gate between rotations, over the weights, against the native engine."""
    gate = getattr(qml, name)
    wires = max(size, 2)

    def function(w: Any) -> Any:
        spread(wires)
        gate(*(w[k] for k in range(count)), wires=range(max(size, 1)))
        for wire in range(wires):
            qml.RX(w[count] + 0.1 * wire, wire)
        return measured(wires)

    weights = torch.linspace(0.4, 1.7, count + 1, dtype=torch.float64)
    dev = qml.device(device, wires=wires)
    tape = tape_of(function, dev, weights)
    _, expected = native_jacobian(function, wires, weights)
    found = gradient_job(tape).run(Executor(dev)).jacobian[0] @ tape.jacobian[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    qnode = qml.QNode(function, dev)
    simulated = qml.QNode(function, qml.device("default.qubit", wires=wires))
    for approx in (None, "block-diag", "diag"):
        ours, native = (
            fubini.metric_tensor(q, approx=approx, engine=engine)(weights.requires_grad_())
            for q, engine in ((qnode, "device"), (simulated, "native"))
        )
        torch.testing.assert_close(ours.detach(), native.detach(), rtol=0, atol=TOLERANCE)
