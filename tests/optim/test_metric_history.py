"""The metric over several steps, and what is known about a step."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import fubini
from models import hybrid, quadratic


def matrices(count: int) -> list[torch.Tensor]:
    root = torch.randn(count, 3, 3, dtype=torch.float64)
    return list(root @ root.mT)


def test_averaging_with_bias_correction() -> None:
    """After t steps sum_i (1 - b) b^(t-i) G_i / (1 - b^t): the first metric counts in full, never the identity."""
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    opt = fubini.QNGOptimizer([p], lr=0.1, lam=0.2, averaging=0.7)
    seen = matrices(5)
    mine = torch.zeros(3, dtype=torch.float64)
    p.grad = torch.randn(3, dtype=torch.float64)
    for t in range(1, 6):
        weights = [0.3 * 0.7 ** (t - i) / (1 - 0.7**t) for i in range(1, t + 1)]
        mean = sum(w * g for w, g in zip(weights, seen, strict=False))
        mine = mine - 0.1 * torch.linalg.solve(
            mean + 0.2 * torch.eye(3, dtype=torch.float64), p.grad
        )
        opt.step(lambda: (torch.tensor(0.0), lambda _: seen[t - 1]))  # noqa: B023
        assert_close(p.detach(), mine, rtol=1e-11, atol=1e-12)


def test_update_every() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.1, update_every=3, metric="quantum")
    inputs = torch.rand(5, 4, 3, dtype=torch.float64)
    metric: Any = None
    for step, x in enumerate(inputs):
        opt.zero_grad()
        model(x).square().mean().backward()
        if step % 3 == 0:
            hidden = model[0](x).detach()
            metric = fubini.metric_tensor(model[1], "block-diag", reduce="mean", joint=True)(hidden)
        weights = model[1].weights
        d = torch.linalg.solve(
            metric + 1e-3 * torch.eye(12, dtype=torch.float64), weights.grad.reshape(-1)
        )
        expected = weights.detach() - 0.1 * d.reshape(weights.shape)
        opt.step()
        assert_close(weights.detach(), expected, rtol=1e-9, atol=1e-12)


# -- diagnostics -----------------------------------------------------------------------------------------------------


def test_diagnostics() -> None:
    x, a, g, opt, closure = quadratic(lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=0.3))
    assert opt.diagnostics() == {}
    start = x.detach().clone()
    loss = opt.step(closure)
    found = opt.diagnostics()
    step = x.detach() - start
    assert found["loss"] == loss.item()
    assert found["damping"] == 0.3
    assert found["scale"] == 1.0
    assert found["predicted_decrease"] == pytest.approx(
        -float((a @ start - 1) @ step) - float(step @ g @ step) / 2
    )
    assert math.isnan(found["actual_decrease"])
    assert found["step_length"] == pytest.approx(float(step @ g @ step) ** 0.5)
    # The solver estimates the condition number in the 1-norm, which is within a factor n of the 2-norm's.
    exact = float(torch.linalg.cond(g + 0.3 * torch.eye(4, dtype=torch.float64)))
    assert exact / 4 <= found["condition"] <= exact * 4
    assert found["accepted"] == found["evaluations"] == 1
    assert all(found[f"{part}_seconds"] >= 0 for part in ("metric", "solve", "update"))
    assert all(isinstance(value, float) for value in found.values())
