"""Devices that fail in known ways, and circuits for the tests of the device engine."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.tape import GateTape
from fubini.devices.executor import executor_of
from fubini.devices.metric import Block, blocks_job, full_metric_job


class Faulty(qml.devices.DefaultQubit):
    """default.qubit whose calls with the given numbers misbehave; it records every tape that succeeded."""

    def __init__(self, wires: Any, faults: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(wires=wires, **kwargs)
        self.faults = faults or {}
        self.calls = 0
        self.executed: list[Any] = []

    def execute(self, circuits: Any, execution_config: Any = None) -> Any:
        self.calls += 1
        fault = self.faults.get(self.calls)
        if fault == "raise":
            raise ConnectionError("the queue is closed")
        if fault == "slow":
            time.sleep(0.6)
        results = super().execute(circuits, execution_config)
        self.executed += list(circuits)
        if fault == "nan":
            return tuple(np.asarray(r) * np.nan for r in results)
        return results


class Serial(Faulty):
    """The same as a plugin that PennyLane knows nothing about: no broadcasting, no derivatives of its own."""

    @property
    def name(self) -> str:
        return "some.plugin"

    def supports_derivatives(self, execution_config: Any = None, circuit: Any = None) -> bool:
        return False


def tape_of(
    function: Callable[..., Any],
    device: Any,
    weights: Any,
    inputs: Any = None,
    shots: int | None = None,
) -> GateTape:
    """The gates of function(weights) or function(inputs, weights), on any device."""
    weights = torch.as_tensor(weights, dtype=torch.float64).detach().clone().requires_grad_()
    qnode = qml.QNode(function, device, shots=shots)
    if inputs is None:
        return gate_tape(qnode, (weights,), {}, [0], pure=False)
    return gate_tape(qnode, (torch.as_tensor(inputs), weights), {}, [1], pure=False)


def check_statistics(found: Any, errors: Any, exact: Any, variances: Any = None) -> None:
    """Unbiased, and errors right: found and errors, or their squares, are (repetitions, ...)."""
    observed = found.std(axis=0, ddof=1)
    # The mean of 300 lies within four of its standard errors; 1e-12: results without noise.
    distance = np.abs(found.mean(axis=0) - exact)
    assert (distance <= 4.0 * observed / np.sqrt(len(found)) + 1e-12).all()
    reported = np.sqrt((errors**2 if variances is None else variances).mean(axis=0))
    noisy = observed > 1e-10
    assert noisy.any()
    assert (np.abs(reported / np.where(noisy, observed, 1.0) - 1.0)[noisy] <= 0.2).all()


def spread(wires: int) -> None:
    """Queue gates after which no amplitude is zero, and no derivative vanishes by symmetry."""
    for wire in range(wires):
        qml.RY(0.3 + 0.2 * wire, wire)
        qml.RZ(0.9 - 0.1 * wire, wire)


def metric_blocks(tape: GateTape, device: Any, **options: Any) -> list[Block]:
    """The blocks of the metric over the trainable angles, run on the device."""
    executor = executor_of(device)
    return blocks_job(tape, executor, **options).run(executor)


def full_metric(tape: GateTape, device: Any) -> Block:
    """The full metric over the trainable angles, run on the device."""
    executor = executor_of(device)
    return full_metric_job(tape, executor).run(executor)[0]
