"""What the tests of the Fisher information share: losses, and dense references by automatic differentiation."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fubini.blocks import Block, DenseBlock
from fubini.fisher import kfac
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

Tensor = torch.Tensor
N = 6


@pytest.fixture(autouse=True)
def double_precision() -> Any:
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


@pytest.fixture
def kfac_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfac, "EXACT_LIMIT", 0)
