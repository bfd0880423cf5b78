"""The torch side of ``solve``: on the device that the tensors are on, and with derivatives.

Derivative of x = A^-1 b for symmetric A: dx = A^-1 (db - dA x), so that with w = A^-1 g the gradients are w for b and
-(w x^T + x w^T) / 2 for A. For a function of the eigenvalues, x = f(A) b, the derivative of f(A) has the divided
differences of f as weights in the eigenbasis (Daleckii and Krein 1965).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from fubini.solvers.methods import Plan, SolveStatus
from fubini.solvers.products import conjugate_gradients

Tensor = torch.Tensor
Solver: TypeAlias = Callable[..., Tensor]
Pull: TypeAlias = Callable[..., tuple[Tensor, ...]]
EPSILON = 2.220446049250313e-16
SUSPICIOUS_GROWTH = (
    1e11  # as in the kernel: a solution that large means a condition number at least as large
)


def damped_matrix(matrix: Tensor, kind: str, lam: Tensor) -> Tensor:
    """Return ``(G + G^T) / 2 + D`` for G [batch, n, n] and strengths [batch] or [1], differentiably."""
    symmetric = (matrix + matrix.mT) / 2
    diagonal = symmetric.diagonal(dim1=-2, dim2=-1)
    lam = lam.reshape(-1, 1)
    if kind == "relative":
        added = lam * diagonal.mean(-1, keepdim=True) + torch.zeros_like(diagonal)
    elif kind == "diagonal":
        added = lam * diagonal
    else:
        added = lam + torch.zeros_like(diagonal)
    return symmetric + torch.diag_embed(added)


def spectral_weights(values: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return f, f', which eigenvalues count, and how f changes with the largest magnitude.

    Args:
        values: Eigenvalues [batch, n] in rising order.
        plan: Of a spectral method.
    """
    rcond = values.shape[-1] * EPSILON if plan.rcond < 0 else plan.rcond
    cut = rcond * values.abs().amax(-1, keepdim=True)
    kept = values.abs() > cut
    safe = torch.where(kept, values, torch.ones_like(values))
    zero = torch.zeros_like(values)
    if plan.smooth:
        # 1 / (v (1 + (c/v)^6)) = v^5 / (v^6 + c^6), scaled by c or v so that the powers stay in range
        unit = torch.where(kept, values.abs(), cut).clamp_min(1e-300)
        v, c = values / unit, cut / unit
        bottom = v**6 + c**6
        bottom = torch.where(bottom > 0, bottom, torch.ones_like(bottom))
        slope = (5 * v**4 * bottom - 6 * v**10) / bottom**2 / unit**2
        by_cut = -6 * rcond * v**5 * c**5 / bottom**2 / unit**2
        return v**5 / bottom / unit, slope, kept, by_cut
    p = plan.exponent
    size = safe.abs() if plan.name == "power" else safe
    return (
        torch.where(kept, size**-p, zero),
        torch.where(kept, -p * size ** (-p - 1), zero),
        kept,
        zero,
    )


