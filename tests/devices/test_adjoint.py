"""Simulators that differentiate by themselves: against shift rules and the native engine, counted, and after failures."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import ANGLE_GATES, random_circuit
from devices_common import Faulty, Serial, spread, tape_of
from fubini import NumericalError, UnsupportedCircuitError, _core
from fubini.circuit.angles import gate_tape
from fubini.devices.block_metric import metric_job
from fubini.devices.executor import DeviceExecutionError, Executor
from fubini.devices.job import together
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.usage import Usage

# Sums of a few hundred rounded products of numbers of order one.
TOLERANCE = 1e-9


class Adjoint(Faulty):
    """A plugin that does not broadcast, and differentiates by default.qubit's adjoint method."""

    @property
    def name(self) -> str:
        return "some.simulator"

    def execute_and_compute_derivatives(self, circuits: Any, execution_config: Any = None) -> Any:
        self.calls += 1
        fault = self.faults.get(self.calls)
        if fault == "raise":
            raise ConnectionError("the queue is closed")
        results, jacobians = qml.devices.DefaultQubit.execute_and_compute_derivatives(
            self, circuits, execution_config
        )
        self.executed += list(circuits)
        if fault == "nan":
            jacobians = tuple(np.asarray(j) * np.nan for j in jacobians)
        return results, jacobians


def device_of(name: str, wires: Any) -> Any:
    return Adjoint(wires=wires) if name == "plugin" else qml.device(name, wires=wires)


def measured(wires: int) -> Any:
    return (
        qml.expval(qml.Z(0)),
        qml.expval(0.3 * qml.X(0) + 0.7 * qml.Y(wires - 1) @ qml.Z(0)),
        qml.expval(qml.Hermitian(np.array([[1.0, 0.5j], [-0.5j, -0.3]]), wires=0)),
        qml.var(qml.X(0)),
        qml.var(qml.Z(0) + 0.4 * qml.X(wires - 1)),
    )


def check(tape: Any, device: Any, tapes: int | None = None) -> int:
    """Against shifts; returns the number of circuits, which is known beforehand."""
    executor = Executor(device)
    job = gradient_job(tape, values=True)
    tapes = job.cost(executor).tapes if tapes is None else tapes
    assert job.cost(executor) == Usage(1, tapes, tapes, 0)
    found = job.run(executor)
    assert executor.usage == Usage(1, tapes, tapes, 0)
    other = Executor(qml.device("default.qubit", wires=device.wires))
    expected = gradient_job(tape, values=True, rule="shift").run(other)
    np.testing.assert_allclose(found.jacobian, expected.jacobian, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=TOLERANCE)
    assert not found.errors.any()
    assert found.errors.shape == found.jacobian.shape
    return tapes


@pytest.mark.parametrize("device", ["lightning.qubit", "plugin"])
@pytest.mark.parametrize("k", range(len(ANGLE_GATES)))
def test_every_gate(k: int, device: str) -> None:
    gate, size = ANGLE_GATES[k]
    wires = max(size, 2)

    def function(w: Any) -> Any:
        spread(wires)
        gate(w[0], wires=list(range(size))[::-1])
        qml.QubitUnitary(qml.matrix(qml.Rot(0.1, 0.2, 0.3, wires=0)), wires=1)
        for wire in range(wires):
            qml.RX(0.4 + 0.1 * wire, wire)
        gate(w[1] * w[0], wires=range(size))
        return measured(wires)

    dev = device_of(device, wires)
    check(tape_of(function, dev, [0.7, -1.3]), dev, 1)


PARAMETRISED = [(name, wires, count) for name, wires, count in _core.gate_table() if count]


@pytest.mark.parametrize("device", ["lightning.qubit", "plugin"])
@pytest.mark.parametrize(("name", "size", "count"), PARAMETRISED, ids=[p[0] for p in PARAMETRISED])
def test_the_whole_gate_table(name: str, size: int, count: int, device: str) -> None:
    gate = getattr(qml, name)
    wires = max(size, 2)

    def function(w: Any) -> Any:
        for wire in range(wires):
            qml.RY(0.3 + 0.2 * wire, wire)
        qml.RX(w[count], 0)
        gate(*(w[k] for k in range(count)), wires=range(max(size, 1)))
        gate(*(0.2 + 0.1 * k for k in range(count)), wires=range(max(size, 1)))
        for wire in range(wires):
            qml.RX(w[count] + 0.1 * wire, wire)
        return measured(wires)

    dev = device_of(device, wires)
    check(tape_of(function, dev, np.linspace(0.4, 1.7, count + 1)), dev, 1)


