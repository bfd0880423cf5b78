"""The Fisher blocks of models that were read from torch's graph, from the values that the pass has left.

The first time that a graph is met, its blocks are compared with those of the general pass: whatever does not show in a
graph, such as hooks on its tensors, is found out then. Graphs that pass are taken from then on, the others never.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fubini.arrays import to_numpy
from fubini.blocks import Block
from fubini.fisher.columns import Request
from fubini.fisher.graph import Graph, Use, trained_uses
from fubini.fisher.quantum import QuantumCall
from fubini.fisher.rules import LinearCall, rule_for
from fubini.fisher.stages import CircuitStage, LinearStage, RowStage, Stage, output_factor
from fubini.nn.linearise import Linearised
from fubini.nn.surroundings import Seen, modules_of
from fubini.options import Real

Tensor = torch.Tensor

# Rounding: sums of some hundred products in another order; of models in single precision, the general pass rounds what
# lies between the layers.
_CLOSE = {torch.float64: 1e-10, torch.float32: 1e-3}
# Graphs that are remembered. A model that makes another one in every step would fill the memory.
_MANY = 1024


class Home(NamedTuple):
    """The layer that a parameter belongs to.

    Attributes:
        place: Among all modules.
        name: Of the layer, or of its class.
        module: The layer.
    """

    place: int
    name: str
    module: nn.Module


#: Of layers without parameters that are wanted.
_NOBODY = Home(0, "", nn.Identity())


class KnownGraphs:
    """Graphs whose blocks were compared with those of the general pass."""

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}
        self._homes: dict[Any, tuple[list[nn.Module], dict[int, Home] | None]] = {}

    def trusts(self, graph: Graph) -> bool:
        """Return whether a graph's blocks were those of the general pass.

        Args:
            graph: Of a pass.
        """
        return bool(self._known.get(graph.key))

    def homes(self, model: nn.Module, graph: Graph, known: set[int]) -> dict[int, Home] | None:
        """Return the layers of a graph's parameters by the parameter's identity; None where several layers have one.

        Args:
            model: The model.
            graph: Of a pass.
            known: Identities of the graph's parameters, which are in its key.
        """
        modules = modules_of(model)
        before, found = self._homes.get(graph.key, (None, None))
        if before != modules:
            found = _homes(model, known)
            self._homes[graph.key] = modules, found
        return found

    def blocks(
        self,
        model: nn.Module,
        seen: Sequence[Seen],
        parameters: Sequence[Tensor],
        request: Request,
        general: Callable[[Request], list[Block]],
    ) -> list[Block]:
        """Return the Fisher blocks.

        Args:
            model: The model.
            seen: The passes.
            parameters: The parameters whose metric is wanted, at least one.
            request: What is asked for, checked.
            general: Returns what is asked for by another way.
        """
        graph: Graph | None = seen[0].graph
        if graph is None or self._known.get(graph.key) is False:
            return general(request)
        found = graph_blocks(model, seen, parameters, request, self)
        if found is None:
            return general(request)
        if self._known.get(graph.key):
            return found
        expected = general(replace(request, signs=None))
        if len(self._known) >= _MANY:
            self._known.clear()
            self._homes.clear()
        self._known[graph.key] = _is_close(found, expected)
        return expected


def graph_blocks(
    model: nn.Module,
    seen: Sequence[Seen],
    parameters: Sequence[Tensor],
    request: Request,
    graphs: KnownGraphs,
) -> list[Block] | None:
    """Return the Fisher blocks by the graph of the one pass, or None where they need the general pass.

    Args:
        model: As for ``KnownGraphs.blocks``.
        seen: Likewise.
        parameters: Likewise.
        request: Likewise.
        graphs: Remembers the layers.

    Returns:
        The blocks, in the order of the layers in the model.

    Raises:
        NumericalError: If an output of the model is not finite.
        ValueError: If outputs or targets do not fit the likelihood.
    """
    one, f = seen[0], seen[0].output
    graph: Graph | None = one.graph
    # Without an output to be met again, the weights have changed since the pass.
    if graph is None or f is None or len(seen) > 1 or request.approx is None:
        return None
    if request.samples is not None or not graph.is_intact:
        return None
    uses = trained_uses(graph.operations)
    trained, wanted = [p for use in uses for p in use.parameters], {id(p) for p in parameters}
    known = {id(p) for p in trained}
    if len(known) < len(trained) or len(wanted) < len(parameters) or not wanted <= known:
        return None
    homes = graphs.homes(model, graph, known)
    if homes is None or not all(_is_own(use, homes) for use in uses):
        return None
    factor = output_factor(f, one.targets, request)
    if factor is None:
        return None
    cotangent = factor if f.ndim > 1 else factor[:, :, 0]
    return pulled_back(graph, homes, wanted, request, cotangent)


def _homes(model: nn.Module, known: set[int]) -> dict[int, Home] | None:
    """What ``KnownGraphs.homes`` returns."""
    found: dict[int, Home] = {}
    for place, (name, module) in enumerate(model.named_modules()):
        for p in module._parameters.values():
            if p is not None and id(p) in known:
                if id(p) in found:
                    return None
                found[id(p)] = Home(place, name or type(module).__name__, module)
    return found


def _is_own(use: Use, homes: dict[int, Home]) -> bool:
    """Whether a use is what the layer that has the parameters does with them."""
    home = homes.get(id(use.parameters[0]))
    kind = None if home is None else rule_for(home.module)
    if home is None or kind is None:
        return False
    if kind is not LinearCall if use.form is None else not issubclass(kind, QuantumCall):
        return False
    return _are_same(list(kind.parameters_of(home.module).values()), use.parameters)


def _are_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(operator.is_, found, expected))


def pulled_back(
    graph: Graph, homes: dict[int, Home], wanted: set[int], request: Request, factor: Real
) -> list[Block] | None:
    """Carry the columns of the curvature of all outputs back through a graph.

    Args:
        graph: Of a pass.
        homes: The layers of its parameters.
        wanted: Identities of the parameters whose metric is wanted.
        request: What is asked for.
        factor: Of the curvature by the outputs, (N, K, ...).

    Returns:
        The blocks in the order of the layers; None where some parameters of a layer are wanted and others not.
    """
    found: list[tuple[int, Block]] = []
    waiting: list[list[Real | None]] = [[None] * len(o.shapes) for o in graph.operations]
    waiting[0][graph.place] = factor
    for k, operation in enumerate(graph.operations):
        g, waiting[k] = waiting[k], []
        parts: Sequence[Real | None]
        if operation.use is None:
            assert operation.pull is not None
            parts = operation.pull(g)
        else:
            use, before = operation.use, operation.sources[0] is not None
            mine = [id(p) in wanted for p in use.parameters]
            if any(mine) and not all(mine):
                return None
            assert g[0] is not None
            columns = np.ascontiguousarray(g[0])
            home = homes[id(use.parameters[0])] if any(mine) else _NOBODY
            stage = _stage(use, home, columns, before, request)
            if any(mine):
                found.append((home.place, stage.block(columns, request)))
            parts = [stage.pull(columns) if before else None]
        for source, part in zip(operation.sources, parts, strict=True):
            if source is not None and part is not None:
                number, place = source
                there = waiting[number][place]
                waiting[number][place] = part if there is None else there + part
    return [block for _, block in sorted(found, key=lambda one: one[0])]


def _stage(use: Use, home: Home, factor: Real, before: bool, request: Request) -> Stage:
    """The layer at its inputs, with its derivatives by them if there is something before it."""
    parameters = () if home is _NOBODY else use.parameters
    inputs, weights = to_numpy(use.inputs), [to_numpy(w) for w in use.weights]
    if use.form is None:
        return LinearStage(home.name, parameters, inputs, weights[0])
    scaled = parameters and request.quantum == "fubini-study"
    if factor.shape[1] == 1 and not scaled:  # one sweep along it
        _, passed = use.form.forward(weights, inputs, True)
        return RowStage(home.name, parameters, use.form, passed)
    values, by_weights, by_inputs = use.form.linearise(weights, inputs, before)
    linear = Linearised(values, by_weights, by_inputs, 1)
    return CircuitStage(home.name, parameters, home.module, use.inputs, linear)


def _is_close(found: Sequence[Block], expected: Sequence[Block]) -> bool:
    """Whether two metrics are the same up to rounding."""
    if len(found) != len(expected):
        return False
    for block, other in zip(found, expected, strict=True):
        mine, theirs = block.tensors(), other.tensors()
        if (
            type(block) is not type(other)
            or mine.keys() != theirs.keys()
            or not _are_same(block.parameters, other.parameters)
        ):
            return False
        close = _CLOSE.get(block.parameters[0].dtype, 0.0)
        for name, values in mine.items():
            scale = float(theirs[name].abs().max())
            if not bool(((values - theirs[name]).abs() <= close * scale).all()):
                return False
    return True
