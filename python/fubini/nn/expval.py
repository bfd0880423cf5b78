"""Expectation values of a compiled circuit as a torch function with exact first and second derivatives.

Three autograd functions call the native engine: the values (forward), their pullback (backward) and their pushforward
(forward mode). The pullback can be differentiated once more, because the engine has an exact Hessian product; third
derivatives are an error. Each function has its own vmap rule, which folds the mapped dimension into the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.native.circuit import Circuit
from fubini.torch_private import (
    batched,
    is_legacy_batched,
    is_plain,
    legacy_vmap_level,
    unbatched,
    uncompiled,
)

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
            plain: Tensor = _apply(_PlainValues, circuit, angles)
            return plain
        direct: Tensor = _apply(_Values, circuit, angles, None)
        return direct
    lead = angles.shape[:-1]
    flat = angles.reshape(lead.numel(), circuit.num_angles).to(device="cpu", dtype=torch.float64)
    initial = _initial_state(circuit, state, lead, len(flat))
    values: Tensor = _apply(_Values, circuit, flat, initial)
    return values.reshape(*lead, circuit.num_outputs).to(device=angles.device, dtype=angles.dtype)


def pullback(
    circuit: Circuit, angles: Tensor, cotangents: Tensor, state: Tensor | None = None
) -> Tensor:
    """Returns the gradient of weighted results by the angles, differentiably.

    Args:
        circuit: The circuit.
        angles: (B, A), float64 on the CPU.
        cotangents: The weights of the results, (B, M), float64 on the CPU.
        state: (B, N), complex128 on the CPU, for a circuit that takes an initial state.

    Returns:
        (B, A).
    """
    gradient: Tensor = _apply(_Pullback, circuit, angles, state, cotangents)
    return gradient


def pullback_with_state(
    circuit: Circuit, angles: Tensor, state: Tensor, cotangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of weighted results by the angles and by the initial states; first derivatives only.

    Args:
        circuit: The circuit.
        angles: (B, A), float64 on the CPU.
        state: (B, N), complex128 on the CPU.
        cotangents: The weights of the results, (B, M), float64 on the CPU.

    Returns:
        (B, A), and (B, N) with the derivatives by real and imaginary parts as its own.
    """
    by_angles, by_state = _apply(_PullbackWithState, circuit, angles, state, cotangents)
    return by_angles, by_state


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


def _apply(function: Any, circuit: Any, *values: Tensor | None) -> Any:
    """function.apply, which torch leaves untyped."""
    if any(value is not None and is_batched(value) for value in values):
        return _apply_batched(function, circuit, *values)
    return function.apply(circuit, *values)


@dataclass(frozen=True)
class _VmapInfo:
    batch_size: int


def _apply_batched(function: Any, circuit: Circuit, *values: Tensor | None) -> Any:
    """The same under ``is_grads_batched`` and ``vectorize``, whose vmap does not ask functions for their rule."""
    level = legacy_vmap_level()
    size = 0
    whole: list[Tensor | None] = []
    dims: list[int | None] = [None]
    for value in values:
        if value is not None and is_batched(value):
            value, dim = unbatched(value, level), 0
            size = len(value)
        else:
            dim = None
        whole.append(value)
        dims.append(dim)
    results, _ = function.vmap(_VmapInfo(size), tuple(dims), circuit, *whole)
    if isinstance(results, tuple):
        return tuple(batched(result, level) for result in results)
    return batched(results, level)


def is_batched(value: Tensor) -> bool:
    """Return whether ``is_grads_batched=True`` made the tensor, which only torch's own operations can look into."""
    return is_legacy_batched(value)


