"""Solves that never form the matrix: conjugate gradients on an operator, and the dual of a factored metric.

Both are written for NumPy and torch alike (``xp`` is the module), so that they run where the data are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fubini.arrays import is_tensor
from fubini.solvers.methods import Operator, SolveStatus


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
    broken = xp.zeros_like(status) + int(SolveStatus.NOT_FINITE)
    return x, xp.where(xp.isfinite(x).all(-1), status, broken), iterations, reached


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
    if start is not None:
        product = apply(start + x)
        square = dot(product, product)
        share = dot(product, b) / xp.where(square > 0, square, xp.ones_like(square))
        share = xp.where(norm(b - product) <= tolerance * size, xp.ones_like(share), share)
        x, r = share[..., None] * start, b - share[..., None] * product
    safe = xp.where((size > 0) & xp.isfinite(size), size, xp.ones_like(size))
    x = xp.where((size > 0)[..., None], x, xp.zeros_like(x))
    best, least = x, r  # the combination of iterates with the least residual, and that residual
    iterations = xp.zeros_like(size)
    negative = size < 0
    broken = ~xp.isfinite(size) | ~xp.isfinite(norm(r))
    active = (size > 0) & ~broken
    restarted = negative
    direction, before = xp.zeros_like(b), xp.zeros_like(size)
    one = xp.ones_like(size)
    scale = xp.zeros_like(size)  # the operator's norm, a lower bound that grows
    for _ in range(limit):
        done = active & (norm(least) <= tolerance * size)
        if bool(
            done.any()
        ):  # the recursive residual drifts: compute it, and start once more from it
            least = xp.where(done[..., None], b - apply(best), least)
            x, r = xp.where(done[..., None], best, x), xp.where(done[..., None], least, r)
            active = active & ~(done & (restarted | (norm(least) <= tolerance * size)))
            before = xp.where(done, xp.zeros_like(before), before)
            restarted = restarted | done
        if not bool(active.any()):
            break
        z = r if precondition is None else precondition(r)
        now = dot(r, z)
        ratio = xp.where(before != 0, now / xp.where(before != 0, before, one), xp.zeros_like(now))
        direction = z + ratio[..., None] * direction
        product = apply(direction)
        curvature = dot(direction, product)
        bad = active & ~(xp.isfinite(curvature) & xp.isfinite(now))
        length_in, length_out = norm(direction), norm(product)
        rounding = 4.0 * epsilon * length_in * length_out
        ratio = length_out / xp.where(length_in > 0, length_in, one)
        scale = xp.where(active & ~bad & (ratio > scale), ratio, scale)
        below = active & ~bad & ((now < 0) | (curvature < -rounding))
        stuck = active & ~bad & (curvature <= rounding)
        broken, negative, active = broken | bad, negative | below, active & ~(bad | below | stuck)
        length = xp.where(active, now / xp.where(active, curvature, one), xp.zeros_like(now))
        x = xp.where(active[..., None], x + length[..., None] * direction, x)
        r = xp.where(active[..., None], r - length[..., None] * product, r)
        change = r - least
        square = dot(change, change)
        share = -dot(least, change) / xp.where(square > 0, square, one)
        share = xp.where(active & (square > 0), share, xp.zeros_like(share))[..., None]
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
    status = xp.where(late, status + int(SolveStatus.NOT_CONVERGED), status)
    status = xp.where(
        negative, xp.zeros_like(status) + int(SolveStatus.NOT_POSITIVE_DEFINITE), status
    )
    status = xp.where(broken, xp.zeros_like(status) + int(SolveStatus.NOT_FINITE), status)
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


def dual_terms(factor: Any, b: Any, lam: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """Turn every kind of damping into a multiple of the identity; differentiable for tensors.

    Args:
        factor: X [batch, n, m].
        b: Right-hand sides [batch, n, k].
        lam: Strengths [batch].
        kind: ``"absolute"``, ``"relative"`` or ``"diagonal"``.

    Returns:
        X with its rows scaled, b scaled, strengths [batch], and the scale [batch, n, 1] that x is to be multiplied
        with, or None.
    """
    xp = module_of(factor)
    if kind == "absolute":
        return factor, b, lam, None
    squares = (factor * factor).sum(-1)
    if kind == "relative":
        return factor, b, lam * squares.sum(-1) / factor.shape[-2], None
    # G + lam diag(G) = S^-1 (S G S + lam I) S^-1 with S = diag(G)^-1/2. A row of zeros has no scale and no effect: the
    # pseudo-inverse leaves its parameter alone.
    alive = squares > 0
    scale = xp.where(
        alive,
        1.0 / xp.sqrt(xp.where(alive, squares, xp.ones_like(squares))),
        xp.zeros_like(squares),
    )
    scale = xp.where((lam > 0)[:, None], scale, xp.ones_like(scale))[..., None]
    return factor * scale, b * scale, lam, scale


def solve_dual(
    factor: Any, b: Any, lam: Any, rcond: float, inner: Callable[[Any, Any, Any], tuple[Any, Any]]
) -> tuple[Any, Any, Any]:
    """Solve ``(X X^T + lam I) x = b`` through the m x m matrix ``X^T X``.

    ``x = (b - X (X^T X + lam)^-1 X^T b) / lam``. Where lam is small against X^T X that difference cancels, so the
    residual is put through the same formula twice more. Without damping, the smallest solution is
    ``U S^+2 U^T b`` with the singular values S of X, which ``X^T X`` would square away.

    Args:
        factor: X [batch, n, m], finite, with entries of order 1.
        b: Right-hand sides [batch, n, k], finite.
        lam: Damping strengths [batch].
        rcond: Cut-off for ``lam = 0``; negative: ``n * 2.2e-16``.
        inner: Solves (K + d I) y = c for K [batch, m, m], c [batch, m, k], d [batch]; returns y and status [batch].

    Returns:
        x [batch, n, k], status [batch], and the rank [batch]; zeros for damped systems whose factor is not narrow.
    """
    xp = module_of(factor)
    n = factor.shape[-2]
    transposed = factor.swapaxes(-1, -2)
    damped = lam > 0
    safe = xp.where(damped, lam, xp.ones_like(lam))

    def woodbury(v: Any) -> tuple[Any, Any]:
        y, inner_status = inner(gram, transposed @ v, safe)
        return (v - factor @ y) / safe[:, None, None], inner_status

    x, status = xp.zeros_like(b), xp.zeros_like(lam, dtype=xp.int8)
    if n > factor.shape[-1] and bool(damped.any()):
        gram = transposed @ factor
        x, status = woodbury(b)
        for _ in range(2):
            x = x + woodbury(b - factor @ (transposed @ x) - safe[:, None, None] * x)[0]
    ok, used_pinv = xp.zeros_like(status), xp.zeros_like(status) + int(SolveStatus.USED_PINV)
    status = xp.where(status == int(SolveStatus.USED_PINV), ok, status)
    rank = 0 * damped + n
    if not bool(damped.all()):
        narrow = factor
        if n < factor.shape[-1]:  # X = R^T Q^T has the singular values of R^T, and its left vectors
            found = xp.linalg.qr(transposed, mode="r")
            narrow = (found if xp is np else found[1]).swapaxes(-1, -2)
        vectors, values, _ = xp.linalg.svd(narrow, full_matrices=False)
        cut = (n * 2.220446049250313e-16 if rcond < 0 else rcond) ** 0.5
        kept = values > cut * values[:, :1]  # in falling order
        safe = xp.where(kept, values, xp.ones_like(values))
        weights = xp.where(kept, 1.0 / safe**2, xp.zeros_like(values))
        smallest = vectors @ (weights[:, :, None] * (vectors.swapaxes(-1, -2) @ b))
        x = xp.where(damped[:, None, None], x, smallest)
        rank = xp.where(damped, rank, kept.sum(-1))
        status = xp.where(damped, status, xp.where(rank < n, used_pinv, ok))
    return x, status, rank
