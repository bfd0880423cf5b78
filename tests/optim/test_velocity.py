"""Momentum as a velocity, weights without a metric, policies of several optimizers, and errors of misuse that were raw."""

import copy
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch.optim import lr_scheduler

import fubini
from models import entangler, hybrid, quadratic

Tensor = torch.Tensor
D = torch.float64
EYE = torch.eye(4, dtype=D)


# -- momentum -------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=25),
    "steps": lambda o: lr_scheduler.StepLR(o, 5, 0.1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_momentum_follows_the_schedule_as_in_sgd(name: str) -> None:
    """With the identity for a metric the steps are those of torch's SGD, whatever becomes of lr."""
    torch.manual_seed(0)
    root = torch.randn(4, 4, dtype=D)
    a, start = root @ root.mT + EYE, torch.randn(4, dtype=D)
    ends = []
    for make in (
        lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9),
        lambda p: fubini.QNGOptimizer([p], lr=0.05, lam=0.0, momentum=0.9),
    ):
        x = start.clone().requires_grad_()
        opt = make(x)
        schedule = SCHEDULES[name](opt)
        for _ in range(25):
            opt.zero_grad()
            loss = x @ a @ x / 2
            loss.backward()
            natural = isinstance(opt, fubini.QNGOptimizer)
            opt.step((lambda loss=loss: (loss, lambda _: EYE)) if natural else None)
            schedule.step()
        ends.append(x.detach())
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.9, fubini.Spring(0.9)], ids=["heavy ball", "spring"])
def test_a_rate_of_zero_stops(momentum: Any) -> None:
    x, _, _, opt, closure = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=0.3, momentum=momentum)
    )
    for _ in range(3):
        opt.step(closure)
    opt.param_groups[0]["lr"] = 0.0
    before = x.detach().clone()
    opt.step(closure)
    assert torch.equal(x.detach(), before)


def test_states_with_the_last_change_go_on() -> None:
    """As they were saved before there were velocities; exact where lr is still the same."""
    runs = [
        quadratic(lambda p: fubini.QNGOptimizer([p], lr=0.1, lam=0.3, momentum=0.8))
        for _ in range(2)
    ]
    (x, *_, opt, closure), (y, *_, other, again) = runs
    for _ in range(3):
        before = x.detach().clone()
        opt.step(closure)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0] = {"momentum": x.detach() - before}
    with torch.no_grad():
        y.copy_(x)
    other.load_state_dict(saved)
    for _ in range(3):
        opt.step(closure)
        other.step(again)
    torch.testing.assert_close(y.detach(), x.detach(), rtol=1e-12, atol=1e-12)


# -- weights that move no state -------------------------------------------------------------------------------------


def with_coefficients(inputs: Tensor, weights: Tensor, read: Tensor, unused: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return qml.expval(qml.Hamiltonian(read, [qml.Z(0), qml.X(1)]))


def observable_layer() -> Any:
    node = qml.QNode(
        with_coefficients, qml.device("default.qubit", wires=2), diff_method="backprop"
    )
    torch.manual_seed(0)
    shapes = {"weights": (1, 2, 3), "read": (2,), "unused": (3,)}
    return fubini.QuantumLayer(node, shapes, engine="device").double()


DAMPINGS = {
    "number": 1e-3,
    "relative": fubini.Relative(1e-2),
    "diagonal": fubini.Diagonal(1e-2),
    "schedule": fubini.Schedule(lambda step: 1e-3),
}


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("approx", ["block-diag", "diag", None, "auto"])
def test_weights_that_move_no_state_take_the_plain_step(approx: Any, damping: str) -> None:
    layer = observable_layer()
    opt = fubini.QNGOptimizer(layer, lr=0.1, approx=approx, lam=DAMPINGS[damping])
    x = torch.rand(5, 2, dtype=D)
    layer(x).square().mean().backward()
    layer.unused.grad = torch.ones_like(layer.unused)  # of a penalty, say
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    opt.step()
    for name in ("read", "unused"):
        p = getattr(layer, name)
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * p.grad)
    plain = before["weights"] - 0.1 * layer.weights.grad
    assert not torch.allclose(layer.weights.detach(), plain)


@pytest.mark.parametrize("form", ["matrix", "factor", "products", "diagonal", "kronecker"])
def test_every_form_of_a_metric_leaves_out_what_moves_nothing(form: str) -> None:
    """Against the sub-matrix of what moves, solved by itself."""
    from fubini.blocks import DenseBlock, DiagonalBlock, FactorBlock, KroneckerBlock, OperatorBlock
    from fubini.optim.proposal import Part, Proposal

    torch.manual_seed(0)
    factor = torch.randn(3, 4, dtype=D)
    factor[:, 1] = 0.0
    p = torch.zeros(4, dtype=D, requires_grad=True)
    matrix = factor.mT @ factor
    left = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], dtype=D)
    right = torch.tensor([[[2.0, 1.0], [1.0, 3.0]]], dtype=D)
    block: Any = {
        "matrix": lambda: DenseBlock([p], matrix),
        "factor": lambda: FactorBlock([p], factor),
        "products": lambda: OperatorBlock([p], lambda v: matrix @ v),
        "diagonal": lambda: DiagonalBlock([p], matrix.diagonal()),
        "kronecker": lambda: KroneckerBlock([p], left, right, [2]),
    }[form]()
    dense = block.dense()
    gradient = torch.randn(4, dtype=D)
    group = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    for damping in (fubini.Absolute(0.1), fubini.Diagonal(0.1)):
        proposal = Proposal([Part(block, gradient, (group,))], {}, False)
        proposal.make(lambda _, damping=damping: damping, 1.0, True)
        still = dense.diagonal() == 0
        expected = torch.where(still, gradient, 0.0)
        shift = (0.1 if damping.kind == "absolute" else 0.1 * dense.diagonal()) * torch.ones(
            4, dtype=D
        )
        inner = (dense + shift.diag())[~still][:, ~still]
        expected[~still] = torch.linalg.solve(inner, gradient[~still])
        torch.testing.assert_close(-proposal.changes[0], expected, rtol=1e-8, atol=1e-9)
        change = proposal.changes[0]
        whole = dense + still.to(D).diag()
        assert proposal.curvature == pytest.approx(float(change @ whole @ change))


