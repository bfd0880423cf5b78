"""What the kernel computes from rows of numbers, as torch functions with exact first and second derivatives.

Values (forward), their pullback (backward) and their pushforward (forward mode) are autograd functions of their own. The
pullback can be differentiated once more, because the kernel has exact Hessian products; third derivatives are an error.
Each function has its own vmap rule, which folds the mapped dimension into the batch.
"""

import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.native.circuit import Circuit
from fubini.options import Real
from fubini.torch_private import batched, is_legacy_batched, legacy_vmap_level, pytree, unbatched

Tensor = torch.Tensor
Maybe = Tensor | None
Amplitudes = npt.NDArray[np.complex128] | None


@dataclass(frozen=True)
class Sweeps:
    """The measurements of a circuit, as functions of rows of angles (B, A) and of initial states (B, N) where it takes them."""

    circuit: Circuit

    @property
    def num_outputs(self) -> int:
        """Number of results M of a row."""
        return self.circuit.num_outputs

    def values(self, rows: Real, state: Amplitudes) -> Real:
        """The results, (B, M)."""
        return _core.expval(self.circuit.program, rows, state)

    def vjp(self, rows: Real, state: Amplitudes, cotangents: Real) -> Real:
        """The gradient by rows of the results weighted by cotangents (B, M)."""
        return _core.vjp(self.circuit.program, rows, cotangents, state)[1]

    def vjp_with_state(
        self, rows: Real, state: Amplitudes, cotangents: Real
    ) -> tuple[Real, Amplitudes]:
        """The gradients by angles and by initial states, whose derivatives by real and imaginary parts are its own."""
        _, gradient, by_state = _core.vjp(self.circuit.program, rows, cotangents, state, True)
        return gradient, by_state

    def jvp(self, rows: Real, state: Amplitudes, tangents: Real, moves: Amplitudes) -> Real:
        """The derivative of the results, (B, M), along tangents of rows and moves of states."""
        return _core.jvp(self.circuit.program, rows, tangents, state, moves)

    def hessian_product(
        self, rows: Real, state: Amplitudes, cotangents: Real, vectors: Real
    ) -> Real:
        """The second derivative by rows of the weighted results, times vectors like the rows."""
        return _core.hessian_product(self.circuit.program, rows, cotangents, vectors, state)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a compiled expression, which has no state, as functions of weights (B, P) and features (B, d) side by side."""

    expression: _core.Expression

    @property
    def num_outputs(self) -> int:
        """Number of results M of a row."""
        return self.expression.num_outputs

    def _parts(self, rows: Real) -> tuple[Real, Real]:
        """Weights, which may differ between inputs, and features."""
        size = self.expression.num_weights
        return np.ascontiguousarray(rows[:, :size]), np.ascontiguousarray(rows[:, size:])

    def values(self, rows: Real, state: Amplitudes) -> Real:
        """The results, (B, M)."""
        return self.expression.evaluate(*self._parts(rows))

    def vjp(self, rows: Real, state: Amplitudes, cotangents: Real) -> Real:
        """The gradient by rows of the results weighted by cotangents (B, M)."""
        return np.concatenate(self.expression.vjp(*self._parts(rows), cotangents), axis=1)

    def jvp(self, rows: Real, state: Amplitudes, tangents: Real, moves: Amplitudes) -> Real:
        """The derivative of the results, (B, M), along tangents of rows and moves of states."""
        return self.expression.jvp(*self._parts(rows), *self._parts(tangents))

    def hessian_product(
        self, rows: Real, state: Amplitudes, cotangents: Real, vectors: Real
    ) -> Real:
        """The second derivative by rows of the weighted results, times vectors like the rows."""
        parts = (*self._parts(rows), cotangents, *self._parts(vectors))
        return np.concatenate(self.expression.hessian_product(*parts), axis=1)


Kernel = Sweeps | Outputs


def values(kernel: Kernel, rows: Tensor, state: Maybe = None) -> Tensor:
    """Return the kernel's results, (B, M), differentiably, for float64 rows (B, L) and complex128 states (B, N) on the CPU."""
    found: Tensor = _apply(_Values, kernel, rows, state)
    return found


