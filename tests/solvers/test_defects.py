"""Defects that the solve once had, each under its name."""

import sys

import numpy as np
import pytest
import scipy.linalg
import torch

import fubini
from fubini.optim.policies import LevenbergMarquardt
from fubini.optim.step_rules import Armijo, TrustRegion
from systems import backward_error, rank_deficient, vectors, with_condition

FAR = (1e-300, 1e-200, 1e-160, 1e160, 1e200, 1e300)


@pytest.mark.parametrize("scale", FAR)
@pytest.mark.parametrize("method", ["cg", fubini.CG(preconditioner=lambda r: r)], ids=["cg", "own"])
def test_cg_at_any_scale(method, scale):
    """Squares of norms underflowed, and x = 0 passed for converged."""
    a = with_condition(9, 1e2)
    x = np.linspace(-1.0, 2.0, 9)
    np.testing.assert_allclose(
        fubini.solve(a, (a @ x) * scale, method=method) / scale, x, rtol=1e-9
    )
    if method == "cg":
        found = fubini.solve(a * scale, (a @ x) * scale, method=method)
        np.testing.assert_allclose(found, x, rtol=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_operators_at_any_scale(kind, scale):
    """As for matrices; the operator and the right-hand side may each be far from 1."""
    a = kind(with_condition(9, 1e2))
    x = kind(np.linspace(-1.0, 2.0, 9))
    for left, right in ((scale, scale), (1.0, scale), (scale, 1.0)):
        found = fubini.solve(lambda v, s=left: (a @ v) * s, (a @ x) * right)
        np.testing.assert_allclose(found / (right / left), x, rtol=1e-9)


@pytest.mark.parametrize("scale", FAR)
@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_dual_at_any_scale(shape, scale):
    """X^T X underflowed: 40 percent of the right-hand side remained, without a word."""
    x = np.random.default_rng(0).normal(size=shape)
    b = x @ np.ones(shape[1])
    for lam in (0.0, 0.1):
        expected = np.linalg.pinv(x @ x.T + lam * np.eye(shape[0]), hermitian=True) @ b
        root = scale**0.5
        found = fubini.solve(x * root, b * scale, damping=lam * scale, method="dual")
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 2), (40, 7), (60, 59), (5, 5), (6, 9)])
@pytest.mark.parametrize("condition", [1e3, 1e5])
def test_dual_without_damping_does_not_square_the_condition_number(shape, condition):
    """(X^T X)^2 lost everything beyond a condition number of 1e4 of X."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(n, min(shape))))[0] for n in shape)
    x = (u * np.geomspace(1.0, 1.0 / condition, min(shape))) @ v.T
    g = x @ x.T
    b = g @ rng.normal(size=shape[0])
    found, info = fubini.solve(x, b, method="dual", return_info=True)
    assert backward_error(g, found, b) <= 1e-13 * shape[0]
    assert info.rank == min(shape)
    assert info.largest == pytest.approx(1.0, rel=1e-12)


def test_dual_cuts_off_for_wide_factors_too():
    """The cut-off was only heard of when the factor was narrow, and the rank was always n."""
    x = np.diag([1.0, 0.1])
    found, info = fubini.solve(x, np.ones(2), method=fubini.Dual(rcond=0.1), return_info=True)
    np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-14)
    assert info.rank == 1
    assert info.status == fubini.SolveStatus.USED_PINV


@pytest.mark.parametrize("damping", [0.3, fubini.Relative(0.3)])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_dual_knows_the_eigenvalues(damping, shape):
    x = np.random.default_rng(2).normal(size=shape)
    g = x @ x.T
    strength = 0.3 if damping == 0.3 else 0.3 * np.trace(g) / len(g)
    values = np.linalg.eigvalsh(g + strength * np.eye(len(g)))
    info = fubini.solve(x, np.ones(shape[0]), damping=damping, method="dual", return_info=True)[1]
    np.testing.assert_allclose([info.smallest, info.largest], values[[0, -1]], rtol=1e-12)
    np.testing.assert_allclose(info.condition, values[-1] / values[0], rtol=1e-12)


@pytest.mark.parametrize("scale", FAR)
def test_ldlt_of_a_hollow_matrix_at_any_scale(scale):
    """The choice of the pivot squared the elements."""
    a = np.array([[1e-3, 1.0, 0.3], [1.0, 0.0, 0.2], [0.3, 0.2, -1.0]])
    b = np.array([1.0, 2.0, 3.0])
    found = fubini.solve(a * scale, b * scale, method="ldlt")
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=1e-13)
    hollow = np.array([[0.0, scale], [scale, 0.0]])
    np.testing.assert_allclose(
        fubini.solve(hollow, scale * np.array([1.0, 2.0]), method="ldlt"), [2.0, 1.0]
    )


def test_cg_of_a_singular_inconsistent_system_is_not_solved():
    """A huge x made any residual look like rounding."""
    for seed in range(60):
        n = 3 + seed % 20
        a = rank_deficient(n, n - 1, seed=seed)
        b = vectors(a, seed=seed)
        for matrix in (a, lambda v, a=a: a @ v):
            info = fubini.solve(matrix, b, method="cg", throw=False, return_info=True)[1]
            assert info.status > fubini.SolveStatus.USED_PINV


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_solutions_that_overflow_the_result_are_failures(kind):
    """They came out as infinity with status OK."""
    a = kind(np.array([np.eye(2) * 1e-30, np.eye(2)], dtype=np.float32))
    b = kind(np.array([[1e30, 1.0], [1.0, 2.0]], dtype=np.float32))
    x, info = fubini.solve(a, b, throw=False, return_info=True)
    assert info.status.tolist() == [fubini.SolveStatus.NOT_FINITE, 0]
    assert np.isnan(np.asarray(x[0])).all()
    assert np.asarray(x[1]).tolist() == [1.0, 2.0]
    with pytest.raises(fubini.NumericalError, match="block 0: "):
        fubini.solve_blocks(list(a), list(b))
    with pytest.raises(fubini.NumericalError, match="NaN or infinity"):
        fubini.solve(lambda v: v * 1e-30, b[0])


def test_blocks_with_gradients_keep_the_damping_in_float64():
    """A Python number went through float32."""
    a = torch.eye(2, dtype=torch.float64, requires_grad=True)
    (x,) = fubini.solve_blocks([a], [torch.ones(2, dtype=torch.float64)], damping=0.1)
    np.testing.assert_allclose(x.detach(), 1.0 / 1.1, rtol=1e-15)


def test_blocks_with_gradients_list_every_failure():
    good = torch.eye(2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(2, dtype=torch.float64)
    with pytest.raises(fubini.NumericalError, match="2 of 3 blocks failed; blocks 0, 2: "):
        fubini.solve_blocks([good * float("nan"), good, good * float("inf")], [b, b, b])


def test_a_narrow_block_does_not_excuse_an_unsymmetric_wide_one():
    """The tolerance of the least precise block was used for all."""
    tilted = np.array([[1.0, 1e-3], [0.0, 1.0]])
    blocks = [np.eye(2, dtype=np.float16), tilted, tilted.astype(np.float16)]
    x, status = fubini.solve_blocks(blocks, [np.ones(2)] * 3, throw=False, return_status=True)
    assert status.tolist() == [0, fubini.SolveStatus.NOT_SYMMETRIC, 0]
    assert np.isnan(x[1]).all()


@pytest.mark.parametrize("rcond", [0.1, 1e-3])
def test_derivative_of_the_smooth_pinv_counts_the_moving_cut_off(rcond):
    """The cut-off is relative to the largest eigenvalue, which has a derivative too."""
    q = torch.linalg.qr(torch.from_numpy(vectors(np.zeros((2, 4, 4)), 4)))[0]
    values = torch.tensor([2.0, 0.4, 2.5 * rcond, 1.5 * rcond], dtype=torch.float64)
    a = (((q * values) @ q.mT) * torch.tensor([1.0, -1.0])[:, None, None]).requires_grad_()
    b = torch.from_numpy(vectors(np.zeros((2, 4, 4)))).requires_grad_()
    method = fubini.Pinv(rcond, smooth=True)
    assert torch.autograd.gradcheck(
        lambda a, b: fubini.solve((a + a.mT) / 2, b, method=method), (a, b)
    )


@pytest.mark.parametrize("method", ["pinv", "power", "auto"])
def test_second_derivatives_through_eigenvalues_are_refused(method):
    """With a constant incoming gradient they were silently zero."""
    f = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    a = f @ f.mT
    x = fubini.solve(a, torch.ones(2, dtype=torch.float64), method=method)
    (first,) = torch.autograd.grad(x.sum(), f, create_graph=True)
    with pytest.raises(NotImplementedError, match="one differentiation"):
        torch.autograd.grad(first.sum(), f)


@pytest.mark.parametrize("method", ["pinv", "power", fubini.Pinv(smooth=True)], ids=str)
def test_a_failed_system_does_not_disturb_its_neighbours_gradient(method):
    """The eigenvalues of NaN were an error for the whole batch."""
    good = torch.from_numpy(with_condition(4, 10.0, (3,)))
    b = torch.from_numpy(vectors(np.zeros((3, 4, 4))))
    grads = []
    for bad in (False, True):
        a = good.clone()
        a[1] = float("nan") if bad else a[1]
        a.requires_grad_()
        x = fubini.solve(a, b, method=method, throw=False)
        (x[0].sum() + x[2].sum()).backward()
        grads.append(a.grad[[0, 2]])
    assert torch.equal(*grads)


@pytest.mark.parametrize("method", ["pinv", "power"])
def test_derivative_of_empty_systems(method):
    a = torch.zeros(2, 0, 0, dtype=torch.float64, requires_grad=True)
    fubini.solve(a, torch.zeros(2, 0, dtype=torch.float64), method=method).sum().backward()
    assert a.grad.shape == (2, 0, 0)


def test_functions_refuse_what_they_would_drop():
    """A gradient and an imaginary part were dropped, and shapes broadcast."""
    ones = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="without gradient"):
        fubini.solve(lambda v: v, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="without gradient"):
        fubini.solve(lambda v: v, ones, damping=ones.sum().requires_grad_())
    with pytest.raises(TypeError, match="rhs: expected dense real"):
        fubini.solve(lambda v: v, ones * 1j)
    for matrix in (lambda v: v, np.eye(2)[None].repeat(3, 0)):
        with pytest.raises(ValueError, match="preconditioner: expected a function that returns"):
            fubini.solve(matrix, np.ones((3, 2)), method=fubini.CG(preconditioner=lambda r: r[0]))
    with pytest.raises(TypeError, match="matrix: expected a function that maps Tensor"):
        fubini.solve(lambda v: v.numpy(), ones)
    assert fubini.solve(
        lambda v: 2 * v, np.ones(2), method=fubini.CG(start=[0.0, 1.0])
    ).tolist() == [0.5, 0.5]


def test_transforms_of_torch_func_are_refused_by_name():
    a, b = torch.eye(2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"torch\.func"):
        torch.func.vmap(lambda v: fubini.solve(a, v))(b)
    with pytest.raises(TypeError, match=r"torch\.func"):
        torch.func.vmap(lambda v: fubini.solve_blocks([a], [v])[0])(b)


@pytest.mark.parametrize("solve", [fubini.solve, lambda a, b: fubini.solve_blocks([a], [b])])
def test_masks_are_not_ignored(solve):
    a = np.ma.masked_array(np.eye(2), mask=[[False, True], [True, False]])
    with pytest.raises(TypeError, match="without masked entries"):
        solve(a, np.ones(2))


def test_sub_classes_of_arrays_give_plain_arrays():
    class Sub(np.ndarray):
        pass

    x = fubini.solve_blocks([np.eye(2).view(Sub)], [np.ones((2, 1)).view(Sub)])[0]
    assert type(x) is np.ndarray
    assert x.tolist() == [[1.0], [1.0]]


def test_infinite_damping_of_nothing_is_refused():
    for call in (
        lambda: fubini.solve(np.zeros((0, 2, 2)), np.zeros((0, 2)), damping=np.inf),
        lambda: fubini.solve_blocks([], [], damping=np.inf),
    ):
        with pytest.raises(ValueError, match="damping: expected finite"):
            call()


@pytest.mark.parametrize("method", ["cholesky", "ldlt", "power"])
def test_pivots_of_a_failed_system_are_not_zero(method):
    a = -np.eye(2) if method != "ldlt" else np.zeros((2, 2))
    info = fubini.solve(a, np.ones(2), method=method, throw=False, return_info=True)[1]
    assert info.status > fubini.SolveStatus.USED_PINV
    assert np.isnan([info.smallest, info.largest, info.residual]).all()


def test_information_about_a_matrix_singular_but_for_rounding():
    """Where the second factorisation failed, the fields were those of no system at all."""
    for seed in range(400):
        a = rank_deficient(14, 13, seed=seed)
        _, info = fubini.solve(
            a, vectors(a, seed=seed), method="cholesky", throw=False, return_info=True
        )
        if info.status == 0:
            assert info.method == "cholesky"
            assert info.rank == 14
            assert info.condition > 1e13


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (fubini.CG(max_iterations=2.5), "max_iterations: expected None or a whole number"),
        (fubini.CG(tolerance="a"), "tolerance: expected a number"),
        (fubini.Power(1j), "exponent: expected a number"),
        (fubini.Pinv(np.ones(2)), "rcond: expected a number"),
    ],
)
def test_options_that_are_no_numbers(method, message):
    with pytest.raises(TypeError, match=message):
        fubini.solve(np.eye(2), np.ones(2), method=method)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 33, 65])
@pytest.mark.parametrize("rcond", [None, 1e-8, 1e-2])
def test_smooth_and_hard_weights_of_indefinite_matrices(n, rcond):
    """SciPy's pseudo-inverse, and the smooth weights written out."""
    rng = np.random.default_rng(n)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = (q * (rng.choice([-1.0, 1.0], n) * np.geomspace(1.0, 1e-3, n))) @ q.T
    a = (a + a.T) / 2
    b = rng.normal(size=(n, 2))
    expected = scipy.linalg.pinvh(a, rtol=rcond) @ b
    np.testing.assert_allclose(
        fubini.solve(a, b, method=fubini.Pinv(rcond)), expected, rtol=1e-9, atol=1e-10
    )
    values, q = np.linalg.eigh(a)
    cut = (n * 2.220446049250313e-16 if rcond is None else rcond) * np.abs(values).max()
    weights = 1.0 / (values * (1.0 + (cut / values) ** 6))
    np.testing.assert_allclose(
        fubini.solve(a, b, method=fubini.Pinv(rcond, smooth=True)),
        q @ (weights[:, None] * (q.T @ b)),
        rtol=1e-9,
        atol=1e-10,
    )


