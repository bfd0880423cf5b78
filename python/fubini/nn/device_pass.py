"""A layer on a PennyLane device whose derivatives are fubini's own: shots, noise, hardware, and lightning.qubit.

PennyLane returns the results of torch QNodes on lightning.qubit in torch's default dtype, rounded to 1e-8, because the
device gives Python's floats; here they stay float64.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.angles import angle_tape
from fubini.circuit.observables import Mixture, split
from fubini.circuit.tape import GateTape
from fubini.devices.amplitudes import amplitude_job
from fubini.devices.executor import STATE_VECTORS, Executor
from fubini.devices.gradient import Gradient
from fubini.devices.job import Job
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.shifts import gradient_job, values_job
from fubini.nn.shot_noise import Contribution, ShotNoise
from fubini.torch_private import current_backward, is_legacy_batched, uncompiled

Tensor = torch.Tensor

# Simulators that PennyLane differentiates by backpropagation, for less than two executions of the circuit.
_BACKPROPAGATING = {"default.qubit", "default.mixed"}
_LIGHTNING = {name for name in STATE_VECTORS if name.startswith("lightning.")}


def derivatives_of(qnode: Any) -> Literal["pennylane", "shift", "device"]:
    """Say where a QNode's derivatives come from.

    Returns:
        ``"shift"``: shifted circuits, for ``diff_method="parameter-shift"``, and for ``"best"`` with shots;
        ``"device"``: the device's own adjoint method where it has one for the circuit, otherwise shifted circuits, for
        ``"best"`` on devices that PennyLane does not backpropagate through and ``"adjoint"`` on lightning simulators;
        ``"pennylane"``: else, also where the user gave the rule's arguments to PennyLane, or several numbers of shots.
    """
    if qnode.shots.has_partitioned_shots or set(qnode.gradient_kwargs) - {"broadcast"}:
        return "pennylane"
    name, method = qnode.device.name, qnode.diff_method
    if method == "parameter-shift" or (method == "best" and qnode.shots.total_shots):
        return "shift"
    if method == "best":
        return "pennylane" if name in _BACKPROPAGATING else "device"
    return "device" if method == "adjoint" and name in _LIGHTNING else "pennylane"


@dataclass(frozen=True)
class ShiftedCircuit:
    """A circuit with its angles in the graph.

    Attributes:
        tape: Its gates.
        angles: What is differentiated, each () or (batch,).
        own: Whether the device's own derivatives will do.
        job: Runs the circuit itself.
        noise: Receives what backward passes measure, if somebody wants it.
        shapes: Shape of every measurement.
        mixture: How the results follow from what the tape measures, where an observable's coefficients are computed.
        state: Amplitudes of the initial state, (..., 2^k), where they are differentiated.
    """

    tape: GateTape
    angles: list[Tensor]
    own: bool
    job: Job[Estimates]
    shapes: tuple[tuple[int, ...], ...]
    noise: ShotNoise = field(default_factory=ShotNoise)
    mixture: Mixture | None = None
    state: Tensor | None = None


def shifted_circuit(qnode: Any, arguments: dict[str, Tensor]) -> ShiftedCircuit:
    """Run a quantum function for its gates and angles; nothing is executed."""
    tape, angles, state = angle_tape(qnode, arguments)
    by_words = split(tape.measurements, tape.shots)
    mixture = None
    if by_words is not None:
        measurements, mixture = by_words
        tape = replace(tape, measurements=tuple(measurements))
    readout = readout_of(tape, tape.shots)  # refuses what has no rule
    shapes = readout.shapes if mixture is None else mixture.shapes
    own = derivatives_of(qnode) == "device"
    job = values_job(tape, shots=tape.shots)
    return ShiftedCircuit(tape, angles, own, job, shapes, mixture=mixture, state=state)


def own_derivatives(circuit: ShiftedCircuit, executor: Executor) -> Job[Gradient] | None:
    """Return the job that gives results and derivatives at once, where the device has it.

    Returns:
        The job, or None where derivatives come from shifted circuits.
    """
    tape = circuit.tape
    if not circuit.angles or not circuit.own or tape.shots is not None:
        return None
    job = gradient_job(tape, rule="adjoint", values=True)
    return None if executor.broadcasts or not executor.differentiates(job.sweeps[0]) else job


def run_shifted(circuit: ShiftedCircuit, executor: Executor) -> Tensor:
    """Evaluate a circuit; a backward pass runs all shifts of all inputs as one execution.

    Where the device has derivatives of its own, they come with the results.

    Returns:
        Results side by side, (1 or batch, M), float64 on the CPU.
    """
    result: Tensor
    moves = bool(circuit.angles) or circuit.state is not None
    if not moves or not torch.is_grad_enabled():
        result = torch.from_numpy(circuit.job.run(executor).results)
    else:
        result = _Shifted.apply(circuit, executor, circuit.state, *circuit.angles)  # type: ignore[no-untyped-call]
    return result if circuit.mixture is None else circuit.mixture(result)


class _Shifted(torch.autograd.Function):
    """Initial amplitudes and angles, each () or (B,) -> results (B, M)."""

    @staticmethod
    def forward(
        ctx: Any, circuit: ShiftedCircuit, executor: Executor, state: Tensor | None, *angles: Tensor
    ) -> Tensor:
        own = own_derivatives(circuit, executor)
        ctx.circuit, ctx.executor = circuit, executor
        ctx.save_for_backward(state, *angles)
        if own is not None:
            ctx.measured = own.run(executor)
            return torch.from_numpy(ctx.measured.values)
        ctx.measured, ctx.seen = None, circuit.job.run(executor)
        return torch.from_numpy(ctx.seen.results)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        if is_legacy_batched(cotangents):
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
        tape, noise, measured = ctx.circuit.tape, ctx.circuit.noise, ctx.measured
        if measured is None:
            job = gradient_job(tape, shots=tape.shots, angles=needed, rule="shift", base=ctx.seen)
            measured = job.run(ctx.executor)
        weights = to_numpy(cotangents)
        if noise.wanted and tape.shots is not None:
            number = current_backward()
            noise.contributions.append(Contribution(tape, measured, weights, number))
        gradient = np.einsum("bm,bma->ba", weights, measured.jacobian)
        by_state = None
        if ctx.needs_input_grad[2]:
            by_state = _by_state(ctx, ctx.saved_tensors[0], measured.slopes, weights)
        found: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 3)
        for k in needed:
            angle = ctx.saved_tensors[k + 1]
            column = torch.from_numpy(np.ascontiguousarray(gradient[:, k]))
            found[k] = (column if angle.ndim else column.sum()).to(angle)
        return None, None, by_state, *found


def _by_state(ctx: Any, state: Tensor, slopes: Any, weights: Any) -> Tensor:
    real = not state.is_complex()
    by_features = amplitude_job(ctx.circuit.tape, real).run(ctx.executor)
    gradient = np.einsum("bm,bmf,bfk->bk", weights, slopes, by_features)
    if not real:
        half = gradient.shape[1] // 2
        gradient = gradient[:, :half] + 1j * gradient[:, half:]
    result = torch.from_numpy(np.ascontiguousarray(gradient))
    return (result if state.ndim > 1 else result.sum(0)).reshape(state.shape).to(state)
