"""Systems whose matrix is known by its products alone: conjugate gradients.

Written for NumPy and torch alike (``xp`` is the module), so that they run where the data are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fubini.arrays import is_tensor, like, real_array, result_dtype
from fubini.solvers.damping import Damping
from fubini.solvers.methods import Operator, Plan, SolveInfo, SolveStatus, fit, make_info


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
        check_start(start, b)
        start = torch.from_numpy(start).to(b) if is_tensor(b) else start
    product = same_shape("matrix", operator)
    precondition = plan.preconditioner and same_shape("preconditioner", plan.preconditioner)

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
    codes = np.asarray(status, dtype=np.int8)
    fields = {
        "method": np.full_like(codes, 5),
        "rank": np.full(codes.shape, b.shape[-1]),
        "iterations": np.asarray(iterations).astype(np.int64),
        "residual": np.asarray(residual, dtype=np.float64),
    }
    return x, make_info(codes, fields, codes.shape)


def check_start(start: Any, rhs: Any) -> None:
    """Refuse a first guess that does not have the shape of the right-hand sides."""
    if start is not None and start.shape != rhs.shape:
        raise ValueError(
            f"start: expected the shape of rhs = {tuple(rhs.shape)}, got {tuple(start.shape)}"
        )


def same_shape(name: str, function: Operator) -> Operator:
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


def module_of(array: Any) -> Any:
    """Return torch for a tensor and numpy for everything else."""
    return torch if is_tensor(array) else np


def largest_magnitude(values: Any) -> Any:
    """Return the largest magnitude along the last axis; 0 of nothing."""
    if not values.shape[-1]:
        return values.sum(-1)
    return values.abs().amax(-1) if is_tensor(values) else np.abs(values).max(-1)


def power_of_two(sizes: Any) -> Any:
    """Return a power of two near each size, in whose units squares stay in range; 1 where there is none."""
    xp = module_of(sizes)
    usable = (sizes > 0) & xp.isfinite(sizes)
    exponent = xp.floor(xp.log2(xp.where(usable, sizes, xp.ones_like(sizes))))
    return xp.exp2(exponent.clip(-1000.0, 1000.0))


def marked(status: Any, where: Any, code: SolveStatus) -> Any:
    """Return statuses with a code where a condition holds."""
    xp = module_of(status)
    return xp.where(where, xp.zeros_like(status) + int(code), status)


def _excusable(epsilon: float) -> float:
    """The largest relative residual that rounding may be blamed for."""
    return 1e-3 if epsilon < 1e-12 else 0.1


def conjugate_gradients(
    apply: Operator,
    b: Any,
    precondition: Operator | None,
    start: Any,
    tolerance: float,
    max_iterations: int,
) -> tuple[Any, Any, Any, Any]:
    """Preconditioned conjugate gradients for a batch of vectors at once, their residuals smoothed.

    The same rules as the kernel's: negative curvature is an error, a residual of a few roundings counts as converged,
    and the residual is computed anew before it is believed (for a single NumPy vector only where its rounding could
    matter). What is returned is not the last iterate but the combination of iterates with the least residual
    (Zhou and Walker 1994, SIAM J. Sci. Comput. 15, 297), which needs no further product and is reached several
    products earlier where the spectrum has no gap.

    Args:
        apply: Maps [..., n] to the damped matrix times it.
        b: Right-hand sides [..., n].
        precondition: Maps residuals [..., n] to directions, or None.
        start: First guess [..., n], or None; unless it will do, it is scaled to its least residual.
        tolerance: Relative to the norm of b.
        max_iterations: 0 means 10 n, at least 100.

    Returns:
        x [..., n], status, iterations, and ``|b - A x| / |b|`` [...].
    """
    xp = module_of(b)
    limit = max_iterations or max(100, 10 * b.shape[-1])
    unit = power_of_two(largest_magnitude(b))[..., None]
    scaled = start if start is None else start / unit
    solver = _one_system if xp is np and b.ndim == 1 else _several_systems
    x, status, iterations, reached = solver(apply, b / unit, precondition, scaled, tolerance, limit)
    x = x * unit
    status = marked(status, ~xp.isfinite(x).all(-1), SolveStatus.NOT_FINITE)
    return x, status, iterations, reached


def _several_systems(
    apply: Operator,
    b: Any,
    precondition: Operator | None,
    start: Any,
    tolerance: float,
    limit: int,
) -> tuple[Any, Any, Any, Any]:
    """Right-hand sides of order 1; those that are done wait for the others."""
    xp = module_of(b)
    epsilon = float(xp.finfo(b.dtype).eps)

    def dot(u: Any, v: Any) -> Any:
        return (u * v).sum(-1)

    def norm(u: Any) -> Any:  # squares leave the range of numbers long before the numbers do
        unit = power_of_two(largest_magnitude(u))
        scaled = u / unit[..., None]
        return unit * xp.sqrt(dot(scaled, scaled))

    x, r = xp.zeros_like(b), b + xp.zeros_like(b)
    size = norm(b)
    zero, one = xp.zeros_like(size), xp.ones_like(size)

    def share_of(part: Any, whole: Any) -> Any:  # 0 where there is nothing to divide by
        something = whole != 0
        return xp.where(something, part / xp.where(something, whole, one), zero)

    if start is not None:
        product = apply(start + x)
        share = share_of(dot(product, b), dot(product, product))
        share = xp.where(norm(b - product) <= tolerance * size, one, share)
        x, r = share[..., None] * start, b - share[..., None] * product
    safe = xp.where((size > 0) & xp.isfinite(size), size, one)
    x = xp.where((size > 0)[..., None], x, xp.zeros_like(x))
    best, least = x, r  # the combination of iterates with the least residual, and that residual
    iterations = xp.zeros_like(size)
    negative = size < 0
    broken = ~xp.isfinite(size) | ~xp.isfinite(norm(r))
    active = (size > 0) & ~broken
    restarted = negative
    direction, before = xp.zeros_like(b), zero
    scale = zero  # the operator's norm, a lower bound that grows
    for _ in range(limit):
        done = active & (norm(least) <= tolerance * size)
        if bool(done.any()):  # the recursive residual drifts: compute it, start once more from it
            least = xp.where(done[..., None], b - apply(best), least)
            x, r = xp.where(done[..., None], best, x), xp.where(done[..., None], least, r)
            active = active & ~(done & (restarted | (norm(least) <= tolerance * size)))
            before = xp.where(done, zero, before)
            restarted = restarted | done
        if not bool(active.any()):
            break
        z = r if precondition is None else precondition(r)
        now = dot(r, z)
        direction = z + share_of(now, before)[..., None] * direction
        product = apply(direction)
        curvature = dot(direction, product)
        bad = active & ~(xp.isfinite(curvature) & xp.isfinite(now))
        length_in, length_out = norm(direction), norm(product)
        rounding = 4.0 * epsilon * length_in * length_out
        ratio = share_of(length_out, length_in)
        scale = xp.where(active & ~bad & (ratio > scale), ratio, scale)
        below = active & ~bad & ((now < 0) | (curvature < -rounding))
        stuck = active & ~bad & (curvature <= rounding)
        broken, negative, active = broken | bad, negative | below, active & ~(bad | below | stuck)
        length = share_of(now, xp.where(active, curvature, zero))
        x = xp.where(active[..., None], x + length[..., None] * direction, x)
        r = xp.where(active[..., None], r - length[..., None] * product, r)
        change = r - least
        share = share_of(-dot(least, change), dot(change, change))[..., None]
        best = xp.where(active[..., None], best + share * (x - best), best)
        least = xp.where(active[..., None], least + share * change, least)
        before = now
        iterations = iterations + active
    reached = norm(b - apply(best)) / safe
    broken = broken | ~xp.isfinite(reached)
    status = xp.zeros_like(size)
    # Below the rounding of one product with x there is nothing to reach. A huge x of a singular operator must not
    # excuse a residual of any size.
    attainable = epsilon * (8.0 + b.shape[-1] ** 0.5) * (scale * norm(best) / safe + 1.0)
    late = (reached > tolerance) & ((reached > attainable) | (reached > _excusable(epsilon)))
    status = marked(status, late, SolveStatus.NOT_CONVERGED)
    status = marked(status, negative, SolveStatus.NOT_POSITIVE_DEFINITE)
    status = marked(status, broken, SolveStatus.NOT_FINITE)
    return best, status, iterations, reached


def _one_system(
    apply: Operator,
    b: Any,
    precondition: Operator | None,
    start: Any,
    tolerance: float,
    limit: int,
) -> tuple[Any, Any, Any, Any]:
    """The same for one NumPy vector: without a batch's masks, which take longer than products of small circuits."""
    epsilon = float(np.finfo(b.dtype).eps)

    def norm(u: Any) -> float:
        with np.errstate(over="ignore"):
            square = float(u @ u)
        if 1e-280 < square < 1e280:
            return math.sqrt(square)
        largest = float(np.abs(u).max(initial=0.0))  # in range where the squares are not
        if largest == 0 or not math.isfinite(largest):
            return largest
        return largest * float(np.linalg.norm(u / largest))

    size = norm(b)
    x, r = np.zeros_like(b), b + 0.0
    if size == 0:
        return x, np.int64(SolveStatus.OK), 0, 0.0
    if start is not None:
        product = apply(start + x)
        square = float(product @ product)
        share = float(product @ b) / square if square > 0 else 0.0
        if norm(b - product) <= tolerance * size:
            share = 1.0
        x, r = share * start, b - share * product
    best, least, reached = x, r, norm(r)
    status, known, restarted = SolveStatus.OK, True, False
    iterations, before, scale, largest = 0, 0.0, 0.0, norm(x)
    direction = r
    while np.isfinite(reached) and iterations < limit:
        if reached <= tolerance * size:
            # The recursive residual drifts by roundings of products (Greenbaum 1997, SIAM J. Matrix Anal. Appl. 18,
            # 535); if they could matter it is computed, and the iteration starts once more from it.
            drift = 16.0 * epsilon * (iterations + 1) * (scale * largest + size)
            if 1e3 * drift <= tolerance * size:
                known = True
                break
            least = b - apply(best)
            known, reached = True, norm(least)
            if restarted or not reached > tolerance * size:
                break
            x, r, before, restarted = best, least, 0.0, True
        z = r if precondition is None else precondition(r)
        now = float(r @ z)
        direction = z + (now / before) * direction if before != 0 else z
        product = apply(direction)
        curvature = float(direction @ product)
        if not (np.isfinite(curvature) and np.isfinite(now)):
            status = SolveStatus.NOT_FINITE
            break
        length_in, length_out = norm(direction), norm(product)
        scale = max(scale, length_out / length_in if length_in > 0 else 0.0)
        rounding = 4.0 * epsilon * length_in * length_out
        if now < 0 or curvature < -rounding:
            status = SolveStatus.NOT_POSITIVE_DEFINITE
            break
        if curvature <= rounding:
            break
        x = x + (now / curvature) * direction
        r = r - (now / curvature) * product
        change = r - least
        square = float(change @ change)
        share = -float(least @ change) / square if square > 0 else 0.0
        best = best + share * (x - best)
        least = least + share * change
        before, known = now, False
        iterations, largest, reached = iterations + 1, max(largest, norm(x)), norm(least)
    if not known:
        reached = norm(b - apply(best))
    attainable = epsilon * (8.0 + len(b) ** 0.5) * (scale * norm(best) + size)
    attainable = min(attainable, _excusable(epsilon) * size)
    if not np.isfinite(reached):
        status = SolveStatus.NOT_FINITE
    elif status == SolveStatus.OK and reached > max(tolerance * size, attainable):
        status = SolveStatus.NOT_CONVERGED
    return best, np.int64(status), iterations, reached / size
