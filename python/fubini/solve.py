"""Damped symmetric systems ``(G + D) x = b``: the step of every natural gradient.

A metric is often singular and sometimes, when it was measured, indefinite. ``numpy.linalg.solve`` then returns numbers
without meaning; here every system of a batch gets a status, and one that cannot be solved never disturbs the others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fubini import _core
from fubini._solve_arrays import (
    RealArray,
    is_tensor,
    like,
    real_array,
    result_dtype,
    symmetry_tolerance,
)
from fubini.damping import Damping, as_damping
from fubini.errors import NumericalError

Operator: TypeAlias = Callable[[Any], Any]


class SolveStatus(enum.IntEnum):
    """What became of a system; ``text`` is a sentence that says what to do."""

    OK = 0
    USED_PINV = 1
    NOT_POSITIVE_DEFINITE = 2
    SINGULAR = 3
    NOT_FINITE = 4
    NOT_SYMMETRIC = 5
    NOT_CONVERGED = 6

    @property
    def text(self) -> str:
        """One sentence: what happened, and the remedy."""
        return str(_core.solve_status_text(int(self)))

    @property
    def failed(self) -> bool:
        """Whether there is no solution to trust."""
        return self > SolveStatus.USED_PINV


@dataclass(frozen=True)
class SolveInfo:
    """What is known about each system; every field is an array of the batch's shape.

    Attributes:
        status: Numbers of :class:`SolveStatus`.
        method: The method that gave x, by name.
        rank: Number of eigenvalues above the cut-off; n for the methods that do not look at eigenvalues.
        condition: Condition number of the damped matrix: from its eigenvalues (2-norm), or estimated from its factors
            (1-norm); NaN for ``cg``.
        smallest: Smallest eigenvalue (``pinv``, ``power``, ``dual``: of X^T X) or pivot (``cholesky``, ``ldlt``).
        largest: Largest eigenvalue or pivot.
        residual: ``max |A x - b| / (|A| |x| + |b|)`` with the damped matrix A; for ``power`` and singular systems it
            is not small.
        iterations: Of ``cg``; 0 otherwise.
    """

    status: NDArray[np.int8]
    method: NDArray[np.str_]
    rank: NDArray[np.int64]
    condition: RealArray
    smallest: RealArray
    largest: RealArray
    residual: RealArray
    iterations: NDArray[np.int64]


@dataclass(frozen=True)
class Pinv:
    """Eigenvalue pseudo-inverse.

    Args:
        rcond: Eigenvalues up to ``rcond`` times the largest magnitude count as zero; None: ``n * 2.2e-16``.
        smooth: Weigh an eigenvalue v by ``1 / (v (1 + (cut-off / v)^6))`` instead of cutting it off, so that x is a
            smooth function of the matrix.
    """

    rcond: float | None = None
    smooth: bool = False


@dataclass(frozen=True)
class Power:
    """``x = (G + D)^-exponent b`` for a positive semi-definite matrix; 0.5 is the inverse square root.

    Args:
        exponent: Any finite number.
        rcond: Cut-off below which eigenvalues count as zero, as for :class:`Pinv`.
    """

    exponent: float = 0.5
    rcond: float | None = None


@dataclass(frozen=True)
class CG:
    """Preconditioned conjugate gradients.

    Args:
        tolerance: Stop when the residual's norm is at most this times the right-hand side's.
        max_iterations: None: 10 n, at least 100.
        preconditioner: Function that maps residuals to directions, of the shape of ``rhs``; None: the inverse
            diagonal for a matrix, nothing for an operator.
        start: First guess, of the shape of ``rhs``; None: zero.
    """

    tolerance: float = 1e-12
    max_iterations: int | None = None
    preconditioner: Operator | None = None
    start: Any = None


@dataclass(frozen=True)
class Dual:
    """``matrix`` is a factor X [..., n, m] with G = X X^T; solves with X^T X [..., m, m] where m < n.

    Args:
        rcond: Cut-off below which eigenvalues of X^T X count as zero when there is no damping, as for :class:`Pinv`.
    """

    rcond: float | None = None


Method: TypeAlias = str | Pinv | Power | CG | Dual


@dataclass(frozen=True)
class Plan:
    """A method with all of its numbers, as the kernel wants them."""

    name: str
    rcond: float = -1.0
    smooth: bool = False
    exponent: float = 1.0
    tolerance: float = 1e-12
    max_iterations: int = 0
    preconditioner: Operator | None = field(default=None, compare=False)
    start: Any = field(default=None, compare=False)


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
    """
    # The common case crosses into the kernel at once: for a 4x4 system everything else would cost more than solving.
    if type(damping) is float and method == "auto" and rcond is None and not return_info:
        x = _core.solve_fast(matrix, rhs, damping)
        if x is not None:
            return x
    plan = _plan(method, rcond, callable(matrix) and not is_tensor(matrix))
    damping = as_damping(damping)
    if callable(matrix) and not is_tensor(matrix):
        raise NotImplementedError
    _check_kinds(matrix, rhs)
    a = real_array("matrix", matrix)
    b = real_array("rhs", rhs)
    _check_shapes(a.shape, b.shape)
    x, info = solve_arrays(a, b, damping, plan, symmetry_tolerance(matrix), return_info)
    if throw:
        raise_failures(info.status)
    result = like(x, rhs, result_dtype(matrix, rhs))
    return (result, info) if return_info else result


