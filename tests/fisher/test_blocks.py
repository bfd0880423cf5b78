"""The Fisher information of classical models against curvlinops and dense automatic differentiation."""

import copy
from typing import Any

import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator
from torch import nn

from fisher_cases import (
    ALL_LOSSES,
    LOSSES,
    N,
    Reused,
    assembled,
    blocks_of,
    double_precision,
    mlp,
    only_blocks,
)
from fubini.blocks import DenseBlock, FactorBlock, OperatorBlock
from fubini.fisher import blocks as fisher_module
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, OutputGradient

Tensor = torch.Tensor
_double = double_precision


# -- against curvlinops ---------------------------------------------------------------------------------------------


@ALL_LOSSES
@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_equals_the_gauss_newton_operator_of_curvlinops(loss: str, approx: Any) -> None:
    likelihood, criterion, targets = LOSSES[loss]
    model, x = mlp(), torch.randn(N, 4)
    parameters = list(model.parameters())
    y = targets(model(x).detach())
    operator = GGNLinearOperator(model, criterion, parameters, [(x, y)])
    dense = operator @ torch.eye(operator.shape[1])
    blocks = blocks_of(model, x, likelihood, approx=approx)
    matrix = assembled(blocks, parameters)
    if approx is None:
        assert len(blocks) == 1
        expected = dense
    elif approx == "diag":
        expected = torch.diag(dense.diagonal())
    else:
        assert [type(b) for b in blocks] == [DenseBlock] * 3
        expected = only_blocks(dense, blocks, parameters)
    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-12)


@ALL_LOSSES
@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("from_gradient", [False, True])
def test_equals_the_empirical_fisher_operator_of_curvlinops(
    loss: str, approx: Any, from_gradient: bool
) -> None:
    likelihood, criterion, make_targets = LOSSES[loss]
    model, x = mlp(), torch.randn(N, 4)
    parameters = list(model.parameters())
    f = model(x).detach().requires_grad_()
    targets = make_targets(f.detach())
    operator = EFLinearOperator(model, criterion, parameters, [(x, targets)])
    dense = operator @ torch.eye(operator.shape[1])
    if from_gradient:
        (gradient,) = torch.autograd.grad(criterion(f, targets), f)
        targets = OutputGradient(gradient)
    blocks = blocks_of(model, x, likelihood, approx=approx, fisher="empirical", targets=targets)
    expected = dense if approx is None else only_blocks(dense, blocks, parameters)
    torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["bce-mean", "bce-sum", "mse-mean", "mse-sum"])
def test_empirical_fisher_information_of_sequences(loss: str) -> None:
    likelihood, criterion, make_targets = LOSSES[loss]
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(N, 5, 4)
    parameters = list(model.parameters())
    targets = make_targets(model(x).detach())
    operator = EFLinearOperator(model, criterion, parameters, [(x, targets)])
    dense = operator @ torch.eye(operator.shape[1])
    blocks = blocks_of(model, x, likelihood, approx=None, fisher="empirical", targets=targets)
    torch.testing.assert_close(assembled(blocks, parameters), dense, rtol=1e-10, atol=1e-12)


def test_classes_along_other_dimensions() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2))  # (N, 2, 5) -> (N, 3 classes, 4 places)
    x = torch.randn(N, 2, 5)
    parameters = list(model.parameters())
    targets = torch.randint(3, (N, 4))
    operator = GGNLinearOperator(model, nn.CrossEntropyLoss(), parameters, [(x, targets)])
    dense = operator @ torch.eye(operator.shape[1])
    blocks = blocks_of(model, x, "categorical")
    torch.testing.assert_close(assembled(blocks, parameters), dense, rtol=1e-10, atol=1e-12)
    last = nn.Sequential(nn.Linear(2, 3))  # (N, 5, 2) -> (N, 5 places, 3 classes)
    y = torch.randn(N, 5, 2)
    blocks = blocks_of(last, y, Categorical(dim=-1))
    flat = blocks_of(last, y.reshape(-1, 2), "categorical")
    torch.testing.assert_close(blocks[0].dense(), flat[0].dense(), rtol=1e-12, atol=1e-14)


