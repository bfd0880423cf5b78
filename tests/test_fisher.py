"""The Fisher information of classical layers against curvlinops and dense automatic differentiation."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from curvlinops import EFLinearOperator, FisherType, GGNLinearOperator, KFACLinearOperator
from torch import nn

import fubini
from fubini.torch import fisher as fisher_module
from fubini.torch import fisher_pass, fisher_units, likelihoods
from fubini.torch.blocks import (
    Block,
    DenseBlock,
    DiagonalBlock,
    FactorBlock,
    KroneckerBlock,
    OperatorBlock,
)
from fubini.torch.fisher import fisher_blocks
from fubini.torch.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, OutputGradient

Tensor = torch.Tensor
N = 6


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


LOSSES: dict[str, tuple[Likelihood, Any, Callable[[Tensor], Tensor]]] = {
    "ce-mean": (Categorical(), nn.CrossEntropyLoss(), lambda f: torch.arange(len(f)) % 3),
    "ce-sum": (
        Categorical("sum"),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda f: torch.arange(len(f)) % 3,
    ),
    "bce-mean": (Bernoulli(), nn.BCEWithLogitsLoss(), lambda f: (f > 0.1).double()),
    "bce-sum": (
        Bernoulli("sum"),
        nn.BCEWithLogitsLoss(reduction="sum"),
        lambda f: (f > 0.1).double(),
    ),
    "mse-mean": (Gaussian(), nn.MSELoss(), torch.cos),
    "mse-sum": (Gaussian("sum"), nn.MSELoss(reduction="sum"), torch.cos),
}
ALL_LOSSES = pytest.mark.parametrize("loss", LOSSES)


def blocks_of(model: nn.Module, x: Any, likelihood: Any, **options: Any) -> list[Block]:
    options = {"approx": "block-diag", "parameters": list(model.parameters()), **options}
    return fisher_blocks(model, (x,), {}, likelihood=likelihood, **options)


def reference(
    model: nn.Module,
    x: Any,
    likelihood: Likelihood,
    parameters: Sequence[Tensor] | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """J^T H J over all outputs by torch.func, with the Hessian of PyTorch's own loss."""
    names = {id(p): n for n, p in model.named_parameters()}
    chosen = {names[id(p)]: p.detach() for p in parameters or model.parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        state = {**buffers, **values}
        return torch.func.functional_call(model, state, (x,)).reshape(-1)

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):  # fused attention warns
        jacobian = torch.func.jacrev(outputs)(chosen)
    f = outputs(chosen)
    flat = torch.cat([j.reshape(len(f), -1) for j in jacobian.values()], dim=1)
    shape = model(x).shape

    def loss(v: Tensor) -> Tensor:
        v = v.reshape(shape)
        y = v.detach() * 0
        kind = type(likelihood)
        if kind is Gaussian:
            return nn.functional.mse_loss(v, y, reduction=likelihood.reduction)
        if kind is Bernoulli:
            return nn.functional.binary_cross_entropy_with_logits(
                v, y, reduction=likelihood.reduction
            )
        classes = torch.zeros_like(v.select(min(1, v.ndim - 1), 0), dtype=torch.long)
        return nn.functional.cross_entropy(v, classes, reduction=likelihood.reduction)

    hessian = torch.func.hessian(loss)(f.detach())
    return flat.mT @ hessian @ flat


def assembled(blocks: Sequence[Block], parameters: Sequence[Tensor]) -> Tensor:
    """The blocks as one matrix over the parameters in order."""
    offsets, at = {}, 0
    for p in parameters:
        offsets[id(p)] = torch.arange(at, at + p.numel())
        at += p.numel()
    matrix = torch.zeros(at, at)
    for block in blocks:
        index = torch.cat([offsets.pop(id(p)) for p in block.parameters])
        matrix[index[:, None], index] = block.dense()
    assert not offsets, "a parameter has no block"
    return matrix


def only_blocks(matrix: Tensor, blocks: Sequence[Block], parameters: Sequence[Tensor]) -> Tensor:
    ones = [DenseBlock(b.parameters, torch.ones(b.size, b.size)) if b.size else b for b in blocks]
    return matrix * assembled(ones, parameters)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)
    )


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


# -- every layer ----------------------------------------------------------------------------------------------------


