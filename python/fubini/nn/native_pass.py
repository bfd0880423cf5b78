"""A layer's forward pass on the native engine: one crossing into the kernel per forward and one per backward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.tape import user_tape
from fubini.compile.compiled import Compiled
from fubini.native.circuit import Circuit, circuit_of
from fubini.native.reading import Reading, read
from fubini.nn.differentiable import Outputs, Sweeps, pullback, pullback_with_state, values
from fubini.nn.expval import expval
from fubini.torch_private import is_legacy_batched, is_node_of, is_plain, uncompiled

Tensor = torch.Tensor


def run_compiled(form: Compiled, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Evaluate a compiled circuit.

    Args:
        form: The compiled circuit.
        inputs: (B, d), any floating dtype and device.
        weights: In the order of compilation.

    Returns:
        Results side by side, (B, M), float64 on the CPU.
    """
    if not is_plain():  # torch.func or forward-mode AD, which autograd functions do not follow
        return _run_with_torch(form, inputs, weights)
    result: Tensor = _CompiledExpval.apply(form, inputs, *weights)  # type: ignore[no-untyped-call]
    return result


def run_traced(qnode: Any, arguments: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Circuit]:
    """Run the quantum function for its angles, and its gates natively.

    Args:
        qnode: The QNode.
        arguments: Exactly what TorchLayer passes, because the function may look at it.
        inputs: (d,) or (B, d), any floating dtype; (0,) without data.

    Returns:
        Results side by side, (M,) or (B, M), float64 on the CPU; and the circuit that ran.

    Raises:
        RuntimeError: If the quantum function needs values that torch.func does not reveal.
    """
    try:
        reading = read(user_tape(qnode, (), arguments, results=True), qnode.device)
    except RuntimeError as error:
        if is_plain():
            raise
        raise RuntimeError(
            "qnode: the quantum function, or an operation in it, asks for the values of its tensors, and torch.func "
            f"does not reveal them ({error}). AmplitudeEmbedding and StatePrep do so to check the norm; normalise "
            "with torch instead: qml.StatePrep(x / torch.linalg.norm(x, dim=-1, keepdim=True), wires, "
            "validate_norm=False)"
        ) from error
    return run_reading(reading, inputs)


def run_reading(reading: Reading, inputs: Tensor) -> tuple[Tensor, Circuit]:
    """Run the gates of a tape natively.

    Args:
        reading: Of the tape, with the graphs of its tensors.
        inputs: (d,) or (B, d), that the tape was made with.

    Returns:
        Results side by side, (M,) or (B, M), float64 on the CPU; and the circuit that ran.
    """
    circuit, angles, state = started(reading, inputs.shape[:-1])
    return expval(circuit, angles, state), circuit


def started(reading: Reading, batch: Sequence[int]) -> tuple[Circuit, Tensor, Tensor | None]:
    """Return the circuit of a tape, its angles (*batch, A), and its initial states as they are, float64 on the CPU."""
    angles = torch.as_tensor(reading.angles, dtype=torch.float64, device="cpu")
    # Where nothing but the initial state, or nothing at all, depends on the inputs.
    if batch and angles.ndim == 1:
        angles = angles.expand(*batch, -1)
    state = reading.state
    if state is not None:
        state = torch.as_tensor(state, dtype=torch.complex128, device="cpu")
    return circuit_of(reading.structure), angles, state


