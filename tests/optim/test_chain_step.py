"""Whole steps of chains in one call of the kernel, against those that go block by block."""

import copy
from typing import Any

import pennylane as qml
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from chain_cases import (
    LOSSES,
    D,
    assert_same,
    batch,
    circuit,
    count_steps,
    drawn,
    is_narrow,
    pair,
    small,
    train,
)
from fubini.errors import NumericalError
from fubini.fisher import chain
from models import hybrid


@pytest.mark.parametrize("seed", range(14))
def test_steps_are_those_that_go_block_by_block(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = LOSSES[seed % len(LOSSES)]
    taken = count_steps(monkeypatch)
    model = drawn(seed, outputs).double()
    options: dict[str, Any] = [{}, {"averaging": 0.0}, {"step_rule": None}, {"lam": 0.3}][seed % 4]
    mine, theirs, other = pair(model, loss, **options)
    train(model, mine, loss, outputs, range(6))
    # TorchLayers are compiled in the first step.
    assert taken[1:] == [is_narrow(model)] * 5
    train(other, theirs, loss, outputs, range(6))
    # Rounding, which the steps between carry on.
    assert_same(model, other, 1e-9)
    assert mine.explain() == theirs.explain()
    numbers, expected = mine.diagnostics(), theirs.diagnostics()
    # The condition number is an estimate, which may jump.
    for key in numbers.keys() - {"condition", "metric_seconds", "solve_seconds", "update_seconds"}:
        assert numbers[key] == pytest.approx(expected[key], rel=1e-6, nan_ok=True)
    saved, wanted = mine.state_dict(), theirs.state_dict()
    assert saved["state"].keys() == wanted["state"].keys()
    for index, entry in wanted["state"].items():
        assert entry.keys() == saved["state"][index].keys()
        for name, value in entry.items():
            assert_close(saved["state"][index][name], value, rtol=1e-8, atol=1e-9)


def test_a_step_is_exact() -> None:
    """One step from the same state: nothing but the rounding of the kernel's sums."""
    for seed in range(4):
        loss, outputs = LOSSES[seed]
        model = drawn(seed + 40, outputs).double()
        mine, theirs, other = pair(model, loss)
        train(model, mine, loss, outputs, range(1))
        train(other, theirs, loss, outputs, range(1))
        assert_same(model, other, 1e-12)


def test_signs_are_those_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "SWEEPS", 0)
    for outputs, loss in (
        (5, nn.CrossEntropyLoss()),
        (2, nn.CrossEntropyLoss()),
        (2, nn.MSELoss()),
    ):
        torch.manual_seed(outputs)
        model = nn.Sequential(nn.Linear(6, 4), circuit(4, 2), nn.Linear(4, outputs)).double()
        mine, theirs, other = pair(model, loss)
        train(model, mine, loss, outputs, range(3))
        train(other, theirs, loss, outputs, range(3))
        assert_same(model, other)


def test_states_of_another_pass_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that the pass left are taken once more, and no others: neither of other inputs nor of other weights."""
    monkeypatch.setattr(chain, "SWEEPS", 0)
    loss, outputs = LOSSES[0]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3), circuit(3, 2), nn.Linear(3, outputs)).double()
    mine, theirs, other = pair(model, loss)
    for module, opt in ((model, mine), (other, theirs)):
        for step in range(6):
            x, y = batch(loss, outputs, step, D)
            opt.zero_grad()
            loss(module(x), y).backward()
            if step == 2:
                module(x.flip(0))
            if step == 3:
                with torch.no_grad():
                    module[1].weights.mul_(1.1)
            if step == 4:
                loss(module(x + 1.0), y).backward(inputs=[x.requires_grad_()])
            opt.step()
    assert mine._chain is not None
    assert mine._chain._plan.passes()[0] is not None
    assert_same(model, other)


@pytest.mark.parametrize("seed", range(4))
def test_single_precision(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = LOSSES[seed]
    taken = count_steps(monkeypatch)
    model = drawn(seed + 60, outputs).float()
    mine, theirs, other = pair(model, loss)
    train(model, mine, loss, outputs, range(3))
    train(other, theirs, loss, outputs, range(3))
    assert any(taken) is is_narrow(model)
    assert_same(model, other, 1e-5)


def test_both_ways_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one way leaves in the state, the other one takes up."""
    loss, outputs = LOSSES[0]
    model = small()
    mine, theirs, other = pair(model, loss)
    kept = mine._chain

    def between(step: int, opt: Any) -> None:
        opt._chain = kept if step % 3 else None

    train(model, mine, loss, outputs, range(9), between)
    train(other, theirs, loss, outputs, range(9))
    assert_same(model, other)


def test_resumption_is_exact() -> None:
    loss, outputs = LOSSES[0]
    model = small()
    opt = fubini.QNGOptimizer(model, loss=loss)
    train(model, opt, loss, outputs, range(5))
    saved, weights = copy.deepcopy((opt.state_dict(), model.state_dict()))
    train(model, opt, loss, outputs, range(5, 10))
    again = small()
    again.load_state_dict(weights)
    resumed = fubini.QNGOptimizer(again, loss=loss)
    resumed.load_state_dict(saved)
    train(again, resumed, loss, outputs, range(5, 10))
    assert_same(model, again, 0.0)


