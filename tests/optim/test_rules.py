"""Damping policies, step lengths, momentum and averaging in QNGOptimizer, each against its formula written out."""

import copy
import itertools
import math
import time
from typing import Any

import pennylane as qml
import pytest
import torch
from torch.testing import assert_close

import fubini
from fubini.optim.proposal import Proposal
from models import hybrid, quadratic

EYE = torch.eye(4, dtype=torch.float64)


def gradient(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return a @ x.detach() - 1


def test_heavy_ball() -> None:
    """X+ = x + rho (x - x_prev) - lr (G + lam)^-1 grad, arXiv:2409.01978."""
    x, a, g, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=0.3, momentum=0.8)
    )
    mine, before = x.detach().clone(), x.detach().clone()
    for _ in range(5):
        step = 0.1 * torch.linalg.solve(g + 0.3 * EYE, gradient(mine, a))
        mine, before = mine + 0.8 * (mine - before) - step, mine
        opt.step(closure)
        assert_close(x.detach(), mine, rtol=1e-12, atol=1e-12)


def test_spring() -> None:
    """The dual formula of arXiv:2401.10190, eq. 21: G = X X^T, gradient = X f."""
    torch.manual_seed(3)
    factor = torch.randn(4, 2, dtype=torch.float64)  # fewer rows than parameters: G is singular
    residual = torch.randn(6, 2, dtype=torch.float64)
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    opt = fubini.QNGOptimizer([x], lr=0.1, lam=0.2, momentum=fubini.Spring(0.9))
    mine, d = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for f in residual:
        z = torch.linalg.solve(
            factor.T @ factor + 0.2 * torch.eye(2, dtype=torch.float64), f - 0.9 * factor.T @ d
        )
        d = 0.9 * d + factor @ z
        mine = mine - 0.1 * d
        x.grad = factor @ f
        opt.step(lambda: (torch.tensor(0.0), lambda _: factor @ factor.T))
        assert_close(x.detach(), mine, rtol=1e-11, atol=1e-12)


def test_momentum_is_a_coefficient_per_group() -> None:
    p, q = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [p], "momentum": 0.5}, {"params": [q]}]
    opt = fubini.QNGOptimizer(groups, lr=0.1, lam=0, momentum=fubini.HeavyBall(0.0))
    for _ in range(2):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        opt.step()
    assert_close(p.detach(), torch.full_like(p, 1 - 0.1 - 0.15))
    assert_close(q.detach(), torch.full_like(q, 1 - 0.1 - 0.1))


def test_weight_decay_is_decoupled() -> None:
    x, a, g, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=0.3, weight_decay=0.5)
    )
    start = x.detach().clone()
    opt.step(closure)
    expected = (
        start - 0.1 * torch.linalg.solve(g + 0.3 * EYE, gradient(start, a)) - 0.1 * 0.5 * start
    )
    assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


def test_maximize_is_the_negative_loss() -> None:
    def end(sign: float) -> torch.Tensor:
        x, *_, opt, closure = quadratic(
            lambda p: fubini.QNGOptimizer(
                [p], lr=1.0, lam=fubini.LevenbergMarquardt(), maximize=sign < 0
            ),
            factor=sign,
        )
        for _ in range(6):
            opt.step(closure)
        return x.detach()

    assert torch.equal(end(1.0), end(-1.0))


DAMPINGS: list[tuple[Any, Any]] = [
    (0.3, lambda g: 0.3 * EYE),
    (fubini.Absolute(0.3), lambda g: 0.3 * EYE),
    (fubini.Relative(0.3), lambda g: 0.3 * g.diagonal().mean() * EYE),
    (fubini.Diagonal(0.3), lambda g: torch.diag(0.3 * g.diagonal())),
]
POLICIES = [
    (fubini.Tikhonov(0.3), DAMPINGS[0][1]),
    (fubini.Schedule(lambda step: 0.3 + step), DAMPINGS[0][1]),
]


def check_damping(make: Any, added: Any) -> None:
    x, a, g, opt, closure = quadratic(make)
    start = x.detach().clone()
    opt.step(closure)
    direction = torch.linalg.solve(g + added(g), gradient(start, a))
    assert_close(x.detach(), start - 0.1 * direction, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("lam", "added"), [*DAMPINGS, *POLICIES])
def test_dampings(lam: Any, added: Any) -> None:
    check_damping(lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=lam), added)


