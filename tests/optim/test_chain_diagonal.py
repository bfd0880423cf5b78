"""Whole steps of chains with diagonal blocks, against those that go block by block."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from chain_cases import LOSSES, assert_same, batch, circuit, count_steps, drawn, pair, small, train
from fubini.fisher import chain
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.losses import as_likelihood


@pytest.mark.parametrize("seed", range(14))
def test_steps_are_those_that_go_block_by_block(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = LOSSES[seed % len(LOSSES)]
    taken = count_steps(monkeypatch)
    model = drawn(seed + 20, outputs).double()
    options: dict[str, Any] = [{}, {"averaging": 0.0}, {"step_rule": None}, {"lam": 0.3}][seed % 4]
    mine, theirs, other = pair(model, loss, approx="diag", **options)
    train(model, mine, loss, outputs, range(6))
    # TorchLayers are compiled in the first step. No shape of a linear layer is too much for a diagonal.
    assert taken[1:] == [True] * 5
    train(other, theirs, loss, outputs, range(6))
    # Rounding, which the steps between carry on.
    assert_same(model, other, 1e-9)
    assert mine.explain() == theirs.explain()
    numbers, expected = mine.diagnostics(), theirs.diagnostics()
    for key in numbers.keys() - {"metric_seconds", "solve_seconds", "update_seconds"}:
        assert numbers[key] == pytest.approx(expected[key], rel=1e-6, nan_ok=True)
    saved, wanted = mine.state_dict()["state"], theirs.state_dict()["state"]
    assert saved.keys() == wanted.keys()
    for index, entry in wanted.items():
        assert entry.keys() == saved[index].keys()
        for name, value in entry.items():
            assert_close(saved[index][name], value, rtol=1e-8, atol=1e-9)


def test_a_step_is_exact() -> None:
    """One step from the same state, and the metric that it leaves: nothing but the rounding of the kernel's sums."""
    for seed in range(7):
        loss, outputs = LOSSES[seed]
        model = drawn(seed + 40, outputs).double()
        mine, theirs, other = pair(model, loss, approx="diag")
        train(model, mine, loss, outputs, range(1))
        train(other, theirs, loss, outputs, range(1))
        assert_same(model, other, 1e-12)


def test_the_metric_is_the_diagonal_of_the_joint_matrix() -> None:
    """The whole matrix knows nothing of chains: a general pass through torch makes it."""
    for loss, outputs in (LOSSES[0], LOSSES[4], LOSSES[5]):
        model = small(outputs)
        owned = list(model.parameters())
        opt = fubini.QNGOptimizer(model, loss=loss, approx="diag", averaging=0.0)
        train(model, opt, loss, outputs, range(1))
        assert opt._chain is not None
        assert opt._chain._averages is not None
        x, _ = batch(loss, outputs, 1, torch.float64)
        [joint] = fisher_blocks(
            model, (x,), {}, parameters=owned, likelihood=as_likelihood(loss), approx=None
        )
        train(model, opt, loss, outputs, range(1, 2))
        averages = opt._chain._averages
        found = torch.cat(averages.tensors[1 - averages.into])
        assert_close(found, joint.diagonal(), rtol=1e-12, atol=1e-12)


def test_signs_are_those_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "SWEEPS", 0)
    for outputs, loss in (
        (5, nn.CrossEntropyLoss()),
        (2, nn.CrossEntropyLoss()),
        (2, nn.MSELoss()),
    ):
        torch.manual_seed(outputs)
        model = nn.Sequential(nn.Linear(6, 4), circuit(4, 2), nn.Linear(4, outputs)).double()
        mine, theirs, other = pair(model, loss, approx="diag")
        train(model, mine, loss, outputs, range(3))
        train(other, theirs, loss, outputs, range(3))
        assert_same(model, other)


def test_single_precision_and_frozen_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = LOSSES[0]
    taken = count_steps(monkeypatch)
    for frozen in (0, 1, 2):
        model = small().float()
        model[frozen].requires_grad_(False)
        mine, theirs, other = pair(model, loss, approx="diag")
        taken.clear()
        train(model, mine, loss, outputs, range(3))
        assert taken == [True] * 3
        train(other, theirs, loss, outputs, range(3))
        assert_same(model, other, 1e-5)


def test_both_ways_take_turns() -> None:
    """What one way leaves in the state, the other one takes up."""
    loss, outputs = LOSSES[0]
    model = small()
    mine, theirs, other = pair(model, loss, approx="diag")
    kept = mine._chain

    def between(step: int, opt: Any) -> None:
        opt._chain = kept if step % 3 else None

    train(model, mine, loss, outputs, range(9), between)
    train(other, theirs, loss, outputs, range(9))
    assert_same(model, other)


def test_a_parameter_that_moves_nothing_keeps_its_gradient() -> None:
    """The weights of inputs that are zero: of no entry in the diagonal, and undamped."""
    loss, outputs = LOSSES[5]
    model = small(outputs)
    mine, theirs, other = pair(model, loss, approx="diag")
    for module, opt in ((model, mine), (other, theirs)):
        for step in range(3):
            x, y = batch(loss, outputs, step, torch.float64)
            x[:, 2] = 0.0
            opt.zero_grad()
            loss(module(x), y).backward()
            opt.step()
    assert_same(model, other)
