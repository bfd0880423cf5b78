"""``fubini.solve`` against NumPy and SciPy: sizes, conditions, methods, damping, mixed blocks, threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fubini
from fubini import SolveStatus
from systems import SIZES, backward_error, rank_deficient, vectors, with_condition


@pytest.mark.parametrize("method", ["auto", "cholesky", "ldlt", "pinv"])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e10])
def test_small_residual(method, condition):
    # 1e-13 n: some hundred roundings of 1.1e-16 for each of the n operations that make an entry.
    for n in SIZES:
        a = with_condition(n, condition, (3, 5) if n <= 64 else ())
        for columns in (None, 1, 4):
            b = vectors(a, columns)
            x = fubini.solve(a, b, method=method)
            assert x.shape == b.shape
            assert backward_error(a, x, b) <= 1e-13 * n


@pytest.mark.slow
@pytest.mark.parametrize("n", [512, 1024, 2048])
def test_small_residual_large(n):
    a = with_condition(n, 1e10)
    b = vectors(a)
    assert backward_error(a, fubini.solve(a, b), b) <= 1e-13 * n


@pytest.mark.parametrize("n", [2, 5, 16, 33, 70])
def test_batch_sizes_and_tails(n):
    for batch in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33):
        a = with_condition(n, 1e2, (batch,), seed=batch)
        b = vectors(a)
        expected = np.linalg.solve(a, b[..., None])[..., 0]
        np.testing.assert_allclose(fubini.solve(a, b), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rcond", [None, 1e-12, 1e-3, 0.3])
@pytest.mark.parametrize("make", [rank_deficient, with_condition])
def test_pinv_is_scipys(make, rcond):
    for n in (1, 2, 5, 12, 40):
        a = make(n, (n + 1) // 2) if make is rank_deficient else make(n, 1e5)
        a = a - 0.05 * np.diag(np.arange(n)) if rcond == 0.3 else a  # indefinite
        b = vectors(a)
        expected = (
            scipy.linalg.pinvh(a, rtol=n * 2.220446049250313e-16 if rcond is None else rcond) @ b
        )
        # pinvh's own answer moves by condition (1e5) times rounding
        np.testing.assert_allclose(
            fubini.solve(a, b, method=fubini.Pinv(rcond)),
            expected,
            rtol=1e-9,
            atol=1e-9 * abs(expected).max(),
        )
        np.testing.assert_allclose(
            fubini.solve(a, b, method="pinv", rcond=rcond),
            fubini.solve(a, b, method=fubini.Pinv(rcond)),
        )


@pytest.mark.parametrize("n", [2, 3, 8, 17, 40, 70])
def test_singular_matrix_falls_back_to_pinv(n):
    a = rank_deficient(n, n // 2, (9,))
    b = vectors(a)
    x, info = fubini.solve(a, b, return_info=True)
    expected = np.stack([scipy.linalg.pinvh(one) @ v for one, v in zip(a, b, strict=True)])
    np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9 * abs(expected).max())
    np.testing.assert_array_equal(fubini.solve(a, b), x)
    assert (info.status == SolveStatus.USED_PINV).all()
    assert (info.rank == n // 2).all()
    assert (info.method == "pinv").all()


def test_ill_conditioned_leading_block_does_not_hide_a_singular_matrix():
    """The last pivot of a Cholesky factorisation is noise far above n eps here; the answer must not be."""
    rng = np.random.default_rng(3)
    for n in (3, 6, 12):
        factor = rng.normal(size=(n, n - 1)) * np.geomspace(1.0, 3e-4, n - 1)
        factor[: n - 1] *= np.geomspace(1.0, 1e-2, n - 1)[:, None]
        a = factor @ factor.T
        b = a @ rng.normal(size=n)
        x = fubini.solve(a, b)
        expected = scipy.linalg.pinvh(a) @ b
        # condition of the non-zero part (1e11) times rounding
        np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


def test_smooth_pinv_lies_between_and_is_smooth():
    a = np.diag([1.0, 0.2, 1e-4, 0.0])
    x = fubini.solve(a, np.ones(4), method=fubini.Pinv(1e-2, smooth=True))
    expected = [1 / (v * (1 + (1e-2 / v) ** 6)) if v else 0.0 for v in np.diag(a)]
    np.testing.assert_allclose(x, expected, rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 0.25, -1.0, 0.0])
def test_power(exponent):
    a = with_condition(6, 50.0, (4,))
    b = vectors(a)
    values, q = np.linalg.eigh(a + 0.1 * np.eye(6))
    expected = np.einsum("bij,bj,bkj,bk->bi", q, values**-exponent, q, b)
    x = fubini.solve(a, b, damping=0.1, method=fubini.Power(exponent))
    np.testing.assert_allclose(x, expected, rtol=1e-11)
    if exponent == 0.5:
        np.testing.assert_array_equal(x, fubini.solve(a, b, damping=0.1, method="power"))


@pytest.mark.parametrize("method", ["auto", "cholesky", "ldlt", "pinv", "cg"])
@pytest.mark.parametrize(
    ("make", "added"),
    [
        (fubini.Absolute, lambda g, lam: lam * np.eye(len(g))),
        (fubini.Relative, lambda g, lam: lam * np.trace(g) / len(g) * np.eye(len(g))),
        (fubini.Diagonal, lambda g, lam: lam * np.diag(np.diag(g))),
    ],
)
def test_damping(make, added, method):
    g = with_condition(5, 30.0, (2, 3)) + np.diag(np.arange(5.0))
    b = vectors(g)
    for lam in (0.0, 0.7, np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]]), np.array([0.1, 0.2, 0.3])):
        x = fubini.solve(g, b, damping=make(lam), method=method)
        each = np.broadcast_to(lam, (2, 3))
        for i in np.ndindex(2, 3):
            expected = np.linalg.solve(g[i] + added(g[i], each[i]), b[i])
            np.testing.assert_allclose(x[i], expected, rtol=1e-10, atol=1e-12)


def test_plain_numbers_are_absolute_damping():
    g, b = np.diag([1.0, 3.0]), np.ones(2)
    for lam in (1, 1.0, np.float64(1.0), np.array(1.0), torch.tensor(1.0), fubini.Absolute(1.0)):
        np.testing.assert_allclose(fubini.solve(g, b, damping=lam), [0.5, 0.25])
    assert fubini.Relative(2.0).scaled(0.5) == fubini.Relative(1.0)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_blocks_of_mixed_sizes(kind):
    sizes = [3, 1, 8, 0, 8, 17, 2, 40, 3, 3, 70, 8]
    a = [with_condition(n, 20.0, seed=i) if n else np.zeros((0, 0)) for i, n in enumerate(sizes)]
    b = [vectors(one, seed=i) for i, one in enumerate(a)]
    b[2] = vectors(a[2], 2)
    lam = np.linspace(0.1, 1.0, len(sizes))
    x = fubini.solve_blocks([kind(one) for one in a], [kind(one) for one in b], damping=lam)
    for one, matrix, vector, strength in zip(x, a, b, lam, strict=True):
        assert type(one) is type(kind(vector))
        np.testing.assert_allclose(
            np.asarray(one),
            np.linalg.solve(matrix + strength * np.eye(len(matrix)), vector),
            rtol=1e-12,
        )
    before = [np.asarray(one).copy() for one in x]
    x[0][...] = 7.0  # the solutions share no numbers
    for one, expected in zip(x[1:], before[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(one), expected)
    assert fubini.solve_blocks([], []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_blocks_of_tensors_that_need_the_slow_way(dtype):
    a = [torch.eye(n, dtype=dtype) * 2 for n in (2, 3)]
    b = [torch.ones(n, dtype=torch.float64) for n in (2, 3)]
    for one in fubini.solve_blocks(a, b):
        torch.testing.assert_close(one, torch.full_like(one, 0.5))
    b[1].requires_grad_()
    x = fubini.solve_blocks(a, b, damping=0.0)
    (gradient,) = torch.autograd.grad(x[1].sum(), b[1])
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5))


@pytest.mark.parametrize(
    "damping", [0.0, fubini.Absolute(0.1), fubini.Relative(0.1), fubini.Diagonal(0.1)]
)
def test_blocks_like_single_systems(damping):
    a = [with_condition(n, 20.0) + np.eye(n) for n in (1, 2, 5, 9, 9, 9, 33)] + [np.zeros((3, 3))]
    b = [vectors(one) for one in a]
    x, status = fubini.solve_blocks(a, b, damping=damping, return_status=True)
    for one, matrix, vector in zip(x, a, b, strict=True):
        np.testing.assert_allclose(one, fubini.solve(matrix, vector, damping=damping), rtol=1e-13)
    assert (status[:-1] == SolveStatus.OK).all()
    singular = isinstance(damping, (fubini.Relative, fubini.Diagonal)) or damping == 0.0
    assert status[-1] == (SolveStatus.USED_PINV if singular else SolveStatus.OK)


def test_blocks_that_are_wrong():
    with pytest.raises(ValueError, match="rhs: expected 2 entries"):
        fubini.solve_blocks([np.eye(2), np.eye(3)], [np.ones(2)])
    with pytest.raises(ValueError, match="rhs: expected shape"):
        fubini.solve_blocks([np.eye(2)], [np.ones(3)])
    with pytest.raises(ValueError, match="matrices: expected shapes"):
        fubini.solve_blocks([np.ones((1, 2, 2))], [np.ones((1, 2))])
    with pytest.raises(fubini.NumericalError, match=r"1 of 2 blocks failed; block 1: .*NaN"):
        fubini.solve_blocks([np.eye(2), np.eye(3) * np.nan], [np.ones(2), np.ones(3)])
    x = fubini.solve_blocks([np.eye(2), np.eye(3) * np.nan], [np.ones(2), np.ones(3)], throw=False)
    np.testing.assert_array_equal(x[0], 1.0)
    assert np.isnan(x[1]).all()


@pytest.mark.parametrize(
    ("method", "n", "batch"),
    [("auto", 24, 300), ("pinv", 24, 300), ("cg", 24, 300), ("auto", 391, 1)],
)
def test_same_bits_for_any_number_of_threads(method, n, batch):
    a = with_condition(n, 1e3, (batch,))
    b = vectors(a)
    before = fubini._core.num_threads()
    results = []
    for threads in (1, 2, 5):
        fubini._core.set_num_threads(threads)
        results.append(fubini.solve(a, b, damping=1e-3, method=method))
    fubini._core.set_num_threads(before)
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


@settings(deadline=None)  # the machine may be busy
@given(
    n=st.integers(1, 20),
    batch=st.integers(1, 20),
    rank=st.integers(0, 20),
    lam=st.sampled_from([0.0, 1e-8, 1e-3, 1.0]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_positive_semidefinite_system(n, batch, rank, lam, scale, seed):
    a = rank_deficient(n, min(rank, n), (batch,), seed) * scale
    damped = a + lam * scale * np.eye(n)
    b = np.einsum("bij,bj->bi", damped, np.random.default_rng(seed).normal(size=(batch, n)))
    x, info = fubini.solve(a, b, damping=lam * scale, return_info=True)
    # b is in the range, so even the pseudo-inverse leaves a small residual; its cut-off adds to the rounding.
    assert (info.status <= SolveStatus.USED_PINV).all()
    assert backward_error(damped, x, b) <= 1e-12 * n


def test_cg_reaches_what_rounding_allows():
    """A tolerance below the rounding of one product is no failure; the backward error tells that it is solved."""
    a = rank_deficient(300, 151)
    b = vectors(a)
    x = fubini.solve(a, b, damping=0.1, method="cg")
    assert backward_error(a + 0.1 * np.eye(300), x, b) <= 1e-13


def test_concurrent_calls():
    """Calls from several Python threads share one pool and must not share anything else."""
    a = with_condition(12, 1e3, (400,))
    b = vectors(a)
    large = with_condition(300, 1e3)
    expected = fubini.solve(a, b), fubini.solve(large, np.ones(300))
    with ThreadPoolExecutor(4) as pool:
        for one, other in pool.map(
            lambda _: (fubini.solve(a, b), fubini.solve(large, np.ones(300))), range(12)
        ):
            np.testing.assert_array_equal(one, expected[0])
            np.testing.assert_array_equal(other, expected[1])