def test_frozen_and_foreign_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = LOSSES[0]
    taken = count_steps(monkeypatch)
    for frozen in (0, 1, 2):
        model = small()
        model[frozen].requires_grad_(False)
        mine, theirs, other = pair(model, loss)
        taken.clear()
        train(model, mine, loss, outputs, range(3))
        assert taken == [True] * 3
        train(other, theirs, loss, outputs, range(3))
        model[frozen].requires_grad_(True)
        other[frozen].requires_grad_(True)
        train(model, mine, loss, outputs, range(3, 8))
        train(other, theirs, loss, outputs, range(3, 8))
        assert not taken[3]  # it moves now, and has another plan soon
        assert taken[-1]
        assert_same(model, other)


def test_what_changes_about_a_model_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change either has its own plan or goes block by block, and never the plan of before."""
    loss, outputs = LOSSES[0]
    scale = {"factor": 1.0}

    def function(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(scale["factor"] * inputs, range(2))
        qml.StronglyEntanglingLayers(weights, range(2))
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    def made() -> nn.Sequential:
        torch.manual_seed(1)
        qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
        layer = fubini.QuantumLayer(qnode, {"weights": (2, 2, 3)})
        return nn.Sequential(nn.Linear(6, 2), nn.Tanh(), layer, nn.Linear(2, outputs)).double()

    def hook(model: Any) -> None:
        model[1].register_forward_hook(lambda _m, _i, out: 2.0 * out)

    def replace(model: Any) -> None:
        model[1] = nn.Sigmoid()

    def reshape(model: Any) -> None:
        model[0].weight.data = model[0].weight.detach().T.contiguous().T

    def memory(model: Any) -> None:
        model[3].weight.data = model[3].weight.detach() * 1.5

    def capture(_: Any) -> None:
        scale["factor"] = 0.7

    def override(model: Any) -> None:
        model[1].forward = lambda x: x.sin()

    for change in (hook, replace, reshape, memory, capture, override):
        scale["factor"] = 1.0
        model, other = made(), made()
        mine = fubini.QNGOptimizer(model, loss=loss)
        theirs = fubini.QNGOptimizer(other, loss=loss)
        theirs._chain = None
        train(model, mine, loss, outputs, range(3))
        change(model)
        train(model, mine, loss, outputs, range(3, 6))
        scale["factor"] = 1.0
        train(other, theirs, loss, outputs, range(3))
        change(other)
        train(other, theirs, loss, outputs, range(3, 6))
        assert_same(model, other)


def test_what_is_refused_changes_nothing() -> None:
    loss, outputs = LOSSES[0]
    model = small()
    opt = fubini.QNGOptimizer(model, loss=loss)
    train(model, opt, loss, outputs, range(3))
    for bad in (float("nan"), float("inf")):
        x, y = batch(loss, outputs, 4, D)
        opt.zero_grad()
        loss(model(x), y).backward()
        model[0].weight.grad[0, 0] = bad
        before = copy.deepcopy((list(model.parameters()), opt.state_dict()["state"]))
        numbers = opt.diagnostics()
        with pytest.raises(NumericalError, match=r"0\.weight: expected a finite gradient"):
            opt.step()
        after = list(model.parameters()), opt.state_dict()["state"]
        assert opt.diagnostics() == numbers
        for p, q in zip(before[0], after[0], strict=True):
            assert torch.equal(p, q)
        for index, entry in before[1].items():
            for name, value in entry.items():
                assert_close(after[1][index][name], value, rtol=0, atol=0)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr: expected"):
        opt.step()


def test_several_passes_ignored_labels_and_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, outputs = nn.CrossEntropyLoss(), 3
    taken = count_steps(monkeypatch)
    model = small()
    mine, theirs, other = pair(model, loss, maximize=False)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.9) for opt in (mine, theirs)]
    for module, opt, schedule in ((model, mine, schedules[0]), (other, theirs, schedules[1])):
        for step in range(8):
            x, y = batch(loss, outputs, step, D)
            opt.zero_grad()
            if step == 2:
                y[:4] = -100
            if step == 4:
                loss(module(x), y).backward()
            loss(module(x), y).backward()
            if step == 5:

                def closure(module: Any = module, x: Any = x, y: Any = y) -> Any:
                    value = loss(module(x), y)
                    value.backward()
                    return value

                opt.zero_grad()
                assert opt.step(closure).ndim == 0
            else:
                opt.step()
            schedule.step()
    assert taken == [step not in (2, 4) for step in range(8)]
    assert_same(model, other)


def test_models_of_one_output() -> None:
    model = hybrid(second=True)
    loss = nn.MSELoss()
    mine, theirs, other = pair(model, loss)
    for module, opt in ((model, mine), (other, theirs)):
        for step in range(4):
            x, _ = batch(loss, 1, step, D)
            opt.zero_grad()
            loss(module(x[:, :3])[:, 0], x[:, 0]).backward()
            opt.step()
    assert_same(model, other)
