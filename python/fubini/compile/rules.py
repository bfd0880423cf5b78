"""What torch's operations do to scalar expressions: the closed list of operations that are understood.

A rule takes the arguments of an ATen operation and returns the codes of its result, see :mod:`fubini.compile.shadow`. An
operation without a rule is not understood, and the function that uses it runs in every call.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from fubini.compile.graph import UNARY, Graph, Term
from fubini.compile.shadow import Codes, Shadow, UnknownError, joined_rows, split

#: From the arguments of an operation to the codes of its result; None where nothing of the leaves is in it.
Rule = Callable[..., Codes | None]

_R = TypeVar("_R", bound=Rule)

TINY = 2.0**-1074  # the smallest number, whose root is exact

#: Rules by the name of the ATen operation without its overload.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[_R], _R]:
    """Put a rule on the list, by names of ATen operations."""

    def register(function: _R) -> _R:
        for name in names:
            RULES[name] = function
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
    if nodes.size and (nodes == nodes.reshape(-1)[0]).all():
        return (np.int64(function(int(nodes.reshape(-1)[0]))) << 32) | rows
    distinct, inverse = np.unique(nodes.reshape(-1), return_inverse=True)
    found = np.array([function(node) for node in distinct.tolist()], dtype=np.int64)
    result: Codes = (found[inverse].reshape(nodes.shape) << 32) | rows
    return result


def paired(a: Codes, b: Codes, function: Callable[[int, int], int]) -> Codes:
    """Apply a function of two nodes to every pair of elements, broadcast, once for each distinct pair."""
    first, second = np.broadcast_arrays(a, b)
    nodes, rows = split(first)
    others, other_rows = split(second)
    joined = joined_rows([rows, other_rows])
    pairs = (nodes << 32) | others
    if pairs.size and (pairs == pairs.reshape(-1)[0]).all():
        node = function(int(nodes.reshape(-1)[0]), int(others.reshape(-1)[0]))
        return (np.int64(node) << 32) | joined
    distinct, inverse = np.unique(pairs.reshape(-1), return_inverse=True)
    found = np.array([function(p >> 32, p & 0xFFFFFFFF) for p in distinct.tolist()], dtype=np.int64)
    result: Codes = (found[inverse].reshape(nodes.shape) << 32) | joined
    return result


def _scaled(shadow: Shadow, codes: Codes, factor: float) -> Codes:
    if factor == 1.0:
        return codes
    return mapped(codes, lambda u: shadow.graph.sum(0.0, [(factor, u, -1)]))


def _unary(kind: str) -> Rule:
    def rule(shadow: Shadow, a: torch.Tensor) -> Codes:
        return mapped(shadow.of(a), lambda u: shadow.graph.unary(kind, u))

    return rule


for _name in UNARY:
    RULES[_name] = _unary(_name)
for _alias, _name in (
    ("arcsin", "asin"), ("arccos", "acos"), ("arctan", "atan"), ("arcsinh", "asinh"), ("arccosh", "acosh"),
    ("arctanh", "atanh"), ("absolute", "abs"), ("special_erf", "erf"), ("special_erfc", "erfc"),
):  # fmt: skip
    RULES[_alias] = RULES[_name]


def combined(shadow: Shadow, a: Codes, b: Codes, c: float = 1.0, d: float = 1.0) -> Codes:
    """C a + d b, element by element."""
    graph = shadow.graph
    return paired(a, b, lambda u, v: graph.sum(0.0, [(c, u, -1), (d, v, -1)]))


def multiplied(shadow: Shadow, a: Codes, b: Codes, c: float = 1.0) -> Codes:
    """C a b, element by element."""
    return paired(a, b, lambda u, v: shadow.graph.sum(0.0, [(c, u, v)]))


@rule("add", "sub", "subtract")
def _add(shadow: Shadow, a: Any, b: Any, alpha: float = 1, *, name: str) -> Codes:
    factor = -float(alpha) if name.startswith("sub") else float(alpha)
    return combined(shadow, codes_of(shadow, a), codes_of(shadow, b), 1.0, factor)


@rule("rsub")
def _rsub(shadow: Shadow, a: Any, b: Any, alpha: float = 1) -> Codes:
    return _add(shadow, b, a, alpha, name="sub")


@rule("mul", "multiply")
def _mul(shadow: Shadow, a: Any, b: Any) -> Codes:
    for value, factor in ((a, b), (b, a)):
        if isinstance(factor, complex):  # the exponent of qml.evolve
            codes = shadow.of(value)
            parts = (_scaled(shadow, codes, c) for c in (factor.real, factor.imag))
            return np.stack(list(parts), axis=-1)
    return multiplied(shadow, codes_of(shadow, a), codes_of(shadow, b))


def _binary(kind: str) -> Rule:
    def rule(shadow: Shadow, a: Any, b: Any, rounding_mode: str | None = None) -> Codes:
        if rounding_mode is not None:  # of a quotient
            raise UnknownError("it rounds")
        graph = shadow.graph
        return paired(
            codes_of(shadow, a), codes_of(shadow, b), lambda u, v: graph.binary(kind, u, v)
        )

    return rule


for _names, _name in (
    ("div true_divide divide", "quotient"), ("pow", "power"), ("atan2 arctan2", "atan2"),
    ("maximum", "maximum"), ("minimum", "minimum"),
):  # fmt: skip
    RULES.update(dict.fromkeys(_names.split(), _binary(_name)))


@rule("neg", "negative")
def _neg(shadow: Shadow, a: torch.Tensor) -> Codes:
    return _scaled(shadow, shadow.of(a), -1.0)


@rule("square")
def _square(shadow: Shadow, a: torch.Tensor) -> Codes:
    return mapped(shadow.of(a), lambda u: shadow.graph.power(u, 2.0))


@rule("deg2rad", "rad2deg")
def _degrees(shadow: Shadow, a: torch.Tensor, *, name: str) -> Codes:
    return _scaled(shadow, shadow.of(a), math.pi / 180 if name == "deg2rad" else 180 / math.pi)


@rule("silu")
def _silu(shadow: Shadow, a: torch.Tensor) -> Codes:
    graph = shadow.graph
    return mapped(shadow.of(a), lambda u: graph.sum(0.0, [(1.0, u, graph.unary("sigmoid", u))]))


@rule("addcmul")
def _addcmul(
    shadow: Shadow, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, value: float = 1
) -> Codes:
    product = multiplied(shadow, shadow.of(b), shadow.of(c), float(value))
    return combined(shadow, shadow.of(a), product)


# -- sums of many ---------------------------------------------------------------------------------------------------


def reduced(
    codes: Codes, dims: Sequence[int] | None, function: Callable[[list[int]], int]
) -> Codes:
    """Apply a function of many nodes along dimensions, which come last and are kept with length 1."""
    axes = tuple(range(codes.ndim)) if not dims else tuple(d % max(codes.ndim, 1) for d in dims)
    kept = tuple(k for k in range(codes.ndim) if k not in axes)
    moved = codes.transpose(kept + axes).reshape(math.prod(codes.shape[k] for k in kept), -1)
    result = _rowwise(moved, function)
    return result.reshape([1 if k in axes else codes.shape[k] for k in range(codes.ndim)])


def _rowwise(codes: Codes, function: Callable[[list[int]], int]) -> Codes:
    """(m, k) -> (m,), once for each distinct row of nodes."""
    nodes, rows = split(codes)
    joined = _row_of_each(rows)
    known: dict[bytes, int] = {}
    result = np.empty(len(nodes), dtype=np.int64)
    for k, row in enumerate(nodes):
        key = row.tobytes()
        if key not in known:
            known[key] = function(row.tolist())
        result[k] = known[key]
    return (result << 32) | joined


def _row_of_each(rows: Codes) -> Codes:
    """(n, k) -> (n,): the one input of the batch that all elements of a vector belong to."""
    return joined_rows(list(rows.T)) if rows.shape[1] else np.zeros(len(rows), dtype=np.int64)


def squeezed(codes: Codes, dims: Sequence[int] | None, keepdim: bool) -> Codes:
    """Return the result of ``reduced`` without the dimensions, unless they are kept."""
    if keepdim:
        return codes
    if not dims:
        return codes.reshape(())
    axes = {d % max(codes.ndim, 1) for d in dims}
    return codes.reshape([n for k, n in enumerate(codes.shape) if k not in axes])


def dims_of(dim: Any) -> list[int] | None:
    """Return dimensions as a list; None for all of them."""
    return [dim] if isinstance(dim, int) else (list(dim) if dim is not None else None)


@rule("sum", "mean")
def _sum(
    shadow: Shadow,
    a: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
    *,
    name: str,
) -> Codes:
    codes, dims = shadow.of(a), dims_of(dim)
    count = a.numel() if not dims else math.prod(a.shape[d] for d in dims) if a.ndim else 1
    factor = 1.0 / max(count, 1) if name == "mean" else 1.0
    if a.ndim == 0:
        return _scaled(shadow, codes, factor)
    found = reduced(
        codes, dims, lambda nodes: shadow.graph.sum(0.0, [(factor, n, -1) for n in nodes])
    )
    return squeezed(found, dims, keepdim)


@rule("prod")
def _prod(
    shadow: Shadow, a: torch.Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Codes:
    graph = shadow.graph

    def product(nodes: list[int]) -> int:
        result = nodes[0] if nodes else graph.constant(1.0)
        for node in nodes[1:]:
            result = graph.sum(0.0, [(1.0, result, node)])
        return result

    codes, dims = shadow.of(a), dims_of(dim)
    if a.ndim == 0:
        return codes
    return squeezed(reduced(codes, dims, product), dims, keepdim)


def root_of(graph: Graph, square: int) -> int:
    """The node of a square root whose derivative at zero is zero, as it is for norms and deviations in torch."""
    # The root of the larger of the sum and something tiny, which is taken off again where it was put in.
    floor = graph.binary("maximum", square, graph.constant(TINY))
    root, rest = math.sqrt(TINY), graph.binary("minimum", square, graph.constant(TINY))
    return graph.sum(-root, [(1.0, graph.unary("sqrt", floor), -1), (root / TINY, rest, -1)])


@rule("linalg_vector_norm")
def _norm(
    shadow: Shadow,
    a: torch.Tensor,
    order: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Codes:
    if order != 2:
        raise UnknownError("it takes a norm other than the Euclidean one")
    graph = shadow.graph
    codes, dims = shadow.of(a), dims_of(dim)
    if a.ndim == 0:
        return mapped(codes, lambda u: graph.unary("abs", u))

    def norm(nodes: list[int]) -> int:
        # The derivative of a norm of zero is zero in torch, as it is of the largest of zero and something tiny.
        square = graph.sum(0.0, [(1.0, n, n) for n in nodes])
        return root_of(graph, square)

    found = reduced(codes, dims, norm)
    return squeezed(found, dims, keepdim)


@rule("cumsum", "cumprod")
def _cumulated(shadow: Shadow, a: torch.Tensor, dim: int, dtype: Any = None, *, name: str) -> Codes:
    codes = np.array(shadow.of(a))
    join = combined if name == "cumsum" else multiplied
    if a.ndim:
        along = np.moveaxis(codes, dim, 0)
        for k in range(1, len(along)):
            along[k] = join(shadow, along[k - 1], along[k])
    return codes


@rule("_softmax")
def _softmax(shadow: Shadow, a: torch.Tensor, dim: int, half_to_float: bool = False) -> Codes:
    graph = shadow.graph
    codes = shadow.of(a)
    # The largest is taken off, as torch does: exponentials of numbers beyond 700 are infinite.
    largest = reduced(
        codes,
        [dim],
        functools.partial(functools.reduce, functools.partial(graph.binary, "maximum")),
    )
    apart = combined(shadow, codes, largest, 1.0, -1.0)
    powers = mapped(apart, lambda u: graph.unary("exp", u))
    total = reduced(powers, [dim], lambda nodes: graph.sum(0.0, [(1.0, n, -1) for n in nodes]))
    return paired(powers, total, lambda u, v: graph.binary("quotient", u, v))


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


@rule("mm")
def _mm(shadow: Shadow, a: torch.Tensor, b: torch.Tensor) -> Codes:
    return _contracted(shadow, shadow.of(a), shadow.of(b))


@rule("mv")
def _mv(shadow: Shadow, a: torch.Tensor, b: torch.Tensor) -> Codes:
    return _contracted(shadow, shadow.of(a), shadow.of(b)[:, None])[:, 0]


@rule("dot", "vdot")
def _dot(shadow: Shadow, a: torch.Tensor, b: torch.Tensor) -> Codes:
    return _contracted(shadow, shadow.of(a)[None], shadow.of(b)[:, None]).reshape(())


@rule("bmm")
def _bmm(shadow: Shadow, a: torch.Tensor, b: torch.Tensor) -> Codes:
    first, second = shadow.of(a), shadow.of(b)
    return np.stack([_contracted(shadow, x, y) for x, y in zip(first, second, strict=True)])


@rule("addmm", "addmv", "baddbmm")
def _addmm(
    shadow: Shadow, base: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1, *, name: str
) -> Codes:
    product = {"addmm": _mm, "addmv": _mv, "baddbmm": _bmm}[name](shadow, a, b)
    return combined(shadow, shadow.of(base), product, float(beta), float(alpha))
