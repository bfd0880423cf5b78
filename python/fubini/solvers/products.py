"""Systems whose matrix is known by its products alone."""

from typing import Any

import numpy as np
import torch

from fubini.arrays import is_tensor, like, real_array, result_dtype
from fubini.solvers.damping import Damping
from fubini.solvers.factored import conjugate_gradients
from fubini.solvers.methods import Operator, Plan, SolveInfo, fit, make_info


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
