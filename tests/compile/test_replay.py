"""What was recorded is run again by torch at random numbers: rules that are wrong elsewhere show, and rounding does not."""

from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from fubini.compile.graph import Graph
from fubini.compile.recorder import Recording
from fubini.compile.replay import Place
from fubini.compile.rules import RULES, mapped
from fubini.compile.shadow import Codes, Shadow
from recorded_functions import BATCH, FEATURES, RECORDED, WEIGHTS, record

DIFFERENT = "at random numbers its operations give other angles"
Angle = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def layer_of(angle: Angle) -> Any:
    """The QNode, and the layer after its first call."""

    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(angle(inputs, w), 0)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1))
    start = {"w": torch.tensor([0.4, 0.9], dtype=torch.float64)}
    layer = fubini.QuantumLayer(qnode, {"w": 2}, start).double()
    layer(torch.rand(4, 2, dtype=torch.float64, generator=torch.manual_seed(0)) + 0.5)
    return qnode, layer


# -- the second run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RECORDED)
def test_the_second_run_is_the_function_at_other_numbers(name: str, dtype: torch.dtype) -> None:
    function = RECORDED[name]
    generator = torch.Generator().manual_seed(3)
    x, w, other, weights = (
        torch.rand(size, dtype=torch.float64, generator=generator)
        for size in ((BATCH, FEATURES), (WEIGHTS,), (BATCH, FEATURES), (WEIGHTS,))
    )
    if dtype is torch.float32 and name in ("linear", "dot"):
        pytest.skip("torch takes no two dtypes there")
    recording, result = record(function, x.to(dtype), w.to(dtype))
    assert recording.problem is None
    memory = recording.replay.run(weights.numpy(), other.numpy())
    # The same operations of torch; constants of a function may be rounded to the dtype that it is called in.
    tolerance = 1e-14 if dtype is torch.float64 else 1e-6
    want = function(other, weights)
    torch.testing.assert_close(
        Place.of(result).within(memory), want, rtol=tolerance, atol=tolerance
    )


def test_the_list_is_dropped_where_the_function_is_not_understood() -> None:
    recording, w = Recording(Graph()), torch.rand(3, dtype=torch.float64)
    recording.leaves("weight", w, 0)
    with recording:
        doubled = 2.0 * w
        assert len(recording.replay) == 1
        doubled.floor()
    assert recording.problem is not None
    assert len(recording.replay) == 0


# -- rules that are wrong elsewhere -------------------------------------------------------------------------------------


def limited(shadow: Shadow, a: torch.Tensor) -> Codes:
    """The sine, wrong beyond 20."""
    graph = shadow.graph
    limit = graph.constant(20.0)
    return mapped(shadow.of(a), lambda u: graph.unary("sin", graph.binary("minimum", u, limit)))


def itself(shadow: Shadow, a: torch.Tensor) -> Codes:
    """Right for positive numbers."""
    return shadow.of(a)


WRONG: dict[str, tuple[Any, Angle]] = {
    "sin": (limited, lambda x, w: w[1] * torch.sin(x[..., 0])),
    "relu": (itself, lambda x, w: torch.relu(x[..., 0]) + w[0]),
    "abs": (itself, lambda x, w: x[..., 0] + w[0].abs()),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_is_wrong_for_other_numbers_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, angle = WRONG[name]
    monkeypatch.setitem(RULES, name, rule)
    qnode, layer = layer_of(angle)
    assert DIFFERENT in layer.explain()
    x = 100.0 * torch.randn(5, 2, dtype=torch.float64, generator=torch.manual_seed(1))
    torch.testing.assert_close(layer(x), qnode(x, layer.w), rtol=0, atol=1e-12)


def test_a_wrong_rule_for_amplitudes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def circuit(inputs: Any, w: Any) -> Any:
        qml.AmplitudeEmbedding(torch.relu(inputs), range(2), normalize=True)
        qml.RX(w[0], 0)
        return qml.expval(qml.Z(0))

    x = torch.rand(3, 4, dtype=torch.float64, generator=torch.manual_seed(0)) + 0.1
    for wrong in (False, True):
        if wrong:
            monkeypatch.setitem(RULES, "relu", itself)
        qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
        layer = fubini.QuantumLayer(qnode, {"w": (1,)}).double()
        layer(x)
        assert (DIFFERENT in layer.explain()) is wrong


# -- what is no error ---------------------------------------------------------------------------------------------------

RIGHT: dict[str, Angle] = {
    # Up to 1e18 at the wide points: the sine of that has no digits.
    "digits lost": lambda x, w: torch.sin((x[..., 0] * w[0]) ** 3),
    "digits lost in a difference": lambda x, w: torch.atan((x[..., 0] + 1e7 * w[0]) - 1e7 * w[0]),
    "not a number": lambda x, w: torch.arccos(0.1 * x[..., 0]) + torch.sqrt(w[0]),
    "infinite": lambda x, w: torch.exp(torch.exp(x[..., 0])) * w[0],
    "division by zero": lambda x, w: torch.atan(w[0] / x[..., 0]),
    "in place": lambda x, w: torch.zeros(2, dtype=x.dtype).copy_(w).mul_(3.0)[1] * x[..., 1],
}


@pytest.mark.parametrize("name", RIGHT)
def test_rounding_and_what_is_not_finite_is_no_error(name: str) -> None:
    _, layer = layer_of(RIGHT[name])
    assert "compiled circuit" in layer.explain()


@pytest.mark.parametrize("size", [700.0, 800.0, -800.0])
def test_sums_of_large_exponentials(size: float) -> None:
    def angle(x: Any, w: Any) -> Any:
        first = torch.atan(torch.logsumexp(w * x, -1)) + torch.tanh(x.log_softmax(-1)[..., 0])
        return first + x.softmax(-1)[..., 1]

    qnode, layer = layer_of(angle)
    assert "compiled circuit" in layer.explain()
    x, y = (torch.tensor([[size, 0.3], [size, 2 * size]], dtype=torch.float64) for _ in range(2))
    mine, theirs = layer(x.requires_grad_()), qnode(y.requires_grad_(), layer.w)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    mine.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)
