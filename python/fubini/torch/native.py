"""A layer's forward pass on the native engine: one crossing into the kernel per forward and one per backward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini._arrays import to_numpy
from fubini.circuit import Circuit, _measured_wires, decomposed
from fubini.compiled import Affine
from fubini.tape import user_tape
from fubini.torch.function import expval

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
    if _transformed(inputs, weights):
        return _run_with_torch(form, inputs, weights)
    result: Tensor = _AffineExpval.apply(form, inputs, *weights)  # type: ignore[no-untyped-call]
    return result


def run_traced(
    qnode: Any,
    input_arg: str,
    inputs: Tensor,
    weights: dict[str, Tensor],
    cache: dict[Any, Circuit],
) -> tuple[Tensor, Circuit]:
    """Run the quantum function for its angles, and its gates natively.

    Args:
        qnode: The QNode.
        input_arg: Name of the data argument.
        inputs: (d,) or (B, d), any floating dtype.
        weights: The weights by name.
        cache: Circuits by structure; filled here.

    Returns:
        Results side by side, (M,) or (B, M), float64 on the CPU; and the circuit that ran.
    """
    # Exactly what TorchLayer passes, because the function may look at it.
    arguments = {input_arg: inputs, **{name: w.to(inputs) for name, w in weights.items()}}
    tape = decomposed(user_tape(qnode, (), arguments))
    compiled = Circuit.from_tape(tape, _measured_wires(qnode, tape))
    circuit = cache.setdefault(compiled, compiled)
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


def _transformed(inputs: Tensor, weights: Sequence[Tensor]) -> bool:
    """Inside torch.func or forward-mode AD, where plain autograd functions do not reach."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return wrapped(inputs) or any(wrapped(w) for w in weights)


def _run_with_torch(form: Affine, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same in torch operations around the differentiable ``expval``."""
    flat = (
        torch.cat([w.reshape(-1).to("cpu", torch.float64) for w in weights])
        if weights
        else torch.zeros(0).double()
    )
    constant, by_weights, by_inputs = (
        torch.from_numpy(np.array(m)) for m in (form.constant, form.weights, form.inputs)
    )
    angles = constant + by_weights @ flat + inputs.to("cpu", torch.float64) @ by_inputs.T
    return expval(form.circuit, angles)


class _AffineExpval(torch.autograd.Function):
    """(inputs, weights) -> results, without a torch operation in between."""

    @staticmethod
    def forward(ctx: Any, form: Affine, inputs: Tensor, *weights: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(inputs, *weights)
        flat = _flat(weights)
        ctx.angles = form.angles(flat, to_numpy(inputs))
        return torch.from_numpy(_core.expval(form.circuit.program, ctx.angles, None))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs, *weights = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: derivatives of this derivative may be asked for
            return None, *_differentiable_gradient(ctx.form, inputs, weights, gradient)
        _, by_angles, _ = _core.vjp(ctx.form.circuit.program, ctx.angles, to_numpy(gradient), None)
        by_weights, by_inputs = ctx.form.pull_back(by_angles)
        pieces = (
            np.split(by_weights, np.cumsum([w.numel() for w in weights])[:-1]) if weights else []
        )
        return (
            None,
            torch.from_numpy(by_inputs).to(inputs) if ctx.needs_input_grad[1] else None,
            *(
                torch.from_numpy(p).reshape(w.shape).to(w)
                for p, w in zip(pieces, weights, strict=True)
            ),
        )


def _flat(weights: Sequence[Tensor]) -> Any:
    parts = [to_numpy(w).reshape(-1) for w in weights]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0)


def _differentiable_gradient(
    form: Affine, inputs: Tensor, weights: list[Tensor], gradient: Tensor
) -> Any:
    leaves = [inputs, *weights]
    chosen = [leaf for leaf in leaves if leaf.requires_grad]
    output = _run_with_torch(form, inputs, weights)
    found = iter(
        torch.autograd.grad(output, chosen, gradient, create_graph=True, allow_unused=True)
    )
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
