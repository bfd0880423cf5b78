"""``fubini.solve``: kinds of input and their results, and arguments that are wrong."""

import numpy as np
import pytest
import torch

import fubini
from fubini import SolveStatus
from systems import rank_deficient, vectors, with_condition


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
        {"rcond": 0.1, "method": "cholesky"},
        ValueError,
        "rcond: expected None",
    ),
    (
        np.eye(2),
        np.ones(2),
        {"rcond": 0.1, "method": fubini.CG()},
        ValueError,
        "rcond: expected None",
    ),
    (
        np.eye(2),
        np.ones(2),
        {"rcond": 0.1, "method": fubini.Pinv(0.2)},
        ValueError,
        "rcond: expected once",
    ),
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
