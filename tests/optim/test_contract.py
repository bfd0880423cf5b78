"""QNGOptimizer as a torch optimizer: groups, states, copies, schedulers, scalers."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fubini
from models import hybrid


def train(model: Any, opt: Any, inputs: torch.Tensor, scheduler: Any = None) -> None:
    for x in inputs:

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        opt.step(closure)
        if scheduler is not None:
            scheduler.step()


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "spring": {"momentum": fubini.Spring(0.9)},
    "average": {"averaging": 0.9, "approx": None},
    "update_every": {"update_every": 3, "averaging": 0.5},
    "levenberg-marquardt": {"lam": lambda: fubini.LevenbergMarquardt(fubini.Relative(0.1))},
    "schedule": {"lam": lambda: fubini.Schedule(lambda step: 1 / (1 + step))},
    "relative": {"lam": fubini.Relative(0.1)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_resumed_training_continues_to_the_bit(options: dict[str, Any], dtype: Any) -> None:
    """From a file that torch.load opens with weights_only, into a new process's objects, in the middle of everything."""

    def build() -> tuple[Any, Any, Any]:
        model = hybrid(second=True).to(dtype)
        made = {k: v() if callable(v) else v for k, v in options.items()}
        opt = fubini.QNGOptimizer(model, lr=0.1, **{"metric": "quantum", **made})
        return model, opt, torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)

    inputs = torch.rand(7, 5, 3).to(dtype)
    model, opt, scheduler = build()
    train(model, opt, inputs[:4], scheduler)
    buffer = io.BytesIO()
    torch.save([x.state_dict() for x in (model, opt, scheduler)], buffer)
    buffer.seek(0)
    resumed = build()
    for one, state in zip(resumed, torch.load(buffer, weights_only=True), strict=True):
        one.load_state_dict(state)
    assert equal(model, resumed[0])
    train(model, opt, inputs[4:], scheduler)
    train(*resumed[:2], inputs[4:], resumed[2])
    assert equal(model, resumed[0])
    first, second = opt.state_dict(), resumed[1].state_dict()
    assert first["param_groups"] == second["param_groups"]
    for key, entry in first["state"].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == torch.float64
                assert torch.equal(value, second["state"][key][name])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "averaging": 0.5, "update_every": 2}])
def test_copies_go_on_alone(options: dict[str, Any], copier: Callable[[Any], Any]) -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(
        model, lr=0.1, lam=fubini.LevenbergMarquardt(), **{"metric": "quantum", **options}
    )
    inputs = torch.rand(4, 5, 3, dtype=torch.float64)
    train(model, opt, inputs[:2])
    twin_model, twin = copier((model, opt))
    train(model, opt, inputs[2:])
    train(twin_model, twin, inputs[2:])
    assert equal(model, twin_model)
    assert opt.param_groups[0]["policy"] == twin.param_groups[0]["policy"]


def test_a_copy_of_the_model_alone_records_nothing() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    twin = copy.deepcopy(model)
    twin(torch.rand(4, 3, dtype=torch.float64)).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = q.grad
    with pytest.raises(RuntimeError, match="no backward pass went through"):
        opt.step()


def test_state_dict_and_copies() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    opt = fubini.QNGOptimizer(model, lr=0.3, lam=0.2, metric="quantum")
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    other_model = copy.deepcopy(model)
    other = fubini.QNGOptimizer(other_model, lr=0.1, metric="quantum")
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["lr"] == 0.3
    assert other.param_groups[0]["lam"] == 0.2
    twin_model, twin = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (other_model, other), (twin_model, twin)):
        m.zero_grad()
        m(x).square().mean().backward()
        o.step()
    for p, q, r in zip(
        model.parameters(), other_model.parameters(), twin_model.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_float32_models() -> None:
    model, x = hybrid().float(), torch.rand(4, 3)
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    losses = []
    for _ in range(10):
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model[1].weights.dtype == torch.float32


def test_lr_scheduler_and_hooks() -> None:
    p = torch.ones(1, requires_grad=True)
    opt = fubini.QNGOptimizer([p], lr=1.0, lam=0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    calls: list[str] = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    p.grad = torch.ones(1)
    opt.step()
    scheduler.step()
    opt.step()
    assert p.item() == -0.5
    assert calls == ["pre", "post"] * 2


def test_named_parameters_and_repr() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(
        model.named_parameters(),
        lr=0.1,
        model=model,
        lam=fubini.LevenbergMarquardt(0.5),
        metric="quantum",
    )
    assert opt.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    assert opt.state_dict()["param_groups"][0]["param_names"][2] == "1.weights"
    text = repr(opt)
    for part in ("metric='quantum'", "approx='block-diag'", "LevenbergMarquardt", "lr: 0.1"):
        assert part in text
    with pytest.raises(ValueError, match="with/without names"):
        opt.add_param_group({"params": [torch.ones(1, dtype=torch.float64, requires_grad=True)]})


def test_clip_grad_norm_acts_on_what_the_step_uses() -> None:
    models = [hybrid(), hybrid()]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.rand(4, 3, dtype=torch.float64)
    opts = [
        fubini.QNGOptimizer(m, lr=lr, metric="quantum")
        for m, lr in zip(models, (0.1, 0.1), strict=True)
    ]
    for model in models:
        model(x).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(models[0].parameters(), 1e-3)
    for p in models[1].parameters():
        p.grad = p.grad * (1e-3 / (norm + 1e-6))
    for opt in opts:
        opt.step()
    assert all(
        torch.allclose(p, q, rtol=1e-12, atol=1e-15)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )


def test_non_contiguous_parameters_and_tensor_lr() -> None:
    p = torch.arange(6, dtype=torch.float64).reshape(2, 3).T.requires_grad_()
    assert not p.is_contiguous()
    opt = fubini.QNGOptimizer([p], lr=torch.tensor(0.5), lam=1.0)
    before = p.detach().clone()
    p.grad = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    opt.step()
    torch.testing.assert_close(p.detach(), before - 0.25 * p.grad)


def test_zero_gradients_do_not_move() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.1, momentum=0.9, metric="quantum")
    before = copy.deepcopy(model.state_dict())
    (model(torch.rand(4, 3, dtype=torch.float64)).sum() * 0).backward()
    opt.step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_hooks_see_and_replace_the_state() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.1, momentum=0.9, metric="quantum")
    train(model, opt, torch.rand(2, 4, 3, dtype=torch.float64))
    opt.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    saved = opt.state_dict()
    assert saved["extra"] == 1
    other = fubini.QNGOptimizer(copy.deepcopy(model), lr=0.1, momentum=0.9, metric="quantum")

    def halved(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**g, "lr": g["lr"] / 2} for g in state["param_groups"]]
        return {**state, "param_groups": groups}

    other.register_load_state_dict_pre_hook(halved)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.05
    assert saved["param_groups"][0]["lr"] == 0.1