FIXED = {
    "DiagonalQubitUnitary": lambda: qml.DiagonalQubitUnitary(
        np.exp(0.1j * np.arange(4)), wires=[0, 1]
    ),
    "BlockEncode": lambda: qml.BlockEncode(np.array([[0.3]]), wires=[1]),
    "OrbitalRotation": lambda: qml.OrbitalRotation(0.2, wires=[0, 1, 2, 3]),
    "ControlledQubitUnitary": lambda: qml.ControlledQubitUnitary(
        qml.matrix(qml.RX(0.3, 0)), wires=[1, 0]
    ),
    "PCPhase": lambda: qml.PCPhase(0.3, 2, wires=[0, 1]),
    "C(ISWAP)": lambda: qml.ctrl(qml.ISWAP([0, 1]), control=2),
    "Rot": lambda: qml.Rot(0.1, 0.2, 0.3, wires=1),
    "MultiControlledX": lambda: qml.MultiControlledX([0, 1, 2], control_values=[1, 0]),
    "QFT": lambda: qml.QFT(wires=[0, 1, 2]),
    "BasisState": lambda: qml.BasisState(np.array([1, 0, 1]), wires=[0, 1, 2]),
}


@pytest.mark.parametrize("name", FIXED)
def test_derivatives_behind_operations_that_lightning_miscounts(name: str) -> None:
    """PennyLane's adjoint derivatives on lightning.qubit 0.45 are wrong behind the first three, without a word."""

    def function(w: Any) -> Any:
        if name == "BasisState":
            FIXED[name]()
        qml.RY(w[0], 0)
        qml.RY(w[0], 1)
        if name != "BasisState":
            FIXED[name]()
        qml.RX(w[1], 2)
        qml.CRY(w[2], [0, 2])
        return qml.expval(qml.Z(0)), qml.expval(qml.X(2) @ qml.Y(1))

    dev = qml.device("lightning.qubit", wires=4)
    assert check(tape_of(function, dev, [0.3, 0.7, -0.4]), dev) == 1


@pytest.mark.parametrize("device", ["lightning.qubit", "plugin"])
@pytest.mark.parametrize("seed", range(6))
def test_random_circuits_and_batches(seed: int, device: str) -> None:
    circuit = random_circuit(3000 + seed, shared=True, gates=10)
    inputs, weights = circuit.draw(seed, [None, 1, 3][seed % 3])

    def function(x: Any, w: Any) -> Any:
        if seed % 2:
            qml.StatePrep(np.arange(1.0, 1.0 + 2**circuit.wires), range(circuit.wires), True)
        circuit.gates(x, w)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(0))

    dev = device_of(device, circuit.wires)
    check(tape_of(function, dev, weights.detach(), inputs), dev, [1, 1, 3][seed % 3])


def test_a_decomposition_with_other_angles() -> None:
    """The device's gates have angles that are not the circuit's."""

    def function(w: Any) -> Any:
        for k in range(3):
            qml.RY(0.4 + 0.3 * k, k)
        qml.PauliRot(w[0], "XYZ", wires=[0, 1, 2])
        qml.FermionicSWAP(w[1], [0, 2])
        qml.ctrl(qml.RX(w[2], 2), control=[0, 1], control_values=[1, 0])
        qml.PauliRot(w[0], "YX", wires=[2, 0])
        return measured(3)

    dev = qml.device("lightning.qubit", wires=3)
    check(tape_of(function, dev, [0.8, -0.4, 1.2]), dev, 1)


class Looking(qml.operation.Operation):
    """exp(-i t X / 2), whose decomposition at t = 0 is another one."""

    num_wires = 1
    num_params = 1
    ndim_params = (0,)

    def generator(self) -> Any:
        return qml.Hamiltonian([-0.5], [qml.X(self.wires)])

    @staticmethod
    def compute_decomposition(t: Any, wires: Any) -> Any:
        return [] if qml.math.allclose(t, 0.0) else [qml.RX(t, wires)]


def test_what_the_device_decomposes_by_values_is_shifted() -> None:
    def function(w: Any) -> Any:
        qml.RY(0.4, 0)
        Looking(w[0], 0)
        return qml.expval(qml.Y(0))

    dev = qml.device("lightning.qubit", wires=2)
    check(tape_of(function, dev, [0.0]), dev, 3)


