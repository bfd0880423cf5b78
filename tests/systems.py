"""Systems for the tests of the solve: conditions, ranks, right-hand sides, and the backward error of a solution."""

import numpy as np

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 129, 200)


def with_condition(n, condition, batch=(), seed=0):
    """Positive definite matrices with eigenvalues spread geometrically from 1 to 1 / condition."""
    rng = np.random.default_rng(seed + n)
    q, _ = np.linalg.qr(rng.normal(size=(*batch, n, n)))
    values = condition ** -np.linspace(0.0, 1.0, n) if n > 1 else np.ones(1)
    a = (q * values) @ q.swapaxes(-1, -2)
    return (a + a.swapaxes(-1, -2)) / 2


def rank_deficient(n, rank, batch=(), seed=0):
    rng = np.random.default_rng(seed + n)
    factor = rng.normal(size=(*batch, n, rank))
    return factor @ factor.swapaxes(-1, -2)


def vectors(a, columns=None, seed=1):
    shape = a.shape[:-1] if columns is None else (*a.shape[:-1], columns)
    return np.random.default_rng(seed).normal(size=shape)


def backward_error(a, x, b):
    """``max |a x - b| / (|a| |x| + |b|)`` over a batch, in maximum norms."""
    if b.ndim < a.ndim:
        x, b = x[..., None], b[..., None]
    r = np.abs(a @ x - b).max(axis=-2)
    norm = np.abs(a).sum(axis=-1).max(axis=-1)[..., None]
    scale = norm * np.abs(x).max(axis=-2) + np.abs(b).max(axis=-2)
    return (r / np.where(scale == 0, 1.0, scale)).max()