class Reused(nn.Module):
    """A Linear layer used twice, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.loop, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + torch.tanh(self.loop(h))
        h = h + torch.tanh(self.loop(h))
        return self.last(h) + h


class Tied(nn.Module):
    """An embedding and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.decode = nn.Linear(3, 5)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.mix(self.embed(x).mean(1))))


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
    monkeypatch.setattr(fisher_module, "EXACT_LIMIT", 10**6)
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


@pytest.fixture
def _kfac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher_module, "EXACT_LIMIT", 0)


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


# -- what surrounds the pass ------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(torch.tanh(self.norm(self.first(x))), 0.4))


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_leaves_the_model_as_it_was(approx: Any) -> None:
    model, x = Noisy(), torch.randn(N, 4)
    seen = []
    model.first.register_forward_hook(lambda *_: seen.append("hook"))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    gradients = [p.grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    values = [g.clone() for g in gradients]
    random = torch.get_rng_state()
    dictionaries = [dict(m.__dict__) for m in model.modules()]
    with torch.no_grad():
        blocks_of(model, x, "categorical", approx=approx)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, values, strict=True))
    assert [dict(m.__dict__) for m in model.modules()] == dictionaries
    assert seen


def test_is_left_as_it_was_after_an_error() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.first(x + torch.rand(()))
            raise KeyError("model")

    model = Fails()
    random = torch.get_rng_state()
    with pytest.raises(KeyError, match="model"):
        blocks_of(model, torch.randn(N, 4), "gaussian")
    assert "forward" not in model.first.__dict__
    assert not torch.equal(torch.get_rng_state(), random)  # randn
    random = torch.get_rng_state()
    with pytest.raises(KeyError, match="model"):
        blocks_of(model, torch.ones(N, 4), "gaussian")
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("approx", [None, "block-diag"])
def test_dropout_draws_the_masks_of_the_present_generator(approx: Any) -> None:
    model, x = Noisy().eval(), torch.randn(N, 4)
    masked = nn.functional.dropout  # Noisy calls it in training mode whatever the module's mode
    torch.manual_seed(5)
    keep = masked(torch.ones(N, 6), 0.4)
    fixed = copy.deepcopy(model)
    fixed.forward = lambda x: fixed.last(torch.tanh(fixed.norm(fixed.first(x))) * keep)
    torch.manual_seed(5)
    blocks = blocks_of(model, x, "gaussian", approx=approx)
    expected = blocks_of(fixed, x, "gaussian", approx=approx)
    for block, other in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block.dense(), other.dense())


def test_batch_norm_normalises_with_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))
    x = torch.randn(N, 4)
    # the joint matrix knows that statistics depend on the weights
    plain = copy.deepcopy(model)
    plain[1].track_running_stats, plain[1].running_mean, plain[1].running_var = False, None, None
    plain[1].num_batches_tracked = None
    dense = reference(plain, x, Gaussian())
    matrix = blocks_of(model, x, "gaussian", approx=None)[0].dense()
    torch.testing.assert_close(matrix, dense, rtol=1e-10, atol=1e-12)
    # in blocks they are constants, as in a model in eval mode with the batch's statistics as its own
    with torch.no_grad():
        h = model[0](x)
    frozen = copy.deepcopy(model).eval()
    frozen[1].running_mean.copy_(h.mean(0))
    frozen[1].running_var.copy_(h.var(0, correction=0))
    blocks = blocks_of(model, x, "gaussian")
    assert [type(b) for b in blocks] == [DenseBlock, DiagonalBlock, DenseBlock]
    for block, other in zip(blocks, blocks_of(frozen, x, "gaussian"), strict=True):
        torch.testing.assert_close(block.dense(), other.dense())


class Mixing(nn.Module):
    """Every datum sees the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - h.mean(0))


class TimeFirst(nn.Module):
    """Keeps data in the second dimension, of the same length as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.transpose(0, 1)))
        return self.last(h.sum(0))


@pytest.mark.parametrize(("model", "shape"), [(Mixing, (N, 4)), (TimeFirst, (N, N, 4))])
@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical()])
def test_models_that_mix_their_data(model: Any, shape: Any, likelihood: Likelihood) -> None:
    net, x = model(), torch.randn(shape)
    parameters = list(net.parameters())
    dense = reference(net, x, likelihood)
    for _ in range(2):  # the second time from memory
        blocks = blocks_of(net, x, likelihood)
        expected = only_blocks(dense, blocks, parameters)
        torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-10, atol=1e-12)
    joint = blocks_of(net, x, likelihood, approx=None)
    torch.testing.assert_close(assembled(joint, parameters), dense, rtol=1e-10, atol=1e-12)


