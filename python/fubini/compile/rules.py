"""What torch's operations do to scalar expressions: the closed list of operations that are understood.

A rule takes the arguments of an ATen operation and returns the codes of its result, see :mod:`fubini.compile.shadow`. An
operation without a rule is not understood, and the function that uses it runs in every call.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from fubini.compile.graph import UNARY, Graph, Term
from fubini.compile.shadow import Codes, Shadow, UnknownError, joined_rows, split

#: From the arguments of an operation to the codes of its result; None where nothing of the leaves is in it.
Rule = Callable[..., Codes | None]

_R = TypeVar("_R", bound=Callable[..., Any])

TINY = 2.0**-1074  # the smallest number, whose root is exact

#: Rules by the name of the ATen operation without its overload. Other names of the same (multiply, arcsin, square) have
#: become these before they arrive.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[_R], _R]:
    """Put a rule on the list, by names of ATen operations; one with a keyword-only argument, name, is told which it is."""

    def register(function: _R) -> _R:
        told = function.__code__.co_kwonlyargcount
        for name in names:
            RULES[name] = functools.partial(function, name=name) if told else function
        return function

    return register


def elementwise(*names: str) -> Callable[[_R], _R]:
    """Put a function of one node on the list: (graph, node, options of the operation) -> node."""

    def register(function: _R) -> _R:
        def every(shadow: Shadow, a: torch.Tensor, *args: Any, **options: Any) -> Codes:
            graph = shadow.graph
            return mapped(shadow.of(a), lambda u: function(graph, u, *args, **options))

        rule(*names)(every)
        return function

    return register


def reduction(*names: str) -> Callable[[_R], _R]:
    """Put a function of many nodes on the list, which is applied along dimensions: (graph, nodes, options) -> node."""

    def register(function: _R) -> _R:
        def along(
            shadow: Shadow, a: torch.Tensor, dim: Any = None, keepdim: bool = False, **options: Any
        ) -> Codes:
            graph = shadow.graph
            return reduced(shadow.of(a), dim, lambda n: function(graph, n, **options), keepdim)

        rule(*names)(along)
        return function

    return register


# -- elementwise ----------------------------------------------------------------------------------------------------


def codes_of(shadow: Shadow, value: Any) -> Codes:
    """Codes of a tensor or a number."""
    if isinstance(value, torch.Tensor):
        return shadow.of(value)
    if isinstance(value, bool | int | float):
        return np.array(shadow.constant(float(value)), dtype=np.int64)
    raise UnknownError(f"it computes with a {type(value).__name__}")


def mapped(codes: Codes, function: Callable[[int], int]) -> Codes:
    """Apply a function of nodes to every element, once for each distinct node."""
    nodes, rows = split(codes)
    return _each(nodes, function) | rows


def paired(a: Codes, b: Codes, function: Callable[[int, int], int]) -> Codes:
    """Apply a function of two nodes to every pair of elements, broadcast, once for each distinct pair."""
    first, second = np.broadcast_arrays(a, b)
    nodes, rows = split(first)
    others, other_rows = split(second)
    found = _each(nodes << 32 | others, lambda pair: function(pair >> 32, pair & 0xFFFFFFFF))
    return found | joined_rows([rows, other_rows])


def _each(keys: Codes, function: Callable[[int], int]) -> Codes:
    """Codes without rows of a function of every key, which is called once for each distinct one."""
    if keys.size and (keys == keys.reshape(-1)[0]).all():
        found = np.full(keys.shape, function(int(keys.reshape(-1)[0])), dtype=np.int64)
    else:
        distinct, inverse = np.unique(keys.reshape(-1), return_inverse=True)
        values = np.array([function(key) for key in distinct.tolist()], dtype=np.int64)
        found = values[inverse].reshape(keys.shape)
    return found << 32


for _name in UNARY:
    elementwise(_name)(lambda graph, u, kind=_name: graph.unary(kind, u))
for _name, _factor in (("neg", -1.0), ("deg2rad", math.pi / 180), ("rad2deg", 180 / math.pi)):
    elementwise(_name)(lambda graph, u, factor=_factor: graph.linear((factor, u)))


def combined(shadow: Shadow, a: Codes, b: Codes, c: float = 1.0, d: float = 1.0) -> Codes:
    """C a + d b, element by element."""
    return paired(a, b, lambda u, v: shadow.graph.linear((c, u), (d, v)))


def multiplied(shadow: Shadow, a: Codes, b: Codes, c: float = 1.0) -> Codes:
    """C a b, element by element."""
    return paired(a, b, lambda u, v: shadow.graph.product(u, v, c))


@rule("add")
def _add(shadow: Shadow, a: Any, b: Any, alpha: float = 1) -> Codes:
    return combined(shadow, codes_of(shadow, a), codes_of(shadow, b), 1.0, float(alpha))


@rule("sub")
def _sub(shadow: Shadow, a: Any, b: Any, alpha: float = 1) -> Codes:
    return _add(shadow, a, b, -alpha)


@rule("rsub")
def _rsub(shadow: Shadow, a: Any, b: Any, alpha: float = 1) -> Codes:
    return _add(shadow, b, a, -alpha)


@rule("mul")
def _mul(shadow: Shadow, a: Any, b: Any) -> Codes:
    for value, factor in ((a, b), (b, a)):
        if isinstance(factor, complex):  # the exponent of qml.evolve
            parts = (codes_of(shadow, c) for c in (factor.real, factor.imag))
            return np.stack([multiplied(shadow, shadow.of(value), c) for c in parts], axis=-1)
    return multiplied(shadow, codes_of(shadow, a), codes_of(shadow, b))


@rule("addcmul")
def _addcmul(shadow: Shadow, a: Any, b: Any, c: Any, value: float = 1) -> Codes:
    product = multiplied(shadow, shadow.of(b), shadow.of(c), float(value))
    return combined(shadow, shadow.of(a), product)


def _binary(kind: str) -> Rule:
    def rule(shadow: Shadow, a: Any, b: Any, rounding_mode: str | None = None) -> Codes:
        if rounding_mode is not None:  # of a quotient
            raise UnknownError("it rounds")
        first, second = codes_of(shadow, a), codes_of(shadow, b)
        return paired(first, second, functools.partial(shadow.graph.binary, kind))

    return rule


for _name, _kind in (
    ("div", "quotient"),
    ("pow", "power"),
    ("atan2", "atan2"),
    ("maximum", "maximum"),
    ("minimum", "minimum"),
):
    RULES[_name] = _binary(_kind)


# -- of many numbers ------------------------------------------------------------------------------------------------


def reduced(
    codes: Codes, dim: Any, function: Callable[[list[int]], int], keepdim: bool = True
) -> Codes:
    """Apply a function of many nodes along dimensions; None: along all."""
    whole = np.atleast_1d(codes)
    axes = {d % whole.ndim for d in dims_of(dim) or range(whole.ndim)}
    kept = [k for k in range(whole.ndim) if k not in axes]
    moved = whole.transpose(*kept, *sorted(axes)).reshape(
        math.prod(whole.shape[k] for k in kept), -1
    )
    shape = [1 if k in axes else n for k, n in enumerate(codes.shape) if keepdim or k not in axes]
    return _rowwise(moved, function).reshape(shape)


def _rowwise(codes: Codes, function: Callable[[list[int]], int]) -> Codes:
    """(m, k) -> (m,), once for each distinct row of nodes."""
    nodes, rows = split(codes)
    known: dict[bytes, int] = {}
    result = np.empty(len(nodes), dtype=np.int64)
    for k, row in enumerate(nodes):
        key = row.tobytes()
        if key not in known:
            known[key] = function(row.tolist())
        result[k] = known[key]
    return (result << 32) | _row_of_each(rows)


def _row_of_each(rows: Codes) -> Codes:
    """(n, k) -> (n,): the one input of the batch that all elements of a vector belong to."""
    return joined_rows(list(rows.T)) if rows.shape[1] else np.zeros(len(rows), dtype=np.int64)


def dims_of(dim: Any) -> list[int]:
    """Return dimensions as a list; an empty one for all of them."""
    if isinstance(dim, bool):  # another form of the operation
        raise UnknownError("it names no dimension but a condition")
    return [dim] if isinstance(dim, int) else list(dim or ())


@reduction("sum")
def _total(graph: Graph, nodes: list[int]) -> int:
    return graph.linear(*((1.0, n) for n in nodes))


@reduction("mean")
def _mean(graph: Graph, nodes: list[int]) -> int:
    return graph.linear(*((1.0 / len(nodes), n) for n in nodes))


@reduction("prod")
def _product(graph: Graph, nodes: list[int]) -> int:
    return functools.reduce(graph.product, nodes) if nodes else graph.constant(1.0)


def root_of(graph: Graph, square: int) -> int:
    """The node of a square root whose derivative at zero is zero, as it is for norms and deviations in torch."""
    # The root of the larger of the sum and something tiny, which is taken off again where it was put in.
    floor = graph.binary("maximum", square, graph.constant(TINY))
    root, rest = math.sqrt(TINY), graph.binary("minimum", square, graph.constant(TINY))
    return graph.sum(-root, [(1.0, graph.unary("sqrt", floor), -1), (root / TINY, rest, -1)])


@rule("linalg_vector_norm")
def _norm(
    shadow: Shadow, a: torch.Tensor, order: float = 2, dim: Any = None, keepdim: bool = False
) -> Codes:
    if order != 2:
        raise UnknownError("it takes a norm other than the Euclidean one")
    graph = shadow.graph

    def norm(nodes: list[int]) -> int:
        if a.ndim == 0:
            return graph.unary("abs", nodes[0])
        return root_of(graph, graph.sum(0.0, [(1.0, n, n) for n in nodes]))

    return reduced(shadow.of(a), dim, norm, keepdim)


@rule("cumsum", "cumprod")
def _cumulated(shadow: Shadow, a: torch.Tensor, dim: int, *, name: str) -> Codes:
    codes = np.array(shadow.of(a))
    join = combined if name == "cumsum" else multiplied
    if a.ndim:
        along = np.moveaxis(codes, dim, 0)
        for k in range(1, len(along)):
            along[k] = join(shadow, along[k - 1], along[k])
    return codes


def largest_of(graph: Graph, nodes: list[int]) -> int:
    """The node of the largest number."""
    return functools.reduce(functools.partial(graph.binary, "maximum"), nodes)


@rule("_softmax")
def _softmax(shadow: Shadow, a: torch.Tensor, dim: int, half_to_float: bool = False) -> Codes:
    graph, codes = shadow.graph, shadow.of(a)
    # The largest is taken off, as torch does: exponentials of numbers beyond 700 are infinite.
    apart = combined(
        shadow, codes, reduced(codes, dim, lambda nodes: largest_of(graph, nodes)), 1.0, -1.0
    )
    powers = mapped(apart, functools.partial(graph.unary, "exp"))
    total = reduced(powers, dim, lambda nodes: _total(graph, nodes))
    return paired(powers, total, functools.partial(graph.binary, "quotient"))


# -- products of matrices -------------------------------------------------------------------------------------------


def _contracted(shadow: Shadow, a: Codes, b: Codes) -> Codes:
    """(n, k), (k, m) -> (n, m), each entry one node, once for each distinct pair of row and column."""
    graph = shadow.graph
    left, left_rows = split(a)
    right, right_rows = split(b)
    own = _row_of_each(left_rows)
    other = _row_of_each(right_rows.T)
    known: dict[tuple[bytes, bytes], int] = {}
    columns = [np.ascontiguousarray(column) for column in right.T]
    keys = [column.tobytes() for column in columns]
    values = [column.tolist() for column in columns]
    result = np.empty((len(left), len(columns)), dtype=np.int64)
    for i, row in enumerate(left):
        key, nodes = row.tobytes(), row.tolist()
        for j, column_key in enumerate(keys):
            if (key, column_key) not in known:
                terms: list[Term] = [(1.0, u, v) for u, v in zip(nodes, values[j], strict=True)]
                known[key, column_key] = graph.sum(0.0, terms)
            result[i, j] = known[key, column_key]
    return (result << 32) | joined_rows([own[:, None], other[None, :]])


@rule("mm", "mv", "dot", "vdot", "bmm")
def _matmul(shadow: Shadow, a: torch.Tensor, b: torch.Tensor) -> Codes:
    first, second = shadow.of(a), shadow.of(b)
    if first.ndim == 3:
        return np.stack([_contracted(shadow, x, y) for x, y in zip(first, second, strict=True)])
    columns = second if second.ndim == 2 else second[:, None]
    found = _contracted(shadow, np.atleast_2d(first), columns)
    return found.reshape(first.shape[:-1] + second.shape[1:])


@rule("addmm", "addmv", "baddbmm")
def _addmm(shadow: Shadow, base: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Codes:
    return combined(shadow, shadow.of(base), _matmul(shadow, a, b), float(beta), float(alpha))
