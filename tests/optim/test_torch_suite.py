"""What torch demands of its own optimizers, for those cases that an optimizer on the CPU can meet."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim import optimizer as optimizer_hooks

import fubini

Tensor = torch.Tensor
pytestmark = pytest.mark.filterwarnings("ignore:params. no parameter belongs to a QuantumLayer")

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr": {"lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.02)},
    "tensor lr of one entry": {"lr": torch.tensor([0.02])},
    "weight decay": {"lr": 0.02, "weight_decay": 0.1},
    "momentum": {"lr": 0.02, "momentum": 0.9},
    "spring": {"lr": 0.02, "momentum": fubini.Spring(0.5)},
    "momentum and weight decay": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1},
    "maximize": {"lr": 0.02, "maximize": True, "weight_decay": 0.1},
    "averaging": {"lr": 0.02, "averaging": 0.5, "update_every": 2},
    "relative damping": {"lr": 0.02, "lam": fubini.Relative(0.1)},
    "schedule": {"lr": 0.02, "lam": fubini.Schedule(lambda step: 0.1 / (1 + step))},
    "trust region": {"lr": 0.02, "step_rule": fubini.TrustRegion(0.1)},
    "armijo": {"lr": 0.5, "step_rule": fubini.Armijo()},
    "levenberg-marquardt": {"lr": 1.0, "lam": fubini.LevenbergMarquardt()},
}
EACH = pytest.mark.parametrize("name", CONFIGS)
#: Steps of these evaluate the loss again.
JUDGED = ("armijo", "levenberg-marquardt")


def options(name: str) -> dict[str, Any]:
    return copy.deepcopy(CONFIGS[name])


class Problem:
    """A linear model whose loss has a metric: that of its outputs."""

    def __init__(self, contiguous: bool = True, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        if contiguous:
            self.weight = torch.randn(4, 3, dtype=dtype).requires_grad_()
            self.bias = torch.randn(4, dtype=dtype).requires_grad_()
        else:
            self.weight = torch.randn(4, 3, 2, dtype=dtype)[..., 0].requires_grad_()
            self.bias = torch.randn(4, 2, dtype=dtype)[..., 0].requires_grad_()
        self.x = torch.randn(3, dtype=dtype)
        self.params = [self.weight, self.bias]

    def loss(self) -> Tensor:
        return (self.weight.mv(self.x) + self.bias).square().sum()

    def metric(self, *_: Any) -> Tensor:
        rows = [torch.kron(torch.eye(4), self.x[None]), torch.eye(4)]
        jacobian = torch.cat([r.to(torch.float64) for r in rows], dim=1)
        return 2.0 * jacobian.mT @ jacobian

    def closure(self, opt: Any, sign: float = 1.0) -> Callable[[], Any]:
        def evaluate() -> Any:
            opt.zero_grad()
            loss = sign * self.loss()
            loss.backward()
            return loss, self.metric

        return evaluate

    def train(self, opt: Any, steps: int, schedulers: Any = ()) -> None:
        sign = -1.0 if opt.param_groups[0]["maximize"] else 1.0
        for _ in range(steps):
            loss, _ = opt.step(self.closure(opt, sign)), None
            for one in schedulers:
                if isinstance(one, lr_scheduler.ReduceLROnPlateau):
                    one.step(loss.item())
                else:
                    one.step()

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]


# -- directions -----------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Any], list[Any]]] = {
    "none": lambda opt: [],
    "step": lambda opt: [lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
    "plateau": lambda opt: [lr_scheduler.ReduceLROnPlateau(opt)],
    "several": lambda opt: [
        lr_scheduler.ExponentialLR(opt, gamma=0.99),
        lr_scheduler.LinearLR(opt, start_factor=0.4, total_iters=4),
    ],
    "warm restarts": lambda opt: [lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=5)],
    "lambda": lambda opt: [lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step))],
    "sequential": lambda opt: [
        lr_scheduler.SequentialLR(
            opt,
            [lr_scheduler.ConstantLR(opt, 0.5, 3), lr_scheduler.ExponentialLR(opt, 0.99)],
            milestones=[3],
        )
    ],
}


@EACH
@pytest.mark.parametrize("contiguous", [True, False])
def test_steps_go_downhill(name: str, contiguous: bool) -> None:
    problem = Problem(contiguous)
    opt = fubini.QNGOptimizer(problem.params, **options(name))
    before = problem.loss().item()
    problem.train(opt, 20)
    assert problem.loss().item() < before
    assert problem.weight.is_contiguous() is contiguous


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("name", ["lr", "tensor lr", "momentum", "maximize"])
def test_steps_with_schedulers_go_downhill(name: str, schedule: str) -> None:
    problem = Problem()
    groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}]
    opt = fubini.QNGOptimizer(groups, **options(name))
    schedulers = SCHEDULERS[schedule](opt)
    before, rate = problem.loss().item(), float(opt.param_groups[0]["lr"])
    problem.train(opt, 20, schedulers)
    assert problem.loss().item() < before
    if schedulers and schedule not in ("plateau", "warm restarts", "sequential"):
        assert float(opt.param_groups[0]["lr"]) != rate


def test_a_tensor_rate_is_a_number() -> None:
    """To the bit, also where it changes in place, as compiled training loops change it."""
    problems = [Problem(), Problem()]
    rates: list[Any] = [0.02, torch.tensor(0.02, dtype=torch.float64)]
    opts = [fubini.QNGOptimizer(p.params, lr=r) for p, r in zip(problems, rates, strict=True)]
    for problem, opt in zip(problems, opts, strict=True):
        problem.train(opt, 2)
    opts[0].param_groups[0]["lr"] = 0.01
    opts[1].param_groups[0]["lr"].fill_(0.01)
    for problem, opt in zip(problems, opts, strict=True):
        problem.train(opt, 2)
    for p, q in zip(problems[0].values(), problems[1].values(), strict=True):
        assert torch.equal(p, q)


# -- groups ---------------------------------------------------------------------------------------------------------


def test_groups_have_their_own_rate() -> None:
    p, q = (Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    opt = fubini.QNGOptimizer([{"params": [p], "lr": 0.0}, {"params": [q]}], lr=0.1)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt.step()
    assert torch.equal(p.detach(), torch.ones(2, dtype=torch.float64))
    assert (q.detach() < 1).all()


def test_groups_have_their_own_weight_decay() -> None:
    p, q = (Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [p], "weight_decay": 0.5, "maximize": False}, {"params": [q]}]
    opt = fubini.QNGOptimizer(groups, lr=0.1)
    p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    opt.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.95))
    assert torch.equal(q.detach(), torch.ones(2, dtype=torch.float64))


def test_a_group_may_be_added_between_steps() -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer([problem.weight], lr=0.02, momentum=0.5)
    opt.zero_grad()
    problem.loss().backward()
    opt.step()
    opt.add_param_group({"params": problem.bias, "lr": 0.01})
    assert opt.param_groups[1]["momentum"] == 0.5
    before = problem.values()
    problem.train(opt, 1)
    assert not any(torch.equal(p, q) for p, q in zip(problem.values(), before, strict=True))


ERRORS: list[tuple[Callable[[Any, Any], Any], Any, str]] = [
    (lambda p, q: p, TypeError, "params argument given to the optimizer should be an iterable"),
    (lambda p, q: [p, p], ValueError, "expected every parameter once, got a duplicate"),
    (
        lambda p, q: [{"params": p}, {"params": p}],
        ValueError,
        "some parameters appear in more than one parameter group",
    ),
    (lambda p, q: [], ValueError, "empty parameter list"),
    (lambda p, q: [3.0], TypeError, "can only optimize Tensors"),
    (lambda p, q: [2.0 * p], ValueError, "can't optimize a non-leaf Tensor"),
    (lambda p, q: {p, q}, TypeError, "got set"),
    (
        lambda p, q: [("weight", p), q],
        ValueError,
        "all optimizer params should be with/without nam",
    ),
    (
        lambda p, q: [{"params": [p]}, {"params": [("weight", q)]}],
        ValueError,
        "all optimizer param groups should be with/without names",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), ERRORS)
def test_wrong_parameters_are_refused(make: Any, error: Any, message: str) -> None:
    p, q = (Parameter(torch.ones(1, 1)) for _ in range(2))
    with pytest.raises(error, match=message):
        fubini.QNGOptimizer(make(p, q))


@pytest.mark.parametrize("flag", ["foreach", "fused", "differentiable", "capturable"])
def test_flags_of_other_optimizers_are_refused(flag: str) -> None:
    with pytest.raises(TypeError, match=flag):
        fubini.QNGOptimizer([Parameter(torch.ones(1))], **{flag: True})  # type: ignore[arg-type]


# -- gradients ------------------------------------------------------------------------------------------------------


@EACH
def test_a_step_without_gradients_does_nothing(name: str) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, **options(name))
    before = problem.values()
    closure = (lambda: torch.tensor(1.0)) if name in JUDGED else None
    opt.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(problem.values(), before, strict=True))


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - set(JUDGED)))
def test_a_step_with_gradients_of_zero_does_nothing_but_decay(name: str) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, **options(name))
    for p in problem.params:
        p.grad = torch.zeros_like(p)
    before = problem.values()
    opt.step()
    decay = float(opt.param_groups[0]["lr"]) * opt.param_groups[0]["weight_decay"]
    for p, q in zip(problem.values(), before, strict=True):
        torch.testing.assert_close(p, q - decay * q, rtol=1e-15, atol=0)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_zeroed(to_none: bool) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params)
    problem.loss().backward()
    opt.zero_grad(set_to_none=to_none)
    assert all((p.grad is None) is to_none for p in problem.params)
    assert to_none or not any(p.grad.any() for p in problem.params)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_keep_their_dtype(dtype: torch.dtype) -> None:
    p = Parameter(torch.ones(3, dtype=dtype))
    opt = fubini.QNGOptimizer([p], lr=0.5, momentum=0.5)
    p.grad = torch.ones_like(p)
    opt.step()
    assert p.dtype is dtype
    assert (p < 1).all()


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a real parameter"):
        fubini.QNGOptimizer([Parameter(torch.ones(2, dtype=torch.complex64))])


# -- state ----------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("by", ["dict", "deepcopy", "save", "pickle"])
def test_a_restored_state_goes_on_to_the_bit(name: str, by: str) -> None:
    first, second = Problem(), Problem()
    opt = fubini.QNGOptimizer(first.params, **options(name))
    first.train(opt, 3)
    state = opt.state_dict()
    if by == "deepcopy":
        state = copy.deepcopy(state)
    elif by == "pickle":
        state = pickle.loads(pickle.dumps(state))
    elif by == "save":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    with torch.no_grad():
        for p, q in zip(second.params, first.params, strict=True):
            p.copy_(q)
    other = fubini.QNGOptimizer(second.params, **options(name))
    other.load_state_dict(state)
    assert other.state_dict().keys() == opt.state_dict().keys()
    first.train(opt, 3)
    second.train(other, 3)
    for p, q in zip(first.values(), second.values(), strict=True):
        assert torch.equal(p, q)


def test_a_loaded_state_is_a_copy() -> None:
    first, second = Problem(), Problem()
    opt = fubini.QNGOptimizer(first.params, lr=0.02, momentum=0.9)
    first.train(opt, 2)
    other = fubini.QNGOptimizer(second.params, lr=0.02, momentum=0.9)
    other.load_state_dict(opt.state_dict())
    kept = other.state[second.weight]["velocity"].clone()
    first.train(opt, 1)
    assert torch.equal(other.state[second.weight]["velocity"], kept)


def test_states_of_other_groups_are_refused() -> None:
    problem = Problem()
    state = fubini.QNGOptimizer(problem.params).state_dict()
    groups = [{"params": [p]} for p in problem.params]
    with pytest.raises(ValueError, match="different number of parameter groups"):
        fubini.QNGOptimizer(groups).load_state_dict(state)
    with pytest.raises(ValueError, match="doesn't match the size"):
        fubini.QNGOptimizer([problem.weight]).load_state_dict(state)


@pytest.mark.parametrize("older", ["momentum", "weight_decay", "maximize", "damping", "steps"])
def test_older_states_load(older: str) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, lr=0.02)
    problem.train(opt, 2)
    state = copy.deepcopy(opt.state_dict())
    for group in state["param_groups"]:
        del group[older]
    other = fubini.QNGOptimizer(problem.params, lr=0.02)
    other.load_state_dict(state)
    problem.train(other, 2)


@pytest.mark.parametrize("names", [(True, False), (False, True), (True, True)])
def test_states_with_and_without_names_load(names: tuple[bool, bool]) -> None:
    problem = Problem()
    named = [("weight", problem.weight), ("bias", problem.bias)]
    opt, other = (
        fubini.QNGOptimizer(named if with_names else problem.params, lr=0.02, momentum=0.9)
        for with_names in names
    )
    problem.train(opt, 2)
    other.load_state_dict(opt.state_dict())
    assert torch.equal(
        other.state[problem.weight]["velocity"], opt.state[problem.weight]["velocity"]
    )
    problem.train(other, 1)


@EACH
def test_copies_of_optimizers_and_what_they_print(name: str) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, **options(name))
    problem.train(opt, 1)
    twin = copy.deepcopy(opt)
    public = {k for k in vars(opt) if not k.startswith("_")}
    assert public <= set(vars(twin))
    assert repr(twin) == repr(opt)
    assert "Parameter Group 0" in repr(opt)
    if "schedule" not in name:  # a function of the test's
        assert repr(pickle.loads(pickle.dumps(opt))) == repr(opt)


# -- hooks ----------------------------------------------------------------------------------------------------------


def test_hooks_around_steps() -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params)
    seen: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: seen.append("before")),
        opt.register_step_post_hook(lambda *_: seen.append("after")),
        optimizer_hooks.register_optimizer_step_pre_hook(lambda *_: seen.append("all")),
        optimizer_hooks.register_optimizer_step_post_hook(lambda *_: seen.append("all")),
    ]
    problem.train(opt, 1)
    assert seen == ["all", "before", "after", "all"]
    for handle in handles:
        handle.remove()
    problem.train(opt, 1)
    assert len(seen) == 4


def test_hooks_around_states() -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, lr=0.02)
    order: list[int] = []
    opt.register_state_dict_pre_hook(lambda o: order.append(1))
    opt.register_state_dict_pre_hook(lambda o: order.append(0), prepend=True)

    def told(o: Any, state: Any) -> Any:
        return {**state, "note": 7}

    opt.register_state_dict_post_hook(told)
    state = opt.state_dict()
    assert order == [0, 1]
    assert state["note"] == 7

    def slower(o: Any, found: Any) -> Any:
        found = copy.deepcopy(found)
        found["param_groups"][0]["lr"] = 0.003
        return found

    opt.register_load_state_dict_pre_hook(slower)
    opt.register_load_state_dict_post_hook(lambda o: order.append(2))
    opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.003
    assert order[-1] == 2


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@EACH
@pytest.mark.usefixtures("no_collector")
def test_no_cycle_keeps_an_optimizer(name: str) -> None:
    problem = Problem()
    opt = fubini.QNGOptimizer(problem.params, **options(name))
    problem.train(opt, 2)
    opt.load_state_dict(opt.state_dict())
    dead = [weakref.ref(opt), *(weakref.ref(p) for p in problem.params)]
    del opt, problem
    assert not any(one() is not None for one in dead)