def test_float32_models_have_float64_blocks() -> None:
    model, x = mlp(), torch.randn(N, 4)
    double = [b.dense() for b in blocks_of(model, x, "categorical")]
    blocks = blocks_of(model.float(), x.float(), "categorical")
    for block, expected in zip(blocks, double, strict=True):
        assert block.dense().dtype == torch.float64
        torch.testing.assert_close(block.dense(), expected, rtol=1e-4, atol=1e-6)


def test_autocast_does_not_reach_the_pass() -> None:
    model, x = mlp().float(), torch.randn(N, 4).float()
    plain = blocks_of(model, x, "categorical")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blocks = blocks_of(model, x, "categorical")
    for block, other in zip(blocks, plain, strict=True):
        assert torch.equal(block.dense(), other.dense())


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


# -- misuse -----------------------------------------------------------------------------------------------------------


class Extra(nn.Module):
    """A parameter of its own, and a weight that is also used outside of its layer."""

    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        self.layer, self.outside = nn.Linear(4, 3), outside
        if not outside:
            self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        if self.outside:
            return h + nn.functional.linear(torch.tanh(x), self.layer.weight)
        return h * self.scale


@pytest.mark.parametrize("outside", [False, True])
def test_parameters_without_a_rule(outside: bool) -> None:
    model, x = Extra(outside), torch.randn(N, 4)
    parameters = list(model.parameters())
    message = "layer.weight: .*only its layer" if outside else "scale: .*got one of Extra"
    with pytest.raises(TypeError, match=f"{message}.*fallback"):
        blocks_of(model, x, "gaussian")
    dense = reference(model, x, Gaussian())
    [joint] = blocks_of(model, x, "gaussian", approx=None)
    torch.testing.assert_close(joint.dense(), dense, rtol=1e-10, atol=1e-12)
    blocks = blocks_of(model, x, "gaussian", fallback="diagonal")
    expected = only_blocks(dense, blocks, parameters)
    matrix = assembled(blocks, parameters)
    torch.testing.assert_close(matrix.diagonal(), expected.diagonal(), rtol=1e-10, atol=1e-12)
    assert isinstance(blocks[-1], DiagonalBlock)
    identity = blocks_of(model, x, "gaussian", fallback="identity")[-1]
    assert torch.equal(identity.dense(), torch.eye(identity.size))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.LSTM(4, 3, batch_first=True), "LSTM"),
        (lambda: nn.ConvTranspose1d(4, 3, 2), "ConvTranspose1d"),
        (nn.PReLU, "PReLU"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "ParametrizationList"),
    ],
)
def test_layers_without_a_rule_are_named(make: Callable[[], nn.Module], name: str) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, x: Tensor) -> Tensor:
            result = self.inner(x)
            return result[0] if isinstance(result, tuple) else result

    with pytest.raises(
        TypeError, match=f"inner.*expected a parameter of a layer with a rule.*{name}"
    ):
        blocks_of(First(), torch.randn(N, 4, 4), "gaussian")


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)[0][:, -1])