def _real(value: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return to_numpy(value)


def _complex(value: Tensor | None) -> np.ndarray[Any, np.dtype[np.complex128]] | None:
    return None if value is None else to_numpy(value, np.complex128)


def _fold(
    info: Any, in_dims: tuple[int | None, ...], *values: Tensor | None
) -> list[Tensor | None]:
    """Moves the mapped dimension into the batch; tensors that are not mapped are repeated."""
    folded: list[Tensor | None] = []
    for value, dim in zip(values, in_dims, strict=True):
        if value is None:
            folded.append(None)
            continue
        if dim is None:
            whole = value.expand(info.batch_size, *value.shape)
        else:
            whole = value.movedim(dim, 0)
        folded.append(whole.flatten(0, 1))
    return folded


def _folds_vmap(function: Any) -> Any:
    """Gives an autograd function the vmap rule of a batched function: the mapped dimension joins the batch."""

    def vmap(info: Any, in_dims: Any, circuit: Circuit, *values: Tensor | None) -> tuple[Any, Any]:
        def unfold(result: Tensor) -> Tensor:
            return result.view(info.batch_size, len(result) // info.batch_size, *result.shape[1:])

        results = _apply(function, circuit, *_fold(info, in_dims[1:], *values))
        if isinstance(results, tuple):
            return tuple(unfold(r) for r in results), (0,) * len(results)
        return unfold(results), 0

    function.vmap = staticmethod(vmap)
    function.generate_vmap_rule = False
    return function


class _PlainValues(torch.autograd.Function):
    """_Values for the usual training step: torch binds no signatures, and the backward pass is one call."""

    @staticmethod
    def forward(ctx: Any, circuit: Circuit, angles: Tensor) -> Tensor:
        ctx.circuit = circuit
        ctx.save_for_backward(angles)
        return torch.from_numpy(_core.expval(circuit.program, _real(angles), None))

    @staticmethod
    @uncompiled
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor]:
        (angles,) = ctx.saved_tensors
        if not torch.is_grad_enabled() and is_plain() and not is_batched(cotangents):
            values = _real(angles), _real(cotangents)
            _, gradient, _ = _core.vjp(ctx.circuit.program, *values, None)
            return None, torch.from_numpy(gradient)
        return None, _apply(_Pullback, ctx.circuit, angles, None, cotangents)


@_folds_vmap
class _Values(torch.autograd.Function):
    """(B, A), (B, N) or None -> (B, M)."""

    @staticmethod
    def forward(circuit: Circuit, angles: Tensor, state: Tensor | None) -> Tensor:
        return torch.from_numpy(_core.expval(circuit.program, _real(angles), _complex(state)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        circuit, angles, state = inputs
        ctx.circuit = circuit
        ctx.save_for_backward(angles, state)
        ctx.save_for_forward(angles, state)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        angles, state = ctx.saved_tensors
        if state is not None and ctx.needs_input_grad[2]:
            gradient, state_gradient = _apply(
                _PullbackWithState, ctx.circuit, angles, state, cotangents
            )
            return None, gradient, state_gradient
        return None, _apply(_Pullback, ctx.circuit, angles, state, cotangents), None

    @staticmethod
    def jvp(
        ctx: Any, _circuit: None, tangents: Tensor | None, state_tangents: Tensor | None
    ) -> Tensor:
        angles, state = ctx.saved_tensors
        if tangents is None:
            tangents = torch.zeros_like(angles)
        pushed: Tensor = _apply(_Pushforward, ctx.circuit, angles, state, tangents, state_tangents)
        return pushed


@_folds_vmap
class _Pullback(torch.autograd.Function):
    """(B, A), state, cotangents (B, M) -> gradient (B, A)."""

    @staticmethod
    def forward(
        circuit: Circuit, angles: Tensor, state: Tensor | None, cotangents: Tensor
    ) -> Tensor:
        _, gradient, _ = _core.vjp(
            circuit.program, _real(angles), _real(cotangents), _complex(state)
        )
        return torch.from_numpy(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        circuit, angles, state, cotangents = inputs
        ctx.circuit = circuit
        ctx.save_for_backward(angles, state, cotangents)
        ctx.save_for_forward(angles, state, cotangents)

    @staticmethod
    def backward(ctx: Any, vectors: Tensor) -> tuple[None, Tensor | None, None, Tensor | None]:
        angles, state, cotangents = ctx.saved_tensors
        _refuse_second_state_derivative(ctx.needs_input_grad[2])
        by_angles = by_cotangents = None
        if ctx.needs_input_grad[1]:  # the Hessian is symmetric
            by_angles = _apply(_HessianProduct, ctx.circuit, angles, state, cotangents, vectors)
        if ctx.needs_input_grad[3]:
            by_cotangents = _apply(_Pushforward, ctx.circuit, angles, state, vectors, None)
        return None, by_angles, None, by_cotangents

    @staticmethod
    def jvp(
        ctx: Any,
        _circuit: None,
        tangents: Tensor | None,
        state_tangents: Tensor | None,
        cotangent_tangents: Tensor | None,
    ) -> Tensor:
        angles, state, cotangents = ctx.saved_tensors
        _refuse_second_state_derivative(state_tangents is not None)
        result: Tensor = torch.zeros_like(angles)
        if tangents is not None:
            result = result + _apply(
                _HessianProduct, ctx.circuit, angles, state, cotangents, tangents
            )
        if cotangent_tangents is not None:
            result = result + _apply(_Pullback, ctx.circuit, angles, state, cotangent_tangents)
        return result


@_folds_vmap
class _PullbackWithState(torch.autograd.Function):
    """The pullback to angles and initial state; first derivatives only."""

    @staticmethod
    def forward(
        circuit: Circuit, angles: Tensor, state: Tensor, cotangents: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, gradient, state_gradient = _core.vjp(
            circuit.program, _real(angles), _real(cotangents), _complex(state), True
        )
        return torch.from_numpy(gradient), torch.from_numpy(state_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> Any:
        _refuse_second_state_derivative(True)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        _refuse_second_state_derivative(True)


@_folds_vmap
class _Pushforward(torch.autograd.Function):
    """(B, A), state, tangents (B, A), state tangents -> (B, M); linear in the tangents."""

    @staticmethod
    def forward(
        circuit: Circuit,
        angles: Tensor,
        state: Tensor | None,
        tangents: Tensor,
        state_tangents: Tensor | None,
    ) -> Tensor:
        return torch.from_numpy(
            _core.jvp(
                circuit.program,
                _real(angles),
                _real(tangents),
                _complex(state),
                _complex(state_tangents),
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        circuit, angles, state, tangents, state_tangents = inputs
        ctx.circuit = circuit
        ctx.with_state = state_tangents is not None
        ctx.save_for_backward(angles, state, tangents)
        ctx.save_for_forward(angles, state, tangents)

    @staticmethod
    def backward(
        ctx: Any, cotangents: Tensor
    ) -> tuple[None, Tensor | None, None, Tensor | None, None]:
        angles, state, tangents = ctx.saved_tensors
        _refuse_second_state_derivative(ctx.with_state or ctx.needs_input_grad[2])
        by_angles = by_tangents = None
        if ctx.needs_input_grad[1]:
            by_angles = _apply(_HessianProduct, ctx.circuit, angles, state, cotangents, tangents)
        if ctx.needs_input_grad[3]:
            by_tangents = _apply(_Pullback, ctx.circuit, angles, state, cotangents)
        return None, by_angles, None, by_tangents, None

    @staticmethod
    def jvp(
        ctx: Any,
        _circuit: None,
        directions: Tensor | None,
        state_directions: Tensor | None,
        tangent_directions: Tensor | None,
        state_tangent_directions: Tensor | None,
    ) -> Tensor:
        angles, state, tangents = ctx.saved_tensors
        _refuse_second_state_derivative(
            ctx.with_state or state_directions is not None or state_tangent_directions is not None
        )
        columns = ctx.circuit.num_outputs
        result: Tensor = angles.new_zeros(len(angles), columns)
        if tangent_directions is not None:
            result = result + _apply(
                _Pushforward, ctx.circuit, angles, state, tangent_directions, None
            )
        if directions is not None:
            # d^2 f[direction, tangent], one output at a time: (Hessian of output m times direction) . tangent.
            for m in range(columns):
                pick = angles.new_zeros(len(angles), columns)
                pick[:, m] = 1.0
                product = _apply(_HessianProduct, ctx.circuit, angles, state, pick, directions)
                result = result + (product * tangents).sum(-1, keepdim=True) * pick
        return result


@_folds_vmap
class _HessianProduct(torch.autograd.Function):
    """(B, A), state, cotangents (B, M), vectors (B, A) -> (B, A); the end of the line."""

    @staticmethod
    def forward(
        circuit: Circuit,
        angles: Tensor,
        state: Tensor | None,
        cotangents: Tensor,
        vectors: Tensor,
    ) -> Tensor:
        return torch.from_numpy(
            _core.hessian_product(
                circuit.program, _real(angles), _real(cotangents), _real(vectors), _complex(state)
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> Any:
        _refuse_third_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        _refuse_third_derivative()


def _refuse_second_state_derivative(wanted: bool) -> None:
    if wanted:
        raise NotImplementedError(
            "fubini: second derivatives that involve the initial state (StatePrep, AmplitudeEmbedding) are not "
            "available. Detach the amplitudes, or use QuantumLayer(..., engine='device') on default.qubit with "
            "diff_method='backprop'."
        )


def _refuse_third_derivative() -> None:
    raise NotImplementedError(
        "fubini: third derivatives of a circuit are not available. Use QuantumLayer(..., engine='device') on "
        "default.qubit with diff_method='backprop'."
    )
