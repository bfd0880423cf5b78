"""QNGOptimizer as a torch optimizer: groups, states, copies, schedulers, scalers."""

import copy
import io

import torch

import fubini
from models import hybrid


def test_state_dict_and_copies() -> None:
    model, x = hybrid(), torch.rand(4, 3, dtype=torch.float64)
    opt = fubini.QNGOptimizer(model, lr=0.3, lam=0.2)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    other_model = copy.deepcopy(model)
    other = fubini.QNGOptimizer(other_model, lr=0.1)
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
    opt = fubini.QNGOptimizer(model, lr=0.1)
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
