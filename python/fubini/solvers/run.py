"""Puts the pieces of ``solve`` together for arrays and tensors whose shapes have been checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import RealArray, is_tensor, real_array
from fubini.solvers.damping import Damping, as_damping
from fubini.solvers.derivatives import (
    damped_matrix,
    implicit,
    pull_factor,
    pull_matrix,
    solve_on_device,
    spectral,
)
from fubini.solvers.dual import dual_terms, solve_factored
from fubini.solvers.interrupts import interruptible
from fubini.solvers.methods import (
    Plan,
    SolveInfo,
    SolveStatus,
    make_info,
    raise_failures,
)
from fubini.solvers.products import check_start, same_shape


def flat(matrix: Any, rhs: Any) -> tuple[Any, Any]:
    """Return matrix [..., n, m] as [batch, n, m], and rhs [..., n] or [..., n, k] as [batch, n, k]."""
    n, count = matrix.shape[-2], math.prod(matrix.shape[:-2])
    columns = rhs.shape[-1] if rhs.ndim == matrix.ndim else 1
    return matrix.reshape(count, n, matrix.shape[-1]), rhs.reshape(count, n, columns)


def solve_numpy(
    a: RealArray, b: RealArray, damping: Damping, plan: Plan, tolerance: float, want_info: bool
) -> tuple[RealArray, SolveInfo]:
    # Contiguous float64 systems; failures are only reported.
    """Solve a batch of NumPy systems by a plan."""
    batch_shape = a.shape[:-2]
    flat_a, flat_b = flat(a, b)
    count, n, width = flat_a.shape
    columns = flat_b.shape[-1]
    if plan.name == "dual":
        return interruptible(
            8.0 * count * n * width * (min(n, width) + columns),
            solve_factored,
            flat_a,
            flat_b,
            damping,
            plan,
            batch_shape,
            b.shape,
            want_info,
        )
    start = None if plan.start is None else real_array("start", plan.start)
    check_start(start, b)
    if plan.preconditioner is not None:
        # A function of the caller's runs in a loop in Python; it sees and returns the shape of rhs.
        custom = same_shape("preconditioner", plan.preconditioner)
        shaped = replace(
            plan,
            start=None if start is None else torch.from_numpy(start),
            preconditioner=lambda r: torch.from_numpy(custom(r.numpy())),
        )
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        x, info = solve_tensors_on_device(*tensors, damping, shaped, tolerance)
        return x.numpy(), info
    eigenvalues = plan.name in ("pinv", "power")
    solution, codes, fields = interruptible(
        float(count) * n * n * (n * (10.0 if eigenvalues else 0.3) + 2.0 * columns),
        _core.solve_batch,
        flat_a,
        flat_b,
        damping.values(batch_shape),
        plan.name,
        damping.kind,
        plan.rcond,
        plan.smooth,
        plan.exponent,
        tolerance,
        plan.tolerance,
        plan.max_iterations,
        None if start is None else start.reshape(flat_b.shape),
        want_info,
    )
    return solution.reshape(b.shape), make_info(codes, fields, batch_shape)


def solve_values(
    matrix: Any, rhs: Any, damping: Damping, plan: Plan, tolerance: float, want_info: bool
) -> tuple[Any, SolveInfo]:
    """Return x without derivatives, float64: an array, or a tensor on the CUDA device that holds the arguments."""
    square = plan.name != "dual"
    if is_tensor(matrix) and matrix.device.type == "cuda":
        for name, one in (("matrix", matrix), ("rhs", rhs)):
            if one.is_complex() or one.layout is not torch.strided or one.is_quantized:
                real_array(name, one)  # which says what is wrong
        check_shapes(tuple(matrix.shape), tuple(rhs.shape), square)
        return solve_tensors_on_device(matrix, rhs, damping, plan, tolerance)
    a, b = real_array("matrix", matrix), real_array("rhs", rhs)
    check_shapes(a.shape, b.shape, square)
    return solve_numpy(a, b, damping, plan, tolerance, want_info)


def check_shapes(matrix: tuple[int, ...], rhs: tuple[int, ...], square: bool = True) -> None:
    """Refuse shapes that do not fit; ``square``: whether the matrix must be."""
    if len(matrix) < 2 or (square and matrix[-1] != matrix[-2]):
        wanted = "(..., n, n)" if square else "(..., n, m)"
        raise ValueError(f"matrix: expected shape {wanted}, got {matrix}")
    vector = matrix[:-1]
    if rhs != vector and (len(rhs) != len(matrix) or rhs[:-1] != vector):
        raise ValueError(
            f"rhs: expected shape (..., n) = {vector} or (..., n, k) = ({', '.join(map(str, vector))}, k), got {rhs}; "
            "batch dimensions are not broadcast, use numpy.broadcast_to or Tensor.expand"
        )


@torch.no_grad()
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
    batch_shape = tuple(matrix.shape[:-2])
    a, b = flat(matrix.detach().double(), rhs.detach().double())
    if not b.numel():
        return b.reshape(rhs.shape), make_info(np.zeros(len(b), np.int8), None, batch_shape)
    if plan.name == "dual":
        return solve_factored(a, b, damping, plan, batch_shape, tuple(rhs.shape), True)
    check_start(plan.start, rhs)
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
    x: Any,
    info: SolveInfo,
) -> torch.Tensor:
    """Connect a solution x, of the shape of rhs, with the tensors that it came from."""
    a, b = flat(matrix.double(), rhs.double())
    x = torch.as_tensor(x, device=a.device).reshape(b.shape)
    lam = torch.as_tensor(damping.lam, dtype=torch.float64, device=a.device)
    lam = lam.expand(matrix.shape[:-2]).reshape(len(a))
    if plan.name == "dual":
        if bool((lam <= 0).any()):
            raise ValueError(
                "damping: expected numbers > 0 for derivatives of method 'dual', got 0; use 'auto'"
            )
        factor, scaled, strength, scale = dual_terms(a, b, lam, damping.kind)

        def solve_again(v: torch.Tensor, f: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            y, _ = solve_values(f, v, as_damping(s.detach()), plan, 1e-9, False)
            return torch.as_tensor(y, device=f.device)

        y = implicit(solve_again, pull_factor, None, scaled, factor, strength)
        return (y if scale is None else y * scale).reshape(rhs.shape)
    damped = damped_matrix(a, damping.kind, lam)
    if plan.name in ("pinv", "power"):
        return spectral(damped, b, plan, x).reshape(rhs.shape)
    plain = replace(plan, start=None, preconditioner=None)

    def solver(v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        y, known = solve_values(m, v, as_damping(0.0), plain, 1e-9, False)
        # A system that failed before has NaN for gradient; one that only fails now must not pass for solved.
        raise_failures(np.where(known.status == SolveStatus.NOT_CONVERGED, known.status, 0))
        return torch.as_tensor(y, device=m.device)

    fallback = torch.from_numpy(info.status.reshape(-1) == SolveStatus.USED_PINV).to(a.device)
    if not bool(fallback.any()):
        return implicit(solver, pull_matrix, x, b, damped).reshape(rhs.shape)
    out = torch.zeros_like(x)
    sound = ~fallback
    out[sound] = implicit(solver, pull_matrix, x[sound], b[sound], damped[sound])
    out[fallback] = spectral(damped[fallback], b[fallback], Plan("pinv", plan.rcond), x[fallback])
    return out.reshape(rhs.shape)