def solve_on_device(
    a: Tensor, b: Tensor, plan: Plan, tolerance: float, damping: tuple[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Solve with ``torch.linalg`` where the tensors are; the rules and statuses are the kernel's.

    Args:
        a: Matrices [batch, n, n], float64, n and batch at least 1.
        b: Right-hand sides [batch, n, k], float64.
        plan: Any method but ``"dual"``.
        tolerance: Allowed asymmetry relative to the largest entry.
        damping: Kind, and strengths [batch] or [1].

    Returns:
        x [batch, n, k], status [batch], and the fields of :class:`~fubini.SolveInfo` by name, each [batch].
    """
    count, n = b.shape[:2]
    finite = a.isfinite().flatten(1).all(1) & b.isfinite().flatten(1).all(1)
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    a = torch.where(finite[:, None, None], a, eye)
    tilt = (a - a.mT).abs().flatten(1).amax(1)
    symmetric = tilt <= tolerance * a.abs().flatten(1).amax(1)
    good = finite & symmetric
    a = torch.where(good[:, None, None], damped_matrix(a, *damping), eye)
    rhs = torch.where(good[:, None, None], b, torch.zeros_like(b))
    status = torch.zeros(count, dtype=torch.int8, device=a.device)
    nothing = torch.full((count,), float("nan"), dtype=a.dtype, device=a.device)
    info = {
        "method": torch.full_like(status, _CODES[plan.name]),
        "rank": torch.full((count,), n, dtype=torch.int64, device=a.device),
        "iterations": torch.zeros(count, dtype=torch.int64, device=a.device),
        "condition": nothing,
        "smallest": nothing.clone(),
        "largest": nothing.clone(),
    }
    if plan.name == "cg":
        x, status = _cg(a, rhs, plan, info)
    elif plan.name == "ldlt":
        factor, pivots, zero = torch.linalg.ldl_factor_ex(a)
        x = torch.linalg.ldl_solve(factor, pivots, rhs)
        tiny = n * EPSILON * a.abs().flatten(1).amax(1)
        lost = (zero != 0) | ~(x.isfinite().flatten(1).all(1))
        one = torch.linalg.norm(rhs, float("inf"), dim=1).amax(1)
        lost |= torch.linalg.norm(x, float("inf"), dim=1).amax(1) * tiny > one
        status[lost] = int(SolveStatus.SINGULAR)
    elif plan.name in ("pinv", "power"):
        x = torch.empty_like(rhs)
        _spectral(a, rhs, plan, x, status, info, torch.ones_like(good))
    else:
        x = _cholesky(a, rhs, plan, status, info)
    status[~x.isfinite().flatten(1).all(1) & (status <= int(SolveStatus.USED_PINV))] = int(
        SolveStatus.NOT_FINITE
    )
    status[~symmetric] = int(SolveStatus.NOT_SYMMETRIC)
    status[~finite] = int(SolveStatus.NOT_FINITE)
    blank = (status > int(SolveStatus.USED_PINV)) & (status != int(SolveStatus.NOT_CONVERGED))
    x = torch.where(blank[:, None, None], torch.full_like(x, float("nan")), x)
    norm = a.abs().sum(-1).amax(-1)[:, None] * x.abs().amax(-2) + rhs.abs().amax(-2)
    gap = (a @ x - rhs).abs().amax(-2) / torch.where(norm == 0, torch.ones_like(norm), norm)
    info["residual"] = gap.amax(-1) if gap.shape[-1] else torch.zeros_like(nothing)
    return x, status, info


_CODES = {"auto": 1, "cholesky": 1, "ldlt": 2, "pinv": 3, "power": 4, "cg": 5}


def _cholesky(a: Tensor, b: Tensor, plan: Plan, status: Tensor, info: dict[str, Tensor]) -> Tensor:
    n = a.shape[-1]
    factor, failure = torch.linalg.cholesky_ex(a)
    diagonal = a.diagonal(dim1=-2, dim2=-1)
    pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
    reference = diagonal.amax(-1, keepdim=True) if plan.name == "auto" else diagonal
    bad = (failure != 0) | ~(pivots > n * EPSILON * reference).all(-1)
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    factor = torch.where(bad[:, None, None], eye, factor)
    x = torch.cholesky_solve(b, factor)
    inverse_norm = torch.cholesky_inverse(factor).abs().sum(-2).amax(-1)
    info["condition"] = a.abs().sum(-2).amax(-1) * inverse_norm
    info["smallest"], info["largest"] = pivots.amin(-1), pivots.amax(-1)
    if plan.name == "cholesky":
        status[bad] = int(SolveStatus.NOT_POSITIVE_DEFINITE)
        return x
    growth = x.abs().amax(-2) * diagonal.amax(-1)[:, None]
    bad |= ~(growth <= SUSPICIOUS_GROWTH * b.abs().amax(-2)).all(-1)
    if bool(bad.any()):
        _spectral(a, b, Plan("pinv", plan.rcond), x, status, info, bad)
        status[bad] = int(SolveStatus.USED_PINV)
        info["method"][bad] = _CODES["pinv"]
    return x


def _spectral(
    a: Tensor,
    b: Tensor,
    plan: Plan,
    x: Tensor,
    status: Tensor,
    info: dict[str, Tensor],
    which: Tensor,
) -> None:
    values, vectors = torch.linalg.eigh(a[which])
    weights, _, kept, _ = spectral_weights(values, plan)
    x[which] = vectors @ (weights[..., None] * (vectors.mT @ b[which]))
    info["rank"][which] = kept.sum(-1)
    info["smallest"][which], info["largest"][which] = values[:, 0], values[:, -1]
    info["condition"][which] = values.abs().amax(-1) / values.abs().amin(-1)
    if plan.name == "power":
        status[which] = torch.where(
            (kept & (values < 0)).any(-1), int(SolveStatus.NOT_POSITIVE_DEFINITE), 0
        ).to(status.dtype)


def _cg(a: Tensor, b: Tensor, plan: Plan, info: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    diagonal = a.diagonal(dim1=-2, dim2=-1)
    inverse = torch.where(diagonal > 0, 1 / diagonal, torch.ones_like(diagonal))[:, None, :]
    start = None if plan.start is None else plan.start.reshape(b.shape).to(b).mT
    custom = plan.preconditioner
    x, status, iterations, _ = conjugate_gradients(
        lambda v: v @ a,
        b.mT,
        (lambda r: r * inverse) if custom is None else (lambda r: custom(r.mT).mT),
        start,
        plan.tolerance,
        plan.max_iterations,
    )
    if b.shape[-1]:
        info["iterations"] = iterations.amax(-1).long()
        return x.mT, status.amax(-1).to(torch.int8)
    return x.mT, torch.zeros(len(b), dtype=torch.int8, device=b.device)


class Implicit(torch.autograd.Function):
    """``x = A^-1 b`` for symmetric A that is made of tensors, any number of times differentiable.

    ``solver(b, *tensors)`` returns x without derivatives; a known x can be handed over to save the first solve.
    ``pull(w, x, *tensors)`` returns the gradients for the tensors, w being the solution for the gradient of x.
    """

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, pull: Pull, x: Tensor | None, b: Tensor, *tensors: Tensor
    ) -> Tensor:
        """Return x."""
        x = solver(b, *tensors) if x is None else x.clone()
        ctx.save_for_backward(x, *tensors)
        ctx.solver, ctx.pull = solver, pull
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients for b and the tensors."""
        x, *tensors = ctx.saved_tensors
        w = implicit(ctx.solver, ctx.pull, None, grads[0], *tensors)
        nothing = (None,) * len(tensors)
        pulled = ctx.pull(w, x, *tensors) if any(ctx.needs_input_grad[4:]) else nothing
        return None, None, None, w, *pulled


def pull_matrix(w: Tensor, x: Tensor, _: Tensor) -> tuple[Tensor]:
    """Return the gradient for a symmetric matrix [batch, n, n] itself."""
    outer = w @ x.mT
    return (-(outer + outer.mT) / 2,)


def pull_factor(w: Tensor, x: Tensor, factor: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients for factor X [batch, n, m] and lam [batch] of the matrix X X^T + lam I."""
    return -(w @ (x.mT @ factor) + x @ (w.mT @ factor)), -(w * x).sum((-1, -2))


class Spectral(torch.autograd.Function):
    """``x = f(A) b`` with f from the plan, once differentiable; exact where eigenvalues are cut off, too.

    A system whose x is not finite has NaN for gradients.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, plan: Plan, x: Tensor) -> Tensor:
        """Return the x that is already known."""
        ctx.save_for_backward(a, b)
        ctx.plan = plan
        ctx.solved = x.isfinite().flatten(1).all(1)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients for a and b."""
        a, b = ctx.saved_tensors
        # torch's once_differentiable says nothing where the incoming gradient is a constant.
        grad_a, grad_b = Once.apply(  # type: ignore[no-untyped-call]
            *Spectral._gradients(ctx, a.detach(), b.detach(), grads[0].detach()), a, b, grads[0]
        )
        return grad_a if ctx.needs_input_grad[0] else None, grad_b, None, None

    @staticmethod
    def _gradients(ctx: Any, a: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        if not a.numel():
            return torch.zeros_like(a), torch.zeros_like(b)
        values, vectors = torch.linalg.eigh(torch.where(ctx.solved[:, None, None], a, 0.0))
        vectors = torch.where(ctx.solved[:, None, None], vectors, float("nan"))
        weights, slopes, kept, by_cut = spectral_weights(values, ctx.plan)
        grad_b = vectors @ (weights[..., None] * (vectors.mT @ grad))
        gap = values[:, :, None] - values[:, None, :]
        close = gap.abs() <= 1e-7 * values.abs().amax(-1)[:, None, None]
        rise = weights[:, :, None] - weights[:, None, :]
        quotient = torch.where(
            close,
            (slopes[:, :, None] + slopes[:, None, :]) / 2,
            rise / torch.where(close, torch.ones_like(gap), gap),
        )
        if ctx.plan.name == "pinv" and not ctx.plan.smooth:
            # The quotient in closed form, without cancellation.
            both = kept[:, :, None] & kept[:, None, :]
            quotient = torch.where(both, -weights[:, :, None] * weights[:, None, :], quotient)
        inner = vectors.mT @ (grad @ b.mT) @ vectors
        found = quotient * inner
        if ctx.plan.smooth:  # the cut-off moves with the largest eigenvalue
            moved = (by_cut * inner.diagonal(dim1=-2, dim2=-1)).sum(-1, keepdim=True)
            top = values.abs().argmax(-1, keepdim=True)
            moved = moved * values.gather(-1, top).sign()
            found = found + torch.diag_embed(torch.zeros_like(values).scatter(-1, top, moved))
        full = vectors @ found @ vectors.mT
        return (full + full.mT) / 2, grad_b


class Once(torch.autograd.Function):
    """The first two arguments, as functions of the others whose derivatives are not known."""

    @staticmethod
    def forward(
        ctx: Any, grad_a: Tensor, grad_b: Tensor, *sources: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what is given."""
        return grad_a.clone(), grad_b.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Refuse."""
        raise NotImplementedError(
            "solve: expected one differentiation through eigenvalues (methods 'pinv' and 'power', and 'auto' where the "
            "matrix is singular), got a second; add damping and use 'auto' or 'ldlt'"
        )


def implicit(solver: Solver, pull: Pull, x: Tensor | None, b: Tensor, *tensors: Tensor) -> Tensor:
    """Return :class:`Implicit`'s x."""
    result: Tensor = Implicit.apply(solver, pull, x, b, *tensors)  # type: ignore[no-untyped-call]
    return result


def spectral(a: Tensor, b: Tensor, plan: Plan, x: Tensor) -> Tensor:
    """Return :class:`Spectral`'s x."""
    result: Tensor = Spectral.apply(a, b, plan, x)  # type: ignore[no-untyped-call]
    return result
