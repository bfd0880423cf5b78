"""The outputs of a compiled expression as a torch function with exact first and second derivatives.

As in :mod:`fubini.nn.expval`, the value, its pullback and its pushforward are functions of their own, a second
derivative is an exact Hessian product of the kernel, and a mapped dimension joins the batch. Weights count as features of
every input here, so that they may be mapped too.
"""

from typing import Any

import torch

from fubini import _core
from fubini.nn.expval import _apply, _folds_vmap, _real, _refuse_third_derivative

Tensor = torch.Tensor


def outputs(expression: _core.AngleMap, rows: Tensor) -> Tensor:
    """Evaluate an expression, differentiably.

    Args:
        expression: The expression.
        rows: Weights and features of every input side by side, (B, P + d), float64 on the CPU.

    Returns:
        (B, K).
    """
    values: Tensor = _apply(_Outputs, expression, rows)
    return values


def outputs_pullback(expression: _core.AngleMap, rows: Tensor, cotangents: Tensor) -> Tensor:
    """Return the gradient of weighted outputs by rows, differentiably.

    Args:
        expression: The expression.
        rows: As for ``outputs``.
        cotangents: (B, K).

    Returns:
        (B, P + d).
    """
    gradient: Tensor = _apply(_Pullback, expression, rows, cotangents)
    return gradient


def _parts(expression: Any, rows: Tensor) -> tuple[Any, Any]:
    """Weights (B, P) and features (B, d) as arrays."""
    size = expression.num_weights
    return _real(rows[:, :size]), _real(rows[:, size:])


def _joined(by_weights: Any, by_inputs: Any) -> Tensor:
    return torch.cat([torch.from_numpy(by_weights), torch.from_numpy(by_inputs)], dim=-1)


@_folds_vmap
class _Outputs(torch.autograd.Function):
    """rows (B, L) -> (B, K)."""

    @staticmethod
    def forward(expression: Any, rows: Tensor) -> Tensor:
        return torch.from_numpy(expression.evaluate(*_parts(expression, rows)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.expression, rows = inputs
        ctx.save_for_backward(rows)
        ctx.save_for_forward(rows)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor]:
        (rows,) = ctx.saved_tensors
        return None, _apply(_Pullback, ctx.expression, rows, cotangents)

    @staticmethod
    def jvp(ctx: Any, _expression: None, tangents: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        pushed: Tensor = _apply(_Pushforward, ctx.expression, rows, tangents)
        return pushed


@_folds_vmap
class _Pullback(torch.autograd.Function):
    """rows (B, L), cotangents (B, K) -> gradient (B, L)."""

    @staticmethod
    def forward(expression: Any, rows: Tensor, cotangents: Tensor) -> Tensor:
        return _joined(*expression.vjp(*_parts(expression, rows), _real(cotangents)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.expression, rows, cotangents = inputs
        ctx.save_for_backward(rows, cotangents)
        ctx.save_for_forward(rows, cotangents)

    @staticmethod
    def backward(ctx: Any, vectors: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        rows, cotangents = ctx.saved_tensors
        by_rows = by_cotangents = None
        if ctx.needs_input_grad[1]:  # the Hessian is symmetric
            by_rows = _apply(_HessianProduct, ctx.expression, rows, cotangents, vectors)
        if ctx.needs_input_grad[2]:
            by_cotangents = _apply(_Pushforward, ctx.expression, rows, vectors)
        return None, by_rows, by_cotangents

    @staticmethod
    def jvp(
        ctx: Any, _expression: None, tangents: Tensor | None, cotangent_tangents: Tensor | None
    ) -> Tensor:
        rows, cotangents = ctx.saved_tensors
        result: Tensor = torch.zeros_like(rows)
        if tangents is not None:
            result = result + _apply(_HessianProduct, ctx.expression, rows, cotangents, tangents)
        if cotangent_tangents is not None:
            result = result + _apply(_Pullback, ctx.expression, rows, cotangent_tangents)
        return result


@_folds_vmap
class _Pushforward(torch.autograd.Function):
    """rows (B, L), tangents (B, L) -> (B, K); linear in the tangents."""

    @staticmethod
    def forward(expression: Any, rows: Tensor, tangents: Tensor) -> Tensor:
        return torch.from_numpy(
            expression.jvp(*_parts(expression, rows), *_parts(expression, tangents))
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.expression, rows, tangents = inputs
        ctx.save_for_backward(rows, tangents)
        ctx.save_for_forward(rows, tangents)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        rows, tangents = ctx.saved_tensors
        by_rows = by_tangents = None
        if ctx.needs_input_grad[1]:
            by_rows = _apply(_HessianProduct, ctx.expression, rows, cotangents, tangents)
        if ctx.needs_input_grad[2]:
            by_tangents = _apply(_Pullback, ctx.expression, rows, cotangents)
        return None, by_rows, by_tangents

    @staticmethod
    def jvp(
        ctx: Any, _expression: None, directions: Tensor | None, tangent_directions: Tensor | None
    ) -> Tensor:
        rows, tangents = ctx.saved_tensors
        columns = ctx.expression.num_outputs
        result: Tensor = rows.new_zeros(len(rows), columns)
        if tangent_directions is not None:
            result = result + _apply(_Pushforward, ctx.expression, rows, tangent_directions)
        if directions is not None:
            # d^2 f[direction, tangent], one output at a time: (Hessian of output m times direction) . tangent.
            for m in range(columns):
                pick = rows.new_zeros(len(rows), columns)
                pick[:, m] = 1.0
                product = _apply(_HessianProduct, ctx.expression, rows, pick, directions)
                result = result + (product * tangents).sum(-1, keepdim=True) * pick
        return result


@_folds_vmap
class _HessianProduct(torch.autograd.Function):
    """rows (B, L), cotangents (B, K), vectors (B, L) -> (B, L); the end of the line."""

    @staticmethod
    def forward(expression: Any, rows: Tensor, cotangents: Tensor, vectors: Tensor) -> Tensor:
        return _joined(
            *expression.hessian_product(
                *_parts(expression, rows), _real(cotangents), *_parts(expression, vectors)
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