def pullback(kernel: Kernel, rows: Tensor, cotangents: Tensor, state: Maybe = None) -> Tensor:
    """Return the gradient by rows, (B, L), of the results weighted by cotangents (B, M), differentiably."""
    found: Tensor = _apply(_Pullback, kernel, rows, state, cotangents)
    return found


def pullback_with_state(
    kernel: Sweeps, angles: Tensor, state: Tensor, cotangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by angles (B, A) and by the parts of initial states (B, N); first derivatives only."""
    by_angles, by_state = _apply(_PullbackWithState, kernel, angles, state, cotangents)
    return by_angles, by_state


def _apply(function: Any, kernel: Any, *values: Maybe) -> Any:
    """function.apply, which torch leaves untyped."""
    if any(value is not None and is_legacy_batched(value) for value in values):
        return _apply_batched(function, kernel, *values)
    return function.apply(kernel, *values)


def _apply_batched(function: Any, kernel: Any, *values: Maybe) -> Any:
    """The same under ``is_grads_batched`` and ``vectorize``, whose vmap does not ask functions for their rule."""
    level = legacy_vmap_level()
    dims = [0 if v is not None and is_legacy_batched(v) else None for v in values]
    pairs: Any = zip(values, dims, strict=True)
    whole = [value if dim is None else unbatched(value, level) for value, dim in pairs]
    info = types.SimpleNamespace(batch_size=len(whole[dims.index(0)]))
    results, _ = function.vmap(info, (None, *dims), kernel, *whole)
    return pytree.tree_map(lambda result: batched(result, level), results)


def _fold(info: Any, in_dims: tuple[int | None, ...], *values: Maybe) -> list[Maybe]:
    """Moves the mapped dimension into the batch; tensors that are not mapped are repeated."""
    folded: list[Maybe] = []
    for value, dim in zip(values, in_dims, strict=True):
        if value is None:
            folded.append(None)
            continue
        if dim is None:
            value, dim = value.expand(info.batch_size, *value.shape), 0
        folded.append(value.movedim(dim, 0).flatten(0, 1))
    return folded


def _folds_vmap(function: Any) -> Any:
    """Gives an autograd function the vmap rule of a batched function: the mapped dimension joins the batch."""

    def vmap(info: Any, in_dims: Any, kernel: Any, *values: Maybe) -> tuple[Any, Any]:
        def unfold(result: Tensor) -> Tensor:
            return result.view(info.batch_size, len(result) // info.batch_size, *result.shape[1:])

        results = _apply(function, kernel, *_fold(info, in_dims[1:], *values))
        return pytree.tree_map(unfold, results), 0

    function.vmap = staticmethod(vmap)
    function.generate_vmap_rule = False
    return function


def _complex(value: Maybe) -> Amplitudes:
    """Amplitudes as the kernel takes them."""
    return None if value is None else to_numpy(value, np.complex128)


def _refuse_second_state_derivative(wanted: bool) -> Any:
    if wanted:
        raise NotImplementedError(
            "fubini: second derivatives that involve the initial state (StatePrep, AmplitudeEmbedding) are not "
            "available. Detach the amplitudes, or use QuantumLayer(..., engine='device') on default.qubit with "
            "diff_method='backprop'."
        )


def _refuse_third_derivative(*_: Any) -> Any:
    raise NotImplementedError(
        "fubini: third derivatives of a circuit are not available. Use QuantumLayer(..., engine='device') on "
        "default.qubit with diff_method='backprop'."
    )


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
    def forward(kernel: Kernel, rows: Tensor, state: Maybe) -> Tensor:
        return torch.from_numpy(kernel.values(to_numpy(rows), _complex(state)))

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Maybe, Maybe]:
        rows, state = ctx.saved_tensors
        if state is not None and ctx.needs_input_grad[2]:
            both = _apply(_PullbackWithState, ctx.kernel, rows, state, cotangents)
            return None, both[0], both[1]
        return None, _apply(_Pullback, ctx.kernel, rows, state, cotangents), None

    @staticmethod
    def jvp(ctx: Any, _kernel: None, tangents: Maybe, state_tangents: Maybe) -> Tensor:
        rows, state = ctx.saved_tensors
        if tangents is None:
            tangents = torch.zeros_like(rows)
        pushed: Tensor = _apply(_Pushforward, ctx.kernel, rows, state, tangents, state_tangents)
        return pushed


@_folds_vmap
class _Pullback(_Function):
    """Rows (B, L), state, cotangents (B, M) -> gradient (B, L)."""

    @staticmethod
    def forward(kernel: Kernel, rows: Tensor, state: Maybe, cotangents: Tensor) -> Tensor:
        return torch.from_numpy(kernel.vjp(to_numpy(rows), _complex(state), to_numpy(cotangents)))

    @staticmethod
    def backward(ctx: Any, vectors: Tensor) -> tuple[None, Maybe, None, Maybe]:
        rows, state, cotangents = ctx.saved_tensors
        _refuse_second_state_derivative(ctx.needs_input_grad[2])
        by_rows = by_cotangents = None
        if ctx.needs_input_grad[1]:  # the Hessian is symmetric
            by_rows = _apply(_HessianProduct, ctx.kernel, rows, state, cotangents, vectors)
        if ctx.needs_input_grad[3]:
            by_cotangents = _apply(_Pushforward, ctx.kernel, rows, state, vectors, None)
        return None, by_rows, None, by_cotangents

    @staticmethod
    def jvp(ctx: Any, _kernel: None, *moves: Maybe) -> Tensor:
        tangents, state_tangents, cotangent_tangents = moves
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
    def forward(kernel: Kernel, rows: Tensor, state: Maybe, tangents: Tensor, moves: Maybe) -> Any:
        along = to_numpy(tangents), _complex(moves)
        return torch.from_numpy(kernel.jvp(to_numpy(rows), _complex(state), *along))

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Maybe, None, Maybe, None]:
        rows, state, tangents, state_tangents = ctx.saved_tensors
        _refuse_second_state_derivative(state_tangents is not None or ctx.needs_input_grad[2])
        by_rows = by_tangents = None
        if ctx.needs_input_grad[1]:
            by_rows = _apply(_HessianProduct, ctx.kernel, rows, state, cotangents, tangents)
        if ctx.needs_input_grad[3]:
            by_tangents = _apply(_Pullback, ctx.kernel, rows, state, cotangents)
        return None, by_rows, None, by_tangents, None

    @staticmethod
    def jvp(ctx: Any, _kernel: None, *moves: Maybe) -> Tensor:
        directions, state_directions, tangent_directions, state_tangent_directions = moves
        rows, state, tangents, state_tangents = ctx.saved_tensors
        moving = (state_tangents, state_directions, state_tangent_directions)
        _refuse_second_state_derivative(any(part is not None for part in moving))
        columns = ctx.kernel.num_outputs
        result: Tensor = rows.new_zeros(len(rows), columns)
        if tangent_directions is not None:
            pushed = _apply(_Pushforward, ctx.kernel, rows, state, tangent_directions, None)
            result = result + pushed
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

    backward = jvp = staticmethod(lambda *_: _refuse_second_state_derivative(True))  # type: ignore[assignment]


@_folds_vmap
class _HessianProduct(_Last):
    """Rows (B, L), state, cotangents (B, M), vectors (B, L) -> (B, L); the end of the line."""

    @staticmethod
    def forward(
        kernel: Kernel, rows: Tensor, state: Maybe, cotangents: Tensor, vectors: Tensor
    ) -> Tensor:
        moves = to_numpy(cotangents), to_numpy(vectors)
        return torch.from_numpy(kernel.hessian_product(to_numpy(rows), _complex(state), *moves))

    backward = jvp = staticmethod(_refuse_third_derivative)  # type: ignore[assignment]