_H = qml.Hamiltonian([0.5, 0.3, -0.7], [qml.X(0) @ qml.X(1), qml.Z(1) @ qml.Z(2), qml.Y(0)])
DECOMPOSED = {
    "FermionicSWAP": lambda t: qml.FermionicSWAP(t, [0, 1]),
    "CPhaseShift00": lambda t: qml.CPhaseShift00(t, [0, 1]),
    "CPhaseShift01": lambda t: qml.CPhaseShift01(t, [0, 1]),
    "CPhaseShift10": lambda t: qml.CPhaseShift10(t, [0, 1]),
    "PCPhase": lambda t: qml.PCPhase(t, 3, wires=[0, 1]),
    "OrbitalRotation": lambda t: qml.OrbitalRotation(t, range(4)),
    "Rot": lambda t: qml.ctrl(qml.Rot(t, t, t, 0), [1, 2]),
    "TrotterProduct": lambda t: qml.TrotterProduct(_H, t, n=2, order=2),
    "QDrift": lambda t: qml.QDrift(_H, t, n=3, seed=7),
    "evolution": lambda t: qml.evolve(qml.X(0) @ qml.X(1) + 0.3 * qml.Z(0) @ qml.Z(1), t),
    "controlled evolution": lambda t: qml.ctrl(qml.evolve(qml.Z(0) @ qml.X(1), t), 3),
    "controlled power": lambda t: qml.ctrl(qml.pow(qml.RX(t, 0), 3), [1, 2]),
    "controlled Trotter": lambda t: qml.ctrl(qml.TrotterProduct(_H, t, n=1), 3, [0]),
    "phase estimation": lambda t: qml.QuantumPhaseEstimation(qml.RZ(t, 0), estimation_wires=[1, 2]),
}


@pytest.mark.parametrize("at", [0.0, 0.7])
@pytest.mark.parametrize("gate", DECOMPOSED)
def test_gates_that_the_device_decomposes(gate: str, at: float) -> None:
    """Layers evaluate with torch's derivatives off, and the angles once lost theirs on the way: gradient 0."""

    def function(inputs: Any, w: Any) -> Any:
        for i in range(4):
            qml.RY(0.4 + 0.3 * i, i)
            qml.RX(0.1 + 0.2 * i, i)
        qml.CNOT([0, 1])
        qml.CNOT([1, 2])
        DECOMPOSED[gate](w[0])
        qml.RX(inputs[..., 0] * w[1], 0)
        qml.CNOT([0, 2])
        return [qml.expval(qml.X(0)), qml.expval(qml.Y(2) @ qml.Z(0)), qml.expval(qml.Y(1))]

    start = torch.tensor([at, 0.4], dtype=torch.float64)
    x = torch.tensor([[0.5], [1.1]], dtype=torch.float64)
    weights = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0]], dtype=torch.float64)
    exact = qml.QNode(function, qml.device("default.qubit", wires=4), diff_method="backprop")
    w = start.clone().requires_grad_()
    values = torch.stack([torch.stack([v.expand(()) for v in exact(row, w)]) for row in x])
    (expected,) = torch.autograd.grad((values * weights).sum(), w)
    device = qml.device("lightning.qubit", wires=4)
    layer = fubini.QuantumLayer(
        qml.QNode(function, device), {"w": (2,)}, {"w": start}, engine="device"
    ).double()
    (layer(x) * weights).sum().backward()
    # Rules for controlled evolutions have frequencies with shifts that amplify rounding a hundredfold.
    torch.testing.assert_close(layer.w.grad, expected, rtol=0, atol=1e-10)
    tape = gate_tape(qml.QNode(function, device), (x[0], start), {}, [1])
    with torch.no_grad():
        found = gradient_job(tape).run(Executor(device)).jacobian[0] @ tape.jacobian[0]
    slopes = torch.autograd.functional.jacobian(lambda v: torch.stack(exact(x[0], v)), start)
    np.testing.assert_allclose(found, slopes, rtol=0, atol=1e-10)


def function(x: Any, w: Any) -> Any:
    qml.RY(x[..., 0], 0)
    qml.RX(w[0], 0)
    qml.CRY(w[1], [0, 1])
    qml.RX(w[2], 1)
    return qml.expval(qml.Z(0)), qml.var(qml.Y(1))


WEIGHTS = [0.3, 1.1, -0.6]
INPUTS = torch.tensor([[0.3], [0.8], [0.3]], dtype=torch.float64)


