"""Every kind of layer: exact blocks against dense automatic differentiation, and K-FAC where it is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from curvlinops import FisherType, KFACLinearOperator
from torch import nn

from fisher_cases import (
    ALL_LOSSES,
    LOSSES,
    N,
    Reused,
    Tied,
    assembled,
    blocks_of,
    double_precision,
    kfac_everywhere,
    mlp,
    only_blocks,
    reference,
)
from fubini.blocks import DenseBlock, DiagonalBlock, KroneckerBlock
from fubini.fisher import kfac
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

Tensor = torch.Tensor
_double = double_precision
_kfac = kfac_everywhere


# -- every layer ----------------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Changes a layer's outputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += 1.0
        return self.last(nn.functional.relu_(h))


def images(channels: int, *sizes: int) -> Tensor:
    return torch.randn(N, channels, *sizes)


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "sequence": lambda: (
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        torch.randn(N, 5, 4),
    ),
    "flattened-sequence": lambda: (
        nn.Sequential(
            nn.Flatten(0, 1),
            nn.Linear(4, 3),
            nn.Tanh(),
            nn.Unflatten(0, (N, 5)),
            nn.Flatten(),
            nn.Linear(15, 3),
        ),
        torch.randn(N, 5, 4),
    ),
    "reused": lambda: (Reused(), torch.randn(N, 4)),
    "tied": lambda: (Tied(), torch.randint(5, (N, 4))),
    "in-place": lambda: (InPlace(), torch.randn(N, 4)),
    "in-place-relu": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        torch.randn(N, 4),
    ),
    "conv1d": lambda: (conv(nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2)), images(2, 9)),
    "conv1d-same": lambda: (conv(nn.Conv1d(2, 3, 3, padding="same", dilation=2)), images(2, 5)),
    "conv2d": lambda: (
        conv(nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1))),
        images(2, 5, 4),
    ),
    "conv2d-groups": lambda: (conv(nn.Conv2d(4, 6, 2, groups=2, bias=False)), images(4, 3, 3)),
    "conv2d-circular": lambda: (
        conv(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
        images(2, 3, 4),
    ),
    "conv2d-reflect": lambda: (
        conv(nn.Conv2d(1, 2, 3, padding=(1, 0), padding_mode="reflect")),
        images(1, 3, 4),
    ),
    "embedding": lambda: (
        nn.Sequential(nn.Embedding(6, 3, padding_idx=1), nn.Flatten(), nn.Linear(12, 3)),
        torch.randint(6, (N, 4)),
    ),
    "layer-norm": lambda: (
        nn.Sequential(
            nn.Linear(4, 3), nn.LayerNorm((5, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)
        ),
        torch.randn(N, 5, 4),
    ),
    "batch-norm-eval": lambda: (
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).eval(),
        torch.randn(N, 4),
    ),
    "no-batch": lambda: (
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)),
        torch.randn(4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical("sum")], ids=["mse", "ce"])
def test_exact_blocks_of_every_layer(
    name: str, likelihood: Likelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kfac, "EXACT_LIMIT", 10**6)
    model, x = LAYERS[name]()
    model(x)
    parameters = list(model.parameters())
    dense = reference(model, x, likelihood)
    blocks = blocks_of(model, x, likelihood)
    expected = only_blocks(dense, blocks, parameters)
    diagonal = [b for b in blocks if isinstance(b, DiagonalBlock)]
    for block in diagonal:  # batch norm
        index = [i for i, p in enumerate(parameters) if any(p is q for q in block.parameters)]
        assert index == [2, 3]
        start = sum(p.numel() for p in parameters[:2])
        part = expected[start : start + block.size, start : start + block.size]
        part.copy_(torch.diag(part.diagonal()))
    assert len(diagonal) == ("batch-norm" in name)
    torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("approx", [None, "diag"])
def test_joint_matrix_and_diagonal_of_every_layer(name: str, approx: Any) -> None:
    model, x = LAYERS[name]()
    model(x)
    dense = reference(model, x, Gaussian())
    matrix = assembled(blocks_of(model, x, "gaussian", approx=approx), list(model.parameters()))
    expected = dense if approx is None else torch.diag(dense.diagonal())
    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-12)


# -- K-FAC ------------------------------------------------------------------------------------------------------------


def check_kfac(model: nn.Module, x: Tensor, likelihood: Likelihood, **options: Any) -> None:
    blocks = blocks_of(model, x, likelihood, **options)
    assert {type(b) for b in blocks} == {KroneckerBlock}
    parameters = list(model.parameters())
    expected = only_blocks(reference(model, x, likelihood), blocks, parameters)
    torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_kfac")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kfac_is_exact_for_deep_linear_nets_with_squared_errors(reduction: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3))
    check_kfac(model, torch.randn(N, 4), Gaussian(reduction))
    check_kfac(
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.randn(N, 3, 4), Gaussian(reduction)
    )


@pytest.mark.usefixtures("_kfac")
@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli()])
def test_kfac_is_exact_for_one_datum(likelihood: Likelihood) -> None:
    check_kfac(mlp(), torch.randn(1, 4), likelihood)
    check_kfac(
        nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(3, 3)),
        torch.randint(6, (1, 1)),
        likelihood,
    )
    check_kfac(
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
        torch.randn(1, 2, 2, 2),
        likelihood,
    )


@pytest.mark.usefixtures("_kfac")
@ALL_LOSSES
def test_kfac_equals_that_of_curvlinops(loss: str) -> None:
    """Of a nonlinear net with many data, where K-FAC is no exact block."""
    likelihood, criterion, make_targets = LOSSES[loss]
    model, x = mlp(), torch.randn(N, 4)
    parameters = list(model.parameters())
    operator = KFACLinearOperator(
        model,
        criterion,
        parameters,
        [(x, make_targets(model(x).detach()))],
        fisher_type=FisherType.TYPE2,
        separate_weight_and_bias=False,
    )
    expected = operator @ torch.eye(operator.shape[1])
    matrix = assembled(blocks_of(model, x, likelihood), parameters)
    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-12)
    exact = only_blocks(
        reference(model, x, likelihood), blocks_of(model, x, likelihood), parameters
    )
    assert (matrix - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.usefixtures("_kfac")
def test_kfac_factors_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 2, groups=2, stride=2, padding=1, dilation=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x = images(4, 5, 5)
    f = model(x)
    block = blocks_of(model, x, Gaussian("sum"))[0]
    tensors = block.tensors()
    s = model[0](x)
    g = (
        torch.stack(
            [
                torch.autograd.grad((model[2](s.flatten(1)))[:, c].sum(), s, retain_graph=True)[0]
                for c in range(f.shape[1])
            ]
        )
        * 2**0.5
    )
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for group in range(2):
        part = g[:, :, 3 * group : 3 * group + 3]
        left = torch.einsum("kncij,kndij->cd", part, part)
        torch.testing.assert_close(tensors["left"][group], left)
        rows = []
        for n in range(N):
            for i in range(s.shape[2]):
                for j in range(s.shape[3]):
                    patch = padded[
                        n, 2 * group : 2 * group + 2, 2 * i : 2 * i + 3 : 2, 2 * j : 2 * j + 3 : 2
                    ]
                    rows.append(torch.cat([patch.reshape(-1), torch.ones(1)]))
        a = torch.stack(rows)
        torch.testing.assert_close(tensors["right"][group], a.mT @ a / len(a))


@pytest.mark.usefixtures("_kfac")
def test_kfac_of_frozen_weights_or_biases() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), torch.randn(N, 4)
    parameters = list(model.parameters())
    whole = blocks_of(model, x, Gaussian())
    for keep in ([0, 2, 3], [1, 2]):
        chosen = [parameters[i] for i in keep]
        blocks = blocks_of(model, x, Gaussian(), parameters=chosen)
        assert sum(len(b.parameters) for b in blocks) == len(keep)
        for block in blocks:
            full = next(b for b in whole if any(p is block.parameters[0] for p in b.parameters))
            part = full.restrict([any(p is q for q in block.parameters) for p in full.parameters])
            torch.testing.assert_close(block.dense(), part.dense())


def test_large_layers_take_kfac_and_small_ones_do_not() -> None:
    model = nn.Sequential(nn.Linear(64, 4), nn.LayerNorm(4), nn.Linear(4, 10))
    kinds = [type(b) for b in blocks_of(model, torch.randn(N, 64), "categorical")]
    assert kinds == [KroneckerBlock, DenseBlock, DenseBlock]
    wide = nn.Sequential(nn.Linear(3, 80), nn.LayerNorm(80), nn.Tanh(), nn.Linear(80, 3))
    x = torch.randn(N, 3)
    blocks = blocks_of(wide, x, "categorical")
    assert [type(b) for b in blocks] == [KroneckerBlock, DiagonalBlock, KroneckerBlock]
    dense = reference(wide, x, Categorical(), list(wide[1].parameters()))
    torch.testing.assert_close(blocks[1].diagonal(), dense.diagonal(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 4)), (3,)),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
        (nn.Sequential(nn.LayerNorm(4)), (4,)),
        (nn.Sequential(nn.LayerNorm((4, 5))), (4, 5)),
    ],
    ids=["linear", "chain", "norm", "norm of matrices"],
)
def test_an_input_without_batch_dimension(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Its features were taken for data, and the reshaping failed."""
    model, x = model.double(), torch.randn(shape)
    parameters = list(model.parameters())
    (block,) = blocks_of(model, x, Gaussian(), approx=None)
    torch.testing.assert_close(
        block.dense(), reference(model, x, Gaussian()), rtol=1e-10, atol=1e-13
    )
    blocks = blocks_of(model, x, Gaussian())
    expected = only_blocks(reference(model, x, Gaussian()), blocks, parameters)
    torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-10, atol=1e-13)


def test_a_batch_without_data_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model: expected outputs for at least one input"):
        blocks_of(nn.Linear(3, 2), torch.zeros(0, 3), Gaussian())