@pytest.mark.parametrize(("lam", "added"), DAMPINGS)
def test_dampings_of_a_group(lam: Any, added: Any) -> None:
    check_damping(lambda p: fubini.QNGOptimizer([{"params": [p], "lam": lam}], lr=0.1), added)


def test_a_schedule_follows_the_steps() -> None:
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    opt = fubini.QNGOptimizer([p], lr=1.0, lam=fubini.Schedule(float))
    ends = []
    for _ in range(3):
        p.grad = torch.ones_like(p)
        opt.step()
        ends.append(p.item())
        assert opt.diagnostics()["damping"] == len(ends) - 1
    assert ends == pytest.approx([-1, -1 - 1 / 2, -1 - 1 / 2 - 1 / 3])


def test_dampings_of_two_kinds_in_one_block() -> None:
    layer = hybrid(second=True)[2]  # two parameters, one block
    opt = fubini.QNGOptimizer(
        [
            {"params": [layer.weights], "lam": fubini.Relative(0.5)},
            {"params": [layer.scale], "lam": 0.25},
        ],
        lr=1.0,
        model=layer,
        approx=None,
    )
    inputs = torch.rand(3, 2, dtype=torch.float64)
    layer(inputs).square().sum().backward()
    g = fubini.metric_tensor(layer, reduce="mean", joint=True)(inputs).detach()
    damping = torch.tensor([0.5 * float(g.diagonal().mean())] * 4 + [0.25], dtype=torch.float64)
    before = torch.cat([p.detach().reshape(-1) for p in (layer.weights, layer.scale)])
    grad = torch.cat([layer.weights.grad.reshape(-1), layer.scale.grad.reshape(-1)])
    opt.step()
    after = torch.cat([p.detach().reshape(-1) for p in (layer.weights, layer.scale)])
    expected = before - torch.linalg.solve(g + torch.diag(damping), grad)
    assert_close(after, expected, rtol=1e-10, atol=1e-12)


# -- lengths ---------------------------------------------------------------------------------------------------------


def test_a_trust_region_limits_the_length_in_the_metric() -> None:
    x, a, g, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=1.0, step_rule=fubini.TrustRegion(0.05))
    )
    start = x.detach().clone()
    opt.step(closure)
    step = x.detach() - start
    assert float(step @ g @ step) ** 0.5 == pytest.approx(0.05, rel=1e-12)
    assert opt.diagnostics()["step_length"] == pytest.approx(0.05, rel=1e-12)
    full = -torch.linalg.solve(g + 1e-3 * EYE, gradient(start, a))
    assert_close(step / step.norm(), full / full.norm(), rtol=1e-12, atol=1e-12)


def test_armijo_shortens_until_the_loss_falls_enough() -> None:
    x, a, g, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=64.0, step_rule=fubini.Armijo(share=0.1))
    )
    start = x.detach().clone()

    def loss(y: torch.Tensor) -> float:
        return float(y @ a @ y / 2 - y.sum())

    step = -64.0 * torch.linalg.solve(g + 1e-3 * EYE, gradient(start, a))
    factor, count = 1.0, 1
    while loss(start + factor * step) > loss(start) + 0.1 * factor * float(
        gradient(start, a) @ step
    ):
        factor, count = factor / 2, count + 1
    assert factor < 1
    opt.step(closure)
    assert_close(x.detach(), start + factor * step, rtol=1e-12, atol=1e-12)
    found = opt.diagnostics()
    assert found["evaluations"] == 1 + count
    assert found["actual_decrease"] == pytest.approx(loss(start) - loss(x.detach()))


def test_armijo_without_success_leaves_the_parameters() -> None:
    x = torch.ones(2, requires_grad=True)
    opt = fubini.QNGOptimizer([x], lr=1.0, step_rule=fubini.Armijo(max_evaluations=3))
    losses = iter([1.0, 5.0, 5.0, 5.0])

    def closure() -> torch.Tensor:
        x.grad = torch.ones(2)
        return torch.tensor(next(losses))

    assert opt.step(closure) == 1.0
    assert torch.equal(x.detach(), torch.ones(2))
    assert opt.diagnostics()["accepted"] == 0


# -- Levenberg-Marquardt ---------------------------------------------------------------------------------------------


