"""Whole steps of models that were read from torch's graph, against those that go block by block."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

import fubini
from fisher_cases import double_precision
from fubini.optim.graph_step import GraphStep
from graph_cases import Drawn, Of, two_circuits
from quantum_layers import quantum

Tensor = torch.Tensor

_double = double_precision


def pair(
    model: nn.Module, loss: Any, other: nn.Module | None = None, **options: Any
) -> tuple[Any, Any, nn.Module]:
    """Optimizers of a model and of its copy, the second of which goes block by block."""
    other = copy.deepcopy(model) if other is None else other
    mine = fubini.QNGOptimizer(model, loss=loss, **options)
    theirs = fubini.QNGOptimizer(other, loss=loss, **options)
    theirs._chain = theirs._graph = None
    return mine, theirs, other


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records of every step whether it was taken by a plan."""
    taken: list[bool] = []
    original = GraphStep.step

    def step(self: Any, groups: Any, state: Any) -> Any:
        found = original(self, groups, state)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(GraphStep, "step", step)
    return taken


def train(model: nn.Module, opt: Any, loss: Any, steps: range, size: int = 6) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        random.seed(step)
        torch.manual_seed(step)
        data = size - 1 if step % 4 == 3 else size  # the last batch of an epoch
        x = torch.randn(data, 3, generator=generator)
        opt.zero_grad()
        f = model(x)
        if isinstance(loss, nn.CrossEntropyLoss):
            y = torch.randint(f.shape[1], (data,), generator=generator)
        else:
            y = (torch.randn(f.shape, generator=generator) > 0).to(f)
        loss(f, y).backward()
        opt.step()


def assert_same(model: nn.Module, other: nn.Module, rtol: float = 1e-8) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # rounding, amplified by the inverse of the damping in each step
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


LOSSES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.CrossEntropyLoss(),
    nn.BCEWithLogitsLoss(),
    nn.PoissonNLLLoss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda one: type(one).__name__)
def test_steps_are_those_that_go_block_by_block(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    model = two_circuits()
    opt, opt_other, other = pair(model, loss)
    taken = count_steps(monkeypatch)
    train(model, opt, loss, range(9))
    assert taken == [False] + [True] * 8
    train(other, opt_other, loss, range(9))
    assert_same(model, other)
    assert opt.explain() == opt_other.explain()
    mine, theirs = opt.diagnostics(), opt_other.diagnostics()
    for name in ("damping", "predicted_decrease", "step_length"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_random_models(seed: int) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(seed)
        models.append(Drawn(seed, 3))
    model, loss = models[0], LOSSES[seed % len(LOSSES)]
    opt, opt_other, other = pair(model, loss, models[1])
    train(model, opt, loss, range(5))
    train(other, opt_other, loss, range(5))
    assert_same(model, other, 1e-6)


def test_chains_whose_likelihood_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(3, 2), quantum(), nn.Linear(3, 1))
    loss = nn.PoissonNLLLoss()
    opt, opt_other, other = pair(model, loss)
    taken = count_steps(monkeypatch)
    train(model, opt, loss, range(6))
    assert taken == [False] + [True] * 5
    train(other, opt_other, loss, range(6))
    assert_same(model, other)


def test_wide_layers_take_kronecker_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(m.circuit(m.middle(m.first(x).sin())) + x)

    model = Of(
        forward,
        first=nn.Linear(3, 80),
        middle=nn.Linear(80, 2),
        circuit=quantum(),
        last=nn.Linear(3, 2),
    )
    opt, opt_other, other = pair(model, nn.MSELoss())
    train(model, opt, nn.MSELoss(), range(5))
    train(other, opt_other, nn.MSELoss(), range(5))
    assert_same(model, other)


class Forks(nn.Module):
    """Another way in some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.circuit, self.last = nn.Linear(3, 2), quantum(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h.tanh() if random.random() < 0.5 else h.sin() + h
        return self.last(self.circuit(h))


def test_another_way_in_some_calls() -> None:
    model = Forks()
    opt, opt_other, other = pair(model, nn.MSELoss())
    train(model, opt, nn.MSELoss(), range(12))
    train(other, opt_other, nn.MSELoss(), range(12))
    assert_same(model, other)


def test_weights_that_change_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = two_circuits()
    opt, opt_other, other = pair(model, nn.MSELoss())
    train(model, opt, nn.MSELoss(), range(3))
    train(other, opt_other, nn.MSELoss(), range(3))
    taken = count_steps(monkeypatch)
    x = torch.randn(5, 3)
    for one, its in ((model, opt), (other, opt_other)):
        its.zero_grad()
        one(x).square().mean().backward()
        with torch.no_grad():
            one.first.weight.mul_(1.1)
        its.step()
    assert taken == [False]
    assert_same(model, other)


def test_going_on_from_a_saved_state() -> None:
    model = two_circuits()
    opt, _, other = pair(model, nn.MSELoss())
    train(model, opt, nn.MSELoss(), range(4))
    other.load_state_dict(model.state_dict())
    again = fubini.QNGOptimizer(other, loss=nn.MSELoss())
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(model, opt, nn.MSELoss(), range(4, 8))
    train(other, again, nn.MSELoss(), range(4, 8))
    assert_same(model, other)


def test_a_step_that_cannot_be_taken_changes_nothing() -> None:
    model = two_circuits()
    opt = fubini.QNGOptimizer(model, loss=nn.MSELoss())
    train(model, opt, nn.MSELoss(), range(3))
    before = [p.clone() for p in model.parameters()]
    opt.zero_grad()
    model(torch.randn(5, 3)).square().mean().backward()
    next(model.parameters()).grad[0] = torch.nan  # type: ignore[index]
    with pytest.raises(fubini.NumericalError):
        opt.step()
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
