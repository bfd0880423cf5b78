"""The pass that finds the Fisher information leaves the model alone, and what it cannot do is refused by name."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fubini
from fisher_cases import (
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
from fubini.fisher import accumulators as fisher_units
from fubini.fisher import blocks as fisher_module
from fubini.fisher import kfac
from fubini.fisher import passes as fisher_pass
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from fubini.fisher.passes import _subsets

Tensor = torch.Tensor
_double = double_precision
_kfac = kfac_everywhere


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
    monkeypatch.setattr(kfac, "EXACT_LIMIT", limit)
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


@pytest.mark.parametrize("data", [2, 3, 6, 16])
def test_subsets_separate_any_two_of_few_data(data: int) -> None:
    # a model that mixed two of few data went unseen in every second pass
    for _ in range(5):
        subsets = _subsets(data).numpy()
        for one in range(data):
            for other in set(range(data)) - {one}:
                assert (subsets[:, one] & ~subsets[:, other]).any()


@pytest.mark.parametrize("data", [17, 64, 65, 1000])
def test_subsets_of_many_data(data: int) -> None:
    subsets = _subsets(data).numpy()
    assert len(subsets) == (4 if data <= 64 else 2)
    assert (np.abs(subsets.sum(axis=1) - data / 2) <= 2).all()
