"""``fubini.solve``: systems that cannot be solved, what is said about them, and their neighbours in the batch."""

import numpy as np
import pytest

import fubini
from fubini import SolveStatus
from systems import vectors, with_condition


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


def test_dual_with_more_rows_than_a_small_integer_counts():
    """The rank of a wide factor with over 127 rows was counted in the status's integers, which overflowed."""
    x = np.random.default_rng(0).normal(size=(150, 160))
    b = np.ones(150)
    got, info = fubini.solve(x, b, damping=0.1, method="dual", return_info=True)
    assert info.rank == 150
    np.testing.assert_allclose(
        got, np.linalg.solve(x @ x.T + 0.1 * np.eye(150), b), rtol=0, atol=1e-9 * np.abs(got).max()
    )
