"""Scalar expressions: what a quantum function computes from weights and inputs, one node for each number.

A node is evaluated for every input of a batch at once, so the batch has no axis here. Equal nodes are the same node, and
constants are folded, so that an angle that is a weight as it stands is that weight's leaf.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fubini import _core

#: One term of a sum: coefficient, node, and a second factor or -1.
Term = tuple[float, int, int]

#: More nodes than this would take longer to evaluate here than as torch operations.
MAX_NODES = 200_000

#: Functions of one argument, with what they are for constants.
UNARY = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "asin": math.asin, "acos": math.acos, "atan": math.atan,
    "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh, "asinh": math.asinh, "acosh": math.acosh,
    "atanh": math.atanh, "exp": math.exp, "exp2": lambda v: 2.0**v, "expm1": math.expm1, "log": math.log,
    "log1p": math.log1p, "log2": math.log2, "log10": math.log10, "sqrt": math.sqrt,
    "rsqrt": lambda v: 1.0 / math.sqrt(v), "reciprocal": lambda v: 1.0 / v, "abs": abs, "erf": math.erf,
    "erfc": math.erfc, "relu": lambda v: max(v, 0.0), "sigmoid": lambda v: 1.0 / (1.0 + math.exp(-v)),
    "softplus": lambda v: v if v > 20.0 else math.log1p(math.exp(v)),
}  # fmt: skip
#: Likewise of two.
BINARY = {
    "quotient": np.divide, "power": np.power, "atan2": np.arctan2, "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip


class TooLargeError(Exception):
    """The expression has more nodes than are worth compiling."""


class Node(NamedTuple):
    """One number.

    Attributes:
        kind: ``"weight"``, ``"input"``, ``"sum"``, ``"power_constant"``, or a name in ``UNARY`` or ``BINARY``.
        arguments: Nodes; for a leaf the number of the weight or feature.
        constant: What a sum adds, or the exponent.
        terms: Of a sum.
    """

    kind: str
    arguments: tuple[int, ...] = ()
    constant: float = 0.0
    terms: tuple[Term, ...] = ()


class Graph:
    """Nodes in order: arguments come before what uses them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Node, int] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def _add(self, node: Node) -> int:
        index = self._known.get(node)
        if index is None:
            index = self._known[node] = len(self.nodes)
            self.nodes.append(node)
            if index >= MAX_NODES:
                raise TooLargeError
        return index

    # -- nodes ------------------------------------------------------------------------------------------------------

    def leaf(self, kind: str, number: int) -> int:
        """Return the leaf for a weight or a feature.

        Args:
            kind: ``"weight"`` or ``"input"``.
            number: Which of the flattened weights or of the features.
        """
        return self._add(Node(kind, (number,)))

    def constant(self, value: float) -> int:
        """Return the node of a constant."""
        # A sum of nothing; -0.0 and 0.0 are equal as keys but not for atan2 and division.
        if value == 0.0 and math.copysign(1.0, value) < 0.0:
            return self._add(Node("sum", (-1,), value))
        return self._add(Node("sum", (), value))

    def value(self, node: int) -> float | None:
        """Return what a constant node is, or None."""
        found = self.nodes[node]
        return found.constant if found.kind == "sum" and not found.terms else None

    def sum(self, constant: float, terms: Sequence[Term]) -> int:
        """Return constant + sum of c u or c u v; ``terms``: (c, u, v), v = -1 for a term with one factor."""
        kept: list[Term] = []
        for coefficient, u, v in terms:
            for number in (u, v):
                known = self.value(number) if number >= 0 else 1.0
                if known is not None:
                    coefficient *= known
            factors = [n for n in (u, v) if n >= 0 and self.value(n) is None]
            if not factors:
                constant += coefficient
            elif len(factors) == 2:
                kept.append((coefficient, min(factors), max(factors)))
            else:
                constant = self._append(kept, constant, coefficient, factors[0])
        if not kept:
            return self.constant(constant)
        if len(kept) == 1 and kept[0][2] < 0 and kept[0][0] == 1.0 and constant == 0.0:
            return kept[0][1]
        return self._add(Node("sum", (), constant, tuple(kept)))

    def _append(self, kept: list[Term], constant: float, coefficient: float, node: int) -> float:
        """Append c u to terms; a u that is a single term itself, a (b t + d), is written out. Returns the constant."""
        inner = self.nodes[node]
        if inner.kind == "sum" and len(inner.terms) == 1:
            a, t, s = inner.terms[0]
            kept.append((coefficient * a, t, s))
            return constant + coefficient * inner.constant
        kept.append((coefficient, node, -1))
        return constant

    def linear(self, *terms: tuple[float, int]) -> int:
        """Return the sum of c u; ``terms``: (c, u)."""
        return self.sum(0.0, [(c, u, -1) for c, u in terms])

    def product(self, u: int, v: int, c: float = 1.0) -> int:
        """Return c u v."""
        return self.sum(0.0, [(c, u, v)])

    def unary(self, kind: str, argument: int) -> int:
        """Return a function of one node, by its name in ``UNARY``."""
        known = self.value(argument)
        if known is not None:
            return self.constant(_folded(UNARY[kind], known))
        return self._add(Node(kind, (argument,)))

    def binary(self, kind: str, a: int, b: int) -> int:
        """Return a function of two nodes, by its name in ``BINARY``."""
        first, second = self.value(a), self.value(b)
        if kind == "quotient" and second is not None and second != 0.0:
            # u / c and u * (1 / c) differ in the last bit; that is below the kernel's own rounding.
            return self.linear((1.0 / second, a))
        if kind == "power" and second is not None:
            return self.power(a, second)
        if first is not None and second is not None:
            return self.constant(float(BINARY[kind](np.float64(first), np.float64(second))))
        return self._add(Node(kind, (a, b)))

    def power(self, argument: int, exponent: float) -> int:
        """Return a node to a constant power."""
        if exponent == 1.0:
            return argument
        if exponent == 2.0:
            return self.product(argument, argument)
        known = self.value(argument)
        if known is not None:
            with np.errstate(all="ignore"):
                return self.constant(float(np.float64(known) ** exponent))
        return self._add(Node("power_constant", (argument,), exponent))

    # -- what the nodes are -----------------------------------------------------------------------------------------

    def arguments(self, index: int) -> list[int]:
        """Return the nodes that a node is computed from."""
        node = self.nodes[index]
        if node.kind == "sum":
            return [n for _, u, v in node.terms for n in (u, v) if n >= 0]
        return [] if node.kind in ("weight", "input") else list(node.arguments)

    def reached(self, roots: Sequence[int]) -> list[int]:
        """Return the nodes that roots need, in order."""
        wanted: set[int] = set()
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if node not in wanted:
                wanted.add(node)
                waiting += self.arguments(node)
        return sorted(wanted)


