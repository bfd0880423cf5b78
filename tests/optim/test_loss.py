"""The optimizer made from a loss: what it chooses, that its steps have the length they should, and that it trains."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.testing import assert_close

import fubini
from fubini.fisher.blocks import fisher_blocks
from fubini.optim.length import DECAY, LOWEST, RADIUS, StepLength
from models import hybrid

Tensor = torch.Tensor
D = torch.float64

LOSSES: dict[str, tuple[Any, int, Tensor]] = {
    "cross entropy": (nn.CrossEntropyLoss(), 3, torch.tensor([0, 2, 1, 1, 0])),
    "cross entropy, sum": (nn.CrossEntropyLoss(reduction="sum"), 3, torch.tensor([0, 2, 1, 1, 0])),
    "class weights": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5], dtype=D)),
        3,
        torch.tensor([0, 2, 1, 1, 0]),
    ),
    "label smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        3,
        torch.tensor([0, 2, 1, 1, 0]),
    ),
    "bernoulli": (nn.BCEWithLogitsLoss(), 1, torch.tensor([0.0, 1, 1, 0, 1], dtype=D)[:, None]),
    "squares": (nn.MSELoss(), 2, torch.linspace(-1, 1, 10, dtype=D).reshape(5, 2)),
    "squares, sum": (nn.MSELoss(reduction="sum"), 2, torch.linspace(-1, 1, 10, dtype=D).view(5, 2)),
    "counts": (nn.PoissonNLLLoss(), 1, torch.tensor([0.0, 3, 1, 2, 1], dtype=D)[:, None]),
}
WORDS = {"categorical": "cross entropy", "bernoulli": "bernoulli", "gaussian": "squares"}
X = torch.linspace(-1, 1, 15, dtype=D).reshape(5, 3).sin()


def classifier(outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = hybrid()
    model[2] = nn.Linear(2, outputs).double()
    return model


def train(model: nn.Module, opt: Any, loss: Any, targets: Tensor, steps: int = 1) -> float:
    value = math.nan
    for _ in range(steps):
        opt.zero_grad()
        found = loss(model(X), targets)
        found.backward()
        opt.step()
        value = float(found.detach())
    return value


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def choices(opt: Any) -> tuple[Any, ...]:
    """Metric, approximation, lr, damping, averaging, step rule."""
    group, options = opt.param_groups[0], opt._options
    names = ("metric", "approx", "averaging", "step_rule")
    return (*[options[n] for n in names], group["lr"], group["lam"])


# -- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LOSSES, *WORDS])
def test_every_loss_needs_no_number(name: str) -> None:
    loss, outputs, targets = LOSSES[WORDS.get(name, name)]
    model = classifier(outputs)
    opt = fubini.QNGOptimizer(model, loss=name if name in WORDS else loss)
    assert choices(opt) == ("fisher", "block-diag", 0.8, None, 0.5, 0.01)
    before = train(model, opt, loss, targets)
    train(model, opt, loss, targets, steps=11)
    with torch.no_grad():
        assert float(loss(model(X), targets)) < before


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"loss": nn.BCELoss()},
        TypeError,
        "loss: expected one of .* got BCELoss; leave out .*BCEWith",
    ),
    ({"loss": nn.L1Loss()}, TypeError, "loss: expected .* got L1Loss; .*loss='gaussian'"),
    ({"loss": nn.HuberLoss()}, TypeError, "loss: expected .* got HuberLoss; loss='gaussian'"),
    ({"loss": nn.MSELoss(reduction="none")}, ValueError, "loss: .* reduction='mean' or 'sum'"),
    ({"loss": nn.TripletMarginLoss()}, TypeError, "loss: expected .* got TripletMarginLoss"),
    ({"loss": "cross entropy"}, ValueError, "loss: expected 'categorical'.* got 'cross entropy'"),
    ({"loss": nn.functional.mse_loss}, ValueError, "loss: expected .* got <function mse_loss"),
    ({"metric": "quantum"}, ValueError, "metric: .* with loss=, got 'quantum'"),
    ({"likelihood": "gaussian"}, ValueError, "likelihood: expected None besides loss="),
    ({"lam": fubini.SignalToNoise()}, ValueError, "loss: expected None with lam=SignalToNoise"),
    ({"step_rule": "short"}, ValueError, "step_rule: expected 'auto'"),
    ({"averaging": 1.0}, ValueError, "averaging: expected a number in"),
    ({"lr": -1.0}, ValueError, "lr: expected a finite number"),
]


@pytest.mark.parametrize(("options", "error", "match"), REFUSED)
def test_what_does_not_go_together_is_named(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        fubini.QNGOptimizer(classifier(), **{"loss": nn.CrossEntropyLoss(), **options})


def test_a_loss_needs_the_model() -> None:
    with pytest.raises(ValueError, match="model: expected a module"):
        fubini.QNGOptimizer(classifier().parameters(), loss=nn.CrossEntropyLoss())


GIVEN: list[tuple[dict[str, Any], tuple[Any, ...], bool]] = [
    ({"lr": 0.03}, ("fisher", "block-diag", 0.8, None, 0.03, 0.01), True),
    ({"lam": 0.5}, ("fisher", "block-diag", 0.8, None, 0.5, 0.5), True),
    ({"averaging": 0.0}, ("fisher", "block-diag", 0.0, None, 0.5, 0.01), True),
    ({"metric": "hybrid", "approx": "diag"}, ("hybrid", "diag", 0.8, None, 0.5, 0.01), True),
    ({"step_rule": None}, ("fisher", "block-diag", 0.8, None, 0.1, 0.01), False),
    ({"momentum": 0.5}, ("fisher", "block-diag", 0.8, None, 0.5, 0.01), True),
    ({"momentum": fubini.Spring(0.5)}, ("fisher", "block-diag", 0.8, None, 0.1, 0.01), False),
    (
        {"lam": fubini.LevenbergMarquardt(0.1)},
        ("fisher", "block-diag", 0.0, None, 1.0, 0.1),
        False,
    ),
]


@pytest.mark.parametrize(("options", "expected", "by_length"), GIVEN)
def test_what_is_given_is_kept(
    options: dict[str, Any], expected: tuple[Any, ...], by_length: bool
) -> None:
    opt = fubini.QNGOptimizer(classifier(), loss="categorical", **options)
    assert choices(opt) == expected
    assert ("length_mean" in opt.param_groups[0]) == by_length
    for name in options.keys() & {"lr", "lam", "averaging", "metric"}:
        assert f"{name}={options[name]!r}: as given" in opt.explain()


def test_without_the_rule_steps_are_those_of_the_numbers() -> None:
    loss, _, targets = LOSSES["cross entropy"]
    ends = []
    for options in (
        {"loss": loss, "step_rule": None},
        {"metric": "fisher", "likelihood": loss, "lr": 0.1, "lam": 0.01, "averaging": 0.8},
    ):
        model = classifier()
        train(model, fubini.QNGOptimizer(model, **options), loss, targets, steps=5)
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_explain_says_what_was_chosen_and_how_it_was_solved() -> None:
    loss, _, targets = LOSSES["cross entropy"]
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=loss, averaging=0.7)
    lines = opt.explain().splitlines()
    assert lines[0] == "Chosen for loss=CrossEntropyLoss():"
    for k, start in enumerate(("metric='fisher': ", "lr=0.5: ", "lam=0.01: ", "averaging=0.7: ")):
        assert lines[1 + k].strip().startswith(start)
    assert lines[-1] == "No step has been taken yet."
    train(model, opt, loss, targets)
    after = opt.explain().splitlines()
    assert after[:5] == lines[:5]
    assert any(line.startswith("1: 12 x 12, ") for line in after[5:])
    assert "loss=CrossEntropyLoss()" in repr(opt)
    assert "averaging=0.7" in repr(opt)


# -- the length of a step ---------------------------------------------------------------------------------------------


def reference_steps(loss: Any, outputs: int, targets: Tensor, lr: float, steps: int) -> Tensor:
    """The rule by itself: averaged metrics from explicit matrices, lengths and their average written out."""
    model = classifier(outputs)
    blocks: dict[int, Tensor] = {}
    unit = None if isinstance(loss, nn.MSELoss) else 1.0
    squares: list[float] = []
    for step in range(steps):
        model.zero_grad()
        loss(model(X), targets).backward()
        found = fisher_blocks(
            model,
            (X,),
            {},
            parameters=list(model.parameters()),
            approx="block-diag",
            likelihood=loss,
        )
        lam = 0.01
        if squares:
            weights = [0.9 ** (step - 1 - k) for k in range(step)]
            mean = sum(w * q for w, q in zip(weights, squares, strict=True)) / sum(weights)
            assert unit is not None
            lam *= min(1.0, max(1e-3, math.sqrt(mean) / (2 * unit)))
        share = 0.2 / (1 - 0.8 ** (step + 1))
        square, directions = 0.0, []
        for k, block in enumerate(found):
            old = blocks.get(k, torch.zeros_like(block.dense()))
            blocks[k] = (1 - share) * old + share * block.dense()
            g = torch.cat([p.grad.reshape(-1) for p in block.parameters])
            d = torch.linalg.solve(blocks[k] + lam * torch.eye(len(g), dtype=D), g)
            square += float(d @ (blocks[k] @ d + lam * d))
            directions.append((block.parameters, d))
        squares.append(square)
        unit = unit or math.sqrt(square) / 2
        radius = 0.5 * unit / math.sqrt(1 + step / 10)
        rate = lr * min(1 / math.sqrt(1 + step / 100), radius / math.sqrt(square))
        for parameters, d in directions:
            pieces = d.split([p.numel() for p in parameters])
            with torch.no_grad():
                for p, piece in zip(parameters, pieces, strict=True):
                    p -= rate * piece.view_as(p)
    return flat(model)


@pytest.mark.parametrize("name", ["cross entropy", "bernoulli", "squares"])
def test_steps_are_those_of_the_rule(name: str) -> None:
    loss, outputs, targets = LOSSES[name]
    model = classifier(outputs)
    train(model, fubini.QNGOptimizer(model, loss=loss), loss, targets, steps=12)
    # Two ways to solve systems of condition up to 1e4, over 12 steps.
    assert_close(
        flat(model), reference_steps(loss, outputs, targets, 0.5, 12), rtol=1e-8, atol=1e-9
    )


def test_the_first_step_is_no_longer_than_half_of_lr() -> None:
    loss, _, targets = LOSSES["cross entropy"]
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=loss, lr=0.2)
    train(model, opt, loss, targets)
    proposal = opt._last.proposal
    added = sum(float(0.01 * c @ c) for c in proposal.changes)
    length = math.sqrt(proposal.curvature + added)
    first = math.sqrt(opt.param_groups[0]["length_mean"] / (1 - DECAY))
    assert first > RADIUS  # else the full step would be short enough
    assert length == pytest.approx(0.2 * RADIUS, rel=1e-10)


@pytest.mark.parametrize("name", ["cross entropy", "squares"])
def test_steps_do_not_depend_on_the_reduction(name: str) -> None:
    mean, outputs, targets = LOSSES[name]
    ends = []
    for loss in (mean, LOSSES[f"{name}, sum"][0]):
        model = classifier(outputs)
        train(model, fubini.QNGOptimizer(model, loss=loss), loss, targets, steps=8)
        ends.append(flat(model))
    assert_close(*ends, rtol=1e-9, atol=1e-10)  # other orders of rounding, over 8 steps


def test_steps_do_not_depend_on_the_scale_of_the_loss() -> None:
    loss, outputs, targets = LOSSES["squares"]
    ends = []
    for scale in (1.0, 50.0):
        model = classifier(outputs)
        opt = fubini.QNGOptimizer(model, loss=fubini.Gaussian(scale=scale))
        train(model, opt, lambda y, t, scale=scale: scale * loss(y, t), targets, steps=8)
        ends.append(flat(model))
    assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_the_scale_of_the_targets_does_not_matter() -> None:
    """Targets in other units, and the last layer with them; damping in proportion to the metric, which changes too."""
    loss, outputs, targets = LOSSES["squares"]
    ends = []
    for scale in (1.0, 100.0):
        model = classifier(outputs)
        with torch.no_grad():
            for p in model[2].parameters():
                p *= scale
        opt = fubini.QNGOptimizer(model, loss=loss, lam=fubini.Relative(0.1))
        train(model, opt, loss, scale * targets, steps=8)
        with torch.no_grad():
            ends.append(model(X) / scale)
    assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_the_running_length() -> None:
    length = StepLength()
    assert (length.factor, length.damping) == (1.0, 1.0)
    assert length.after(4.0).factor == pytest.approx(RADIUS / 2)
    assert length.after(1e-8).factor == 1.0
    both = length.after(4.0).after(1.0)
    assert both.factor == pytest.approx(RADIUS / math.sqrt(1.1))
    assert both.damping == pytest.approx(math.sqrt((4 * DECAY + 1) / (1 + DECAY)) / 2)
    assert length.after(8.0).damping == 1.0
    # In proportion: the change of weights that a step may make where the metric vanishes goes to zero.
    assert StepLength().after(1e-4).damping == pytest.approx(0.005)
    assert length.after(1e-8).damping == LOWEST
    idle = both.after(0.0)  # no gradient says nothing
    assert (idle.steps, idle.mean, idle.weight) == (both.steps, both.mean, both.weight)
    relative = StepLength(unit=0.0).after(16.0)
    assert relative.unit == 2.0
    assert relative.factor == pytest.approx(RADIUS / 2)
    assert relative.after(4.0).unit == 2.0
    for value in (math.nan, math.inf):
        with pytest.raises(fubini.NumericalError, match="finite length"):
            both.after(value)


def test_lengths_of_thousands_of_steps_decay_as_the_root() -> None:
    early, late = StepLength(steps=99, mean=1.0, weight=1.0), StepLength(steps=9999)
    assert early.after(100.0).factor / late.after(100.0).factor == pytest.approx(9.5, rel=0.01)
    assert early.after(1e-9).factor / late.after(1e-9).factor == pytest.approx(7.1, rel=0.01)


def test_zero_gradients_do_not_move() -> None:
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=nn.CrossEntropyLoss())
    before = flat(model)
    (0.0 * model(X).sum()).backward()
    opt.step()
    assert torch.equal(flat(model), before)
    assert opt.param_groups[0]["length_weight"] == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_zero_without_a_pass_do_nothing(reduction: str) -> None:
    """As tools that fill the state of a fresh optimizer set them."""
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=nn.CrossEntropyLoss(reduction=reduction))
    before = flat(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert torch.equal(flat(model), before)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 4),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: max(0.0, 1.0 - k / 4)),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_schedule_to_zero_stops(name: str, momentum: float) -> None:
    loss, _, targets = LOSSES["cross entropy"]
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=loss, momentum=momentum)
    schedule = SCHEDULES[name](opt)
    for _ in range(4):
        train(model, opt, loss, targets)
        schedule.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-17)
    before = flat(model)
    train(model, opt, loss, targets)
    assert_close(flat(model), before, rtol=0.0, atol=1e-15)


def test_groups_scale_their_own_steps() -> None:
    loss, _, targets = LOSSES["cross entropy"]
    moves = []
    for factor in (1.0, 0.5):
        model = classifier()
        groups = [{"params": model[0].parameters(), "lr": 0.1 * factor}]
        groups += [{"params": [*model[1].parameters(), *model[2].parameters()]}]
        opt = fubini.QNGOptimizer(groups, model=model, loss=loss)
        before = flat(model)
        train(model, opt, loss, targets)
        moves.append(flat(model) - before)
    assert_close(moves[1][:8], 0.5 * moves[0][:8], rtol=1e-12, atol=1e-15)
    assert_close(moves[1][8:], moves[0][8:], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("how", ["state", "file", "copy"])
def test_training_goes_on_to_the_bit(how: str, momentum: float) -> None:
    loss, _, targets = LOSSES["cross entropy, sum"]
    model = classifier()
    opt = fubini.QNGOptimizer(model, loss=loss, momentum=momentum)
    train(model, opt, loss, targets, steps=3)
    if how == "copy":
        other, again = copy.deepcopy((model, opt))
    else:
        other = copy.deepcopy(model)
        again = fubini.QNGOptimizer(other, loss=loss, momentum=momentum)
        saved = opt.state_dict()
        if how == "file":
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
        again.load_state_dict(saved)
    for one, its in ((model, opt), (other, again)):
        train(one, its, loss, targets, steps=3)
    assert torch.equal(flat(model), flat(other))
    assert opt.param_groups[0]["length_mean"] == again.param_groups[0]["length_mean"] > 0.0


# -- the warning ------------------------------------------------------------------------------------------------------


def said(make: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make()
    assert all(w.category is UserWarning and w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


def test_classical_layers_under_the_default_metric_are_warned_of_once() -> None:
    def steps() -> None:
        model = classifier()
        loss, _, targets = LOSSES["cross entropy"]
        train(model, fubini.QNGOptimizer(model, lr=0.1), loss, targets, steps=2)

    (text,) = said(steps)
    assert "0.weight, 0.bias, 2.weight, ..." in text
    assert "QNGOptimizer(model, loss=torch.nn.CrossEntropyLoss())" in text
    assert "metric='quantum'" in text


SILENT: dict[str, Callable[[Any], Any]] = {
    "loss": lambda m: fubini.QNGOptimizer(m, loss="categorical"),
    "metric": lambda m: fubini.QNGOptimizer(m, metric="quantum"),
    "fisher": lambda m: fubini.QNGOptimizer(m, metric="fisher", likelihood="categorical"),
    "signal to noise": lambda m: fubini.QNGOptimizer(m, lam=fubini.SignalToNoise()),
    "the circuit's weights": lambda m: fubini.QNGOptimizer(m[1].parameters(), model=m),
    "no model": lambda m: fubini.QNGOptimizer(m.parameters()),
    "circuit alone": lambda m: fubini.QNGOptimizer(m[1]),
    "frozen": lambda m: fubini.QNGOptimizer(frozen(m)),
}


def frozen(model: Any) -> Any:
    for k in (0, 2):
        model[k].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", SILENT)
def test_no_warning_where_it_is_meant(name: str) -> None:
    assert said(lambda: SILENT[name](classifier())) == []


# -- does it train ----------------------------------------------------------------------------------------------------


def moons() -> tuple[Tensor, Tensor]:
    """Two half circles with noise, standardised."""
    generator = torch.Generator().manual_seed(5)
    angle = math.pi * torch.rand(120, generator=generator, dtype=D)
    upper = torch.arange(120) % 2 == 0
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.2 * torch.randn(120, 2, generator=generator, dtype=D)
    return (points - points.mean(0)) / points.std(0), upper.to(D)[:, None]


def reuploading_layer(wires: int, layers: int, features: int, outputs: int = 0) -> Any:
    """Inputs and weights by turns; no number of outputs: the first alone, which is no vector."""

    def circuit(inputs: Any, weights: Any) -> Any:
        for layer in range(layers):
            for wire in range(wires):
                qml.RY(inputs[..., wire % features], wire)
                qml.Rot(*(weights[layer, wire, k] for k in range(3)), wire)
            for wire in range(wires):
                qml.CNOT([wire, (wire + 1) % wires])
        for wire in range(wires):
            qml.RY(weights[layers, wire, 0], wire)
        found = [qml.expval(qml.Z(wire)) for wire in range(max(1, outputs))]
        return found if outputs else found[0]

    node = qml.QNode(circuit, qml.device("default.qubit", wires=wires))
    return fubini.QuantumLayer(node, {"weights": (layers + 1, wires, 3)})


def reuploading_classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layer = reuploading_layer(4, 3, 2)
    return nn.Sequential(layer, nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1)).double()


def waves() -> tuple[Tensor, Tensor]:
    """A smooth function of two variables, with noise."""
    generator = torch.Generator().manual_seed(6)
    points = 4 * torch.rand(120, 2, generator=generator, dtype=D) - 2
    noise = 0.05 * torch.randn(120, 1, generator=generator, dtype=D)
    return points, (points[:, :1] + 0.5 * points[:, 1:] ** 2).sin() + noise


def regression(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), reuploading_layer(3, 3, 3, 3), nn.Linear(3, 1)).double()


TASKS: dict[str, tuple[Any, Any, Any]] = {
    "moons": (moons, reuploading_classifier, nn.BCEWithLogitsLoss()),
    "waves": (waves, regression, nn.MSELoss()),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_the_default_call_trains_further_than_tuned_adam(name: str, seed: int) -> None:
    """40 batches of 30; Adam has the best of its rates for the very seed, and ends at about 2 to 5 times the loss."""
    data, make_model, loss = TASKS[name]
    points, targets = data()

    def end(make: Callable[[Any], Any]) -> float:
        model = make_model(seed)
        opt = make(model)
        order = torch.Generator().manual_seed(seed)
        for _ in range(40):
            chosen = torch.randperm(120, generator=order)[:30]
            opt.zero_grad()
            loss(model(points[chosen]), targets[chosen]).backward()
            opt.step()
        with torch.no_grad():
            return float(loss(model(points), targets))

    ours = end(lambda m: fubini.QNGOptimizer(m, loss=loss))
    theirs = [
        end(lambda m, lr=lr: torch.optim.Adam(m.parameters(), lr=lr)) for lr in (0.03, 0.1, 0.3)
    ]
    assert ours < 0.7 * min(theirs)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss()], ids=repr)
def test_the_remedy_for_robust_losses_trains(loss: Any) -> None:
    """What is said when they are refused: the metric of the squared error."""
    points, targets = waves()
    model = regression(0)
    opt = fubini.QNGOptimizer(model, loss="gaussian")
    losses = []
    for _ in range(30):
        opt.zero_grad()
        found = loss(model(points), targets)
        found.backward()
        opt.step()
        losses.append(float(found.detach()))
    assert losses[-1] < 0.5 * losses[0]