def solve_blocks(
    matrices: Sequence[Any], rhs: Sequence[Any], *, damping: Any = 0.0, throw: bool = True
) -> list[Any]:
    """Solve systems of mixed sizes, as the blocks of a block-diagonal metric are, in one call.

    Args:
        matrices: Symmetric matrices, each [n_i, n_i].
        rhs: Right-hand sides, each [n_i] or [n_i, k_i].
        damping: As for :func:`solve`; an array has one number for each block.
        throw: Raise an error when a block cannot be solved. If false, its x is NaN.

    Returns:
        A list with x for each block, of the kind and dtype of its right-hand side.

    Raises:
        NumericalError: If a block cannot be solved and ``throw`` is true.
        TypeError: If an argument is not made of real numbers, or NumPy and torch are mixed.
        ValueError: If lengths or shapes do not fit, or damping is out of its range.
    """
    if len(matrices) != len(rhs):
        raise ValueError(
            f"rhs: expected {len(matrices)} entries, one for each matrix, got {len(rhs)}"
        )
    damping = as_damping(damping)
    a = [real_array(f"matrices[{i}]", one) for i, one in enumerate(matrices)]
    b = [real_array(f"rhs[{i}]", one) for i, one in enumerate(rhs)]
    for one, vector in zip(a, b, strict=True):
        if one.ndim != 2:
            raise ValueError(f"matrices: expected shapes (n, n), got {one.shape}")
        _check_shapes(one.shape, vector.shape)
    strengths = damping.values((len(a),))
    tolerance = max((symmetry_tolerance(one) for one in matrices), default=0.0)
    x, status = _core.solve_list(a, b, strengths, damping.kind, tolerance)
    if throw:
        raise_failures(status, "block")
    return [
        like(one, vector, result_dtype(matrix, vector))
        for one, matrix, vector in zip(x, matrices, rhs, strict=True)
    ]