# -- joint matrices of every size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Gaussian("sum"), Categorical(), Bernoulli()])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_matrix_factor_and_operator_are_the_same(
    likelihood: Likelihood, fisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Reused(), torch.randn(N, 4)
    parameters = list(model.parameters())
    f = model(x).detach()
    targets = torch.arange(N) % 3 if isinstance(likelihood, Categorical) else (f > 0).double()
    options = {"approx": None, "fisher": fisher, "targets": targets}
    [factor] = blocks_of(model, x, likelihood, **options)
    assert isinstance(factor, FactorBlock)
    monkeypatch.setattr(fisher_module, "FACTOR_LIMIT", 0)
    [dense] = blocks_of(model, x, likelihood, **options)
    assert isinstance(dense, DenseBlock)
    monkeypatch.setattr(fisher_module, "DENSE_LIMIT", 0)
    [operator] = blocks_of(model, x, likelihood, **options)
    assert isinstance(operator, OperatorBlock)
    torch.testing.assert_close(factor.dense(), dense.dense(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.dense(), dense.dense(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.diagonal(), dense.diagonal(), rtol=1e-10, atol=1e-12)
    rhs, damping = torch.randn(dense.size), torch.full((dense.size,), 1e-2)
    expected, _ = dense.solve(rhs, damping)
    for block in (factor, operator):
        torch.testing.assert_close(block.solve(rhs, damping)[0], expected, rtol=1e-7, atol=1e-8)
    with torch.no_grad():  # the operator stays where it was made
        for p in parameters:
            p += 1.0
    torch.testing.assert_close(operator.dense(), dense.dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical("sum"), Bernoulli()])
def test_sampled_labels_have_the_expectation_of_the_closed_form(likelihood: Likelihood) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(N, 4)
    expected = blocks_of(model, x, likelihood)[0].dense()
    random = torch.get_rng_state()
    block = blocks_of(model, x, likelihood, samples=20000)[0]
    assert not torch.equal(torch.get_rng_state(), random)
    # standard error of 20000 samples of squares
    torch.testing.assert_close(block.dense(), expected, rtol=0, atol=0.05 * float(expected.max()))


@ALL_LOSSES
@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_the_fisher_information_scales_with_the_loss(loss: str, approx: Any) -> None:
    kind = type(LOSSES[loss][0])
    reduction = LOSSES[loss][0].reduction
    model, x = mlp(), torch.randn(N, 4)
    once = blocks_of(model, x, kind(reduction), approx=approx)
    for block, other in zip(
        blocks_of(model, x, kind(reduction, scale=3.0), approx=approx), once, strict=True
    ):
        torch.testing.assert_close(block.dense(), 3.0 * other.dense(), rtol=1e-12, atol=1e-15)


# -- geometry -----------------------------------------------------------------------------------------------------------


def test_the_undamped_step_does_not_depend_on_the_coordinates() -> None:
    # outputs in more directions than parameters, so that the metric is regular
    model, x, y = (
        nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)),
        torch.randn(40, 3),
        torch.randn(40, 2),
    )

    class Transformed(nn.Module):
        """The first layer's weight is M (w + shift)."""

        def __init__(self, weight: Tensor, matrix: Tensor) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.linalg.solve(matrix, weight.detach().reshape(-1)) - 0.3)
            self.matrix, self.inner = matrix, copy.deepcopy(model)
            del self.inner[0].weight

        def forward(self, x: Tensor) -> Tensor:
            weight = (self.matrix @ (self.v + 0.3)).reshape(2, 3)
            h = nn.functional.linear(x, weight, self.inner[0].bias)
            return self.inner[2](torch.tanh(h))

    def step(net: nn.Module) -> dict[str, Tensor]:
        net.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        parameters = list(net.parameters())
        [block] = blocks_of(net, x, "gaussian", approx=None)
        gradient = torch.cat([p.grad.reshape(-1) for p in block.parameters])
        direction, _ = block.solve(gradient, torch.zeros(block.size))
        with torch.no_grad():
            for p, d in zip(
                parameters, direction.split([p.numel() for p in parameters]), strict=True
            ):
                p -= d.reshape(p.shape)
        return {n: p.detach() for n, p in net.named_parameters()}

    matrix = torch.randn(6, 6) + 3 * torch.eye(6)
    other = Transformed(model[0].weight, matrix)
    start = model(x).detach()
    torch.testing.assert_close(other(x), start)
    step(model), step(other)
    assert (model(x) - start).norm() > 0.1
    # condition of the metric times rounding
    torch.testing.assert_close(other(x), model(x), rtol=1e-6, atol=1e-8)
