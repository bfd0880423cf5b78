"""A layer's forward pass on the native engine: one crossing into the kernel per forward and one per backward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fubini._arrays import to_numpy
from fubini.circuit import Circuit, _measured_wires, decomposed
from fubini.compiled import Affine
from fubini.recent import Recent
from fubini.tape import user_tape
from fubini.torch.function import expval, is_batched, pullback
from fubini.torch_private import is_plain, uncompiled

Tensor = torch.Tensor


def run_affine(form: Affine, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
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
    result: Tensor = _AffineExpval.apply(form, inputs, *weights)  # type: ignore[no-untyped-call]
    return result


def run_traced(
    qnode: Any,
    input_arg: str,
    inputs: Tensor,
    weights: dict[str, Tensor],
    cache: Recent[Circuit],
) -> tuple[Tensor, Circuit]:
    """Run the quantum function for its angles, and its gates natively.

    Args:
        qnode: The QNode.
        input_arg: Name of the data argument.
        inputs: (d,) or (B, d), any floating dtype.
        weights: The weights by name.
        cache: Circuits that ran before.

    Returns:
        Results side by side, (M,) or (B, M), float64 on the CPU; and the circuit that ran.

    Raises:
        RuntimeError: If the quantum function needs values that torch.func does not reveal.
    """
    # Exactly what TorchLayer passes, because the function may look at it.
    arguments = {input_arg: inputs, **{name: w.to(inputs) for name, w in weights.items()}}
    try:
        tape = decomposed(user_tape(qnode, (), arguments))
    except RuntimeError as error:
        if is_plain():
            raise
        raise RuntimeError(
            "qnode: the quantum function, or an operation in it, asks for the values of its tensors, and torch.func "
            f"does not reveal them ({error}). AmplitudeEmbedding and StatePrep do so to check the norm; normalise "
            "with torch instead: qml.StatePrep(x / torch.linalg.norm(x, dim=-1, keepdim=True), wires, "
            "validate_norm=False)"
        ) from error
    compiled = Circuit.from_tape(tape, _measured_wires(qnode, tape))
    circuit = cache.same(compiled)
    angles = torch.as_tensor(circuit.angles_of(tape), dtype=torch.float64, device="cpu")
    state = circuit.state_of(tape)
    if state is not None:
        state = torch.as_tensor(state, dtype=torch.complex128, device="cpu")
    batch = inputs.shape[:-1]
    if (
        batch and angles.ndim == 1
    ):  # nothing but the initial state, or nothing at all, depends on the inputs
        angles = angles.expand(*batch, -1)
    return expval(circuit, angles, state), circuit


def _run_with_torch(form: Affine, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same in torch operations around the differentiable ``expval``."""
    return expval(form.circuit, _angles(form, inputs, weights))


def _angles(form: Affine, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    flat = [w.reshape(-1).to("cpu", torch.float64) for w in weights]
    joined = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)
    constant, by_weights, by_inputs = _matrices(form)
    return constant + by_weights @ joined + inputs.to("cpu", torch.float64) @ by_inputs.T


def _matrices(form: Affine) -> list[Tensor]:
    return [torch.from_numpy(np.array(m)) for m in (form.constant, form.weights, form.inputs)]


class _AffineExpval(torch.autograd.Function):
    """(inputs, weights) -> results, without a torch operation in between."""

    @staticmethod
    def forward(ctx: Any, form: Affine, inputs: Tensor, *weights: Tensor) -> Tensor:
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
        if torch.is_grad_enabled() or is_batched(gradient):
            return None, *_differentiable_gradient(ctx.form, leaves[0], leaves[1:], gradient)
        by_inputs, by_weights = ctx.form.backward(ctx.passed, to_numpy(gradient))
        needed = ctx.needs_input_grad
        found = [_like(value, leaf) for value, leaf in zip(by_weights, leaves[1:], strict=True)]
        return None, _like(by_inputs, leaves[0]) if needed[1] else None, *found


def _like(values: Any, leaf: Tensor) -> Tensor:
    result = torch.from_numpy(values)
    return result if leaf.dtype == torch.float64 and leaf.is_cpu else result.to(leaf)


def _differentiable_gradient(
    form: Affine, inputs: Tensor, weights: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """The gradients by inputs and weights, in torch operations."""
    by_angles = pullback(form.circuit, _angles(form, inputs, weights), gradient)
    _, by_weights, by_inputs = _matrices(form)
    sizes = [w.numel() for w in weights]
    parts = torch.split(by_angles.sum(0) @ by_weights, sizes) if sizes else ()
    return [
        (by_angles @ by_inputs).to(inputs),
        *(part.reshape(w.shape).to(w) for part, w in zip(parts, weights, strict=True)),
    ]
