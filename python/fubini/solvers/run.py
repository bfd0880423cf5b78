"""Puts the pieces of ``solve`` together for arrays and tensors whose shapes have been checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fubini import _core
from fubini.arrays import RealArray, is_tensor, like, real_array, result_dtype
from fubini.solvers.damping import Damping, as_damping
from fubini.solvers.derivatives import (
    damped_matrix,
    implicit,
    implicit_dual,
    solve_on_device,
    spectral,
)
from fubini.solvers.factored import (
    conjugate_gradients,
    dual_terms,
    largest_magnitude,
    module_of,
    power_of_two,
    solve_dual,
)
from fubini.solvers.interrupts import interruptible
from fubini.solvers.methods import (
    Operator,
    Plan,
    SolveInfo,
    SolveStatus,
    fit,
    make_info,
    raise_failures,
)


def solve_numpy(
    a: RealArray, b: RealArray, damping: Damping, plan: Plan, tolerance: float, want_info: bool
) -> tuple[RealArray, SolveInfo]:
    # Contiguous float64 systems; failures are only reported.
    """Solve a batch of NumPy systems by a plan."""
    batch_shape, n = a.shape[:-2], a.shape[-2]
    count = int(np.prod(batch_shape))
    columns = b.shape[-1] if b.ndim == a.ndim else 1
    flat_a, flat_b = a.reshape(count, n, a.shape[-1]), b.reshape(count, n, columns)
    if plan.name == "dual":
        width = flat_a.shape[-1]
        return interruptible(
            8.0 * count * n * width * (min(n, width) + columns),
            _solve_dual,
            flat_a,
            flat_b,
            damping,
            plan,
            batch_shape,
            b.shape,
            want_info,
        )
    start = None
    if plan.start is not None:
        start = real_array("start", plan.start)
        if start.shape != b.shape:
            raise ValueError(f"start: expected the shape of rhs = {b.shape}, got {start.shape}")
        start = start.reshape(count, n, columns)
    lam = damping.values(batch_shape)
    if plan.preconditioner is not None:
        # A function of the caller's runs in a loop in Python; it sees and returns the shape of rhs.
        custom = _same_shape("preconditioner", plan.preconditioner)
        shaped = replace(
            plan,
            start=None if start is None else torch.from_numpy(start),
            preconditioner=lambda r: torch.from_numpy(custom(r.numpy().reshape(b.shape))).reshape(
                r.shape
            ),
        )
        if not b.size:
            return b.copy(), make_info(np.zeros(count, np.int8), None, batch_shape)
        x, status, details = solve_on_device(
            torch.from_numpy(flat_a),
            torch.from_numpy(flat_b),
            shaped,
            tolerance,
            (damping.kind, torch.from_numpy(lam)),
        )
        known = {name: values.numpy() for name, values in details.items()}
        return x.numpy().reshape(b.shape), make_info(status.numpy(), known, batch_shape)
    eigenvalues = plan.name in ("pinv", "power")
    solution, codes, fields = interruptible(
        float(count) * n * n * (n * (10.0 if eigenvalues else 0.3) + 2.0 * columns),
        _core.solve_batch,
        flat_a,
        flat_b,
        lam,
        plan.name,
        damping.kind,
        plan.rcond,
        plan.smooth,
        plan.exponent,
        tolerance,
        plan.tolerance,
        plan.max_iterations,
        start,
        want_info,
    )
    return solution.reshape(b.shape), make_info(codes, fields, batch_shape)


def solve_operator(operator: Any, rhs: Any, damping: Damping, plan: Plan) -> tuple[Any, SolveInfo]:
    """Solve a system whose matrix is a product alone, by conjugate gradients."""
    if plan.name != "cg":
        raise ValueError(
            f"method: expected 'auto', 'cg' or CG(...) for a function, got {plan.name!r}"
        )
    if damping.kind != "absolute":
        raise ValueError(
            f"damping: expected a number for a function, got {type(damping).__name__}, which needs the diagonal; "
            "pass the matrix, or the product of lam and the mean diagonal"
        )
    if torch.is_grad_enabled() and any(
        is_tensor(one) and one.requires_grad for one in (rhs, damping.lam)
    ):
        raise ValueError(
            "rhs, damping: expected tensors without gradient for a function, whose derivatives are not known; "
            "pass the matrix, or detach them"
        )
    b: Any
    if is_tensor(rhs) and not rhs.is_complex():
        b = rhs.detach() if rhs.is_floating_point() else rhs.double()
    else:
        b = real_array("rhs", rhs)
    if b.ndim < 1:
        raise ValueError(f"rhs: expected shape (..., n), got {tuple(b.shape)}")
    lam: Any = damping.values(tuple(b.shape[:-1])).reshape(
        b.shape[:-1] if np.ndim(damping.lam) else ()
    )[..., None]
    if is_tensor(b):
        lam = torch.from_numpy(lam).to(b)
    start = plan.start
    if start is not None:
        start = real_array("start", start)
        if start.shape != tuple(b.shape):
            raise ValueError(
                f"start: expected the shape of rhs = {tuple(b.shape)}, got {start.shape}"
            )
        start = torch.from_numpy(start).to(b) if is_tensor(b) else start
    product = _same_shape("matrix", operator)
    precondition = plan.preconditioner and _same_shape("preconditioner", plan.preconditioner)

    def apply(v: Any) -> Any:
        return product(v) + lam * v

    with torch.no_grad():
        x, status, iterations, residual = conjugate_gradients(
            apply, b, precondition, start, plan.tolerance, plan.max_iterations
        )
    if is_tensor(x):
        status, iterations, residual = (
            one.double().cpu().numpy() for one in (status, iterations, residual)
        )
    else:
        dtype = result_dtype(rhs, rhs)
        status = np.asarray(status)
        fit(x, status, dtype)
        x = like(x, rhs, dtype)
    unknown = np.full(np.shape(status), np.nan)
    codes = np.asarray(status, dtype=np.int8)
    fields = {
        "method": np.full_like(codes, 5),
        "rank": np.full(np.shape(status), b.shape[-1]),
        "iterations": np.asarray(iterations).astype(np.int64),
        "condition": unknown,
        "smallest": unknown,
        "largest": unknown,
        "residual": np.asarray(residual, dtype=np.float64),
    }
    return x, make_info(codes, fields, codes.shape)


def _same_shape(name: str, function: Operator) -> Operator:
    """The function, with a result that is of another shape or kind than its argument refused."""

    def call(v: Any) -> Any:
        result = function(v)
        if is_tensor(result) != is_tensor(v):
            raise TypeError(
                f"{name}: expected a function that maps {type(v).__name__} to its like, got {type(result).__name__}"
            )
        if not is_tensor(v):
            result = real_array(name, result)
        if tuple(result.shape) != tuple(v.shape):
            raise ValueError(
                f"{name}: expected a function that returns the shape of its argument = {tuple(v.shape)}, "
                f"got {tuple(result.shape)}"
            )
        return result

    return call


def _solve_dual(
    x: Any,
    b: Any,
    damping: Damping,
    plan: Plan,
    batch_shape: tuple[int, ...],
    shape: tuple[int, ...],
    want_info: bool,
) -> tuple[Any, SolveInfo]:
    """Return x and the information for a factor [batch, n, m] and b [batch, n, k], arrays or tensors."""
    lam: Any = np.broadcast_to(damping.values(batch_shape), len(x)).copy()
    if is_tensor(x):
        lam = torch.from_numpy(lam).to(x)
    xp, count = module_of(x), len(x)
    finite = xp.isfinite(x).all(-1).all(-1) & xp.isfinite(b).all(-1).all(-1)
    x, b = (xp.where(finite[:, None, None], one, xp.zeros_like(one)) for one in (x, b))
    # Units in which the products of X with itself stay in range.
    sizes = [largest_magnitude(largest_magnitude(one)) for one in (x, b)]
    if damping.kind == "absolute":
        sizes[0] = xp.maximum(sizes[0], xp.sqrt(lam))
    unit, unit_b = (power_of_two(one)[:, None, None] for one in sizes)
    x, b = x / unit, b / unit_b
    given = lam
    if damping.kind == "absolute":
        lam = lam / unit[:, 0, 0] / unit[:, 0, 0]
    factor, rhs, strength, scale = dual_terms(x, b, lam, damping.kind)
    y, status, rank = solve_dual(factor, rhs, strength, plan.rcond, _inner)
    damped = strength > 0
    if x.shape[-1] >= x.shape[-2] and bool(damped.any()):
        # The factor is no narrower than the matrix: nothing to gain, and nothing to cancel. Each system for itself,
        # or a neighbour without damping would change its digits.
        primal, codes = _inner(factor @ factor.swapaxes(-1, -2), rhs, strength, plan.rcond)
        y = xp.where(damped[:, None, None], primal, y)
        status = xp.where(damped, codes, status)
    if scale is not None:
        y = y * scale
        dead = (scale == 0).sum((-2, -1))  # parameters without effect, which were left alone
        rank = rank - dead
        status = status + ((dead > 0) & (status == int(SolveStatus.OK)))
    y = y.reshape(b.shape)
    residual = _dual_residual(x, b, damping.kind, lam, y)
    with np.errstate(over="ignore"):  # which has a status
        y = y / unit * unit_b / unit
    failed = {
        SolveStatus.SINGULAR: (given > 0) & (lam == 0),  # the damping is nothing beside X
        SolveStatus.NOT_FINITE: ~(finite & xp.isfinite(y).all(-1).all(-1)),
    }
    for code, where in failed.items():
        status = xp.where(where & (status <= 1), xp.zeros_like(status) + int(code), status)
    bad = status > int(SolveStatus.USED_PINV)
    y = xp.where(bad[:, None, None], xp.zeros_like(y) + float("nan"), y)
    codes, ranks = (np.asarray(one.cpu() if is_tensor(one) else one) for one in (status, rank))
    known = {"residual": residual, "condition": np.full(count, np.nan)}
    known |= dict.fromkeys(("smallest", "largest"), known["condition"])
    if want_info and scale is None:
        known |= _dual_eigenvalues(factor, strength, unit[:, 0, 0])
    fields = {name: np.where(codes > 1, np.nan, values) for name, values in known.items()} | {
        "method": np.full(count, 6, dtype=np.int8),
        "rank": ranks.astype(np.int64),
        "iterations": np.zeros(count, dtype=np.int64),
    }
    return y.reshape(shape), make_info(codes.astype(np.int8), fields, batch_shape)


def _dual_eigenvalues(factor: Any, strength: Any, unit: Any) -> dict[str, NDArray[Any]]:
    """Smallest and largest eigenvalue and condition of X X^T + strength I, where X is in units."""
    if not min(factor.shape[-2:]):
        return {}
    values = module_of(factor).linalg.svd(factor, full_matrices=False)[1] ** 2
    null = values[:, -1] if factor.shape[-1] >= factor.shape[-2] else 0 * strength
    low, high, square = (
        np.asarray(one.cpu() if is_tensor(one) else one)
        for one in (null + strength, values[:, 0] + strength, unit)
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {
            "condition": high / low,
            "smallest": low * square * square,
            "largest": high * square * square,
        }


def _inner(k: Any, c: Any, d: Any, rcond: float = -1.0) -> tuple[Any, Any]:
    """Return y and status of (k + d I) y = c for the dual; k is symmetric by construction."""
    if is_tensor(k):
        if k.shape[-1] == 0 or not len(k):
            return torch.zeros_like(c), torch.zeros(len(k), dtype=torch.int8, device=k.device)
        y, status, _ = solve_on_device(k, c, Plan("auto", rcond), 1e-9, ("absolute", d))
        return y, status
    k, c, d = (np.ascontiguousarray(one) for one in (k, c, d))
    solution, codes, _ = _core.solve_batch(
        k, c, d if len(d) else np.zeros(1), "auto", "absolute", rcond
    )
    return solution, codes


def _dual_residual(x: Any, b: Any, kind: str, lam: Any, y: Any) -> NDArray[Any]:
    x, b, lam, y = (np.asarray(one.cpu() if is_tensor(one) else one) for one in (x, b, lam, y))
    squares = (x * x).sum(-1)
    strength = {
        "absolute": np.broadcast_to(lam[:, None], squares.shape),
        "relative": np.broadcast_to(
            (lam * squares.mean(-1) if squares.size else lam)[:, None], squares.shape
        ),
        "diagonal": lam[:, None] * squares,
    }[kind]
    if not y.size:
        return np.zeros(len(y))
    gap = np.abs(x @ (x.swapaxes(-1, -2) @ y) + strength[..., None] * y - b).max((-2, -1))
    norm = (
        np.abs(x).sum(-1).max(-1) * np.abs(x).sum(-2).max(-1, initial=0.0) + strength.max(-1)
    ) * np.abs(y).max((-2, -1))
    scale = norm + np.abs(b).max((-2, -1))
    residual: NDArray[Any] = gap / np.where(scale == 0, 1.0, scale)
    return residual


def solve_values(
    matrix: torch.Tensor,
    rhs: torch.Tensor,
    damping: Damping,
    plan: Plan,
    tolerance: float,
    want_info: bool,
) -> tuple[torch.Tensor, SolveInfo]:
    """Return x without derivatives, float64, on the host or on a CUDA device."""
    if matrix.device.type != "cuda":
        a, b = real_array("matrix", matrix), real_array("rhs", rhs)
        solution, info = solve_numpy(a, b, damping, plan, tolerance, want_info)
        return torch.from_numpy(solution), info
    return solve_tensors_on_device(matrix, rhs, damping, plan, tolerance)


def solve_tensors_on_device(
    matrix: torch.Tensor, rhs: torch.Tensor, damping: Damping, plan: Plan, tolerance: float
) -> tuple[torch.Tensor, SolveInfo]:
    """Solve with ``torch.linalg`` on the tensors' device.

    Args:
        matrix: Matrices [..., n, n], or factors [..., n, m] for the dual.
        rhs: Right-hand sides [..., n] or [..., n, k].
        damping: What to add.
        plan: The method.
        tolerance: Allowed asymmetry relative to the largest entry.

    Returns:
        x in float64, of the shape of rhs, and the information.

    Raises:
        ValueError: If the method's start does not have the shape of rhs.
    """
    batch_shape, n = tuple(matrix.shape[:-2]), matrix.shape[-2]
    count = int(np.prod(batch_shape))
    columns = rhs.shape[-1] if rhs.ndim == matrix.ndim else 1
    a = matrix.detach().double().reshape(count, n, matrix.shape[-1])
    b = rhs.detach().double().reshape(count, n, columns)
    if not b.numel():
        return torch.zeros(rhs.shape, dtype=torch.float64, device=rhs.device), make_info(
            np.zeros(count, np.int8), None, batch_shape
        )
    if plan.name == "dual":
        return _solve_dual(a, b, damping, plan, batch_shape, tuple(rhs.shape), True)
    if plan.start is not None and tuple(plan.start.shape) != tuple(rhs.shape):
        raise ValueError(
            f"start: expected the shape of rhs = {tuple(rhs.shape)}, got {tuple(plan.start.shape)}"
        )
    if plan.preconditioner is not None:
        custom = plan.preconditioner
        plan = replace(plan, preconditioner=lambda r: custom(r.reshape(rhs.shape)).reshape(r.shape))
    lam = torch.from_numpy(damping.values(batch_shape)).to(a)
    x, status, details = solve_on_device(a, b, plan, tolerance, (damping.kind, lam))
    fields = {name: values.cpu().numpy() for name, values in details.items()}
    return x.reshape(rhs.shape), make_info(status.cpu().numpy(), fields, batch_shape)


def attach_gradient(
    matrix: torch.Tensor,
    rhs: torch.Tensor,
    damping: Damping,
    plan: Plan,
    x: torch.Tensor,
    info: SolveInfo,
) -> torch.Tensor:
    """Connect a solution x, of the shape of rhs, with the tensors that it came from."""
    batch_shape = tuple(matrix.shape[:-2])
    count, n = int(np.prod(batch_shape)), matrix.shape[-2]
    columns = rhs.shape[-1] if rhs.ndim == matrix.ndim else 1
    a = matrix.double().reshape(count, n, matrix.shape[-1])
    b = rhs.double().reshape(count, n, columns)
    x = x.to(a.device).reshape(b.shape)
    lam = torch.as_tensor(damping.lam, dtype=torch.float64, device=a.device)
    lam = lam.expand(batch_shape).reshape(count)
    if plan.name == "dual":
        if bool((lam <= 0).any()):
            raise ValueError(
                "damping: expected numbers > 0 for derivatives of method 'dual', got 0; use 'auto'"
            )
        factor, scaled, strength, scale = dual_terms(a, b, lam, damping.kind)

        def solve_again(f: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            y, _ = solve_values(f, v, as_damping(s.detach()), plan, 1e-9, False)
            return y.to(f.device)

        y = implicit_dual(factor, strength, scaled, solve_again)
        return (y if scale is None else y * scale).reshape(rhs.shape)
    damped = damped_matrix(a, damping.kind, lam)
    if plan.name in ("pinv", "power"):
        return spectral(damped, b, plan, x).reshape(rhs.shape)
    plain = replace(plan, start=None, preconditioner=None)

    def solver(m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y, known = solve_values(m, v, as_damping(0.0), plain, 1e-9, False)
        # A system that failed before has NaN for gradient; one that only fails now must not pass for solved.
        raise_failures(np.where(known.status == SolveStatus.NOT_CONVERGED, known.status, 0))
        return y.to(m.device)

    fallback = torch.from_numpy(info.status.reshape(-1) == SolveStatus.USED_PINV).to(a.device)
    if not bool(fallback.any()):
        return implicit(damped, b, solver, x).reshape(rhs.shape)
    out = torch.zeros_like(x)
    sound = ~fallback
    out[sound] = implicit(damped[sound], b[sound], solver, x[sound])
    out[fallback] = spectral(damped[fallback], b[fallback], Plan("pinv", plan.rcond), x[fallback])
    return out.reshape(rhs.shape)