def _folded(function: object, value: float) -> float:
    try:
        return float(function(value))  # type: ignore[operator]
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.nan  # what torch gives is looked at when the recording is checked


def is_affine(graph: Graph, roots: Sequence[int]) -> bool:
    """Say whether all roots are constants plus multiples of leaves."""
    nodes = (graph.nodes[index] for index in graph.reached(roots))
    return all(
        node.kind in ("weight", "input", "sum") and all(v < 0 for _, _, v in node.terms)
        for node in nodes
    )


def depends(graph: Graph, roots: Sequence[int], leaf: str) -> list[bool]:
    """Say of every root whether a weight, or an input, is in it; ``leaf``: ``"weight"`` or ``"input"``."""
    found: dict[int, bool] = {}
    for node in graph.reached(roots):  # arguments first
        kind = graph.nodes[node].kind
        found[node] = kind == leaf or any(found[n] for n in graph.arguments(node))
    return [found[root] for root in roots]


def expression(
    graph: Graph, roots: Sequence[int], angles: int, weights: int, inputs: int
) -> _core.Expression:
    """Return nodes as a program of the kernel.

    Args:
        graph: The graph.
        roots: The angles, then nothing or the real and imaginary parts of amplitudes.
        angles: Number of angles among the roots.
        weights: Number of weights P.
        inputs: Number of features d.
    """
    place: dict[int, int] = {-1: -1}
    nodes: list[tuple[str, int, int, float]] = []
    terms: list[tuple[float, int, int]] = []
    for index in graph.reached(roots):
        node = graph.nodes[index]
        place[index] = len(nodes)
        if node.kind == "sum":
            # -0.0 is what adds nothing: 0.0 would turn a sum of -0.0 into 0.0.
            constant = node.constant if node.constant != 0.0 or not node.terms else -0.0
            nodes.append(("sum", len(terms), len(node.terms), constant))
            terms += [(c, place[u], place[v]) for c, u, v in node.terms]
        elif node.kind in ("weight", "input"):
            nodes.append((node.kind, node.arguments[0], -1, 0.0))
        else:
            u, v = (*(place[n] for n in node.arguments), -1)[:2]
            nodes.append((node.kind, u, v, node.constant))
    return _core.Expression(weights, inputs, nodes, terms, [place[r] for r in roots], angles)
