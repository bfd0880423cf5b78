"""Systems whose matrix is X X^T, solved in the smaller of the two spaces that X connects."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fubini import _core
from fubini.arrays import is_tensor
from fubini.solvers.damping import Damping
from fubini.solvers.derivatives import solve_on_device
from fubini.solvers.methods import Plan, SolveInfo, SolveStatus, make_info
from fubini.solvers.products import largest_magnitude, marked, module_of, power_of_two


def solve_factored(
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
    y, status, rank = _solve_scaled(factor, rhs, strength, plan.rcond)
    if scale is not None:
        y = y * scale
        dead = (scale == 0).sum((-2, -1))  # parameters without effect, which were left alone
        rank = rank - dead
        status = status + ((dead > 0) & (status == int(SolveStatus.OK)))
    y = y.reshape(b.shape)
    # Of the damped matrix, in these units.
    added = strength[:, None] if scale is None else lam[:, None] * (x * x).sum(-1)
    residual = _residual(*map(_host, (x, b, y, added)))
    with np.errstate(over="ignore"):  # which has a status
        y = y / unit * unit_b / unit
    solved = status <= int(SolveStatus.USED_PINV)
    lost = (given > 0) & (lam == 0)  # the damping is nothing beside X
    status = marked(status, solved & lost, SolveStatus.SINGULAR)
    broken = ~(finite & xp.isfinite(y).all(-1).all(-1))
    status = marked(status, solved & broken & ~lost, SolveStatus.NOT_FINITE)
    bad = status > int(SolveStatus.USED_PINV)
    y = xp.where(bad[:, None, None], xp.zeros_like(y) + float("nan"), y)
    codes = _host(status)
    known = {"residual": residual}
    if want_info and scale is None:
        known |= _dual_eigenvalues(factor, strength, unit[:, 0, 0])
    fields = {name: np.where(codes > 1, np.nan, values) for name, values in known.items()} | {
        "method": np.full(count, 6, dtype=np.int8),
        "rank": _host(rank).astype(np.int64),
    }
    return y.reshape(shape), make_info(codes.astype(np.int8), fields, batch_shape)


def _host(values: Any) -> Any:
    return values.cpu().numpy() if is_tensor(values) else np.asarray(values)


def _dual_eigenvalues(factor: Any, strength: Any, unit: Any) -> dict[str, NDArray[Any]]:
    """Smallest and largest eigenvalue and condition of X X^T + strength I, where X is in units."""
    if not min(factor.shape[-2:]):
        return {}
    values = module_of(factor).linalg.svd(factor, full_matrices=False)[1] ** 2
    null = values[:, -1] if factor.shape[-1] >= factor.shape[-2] else 0 * strength
    low, high, size = map(_host, (null + strength, values[:, 0] + strength, unit))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {
            "condition": high / low,
            "smallest": low * size * size,
            "largest": high * size * size,
        }


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


def _solve_scaled(factor: Any, b: Any, lam: Any, rcond: float) -> tuple[Any, Any, Any]:
    """Solve ``(X X^T + lam I) x = b`` through the m x m matrix ``X^T X``.

    ``x = (b - X (X^T X + lam)^-1 X^T b) / lam``. Where lam is small against X^T X that difference cancels, so the
    residual is put through the same formula twice more. Without damping, the smallest solution is
    ``U S^+2 U^T b`` with the singular values S of X, which ``X^T X`` would square away.

    Args:
        factor: X [batch, n, m], finite, with entries of order 1.
        b: Right-hand sides [batch, n, k], finite.
        lam: Damping strengths [batch].
        rcond: Cut-off for ``lam = 0``; negative: ``n * 2.2e-16``.

    Returns:
        x [batch, n, k], status [batch], and the rank [batch].
    """
    xp = module_of(factor)
    n = factor.shape[-2]
    transposed = factor.swapaxes(-1, -2)
    damped = lam > 0
    safe = xp.where(damped, lam, xp.ones_like(lam))

    def woodbury(v: Any) -> tuple[Any, Any]:
        y, inner_status = _inner(gram, transposed @ v, safe)
        return (v - factor @ y) / safe[:, None, None], inner_status

    x, status = xp.zeros_like(b), xp.zeros_like(lam, dtype=xp.int8)
    if bool(damped.any()) and n > factor.shape[-1]:
        gram = transposed @ factor
        x, status = woodbury(b)
        for _ in range(2):
            x = x + woodbury(b - factor @ (transposed @ x) - safe[:, None, None] * x)[0]
        status = marked(status, status == int(SolveStatus.USED_PINV), SolveStatus.OK)
    elif bool(damped.any()):
        # The factor is no narrower than the matrix: nothing to gain, and nothing to cancel.
        x, status = _inner(factor @ transposed, b, lam, rcond)
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
        status = marked(status, ~damped, SolveStatus.OK)
        status = marked(status, ~damped & (rank < n), SolveStatus.USED_PINV)
    return x, status, rank


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


def _residual(x: Any, b: Any, y: Any, added: Any) -> NDArray[Any]:
    """Of (X X^T + the diagonal that is added) y = b, relative."""
    if not y.size:
        return np.zeros(len(y))
    gap = np.abs(x @ (x.swapaxes(-1, -2) @ y) + added[..., None] * y - b).max((-2, -1))
    norm = (
        np.abs(x).sum(-1).max(-1) * np.abs(x).sum(-2).max(-1, initial=0.0) + added.max(-1)
    ) * np.abs(y).max((-2, -1))
    scale = norm + np.abs(b).max((-2, -1))
    residual: NDArray[Any] = gap / np.where(scale == 0, 1.0, scale)
    return residual