def _run_with_torch(form: Compiled, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same in torch operations around the differentiable ``expval``."""
    angles, state = _angles(form, _rows(inputs, weights))
    if state is not None and not (form.state_weighted or form.state_from_inputs):
        state = state.detach()
    return expval(form.circuit, angles, state)


def _rows(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Weights and features of every input side by side, (B, P + d)."""
    x = inputs.to("cpu", torch.float64)
    flat = [w.reshape(-1).to("cpu", torch.float64).expand(len(x), -1) for w in weights]
    return torch.cat([*flat, x], dim=-1)


def _angles(form: Compiled, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Angles (B, A) and initial states (B, N) or None."""
    if form.affine is not None:  # a product takes less time, also of its derivatives
        constant, slope = _matrices(form)
        return constant + rows @ slope.T, None
    found = values(Outputs(form.map), rows)
    size = form.circuit.num_angles
    if not form.circuit.takes_state:
        return found, None
    pairs = found[:, size:].reshape(len(rows), -1, 2)
    # A copy: a part of other memory need not lie where complex numbers may.
    return found[:, :size], torch.view_as_complex(
        pairs.clone(memory_format=torch.contiguous_format)
    )


def _matrices(form: Compiled) -> list[Tensor]:
    assert form.affine is not None
    slope = np.concatenate([form.affine.weights, form.affine.inputs], axis=1)
    return [torch.from_numpy(np.array(form.affine.constant)), torch.from_numpy(slope)]


class _CompiledExpval(torch.autograd.Function):
    """(inputs, weights) -> results, without a torch operation in between."""

    @staticmethod
    def forward(ctx: Any, form: Compiled, inputs: Tensor, *weights: Tensor) -> Tensor:
        needed = ctx.needs_input_grad
        values, passed = form.forward(
            [to_numpy(w) for w in weights], to_numpy(inputs), True in needed
        )
        if passed is not None:
            ctx.form, ctx.passed = form, passed
            ctx.save_for_backward(inputs, *weights)
        return torch.from_numpy(values)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, gradient: Tensor) -> Any:
        leaves = ctx.saved_tensors
        # create_graph=True: a derivative of this may be asked for.
        if torch.is_grad_enabled() or is_legacy_batched(gradient):
            return None, *_differentiable_gradient(ctx.form, leaves[0], leaves[1:], gradient)
        by_inputs, by_weights = ctx.form.backward(ctx.passed, to_numpy(gradient))
        needed = ctx.needs_input_grad
        found = [_like(value, leaf) for value, leaf in zip(by_weights, leaves[1:], strict=True)]
        return None, _like(by_inputs, leaves[0]) if needed[1] else None, *found


def compiled_call_of(node: Any) -> tuple[Compiled, Tensor, Sequence[Tensor]] | None:
    """Return the compiled circuit, the inputs and the weights of a call, by its node in torch's graph.

    Args:
        node: Of any operation, before its backward pass.

    Returns:
        None for another operation.
    """
    if not is_node_of(node, _CompiledExpval):
        return None
    inputs, *weights = node.saved_tensors
    return node.form, inputs, weights


def _like(values: Any, leaf: Tensor) -> Tensor:
    result = torch.from_numpy(values)
    return result if leaf.dtype == torch.float64 and leaf.is_cpu else result.to(leaf)


def _differentiable_gradient(
    form: Compiled, inputs: Tensor, weights: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """The gradients by inputs and weights, in torch operations."""
    rows = _rows(inputs, weights)
    angles, state = _angles(form, rows)
    sweeps = Sweeps(form.circuit)
    moves = form.state_weighted or (form.state_from_inputs and inputs.requires_grad)
    if state is not None and moves:
        by_angles, by_state = pullback_with_state(sweeps, angles, state, gradient)
        parts = [by_angles, torch.view_as_real(by_state).reshape(len(rows), -1)]
    else:  # second derivatives by angles are there as long as the state does not move
        still = None if state is None else state.detach()
        parts = [pullback(sweeps, angles, gradient, still)]
        if state is not None:
            parts.append(parts[0].new_zeros(len(rows), 2 * state.shape[-1]))
    if form.affine is not None:
        by_rows = parts[0] @ _matrices(form)[1]
    else:
        by_rows = pullback(Outputs(form.map), rows, torch.cat(parts, dim=-1))
    sizes = [w.numel() for w in weights]
    *by_weights, by_inputs = torch.split(by_rows, [*sizes, inputs.shape[-1]], dim=-1)
    return [
        by_inputs.to(inputs),
        *(part.sum(0).reshape(w.shape).to(w) for part, w in zip(by_weights, weights, strict=True)),
    ]
