"""What a forward pass was, read from torch's graph: models whose modules have a forward of their own.

Every operation between the layers that torch recorded, from the model's outputs back to its parameters, is looked up in a
closed list of those that keep data apart: entry n along the first dimension of a result depends on the
entries n of what it is made of. Then the cotangents of all columns of the loss's curvature go back through the values that
the pass itself has left, without another pass. A graph with anything else is not understood, and the model runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini.fisher.graph_functions import FUNCTIONS
from fubini.fisher.graph_shapes import SHAPES
from fubini.fisher.graph_values import NotKnown, Pull, Values
from fubini.nn.native_pass import compiled_call_of
from fubini.torch_private import node_number, node_shapes

Tensor = torch.Tensor
Real = npt.NDArray[np.float64]

#: What is known besides the layers.
RULES = FUNCTIONS | SHAPES
# More than this is no chain of a few layers, and takes longer to read than to run.
_LONGEST = 256


@dataclass(eq=False)
class Use:
    """A use of a layer with parameters: ``torch.nn.Linear``, or a compiled circuit.

    Attributes:
        kind: ``"linear"`` or ``"circuit"``.
        parameters: Weight and bias, or the weights of the circuit in order; none of them trained: none at all.
        inputs: (N, inputs), detached.
        matrix: Of a linear layer that is not trained: its weight, (outputs, inputs).
        form: The compiled circuit.
        arrays: The weights of a circuit that is not trained.
    """

    kind: str
    parameters: tuple[Tensor, ...]
    inputs: Tensor
    matrix: Tensor | None = None
    form: Any = None
    arrays: tuple[Tensor, ...] = ()


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


def read_graph(output: Tensor) -> Graph | None:
    """Return how a tensor came about, or None where that is not understood.

    It has to be read before a backward pass, which frees what it needs. The graph itself is not kept alive.

    Args:
        output: What a model returned, data first.
    """
    try:
        return _read(output)
    except (
        NotKnown,
        AttributeError,
        RuntimeError,
        TypeError,
    ):  # of another version of torch; changed in place since then
        return None


def _read(output: Tensor) -> Graph:
    if output.grad_fn is None or output.ndim not in (1, 2) or output.layout is not torch.strided:
        raise NotKnown
    nodes = _nodes(output.grad_fn)
    if nodes[0] is not output.grad_fn:
        raise NotKnown
    number = {node: k for k, node in enumerate(nodes)}
    shapes = [node_shapes(node) for node in nodes]
    data, values = output.shape[0], Values()
    if shapes[0][output.output_nr] != tuple(output.shape):
        raise NotKnown
    operations, key = [], []
    for k, node in enumerate(nodes):
        if any(not shape or shape[0] != data for shape in shapes[k]):
            raise NotKnown
        use, edges, said = _layer(node, values)
        sources: list[tuple[int, int] | None] = []
        for after, place in edges:
            if after is None:
                sources.append(None)
                continue
            source = number.get(after, -1)
            if (
                source <= k
            ):  # a parameter that no layer uses, or an order that torch does not promise
                raise NotKnown
            sources.append((source, place))
        pull = None
        if use is None:
            arguments = [None if s is None else shapes[s[0]][s[1]] for s in sources]
            pull, said = RULES[type(node).__name__](node, shapes[k], arguments, values)
        operations.append(Operation(sources, shapes[k], pull, use))
        key.append((type(node).__name__, said, tuple(sources), tuple([s[1:] for s in shapes[k]])))
    return Graph(operations, output.output_nr, (output.output_nr, *key), values)


def _nodes(root: Any) -> list[Any]:
    """The operations that a result depends on, in the order of a backward pass; without those of parameters alone."""
    found = {root: node_number(root)}
    waiting = [root]
    while waiting:
        for after, _ in waiting.pop().next_functions:
            if after is None or after in found:
                continue
            kind = type(after).__name__
            if kind in ("AccumulateGrad", "TBackward0"):  # looked at by the layers
                continue
            if (kind not in RULES and kind not in _LAYERS) or len(found) > _LONGEST:
                raise NotKnown
            found[after] = node_number(after)
            waiting.append(after)
    if type(root).__name__ not in RULES and type(root).__name__ not in _LAYERS:
        raise NotKnown
    return sorted(found, key=found.__getitem__, reverse=True)


def _layer(node: Any, values: Values) -> tuple[Use | None, Any, Any]:
    """The layer that a node is a use of, its arguments that may depend on parameters before it, and who it is."""
    kind = type(node).__name__
    if kind == "AddmmBackward0":
        bias, inputs, weight = node.next_functions
        if node._saved_alpha != 1 or node._saved_beta != 1:
            raise NotKnown
        use = _linear(node, "_saved_mat1", weight[0], bias[0], True, values)
    elif kind == "MmBackward0":
        inputs, weight = node.next_functions
        use = _linear(node, "_saved_self", weight[0], None, False, values)
    elif kind == "_CompiledExpvalBackward":
        inputs, *weights = node.next_functions
        use = _circuit(node, [edge[0] for edge in weights], values)
    else:
        return None, node.next_functions, None
    return use, [inputs], tuple([id(p) for p in use.parameters])


def _linear(node: Any, saved: str, weight: Any, bias: Any, has_bias: bool, values: Values) -> Use:
    if weight is None:
        if bias is not None:
            raise NotKnown
        return Use("linear", (), torch.empty(0), matrix=values.keep(node._saved_mat2).mT)
    if type(weight).__name__ != "TBackward0":
        raise NotKnown
    parameters = [_parameter(weight.next_functions[0][0])]
    if has_bias:
        parameters.append(_parameter(bias))
    if parameters[0].ndim != 2 or any(p.ndim != 1 for p in parameters[1:]):
        raise NotKnown
    return Use("linear", tuple(parameters), values.keep(getattr(node, saved)))


def _circuit(node: Any, weights: Sequence[Any], values: Values) -> Use:
    call = compiled_call_of(node)
    if call is None:
        raise NotKnown
    form, inputs, arrays = call
    if form.state_weighted or form.decisions:
        raise NotKnown
    x = values.keep(inputs)
    if all(w is None for w in weights):
        return Use("circuit", (), x, form=form, arrays=tuple(values.keep(w) for w in arrays))
    return Use("circuit", tuple([_parameter(w) for w in weights]), x, form=form)


def _parameter(node: Any) -> Tensor:
    """The parameter at the end of the graph."""
    if type(node).__name__ != "AccumulateGrad":
        raise NotKnown
    found: Tensor = node.variable
    return found


_LAYERS = frozenset({"AddmmBackward0", "MmBackward0", "_CompiledExpvalBackward"})
