"""The executor on devices that fail: what is retried, what is kept, what is counted, what is refused."""

import pickle
from concurrent.futures import Future
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from devices_common import Faulty, Serial, tape_of
from fubini import NumericalError, UnsupportedCircuitError
from fubini.devices.executor import DeviceExecutionError, Executor, check_device, executor_of
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.sweep import tape_key
from fubini.devices.usage import Usage


def circuit(w: Any) -> Any:
    for k in range(5):
        qml.RY(w[k], k % 2)
        qml.CNOT([0, 1])
    return qml.expval(qml.Z(0))


def data_circuit(inputs: Any, w: Any) -> Any:
    qml.RX(inputs[..., 0], 0)
    return circuit(w)


WEIGHTS = np.linspace(0.1, 0.9, 5)


def job_on(device: Any) -> Any:
    return gradient_job(tape_of(circuit, device, WEIGHTS))


def expected() -> Any:
    dev = qml.device("default.qubit", wires=2)
    return job_on(dev).run(Executor(dev)).jacobian


def keys(device: Any) -> list[Any]:
    return [tape_key(tape) for tape in device.executed]


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_failing_call_is_repeated_alone(fault: str) -> None:
    dev = Serial(wires=2, faults={3: fault})
    executor = Executor(dev, backoff=0.01, tapes_per_call=1)
    found = job_on(dev).run(executor).jacobian
    np.testing.assert_array_equal(found, expected())
    assert dev.calls == executor.usage.calls == 11
    assert len(set(keys(dev))) == 10
    # Only the circuit whose answer was NaN ran twice.
    assert len(dev.executed) == (10 if fault == "raise" else 11)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_results_survive_a_call_that_keeps_failing(fault: str) -> None:
    dev = Serial(wires=2, faults={3: fault, 4: fault})
    executor = Executor(dev, retries=1, backoff=0.0, tapes_per_call=1)
    kind = DeviceExecutionError if fault == "raise" else NumericalError
    with pytest.raises(kind, match=r"some\.plugin .*2 attempts.*2 of 10 results are kept"):
        job_on(dev).run(executor)
    first = keys(dev)[:2]
    dev.executed.clear()
    found = job_on(dev).run(executor).jacobian  # a new job with the same numbers
    np.testing.assert_array_equal(found, expected())
    assert len(dev.executed) == 8
    assert not set(first) & set(keys(dev))
    # What was kept is used once: with shots, a later gradient needs new samples.
    dev.executed.clear()
    job_on(dev).run(executor)
    assert len(dev.executed) == 10


def test_results_for_other_numbers_are_not_reused() -> None:
    dev = Serial(wires=2, faults={3: "raise"})
    executor = Executor(dev, retries=0, tapes_per_call=1)
    with pytest.raises(DeviceExecutionError, match="1 attempt"):
        job_on(dev).run(executor)
    dev.executed.clear()
    gradient_job(tape_of(circuit, dev, WEIGHTS + 1e-12)).run(executor)
    assert len(dev.executed) == 10


