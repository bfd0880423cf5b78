"""Rules for activations, limits, and choices by constant conditions; see :mod:`fubini.compile.rules`.

Each is written with the functions that the kernel has, so that values and derivatives are torch's at corners too: relu has
the derivative 0 at 0, and the larger and the smaller of two equal numbers have half of it each.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fubini.compile.graph import Graph
from fubini.compile.rules import (
    codes_of,
    combined,
    dims_of,
    mapped,
    multiplied,
    reduced,
    root_of,
    rule,
    squeezed,
)
from fubini.compile.shadow import Codes, Shadow, UnknownError

# -- activations ----------------------------------------------------------------------------------------------------


def _sum(graph: Graph, *terms: tuple[float, int]) -> int:
    return graph.sum(0.0, [(c, u, -1) for c, u in terms])


@rule("leaky_relu")
def _leaky_relu(shadow: Shadow, a: torch.Tensor, slope: float = 0.01) -> Codes:
    graph, s = shadow.graph, float(slope)
    return mapped(shadow.of(a), lambda u: _sum(graph, (s, u), (1.0 - s, graph.unary("relu", u))))


@rule("elu")
def _elu(
    shadow: Shadow, a: torch.Tensor, alpha: float = 1, scale: float = 1, inner: float = 1
) -> Codes:
    if alpha != 1 or inner != 1:
        raise UnknownError("it uses elu with other numbers than 1")
    graph, factor = shadow.graph, float(scale)

    def elu(u: int) -> int:
        # max(u, 0) as u + max(-u, 0), whose derivative at 0 is 1
        below = graph.unary("relu", _sum(graph, (-1.0, u)))
        exponential = graph.unary("expm1", _sum(graph, (-1.0, below)))
        return _sum(graph, (factor, _sum(graph, (1.0, u), (1.0, below))), (factor, exponential))

    return mapped(shadow.of(a), elu)


@rule("gelu")
def _gelu(shadow: Shadow, a: torch.Tensor, approximate: str = "none") -> Codes:
    graph = shadow.graph

    def gelu(u: int) -> int:
        if approximate == "none":
            share = graph.unary("erf", _sum(graph, (math.sqrt(0.5), u)))
        else:
            c = math.sqrt(2.0 / math.pi)
            inside = graph.sum(0.0, [(c, u, -1), (0.044715 * c, graph.power(u, 2.0), u)])
            share = graph.unary("tanh", inside)
        return graph.sum(0.0, [(0.5, u, -1), (0.5, u, share)])

    return mapped(shadow.of(a), gelu)


@rule("softplus")
def _softplus(shadow: Shadow, a: torch.Tensor, beta: float = 1, threshold: float = 20) -> Codes:
    if beta != 1 or threshold != 20:
        raise UnknownError("it uses softplus with another scale or threshold than torch's")
    graph = shadow.graph
    return mapped(shadow.of(a), lambda u: graph.unary("softplus", u))


@rule("mish")
def _mish(shadow: Shadow, a: torch.Tensor) -> Codes:
    graph = shadow.graph

    def mish(u: int) -> int:
        return graph.sum(0.0, [(1.0, u, graph.unary("tanh", graph.unary("softplus", u)))])

    return mapped(shadow.of(a), mish)


# -- limits ---------------------------------------------------------------------------------------------------------


def _limited(
    graph: Graph, low: float | None, high: float | None, at_limits: float = 1.0
) -> Callable[[int], int]:
    # One chain of the larger and the smaller has the derivative 1/2 at the limits themselves, another one 3/4; their
    # combinations have any, and the same value.

    def limited(u: int) -> int:
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
        return _sum(graph, (share, twice), (1.0 - share, once))

    return limited


@rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(
    shadow: Shadow, a: torch.Tensor, min: Any = None, max: Any = None, *, name: str
) -> Codes:
    if name == "clamp_max":
        min, max = None, min
    limits = [None if v is None else _number(shadow, v) for v in (min, max)]
    low, high = limits
    if low is not None and high is not None and not low < high:
        raise UnknownError("it limits numbers to an empty interval")
    if any(v is not None and math.isnan(v) for v in limits):
        raise UnknownError("it limits numbers by NaN")
    return mapped(shadow.of(a), _limited(shadow.graph, low, high))


@rule("hardtanh")
def _hardtanh(shadow: Shadow, a: torch.Tensor, low: float = -1, high: float = 1) -> Codes:
    if not low < high:
        raise UnknownError("it limits numbers to an empty interval")
    limited = _limited(shadow.graph, float(low), float(high), at_limits=0.0)
    return mapped(shadow.of(a), limited)


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
    return np.where(_mask(shadow, condition), codes_of(shadow, value), shadow.of(a))


@rule("tril", "triu")
def _triangle(shadow: Shadow, a: torch.Tensor, diagonal: int = 0, *, name: str) -> Codes:
    ones = np.ones(a.shape, dtype=bool)
    kept = np.tril(ones, diagonal) if name == "tril" else np.triu(ones, diagonal)
    return np.where(kept, shadow.of(a), shadow.constant(0.0))


# -- statistics of features -----------------------------------------------------------------------------------------


def _variance(graph: Graph, correction: float) -> Callable[[list[int]], int]:
    def variance(nodes: list[int]) -> int:
        count = len(nodes)
        if count - correction <= 0:
            raise UnknownError("it takes the variance of too few numbers")
        mean = graph.sum(0.0, [(1.0 / count, n, -1) for n in nodes])
        apart = [_sum(graph, (1.0, n), (-1.0, mean)) for n in nodes]
        return graph.sum(0.0, [(1.0 / (count - correction), n, n) for n in apart])

    return variance


@rule("var", "std")
def _spread(
    shadow: Shadow,
    a: torch.Tensor,
    dim: Any = None,
    correction: float | None = 1,
    keepdim: bool = False,
    *,
    name: str,
) -> Codes:
    if a.ndim == 0 or isinstance(dim, bool) or isinstance(correction, bool):
        raise UnknownError(f"it uses {name} in a way that is not understood")
    graph, dims = shadow.graph, dims_of(dim)
    variance = _variance(graph, 1.0 if correction is None else float(correction))

    def deviation(nodes: list[int]) -> int:
        # The derivative where all numbers are equal is zero in torch, as it is of the larger of zero and something tiny.
        return root_of(graph, variance(nodes))

    codes = reduced(shadow.of(a), dims, variance if name == "var" else deviation)
    return squeezed(codes, dims, keepdim)


@rule("logsumexp")
def _logsumexp(shadow: Shadow, a: torch.Tensor, dim: Any, keepdim: bool = False) -> Codes:
    if a.ndim == 0:
        return shadow.of(a)
    graph, dims = shadow.graph, dims_of(dim)
    return squeezed(
        reduced(shadow.of(a), dims, lambda nodes: _log_total(graph, nodes)), dims, keepdim
    )


@rule("_log_softmax")
def _log_softmax(shadow: Shadow, a: torch.Tensor, dim: int, half_to_float: bool = False) -> Codes:
    codes = shadow.of(a)
    totals = reduced(codes, [dim], lambda nodes: _log_total(shadow.graph, nodes))
    return combined(shadow, codes, totals, 1.0, -1.0)


def _log_total(graph: Graph, nodes: list[int]) -> int:
    # The largest is taken off, as torch does: an infinite logarithm may be the argument of a function that is finite there.
    largest = functools.reduce(functools.partial(graph.binary, "maximum"), nodes)
    powers = [graph.unary("exp", _sum(graph, (1.0, n), (-1.0, largest))) for n in nodes]
    return _sum(
        graph, (1.0, largest), (1.0, graph.unary("log", _sum(graph, *((1.0, u) for u in powers))))
    )


@rule("lerp")
def _lerp(shadow: Shadow, a: torch.Tensor, b: torch.Tensor, weight: Any) -> Codes:
    apart = combined(shadow, shadow.of(b), shadow.of(a), 1.0, -1.0)
    part = multiplied(shadow, codes_of(shadow, weight), apart)
    return combined(shadow, shadow.of(a), part)