def test_levenberg_marquardt_written_out() -> None:
    """The rule in NumPy-like code of its own: refusals, scale, strength and parameters agree step by step."""
    policy = fubini.LevenbergMarquardt(0.1)
    x, a, g, opt, closure = quadratic(lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=policy))
    a *= 40  # the scale between metric and curvature is far from 1
    mine, scale, lam = x.detach().clone(), 1.0, 0.1
    refused = 0

    def loss(y: torch.Tensor) -> float:
        return float(y @ a @ y / 2 - y.sum())

    for _ in range(12):
        for _ in range(policy.tries):
            d = -torch.linalg.solve(g + lam * EYE, gradient(mine, a)) / scale
            length, added = float(d @ g @ d), lam * float(d @ d)
            ratio = (loss(mine) - loss(mine + d)) / (
                -float(gradient(mine, a) @ d) - scale * length / 2
            )
            share = added / (added + length)
            factor = 0.5 if ratio > 0.75 else 2.0 if ratio < 0.25 else 1.0
            scale, lam = scale * factor ** (1 - share), lam * factor**share
            if ratio >= 0:
                mine = mine + d
                break
            refused += 1
        opt.step(closure)
        assert policy.scale == pytest.approx(scale, rel=1e-6)
        assert policy.strength == pytest.approx(lam, rel=1e-6)
        assert_close(x.detach(), mine, rtol=1e-8, atol=1e-8)
    assert refused > 2


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_is_found_by_the_rule(scale: float) -> None:
    """Whatever the loss is multiplied with, the same settings lose 99.9 % of the excess loss."""
    _, a, _, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=fubini.LevenbergMarquardt()), factor=scale
    )
    minimum = -float(torch.linalg.inv(a).sum()) / 2
    start = closure()[0].item() / scale
    for _ in range(60):
        opt.step(closure)
    assert closure()[0].item() / scale - minimum < 1e-3 * (start - minimum)


def test_a_refused_step_restores_to_the_bit() -> None:
    model = hybrid().float()
    policy = fubini.LevenbergMarquardt(1e-3, tries=3)
    opt = fubini.QNGOptimizer(model, lr=1.0, lam=policy, momentum=0.9, metric="quantum")
    before = copy.deepcopy(model.state_dict())
    inputs, calls = torch.rand(4, 3), 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        opt.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss if calls == 1 else loss + math.nan

    loss = opt.step(closure)
    assert torch.isfinite(loss)
    assert calls == 4
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert policy.strength * policy.scale == pytest.approx(8e-3)
    found = opt.diagnostics()
    assert found["accepted"] == 0
    assert found["evaluations"] == 4
    assert math.isnan(found["actual_decrease"])
    assert not any("velocity" in opt.state[p] for p in model.parameters())


def test_judging_again_leaves_no_trace() -> None:
    """Random numbers, batch-norm statistics, gradients and recorded passes are those of the first evaluation."""

    def build(lam: Any) -> tuple[Any, Any, Any]:
        torch.manual_seed(5)
        parts = list(hybrid())
        model = torch.nn.Sequential(
            torch.nn.Dropout(0.5), parts[0], torch.nn.BatchNorm1d(2), *parts[1:]
        ).double()
        opt = fubini.QNGOptimizer(model, lr=1e-3, lam=lam, metric="quantum")
        inputs, seen = torch.rand(6, 3, dtype=torch.float64), []

        def closure() -> torch.Tensor:
            opt.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            seen.append(loss.item())
            return loss

        return model, opt, (closure, seen)

    model, opt, (closure, _) = build(1e-2)
    opt.step(closure)
    gradients = [p.grad.clone() for p in model.parameters()]
    after = torch.rand(1)
    twin, judged, (again, seen) = build(fubini.LevenbergMarquardt(1e-2, tries=4))
    judged.step(again)
    assert len(seen) > 1
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(model[2].running_mean, twin[2].running_mean)
    assert twin[2].num_batches_tracked == 1
    for p, g in zip(twin.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    # A tiny step on the same dropout mask: the loss must fall by what was predicted.
    found = judged.diagnostics()
    assert found["actual_decrease"] == pytest.approx(found["predicted_decrease"], rel=0.1)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_levenberg_marquardt_solves_where_the_fixed_step_fails() -> None:
    layer = hybrid()[1]
    opt = fubini.QNGOptimizer(layer, lr=1.0, approx=None, lam=fubini.LevenbergMarquardt())
    inputs = torch.zeros(1, 2, dtype=torch.float64)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = layer(inputs).sum()
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(40)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses))
    assert losses[-1] == pytest.approx(-2, abs=1e-6)


