"""QNGOptimizer with a Fisher matrix: the step against dense automatic differentiation, and what it leaves alone."""

import copy
import io
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import fubini
from fubini.fisher.likelihoods import Bernoulli, Gaussian
from models import hybrid

CRITERION = torch.nn.BCEWithLogitsLoss()


def data(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 3, dtype=torch.float64), torch.randint(0, 2, (count, 1)).double()


def dense(model: torch.nn.Module, x: torch.Tensor, curvature: Any) -> torch.Tensor:
    """The Gauss-Newton matrix of all parameters: one output's gradient after the other."""
    outputs = model(x).reshape(-1)
    parameters = list(model.parameters())
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, parameters, retain_graph=True)])
        for f in outputs
    ]
    jacobian = torch.stack(rows)
    return jacobian.T @ (curvature(outputs.detach())[:, None] * jacobian)


def logistic(f: torch.Tensor) -> torch.Tensor:
    return f.sigmoid() * (1 - f.sigmoid()) / len(f)


def flat(values: Any) -> torch.Tensor:
    return torch.cat([v.detach().reshape(-1) for v in values])


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_a_step_is_that_of_the_dense_matrix(approx: Any) -> None:
    model, (x, y) = hybrid(second=True), data()
    opt = fubini.QNGOptimizer(
        model, lr=0.3, metric="fisher", likelihood="bernoulli", approx=approx, lam=0.01
    )
    CRITERION(model(x), y).backward()
    fisher = dense(model, x, logistic)
    if approx == "diag":
        fisher = torch.diag(fisher.diagonal())
    elif approx == "block-diag":  # all layers are small enough for exact blocks
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in model]
        fisher = torch.block_diag(
            *(
                part[:, start : start + size]
                for part, size, start in zip(
                    fisher.split(sizes),
                    sizes,
                    [sum(sizes[:k]) for k in range(len(sizes))],
                    strict=True,
                )
            )
        )
    before = flat(model.parameters())
    gradient = flat(p.grad for p in model.parameters())
    opt.step()
    expected = before - 0.3 * torch.linalg.solve(
        fisher + 0.01 * torch.eye(len(fisher), dtype=torch.float64), gradient
    )
    assert_close(flat(model.parameters()), expected, rtol=1e-9, atol=1e-11)


def test_gradient_accumulation_is_the_whole_batch() -> None:
    x, y = data(8)
    ends = []
    for parts in (1, 4):
        torch.manual_seed(2)
        model = hybrid()
        opt = fubini.QNGOptimizer(model, lr=0.3, metric="fisher", likelihood="bernoulli", lam=0.01)
        for _ in range(2):
            opt.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (CRITERION(model(a), b) / parts).backward()
            model(x[:3])  # looked at only
            opt.step()
        ends.append(flat(model.parameters()))
    assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_the_empirical_matrix_needs_no_targets() -> None:
    """They are in the gradient by the outputs; both ways give the squared gradients of the single losses."""
    x, y = data()
    ends = []
    for targets in (None, y):
        torch.manual_seed(2)
        model = hybrid()
        opt = fubini.QNGOptimizer(
            model,
            lr=0.3,
            metric="fisher",
            likelihood="bernoulli",
            fisher="empirical",
            approx=None,
            lam=0.01,
        )
        CRITERION(model(x), y).backward()
        before, gradient = flat(model.parameters()), flat(p.grad for p in model.parameters())
        singles = [
            flat(torch.autograd.grad(CRITERION(model(a[None]), b[None]), list(model.parameters())))
            for a, b in zip(x, y, strict=True)
        ]
        fisher = sum(torch.outer(g, g) for g in singles) / len(x)
        opt.step(targets=targets)
        ends.append(flat(model.parameters()))
        damped = fisher + 0.01 * torch.eye(len(before), dtype=torch.float64)
        expected = before - 0.3 * torch.linalg.solve(damped, gradient)
        assert_close(ends[-1], expected, rtol=1e-9, atol=1e-11)
    assert_close(*ends, rtol=1e-12, atol=1e-13)


def test_frozen_and_unused_parameters() -> None:
    model, (x, y) = hybrid(second=True), data()
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    before = copy.deepcopy(model.state_dict())
    opt = fubini.QNGOptimizer(model, lr=0.3, metric="fisher", likelihood="bernoulli")
    CRITERION(model(x), y).backward()
    opt.step()
    still = {n for n, v in model.state_dict().items() if torch.equal(v, before[n])}
    assert still == {"0.bias", "unused"}


