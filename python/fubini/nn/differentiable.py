"""What the kernel computes from rows of numbers, as torch functions with exact first and second derivatives.

Values (forward), their pullback (backward) and their pushforward (forward mode) are autograd functions of their own. The
pullback can be differentiated once more, because the kernel has exact Hessian products; third derivatives are an error.
Each function has its own vmap rule, which folds the mapped dimension into the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.nn.kernels import Amplitudes, Kernel, Sweeps
from fubini.torch_private import batched, is_legacy_batched, legacy_vmap_level, unbatched

Tensor = torch.Tensor


def values(kernel: Kernel, rows: Tensor, state: Tensor | None = None) -> Tensor:
    """Return the kernel's results, (B, M), differentiably, for float64 rows (B, L) and complex128 states (B, N) on the CPU."""
    found: Tensor = _apply(_Values, kernel, rows, state)
    return found


def pullback(
    kernel: Kernel, rows: Tensor, cotangents: Tensor, state: Tensor | None = None
) -> Tensor:
    """Return the gradient by rows, (B, L), of the results weighted by cotangents (B, M), differentiably."""
    found: Tensor = _apply(_Pullback, kernel, rows, state, cotangents)
    return found


def pullback_with_state(
    kernel: Sweeps, angles: Tensor, state: Tensor, cotangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by angles (B, A) and by the parts of initial states (B, N); first derivatives only."""
    by_angles, by_state = _apply(_PullbackWithState, kernel, angles, state, cotangents)
    return by_angles, by_state


def _apply(function: Any, kernel: Any, *values: Tensor | None) -> Any:
    """function.apply, which torch leaves untyped."""
    if any(value is not None and is_legacy_batched(value) for value in values):
        return _apply_batched(function, kernel, *values)
    return function.apply(kernel, *values)


@dataclass(frozen=True)
class _VmapInfo:
    batch_size: int


def _apply_batched(function: Any, kernel: Any, *values: Tensor | None) -> Any:
    """The same under ``is_grads_batched`` and ``vectorize``, whose vmap does not ask functions for their rule."""
    level = legacy_vmap_level()
    size = 0
    whole: list[Tensor | None] = []
    dims: list[int | None] = [None]
    for value in values:
        if value is not None and is_legacy_batched(value):
            value, dim = unbatched(value, level), 0
            size = len(value)
        else:
            dim = None
        whole.append(value)
        dims.append(dim)
    results, _ = function.vmap(_VmapInfo(size), tuple(dims), kernel, *whole)
    if isinstance(results, tuple):
        return tuple(batched(result, level) for result in results)
    return batched(results, level)


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

    def vmap(info: Any, in_dims: Any, kernel: Any, *values: Tensor | None) -> tuple[Any, Any]:
        def unfold(result: Tensor) -> Tensor:
            return result.view(info.batch_size, len(result) // info.batch_size, *result.shape[1:])

        results = _apply(function, kernel, *_fold(info, in_dims[1:], *values))
        if isinstance(results, tuple):
            return tuple(unfold(r) for r in results), (0,) * len(results)
        return unfold(results), 0

    function.vmap = staticmethod(vmap)
    function.generate_vmap_rule = False
    return function


def _complex(value: Tensor | None) -> Amplitudes:
    """Amplitudes as the kernel takes them."""
    return None if value is None else to_numpy(value, np.complex128)


class _Function(torch.autograd.Function):
    """A function of the kernel and tensors, all of which its derivatives need."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernel, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


@_folds_vmap
class _Values(_Function):
    """Rows (B, L), state -> (B, M)."""

    @staticmethod
    def forward(kernel: Kernel, rows: Tensor, state: Tensor | None) -> Tensor:
        return torch.from_numpy(kernel.values(to_numpy(rows), _complex(state)))

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        rows, state = ctx.saved_tensors
        if state is not None and ctx.needs_input_grad[2]:
            both = _apply(_PullbackWithState, ctx.kernel, rows, state, cotangents)
            return None, both[0], both[1]
        return None, _apply(_Pullback, ctx.kernel, rows, state, cotangents), None

    @staticmethod
    def jvp(
        ctx: Any, _kernel: None, tangents: Tensor | None, state_tangents: Tensor | None
    ) -> Tensor:
        rows, state = ctx.saved_tensors
        if tangents is None:
            tangents = torch.zeros_like(rows)
        pushed: Tensor = _apply(_Pushforward, ctx.kernel, rows, state, tangents, state_tangents)
        return pushed


@_folds_vmap
class _Pullback(_Function):
    """Rows (B, L), state, cotangents (B, M) -> gradient (B, L)."""

    @staticmethod
    def forward(kernel: Kernel, rows: Tensor, state: Tensor | None, cotangents: Tensor) -> Tensor:
        found = kernel.vjp(to_numpy(rows), _complex(state), to_numpy(cotangents))
        return torch.from_numpy(found)

    @staticmethod
    def backward(ctx: Any, vectors: Tensor) -> tuple[None, Tensor | None, None, Tensor | None]:
        rows, state, cotangents = ctx.saved_tensors
        _refuse_second_state_derivative(ctx.needs_input_grad[2])
        by_rows = by_cotangents = None
        if ctx.needs_input_grad[1]:  # the Hessian is symmetric
            by_rows = _apply(_HessianProduct, ctx.kernel, rows, state, cotangents, vectors)
        if ctx.needs_input_grad[3]:
            by_cotangents = _apply(_Pushforward, ctx.kernel, rows, state, vectors, None)
        return None, by_rows, None, by_cotangents

    @staticmethod
    def jvp(
        ctx: Any,
        _kernel: None,
        tangents: Tensor | None,
        state_tangents: Tensor | None,
        cotangent_tangents: Tensor | None,
    ) -> Tensor:
        rows, state, cotangents = ctx.saved_tensors
        _refuse_second_state_derivative(state_tangents is not None)
        result: Tensor = torch.zeros_like(rows)
        if tangents is not None:
            result = result + _apply(_HessianProduct, ctx.kernel, rows, state, cotangents, tangents)
        if cotangent_tangents is not None:
            result = result + _apply(_Pullback, ctx.kernel, rows, state, cotangent_tangents)
        return result


@_folds_vmap
class _Pushforward(_Function):
    """Rows (B, L), state, tangents (B, L), state tangents -> (B, M); linear in the tangents."""

    @staticmethod
    def forward(
        kernel: Kernel,
        rows: Tensor,
        state: Tensor | None,
        tangents: Tensor,
        state_tangents: Tensor | None,
    ) -> Tensor:
        moves = to_numpy(tangents), _complex(state_tangents)
        return torch.from_numpy(kernel.jvp(to_numpy(rows), _complex(state), *moves))

    @staticmethod
    def backward(
        ctx: Any, cotangents: Tensor
    ) -> tuple[None, Tensor | None, None, Tensor | None, None]:
        rows, state, tangents, state_tangents = ctx.saved_tensors
        _refuse_second_state_derivative(state_tangents is not None or ctx.needs_input_grad[2])
        by_rows = by_tangents = None
        if ctx.needs_input_grad[1]:
            by_rows = _apply(_HessianProduct, ctx.kernel, rows, state, cotangents, tangents)
        if ctx.needs_input_grad[3]:
            by_tangents = _apply(_Pullback, ctx.kernel, rows, state, cotangents)
        return None, by_rows, None, by_tangents, None

    @staticmethod
    def jvp(
        ctx: Any,
        _kernel: None,
        directions: Tensor | None,
        state_directions: Tensor | None,
        tangent_directions: Tensor | None,
        state_tangent_directions: Tensor | None,
    ) -> Tensor:
        rows, state, tangents, state_tangents = ctx.saved_tensors
        moving = (state_tangents, state_directions, state_tangent_directions)
        _refuse_second_state_derivative(any(part is not None for part in moving))
        columns = ctx.kernel.num_outputs
        result: Tensor = rows.new_zeros(len(rows), columns)
        if tangent_directions is not None:
            result = result + _apply(
                _Pushforward, ctx.kernel, rows, state, tangent_directions, None
            )
        if directions is not None:
            # d^2 f[direction, tangent], one output at a time: (Hessian of output m times direction) . tangent.
            for m in range(columns):
                pick = rows.new_zeros(len(rows), columns)
                pick[:, m] = 1.0
                product = _apply(_HessianProduct, ctx.kernel, rows, state, pick, directions)
                result = result + (product * tangents).sum(-1, keepdim=True) * pick
        return result


class _Last(torch.autograd.Function):
    """A function that is not differentiated any further."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


@_folds_vmap
class _PullbackWithState(_Last):
    """The pullback to angles and initial state of a circuit; first derivatives only."""

    @staticmethod
    def forward(
        kernel: Sweeps, rows: Tensor, state: Tensor, cotangents: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = to_numpy(rows), _complex(state), to_numpy(cotangents)
        gradient, state_gradient = kernel.vjp_with_state(*parts)
        return torch.from_numpy(gradient), torch.from_numpy(state_gradient)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> Any:
        _refuse_second_state_derivative(True)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        _refuse_second_state_derivative(True)


@_folds_vmap
class _HessianProduct(_Last):
    """Rows (B, L), state, cotangents (B, M), vectors (B, L) -> (B, L); the end of the line."""

    @staticmethod
    def forward(
        kernel: Kernel, rows: Tensor, state: Tensor | None, cotangents: Tensor, vectors: Tensor
    ) -> Tensor:
        moves = to_numpy(cotangents), to_numpy(vectors)
        return torch.from_numpy(kernel.hessian_product(to_numpy(rows), _complex(state), *moves))

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
