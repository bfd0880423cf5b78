"""Training on devices that fail: a clear error or a repeated call, parameters untouched, nothing paid for twice."""

import copy
import time
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from devices_common import Faulty, Serial, tape_of
from fubini import NumericalError, QuantumLayer, UnsupportedCircuitError
from fubini.devices.block_metric import metric_job
from fubini.devices.executor import DeviceExecutionError, Executor
from fubini.devices.fisher import fisher_job
from fubini.devices.full_metric import full_metric_job
from fubini.devices.hessian import hessian_job
from fubini.devices.qnspsa import QNSPSA
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.sweep import tape_key
from fubini.devices.usage import Usage

INPUTS = torch.tensor([[0.3, 0.9], [1.2, -0.4]], dtype=torch.float64)
FAILURES = (DeviceExecutionError, NumericalError)


def function(inputs: Any, w: Any) -> Any:
    for k in range(2):
        qml.RY(inputs[..., k], k)
        qml.RX(w[k], k)
    qml.CNOT([0, 1])
    qml.RZ(w[2], 1)
    qml.RY(w[3], 0)
    return qml.expval(qml.Z(0) @ qml.X(1))


def layer_on(device: Any, **executor: Any) -> QuantumLayer:
    torch.manual_seed(3)
    layer = QuantumLayer(qml.QNode(function, device), {"w": 4}, engine="device").double()
    layer.executor = Executor(device, **{"backoff": 0.0, **executor})
    return layer


def step(layer: QuantumLayer, optimizer: Any) -> float:
    optimizer.zero_grad()
    loss = layer(INPUTS).square().sum()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def stepped(device: Any, **executor: Any) -> tuple[QuantumLayer, Any]:
    layer = layer_on(device, **executor)
    return layer, fubini.QNGOptimizer(layer, lr=0.2, momentum=0.5)


def healthy() -> tuple[list[float], Any, int]:
    device = Serial(wires=2)
    layer, optimizer = stepped(device, tapes_per_call=3)
    losses = [step(layer, optimizer) for _ in range(2)]
    return losses, layer.w.detach().clone(), device.calls


