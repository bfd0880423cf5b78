"""Rules for activations, limits, and choices by constant conditions; see :mod:`fubini.compile.rules`.

Each is written with the functions that the kernel has, so that values and derivatives are torch's at corners too: relu has
the derivative 0 at 0, and the larger and the smaller of two equal numbers have half of it each.
"""

import math
from typing import Any

import numpy as np
import torch

from fubini.compile.graph import Graph
from fubini.compile.rules import (
    codes_of,
    combined,
    elementwise,
    largest_of,
    mapped,
    multiplied,
    reduced,
    reduction,
    root_of,
    rule,
)
from fubini.compile.shadow import Codes, Shadow, UnknownError

# -- activations ----------------------------------------------------------------------------------------------------


@elementwise("leaky_relu")
def _leaky_relu(graph: Graph, u: int, slope: float = 0.01) -> int:
    return graph.linear((float(slope), u), (1.0 - float(slope), graph.unary("relu", u)))


@elementwise("elu")
def _elu(graph: Graph, u: int, alpha: float = 1, scale: float = 1, inner: float = 1) -> int:
    if alpha != 1 or inner != 1:
        raise UnknownError("it uses elu with other numbers than 1")
    # max(u, 0) as u + max(-u, 0), whose derivative at 0 is 1
    below = graph.unary("relu", graph.linear((-1.0, u)))
    exponential = graph.unary("expm1", graph.linear((-1.0, below)))
    above = graph.linear((1.0, u), (1.0, below))
    return graph.linear((float(scale), above), (float(scale), exponential))


@elementwise("silu")
def _silu(graph: Graph, u: int) -> int:
    return graph.product(u, graph.unary("sigmoid", u))


@elementwise("gelu")
def _gelu(graph: Graph, u: int, approximate: str = "none") -> int:
    if approximate == "none":
        share = graph.unary("erf", graph.linear((math.sqrt(0.5), u)))
    else:
        c = math.sqrt(2.0 / math.pi)
        inside = graph.sum(0.0, [(c, u, -1), (0.044715 * c, graph.power(u, 2.0), u)])
        share = graph.unary("tanh", inside)
    return graph.sum(0.0, [(0.5, u, -1), (0.5, u, share)])


@elementwise("softplus")
def _softplus(graph: Graph, u: int, beta: float = 1, threshold: float = 20) -> int:
    if beta != 1 or threshold != 20:
        raise UnknownError("it uses softplus with another scale or threshold than torch's")
    return graph.unary("softplus", u)


@elementwise("mish")
def _mish(graph: Graph, u: int) -> int:
    return graph.product(u, graph.unary("tanh", graph.unary("softplus", u)))


# -- limits ---------------------------------------------------------------------------------------------------------


def _limited(
    graph: Graph, u: int, low: float | None, high: float | None, at_limits: float = 1.0
) -> int:
    if low is not None and high is not None and not low < high:
        raise UnknownError("it limits numbers to an empty interval")
    # One chain of the larger and the smaller has the derivative 1/2 at the limits themselves, another one 3/4; their
    # combinations have any, and the same value.
    once = twice = u
    if low is not None:
        limit = graph.constant(low)
        once = graph.binary("maximum", u, limit)
        twice = graph.binary("maximum", u, once)
    if high is not None:
        limit = graph.constant(high)
        once = graph.binary("minimum", once, limit)
        twice = graph.binary("minimum", twice, graph.binary("minimum", twice, limit))
    share = 4.0 * at_limits - 2.0
    return graph.linear((share, twice), (1.0 - share, once))


@rule("clamp", "clamp_min", "clamp_max")
def _clamp(
    shadow: Shadow, a: torch.Tensor, min: Any = None, max: Any = None, *, name: str
) -> Codes:
    if name == "clamp_max":
        min, max = None, min
    low, high = (None if v is None else _number(shadow, v) for v in (min, max))
    if any(v is not None and math.isnan(v) for v in (low, high)):
        raise UnknownError("it limits numbers by NaN")
    return mapped(shadow.of(a), lambda u: _limited(shadow.graph, u, low, high))


@elementwise("hardtanh")
def _hardtanh(graph: Graph, u: int, low: float = -1, high: float = 1) -> int:
    return _limited(graph, u, float(low), float(high), at_limits=0.0)


def _number(shadow: Shadow, value: Any) -> float:
    if isinstance(value, torch.Tensor):
        if shadow.tracks(value) or value.numel() != 1 or value.ndim:
            raise UnknownError("it limits numbers by a tensor")
        return float(shadow.graph.value(int(shadow.of(value)) >> 32) or 0.0)
    return float(value)


# -- choices --------------------------------------------------------------------------------------------------------


def _mask(shadow: Shadow, condition: Any) -> Any:
    """A constant condition."""
    if condition.dtype is not torch.bool or shadow.tracks(condition):
        raise UnknownError("it chooses by numbers")
    return condition.detach().cpu().numpy()


@rule("where")
def _where(shadow: Shadow, condition: Any, a: Any, b: Any) -> Codes:
    return np.where(_mask(shadow, condition), codes_of(shadow, a), codes_of(shadow, b))


@rule("masked_fill")
def _masked_fill(shadow: Shadow, a: torch.Tensor, condition: Any, value: Any) -> Codes:
    return _where(shadow, condition, value, a)


@rule("tril", "triu")
def _triangle(shadow: Shadow, a: torch.Tensor, diagonal: int = 0, *, name: str) -> Codes:
    ones = np.ones(a.shape, dtype=bool)
    kept = np.tril(ones, diagonal) if name == "tril" else np.triu(ones, diagonal)
    return np.where(kept, shadow.of(a), shadow.constant(0.0))


# -- statistics of features -----------------------------------------------------------------------------------------


@reduction("var")
def _variance(graph: Graph, nodes: list[int], correction: float | None = 1) -> int:
    count = len(nodes)
    freedom = count - (1.0 if correction is None else float(correction))
    if freedom <= 0:
        raise UnknownError("it takes the variance of too few numbers")
    mean = graph.linear(*((1.0 / count, n) for n in nodes))
    apart = [graph.linear((1.0, n), (-1.0, mean)) for n in nodes]
    return graph.sum(0.0, [(1.0 / freedom, n, n) for n in apart])


@reduction("std")
def _deviation(graph: Graph, nodes: list[int], correction: float | None = 1) -> int:
    return root_of(graph, _variance(graph, nodes, correction))


@reduction("logsumexp")
def _log_total(graph: Graph, nodes: list[int]) -> int:
    if len(nodes) == 1:
        return nodes[0]
    # The largest is taken off, as torch does: an infinite logarithm may be the argument of a function that is finite there.
    largest = largest_of(graph, nodes)
    powers = [graph.unary("exp", graph.linear((1.0, n), (-1.0, largest))) for n in nodes]
    total = graph.linear(*((1.0, power) for power in powers))
    return graph.linear((1.0, largest), (1.0, graph.unary("log", total)))


@rule("_log_softmax")
def _log_softmax(shadow: Shadow, a: torch.Tensor, dim: int, half_to_float: bool = False) -> Codes:
    codes = shadow.of(a)
    totals = reduced(codes, dim, lambda nodes: _log_total(shadow.graph, nodes))
    return combined(shadow, codes, totals, 1.0, -1.0)


@rule("lerp")
def _lerp(shadow: Shadow, a: torch.Tensor, b: torch.Tensor, weight: Any) -> Codes:
    apart = combined(shadow, shadow.of(b), shadow.of(a), 1.0, -1.0)
    part = multiplied(shadow, codes_of(shadow, weight), apart)
    return combined(shadow, shadow.of(a), part)
