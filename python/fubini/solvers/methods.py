"""The words of ``solve``: statuses, information, methods, and what they mean to the kernel."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fubini import _core
from fubini.arrays import RealArray, is_tensor
from fubini.errors import NumericalError

Operator: TypeAlias = Callable[[Any], Any]


class SolveStatus(enum.IntEnum):
    """What became of a system; ``text`` is a sentence that says what to do.

    Example:
        >>> import fubini, numpy as np
        >>> x, info = fubini.solve(np.diag([1.0, 4.0]), np.ones(2), return_info=True)
        >>> fubini.SolveStatus(int(info.status)).name
        'OK'
    """

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
            (1-norm); NaN for ``cg``, and for ``dual`` with :class:`~fubini.Diagonal`.
        smallest: Smallest eigenvalue (``pinv``, ``power``, ``dual``) or pivot (``cholesky``, ``ldlt``) of the damped
            matrix; NaN where nothing is known of it, or the system failed.
        largest: Largest eigenvalue or pivot.
        residual: ``max |A x - b| / (|A| |x| + |b|)`` with the damped matrix A; for ``power`` and singular systems it
            is not small.
        iterations: Of ``cg``; 0 otherwise.

    Example:
        >>> import fubini, numpy as np
        >>> x, info = fubini.solve(np.diag([1.0, 4.0]), np.ones(2), return_info=True)
        >>> str(info.method), int(info.rank), float(info.condition)
        ('cholesky', 2, 4.0)
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

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve(np.diag([2.0, 0.0]), np.array([4.0, 1.0]), method=fubini.Pinv())
        array([2., 0.])
    """

    rcond: float | None = None
    smooth: bool = False


@dataclass(frozen=True)
class Power:
    """``x = (G + D)^-exponent b`` for a positive semi-definite matrix; 0.5 is the inverse square root.

    Args:
        exponent: Any finite number.
        rcond: Cut-off below which eigenvalues count as zero, as for :class:`Pinv`.

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve(np.diag([4.0, 9.0]), np.array([1.0, 1.0]), method=fubini.Power(0.5)).round(6)
        array([0.5     , 0.333333])
    """

    exponent: float = 0.5
    rcond: float | None = None


@dataclass(frozen=True)
class CG:
    """Preconditioned conjugate gradients (Hestenes and Stiefel 1952).

    Args:
        tolerance: Stop when the residual's norm is at most this times the right-hand side's.
        max_iterations: None: 10 n, at least 100.
        preconditioner: Function that maps residuals to directions, of the shape of ``rhs``; None: the inverse
            diagonal for a matrix, nothing for an operator.
        start: First guess, of the shape of ``rhs``; None: zero.

    Example:
        >>> import fubini, numpy as np
        >>> g = np.diag([1.0, 2.0, 3.0])
        >>> fubini.solve(lambda v: g @ v, np.array([1.0, 4.0, 9.0]), method=fubini.CG()).round(6)
        array([1., 2., 3.])
    """

    tolerance: float = 1e-12
    max_iterations: int | None = None
    preconditioner: Operator | None = None
    start: Any = None