def test_policies_take_no_step_into_infinity():
    """Minus infinity is below every promise; a step up the slope has a length, too; tries are counted."""
    assert not Armijo().search(lambda factor: -np.inf, 1.0, 1.0, 1.0).success
    assert TrustRegion(0.5).factor(-1.0, 4.0) == 0.25
    for make in (lambda: LevenbergMarquardt(tries=2.5), lambda: Armijo(max_evaluations=1.5)):
        with pytest.raises(ValueError, match="expected a whole number >= 1"):
            make()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_failed_factor_does_not_change_its_neighbours_digits(shape):
    """Without a trace it had no relative damping, and sent the whole batch another way."""
    x = np.random.default_rng(3).normal(size=(4, *shape))
    b = np.ones((4, shape[0]))
    options = {"damping": fubini.Relative(0.1), "method": "dual", "throw": False}
    expected = fubini.solve(x, b, **options)
    for bad in (np.nan, 0.0):
        broken = x.copy()
        broken[1] = bad
        found = fubini.solve(broken, b, **options)
        assert np.delete(found, 1, 0).tobytes() == np.delete(expected, 1, 0).tobytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, on entering forward mode
def test_forward_mode_tangents_are_refused():
    """They were dropped without a word."""
    a, b = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(b, b.clone())
        for call in (
            lambda: fubini.solve(a, dual),
            lambda: fubini.solve(lambda v: v, dual),
            lambda: fubini.solve(a, b, damping=fubini.Relative(dual[0])),
            lambda: fubini.solve_blocks([a], [dual]),
        ):
            with pytest.raises(TypeError, match="without tangents"):
                call()
        assert torch.equal(fubini.solve(a, b), b)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("method", ["auto", "cholesky", "ldlt", "pinv"])
def test_methods_without_options_go_into_the_kernel_at_once(method, kind, monkeypatch):
    """Small blocks by Cholesky took twelve times as long as by "auto", some of it for information nobody asked for."""
    a, x = with_condition(4, 1e2, (6,)), np.ones((6, 4))
    b = kind(np.einsum("bij,bj->bi", a, x))
    slow = fubini.solve(kind(a), b, method=method, damping=0.1, return_info=True)[0]
    monkeypatch.setattr(sys.modules[fubini.solve.__module__], "make_plan", None)
    fast = fubini.solve(kind(a), b, method=method, damping=0.1)
    assert type(fast) is type(slow)
    np.testing.assert_array_equal(fast, slow)


def test_the_fast_way_reports_failures_as_the_slow_one():
    singular = np.diag([1.0, 0.0, 2.0])
    for method, text in (("cholesky", "not positive definite"), ("ldlt", "singular")):
        with pytest.raises(fubini.NumericalError, match=text):
            fubini.solve(singular, np.ones(3), method=method)
        x = fubini.solve(singular, np.ones(3), method=method, throw=False)
        assert np.isnan(x).all()
