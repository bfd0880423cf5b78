"""A layer on a PennyLane device whose derivatives come from shifted circuits: shots, noise, hardware."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini._arrays import to_numpy
from fubini.devices.executor import Executor
from fubini.devices.job import Job
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.shifts import gradient_job, values_job
from fubini.tape import GateTape, angle_tape
from fubini.torch.function import is_batched

Tensor = torch.Tensor

# Simulators that PennyLane differentiates without shifts, by backpropagation or adjoint sweeps, for less than two
# executions of the circuit.
_DIFFERENTIABLE = {
    "default.qubit", "default.mixed", "reference.qubit", "lightning.qubit", "lightning.kokkos", "lightning.gpu",
}  # fmt: skip


def wants_shifts(qnode: Any) -> bool:
    """Say whether a QNode's derivatives are those of the parameter-shift rule.

    Args:
        qnode: The QNode.

    Returns:
        True for ``diff_method="parameter-shift"``, and for ``"best"`` with shots or on a device that is no simulator;
        False also where the user gave the rule's arguments to PennyLane, or several numbers of shots.
    """
    if qnode.shots.has_partitioned_shots or set(qnode.gradient_kwargs) - {"broadcast"}:
        return False
    if qnode.diff_method == "best":
        return qnode.device.name not in _DIFFERENTIABLE or bool(qnode.shots.total_shots)
    return bool(qnode.diff_method == "parameter-shift")


@dataclass(frozen=True)
class ShiftedCircuit:
    """A circuit with its angles in the graph.

    Attributes:
        tape: Its gates.
        angles: What is differentiated, each () or (batch,).
        job: Runs the circuit itself.
        shapes: Shape of every measurement.
    """

    tape: GateTape
    angles: list[Tensor]
    job: Job[Estimates]
    shapes: tuple[tuple[int, ...], ...]


def shifted_circuit(qnode: Any, arguments: dict[str, Tensor]) -> ShiftedCircuit:
    """Run a quantum function for its gates and angles; nothing is executed.

    Args:
        qnode: The QNode.
        arguments: Its arguments.

    Returns:
        The circuit.
    """
    tape, angles = angle_tape(qnode, arguments)
    readout = readout_of(tape, tape.shots)  # refuses what has no rule
    return ShiftedCircuit(tape, angles, values_job(tape, shots=tape.shots), readout.shapes)


def run_shifted(circuit: ShiftedCircuit, executor: Executor) -> Tensor:
    """Evaluate a circuit; a backward pass runs all shifts of all inputs as one execution.

    Args:
        circuit: The circuit.
        executor: Of its device.

    Returns:
        Results side by side, (1 or batch, M), float64 on the CPU.
    """
    if not circuit.angles or not torch.is_grad_enabled():
        return torch.from_numpy(_results(circuit.job.run(executor)))
    result: Tensor = _Shifted.apply(circuit.tape, circuit.job, executor, *circuit.angles)  # type: ignore[no-untyped-call]
    return result


def _results(seen: Estimates) -> Any:
    readout = seen.readout
    noise = None if seen.shots is None else seen.variance(np.eye(len(readout.constant)))
    return readout.results(seen.features, noise)


class _Shifted(torch.autograd.Function):
    """Angles, each () or (B,) -> results (B, M)."""

    @staticmethod
    def forward(ctx: Any, tape: GateTape, job: Any, executor: Executor, *angles: Tensor) -> Tensor:
        seen = job.run(executor)
        ctx.tape, ctx.executor, ctx.seen = tape, executor, seen
        ctx.save_for_backward(*angles)
        return torch.from_numpy(_results(seen))

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        if is_batched(cotangents):
            raise NotImplementedError(
                "is_grads_batched, vectorize: expected False for a circuit that runs on a PennyLane device, got True; "
                "ask for one gradient at a time"
            )
        if torch.is_grad_enabled():  # create_graph=True: the result would silently be a constant
            raise NotImplementedError(
                "fubini: second derivatives of a layer that is differentiated by shifted circuits are not available "
                "to torch. Use fubini.devices.hessian.hessian_job, or default.qubit with diff_method='backprop'."
            )
        needed = [k for k, wanted in enumerate(ctx.needs_input_grad[3:]) if wanted]
        tape = ctx.tape
        job = gradient_job(tape, shots=tape.shots, angles=needed, base=ctx.seen)
        jacobian = job.run(ctx.executor).jacobian
        gradient = np.einsum("bm,bma->ba", to_numpy(cotangents), jacobian)
        found: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 3)
        for k in needed:
            angle = ctx.saved_tensors[k]
            column = torch.from_numpy(np.ascontiguousarray(gradient[:, k]))
            found[k] = (column if angle.ndim else column.sum()).to(angle)
        return None, None, None, *found