def test_equal_inputs_some_angles_and_known_values() -> None:
    dev = qml.device("lightning.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS)
    executor = Executor(dev)
    expected = gradient_job(tape, rule="shift").run(executor).jacobian
    base = values_job(tape).run(executor)
    before = executor.usage
    found = gradient_job(tape, angles=[2, 0], base=base).run(executor)
    assert executor.usage - before == Usage(1, 2, 2, 0)  # two of the three inputs are equal
    np.testing.assert_allclose(found.jacobian[..., [0, 2]], expected[..., [0, 2]], atol=TOLERANCE)
    assert not found.jacobian[..., 1].any()
    assert found.values is None


def test_what_keeps_to_shifts() -> None:
    broadcasting = qml.device("default.qubit", wires=2)
    tape = tape_of(function, broadcasting, WEIGHTS, INPUTS[:2])
    shifted = Usage(1, 1, 2 * (2 + 4 + 2 + 1), 0)
    assert gradient_job(tape).cost(Executor(broadcasting)) == shifted
    serial = Usage(1, shifted.circuits, shifted.circuits, 0)
    lightning = Executor(qml.device("lightning.qubit", wires=2))
    assert gradient_job(tape, rule="shift").cost(lightning) == serial
    assert gradient_job(tape, shots=10).cost(lightning).shots > 0
    without = Executor(Serial(wires=2))
    assert gradient_job(tape).cost(without) == serial
    # What it is asked for, a broadcasting device does as well.
    job = gradient_job(tape, rule="adjoint")
    assert job.cost(Executor(broadcasting)) == Usage(1, 2, 2, 0)
    np.testing.assert_allclose(
        job.run(Executor(broadcasting)).jacobian,
        gradient_job(tape).run(lightning).jacobian,
        rtol=0,
        atol=TOLERANCE,
    )
    with pytest.raises(UnsupportedCircuitError, match=r"some\.plugin has no derivatives"):
        job.run(without)
    with pytest.raises(ValueError, match="shots: expected None for rule='adjoint', got 5"):
        gradient_job(tape, rule="adjoint", shots=5)
    with pytest.raises(ValueError, match="shifts: expected None for rule='adjoint'"):
        gradient_job(tape, rule="adjoint", shifts=[[1.0]] * 3)
    with pytest.raises(ValueError, match="rule: expected 'shift', 'hadamard', 'adjoint' or None"):
        gradient_job(tape, rule="magic")


def test_probabilities_are_shifted() -> None:
    dev = qml.device("lightning.qubit", wires=1)
    tape = tape_of(lambda w: (qml.RX(w[0], 0), qml.probs(wires=0))[1], dev, [0.4])
    assert gradient_job(tape).cost(Executor(dev)) == Usage(1, 2, 2, 0)
    with pytest.raises(UnsupportedCircuitError, match="use rule='shift'"):
        gradient_job(tape, rule="adjoint").cost(Executor(dev))


def test_derivatives_and_results_are_different_calls() -> None:
    dev = qml.device("lightning.qubit", wires=2)
    tape = tape_of(function, dev, WEIGHTS, INPUTS[:2])
    job = together(metric_job(tape), gradient_job(tape))
    executor = Executor(dev)
    metric, gradient = job.run(executor)
    layers = metric_job(tape).cost(executor).tapes
    assert executor.usage == job.cost(executor) == Usage(2, layers + 2, layers + 2, 0)
    np.testing.assert_array_equal(metric.values, metric_job(tape).run(executor).values)
    np.testing.assert_array_equal(gradient.jacobian, gradient_job(tape).run(executor).jacobian)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_failing_derivatives_are_repeated_alone(fault: str) -> None:
    inputs = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None]
    dev = Adjoint(wires=2, faults={3: fault})
    tape = tape_of(function, dev, WEIGHTS, inputs)
    found = gradient_job(tape).run(Executor(dev, backoff=0.0, tapes_per_call=1)).jacobian
    expected = gradient_job(tape).run(Executor(qml.device("lightning.qubit", wires=2))).jacobian
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert dev.calls == 5
    # Given up, taken up again: what was paid for is not run again, nor taken for the results of the plain circuit.
    dev = Adjoint(wires=2, faults={3: fault})
    executor = Executor(dev, retries=0, tapes_per_call=1)
    with pytest.raises((DeviceExecutionError, NumericalError), match="2 of 4 results are kept"):
        gradient_job(tape).run(executor)
    dev.executed.clear()
    values_job(tape).run(executor)
    assert len(dev.executed) == 4
    dev.executed.clear()
    np.testing.assert_allclose(gradient_job(tape).run(executor).jacobian, expected, atol=TOLERANCE)
    assert len(dev.executed) == 2