def test_levenberg_marquardt_finds_the_critical_ising_ground_state() -> None:
    """QAOA with N / 2 layers on a ring of N = 6 spins reaches E0 = -2 / sin(pi / 2N); 20 of 20 starts at 8, 10 and 12
    spins are a benchmark, where steps of a fixed length or plain gradients often end elsewhere."""
    spins = 6
    terms = [qml.Z(i) @ qml.Z((i + 1) % spins) for i in range(spins)]
    terms += [qml.X(i) for i in range(spins)]

    def circuit(inputs: Any, angles: Any) -> Any:
        for i in range(spins):
            qml.Hadamard(i)
        for gamma, beta in angles:
            for i in range(spins):
                qml.IsingZZ(gamma, [i, (i + 1) % spins])
            for i in range(spins):
                qml.RX(beta, i)
        return qml.expval(qml.Hamiltonian([-1.0] * len(terms), terms))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=spins))
    lowest = -2 / math.sin(math.pi / (2 * spins))
    for seed in range(5):
        start = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)).double() * math.pi
        layer = fubini.QuantumLayer(qnode, {"angles": (3, 2)}, {"angles": start})
        opt = fubini.QNGOptimizer(layer, lr=1.0, approx=None, lam=fubini.LevenbergMarquardt())

        def closure() -> torch.Tensor:
            opt.zero_grad()  # noqa: B023
            loss = layer(torch.zeros(1, dtype=torch.float64))  # noqa: B023
            loss.backward()
            return loss

        energies = [opt.step(closure).item() for _ in range(60)]
        assert energies[-1] == pytest.approx(lowest, rel=1e-4)


def test_an_accepted_trial_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters stand where the trial left them: nothing is put back and added again."""
    calls: list[str] = []
    for name in ("apply", "restore"):
        original = getattr(Proposal, name)

        def counted(self: Any, *args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(Proposal, name, counted)
    for options in (
        {"lam": fubini.LevenbergMarquardt(0.3)},
        {"lam": 0.3, "step_rule": fubini.Armijo()},
    ):
        x, _, _, opt, closure = quadratic(
            lambda p, o=options: fubini.QNGOptimizer([p], lr=1.0, **o)
        )
        before = x.detach().clone()
        calls.clear()
        opt.step(closure)
        assert opt.diagnostics()["accepted"] == 1.0
        # each apply begins with a restore; the first evaluation is that of the gradient
        assert calls.count("apply") == opt.diagnostics()["evaluations"] - 1
        assert calls[-2:] == ["apply", "restore"]
        assert not torch.equal(x.detach(), before)


def test_a_system_that_cannot_be_solved_counts_in_the_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, _, _, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=fubini.LevenbergMarquardt(0.3))
    )
    make, failures = Proposal.make, iter([True])

    def slow(self: Any, *args: Any, **kwargs: Any) -> None:
        if next(failures, False):
            time.sleep(0.05)
            raise fubini.NumericalError("singular")
        make(self, *args, **kwargs)

    monkeypatch.setattr(Proposal, "make", slow)
    opt.step(closure)
    assert opt.diagnostics()["accepted"] == 1.0
    assert opt.diagnostics()["solve_seconds"] >= 0.05


def test_trials_of_a_policy_are_forward_passes() -> None:
    model = hybrid()
    inputs = torch.rand(4, 3, dtype=torch.float64)
    seen: list[tuple[bool, bool]] = []

    def train(way: str, steps: int = 4) -> tuple[list[float], float]:
        one = copy.deepcopy(model)
        opt = fubini.QNGOptimizer(one, 1.0, lam=fubini.LevenbergMarquardt(1e-3), metric="quantum")

        def closure() -> Any:
            opt.zero_grad()
            loss = one(inputs).square().mean()
            loss.backward()
            first = next(one.parameters()).grad
            seen.append((loss.requires_grad, first is not None))
            if way == "gradients are needed":
                assert first is not None
                return loss + 0.0 * first.sum()
            if way == "a number":
                return loss.item()
            if way == "another loss":
                return loss.detach() * 2.0 - loss.detach()
            return loss

        found = [opt.step(closure) for _ in range(steps)]
        losses = [x.item() if isinstance(x, torch.Tensor) else x for x in found]
        return losses, sum(float(p.detach().sum()) for p in one.parameters())

    expected = train("gradients are needed")
    assert all(seen[-3:])
    for way in ("a tensor", "a number", "another loss"):
        seen.clear()
        losses, end = train(way)
        assert losses == pytest.approx(expected[0], rel=1e-12)
        assert end == pytest.approx(expected[1], rel=1e-12)
        # Every step has an evaluation with a graph and its gradients; trials have neither.
        assert seen.count((True, True)) == 4
        assert set(seen) == {(True, True), (False, False)}
