"""``fubini.solve`` against NumPy and SciPy: sizes, conditions, kinds of input, and everything that can be wrong."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fubini
from fubini import SolveStatus

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


def test_shape_rule():
    a = with_condition(3, 10.0, (3,))
    b = np.arange(9.0).reshape(3, 3)
    one_vector_each = fubini.solve(a, b)
    np.testing.assert_allclose(
        one_vector_each, np.stack([np.linalg.solve(x, y) for x, y in zip(a, b, strict=True)])
    )
    np.testing.assert_allclose(fubini.solve(a[0], b), np.linalg.solve(a[0], b))  # three columns
    np.testing.assert_allclose(fubini.solve(a, b[..., None])[..., 0], one_vector_each)


@pytest.mark.parametrize(
    ("matrix", "rhs"),
    [
        ((0, 0), (0,)),
        ((0, 0), (0, 3)),
        ((4, 0, 0), (4, 0)),
        ((0, 3, 3), (0, 3)),
        ((2, 0, 3, 3), (2, 0, 3, 5)),
        ((3, 3), (3, 0)),
    ],
)
@pytest.mark.parametrize("kind", [np.zeros, lambda shape: torch.zeros(shape, dtype=torch.float64)])
@pytest.mark.parametrize("method", ["auto", "pinv", "cg"])
def test_empty(matrix, rhs, kind, method):
    x, info = fubini.solve(kind(matrix), kind(rhs), method=method, damping=1.0, return_info=True)
    assert tuple(x.shape) == rhs
    assert info.status.shape == matrix[:-2]
    assert tuple(fubini.solve(kind(matrix), kind(rhs)).shape) == rhs


def test_one_by_one_and_zero():
    assert fubini.solve([[4.0]], [2.0]) == [0.5]
    x, info = fubini.solve(np.zeros((3, 3)), np.ones(3), return_info=True)
    np.testing.assert_array_equal(x, 0.0)
    assert info.status == SolveStatus.USED_PINV
    assert info.rank == 0
    x = fubini.solve(np.zeros((3, 3)), np.ones(3), damping=0.5)
    np.testing.assert_allclose(x, 2.0, rtol=1e-15)


def test_scales_far_from_one():
    for scale in (1e-150, 1e-30, 1e30, 1e150):
        a = with_condition(6, 100.0) * scale
        b = vectors(a)
        np.testing.assert_allclose(
            fubini.solve(a, b) * scale, np.linalg.solve(a / scale, b), rtol=1e-9
        )


def test_kinds_of_memory():
    a = with_condition(5, 10.0, (4,))
    b = vectors(a)
    expected = fubini.solve(a, b)
    padded = np.zeros((4, 10, 10))
    padded[:, ::2, ::2] = a
    view = padded[:, ::2, ::2]
    frozen = a.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(fubini.solve(view, b), expected)
    np.testing.assert_array_equal(fubini.solve(frozen, b), expected)
    np.testing.assert_array_equal(
        fubini.solve(np.asfortranarray(a), np.asfortranarray(b)), expected
    )
    np.testing.assert_array_equal(fubini.solve(a.tolist(), b.tolist()), expected)
    np.testing.assert_array_equal(fubini.solve(a.astype(">f8"), b), expected)
    t = torch.from_numpy(padded)[:, ::2, ::2]
    np.testing.assert_array_equal(fubini.solve(t, torch.from_numpy(b)).numpy(), expected)
    np.testing.assert_array_equal(
        fubini.solve(torch.from_numpy(a), torch._neg_view(torch.from_numpy(-b))).numpy(), expected
    )


def test_arguments_are_left_alone():
    a, b = rank_deficient(6, 3, (3,)), np.ones((3, 6))
    a_before, b_before = a.copy(), b.copy()
    for method in ("auto", "ldlt", "pinv", "power", "cg"):
        fubini.solve(a, b, damping=0.1, method=method)
    np.testing.assert_array_equal(a, a_before)
    np.testing.assert_array_equal(b, b_before)


@pytest.mark.parametrize(
    ("matrix", "rhs", "result"),
    [
        (np.float64, np.float64, np.float64),
        (np.float32, np.float32, np.float32),
        (np.float32, np.float64, np.float64),
        (np.int64, np.int32, np.float64),
        (np.float16, np.float16, np.float16),
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.int64, torch.int64, torch.float64),
        (torch.float32, torch.int64, torch.float32),
    ],
)
def test_dtypes(matrix, rhs, result):
    a, b = np.array([[4, 1], [1, 3]]), np.array([1, 2])
    if isinstance(matrix, torch.dtype):
        x = fubini.solve(torch.tensor(a, dtype=matrix), torch.tensor(b, dtype=rhs))
        assert isinstance(x, torch.Tensor)
        values = x.double().numpy()
    else:
        x = values = fubini.solve(a.astype(matrix), b.astype(rhs))
        assert isinstance(x, np.ndarray)
    assert x.dtype == result
    np.testing.assert_allclose(
        values, [1 / 11, 7 / 11], rtol=1e-2 if x.dtype.itemsize == 2 else 1e-6
    )


def test_float32_matrices_are_solved_in_float64():
    a = with_condition(20, 1e6).astype(np.float32)
    a = np.tril(a) + np.tril(a, -1).T
    b = vectors(a).astype(np.float32)
    expected = np.linalg.solve(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(fubini.solve(a, b), expected, rtol=2e-6)


BAD_ARGUMENTS = [
    (
        np.eye(3),
        np.ones((2, 3)),
        {},
        ValueError,
        r"rhs: expected shape .* = \(3,\) .* got \(2, 3\)",
    ),
    (
        np.ones((2, 3)),
        np.ones(2),
        {},
        ValueError,
        r"matrix: expected shape \(\.\.\., n, n\), got \(2, 3\)",
    ),
    (np.ones(3), np.ones(3), {}, ValueError, "matrix: expected shape"),
    (np.eye(3), np.float64(1.0), {}, ValueError, "rhs: expected shape"),
    (np.ones((2, 3, 3)), np.ones(3), {}, ValueError, "not broadcast"),
    (
        np.eye(2) * 1j,
        np.ones(2),
        {},
        TypeError,
        "matrix: expected real numbers.*complex128.*twice the size",
    ),
    (np.eye(2), np.ones(2) * 1j, {}, TypeError, "rhs: expected real numbers"),
    (torch.eye(2) * 1j, torch.ones(2), {}, TypeError, "matrix: expected dense real numbers"),
    (torch.eye(2).to_sparse(), torch.ones(2), {}, TypeError, "matrix: expected dense real numbers"),
    (np.array([["a"]]), np.ones(1), {}, TypeError, "matrix: expected real numbers"),
    (np.eye(2, dtype=np.longdouble), np.ones(2), {}, TypeError, "at most 64 bits"),
    (np.eye(2), torch.ones(2), {}, TypeError, "rhs: expected a NumPy array like matrix"),
    (torch.eye(2), np.ones(2), {}, TypeError, "rhs: expected a torch.Tensor like matrix"),
    (
        np.eye(2),
        np.ones(2),
        {"damping": -1.0},
        ValueError,
        "damping: expected finite numbers >= 0, got -1.0",
    ),
    (np.eye(2), np.ones(2), {"damping": float("nan")}, ValueError, "damping: expected finite"),
    (np.eye(2), np.ones(2), {"damping": float("inf")}, ValueError, "damping: expected finite"),
    (
        np.eye(2),
        np.ones(2),
        {"damping": [0.1, 0.2]},
        ValueError,
        r"damping: expected one number or .* got \(2,\)",
    ),
    (np.eye(2), np.ones(2), {"damping": "big"}, TypeError, "damping: expected a number"),
    (np.eye(2), np.ones(2), {"damping": None}, TypeError, "damping: expected a number"),
    (np.eye(2), np.ones(2), {"damping": 1j}, TypeError, "damping: expected real numbers"),
    (np.eye(2), np.ones(2), {"method": "lu"}, ValueError, "method: expected one of .* got 'lu'"),
    (
        np.eye(2),
        np.ones(2),
        {"rcond": 2.0},
        ValueError,
        r"rcond: expected a number in \[0, 1\), got 2.0",
    ),
    (np.eye(2), np.ones(2), {"rcond": float("nan")}, ValueError, "rcond: expected"),
    (
        np.eye(2),
        np.ones(2),
        {"method": fubini.Power(float("inf"))},
        ValueError,
        "exponent: expected",
    ),
    (
        np.eye(2),
        np.ones(2),
        {"method": fubini.CG(tolerance=-1.0)},
        ValueError,
        "tolerance: expected",
    ),
    (
        np.eye(2),
        np.ones(2),
        {"method": fubini.CG(max_iterations=0)},
        ValueError,
        "max_iterations: expected",
    ),
    (
        np.eye(2),
        np.ones(2),
        {"method": fubini.CG(start=np.ones(3))},
        ValueError,
        r"start: .* \(2,\), got \(3,\)",
    ),
]


@pytest.mark.parametrize(("matrix", "rhs", "options", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(matrix, rhs, options, error, message):
    with pytest.raises(error, match=message):
        fubini.solve(matrix, rhs, **options)


def test_bad_systems_are_named_and_do_not_disturb_their_neighbours():
    for n in (2, 5, 16, 40, 70):
        a = with_condition(n, 10.0, (4, 9))
        b = vectors(a)
        good = fubini.solve(a, b, damping=0.01)
        a[0, 3, n - 1, 0] = np.nan
        b[1, 2, 0] = np.inf
        a[3, 8, 0, n - 1] += 1e-3
        bad = [(0, 3), (1, 2), (3, 8)]
        with pytest.raises(
            fubini.NumericalError,
            match=r"3 of 36 systems failed.*\(0, 3\), \(1, 2\).*NaN.*\(3, 8\).*not symmetric",
        ):
            fubini.solve(a, b, damping=0.01)
        x, info = fubini.solve(a, b, damping=0.01, throw=False, return_info=True)
        failed = np.zeros((4, 9), dtype=bool)
        failed[tuple(zip(*bad, strict=True))] = True
        np.testing.assert_array_equal(np.isnan(x), np.broadcast_to(failed[..., None], x.shape))
        np.testing.assert_array_equal(info.status != SolveStatus.OK, failed)
        np.testing.assert_array_equal(x[~failed], good[~failed])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["diagonal", "lower", "upper", "rhs"])
@pytest.mark.parametrize("method", ["auto", "cholesky", "ldlt", "pinv", "power", "cg"])
def test_values_that_are_not_numbers(value, where, method):
    for n in (2, 9, 40, 80):
        a, b = with_condition(n, 10.0, (3,)), np.ones((3, n))
        index = {"diagonal": (n // 2, n // 2), "lower": (n - 1, 0), "upper": (0, n - 1)}
        if where == "rhs":
            b[1, n - 1] = value
        else:
            a[1][index[where]] = value
        x, info = fubini.solve(a, b, method=method, throw=False, return_info=True)
        assert info.status.tolist() == [SolveStatus.OK, SolveStatus.NOT_FINITE, SolveStatus.OK]
        assert np.isnan(x[1]).all()
        assert np.isfinite(x[[0, 2]]).all()


def test_single_failures_have_a_plain_message():
    with pytest.raises(fubini.NumericalError, match=r"^solve: The matrix is not symmetric; pass"):
        fubini.solve(np.array([[1.0, 0.5], [0.0, 1.0]]), np.ones(2))
    with pytest.raises(fubini.NumericalError, match=r"not positive definite.*increase the damping"):
        fubini.solve(-np.eye(2), np.ones(2), method="cholesky")
    with pytest.raises(fubini.NumericalError, match=r"singular.*increase the damping"):
        fubini.solve(np.zeros((2, 2)), np.ones(2), method="ldlt")
    with pytest.raises(fubini.NumericalError, match="NaN or infinity"):
        fubini.solve(np.eye(2) * 1e-300, np.full(2, 1e300))  # the solution overflows


def test_rounding_in_the_symmetry_is_forgiven():
    a = with_condition(6, 10.0)
    b = vectors(a)
    tilted = a.copy()
    tilted[0, 5] *= 1 + 1e-12
    np.testing.assert_allclose(
        fubini.solve(tilted, b), fubini.solve((tilted + tilted.T) / 2, b), rtol=1e-13
    )
    tilted32 = a.astype(np.float32)
    tilted32[0, 5] *= np.float32(1 + 1e-6)
    fubini.solve(tilted32, b.astype(np.float32))


def test_indefinite_matrices():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 20, 66):
        a = rng.normal(size=(5, n, n))
        a = a + a.swapaxes(1, 2)
        b = vectors(a)
        expected = np.linalg.solve(a, b[..., None])[..., 0]
        x, info = fubini.solve(a, b, return_info=True)
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())
        assert (info.status == SolveStatus.USED_PINV).all()
        assert (info.smallest < 0).all()
        np.testing.assert_allclose(
            fubini.solve(a, b, method="ldlt"), expected, rtol=1e-8, atol=1e-10 * abs(expected).max()
        )
    np.testing.assert_array_equal(
        fubini.solve(np.array([[0.0, 1.0], [1.0, 0.0]]), [1.0, 2.0], method="ldlt"), [2, 1]
    )


def test_info():
    a = with_condition(6, 1e4, (2,))
    b = vectors(a)
    for method, spectral in (("cholesky", False), ("ldlt", False), ("pinv", True)):
        x, info = fubini.solve(a, b, method=method, return_info=True)
        np.testing.assert_array_equal(x, fubini.solve(a, b, method=method))
        assert (info.method == method).all()
        assert (info.rank == 6).all()
        assert (info.iterations == 0).all()
        assert (info.residual <= 1e-13 * 6).all()
        exact = np.linalg.cond(a) if spectral else np.linalg.cond(a, 1)
        np.testing.assert_allclose(info.condition, exact, rtol=1e-6 if spectral else 0.7)
        values = np.linalg.eigvalsh(a)
        if spectral:
            np.testing.assert_allclose(info.smallest, values[:, 0], rtol=1e-9)
            np.testing.assert_allclose(info.largest, values[:, -1], rtol=1e-9)
        else:
            assert (info.smallest >= values[:, 0] * 0.99).all()
            assert (info.largest <= values[:, -1] * 1.01).all()


def test_statuses_are_sentences_with_a_remedy():
    for status in SolveStatus:
        assert status.text.endswith(".")
        assert status.text[0].isupper()
        assert ";" in status.text or not status.failed
    assert [s for s in SolveStatus if s.failed] == list(SolveStatus)[2:]


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
    assert fubini.solve_blocks([], []) == []


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


@pytest.mark.parametrize("method", ["auto", "pinv", "cg"])
def test_same_bits_for_any_number_of_threads(method):
    a = with_condition(24, 1e3, (300,))
    b = vectors(a)
    before = fubini._core.num_threads()
    results = []
    for threads in (1, 2, 5):
        fubini._core.set_num_threads(threads)
        results.append(fubini.solve(a, b, damping=1e-3, method=method))
    fubini._core.set_num_threads(before)
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


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
