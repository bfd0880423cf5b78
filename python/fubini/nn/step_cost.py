"""What a training step of a layer on a device will execute, counted before anything is executed."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from fubini.devices.metric import metric_job
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.shifts import gradient_job
from fubini.devices.usage import Usage
from fubini.errors import UnsupportedCircuitError
from fubini.nn.device_pass import ShiftedCircuit, own_derivatives
from fubini.nn.layer_tape import layer_tape
from fubini.options import Approx, LayerRule

_NOTHING = Usage()


@dataclass(frozen=True)
class StepCost:
    """What a step executes on a layer's device; failing calls that are repeated are not counted.

    Attributes:
        forward: The layer's results, and their derivatives where the device has its own.
        backward: Their derivatives from shifted circuits.
        metric: The metric of ``QNGOptimizer(metric="quantum")``; nothing for a circuit that has none.
    """

    forward: Usage = _NOTHING
    backward: Usage = _NOTHING
    metric: Usage = _NOTHING

    @property
    def total(self) -> Usage:
        """All together."""
        return self.forward + self.backward + self.metric

    def __str__(self) -> str:
        return f"forward: {self.forward}; backward: {self.backward}; metric: {self.metric}"


def step_cost(
    layer: Any, circuit: ShiftedCircuit, inputs: torch.Tensor, approx: Approx, layers: LayerRule
) -> StepCost:
    """Return what forward, backward and metric of a layer execute.

    Args:
        layer: On the device engine, with derivatives of its own.
        circuit: Its circuit at the inputs.
        inputs: (batch, features) or (features,).
        approx: As for ``fubini.metric_tensor``.
        layers: Likewise.

    Returns:
        The cost.
    """
    executor, tape = layer.executor, circuit.tape
    forward, backward = circuit.job.cost(executor), Usage()
    own = own_derivatives(circuit, executor)
    if own is not None:
        forward = own.cost(executor)
    elif circuit.angles:
        known = Estimates(readout_of(tape, tape.shots), (), tape.shots)  # from the forward pass
        backward = gradient_job(tape, shots=tape.shots, rule="shift", base=known).cost(executor)
    metric = Usage()
    with contextlib.suppress(UnsupportedCircuitError):  # channels, of which there is none
        gates = layer_tape(layer, inputs, dict(layer.qnode_weights))
        if gates.jacobian.size:
            metric = metric_job(gates, executor, approx, layers).cost(executor)
    return StepCost(forward, backward, metric)