def test_the_model_is_left_as_it_was() -> None:
    """The metric's own pass leaves random numbers, statistics, training mode and gradients alone."""
    parts = list(hybrid())
    model = torch.nn.Sequential(
        torch.nn.Dropout(0.5), parts[0], torch.nn.BatchNorm1d(2), *parts[1:]
    ).double()
    opt = fubini.QNGOptimizer(
        model, lr=0.1, metric="fisher", likelihood=Bernoulli(), samples=2, averaging=0.5
    )
    x, y = data()
    CRITERION(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    random = torch.get_rng_state()
    opt.step()
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert len(model._forward_hooks) == 1
    assert not any(m._forward_hooks or m._backward_hooks for m in model.children())


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "bernoulli", "samples": 3, "averaging": 0.8, "update_every": 2},
        {"likelihood": "bernoulli", "approx": None, "momentum": 0.5},
    ],
)
def test_resumed_training_continues_to_the_bit(options: dict[str, Any]) -> None:
    batches = [data() for _ in range(6)]

    def build() -> tuple[Any, Any]:
        model = hybrid().float()
        return model, fubini.QNGOptimizer(model, lr=0.1, metric="fisher", **options)

    def train(model: Any, opt: Any, part: Any) -> None:
        for x, y in part:
            opt.zero_grad()
            CRITERION(model(x.float()), y.float()).backward()
            opt.step()

    torch.manual_seed(7)
    model, opt = build()
    train(model, opt, batches[:3])
    buffer = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict()], buffer)
    train(model, opt, batches[3:])
    buffer.seek(0)
    torch.manual_seed(7)  # the labels that are drawn depend on the seed and the step only
    resumed, again = build()
    saved = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, batches[3:])
    assert torch.equal(flat(model.parameters()), flat(resumed.parameters()))


def test_averages_of_joint_matrices_over_batches_of_any_size() -> None:
    """Small batches give factors, large ones matrices; the average is that of the matrices, also after a resumption."""
    batches = [data(count) for count in (4, 40, 5, 6)]

    def build() -> tuple[Any, Any]:
        torch.manual_seed(4)
        model = hybrid()
        opt = fubini.QNGOptimizer(
            model, lr=0.1, metric="fisher", likelihood="bernoulli", approx=None, averaging=0.6
        )
        return model, opt

    def step(model: Any, opt: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        opt.zero_grad()
        CRITERION(model(x), y).backward()
        opt.step()

    model, opt = build()
    mean, saved = torch.zeros(()), {}
    for t, (x, y) in enumerate(batches, 1):
        weight = (1 - 0.6) / (1 - 0.6**t)
        mean = (1 - weight) * mean + weight * dense(model, x, logistic)
        model.zero_grad()
        CRITERION(model(x), y).backward()
        before, gradient = flat(model.parameters()), flat(p.grad for p in model.parameters())
        damped = mean + 1e-3 * torch.eye(len(mean), dtype=torch.float64)
        opt.step()
        expected = before - 0.1 * torch.linalg.solve(damped, gradient)
        assert_close(flat(model.parameters()), expected, rtol=1e-8, atol=1e-9)
        if t == 2:
            saved = copy.deepcopy({"model": model.state_dict(), "opt": opt.state_dict()})
    resumed, again = build()
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["opt"])
    for x, y in batches[2:]:
        step(resumed, again, x, y)
    assert torch.equal(flat(model.parameters()), flat(resumed.parameters()))


def test_an_average_starts_again_when_other_parameters_move() -> None:
    model, (x, y) = hybrid(), data()
    opt = fubini.QNGOptimizer(
        model, lr=0.1, metric="fisher", likelihood="bernoulli", approx=None, averaging=0.6
    )
    for frozen in (False, True):
        model[2].weight.requires_grad_(not frozen)
        opt.zero_grad()
        CRITERION(model(x), y).backward()
        opt.step()
    assert opt.state[model[0].weight]["metric_updates"] == 1


@pytest.mark.parametrize("metric", ["fisher", "hybrid"])
@pytest.mark.parametrize("rule", ["levenberg-marquardt", "trust region"])
def test_rules_train_a_classifier(metric: Any, rule: str) -> None:
    model, (x, y) = hybrid(), data(12)
    options: dict[str, Any] = (
        {"lam": fubini.LevenbergMarquardt(0.1)}
        if rule == "levenberg-marquardt"
        else {"step_rule": fubini.TrustRegion(0.3), "lam": 0.01}
    )
    opt = fubini.QNGOptimizer(model, lr=1.0, metric=metric, likelihood="bernoulli", **options)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = CRITERION(model(x), y)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]
    if rule == "trust region":
        assert opt.diagnostics()["step_length"] <= 0.3 * (1 + 1e-9)


def test_the_loss_scale_does_not_matter_to_the_undamped_step() -> None:
    """Gradient and Fisher matrix both scale with the loss: "sum" and "mean" make the same step."""
    x = torch.rand(40, 2, dtype=torch.float64)
    y = torch.rand(40, 2, dtype=torch.float64)
    ends = []
    for reduction in ("mean", "sum"):
        torch.manual_seed(1)
        model = torch.nn.Linear(2, 2).double()
        opt = fubini.QNGOptimizer(
            model, lr=1.0, lam=0.0, metric="fisher", likelihood=Gaussian(reduction), approx=None
        )
        torch.nn.MSELoss(reduction=reduction)(model(x), y).backward()
        opt.step()
        ends.append(flat(model.parameters()))
    assert_close(*ends, rtol=1e-10, atol=1e-12)
    # and on a linear model it is least squares in one step
    ones = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1)
    exact = torch.linalg.lstsq(ones, y).solution
    assert_close(ends[0], torch.cat([exact[:2].T.reshape(-1), exact[2]]), rtol=1e-9, atol=1e-10)