def test_older_checkpoints_load() -> None:
    """Of the version that knew lr and lam only."""
    p = torch.ones(2, requires_grad=True)
    opt = fubini.QNGOptimizer([p])
    opt.load_state_dict({"state": {}, "param_groups": [{"lr": 0.5, "lam": 0.0, "params": [0]}]})
    p.grad = torch.ones(2)
    opt.step()
    assert torch.equal(p.detach(), torch.full((2,), 0.5))


def test_cyclic_schedulers_move_the_momentum() -> None:
    p = torch.ones(1, requires_grad=True)
    opt = fubini.QNGOptimizer([p], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=10)
    start = opt.param_groups[0]["momentum"]
    p.grad = torch.ones(1)
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["momentum"] < start


# -- mixed precision -------------------------------------------------------------------------------------------------


def test_grad_scaler_makes_the_same_step() -> None:
    x = torch.rand(4, 3)
    ends = []
    for scaled in (False, True):
        torch.manual_seed(1)
        model = hybrid().float()
        opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for _ in range(3):
            opt.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(opt)
            scaler.update()
        ends.append(model)
    for p, q in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # float32 rounding of gradients


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_skips_infinite_gradients(unscale: bool) -> None:
    model = hybrid().float()
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(model(torch.rand(4, 3)).square().mean()).backward()
    model[1].weights.grad[0, 0, 0] = float("inf")
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    opt.zero_grad()
    scaler.scale(model(torch.rand(4, 3)).square().mean()).backward()
    scaler.step(opt)
    assert not torch.equal(model[1].weights, before["1.weights"])


def test_autocast_leaves_the_metric_in_full_precision() -> None:
    model = hybrid().float()
    opt = fubini.QNGOptimizer(model, lr=0.1, lam=0.1, metric="quantum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(4, 3)).float().square().mean().backward()
        weights = model[1].weights
        gradient, before = weights.grad.double().reshape(-1), weights.detach().clone()
        inputs = opt._source.recorders[0].passes[0].args[0]
        assert inputs.dtype == torch.bfloat16
        metric = fubini.metric_tensor(model[1], "block-diag", reduce="mean", joint=True)(
            inputs.double()
        )
        opt.step()
    damped = metric.double() + 0.1 * torch.eye(12, dtype=torch.float64)
    d = torch.linalg.solve(damped, gradient)
    torch.testing.assert_close(
        weights.detach(), before - 0.1 * d.reshape(weights.shape).float(), rtol=1e-6, atol=1e-6
    )


def test_autocast_leaves_the_metric_of_a_closure_in_full_precision() -> None:
    x = torch.ones(3, requires_grad=True)
    root = torch.rand(3, 3) + torch.eye(3)
    opt = fubini.QNGOptimizer([x], lr=0.1, lam=0.1)
    seen: list[torch.dtype] = []

    def metric(_: torch.Tensor) -> torch.Tensor:
        product = root @ root.mT
        seen.append(product.dtype)
        return product

    def closure() -> Any:
        opt.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss, metric

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (root @ root).dtype is torch.bfloat16
        opt.step(closure)
    assert seen == [torch.float32]


def test_hooks_on_weights_live_for_one_backward_pass_only() -> None:
    """Lasting hooks on parameters would travel with the model wherever it goes."""
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    for _ in range(2):
        model(torch.rand(4, 3, dtype=torch.float64)).sum().backward()
        torch.autograd.grad(
            model(torch.rand(4, 3, dtype=torch.float64)).sum(), list(model.parameters())
        )
    opt.step()
    model(torch.rand(4, 3, dtype=torch.float64)).sum().backward()
    for p in model.parameters():
        assert not p._post_accumulate_grad_hooks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.dumps(list(model.parameters()))
