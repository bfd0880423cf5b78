"""``solve(method="ldlt")`` on symmetric matrices that are hard for it, beside LAPACK's factorisation of the same kind."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

import fubini

Matrix = NDArray[np.float64]
EPSILON = np.finfo(np.float64).eps


def prolate(n: int, shift: float) -> Matrix:
    """Eigenvalues crowd at 0 and 1: without a shift the condition number is beyond 1e16."""
    k = np.arange(1, n)
    return scipy.linalg.toeplitz(np.r_[0.5, np.sin(np.pi / 2 * k) / (np.pi * k)]) + shift * np.eye(
        n
    )


def wilkinson(n: int) -> Matrix:
    off = np.ones(n - 1)
    return np.diag(np.abs(np.arange(n) - n // 2) * 1.0) + np.diag(off, 1) + np.diag(off, -1)


def random_spectrum(n: int, low: float, seed: int) -> Matrix:
    """Eigenvalues of both signs with magnitudes from `low` to 1."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(low, 1.0, n) * rng.choice([-1.0, 1.0], n)
    matrix = (q * values) @ q.T
    return 0.5 * (matrix + matrix.T)


def graded(n: int, ratio: float) -> Matrix:
    rng = np.random.default_rng(n)
    scale = ratio ** np.arange(n)
    matrix = rng.normal(size=(n, n))
    return scale[:, None] * (matrix + matrix.T) * scale


def saddle(n: int) -> Matrix:
    """An optimality system: a zero block, so that every pivot of its rows is 2 x 2."""
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, n // 2))
    zero = np.zeros((n // 2, n // 2))
    return np.block([[np.diag(np.geomspace(1e-6, 1.0, n)), a], [a.T, zero]])


def growing(n: int) -> Matrix:
    """Ones below the diagonal whose updates double in every step without pivoting."""
    lower = np.tril(-np.ones((n, n)), -1) + np.eye(n)
    return lower @ np.diag([(-1.0) ** i for i in range(n)]) @ lower.T


CASES: dict[str, Callable[[], Matrix]] = {
    "prolate 80": lambda: prolate(80, 1e-8),
    "prolate 40": lambda: prolate(40, -1e-10),
    "prolate 150": lambda: prolate(150, 1e-10),
    "prolate 300": lambda: prolate(300, -1e-10),
    "wilkinson": lambda: wilkinson(101),
    "indefinite": lambda: random_spectrum(90, 1e-3, 0),
    "indefinite, condition 1e10": lambda: random_spectrum(130, 1e-10, 1),
    "graded down": lambda: graded(40, 0.8),
    "graded up": lambda: graded(40, 1 / 0.8),
    "hilbert": lambda: scipy.linalg.hilbert(9),
    "shifted hilbert": lambda: scipy.linalg.hilbert(60) - 1e-9 * np.eye(60),
    "saddle": lambda: saddle(60),
    "growing": lambda: growing(20),
    "lehmer": lambda: (
        np.minimum.outer(np.arange(1.0, 81), np.arange(1.0, 81))
        / np.maximum.outer(np.arange(1.0, 81), np.arange(1.0, 81))
    ),
    "distances": lambda: np.abs(np.subtract.outer(np.arange(100.0), np.arange(100.0))),
    "exchange": lambda: np.fliplr(np.eye(31)) * 3.0,
    "zero diagonal": lambda: np.ones((50, 50)) - np.eye(50),
}


@pytest.mark.parametrize("name", CASES)
def test_ldlt_is_as_backward_stable_as_lapack(name: str) -> None:
    matrix = CASES[name]()
    n = len(matrix)
    truth = np.random.default_rng(n).normal(size=(n, 3))
    rhs = matrix @ truth
    x, info = fubini.solve(matrix, rhs, method="ldlt", return_info=True)
    assert info.status == fubini.SolveStatus.OK
    size = np.abs(matrix).sum(1).max()
    residual = np.abs(matrix @ x - rhs).max(0)
    # Bunch and Kaufman's pivoting bounds the growth of the elements; in practice it stays below ten.
    assert (residual <= 10 * n * EPSILON * (size * np.abs(x).max(0) + np.abs(rhs).max(0))).all()
    lapack = scipy.linalg.solve(matrix, rhs, assume_a="sym")
    error, its_error = np.abs(x - truth).max(), np.abs(lapack - truth).max()
    # Both are roundings times the condition number, of which a factor of some ten is luck.
    assert error <= 30 * its_error + n * EPSILON * np.abs(truth).max() * 10


def test_ldlt_factors_do_not_depend_on_which_triangle_holds_a_rounding() -> None:
    # Entries that differ by roundings are averaged; the factorisation sees one triangle.
    rng = np.random.default_rng(5)
    matrix = random_spectrum(60, 1e-6, 3)
    noise = np.tril(rng.normal(size=matrix.shape), -1) * 1e-16
    rhs = rng.normal(size=60)
    np.testing.assert_array_equal(
        fubini.solve(matrix + noise, rhs, method="ldlt"),
        fubini.solve(matrix + noise.T, rhs, method="ldlt"),
    )
