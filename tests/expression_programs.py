"""Scalar programs as the kernel takes them, and the same in torch, node by node and row by row."""

import math
from collections.abc import Callable

import numpy as np
import torch

from fubini import _core

Tensor = torch.Tensor

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in [
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "sigmoid",
        "relu",
        "abs",
        "erf",
        "erfc",
        "sign",
        "floor",
        "ceil",
        "round",
        "detach",
    ]
}
UNARY["softplus"] = torch.nn.functional.softplus
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quotient": torch.div,
    "power": torch.pow,
    "atan2": torch.atan2,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


class Builder:
    """Collects nodes; every method returns the number of the node."""

    def __init__(self, weights: int, inputs: int) -> None:
        self.weights, self.inputs = weights, inputs
        self.nodes: list[tuple[str, int, int, float]] = []
        self.terms: list[tuple[float, int, int]] = []

    def add(self, kind: str, u: int = -1, v: int = -1, c: float = 0.0) -> int:
        self.nodes.append((kind, u, v, c))
        return len(self.nodes) - 1

    def sum(self, c: float, *terms: tuple[float, int, int]) -> int:
        self.terms.extend(terms)
        return self.add("sum", len(self.terms) - len(terms), len(terms), c)

    def build(self, outputs: list[int], angles: int) -> _core.Expression:
        return _core.Expression(self.weights, self.inputs, self.nodes, self.terms, outputs, angles)

    def reference(self, outputs: list[int], weights: Tensor, inputs: Tensor) -> Tensor:
        """(P,) or (B, P) and (B, D) -> (B, K) in torch."""
        rows = weights if weights.ndim == 2 else weights.expand(len(inputs), -1)
        values: list[Tensor] = []
        for kind, u, v, c in self.nodes:
            if kind == "weight":
                value = rows[:, u]
            elif kind == "input":
                value = inputs[:, u]
            elif kind == "sum":
                value = torch.full((len(inputs),), c, dtype=torch.float64)
                for coefficient, first, second in self.terms[u : u + v]:
                    term = coefficient * values[first]
                    value = value + (term if second < 0 else term * values[second])
            elif kind == "power_constant":
                value = torch.pow(values[u], c)
            elif kind in UNARY:
                value = UNARY[kind](values[u])
            else:
                value = BINARY[kind](values[u], values[v])
            values.append(value)
        return torch.stack([values[k] for k in outputs], -1)


def random_builder(rng: np.random.Generator, weights: int, inputs: int, size: int) -> Builder:
    """A program of any kinds, whose arguments are kept where the functions and their derivatives are moderate."""
    builder = Builder(weights, inputs)
    values = [builder.add("weight", p) for p in range(weights)]
    values += [builder.add("input", d) for d in range(inputs)]
    values.append(builder.sum(0.5))

    def pick() -> int:
        return values[rng.integers(len(values))]

    def between(low: float, high: float) -> int:
        """Some value, brought into an interval."""
        half = (high - low) / 2
        return builder.sum(low + half, (half, builder.add("sin", pick()), -1))

    domains = dict.fromkeys(["log", "log2", "log10", "sqrt", "rsqrt", "reciprocal"], (0.3, 3.0))
    domains |= {"acosh": (1.2, 4.0), "log1p": (-0.7, 2.0), "asin": (-0.9, 0.9)}
    domains |= {"acos": (-0.9, 0.9), "atanh": (-0.9, 0.9)}
    for _ in range(size):
        choice = rng.integers(4)
        if choice == 0:
            count = rng.integers(0, 4)
            terms = [
                (rng.normal(), pick(), pick() if rng.random() < 0.5 else -1) for _ in range(count)
            ]
            wide = builder.sum(float(rng.normal()), *terms)
            new = builder.add("tanh", wide) if rng.random() < 0.5 else wide
        elif choice == 1:
            kind = str(rng.choice(list(BINARY)))
            v = between(0.4, 2.0) if kind in {"quotient", "power", "atan2"} else pick()
            new = builder.add(kind, between(0.3, 2.0) if kind == "power" else pick(), v)
        elif choice == 2:
            exponent = float(rng.choice([0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, -0.5, 1.7]))
            new = builder.add("power_constant", between(0.3, 2.0), -1, exponent)
        else:
            kind = str(rng.choice(list(UNARY)))
            new = builder.add(kind, between(*domains.get(kind, (-1.4, 1.4))))
        values.append(new)
    return builder


def point(rng: np.random.Generator, weights: int, inputs: int, batch: int, by_row: bool) -> tuple:
    shape = (batch, weights) if by_row else (weights,)
    return rng.uniform(-1, 1, shape), rng.uniform(-1, 1, (batch, inputs))


def product_layer(angles: int, inputs: int) -> tuple[Builder, list[int]]:
    """w * x + b for every angle: weights first, then biases."""
    builder = Builder(2 * angles, inputs)
    w = [builder.add("weight", p) for p in range(2 * angles)]
    x = [builder.add("input", d) for d in range(inputs)]
    outputs = [
        builder.sum(-0.0, (1.0, w[a], x[a % inputs]), (1.0, w[angles + a], -1))
        for a in range(angles)
    ]
    return builder, outputs


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    2.0,
    -2.0,
    1.5,
    -1.5,
    2.5,
    3.0,
    20.0,
    20.5,
    1e-300,
    800.0,
]
SPECIAL += [-800.0, 1e5 + 0.3, 1e10, math.inf, -math.inf, math.nan]