class Encoder(nn.Module):
    """Its attention uses the weight of a Linear layer without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)[:, -1])


@pytest.mark.parametrize("kind", [Recurrent, Encoder])
def test_models_with_layers_without_a_rule(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(N, 3, 4)
    parameters = list(model.parameters())
    dense = reference(model, x, Categorical())
    [joint] = blocks_of(model, x, "categorical", approx=None)
    torch.testing.assert_close(joint.dense(), dense, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match=r"inner\..*: expected a parameter of a layer with a rule"):
        blocks_of(model, x, "categorical")
    blocks = blocks_of(model, x, "categorical", fallback="diagonal")
    expected = only_blocks(dense, blocks, parameters)
    for block in blocks:
        if isinstance(block, DiagonalBlock):
            index = torch.cat(
                [
                    torch.full((p.numel(),), any(p is q for q in block.parameters))
                    for p in parameters
                ]
            )
            part = torch.diag(expected[index][:, index].diagonal())
            expected[index.nonzero(), index.nonzero()[:, 0]] = part
    torch.testing.assert_close(assembled(blocks, parameters), expected, rtol=1e-9, atol=1e-12)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def test_subclasses_with_a_forward_of_their_own_have_no_rule() -> None:
    with pytest.raises(TypeError, match="got one of Doubled"):
        blocks_of(nn.Sequential(Doubled(4, 3)), torch.randn(N, 4), "gaussian")


@pytest.mark.usefixtures("_kfac")
def test_weights_shared_by_different_layers_have_no_kronecker_block() -> None:
    model, x = Tied(), torch.randint(5, (N, 4))
    with pytest.raises(TypeError, match=r"embed, decode: 20 parameters.*no rule.*approx=None"):
        blocks_of(model, x, "categorical")
    blocks = blocks_of(model, x, "categorical", fallback="diagonal")
    assert [type(b) for b in blocks] == [DiagonalBlock, KroneckerBlock]


MISUSE: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no likelihood": (nn.Linear(4, 3), {"likelihood": None}, ValueError, "likelihood: expected"),
    "unknown likelihood": (
        nn.Linear(4, 3).double(),
        {"likelihood": "poisson"},
        ValueError,
        "likelihood: .*poisson",
    ),
    "unknown approx": (nn.Linear(4, 3), {"approx": "kfac"}, ValueError, "approx: expected"),
    "unknown fisher": (nn.Linear(4, 3), {"fisher": "type-2"}, ValueError, "fisher: expected"),
    "unknown quantum": (nn.Linear(4, 3), {"quantum": "qgt"}, ValueError, "quantum: expected"),
    "unknown fallback": (nn.Linear(4, 3), {"fallback": "none"}, ValueError, "fallback: expected"),
    "one class": (
        nn.Linear(4, 1).double(),
        {"likelihood": "categorical"},
        ValueError,
        r"outputs: expected two classes or more.*'bernoulli'",
    ),
    "dim": (
        nn.Linear(4, 3).double(),
        {"likelihood": Categorical(dim=2)},
        ValueError,
        r"outputs: expected two classes or more along dimension 2",
    ),
    "no targets": (nn.Linear(4, 3), {"fisher": "empirical"}, ValueError, "targets: expected"),
    "samples": (nn.Linear(4, 3), {"samples": 0}, ValueError, "samples: expected"),
    "foreign": (
        nn.Linear(4, 3).double(),
        {"parameters": [torch.zeros(2)]},
        ValueError,
        "parameters of the model",
    ),
    "sparse": (nn.Embedding(5, 3, sparse=True), {}, TypeError, "sparse=False"),
    "max norm": (nn.Embedding(5, 3, max_norm=1.0), {}, TypeError, "without max_norm"),
    "scaled": (
        nn.Embedding(5, 3, scale_grad_by_freq=True),
        {},
        TypeError,
        "scale_grad_by_freq=False",
    ),
    "complex": (
        nn.Linear(4, 3, dtype=torch.complex128),
        {},
        TypeError,
        "expected a real parameter",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_named(case: str) -> None:
    model, options, error, message = MISUSE[case]
    x = torch.randint(5, (N, 4)) if isinstance(model, nn.Embedding) else torch.randn(N, 4)
    with pytest.raises(error, match=message):
        blocks_of(model, x, **{"likelihood": "gaussian", **options})


def test_more_misuse_is_named() -> None:
    mixed = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).float())
    with pytest.raises(TypeError, match=r"1.weight: expected torch.float64 as 0.weight has"):
        blocks_of(mixed, torch.randn(N, 4), "gaussian")
    with pytest.raises(fubini.NumericalError, match=r"model: expected finite outputs"):
        blocks_of(nn.Linear(4, 3), torch.full((N, 4), torch.nan), "gaussian")
    lstm = nn.LSTM(4, 3)
    with pytest.raises(TypeError, match=r"model: expected one tensor of real numbers.*tuple"):
        blocks_of(lstm, torch.randn(N, 4), "gaussian")
    model = mlp()
    wrong = torch.zeros(N, 2)
    with pytest.raises(ValueError, match="targets: expected the outputs' shape"):
        blocks_of(model, torch.randn(N, 4), "gaussian", fisher="empirical", targets=wrong)
    with pytest.raises(ValueError, match="targets: expected classes from 0 to 2"):
        blocks_of(
            model,
            torch.randn(N, 4),
            "categorical",
            fisher="empirical",
            targets=torch.full((N,), -100),
        )
    with pytest.raises(ValueError, match=r"every parameter once, got 0.weight twice"):
        blocks_of(model, torch.randn(N, 4), "gaussian", parameters=[model[0].weight] * 2)


@pytest.mark.parametrize("limit", [0, 128])
def test_unused_parameters_have_zero_blocks(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher_module, "EXACT_LIMIT", limit)
    model = Reused()
    model.extra = nn.Sequential(nn.Linear(3, 2), nn.Conv1d(4, 2, 3, groups=2), nn.Embedding(5, 2))
    blocks = blocks_of(model, torch.randn(N, 4), "gaussian")
    # of the kind that they have when they are used, so that averages over steps fit
    kind = KroneckerBlock if limit == 0 else DenseBlock
    for block in blocks[-3:]:
        assert isinstance(block, kind)
        assert torch.equal(block.dense(), torch.zeros(block.size, block.size))
        block.solve(torch.ones(block.size), torch.ones(block.size))
    assert blocks_of(model, torch.randn(N, 4), "gaussian", parameters=[]) == []


def test_keyword_inputs_and_inputs_that_require_gradients() -> None:
    model, x = Reused(), torch.randn(N, 4, requires_grad=True)
    plain = blocks_of(model, x.detach(), "gaussian")
    blocks = fisher_blocks(
        model,
        (),
        {"x": x},
        parameters=list(model.parameters()),
        likelihood="gaussian",
        approx="block-diag",
    )
    assert x.grad is None
    for block, other in zip(blocks, plain, strict=True):
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize(
    ("make", "likelihood"),
    [
        (lambda: (Reused(), torch.randn(N, 4)), Categorical()),
        (lambda: (Mixing(), torch.randn(N, 4)), Bernoulli()),
        (lambda: (nn.Sequential(nn.Linear(4, 3)), torch.randn(N, 5, 4)), Categorical(dim=-1)),
        (lambda: (nn.Sequential(nn.Conv1d(2, 3, 2)), torch.randn(N, 2, 5)), Categorical("sum")),
        (lambda: (nn.Sequential(nn.Linear(4, 3)), torch.randn(N, 5, 4)), Gaussian()),
    ],
)
def test_many_columns_are_carried_in_parts(
    make: Any, likelihood: Likelihood, fisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make()
    f = model(x).detach()
    targets = f.argmax(likelihood.dim) if isinstance(likelihood, Categorical) else (f > 0).double()
    options = {"fisher": fisher, "targets": targets}
    expected = {a: blocks_of(model, x, likelihood, approx=a, **options) for a in (None, "diag")}
    monkeypatch.setattr(likelihoods, "_SMALL", 0)
    monkeypatch.setattr(fisher_units, "_CHUNK", 1)
    for width in (1, 200):  # one column at a time, and a few of two terms
        monkeypatch.setattr(fisher_pass, "_CHUNK", width)
        for approx, blocks in expected.items():
            found = blocks_of(model, x, likelihood, approx=approx, **options)
            for block, other in zip(found, blocks, strict=True):
                torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-12, atol=1e-15)


def test_attention_has_products(monkeypatch: pytest.MonkeyPatch) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.last = nn.Embedding(7, 4), nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.mix(self.embed(x)).chunk(3, -1)
            return self.last(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))

    model, x = Attention(), torch.randint(7, (N, 5))
    [dense] = blocks_of(model, x, "categorical", approx=None)
    torch.testing.assert_close(
        dense.dense(), reference(model, x, Categorical()), rtol=1e-9, atol=1e-12
    )
    monkeypatch.setattr(fisher_module, "DENSE_LIMIT", 0)
    [block] = blocks_of(model, x, "categorical", approx=None)
    torch.testing.assert_close(block.dense(), dense.dense(), rtol=1e-9, atol=1e-12)


def test_wrapped_models_stand_for_the_module_in_them() -> None:
    model, x = mlp(), torch.randn(N, 4)
    plain = blocks_of(model, x, "gaussian")
    wrapped = fisher_blocks(
        torch.compile(nn.DataParallel(model), backend="eager"),
        (x,),
        {},
        parameters=list(model.parameters()),
        likelihood="gaussian",
        approx="block-diag",
    )
    for block, other in zip(wrapped, plain, strict=True):
        assert torch.equal(block.dense(), other.dense())


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
