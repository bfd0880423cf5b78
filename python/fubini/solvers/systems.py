"""Damped symmetric systems ``(G + D) x = b``: the step of every natural gradient.

A metric is often singular and sometimes, when it was measured, indefinite. ``numpy.linalg.solve`` then returns numbers
without meaning; here every system of a batch gets a status, and one that cannot be solved never disturbs the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

from fubini import _core
from fubini.arrays import is_tensor, like, real_array, result_dtype, symmetry_tolerance
from fubini.solvers.damping import Damping, as_damping
from fubini.solvers.interrupts import interruptible
from fubini.solvers.methods import (
    CG,
    Dual,
    Method,
    Pinv,
    Power,
    SolveInfo,
    SolveStatus,
    fit,
    make_plan,
    raise_failures,
)
from fubini.solvers.products import solve_operator
from fubini.solvers.run import attach_gradient, check_shapes, solve_values
from fubini.torch_private import is_forward_mode, is_wrapped

# Methods without options of their own, for matrices alone.
_DIRECT = ("auto", "cholesky", "ldlt", "pinv")

__all__ = ["CG", "Dual", "Pinv", "Power", "SolveInfo", "SolveStatus", "solve", "solve_blocks"]


def solve(
    matrix: Any,
    rhs: Any,
    *,
    damping: Any = 0.0,
    method: Method = "auto",
    rcond: float | None = None,
    throw: bool = True,
    return_info: bool = False,
) -> Any:
    """Solve ``(G + D) x = b`` for every symmetric matrix G of a batch.

    A right-hand side of shape ``matrix.shape[:-1]`` is one vector for each system; one with a further dimension holds
    k columns for each system. Nothing is broadcast. ``(3, 3, 3)`` with ``(3, 3)`` is therefore three systems with
    one vector each, and ``(3, 3)`` with ``(3, 3)`` one system with three columns.

    For torch tensors x can be differentiated by autograd with respect to the matrices, the right-hand sides and the
    damping, any number of times, and once where eigenvalues were used (``"pinv"``, ``"power"``, and ``"auto"`` for a
    singular matrix); not for a function, and not inside the transforms of ``torch.func``. The gradient for a matrix
    is symmetric.

    Args:
        matrix: Symmetric matrices [..., n, n]: NumPy array, torch tensor on any device, or nested lists. For
            ``method="dual"`` factors [..., n, m]. For ``"cg"`` also a function that maps vectors [..., n] to G times
            them.
        rhs: Right-hand sides [..., n] or [..., n, k], of the same kind.
        damping: ``lam``, one number or one for each system, for ``D = lam I``; :class:`~fubini.Relative` for
            ``lam mean(diag G) I``; :class:`~fubini.Diagonal` for ``lam diag(G)``.
        method: ``"auto"`` (Cholesky; where the matrix is not positive definite to working precision, ``"pinv"``; for
            a function, ``"cg"``), ``"cholesky"``, ``"ldlt"`` (symmetric indefinite), ``"pinv"``, ``"cg"``,
            ``"dual"``, ``"power"`` (inverse square root), or one of the objects :class:`Pinv`, :class:`CG`,
            :class:`Dual`, :class:`Power` with further options.
        rcond: Cut-off of the pseudo-inverse relative to the largest eigenvalue, default ``n * 2.2e-16``. If given,
            ``"auto"`` is ``"pinv"``.
        throw: Raise an error when a system cannot be solved. If false, its x is NaN (``"cg"``: the last iterate).
        return_info: Return ``(x, info)`` with a :class:`SolveInfo`; costs a second factorisation.

    Returns:
        x, of the shape, kind, dtype and device of ``rhs``; with ``return_info`` a pair.

    Raises:
        NumericalError: If a system cannot be solved and ``throw`` is true.
        TypeError: If an argument is not made of real numbers, or NumPy and torch are mixed.
        ValueError: If shapes do not fit, or a number is out of its range.

    Example:
        >>> import fubini, numpy as np
        >>> g = np.array([[2.0, 0.0], [0.0, 0.0]])  # singular: damping, or the pseudo-inverse, decides
        >>> fubini.solve(g, np.array([2.0, 1.0]), damping=0.5)
        array([0.8, 2. ])
        >>> fubini.solve(g, np.array([2.0, 1.0]))
        array([1., 0.])
    """
    given = isinstance(damping, Damping)
    lam, kind = (damping.lam, damping.kind) if given else (damping, "absolute")
    _refuse_tangents(matrix, rhs, lam)
    # The common case crosses into the kernel at once: anything else would cost more than a 4x4 system itself.
    x: Any
    plain = type(lam) is float and rcond is None and not return_info
    if plain and isinstance(method, str) and method in _DIRECT:
        x = _solve_fast(matrix, rhs, lam, kind, method)
        if x is not None:
            return x
    operator = callable(matrix) and not is_tensor(matrix)
    plan = make_plan(method, rcond, operator)
    added = as_damping(damping)
    if operator:
        x, info = solve_operator(matrix, rhs, added, plan)
        if throw:
            raise_failures(info.status)
        return (x, info) if return_info else x
    _check_kinds(matrix, rhs)
    tolerance = symmetry_tolerance(matrix)
    x, info = solve_values(matrix, rhs, added, plan, tolerance, return_info)
    dtype = result_dtype(matrix, rhs)
    fit(x, info.status, dtype)
    if throw:
        raise_failures(info.status)
    if _wants_gradient(matrix, rhs, added.lam) and is_tensor(matrix):
        x = attach_gradient(matrix, rhs, added, plan, x, info)
    x = x.to(dtype) if is_tensor(x) else like(x, rhs, dtype)
    return (x, info) if return_info else x


def solve_blocks(
    matrices: Sequence[Any],
    rhs: Sequence[Any],
    *,
    damping: Any = 0.0,
    throw: bool = True,
    return_status: bool = False,
) -> Any:
    """Solve systems of mixed sizes, as the blocks of a block-diagonal metric are, in one call.

    Args:
        matrices: Symmetric matrices, each [n_i, n_i].
        rhs: Right-hand sides, each [n_i] or [n_i, k_i].
        damping: As for :func:`solve`; an array has one number for each block.
        throw: Raise an error when a block cannot be solved. If false, its x is NaN.
        return_status: Return ``(x, status)`` with an array of :class:`SolveStatus` numbers.

    Returns:
        A list with x for each block, of the kind and dtype of its right-hand side; with ``return_status`` a pair.

    Raises:
        NumericalError: If a block cannot be solved and ``throw`` is true.
        TypeError: If an argument is not made of real numbers, or NumPy and torch are mixed.
        ValueError: If lengths or shapes do not fit, or damping is out of its range.

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve_blocks([np.eye(1), 2 * np.eye(2)], [np.ones(1), np.ones(2)])
        [array([1.]), array([0.5, 0.5])]
    """
    if len(matrices) != len(rhs):
        raise ValueError(
            f"rhs: expected {len(matrices)} entries, one for each matrix, got {len(rhs)}"
        )
    given = isinstance(damping, Damping)
    lam, kind = (damping.lam, damping.kind) if given else (damping, "absolute")
    _refuse_tangents(*matrices, *rhs, lam)
    found = _blocks_fast(list(matrices), list(rhs), lam, kind) if type(lam) is float else None
    x, status = found or _blocks_slow(matrices, rhs, damping)
    if throw:
        raise_failures(status, "block")
    return (x, status) if return_status else x


def _blocks_slow(
    matrices: Sequence[Any], rhs: Sequence[Any], damping: Any
) -> tuple[list[Any], NDArray[np.int8]]:
    for matrix, vector in zip(matrices, rhs, strict=True):
        _check_kinds(matrix, vector)
    added = as_damping(damping)
    strengths = added.values((len(matrices),))
    if _wants_gradient(*matrices, *rhs, added.lam):
        each = torch.as_tensor(added.lam, dtype=torch.float64).expand(len(matrices))
        pairs = [
            solve(one, vector, damping=type(added)(lam), throw=False, return_info=True)
            for one, vector, lam in zip(matrices, rhs, each, strict=True)
        ]
        return [x for x, _ in pairs], np.array([info.status for _, info in pairs], dtype=np.int8)
    a = [real_array(f"matrices[{i}]", one) for i, one in enumerate(matrices)]
    b = [real_array(f"rhs[{i}]", one) for i, one in enumerate(rhs)]
    for one, vector in zip(a, b, strict=True):
        if one.ndim != 2:
            raise ValueError(f"matrices: expected shapes (n, n), got {one.shape}")
        check_shapes(one.shape, vector.shape)
    strengths = np.broadcast_to(strengths, len(a))
    tolerances = np.array([symmetry_tolerance(one) for one in matrices])
    x: list[Any] = [None] * len(a)
    status = np.zeros(len(a), dtype=np.int8)
    for tolerance in np.unique(tolerances):  # one call for each width of number
        where = np.flatnonzero(tolerances == tolerance).tolist()
        solved, codes = interruptible(
            sum(0.3 * len(a[i]) ** 3 for i in where),
            _core.solve_list,
            [a[i] for i in where],
            [b[i] for i in where],
            strengths[where],
            added.kind,
            float(tolerance),
        )
        for i, one, code in zip(where, solved, codes, strict=True):
            dtype = result_dtype(matrices[i], rhs[i])
            status[i] = code
            fit(one, status[i : i + 1].reshape(()), dtype)
            x[i] = like(one, rhs[i], dtype)
    return x, status


def _blocks_fast(
    matrices: list[Any], rhs: list[Any], lam: float, kind: str
) -> tuple[list[Any], NDArray[np.int8]] | None:
    tensors = bool(matrices) and isinstance(matrices[0], torch.Tensor)
    if tensors:
        try:  # refuses what needs a gradient, lives elsewhere or is lazily negated
            matrices, rhs = [one.numpy() for one in matrices], [one.numpy() for one in rhs]
        except (AttributeError, RuntimeError, TypeError):
            return None
    solved = _core.solve_list_fast(matrices, rhs, lam, kind)
    if solved is None or not tensors:
        return solved
    return [torch.from_numpy(one) for one in solved[0]], solved[1]


def _solve_fast(matrix: Any, rhs: Any, lam: float, kind: str, method: str) -> Any:
    if not isinstance(matrix, torch.Tensor):
        return _core.solve_fast(matrix, rhs, lam, kind, method)
    try:  # refuses what needs a gradient, lives elsewhere, is lazily negated or inside a transform of torch.func
        x = _core.solve_fast(matrix.numpy(), rhs.numpy(), lam, kind, method)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return None if x is None else torch.from_numpy(x)


def _refuse_tangents(*values: Any) -> None:
    if is_forward_mode() and any(
        forward_ad.unpack_dual(one).tangent is not None  # type: ignore[no-untyped-call]
        for one in values
        if is_tensor(one)
    ):
        raise TypeError(
            "matrix, rhs, damping: expected tensors without tangents, since solve has no forward-mode derivative; "
            "use torch.autograd.grad"
        )


def _wants_gradient(*values: Any) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in values
    )


def _check_kinds(matrix: Any, rhs: Any) -> None:
    if is_tensor(matrix) != is_tensor(rhs):
        kind = "torch.Tensor" if is_tensor(matrix) else "NumPy array"
        raise TypeError(
            f"rhs: expected a {kind} like matrix, got {type(rhs).__name__}; convert one with torch.as_tensor or .numpy()"
        )
    if is_tensor(matrix) and any(is_wrapped(one) for one in (matrix, rhs)):
        raise TypeError(
            "matrix, rhs: expected tensors with values, got some inside a transform of torch.func; "
            "solve takes batches as they are, and torch.autograd differentiates it"
        )
    if is_tensor(matrix) and matrix.device != rhs.device:
        raise ValueError(
            f"rhs: expected device {matrix.device} like matrix, got {rhs.device}; use .to(device)"
        )
