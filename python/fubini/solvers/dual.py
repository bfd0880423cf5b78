"""Systems whose matrix is X X^T, solved in the smaller of the two spaces that X connects."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fubini import _core
from fubini.arrays import is_tensor
from fubini.solvers.damping import Damping
from fubini.solvers.derivatives import solve_on_device
from fubini.solvers.factored import (
    dual_terms,
    largest_magnitude,
    module_of,
    power_of_two,
    solve_dual,
)
from fubini.solvers.methods import Plan, SolveInfo, SolveStatus, make_info


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
