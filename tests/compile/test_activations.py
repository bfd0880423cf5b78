"""Activations, limits and choices inside quantum functions: torch's numbers, at corners too."""

from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch.nn import functional

import fubini

MASK = torch.tensor([True, False, True, False])
# Corners of all of them, equal numbers, and numbers on both sides.
POINTS = [
    [0.0, 0.5, -0.5, 1.0],
    [-1.0, -0.0, 0.25, -0.25],
    [0.3, 0.3, 0.3, 0.3],
    [25.0, -30.0, 2.0, -3.0],
    [0.7, -0.2, 1.3, 0.1],
]

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "elu": functional.elu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "mish": functional.mish,
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5),
    "clamp at zero": lambda x: x.clamp(0.0, 1.0),
    "clamp from below": lambda x: x.clamp(min=-0.5),
    "clip from above": lambda x: torch.clip(x, max=1),
    "clamp_min": lambda x: x.clamp_min(0.25),
    "clamp_max": lambda x: torch.clamp_max(x, 0.3),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-0.5), torch.tensor(0.5)),
    "clamp in place": lambda x: (1 * x).clamp_(-0.5, 0.5),
    "hardtanh": functional.hardtanh,
    "hardtanh of others": lambda x: functional.hardtanh(x, -0.5, 0.25),
    "relu6": functional.relu6,
    "cumprod": lambda x: torch.cumprod(x, -1),
    "diff": lambda x: torch.diff(x, append=x[..., :1]),
    "where": lambda x: torch.where(MASK, x, x**2),
    "where with a number": lambda x: torch.where(MASK, x, 0.5),
    "masked_fill": lambda x: x.masked_fill(MASK, 0.5),
    "masked_fill in place": lambda x: (2 * x).masked_fill_(MASK, 0.5),
    "tril": lambda x: torch.tril(x[..., None] * torch.ones(4)).sum(-1),
    "triu": lambda x: torch.triu(x[..., None] * torch.ones(4), 1).sum(-1),
    "var": lambda x: x.var(dim=-1, keepdim=True) + x,
    "var of all": lambda x: x * x.var(-1, unbiased=False)[..., None],
    "std": lambda x: x + x.std(dim=-1, keepdim=True),
    "logsumexp": lambda x: x + torch.logsumexp(x, -1, keepdim=True),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "lerp": lambda x: torch.lerp(x, x**2, 0.3),
    "normalize": lambda x: functional.normalize(x, dim=-1),
    "expit": torch.special.expit,
}


def layers(function: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    def circuit(inputs: Any, weights: Any) -> Any:
        x, w = function(inputs), function(weights)
        for i in range(4):
            qml.RY(0.1 * x[..., i], wires=i % 2)
            qml.RX(w[i], wires=i % 2)
        qml.CNOT([0, 1])
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    node = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    theirs = qml.qnn.TorchLayer(node, {"weights": 4}).to(dtype)
    ours = fubini.QuantumLayer(node, {"weights": 4}).to(dtype)
    return theirs, ours


def numbers(layer: Any, x: Any, w: Any) -> list[Any]:
    """The output, its gradient, and the gradient of a function of the gradient."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        layer.weights.copy_(w)
    out = layer(x)
    leaves = (x, layer.weights)
    first = torch.autograd.grad((out * torch.tensor([1.0, 0.5])).sum(), leaves, create_graph=True)
    total = sum((g * torch.linspace(1, 2, g.numel()).reshape(g.shape)).sum() for g in first)
    second = torch.autograd.grad(total, leaves)
    return [out, *first, *second]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_torch(name: str) -> None:
    theirs, ours = layers(FUNCTIONS[name])
    x = torch.tensor(POINTS, dtype=torch.float64)
    rows = list(range(len(x)))
    if name == "std":
        rows.remove(2)  # torch's second derivative is NaN where all numbers are equal
    for w in x[[0, 4]]:
        pairs = zip(numbers(theirs, x[rows], w), numbers(ours, x[rows], w), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
    assert "compiled" in ours.explain()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.masked_fill(x > 0.5, 0.5),
        lambda x: x.clamp(0.5, -0.5),
        lambda x: x.clamp(0.5, 0.5),
        lambda x: torch.clamp(x, max=x.mean(-1, keepdim=True)),
        lambda x: functional.celu(x, 2.0),
        lambda x: functional.softplus(x, beta=2.0),
        lambda x: torch.where(MASK, x, x.detach()),
    ],
)
def test_what_is_not_understood_runs_in_every_call(function: Any) -> None:
    theirs, ours = layers(function)
    x = torch.tensor(POINTS, dtype=torch.float64)
    with torch.no_grad():
        ours.weights.copy_(theirs.weights)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    assert "every call" in ours.explain()
