"""Puts the pieces of ``solve`` together for arrays and tensors whose shapes have been checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fubini import _core
from fubini.arrays import RealArray, real_array
from fubini.solvers.damping import Damping, as_damping
from fubini.solvers.derivatives import (
    damped_matrix,
    implicit,
    implicit_dual,
    solve_on_device,
    spectral,
)
from fubini.solvers.dual import solve_factored
from fubini.solvers.factored import (
    dual_terms,
)
from fubini.solvers.interrupts import interruptible
from fubini.solvers.methods import (
    Plan,
    SolveInfo,
    SolveStatus,
    make_info,
    raise_failures,
)
from fubini.solvers.products import same_shape


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
            solve_factored,
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
        custom = same_shape("preconditioner", plan.preconditioner)
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
        return solve_factored(a, b, damping, plan, batch_shape, tuple(rhs.shape), True)
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