@pytest.mark.parametrize("fault", ["raise", "nan", "slow"])
def test_every_call_of_two_steps_may_fail_once(fault: str) -> None:
    losses, weights, calls = healthy()
    assert calls == 2 * (1 + 6 + 2)  # two inputs: forward, eight shifts each, two layers
    chosen = range(1, calls + 1) if fault != "slow" else (1, 3, 8)
    for number in chosen:
        device = Serial(wires=2, faults={number: fault})
        slow = {"timeout": 0.4, "backoff": 0.3} if fault == "slow" else {}
        layer, optimizer = stepped(device, tapes_per_call=3, **slow)
        assert [step(layer, optimizer) for _ in range(2)] == losses
        assert torch.equal(layer.w.detach(), weights)
        # A slow call is not made again, because its answer comes during the pause.
        assert device.calls == calls + (fault != "slow")
        assert layer.usage.calls == device.calls


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_every_call_of_a_step_may_fail_for_good(fault: str) -> None:
    losses, _, calls = healthy()
    for number in range(1, calls // 2 + 1):
        device = Serial(wires=2, faults={number: fault})
        layer, optimizer = stepped(device, tapes_per_call=3, retries=0)
        before = layer.w.detach().clone()
        state = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(FAILURES, match="kept and will be reused"):
            step(layer, optimizer)
        assert torch.equal(layer.w.detach(), before)
        assert str(optimizer.state_dict()) == str(state)
        assert step(layer, optimizer) == losses[0]
        assert not torch.equal(layer.w.detach(), before)


def test_too_few_wires_for_the_layer() -> None:
    device = Serial(wires=1)
    layer = layer_on(device)
    with pytest.raises(UnsupportedCircuitError, match=r"give the device the wires \[1\]"):
        layer(INPUTS)
    assert device.calls == 0
    assert layer.w.grad is None


def test_a_device_that_is_always_too_slow() -> None:
    device = Serial(wires=2, faults=dict.fromkeys(range(1, 100), "slow"))
    layer = layer_on(device, timeout=0.05, retries=1)
    with pytest.raises(DeviceExecutionError, match=r"no answer within 0\.05 s.*after 2 attempts"):
        layer(INPUTS)


def test_what_comes_after_the_last_attempt_is_taken_by_the_next_run() -> None:
    device = Serial(wires=2, faults={1: "slow"})
    tape = tape_of(lambda w: function(INPUTS[0], w), device, [0.1, 0.2, 0.3, 0.4])
    executor = Executor(device, timeout=0.1, retries=0)
    with pytest.raises(DeviceExecutionError, match="no answer"):
        values_job(tape).run(executor)
    deadline = time.monotonic() + 10.0
    while not device.executed and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    found = values_job(tape).run(executor).features
    assert device.calls == 1
    other = Executor(qml.device("default.qubit", wires=2))
    np.testing.assert_array_equal(found, values_job(tape).run(other).features)
    values_job(tape).run(executor)
    assert device.calls == 2  # once only


def test_equal_circuits_with_shots_are_kept_one_by_one() -> None:
    """Kept under one name, one of two results of the same circuit was lost."""
    device = Serial(wires=2, faults={4: "raise"}, seed=1)
    inputs = INPUTS[:1].repeat(5, 1)
    tape = tape_of(function, device, [0.1, 0.2, 0.3, 0.4], inputs)
    executor = Executor(device, retries=0, tapes_per_call=1)
    job = values_job(tape, shots=50)
    with pytest.raises(DeviceExecutionError, match="3 of 5 results are kept"):
        job.run(executor)
    found = job.run(executor).features
    assert len(device.executed) == 5
    assert len(np.unique(found)) > 1


def test_results_of_a_circuit_are_not_taken_for_its_derivatives() -> None:
    """Both are kept, and the tapes are equal where all parameters are differentiated."""

    class Adjoint(Faulty):
        @property
        def name(self) -> str:
            return "some.simulator"

        def execute_and_compute_derivatives(self, circuits: Any, config: Any = None) -> Any:
            self.calls += 1
            return super().execute_and_compute_derivatives(circuits, config)

    device = Adjoint(wires=1, faults={2: "raise"})

    def two(w: Any) -> Any:
        qml.RX(w[0], 0)
        return qml.expval(qml.Z(0))

    tape = tape_of(two, device, [0.3])
    other = tape_of(two, device, [0.4])
    executor = Executor(device, retries=0, tapes_per_call=1)
    with pytest.raises(DeviceExecutionError, match="1 of 2 results are kept"):
        executor.run([*values_job(tape).sweeps, *values_job(other).sweeps])
    found = gradient_job(tape).run(executor)
    np.testing.assert_allclose(found.jacobian, [[[-np.sin(0.3)]]], atol=1e-12)
    assert values_job(tape).run(executor).features[0, 0] == pytest.approx(np.cos(0.3))
    assert device.calls == 3


JOBS = {
    "values": (lambda t: values_job(t, shots=20), 1),
    "gradient": (lambda t: gradient_job(t, shots=20), 8),
    "metric": (lambda t: metric_job(t, shots=20), 2),
    "full": (lambda t: full_metric_job(t, shots=20), 2 * 4 * 3 + 4),
    "hessian": (lambda t: hessian_job(t, shots=20), 2 * 4 * 3 + 4 + 1),
    "fisher": (lambda t: fisher_job(t, shots=20), 8 + 1),
    "qn-spsa": (lambda t: QNSPSA(seed=0).job(t, shots=20), 4),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_third_of_all_calls_fails(name: str) -> None:
    """As many circuits as the docstring says, each of them once; the dry run and the account agree."""
    make, count = JOBS[name]
    device = Serial(wires=2, faults={3: "raise"}, seed=1)
    tape = tape_of(function, device, [0.1, 0.2, 0.3, 0.4], INPUTS)
    step = -(-2 * count // 10)
    executor = Executor(device, backoff=0.0, tapes_per_call=step)
    job = make(tape)
    calls = -(-2 * count // step)
    assert job.cost(executor) == Usage(calls, 2 * count, 2 * count, 40 * count)
    job.run(executor)
    assert len(device.executed) == 2 * count
    failed = calls >= 3
    assert executor.usage.calls == device.calls == calls + failed
    # A call that failed may have cost something, and is in the account.
    again = min(step, 2 * count - 2 * step) if failed else 0
    assert executor.usage.shots == 20 * (2 * count + again)
    keys = [tape_key(t) for t in device.executed]
    assert len(set(keys)) == 2 * count
