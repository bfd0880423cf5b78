"""What the tests of graphs share: models by their forward, operations, and the comparison with the general pass."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.columns import Request
from fubini.fisher.graph import read_graph
from fubini.fisher.graph_blocks import KnownGraphs, graph_blocks
from fubini.fisher.likelihoods import Gaussian
from fubini.nn.surroundings import Seen, Surroundings
from quantum_layers import quantum

Tensor = torch.Tensor

quantum()  # the first circuit of a process loads what draws random numbers: later ones have the same weights


class Of(nn.Module):
    """A model by its forward; layers are attributes."""

    def __init__(self, forward: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.apply_it = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_it(self, x)


def seen_by(model: nn.Module, x: Tensor) -> Seen:
    surroundings = Surroundings.now(model)
    output = model(x)
    graph = read_graph(output)
    return Seen((x.clone(),), {}, surroundings, output.detach().clone(), graph=graph)


def both(
    model: nn.Module,
    x: Tensor,
    likelihood: Any,
    parameters: Sequence[Tensor] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """The blocks by the graph, and those of the general pass."""
    wanted = list(model.parameters()) if parameters is None else list(parameters)
    asked = {"approx": "block-diag", "fisher": "true", "targets": None, "quantum": "gauss-newton"}
    asked.update(options)
    one = seen_by(model, x)
    request = Request(
        likelihood,
        asked["fisher"],
        asked["targets"],
        None,
        asked["quantum"],
        "wires",
        asked["approx"],
        None,
    )
    one = Seen(one.args, {}, one.surroundings, one.output, asked["targets"], one.graph)
    found = None
    if one.graph is not None:
        found = graph_blocks(model, [one], wanted, request, KnownGraphs())
    with one.surroundings.numbers():
        one.surroundings.random.restore()
        expected = fisher_blocks(model, (x,), {}, parameters=wanted, likelihood=likelihood, **asked)
    return found, expected


def compare(model: nn.Module, x: Tensor, likelihood: Any = None, **options: Any) -> None:
    found, expected = both(model, x, likelihood or Gaussian(), **options)
    assert found is not None
    assert [b.label for b in found] == [b.label for b in expected]
    for block, other in zip(found, expected, strict=True):
        assert type(block) is type(other)
        assert all(p is q for p, q in zip(block.parameters, other.parameters, strict=True))
        for name, values in block.tensors().items():
            theirs = other.tensors()[name]
            scale = float(theirs.abs().max())
            torch.testing.assert_close(values, theirs, rtol=0, atol=1e-10 * scale + 1e-300)


C = torch.linspace(0.2, 1.4, 4, dtype=torch.float64)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "relu in place": lambda h: (h + 0.1).relu_(),
    "sin": torch.sin, "cos": torch.cos, "exp": torch.exp, "atan": torch.atan, "asin": lambda h: (h.tanh() / 2).asin(),
    "acos": lambda h: (h.tanh() / 2).acos(), "log": lambda h: (h.exp() + 1).log(), "sqrt": lambda h: (h * h + 1).sqrt(),
    "abs": torch.abs, "silu": F.silu, "mish": F.mish, "softplus": lambda h: F.softplus(h, 2.0, 5.0),
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 0.7), "relu6": F.relu6, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "gelu": F.gelu, "gelu of tanh": lambda h: F.gelu(h, approximate="tanh"),
    "elu": lambda h: F.elu(h, 0.7), "selu": F.selu, "square": lambda h: h**2, "cube": lambda h: h.pow(3),
    "root": lambda h: (h.abs() + 1) ** 0.5, "plus": lambda h: h + 1.5, "plus a vector": lambda h: C + h,
    "sum": lambda h: torch.add(h.sin(), h, alpha=0.3), "minus": lambda h: h - h.cos(), "from one": lambda h: 1.0 - h,
    "from a vector": lambda h: C - h, "negative": lambda h: -h, "times": lambda h: 0.7 * h, "times a vector": lambda h: h * C,
    "times a column": lambda h: h * h.detach()[:, :1], "product": lambda h: h * h.sin(), "self": lambda h: h * h,
    "repeated": lambda h: h * h[:, 1:2] + h[:, :1], "over": lambda h: h / 3.0, "over a vector": lambda h: h / C,
    "quotient": lambda h: h / (1.5 + h.sin()), "one over": lambda h: 1.0 / (2.0 + h.sin()),
    "softmax": lambda h: h.softmax(-1), "log softmax": lambda h: h.log_softmax(1), "slice": lambda h: h[:, 1:],
    "steps": lambda h: h[:, ::2], "all": lambda h: h[:][:, -3:-1], "select": lambda h: h[:, -1], "narrow": lambda h: h.narrow(1, 1, 2),
    "cat": lambda h: torch.cat([h.sin(), h[:, :2]], -1), "cat with data": lambda h: torch.cat([h.detach(), h], 1),
    "stack": lambda h: torch.stack([h[:, 0], h[:, 2].sin()], 1), "stack last": lambda h: torch.stack([h, h.cos()], -1).flatten(1),
    "chunk": lambda h: h.chunk(2, -1)[1] * 2.0, "split": lambda h: h.split([1, 3], 1)[1], "unbind": lambda h: h.unbind(1)[2],
    "two of a split": lambda h: torch.mul(*h.chunk(2, 1)), "sum of entries": lambda h: h.sum(-1), "mean": lambda h: h.mean(1, keepdim=True),
    "norm": lambda h: h / (h * h).sum(1, keepdim=True).sqrt(), "view": lambda h: h.view(-1, 2, 2).sin().sum(2),
    "transposed": lambda h: (h.unflatten(1, (2, 2)).transpose(1, -1) * torch.ones(2, 2).cumsum(0)).reshape(len(h), -1),
    "permuted": lambda h: h.view(-1, 2, 2).permute(0, 2, 1)[:, 0], "squeezed": lambda h: h[:, None].squeeze(1), "squeezed all": lambda h: h.unsqueeze(-1).squeeze(),
    "clone": lambda h: h.clone(), "expand": lambda h: h.expand(len(h), 4), "none": lambda h: h,
    "dropout": lambda h: F.dropout(h, 0.5), "detached": lambda h: h.detach() * h, "alias": torch.ops.aten.alias,
}  # fmt: skip


class Drawn(nn.Module):
    """A random graph of layers and operations."""

    def __init__(self, seed: int, outputs: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.first = nn.Linear(3, 4)
        self.layers = nn.ModuleList()
        self.steps: list[Callable[[list[Tensor]], Tensor]] = []
        widths = [4]
        names = [
            n for n in OPERATIONS if n not in ("sum of entries", "unbind", "select", "asin", "acos")
        ]
        for _ in range(draw.randint(1, 7)):
            at, kind = (
                draw.randrange(len(widths)),
                draw.choice(["linear", "circuit", "operation", "join"]),
            )
            if kind == "linear":
                width = draw.randint(1, 4)
                layer: Any = nn.Linear(widths[at], width, bias=draw.random() < 0.7)
                self.layers.append(layer)
                self.steps.append(lambda h, at=at, layer=layer: layer(h[at]))
            elif kind == "circuit":
                at = next((k for k, w in enumerate(widths) if w > 1), 0)
                layer, start = quantum(), draw.randint(0, widths[at] - 2)
                self.layers.append(layer)
                self.steps.append(lambda h, at=at, a=start, layer=layer: layer(h[at][:, a : a + 2]))
                width = 3
            elif kind == "operation" and widths[at] == 4:
                function = OPERATIONS[draw.choice(names)]
                self.steps.append(lambda h, at=at, f=function: f(h[at]).reshape(len(h[at]), -1))
                width = function(torch.randn(2, 4)).reshape(2, -1).shape[1]
            else:
                other = draw.randrange(len(widths))
                self.steps.append(lambda h, at=at, b=other: torch.cat([h[at], h[b].tanh()], 1))
                width = widths[at] + widths[other]
            widths.append(width)
        self.last = nn.Linear(sum(widths), outputs)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.first(x)]
        for step in self.steps:
            values.append(step(values))
        return self.last(torch.cat(values, 1))


def two_circuits() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.first(x)
        left, right = m.left(h[:, :2]), m.right(torch.pi * h[:, 2:].tanh())
        return m.last(torch.cat([left, right], 1))

    return Of(forward, first=nn.Linear(3, 4), left=quantum(), right=quantum(), last=nn.Linear(6, 3))
