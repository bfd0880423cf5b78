"""Models that are read from torch's graph: their blocks against those of the general pass."""

import random
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch import nn

import fubini
from fisher_cases import double_precision
from fubini.fisher import kfac
from fubini.fisher.columns import Request
from fubini.fisher.graph import RULES
from fubini.fisher.graph_blocks import KnownGraphs, graph_blocks
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian
from graph_cases import OPERATIONS, Drawn, Of, both, compare, seen_by, two_circuits

Tensor = torch.Tensor

_double = double_precision


# -- every rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name: str) -> None:
    function = OPERATIONS[name]
    x = torch.randn(6, 3)
    width = function(torch.randn(6, 4)).reshape(6, -1).shape[1]
    last = nn.Linear(width, 2)
    model = Of(
        lambda m, x: m.last(function(m.first(x)).reshape(len(x), -1)),
        first=nn.Linear(3, 4),
        last=last,
    )
    compare(model, x)
    if function(torch.randn(6, 4)).ndim < 3:
        compare(Of(lambda m, x: function(m.first(x)), first=nn.Linear(3, 4)), x, Bernoulli())


def test_every_rule_is_tested() -> None:
    found: set[str] = set()
    for function in OPERATIONS.values():
        waiting = [function(torch.randn(6, 4).requires_grad_() * 1.0).grad_fn]
        while waiting:
            node: Any = waiting.pop()
            found.add(type(node).__name__)
            waiting += [after for after, _ in node.next_functions if after is not None]
    # those that only other versions of torch record
    assert set(RULES) - found <= {"ReshapeAliasBackward0", "UnsafeViewBackward0", "ToCopyBackward0"}


# -- whole models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_random_models_have_the_blocks_of_the_general_pass(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(1000 + seed)
    kind = draw.choice([Categorical, Bernoulli, Gaussian])
    model = Drawn(seed, draw.randint(2, 3) if kind is Categorical else draw.randint(1, 3))
    x = torch.randn(draw.randint(1, 5), 3)
    options: dict[str, Any] = {
        "approx": draw.choice(["block-diag", "diag"]),
        "quantum": draw.choice(["gauss-newton", "gauss-newton", "fubini-study"]),
    }
    f = model(x).detach()
    if draw.random() < 0.3:
        targets = f.argmax(1) if kind is Categorical else (f > 0).double()
        options.update(fisher="empirical", targets=targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kfac, "EXACT_LIMIT", draw.choice([0, 16, 128]))
        compare(model, x, kind(draw.choice(["mean", "sum"]), 0.7), **options)


@pytest.mark.parametrize("metric", ["gauss-newton", "fubini-study"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_two_circuits_side_by_side(metric: str, outputs: int) -> None:
    model: Any = two_circuits()
    model.last = nn.Linear(6, outputs)
    compare(model, torch.randn(5, 3), Gaussian(), quantum=metric)


def test_a_circuit_with_one_number() -> None:
    def single(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        qml.Rot(*weights, 0)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(
        qml.QNode(single, qml.device("default.qubit", wires=1)), {"weights": 3}
    )
    model = Of(lambda m, x: m.layer(m.first(x)), first=nn.Linear(3, 1), layer=layer.double())
    compare(model, torch.randn(5, 3), Bernoulli())
    compare(Of(lambda m, x: m.layer(x), layer=layer), torch.randn(5, 1), Bernoulli())


def test_what_is_not_trained_is_passed_through() -> None:
    model: Any = two_circuits()
    for frozen in (model.left, model.last, model.first):
        frozen.requires_grad_(False)
        compare(
            model, torch.randn(5, 3), parameters=[p for p in model.parameters() if p.requires_grad]
        )
    model = two_circuits()
    compare(model, torch.randn(5, 3), parameters=list(model.last.parameters()))


def test_models_of_single_precision() -> None:
    model = two_circuits().float()
    found, expected = both(model, torch.randn(5, 3, dtype=torch.float32), Gaussian())
    for block, other in zip(found, expected, strict=True):
        # the general pass rounds what lies between the layers
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-4, atol=1e-6)


def test_single_precision_between_the_layers() -> None:
    model = Of(
        lambda m, x: m.last(m.first(x).float().sin().double()),
        first=nn.Linear(3, 4),
        last=nn.Linear(4, 2),
    )
    found, expected = both(model, torch.randn(5, 3), Gaussian())
    for block, other in zip(found, expected, strict=True):
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-5, atol=1e-7)


def test_hooks_that_change_what_passes() -> None:
    model: Any = two_circuits()
    model.first.register_forward_hook(lambda *a: a[2] * 0.5)
    model.last.register_forward_pre_hook(lambda _, args: (args[0].sin(),))
    compare(model, torch.randn(5, 3))


# -- what is not understood --------------------------------------------------------------------------------------------------

MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda h: h.roll(1, 0), "mean over data": lambda h: h - h.mean(0), "mean of all": lambda h: h - h.mean(),
    "sum over data": lambda h: h + h.sum(0, keepdim=True), "transposed": lambda h: h.T @ h, "flip": lambda h: h.flip(0),
    "cat along data": lambda h: torch.cat([h, h])[: len(h)], "some data": lambda h: h[1:].repeat(2, 1)[: len(h)],
    "one datum for all": lambda h: h * h[:1], "one as vector": lambda h: h * h[0], "stack in front": lambda h: torch.stack([h, h]).sum(0),
    "index": lambda h: h[torch.tensor([1, 0, 2, 3])], "products of data": lambda h: h @ h.T @ h, "flat": lambda h: h.reshape(-1)[:16].reshape(4, 4) * 1.0,
    "cumsum": lambda h: h.cumsum(0), "softmax over data": lambda h: h.softmax(0), "unbind data": lambda h: torch.stack(h.unbind(0)[::-1]),
    "broadcast to data": lambda h: h[:, 0] + h, "sort": lambda h: h.sort(0).values, "other axes": lambda h: h.T.reshape(4, 4) * 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_data_takes_the_general_pass(name: str) -> None:
    x = torch.randn(4, 3)
    model = Of(
        lambda m, x: m.last(MIXES[name](m.first(x))), first=nn.Linear(3, 4), last=nn.Linear(4, 2)
    )
    assert seen_by(model, x).graph is None


def _normalised(m: Any, x: Tensor) -> Tensor:
    return m.last(m.norm(m.first(x)))


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Of(_normalised, first=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), last=nn.Linear(4, 2)),
    "layer norm": lambda: Of(_normalised, first=nn.Linear(3, 4), norm=nn.LayerNorm(4), last=nn.Linear(4, 2)),
    "parameter of its own": lambda: Of(lambda m, x: m.first(x) * m.scale, first=nn.Linear(3, 4), scale=nn.Parameter(torch.ones(4))),
    "used twice": lambda: Of(lambda m, x: m.first(m.first(x).tanh()), first=nn.Linear(3, 3)),
    "shared": lambda: Of(lambda m, x: m.a(x) + m.b(x), a=(a := nn.Linear(3, 4)), b=a),
    "weight norm": lambda: Of(lambda m, x: m.a(x), a=nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))),
    "more axes": lambda: Of(lambda m, x: m.a(x[:, None].expand(-1, 2, -1)).sum(1), a=nn.Linear(3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_take_the_general_pass(name: str) -> None:
    model = OTHERS[name]()
    one = seen_by(model, torch.randn(5, 3))
    wanted = list(dict.fromkeys(model.parameters()))
    request = Request(Gaussian(), "true", None, None, "gauss-newton", "wires", "block-diag", None)
    assert one.graph is None or graph_blocks(model, [one], wanted, request, KnownGraphs()) is None
