"""Steps of models that are read from torch's graph, and what may happen between pass and step."""

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fubini
from fisher_cases import double_precision
from fubini.fisher import blocks as fisher_module
from fubini.fisher import graph as graph_module
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.columns import Request
from fubini.fisher.graph_blocks import KnownGraphs, graph_blocks
from fubini.fisher.likelihoods import Gaussian
from graph_cases import Drawn, Of, seen_by, two_circuits
from quantum_layers import quantum

Tensor = torch.Tensor

_double = double_precision


def test_values_that_changed_since_the_pass_are_not_taken() -> None:
    kept: list[Tensor] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        kept.append(m.first(x).tanh())
        return m.last(kept[-1])

    model = Of(forward, first=nn.Linear(3, 4), last=nn.Linear(4, 2))
    one = seen_by(model, torch.randn(5, 3))
    assert one.graph.is_intact
    kept[-1].detach().add_(1.0)
    assert not one.graph.is_intact


def test_the_data_may_change_after_the_pass() -> None:
    x = torch.randn(5, 3)
    model = Of(
        lambda m, x: m.last(m.first(x).tanh() * x[:, :1]),
        first=nn.Linear(3, 4),
        last=nn.Linear(4, 2),
    )
    one, copy = seen_by(model, x), x.clone()
    x.zero_()
    wanted = list(model.parameters())
    request = Request(Gaussian(), "true", None, None, "gauss-newton", "wires", "block-diag", None)
    found = graph_blocks(model, [one], wanted, request, KnownGraphs())
    assert found is not None
    expected = fisher_blocks(
        model, (copy,), {}, parameters=wanted, likelihood=Gaussian(), approx="block-diag"
    )
    for block, other in zip(found, expected, strict=True):
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-10, atol=1e-12)


def test_a_graph_that_hooks_change_is_refused_once_and_for_all() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.first(x).tanh()
        h.register_hook(lambda g: 2.0 * g)
        return m.last(h)

    model = Of(forward, first=nn.Linear(3, 4), last=nn.Linear(4, 2))
    known, x = KnownGraphs(), torch.randn(5, 3)
    wanted = list(model.parameters())
    request = Request(Gaussian(), "true", None, None, "gauss-newton", "wires", "block-diag", None)
    calls: list[int] = []

    def general(_: Request) -> Any:
        calls.append(1)
        return fisher_blocks(
            model, (x,), {}, parameters=wanted, likelihood=Gaussian(), approx="block-diag"
        )

    for count in (1, 2, 3):
        known.blocks(model, [seen_by(model, x)], wanted, request, general)
        assert len(calls) == count


# -- steps --------------------------------------------------------------------------------------------------------------------


def steps(
    make: Callable[[], nn.Module], reads: bool, loss: Any = None, **options: Any
) -> tuple[list[Tensor], int]:
    """The parameters after some steps, and how many general passes they took."""
    general: list[int] = []
    original = fisher_module.survey
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fisher_module, "survey", lambda m: (general.append(1), original(m))[1])
        if not reads:
            patch.setattr(graph_module, "_read", lambda _: None)
        torch.manual_seed(1)
        random.seed(1)
        model = make()
        opt = fubini.QNGOptimizer(model, loss=loss or nn.MSELoss(), **options)
        for _ in range(6):
            x = torch.randn(5, 3)
            opt.zero_grad()
            f = model(x)
            (loss or nn.MSELoss())(f, torch.zeros_like(f)).backward()
            opt.step()
    return list(model.parameters()), len(general)


class Forks(nn.Module):
    """Another way in some calls, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.circuit, self.last = nn.Linear(3, 2), quantum(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h.tanh() if random.random() < 0.5 else h.sin() + h
        return self.last(F.dropout(self.circuit(h), 0.3, self.training))


@pytest.mark.parametrize(
    ("make", "passes"),
    [(two_circuits, 1), (Forks, 2), (lambda: Drawn(3, 2), 1)],
    ids=["two", "forks", "drawn"],
)
@pytest.mark.parametrize("metric", ["fisher", "hybrid"])
def test_steps_are_those_of_the_general_pass(make: Any, passes: int, metric: Any) -> None:
    found, count = steps(make, True, metric=metric)
    expected, all_of_them = steps(make, False, metric=metric)
    assert (count, all_of_them) == (passes, 6)
    for p, q in zip(found, expected, strict=True):
        # rounding, amplified by the inverse of the damping in each of six steps
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_weights_that_change_before_the_step_take_the_general_pass() -> None:
    model = two_circuits()
    opt = fubini.QNGOptimizer(model, loss=nn.MSELoss())
    x = torch.randn(5, 3)
    blocks = []
    original = fisher_module.survey
    for _ in range(3):
        opt.zero_grad()
        model(x).square().mean().backward()
        with torch.no_grad():
            model.first.weight.mul_(1.1)  # type: ignore[union-attr, operator]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fisher_module, "survey", lambda m: (blocks.append(1), original(m))[1])
            opt.step()
    assert len(blocks) == 3


def test_passes_without_a_backward_pass_leave_nothing() -> None:
    model = Of(lambda m, x: m.circuit(m.first(x).sin()), first=nn.Linear(3, 2), circuit=quantum())
    opt = fubini.QNGOptimizer(model, loss=nn.MSELoss())
    assert opt
    gc.collect()
    gc.disable()
    try:
        output = model(torch.randn(5, 3))
        kept = weakref.ref(output.grad_fn)
        assert kept() is not None
        del output
        assert kept() is None
    finally:
        gc.enable()


def test_errors_are_those_of_the_general_pass() -> None:
    model = two_circuits()
    one = seen_by(model, torch.full((5, 3), float("nan")))
    request = Request(Gaussian(), "true", None, None, "gauss-newton", "wires", "block-diag", None)
    with pytest.raises(fubini.NumericalError, match="finite outputs"):
        graph_blocks(model, [one], list(model.parameters()), request, KnownGraphs())


def test_activations_of_large_models_are_not_kept() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x).sin())

    model = Of(forward, first=nn.Linear(40, 300), last=nn.Linear(300, 3))
    assert seen_by(model, torch.randn(8, 40)).graph is not None
    assert seen_by(model, torch.randn(40, 40)).graph is None
