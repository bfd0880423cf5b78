"""Expectation values of a compiled circuit as a torch function with exact first and second derivatives."""

from typing import Any

import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.native.circuit import Circuit
from fubini.nn.differentiable import Sweeps, pullback, values
from fubini.torch_private import is_legacy_batched, is_plain, uncompiled

Tensor = torch.Tensor


def expval(circuit: Circuit, angles: Tensor, state: Tensor | None = None) -> Tensor:
    """Evaluates a circuit's measurements, differentiably.

    Reverse mode, forward mode, ``torch.func`` (jvp, vjp, jacrev, jacfwd, hessian, vmap) and double backward work;
    the numbers are computed in float64 whatever the dtype of the angles.

    Args:
        circuit: The circuit.
        angles: Radians, shape (..., A); any floating dtype, on any device.
        state: Initial states, shape (..., N) like the angles or (N,), for a circuit that takes them.

    Returns:
        Results, shape (..., M), in the dtype and on the device of the angles.

    Raises:
        ValueError: For a wrong shape, or a circuit that measures nothing but the state.
    """
    if angles.shape[-1:] != (circuit.num_angles,):
        raise ValueError(
            f"angles: expected shape (..., A) = (..., {circuit.num_angles}), got {tuple(angles.shape)}"
        )
    if circuit.num_outputs == 0:
        raise ValueError(
            "circuit: it measures no real quantity (expval, var, probs). Use circuit.state(angles)."
        )
    ready = angles.ndim == 2 and angles.dtype == torch.float64 and angles.is_cpu
    if ready and state is None and not circuit.takes_state:  # the usual call of a layer
        if is_plain():
            plain: Tensor = _PlainValues.apply(circuit, angles)  # type: ignore[no-untyped-call]
            return plain
        return values(Sweeps(circuit), angles)
    lead = angles.shape[:-1]
    flat = angles.reshape(lead.numel(), circuit.num_angles).to(device="cpu", dtype=torch.float64)
    initial = _initial_state(circuit, state, lead, len(flat))
    found = values(Sweeps(circuit), flat, initial)
    return found.reshape(*lead, circuit.num_outputs).to(device=angles.device, dtype=angles.dtype)


def _initial_state(
    circuit: Circuit, state: Tensor | None, lead: torch.Size, batch: int
) -> Tensor | None:
    size = 2**circuit.num_wires
    if not circuit.takes_state:
        if state is not None:
            raise ValueError("state: this circuit starts from |0...0>; expected None")
        return None
    if state is None or state.shape not in {(size,), (*lead, size)}:
        got = None if state is None else tuple(state.shape)
        raise ValueError(
            f"state: expected shape (..., N) = {(*lead, size)} or ({size},), got {got}. "
            "circuit.state_of(tape) collects it."
        )
    converted = state.to(device="cpu", dtype=torch.complex128)
    return converted.expand(*lead, size).reshape(batch, size)


class _PlainValues(torch.autograd.Function):
    """Values for the usual training step: torch binds no signatures, and the backward pass is one call."""

    @staticmethod
    def forward(ctx: Any, circuit: Circuit, angles: Tensor) -> Tensor:
        ctx.circuit = circuit
        ctx.save_for_backward(angles)
        return torch.from_numpy(_core.expval(circuit.program, to_numpy(angles), None))

    @staticmethod
    @uncompiled
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor]:
        (angles,) = ctx.saved_tensors
        if not torch.is_grad_enabled() and is_plain() and not is_legacy_batched(cotangents):
            numbers = to_numpy(angles), to_numpy(cotangents)
            _, gradient, _ = _core.vjp(ctx.circuit.program, *numbers, None)
            return None, torch.from_numpy(gradient)
        return None, pullback(Sweeps(ctx.circuit), angles, cotangents)