@dataclass(frozen=True)
class Dual:
    """``matrix`` is a factor X [..., n, m] with G = X X^T; solves with X^T X [..., m, m] where m < n.

    With fewer samples than parameters this is the small system of MinSR (Chen and Heyl 2024, arXiv:2302.01941).

    Args:
        rcond: Cut-off below which eigenvalues of X^T X count as zero when there is no damping, as for :class:`Pinv`.

    Example:
        >>> import fubini, numpy as np
        >>> x = np.array([[1.0], [2.0]])  # g = x x^T, of rank one
        >>> fubini.solve(x, np.array([1.0, 2.0]), damping=1.0, method=fubini.Dual()).round(6)
        array([0.166667, 0.333333])
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


def make_info(status: NDArray[np.int8], details: Any, batch_shape: tuple[int, ...]) -> SolveInfo:
    """Arrange the kernel's arrays [count] in the batch's shape.

    Args:
        status: One number for each system.
        details: The other fields by name, as far as they are known, or None.
        batch_shape: The leading dimensions of the matrices.

    Returns:
        The information.
    """
    known = details or {}
    if len(known) < 7:
        unknown, none = np.full(status.size, np.nan), np.zeros(status.size, dtype=np.int64)
        nothing = dict.fromkeys(("condition", "smallest", "largest", "residual"), unknown)
        known = nothing | dict.fromkeys(("method", "rank", "iterations"), none) | known
    names = np.array([*(_core.solve_method_name(i) for i in range(6)), "dual"])
    shaped = {name: values.reshape(batch_shape) for name, values in known.items()}
    shaped["method"] = names[shaped["method"]]
    return SolveInfo(status=status.reshape(batch_shape), **shaped)


def fit(x: Any, status: NDArray[np.int8], dtype: Any) -> None:
    """Make NaN of the solutions that overflow a dtype, and say so in the status, both in place.

    Args:
        x: Array or tensor, the systems' dimensions first.
        status: Numbers of :class:`SolveStatus`, one for each system.
        dtype: What x is going to be.
    """
    if dtype in (np.float64, torch.float64) or not status.size or 0 in x.shape:
        return
    limits: Any = torch.finfo if isinstance(dtype, torch.dtype) else np.finfo
    over = (abs(x) > float(limits(dtype).max)).reshape(*status.shape, -1).any(-1)
    if bool(over.any()):
        x[over] = np.nan
        status[over.cpu().numpy() if is_tensor(over) else over] = SolveStatus.NOT_FINITE


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


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (str, bytes)) and np.ndim(value) == 0:
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name}: expected a number, got {value!r}")


def _whole(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"max_iterations: expected None or a whole number, got {value!r}") from None


def make_plan(method: Method, rcond: float | None, is_operator: bool) -> Plan:
    """Turn what the caller said into numbers.

    Args:
        method: A word or an object.
        rcond: Cut-off relative to the largest eigenvalue, or None.
        is_operator: Whether the matrix is a function.

    Returns:
        The plan.

    Raises:
        TypeError: If an option is not a number.
        ValueError: If a word is not known, or a number is out of its range.
    """
    own = getattr(method, "rcond", None)
    cut = rcond if rcond is not None else own
    if cut is not None and not 0.0 <= _number("rcond", cut) < 1.0:
        raise ValueError(f"rcond: expected a number in [0, 1), got {cut!r}; None is n * 2.2e-16")
    if rcond is not None and own is not None:
        raise ValueError(
            f"rcond: expected once, got {rcond!r} and {method!r}; leave one of them out"
        )
    blind = isinstance(method, str) and method in ("cholesky", "ldlt", "cg")
    if rcond is not None and (blind or isinstance(method, CG)):
        raise ValueError(
            f"rcond: expected None for method {method!r}, which looks at no eigenvalues, got {rcond!r}; "
            "use 'pinv' or 'auto'"
        )
    kernel_cut = -1.0 if cut is None else float(cut)
    if isinstance(method, Pinv):
        return Plan("pinv", kernel_cut, smooth=method.smooth)
    if isinstance(method, Power):
        if not np.isfinite(_number("exponent", method.exponent)):
            raise ValueError(f"exponent: expected a finite number, got {method.exponent!r}")
        return Plan("power", kernel_cut, exponent=float(method.exponent))
    if isinstance(method, Dual):
        return Plan("dual", kernel_cut)
    if isinstance(method, CG):
        limit = 0 if method.max_iterations is None else _whole(method.max_iterations)
        if method.max_iterations is not None and limit < 1:
            raise ValueError(f"max_iterations: expected None or a number >= 1, got {limit!r}")
        if not _number("tolerance", method.tolerance) >= 0.0:
            raise ValueError(f"tolerance: expected a number >= 0, got {method.tolerance!r}")
        return Plan(
            "cg",
            tolerance=float(method.tolerance),
            max_iterations=limit,
            preconditioner=method.preconditioner,
            start=method.start,
        )
    known = ("auto", "cholesky", "ldlt", "pinv", "power", "cg", "dual")
    if not isinstance(method, str) or method not in known:
        raise ValueError(
            f"method: expected one of {known}, or Pinv, Power, CG or Dual, got {method!r}"
        )
    if method == "auto":
        method = "cg" if is_operator else "auto" if rcond is None else "pinv"
    return Plan(method, kernel_cut, exponent=0.5 if method == "power" else 1.0)
