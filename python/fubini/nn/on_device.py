"""What a layer does on its PennyLane device: who runs its circuits, what they return, and what a step costs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pennylane as qml
import torch

from fubini.circuit.observables import by_words
from fubini.devices.executor import Executor, executor_of
from fubini.devices.metric import metric_job
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.shifts import gradient_job
from fubini.devices.usage import Usage
from fubini.errors import UnsupportedCircuitError
from fubini.nn.device_pass import derivatives_of, own_derivatives, run_shifted, shifted_circuit
from fubini.nn.forms import Form, Forms, arranged, check_results, tuples_are_stacked
from fubini.nn.layer_weights import layer_tape
from fubini.nn.shot_noise import ShotNoise
from fubini.options import Approx, LayerRule

Tensor = torch.Tensor

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


class OnDevice(torch.nn.Module):
    """The part of a ``QuantumLayer`` that a PennyLane device serves."""

    qnode: Any
    input_arg: str | None
    weight_shapes: dict[str, tuple[int, ...]]
    shot_noise: ShotNoise | None
    _executor: Executor | None
    _forms: Forms
    _checked: Callable[..., tuple[Tensor, list[Tensor]]]
    _form: Callable[[Tensor], Form]

    @property
    def executor(self) -> Executor:
        """What runs the circuits of the device engine; by default shared by all users of the device."""
        mine = self._executor
        if mine is not None and mine.device is self.qnode.device:
            return mine
        return executor_of(self.qnode.device)

    @executor.setter
    def executor(self, value: Executor) -> None:
        if value.device is not self.qnode.device:
            raise ValueError(
                f"executor: expected one of the layer's device {self.qnode.device.name!r}, got one of another device "
                f"{value.device.name!r}"
            )
        self._executor = value

    @property
    def usage(self) -> Usage:
        """Calls, tapes, circuits and shots that the executor has run.

        Where PennyLane differentiates, its forward passes are counted, and executions of its backward passes are not.
        """
        return self.executor.usage

    @property
    def device_calls(self) -> int:
        """Calls of the device so far, see ``usage``; 0 on the native engine."""
        return self.executor.usage.calls

    def cost(
        self,
        inputs: Tensor | None = None,
        approx: Approx = "block-diag",
        layers: LayerRule = "wires",
    ) -> StepCost:
        """Say what a training step on these inputs will execute on the device, without executing anything.

        Args:
            inputs: As for the layer's forward; requiring grad where something in front of the layer is trained.
            approx: Metric of the optimizer, as for ``QNGOptimizer``.
            layers: Likewise.

        Returns:
            Calls, tapes, circuits and shots of forward pass, backward pass and metric; zeros on the native engine.

        Raises:
            UnsupportedCircuitError: Where PennyLane differentiates the circuit, and decides what is executed.
        """
        inputs, weights = self._checked(inputs)
        flat = inputs if inputs.ndim < 2 else inputs.reshape(-1, inputs.shape[-1])
        form = self._form(flat)
        if not isinstance(form.how, str):
            return StepCost()
        if form.kind == "other":
            raise UnsupportedCircuitError(
                "cost: PennyLane differentiates this layer and decides what is executed; use diff_method='parameter-shift'"
            )
        circuit = shifted_circuit(self.qnode, self._arguments(flat, weights))
        executor, tape = self.executor, circuit.tape
        forward, backward = circuit.job.cost(executor), _NOTHING
        own = own_derivatives(circuit, executor)
        if own is not None:
            forward = own.cost(executor)
        elif circuit.angles:
            known = Estimates(readout_of(tape, tape.shots), (), tape.shots)  # from the forward pass
            job = gradient_job(tape, shots=tape.shots, rule="shift", base=known)
            backward = job.cost(executor)
        metric = _NOTHING
        with contextlib.suppress(UnsupportedCircuitError):  # channels, of which there is none
            gates = layer_tape(self, flat)
            if gates.jacobian.size:
                metric = metric_job(gates, executor, approx, layers).cost(executor)
        return StepCost(forward, backward, metric)

    def _derivatives(self) -> str:
        source = derivatives_of(self.qnode)
        if source == "pennylane" or any(
            form.kind == "other" for forms in self._forms.values() for form in forms
        ):
            return "PennyLane differentiates it."
        if source == "shift":
            return "Its derivatives come from shifted circuits."
        return (
            "Its derivatives are the device's own, or come from shifted circuits where it has none."
        )

    def _run_on_device(self, form: Form, x: Tensor, weights: list[Tensor]) -> Any:
        arguments = self._arguments(x, weights)
        if form.kind != "other":
            try:
                circuit = shifted_circuit(self.qnode, arguments)
            except UnsupportedCircuitError:  # PennyLane may know how
                self._forms.replace(form, replace(form, kind="other"))
            else:
                self.shot_noise = circuit.noise
                values = run_shifted(circuit, self.executor).to(x)
                values = values.expand(*x.shape[:-1], -1) if x.ndim > 1 else values[0]
                return arranged(values, circuit.shapes, form.kind)
        self.shot_noise = None
        rows = 1 if x.ndim == 1 else len(x)
        shots = rows * (self.qnode.shots.total_shots or 0)
        self.executor.usage += Usage(1, 1, rows, shots)
        return self._evaluate(x, arguments)

    def _arguments(self, x: Tensor, weights: list[Tensor]) -> dict[str, Tensor]:
        # Copies, because NumPy arrays of a weight forbid its storage to be resized, as that of sharded parameters is.
        named = {n: w.to(x, copy=True) for n, w in zip(self.weight_shapes, weights, strict=True)}
        return named if self.input_arg is None else {self.input_arg: x, **named}

    def _evaluate(self, x: Tensor, arguments: dict[str, Tensor]) -> Any:
        # A class of a user's is called as it is: transforms make a QNode of PennyLane's own class of it.
        qnode = by_words(self.qnode) if type(self.qnode) is qml.QNode else self.qnode
        results = qnode(**arguments)
        if isinstance(results, Tensor):
            return results.to(x.dtype)
        check_results(results)

        def side_by_side(parts: Sequence[Tensor]) -> Tensor:
            columns = [part.reshape(x.shape[0], -1) for part in parts] if x.ndim > 1 else parts
            return torch.hstack(list(columns)).to(x.dtype)

        stacked = self.input_arg is not None and tuples_are_stacked()
        if isinstance(results, tuple) and len(results) > 1 and stacked:
            return tuple(side_by_side([r] if isinstance(r, Tensor) else r) for r in results)
        return side_by_side(results)
