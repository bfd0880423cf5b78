"""Natural gradient from shots on the three-qubit circuit."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from devices_common import Serial
from fubini.demo.circuit import START, make_circuit
from fubini.devices.executor import DeviceExecutionError, Executor
from fubini.devices.usage import Usage
from fubini.optim.shot_optimizer import ShotQNGOptimizer

STEPS = 40
RATE = 0.3


def exact_run() -> float:
    qnode = make_circuit()
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = fubini.QNGOptimizer([p], lr=RATE)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = qnode(p)
        loss.backward()
        return loss, fubini.metric_tensor(qnode, approx="block-diag")

    for _ in range(STEPS):
        optimizer.step(closure)
    return float(qnode(p).detach())


def sampled_run(run: int, **options: Any) -> float:
    exact = make_circuit()
    qnode = qml.QNode(exact.func, qml.device("default.qubit", wires=3, seed=run))
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = ShotQNGOptimizer([p], qnode, lr=RATE, shots=1000, **options)
    for _ in range(STEPS):
        optimizer.step()
    return float(exact(p).detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"update_every": 4}, {"coordinates": 3, "seed": 1}],
    ids=["plain", "lazy", "random"],
)
def test_1000_shots_a_step_reach_what_exact_steps_reach(options: Any) -> None:
    reached = np.median([sampled_run(run, **options) for run in range(20)])
    assert reached <= 0.95 * exact_run()


def test_one_run() -> None:
    assert sampled_run(3) <= 0.95 * exact_run()


def make(**options: Any) -> tuple[Any, Any, ShotQNGOptimizer]:
    device = options.pop("device", None) or qml.device("default.qubit", wires=3, seed=1)
    qnode = qml.QNode(make_circuit().func, device)
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    return device, p, ShotQNGOptimizer([p], qnode, **options)


def test_the_cost_is_known_before_a_step_is_taken() -> None:
    _, _, optimizer = make(shots=1000, update_every=2)
    # Four angles with two terms, and two layers.
    first = Usage(calls=1, tapes=3, circuits=10, shots=1000)
    assert optimizer.cost() == first
    optimizer.step()
    assert optimizer.last is not None
    assert optimizer.last.usage == first
    assert optimizer.cost() == Usage(calls=1, tapes=1, circuits=8, shots=1000)
    optimizer.step()
    assert optimizer.last.usage.circuits == 8
    third = optimizer.cost()
    assert third.circuits == 10
    assert (
        900 <= third.shots <= 1000
    )  # split by variance, and rounded down to whole shots per circuit
    optimizer.step()
    assert optimizer.last.usage == third


def test_random_coordinates_cost_less() -> None:
    _, p, optimizer = make(shots=1000, coordinates=1, seed=0)
    before = p.detach().clone()
    cost = optimizer.cost()
    assert cost.circuits == 2 + 1
    optimizer.step()
    assert optimizer.last is not None
    assert optimizer.last.usage == cost
    assert int((p.detach() != before).sum()) <= 1


def test_a_failing_step_leaves_the_weights_and_is_resumed() -> None:
    dev = Serial(wires=3, faults={3: "raise"}, seed=4)
    _, p, optimizer = make(
        device=dev, shots=1000, executor=Executor(dev, retries=0, tapes_per_call=2), lr=1.0
    )
    before = p.detach().clone()
    with pytest.raises(DeviceExecutionError, match="4 of 10 results are kept"):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    optimizer.step()
    assert not torch.equal(p.detach(), before)
    assert len(dev.executed) == 10


def test_arguments() -> None:
    for name in ("shots", "update_every", "coordinates"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number >= 1, got 0"):
            make(**{name: 0})
    with pytest.raises(ValueError, match="lr: expected"):
        make(lr=-1.0)
    with pytest.raises(ValueError, match="closure: expected None"):
        make()[2].step(lambda: None)
    with pytest.raises(ValueError, match="at least 2 for each of 10 circuits"):
        make(shots=19)[2].step()
    pair = qml.QNode(lambda p: (qml.RX(p, 0), qml.probs(wires=0))[1], qml.device("default.qubit"))
    weight = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match="qnode: expected one expectation value"):
        ShotQNGOptimizer([weight], pair).step()