# -- policies -------------------------------------------------------------------------------------------------------


def test_two_optimizers_do_not_change_each_others_policy() -> None:
    policy = fubini.LevenbergMarquardt(0.1)
    runs = [quadratic(lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=policy)) for _ in range(2)]
    alone = quadratic(
        lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=fubini.LevenbergMarquardt(0.1))
    )
    for _ in range(4):
        for _, _, _, opt, closure in (*runs, alone):
            opt.step(closure)
    late = quadratic(lambda p: fubini.QNGOptimizer([p], lr=1.0, lam=policy))
    for _ in range(4):
        late[3].step(late[4])
    for x, *_ in (*runs, late):
        assert torch.equal(x.detach(), alone[0].detach())
    assert policy.strength != 0.1  # the first optimizer's


# -- misuse ---------------------------------------------------------------------------------------------------------

NODE = qml.QNode(entangler, qml.device("default.qubit", wires=2))
OPT = fubini.QNGOptimizer
MISUSES: list[tuple[Callable[[Any], Any], Any, str]] = [
    (lambda _: OPT(0.1), TypeError, "params: expected a module, or an iterable .* got float 0.1"),
    (lambda _: OPT(NODE), TypeError, "params: .* got QNode; make a layer of it"),
    (lambda m: OPT(m.parameters), TypeError, r"params: .* call it: model.parameters\(\)"),
    (lambda m: OPT(m[0].weight), TypeError, r"params: .* got a tensor of shape .* write \[tensor"),
    (lambda m: OPT(set(m.parameters())), TypeError, "params: .* got set; the order"),
    (lambda m: OPT({"params": m.parameters()}), TypeError, r"params: .* a single group .*\[group"),
    (lambda m: OPT([{"params": set(m.parameters())}]), TypeError, "params: .* got set; the order"),
    (lambda m: OPT([{"lr": 0.1}]), ValueError, "param_group: expected an entry 'params'"),
    (
        lambda m: OPT(m, metric="quantum").add_param_group(3),
        TypeError,
        "param_group: expected a dictionary",
    ),
    (lambda m: OPT(m, model=NODE), ValueError, "model: expected none besides"),
    (lambda m: OPT(m.parameters(), model=NODE), TypeError, "model: expected a torch.nn.Module"),
    (
        lambda m: OPT(m, lam=fubini.LevenbergMarquardt),
        TypeError,
        r"lam: .* got the class Leven.*write LevenbergMarquardt\(",
    ),
    (lambda m: OPT(m, lam=fubini.Relative), TypeError, "lam: .* got the class Relative"),
    (lambda m: OPT(m, lam=True), TypeError, "lam: expected a number, got True"),
    (lambda m: OPT(m, lr="0.1"), TypeError, "lr: expected a number, got '0.1'"),
    (lambda m: OPT(m, step_rule=fubini.TrustRegion), TypeError, "step_rule: expected TrustRegion"),
    (lambda m: OPT(m, momentum=fubini.Spring), TypeError, "momentum: expected a number, got <cla"),
    (
        lambda m: OPT(m, maximize="False"),
        TypeError,
        "maximize: expected True or False, got 'False'",
    ),
    (lambda m: OPT(m, update_every=True), ValueError, "update_every: expected a whole number"),
    (
        lambda m: OPT(m, metric="quantum").step(torch.tensor(1.0)),
        TypeError,
        "closure: expected a function .* Tensor",
    ),
    (
        lambda m: OPT(m, metric="quantum").load_state_dict(3),
        TypeError,
        "state_dict: expected what state_dict",
    ),
    (
        lambda m: OPT(m, metric="quantum", lam=fubini.LevenbergMarquardt()).step(lambda: None),
        TypeError,
        "closure: expected it to return the loss, one number, got None",
    ),
    (
        lambda m: OPT(m, metric="quantum", lam=fubini.LevenbergMarquardt()).step(
            lambda: torch.ones(3)
        ),
        TypeError,
        "closure: expected it to return the loss, one number, got a tensor of shape",
    ),
    (
        lambda m: fubini.ShotQNGOptimizer(m.parameters(), m),
        TypeError,
        "qnode: expected a qml.QNode",
    ),
    (lambda m: fubini.ShotQNGOptimizer(0.1, NODE), TypeError, "params: expected a module"),
    (
        lambda m: fubini.ShotQNGOptimizer(m.parameters(), NODE, "0.1"),
        TypeError,
        "lr: expected a nu",
    ),
    (
        lambda m: fubini.ShotQNGOptimizer(m.parameters(), NODE, shots=1.5),
        ValueError,
        "shots: expected a whole number",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), MISUSES)
def test_misuse_is_named(make: Callable[[Any], Any], error: Any, message: str) -> None:
    model = hybrid()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        make(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_the_remedy_for_a_singular_metric_is_larger_than_what_failed() -> None:
    p = torch.ones(2, dtype=D, requires_grad=True)
    opt = OPT([p], lam=2e-3)
    p.grad = torch.ones_like(p)
    with pytest.raises(fubini.NumericalError, match=r"lam = 0.002; pass a larger lam, e.g. 0.02"):
        opt.step(lambda: (torch.tensor(0.0), lambda _: -torch.eye(2, dtype=D)))
