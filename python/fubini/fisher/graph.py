"""What a forward pass was, read from torch's graph: models whose modules have a forward of their own.

Every operation between the layers that torch recorded, from the model's outputs back to its parameters, is looked up in a
closed list of those that keep data apart: entry n along the first dimension of a result depends on the
entries n of what it is made of. Then the cotangents of all columns of the loss's curvature go back through the values that
the pass itself has left, without another pass. A graph with anything else is not understood, and the model runs again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fubini.fisher.graph_functions import FUNCTIONS
from fubini.fisher.graph_shapes import SHAPES
from fubini.fisher.graph_values import NotKnown, Pull, Values
from fubini.fisher.stages import is_small
from fubini.nn.native_pass import compiled_call_of
from fubini.torch_private import node_number, node_shapes

Tensor = torch.Tensor

#: What is known besides the layers.
RULES = FUNCTIONS | SHAPES
# More than this is no chain of a few layers, and takes longer to read than to run.
_LONGEST = 256


@dataclass(eq=False)
class Use:
    """A use of a layer with parameters: ``torch.nn.Linear``, or a compiled circuit.

    Attributes:
        parameters: Weight and bias, or the weights of the circuit in order; none of them trained: none at all.
        inputs: (N, inputs), detached.
        weights: What it computes with: the weight, (outputs, inputs), or the weights of the circuit.
        form: The compiled circuit; None for a linear layer.
    """

    parameters: tuple[Tensor, ...]
    inputs: Tensor
    weights: tuple[Tensor, ...]
    form: Any = None


@dataclass(eq=False)
class Operation:
    """An operation of the graph.

    Attributes:
        sources: For each argument the number of the operation that it comes from, and of that one's results; None: it
            depends on no parameter.
        shapes: Of the results.
        pull: From cotangents of the results (N, K, ...) to those of the arguments; None for a layer.
        use: The layer, if it is one.
    """

    sources: list[tuple[int, int] | None]
    shapes: list[tuple[int, ...]]
    pull: Pull | None
    use: Use | None


@dataclass(eq=False)
class Graph:
    """A forward pass.

    Attributes:
        operations: From the outputs back.
        place: Which of the first operation's results is the output.
        key: The same for passes of the same operations on tensors of the same shapes, but for the number of data.
        values: What is kept of the pass.
    """

    operations: list[Operation]
    place: int
    key: tuple[Any, ...]
    values: Values

    @property
    def is_intact(self) -> bool:
        """Whether no value has been changed in place since the pass."""
        return self.values.unchanged()


def trained_uses(operations: Sequence[Operation]) -> list[Use]:
    """Return the layers among operations whose parameters are in the graph.

    Args:
        operations: Of a graph.
    """
    return [o.use for o in operations if o.use is not None and o.use.parameters]


def is_small_graph(uses: Sequence[Use], data: int) -> bool:
    """Return whether layers are small enough for a graph to be worth its reading.

    Args:
        uses: The layers.
        data: N.
    """
    return is_small([(use.form is None, use.parameters) for use in uses], data)


def read_graph(output: Tensor) -> Graph | None:
    """Return how a tensor came about, or None where that is not understood.

    It has to be read before a backward pass, which frees what it needs. The graph itself is not kept alive.

    Args:
        output: What a model returned, data first.
    """
    try:
        return _read(output)
    except (NotKnown, AttributeError, RuntimeError, TypeError):
        return None  # also of another version of torch, or changed in place since then


def _read(output: Tensor) -> Graph:
    root, place = output.grad_fn, output.output_nr
    if root is None or output.ndim not in (1, 2) or output.layout is not torch.strided:
        raise NotKnown
    nodes = _nodes(root)
    if nodes[0][1] is not root:
        raise NotKnown
    number = {one[1]: k for k, one in enumerate(nodes)}
    shapes = [node_shapes(one[1]) for one in nodes]
    data, values = output.shape[0], Values()
    if shapes[0][place] != tuple(output.shape):
        raise NotKnown
    operations: list[Operation] = []
    key: list[Any] = [place]
    for k, (_, node, kind, after) in enumerate(nodes):
        mine = shapes[k]
        layer = _LAYERS.get(kind)
        use, edges = (None, after) if layer is None else layer(node, after, values)
        sources: list[tuple[int, int] | None] = []
        arguments: list[tuple[int, ...] | None] = []
        for edge in edges:
            if edge[0] is None:
                sources.append(None)
                arguments.append(None)
                continue
            source = number.get(edge[0], -1)
            # A parameter that no layer uses, or an order that torch does not promise.
            if source <= k:
                raise NotKnown
            sources.append((source, edge[1]))
            arguments.append(shapes[source][edge[1]])
        pull = None
        if use is None:
            pull, said = RULES[kind](node, mine, arguments, values)
        else:
            said = tuple([id(p) for p in use.parameters])
        for shape in mine:
            if not shape or shape[0] != data:
                raise NotKnown
        operations.append(Operation(sources, mine, pull, use))
        key += kind, said, tuple(sources), tuple([shape[1:] for shape in mine])
    uses = trained_uses(operations)
    if not is_small_graph(uses, data):  # activations are not to be kept in memory for nothing
        raise NotKnown
    return Graph(operations, place, tuple(key), values)


def _nodes(root: Any) -> list[tuple[int, Any, str, Any]]:
    """Number, node, class and arguments of what a result depends on, in the order of a backward pass."""
    found: list[tuple[int, Any, str, Any]] = []
    waiting, met = [root], {root}
    while waiting:
        node = waiting.pop()
        kind = type(node).__name__
        if (kind not in RULES and kind not in _LAYERS) or len(found) > _LONGEST:
            raise NotKnown
        after = node.next_functions
        found.append((node_number(node), node, kind, after))
        for one, _ in after:
            if one is not None and one not in met:
                met.add(one)
                if type(one).__name__ not in _ENDS:
                    waiting.append(one)
    found.sort(key=_FIRST, reverse=True)
    return found


def _addmm(node: Any, after: Any, values: Values) -> tuple[Use, Any]:
    bias, inputs, weight = after
    if node._saved_alpha != 1 or node._saved_beta != 1:
        raise NotKnown
    return _linear(node, "_saved_mat1", weight[0], bias[0], True, values), (inputs,)


def _mm(node: Any, after: Any, values: Values) -> tuple[Use, Any]:
    inputs, weight = after
    return _linear(node, "_saved_self", weight[0], None, False, values), (inputs,)


def _linear(node: Any, saved: str, weight: Any, bias: Any, has_bias: bool, values: Values) -> Use:
    if weight is None:
        if bias is not None:
            raise NotKnown
        return Use((), torch.empty(0), (values.keep(node._saved_mat2).mT,))
    if type(weight).__name__ != "TBackward0":
        raise NotKnown
    parameters = [_parameter(weight.next_functions[0][0])]
    if has_bias:
        parameters.append(_parameter(bias))
    if parameters[0].ndim != 2 or any(p.ndim != 1 for p in parameters[1:]):
        raise NotKnown
    return Use(tuple(parameters), values.keep(getattr(node, saved)), tuple(parameters))


def _circuit(node: Any, after: Any, values: Values) -> tuple[Use, Any]:
    call = compiled_call_of(node)
    if call is None:
        raise NotKnown
    form, inputs, arrays = call
    if form.state_weighted or form.decisions:
        raise NotKnown
    x, weights = values.keep(inputs), [edge[0] for edge in after[1:]]
    if all(w is None for w in weights):
        return Use((), x, tuple([values.keep(w) for w in arrays]), form), after[:1]
    parameters = tuple([_parameter(w) for w in weights])
    return Use(parameters, x, parameters, form), after[:1]


def _parameter(node: Any) -> Tensor:
    """The parameter at the end of the graph."""
    if type(node).__name__ != "AccumulateGrad":
        raise NotKnown
    found: Tensor = node.variable
    return found


_LAYERS: dict[str, Callable[[Any, Any, Values], tuple[Use, Any]]] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "_CompiledExpvalBackward": _circuit,
}
# What layers look at themselves.
_ENDS = frozenset({"AccumulateGrad", "TBackward0"})
_FIRST = operator.itemgetter(0)