def solve_arrays(
    a: RealArray, b: RealArray, damping: Damping, plan: Plan, tolerance: float, want_info: bool
) -> tuple[RealArray, SolveInfo]:
    """Solve contiguous float64 systems of checked shapes; nothing is raised for those that fail.

    Args:
        a: Matrices [..., n, n].
        b: Right-hand sides [..., n] or [..., n, k].
        damping: What to add.
        plan: The method.
        tolerance: Allowed asymmetry relative to the largest entry.
        want_info: Fill all fields of the result's second half, not only ``status``.

    Returns:
        x of b's shape, and the information.

    Raises:
        ValueError: If the method's start does not have b's shape.
    """
    batch_shape = a.shape[:-2]
    n = a.shape[-1]
    count = int(np.prod(batch_shape))
    columns = b.shape[-1] if b.ndim == a.ndim else 1
    start = None
    if plan.start is not None:
        start = real_array("start", plan.start)
        if start.shape != b.shape:
            raise ValueError(f"start: expected the shape of rhs = {b.shape}, got {start.shape}")
        start = start.reshape(count, n, columns)
    x, status, details = _core.solve_batch(
        a.reshape(count, n, n),
        b.reshape(count, n, columns),
        damping.values(batch_shape),
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
    return x.reshape(b.shape), make_info(status, details, batch_shape)


def make_info(status: NDArray[np.int8], details: Any, batch_shape: tuple[int, ...]) -> SolveInfo:
    """Arrange the kernel's arrays [count] in the batch's shape.

    Args:
        status: One number for each system.
        details: The other fields by name, or None for empty ones.
        batch_shape: The leading dimensions of the matrices.

    Returns:
        The information.
    """
    if details is None:
        empty = np.empty(0)
        whole = np.empty(0, dtype=np.int64)
        return SolveInfo(
            status.reshape(batch_shape), np.empty(0, "U8"), whole, empty, empty, empty, empty, whole
        )
    names = np.array([_core.solve_method_name(i) for i in range(6)])
    shaped = {name: values.reshape(batch_shape) for name, values in details.items()}
    shaped["method"] = names[shaped["method"]]
    return SolveInfo(status=status.reshape(batch_shape), **shaped)


def raise_failures(status: NDArray[np.int8], noun: str = "system") -> None:
    """Turn the failures of a batch into one error.

    Args:
        status: Numbers of :class:`SolveStatus`, of the batch's shape.
        noun: What one entry is called.

    Raises:
        NumericalError: If there are failures; names the first ten of each kind and the remedy.
    """
    if not (status > SolveStatus.USED_PINV).any():
        return
    parts = []
    for code in np.unique(status[status > SolveStatus.USED_PINV]):
        where = np.argwhere(status == code)
        if status.ndim == 0:
            parts.append(SolveStatus(code).text)
            continue
        names = [str(int(i[0]) if len(i) == 1 else tuple(int(j) for j in i)) for i in where[:10]]
        more = ", ..." if len(where) > 10 else ""
        parts.append(
            f"{noun}{'s' if len(where) > 1 else ''} {', '.join(names)}{more}: {SolveStatus(code).text}"
        )
    failed = int((status > SolveStatus.USED_PINV).sum())
    head = f"solve: {failed} of {status.size} {noun}s failed; " if status.ndim else "solve: "
    raise NumericalError(head + " ".join(parts))


def _plan(method: Method, rcond: float | None, is_operator: bool) -> Plan:
    own = getattr(method, "rcond", None)
    cut = rcond if rcond is not None else own
    if cut is not None and not 0.0 <= cut < 1.0:
        raise ValueError(f"rcond: expected a number in [0, 1), got {cut!r}; None is n * 2.2e-16")
    kernel_cut = -1.0 if cut is None else float(cut)
    if isinstance(method, Pinv):
        return Plan("pinv", kernel_cut, smooth=method.smooth)
    if isinstance(method, Power):
        if not np.isfinite(method.exponent):
            raise ValueError(f"exponent: expected a finite number, got {method.exponent!r}")
        return Plan("power", kernel_cut, exponent=float(method.exponent))
    if isinstance(method, Dual):
        return Plan("dual", kernel_cut)
    if isinstance(method, CG):
        limit = 0 if method.max_iterations is None else method.max_iterations
        if method.max_iterations is not None and limit < 1:
            raise ValueError(f"max_iterations: expected None or a number >= 1, got {limit!r}")
        if not method.tolerance >= 0.0:
            raise ValueError(f"tolerance: expected a number >= 0, got {method.tolerance!r}")
        return Plan(
            "cg",
            tolerance=float(method.tolerance),
            max_iterations=limit,
            preconditioner=method.preconditioner,
            start=method.start,
        )
    known = ("auto", "cholesky", "ldlt", "pinv", "power", "cg", "dual")
    if method not in known:
        raise ValueError(
            f"method: expected one of {known}, or Pinv, Power, CG or Dual, got {method!r}"
        )
    if method == "auto":
        method = "cg" if is_operator else "auto" if rcond is None else "pinv"
    return Plan(method, kernel_cut, exponent=0.5 if method == "power" else 1.0)


def _check_kinds(matrix: Any, rhs: Any) -> None:
    if is_tensor(matrix) != is_tensor(rhs):
        kind = "torch.Tensor" if is_tensor(matrix) else "NumPy array"
        raise TypeError(
            f"rhs: expected a {kind} like matrix, got {type(rhs).__name__}; convert one with torch.as_tensor or .numpy()"
        )
    if is_tensor(matrix) and matrix.device != rhs.device:
        raise ValueError(
            f"rhs: expected device {matrix.device} like matrix, got {rhs.device}; use .to(device)"
        )


def _check_shapes(matrix: tuple[int, ...], rhs: tuple[int, ...], square: bool = True) -> None:
    if len(matrix) < 2 or (square and matrix[-1] != matrix[-2]):
        wanted = "(..., n, n)" if square else "(..., n, m)"
        raise ValueError(f"matrix: expected shape {wanted}, got {matrix}")
    vector = matrix[:-1]
    if rhs != vector and (len(rhs) != len(matrix) or rhs[:-1] != vector):
        raise ValueError(
            f"rhs: expected shape (..., n) = {vector} or (..., n, k) = ({', '.join(map(str, vector))}, k), got {rhs}; "
            "batch dimensions are not broadcast, use numpy.broadcast_to or Tensor.expand"
        )