def test_an_interrupt_keeps_results() -> None:
    dev = Serial(wires=2)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    executor = Executor(dev, tapes_per_call=2, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        job_on(dev).run(executor)
    executor.progress = False
    job_on(dev).run(executor)
    assert len(dev.executed) == 10
    assert len(set(keys(dev))) == 10


def test_a_late_answer_is_not_paid_for_twice() -> None:
    dev = Serial(wires=2, faults={1: "slow"})
    executor = Executor(dev, timeout=0.2, backoff=1.0)
    np.testing.assert_array_equal(job_on(dev).run(executor).jacobian, expected())
    assert dev.calls == 1


def test_an_answer_that_comes_as_the_time_ends_is_not_paid_for_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            if not self.done():
                self.set_result(executor._call(tapes))
                raise TimeoutError
            return super().result()

    tapes: list[Any] = []

    def started(asked: list[Any]) -> Late:
        tapes[:] = asked
        return Late()

    dev = Serial(wires=2)
    executor = Executor(dev, timeout=1.0, retries=1, backoff=0.0)
    monkeypatch.setattr(executor, "_started", started)
    np.testing.assert_array_equal(job_on(dev).run(executor).jacobian, expected())
    assert dev.calls == 1


def test_a_device_that_never_answers_in_time() -> None:
    dev = Serial(wires=2, faults=dict.fromkeys(range(1, 9), "slow"))
    executor = Executor(dev, timeout=0.05, retries=1, backoff=0.01)
    with pytest.raises(DeviceExecutionError, match=r"no answer within 0\.05 s"):
        job_on(dev).run(executor)


def test_a_timeout_of_the_devices_own_is_tried_again() -> None:
    class Queued(Serial):
        def execute(self, circuits: Any, execution_config: Any = None) -> Any:
            if not self.calls:
                self.calls += 1
                raise TimeoutError("the queue is full")
            return super().execute(circuits, execution_config)

    dev = Queued(wires=2)
    executor = Executor(dev, timeout=60.0, retries=1, backoff=0.01)
    np.testing.assert_array_equal(job_on(dev).run(executor).jacobian, expected())
    assert dev.calls == 2


def test_backoff_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    dev = Serial(wires=2, faults=dict.fromkeys(range(1, 4), "raise"))
    executor = Executor(dev, retries=3, backoff=0.5)
    job_on(dev).run(executor)
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("kind", [Faulty, Serial])
def test_too_few_wires_are_refused_before_anything_runs(kind: Any) -> None:
    dev = kind(wires=1)
    with pytest.raises(
        UnsupportedCircuitError, match=r"refused a circuit: .*give the device the wires \[1\]"
    ):
        job_on(dev).run(Executor(dev))
    assert dev.calls == 0


def test_what_a_device_cannot_run_is_not_retried() -> None:
    class Refusing(Serial):
        def execute(self, circuits: Any, execution_config: Any = None) -> Any:
            self.calls += 1
            raise qml.exceptions.DeviceError("RY is not supported")

    dev = Refusing(wires=2)
    with pytest.raises(UnsupportedCircuitError, match=r"some\.plugin refused a circuit: RY is not"):
        job_on(dev).run(Executor(dev))
    assert dev.calls == 1


def test_clifford_simulators_are_refused() -> None:
    class Clifford(Faulty):
        @property
        def name(self) -> str:
            return "default.clifford"

    with pytest.raises(
        UnsupportedCircuitError, match=r"default\.clifford runs Clifford gates only"
    ):
        Executor(Clifford(wires=1))
    with pytest.raises(TypeError, match="expected a PennyLane device, got str"):
        check_device("default.qubit")


def test_the_clifford_simulator_itself_is_refused_everywhere() -> None:
    pytest.importorskip("stim")
    dev = qml.device("default.clifford", wires=2)
    qnode = qml.QNode(circuit, dev)
    weights = torch.tensor(WEIGHTS, requires_grad=True)
    for use in (
        lambda: Executor(dev),
        lambda: fubini.QuantumLayer(qml.QNode(data_circuit, dev), {"w": 5}),
        lambda: fubini.metric_tensor(qnode)(weights),
        lambda: fubini.ShotQNGOptimizer([weights], qnode),
    ):
        with pytest.raises(UnsupportedCircuitError, match=r"default\.clifford runs Clifford gates"):
            use()


@pytest.mark.parametrize(
    ("name", "value"),
    [("retries", -1), ("backoff", np.nan), ("memory", 0), ("timeout", 0.0), ("tapes_per_call", 0)],
)
def test_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Executor(qml.device("default.qubit", wires=1), **{name: value})


def test_accounts_and_progress() -> None:
    dev = Serial(wires=2)
    seen: list[tuple[int, int]] = []
    executor = Executor(
        dev, tapes_per_call=4, progress=lambda done, total: seen.append((done, total))
    )
    job = gradient_job(tape_of(circuit, dev, WEIGHTS), shots=20)
    assert job.cost(executor) == Usage(calls=3, tapes=10, circuits=10, shots=200)
    assert executor.usage == Usage()
    job.run(executor)
    assert executor.usage == job.cost(executor)
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]
    assert str(executor.usage) == "3 device calls, 10 tapes, 10 circuits, 200 shots"


def test_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    dev = Serial(wires=2)
    job_on(dev).run(Executor(dev, progress=True))
    assert "10/10" in capsys.readouterr().err


def test_one_executor_per_device() -> None:
    dev = qml.device("default.qubit", wires=2)
    executor = executor_of(dev)
    assert executor_of(dev) is executor
    values_job(tape_of(circuit, dev, WEIGHTS)).run(executor)
    copy = pickle.loads(pickle.dumps(executor))
    assert copy.usage == executor.usage
    assert executor_of(qml.device("default.qubit", wires=2)) is not executor
