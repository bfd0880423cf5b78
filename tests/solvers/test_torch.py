"""``fubini.solve`` with torch: derivatives, the ``torch.linalg`` path of other devices, operators and factors."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

import fubini
from fubini import SolveStatus
from fubini.solvers.damping import as_damping
from fubini.solvers.methods import make_plan
from fubini.solvers.run import solve_tensors_on_device

METHODS = ["auto", "cholesky", "ldlt", "pinv", "power", "cg"]
DAMPINGS = [0.3, fubini.Relative(0.3), fubini.Diagonal(0.3)]


def factor(n, m, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, n, m, generator=generator, dtype=torch.float64)


def metric(n, batch=(), seed=0):
    x = factor(n, n + 2, batch, seed)
    return x @ x.mT / n


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("columns", [None, 2])
def test_derivatives(method, damping, columns):
    x0 = factor(4, 6, (2,)).requires_grad_()
    b = factor(4, columns or 1, (2,), seed=1)
    b = (b if columns else b[..., 0]).clone().requires_grad_()
    lam = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    kind = type(as_damping(damping))

    def step(x, v, strength):
        return fubini.solve(x @ x.mT, v, damping=kind(strength), method=method)

    assert torch.autograd.gradcheck(step, (x0, b, lam))
    if method not in ("pinv", "power"):
        assert torch.autograd.gradgradcheck(step, (x0, b, lam))


@pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)
def test_derivatives_of_the_dual(damping):
    x0 = factor(5, 2, (2,)).requires_grad_()
    b = factor(5, 3, (2,), seed=1).requires_grad_()
    lam = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)

    def step(x, v, strength):
        return fubini.solve(x, v, damping=type(as_damping(damping))(strength), method="dual")

    assert torch.autograd.gradcheck(step, (x0, b, lam))
    assert torch.autograd.gradgradcheck(step, (x0, b, lam))


@pytest.mark.parametrize("smooth", [False, True])
def test_derivative_where_eigenvalues_are_cut_off(smooth):
    q, _ = torch.linalg.qr(factor(5, 5))
    values = torch.tensor([2.0, 1.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
    a = ((q * values) @ q.mT).requires_grad_()
    b = factor(5, 1, seed=2)[:, 0].requires_grad_()
    method = fubini.Pinv(1e-2, smooth=smooth)
    # The argument is made symmetric, because gradcheck moves single entries.
    assert torch.autograd.gradcheck(
        lambda m, v: fubini.solve((m + m.mT) / 2, v, method=method), (a, b)
    )


def test_derivative_where_auto_falls_back():
    x0 = factor(
        4, 2
    ).requires_grad_()  # rank 2 stays rank 2, so the pseudo-inverse is differentiable
    y0 = factor(4, 6, seed=3).requires_grad_()
    b = factor(2, 4, seed=4).requires_grad_()

    def step(x, y, v):
        return fubini.solve(torch.stack([x @ x.mT, y @ y.mT]), v)

    assert torch.autograd.gradcheck(step, (x0, y0, b))


def test_derivatives_keep_dtype_and_can_be_switched_off():
    a = metric(3).float().requires_grad_()
    x = fubini.solve(a, torch.ones(3))
    assert x.dtype == torch.float32
    x.sum().backward()
    assert a.grad.dtype == torch.float32
    with torch.no_grad():
        assert not fubini.solve(a, torch.ones(3)).requires_grad
        assert not fubini.solve(a.double(), torch.ones(3).double(), damping=0.1).requires_grad
    blocks = fubini.solve_blocks([a, a], [torch.ones(3), torch.ones(3)], damping=0.1)
    assert all(one.requires_grad for one in blocks)
    with pytest.raises(fubini.NumericalError):
        fubini.solve(a * float("nan"), torch.ones(3))


@pytest.mark.parametrize(
    "method", [*METHODS, fubini.Pinv(1e-2), fubini.Pinv(1e-2, smooth=True), fubini.Power(0.3)]
)
@pytest.mark.parametrize("damping", [0.0, *DAMPINGS], ids=str)
@pytest.mark.parametrize("columns", [None, 3])
def test_device_path_agrees_with_the_kernel(method, damping, columns):
    """The code for CUDA tensors runs on any device; here it is compared on the host."""
    n = 6
    a = metric(n, (3, 2))
    a[0, 1, 0, 3] = float("nan")
    a[1, 0, 0, 3] += 1.0
    a[2, 1] = -a[2, 1]
    a[1, 1] = factor(n, 3) @ factor(n, 3).mT
    b = factor(n, columns or 1, (3, 2), seed=1)
    b = b if columns else b[..., 0]
    kernel, info = fubini.solve(a, b, damping=damping, method=method, throw=False, return_info=True)
    plan = make_plan(method, None, False)
    other, device_info = solve_tensors_on_device(a, b, as_damping(damping), plan, 1e-9)
    np.testing.assert_array_equal(device_info.status, info.status)
    np.testing.assert_array_equal(device_info.method[info.status < 2], info.method[info.status < 2])
    np.testing.assert_array_equal(device_info.rank[info.status < 2], info.rank[info.status < 2])
    solved = info.status != SolveStatus.NOT_CONVERGED
    np.testing.assert_allclose(other.numpy()[solved], kernel.numpy()[solved], rtol=1e-7, atol=1e-8)
    spectral = plan.name in ("pinv", "power")
    if spectral:
        good = info.status == SolveStatus.OK
        np.testing.assert_allclose(device_info.largest[good], info.largest[good], rtol=1e-9)


def test_device_path_dual_and_empty():
    x = factor(7, 2, (3,))
    b = factor(7, 2, (3,), seed=1)
    for damping in (0.0, *DAMPINGS):
        expected = fubini.solve(x, b, damping=damping, method="dual")
        got, _ = solve_tensors_on_device(
            x, b, as_damping(damping), make_plan("dual", None, False), 1e-9
        )
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    empty, info = solve_tensors_on_device(
        x[:0, :2], b[:0, :2], as_damping(0.0), make_plan("auto", None, False), 1e-9
    )
    assert empty.shape == (0, 2, 2)
    assert info.status.shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [*METHODS, "dual"])
def test_cuda(method):
    a, b = metric(6, (4,)), factor(6, 1, (4,), seed=1)[..., 0]
    x = fubini.solve(a.cuda(), b.cuda(), damping=0.1, method=method)
    assert x.is_cuda
    torch.testing.assert_close(
        x.cpu(), fubini.solve(a, b, damping=0.1, method=method), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_operator(kind):
    a, b = metric(30), factor(30, 1, (4,), seed=1)[..., 0]
    if kind == "numpy":
        a, b = a.numpy(), b.numpy()
    lam = np.array([0.1, 0.2, 0.3, 0.4])
    x, info = fubini.solve(lambda v: v @ a, b, damping=lam, return_info=True)
    assert type(x) is type(b)
    expected = [
        fubini.solve(a, one, damping=float(strength)) for one, strength in zip(b, lam, strict=True)
    ]
    np.testing.assert_allclose(
        np.asarray(x), np.stack([np.asarray(one) for one in expected]), rtol=1e-9
    )
    assert (info.method == "cg").all()
    assert (info.iterations > 3).all()
    assert (info.residual < 1e-12).all()
    one = fubini.solve(lambda v: v @ a, b[0], damping=0.1)
    np.testing.assert_allclose(one, x[0], rtol=1e-9, atol=1e-10)


def test_operator_warm_start_and_preconditioner():
    d = np.geomspace(1.0, 1e6, 50)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))
    a = np.diag(d) + 0.1 * (q * np.linspace(0, 1, 50)) @ q.T
    b = np.ones(50)
    plain, slow = fubini.solve(lambda v: a @ v, b, method=fubini.CG(1e-10, 5000), return_info=True)
    fast = fubini.CG(1e-10, preconditioner=lambda r: r / d)
    x, info = fubini.solve(lambda v: a @ v, b, method=fast, return_info=True)
    assert info.iterations < slow.iterations / 3
    np.testing.assert_allclose(x, plain, rtol=1e-5, atol=1e-12)
    assert (
        fubini.solve(lambda v: a @ v, b, method=fubini.CG(1e-9, start=x), return_info=True)[
            1
        ].iterations
        == 0
    )
    # the same through a matrix, where rhs may have columns
    _, info = fubini.solve(
        a, b, method=fubini.CG(1e-10, preconditioner=lambda r: r / d), return_info=True
    )
    assert info.iterations < slow.iterations / 3
    columns = np.stack([b, 2 * b], axis=-1)
    x = fubini.solve(
        a, columns, method=fubini.CG(1e-10, preconditioner=lambda r: r / d[:, None], start=columns)
    )
    np.testing.assert_allclose(x[:, 0], plain, rtol=1e-5, atol=1e-12)


def test_operator_failures():
    a = metric(20).numpy()
    b = np.ones((3, 20))
    b[1] = 0.0
    with pytest.raises(
        fubini.NumericalError, match=r"2 of 3 systems failed; systems 0, 2: .*more iterations"
    ):
        fubini.solve(lambda v: v @ a, b, method=fubini.CG(max_iterations=2))
    x, info = fubini.solve(
        lambda v: v @ a, b, method=fubini.CG(max_iterations=2), throw=False, return_info=True
    )
    assert np.isfinite(x).all()
    assert info.iterations.tolist() == [2, 0, 2]
    b[2, 3] = np.nan
    _, info = fubini.solve(lambda v: v @ a, b, throw=False, return_info=True)
    assert info.status.tolist() == [SolveStatus.OK, SolveStatus.OK, SolveStatus.NOT_FINITE]
    with pytest.raises(fubini.NumericalError, match="not positive definite"):
        fubini.solve(lambda v: -v, np.ones(4))
    with pytest.raises(ValueError, match="method: expected 'auto', 'cg'"):
        fubini.solve(lambda v: v, np.ones(4), method="cholesky")
    with pytest.raises(ValueError, match="damping: expected a number for a function, got Diagonal"):
        fubini.solve(lambda v: v, np.ones(4), damping=fubini.Diagonal(0.1))
    with pytest.raises(
        ValueError, match=r"matrix: expected a function that returns .* \(4,\), got \(2,\)"
    ):
        fubini.solve(lambda v: v[:2], np.ones(4))


@pytest.mark.parametrize("kind", ["vector", "batch", "tensor"])
def test_residuals_are_the_least_of_all_iterates(kind):
    # A spectrum without gaps down to the damping, as metrics of deep circuits have.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 320)) / 18
    a = x @ x.T + 1e-2 * np.eye(300)
    b = x @ rng.normal(size=320)
    scipy_iterates = []
    scipy.sparse.linalg.cg(a, b, rtol=1e-2, callback=lambda y: scipy_iterates.append(y.copy()))
    products = []

    def apply(v):
        products.append(1)
        return v @ torch.from_numpy(a) if kind == "tensor" else v @ a

    rhs = {"vector": b, "batch": b[None], "tensor": torch.from_numpy(b)}[kind]
    y, info = fubini.solve(apply, rhs, method=fubini.CG(1e-2), return_info=True)
    y = np.asarray(y).reshape(300)
    assert np.linalg.norm(b - a @ y) <= 1e-2 * np.linalg.norm(b)
    # Plain conjugate gradients of SciPy reach the same residual, but later.
    assert 0 < info.iterations.max() < 0.8 * len(scipy_iterates)
    # Its recursive residual cannot be wrong by that much: a vector takes one product per iteration.
    assert len(products) == info.iterations.max() + (0 if kind == "vector" else 2)
    true = np.linalg.norm(b - a @ y) / np.linalg.norm(b)
    assert info.residual.max() == pytest.approx(true, rel=1e-9)


def test_residuals_near_rounding_are_computed_anew():
    a = metric(20).numpy() + np.eye(20)
    b = np.random.default_rng(0).normal(size=20)
    x, info = fubini.solve(lambda v: a @ v, b, method=fubini.CG(1e-14), return_info=True)
    true = np.linalg.norm(b - a @ x) / np.linalg.norm(b)
    assert info.residual == pytest.approx(true, rel=0.5, abs=1e-16)
    assert true < 1e-13


@pytest.mark.parametrize(
    ("operator", "rhs", "status"),
    [
        (lambda v: -v, np.ones(4), SolveStatus.NOT_POSITIVE_DEFINITE),
        (lambda v: v * np.nan, np.ones(4), SolveStatus.NOT_FINITE),
        (lambda v: v, np.array([1.0, np.inf, 0.0]), SolveStatus.NOT_FINITE),
        (lambda v: v * np.arange(1, 60), np.ones(59), SolveStatus.NOT_CONVERGED),
        (lambda v: v * [1.0, 0.0], np.ones(2), SolveStatus.NOT_CONVERGED),
        (lambda v: v * 0, np.zeros(3), SolveStatus.OK),
        (lambda v: v * [1.0, 0.0], np.array([1.0, 0.0]), SolveStatus.OK),
    ],
)
def test_one_system_has_the_status_of_a_batch(operator, rhs, status):
    method = fubini.CG(1e-8, 3)
    for b in (rhs, rhs[None]):
        x, info = fubini.solve(operator, b, method=method, throw=False, return_info=True)
        assert (info.status == status).all()
        assert x.shape == b.shape


def test_operator_in_float32():
    a = metric(10).float()
    x = fubini.solve(lambda v: a @ v, torch.ones(10), damping=0.1, method=fubini.CG(1e-6))
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x, fubini.solve(a, torch.ones(10), damping=0.1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("damping", [1e-8, *DAMPINGS], ids=str)
@pytest.mark.parametrize("shape", [(8, 3), (8, 7), (8, 8), (5, 9), (6, 0)])
def test_dual(shape, damping):
    x = factor(*shape, (2, 3)).numpy()
    for columns in (None, 2):
        b = np.random.default_rng(1).normal(size=(2, 3, shape[0], *([columns] if columns else [])))
        if damping == 1e-8:
            # In the range of the factor, the small damping must not amplify rounding by 1e8: the residual tells.
            b = (
                np.einsum("...ij,...kj,...k->...i", x, x, b)
                if columns is None
                else x @ (x.swapaxes(-1, -2) @ b)
            )
        got, info = fubini.solve(x, b, damping=damping, method="dual", return_info=True)
        assert got.shape == b.shape
        if shape[1] == 0 and damping in DAMPINGS[1:]:  # nothing but zeros, and no absolute damping
            assert (info.status == SolveStatus.USED_PINV).all()
            assert (info.rank == 0).all()
            np.testing.assert_array_equal(got, 0.0)
            continue
        assert (info.residual <= 1e-13 * shape[0]).all()
        plain = fubini.solve(x @ x.swapaxes(-1, -2), b, damping=damping)
        np.testing.assert_allclose(got, plain, rtol=1e-6, atol=1e-7 * max(abs(plain).max(), 1e-300))


def test_dual_without_damping_is_the_pseudo_inverse():
    x = factor(8, 3, (2,)).numpy()
    b = np.random.default_rng(1).normal(size=(2, 8))
    got, info = fubini.solve(x, b, method="dual", return_info=True)
    np.testing.assert_allclose(got, fubini.solve(x @ x.swapaxes(1, 2), b), rtol=1e-9, atol=1e-12)
    assert (info.status == SolveStatus.USED_PINV).all()
    assert (info.rank == 3).all()
    mixed = fubini.solve(x, b, damping=np.array([0.0, 0.5]), method="dual")
    np.testing.assert_allclose(mixed[0], got[0])
    np.testing.assert_allclose(mixed[1], fubini.solve(x[1] @ x[1].T, b[1], damping=0.5), rtol=1e-11)


def test_dual_failures():
    x, b = factor(8, 3, (3,)).numpy(), np.ones((3, 8))
    x[1, 0, 0] = np.nan
    b[2, 7] = np.inf
    for damping in (0.0, 0.1):
        with pytest.raises(fubini.NumericalError, match=r"systems 1, 2: .*NaN"):
            fubini.solve(x, b, damping=damping, method="dual")
    with pytest.raises(ValueError, match=r"rhs: expected shape .* \(3, 8\).* got \(3, 3\)"):
        fubini.solve(x, np.ones((3, 3)), method="dual")
    with pytest.raises(ValueError, match="damping: expected numbers > 0 for derivatives"):
        fubini.solve(factor(4, 2).requires_grad_(), torch.ones(4).double(), method="dual")


def test_a_backward_solve_that_does_not_converge_is_an_error():
    a = torch.diag(torch.logspace(0, 6, 40, dtype=torch.float64))
    a = (a + 0.1 * metric(40)).requires_grad_()
    b = torch.zeros(40, dtype=torch.float64)
    x = fubini.solve(a, b, method=fubini.CG(max_iterations=3))  # zero needs no iteration
    with pytest.raises(fubini.NumericalError, match="did not converge"):
        (x * torch.arange(40.0)).sum().backward()
