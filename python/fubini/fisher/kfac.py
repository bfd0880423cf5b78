"""Which form the block of a layer has: exact, K-FAC or a diagonal; and which layers have one block together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fubini.fisher.accumulators import ExactUnit, KroneckerUnit, ScaledUnit, Unit
from fubini.fisher.called import CompiledCall
from fubini.fisher.calls import Call, KroneckerCall
from fubini.fisher.columns import Request, Trace
from fubini.fisher.quantum import QuantumCall
from fubini.fisher.repeat import Layout
from fubini.fisher.rules import BatchNormCall, NormCall
from fubini.options import Approx

Tensor = torch.Tensor

#: Layers with at most so many parameters have exact blocks.
EXACT_LIMIT = 128


def form_of(size: int, approx: Approx) -> Literal["dense", "diagonal", "kronecker"]:
    """Return the form of the block of a classical layer that has K-FAC factors.

    Args:
        size: Number of parameters that are trained.
        approx: As for ``fisher_blocks``, not None.
    """
    if approx == "diag":
        return "diagonal"
    return "dense" if size <= EXACT_LIMIT else "kronecker"


@dataclass(eq=False)
class Group:
    """Layers that share parameters, directly or through others; usually one layer.

    Attributes:
        modules: The layers.
        kinds: Their rules.
        parameters: Those that are wanted, by identity.
    """

    modules: list[Any]
    kinds: list[type[Call]]
    parameters: dict[int, Tensor]


def groups_of(layout: Layout, parameters: Sequence[Tensor], trace: Trace) -> list[Group]:
    """Return the layers with rules, and their parameters that are wanted and used in no other way.

    Args:
        layout: The model.
        parameters: Whose metric is wanted.
        trace: The passes.
    """
    outside = {id(p) for part in trace.parts for p in part.run.outside}
    wanted = {id(p) for p in parameters} - outside
    groups: list[Group] = []
    home: dict[int, Group] = {}
    # Calls of compiled QNodes are layers that are found on the way.
    called = {
        id(c.module): (c.name, c.module, CompiledCall)
        for c in trace.calls
        if isinstance(c, CompiledCall)
    }
    layers: list[tuple[str, Any, type[Call]]] = [*layout.layers, *called.values()]
    for name, module, kind in layers:
        mine = {id(p): p for p in kind.parameters_of(module).values() if id(p) in wanted}
        if not mine:
            continue
        kind.refuse(module, name or type(module).__name__)
        group, place = Group([module], [kind], mine), len(groups)
        for other in dict.fromkeys(home[i] for i in mine if i in home):
            place = min(place, groups.index(other))
            groups.remove(other)
            group = Group(
                other.modules + group.modules,
                other.kinds + group.kinds,
                other.parameters | group.parameters,
            )
        groups.insert(place, group)
        home.update(dict.fromkeys(group.parameters, group))
    return groups


def unit_of(group: Group, trace: Trace, request: Request) -> Unit:
    """Return what computes the block of layers that share parameters.

    Args:
        group: The layers.
        trace: The passes.
        request: What is asked for.

    Raises:
        TypeError: If there is no rule for layers of these kinds together.
    """
    modules, parameters, kinds = group.modules, list(group.parameters.values()), set(group.kinds)
    calls = [c for c in trace.calls if any(c.module is m for m in modules)]
    label = ", ".join(dict.fromkeys(c.name for c in calls)) or type(modules[0]).__name__
    if any(issubclass(k, QuantumCall) for k in kinds):
        if request.quantum == "gauss-newton":
            return ExactUnit(parameters, label, calls, request.approx == "diag")
        if not all(issubclass(k, QuantumCall) for k in kinds):
            raise TypeError(
                f"{label}: expected weights of quantum layers that classical layers do not share, for "
                "quantum='fubini-study'; use quantum='gauss-newton' (metric='fisher')"
            )
        return ScaledUnit(parameters, label, calls, request.approx, request.layers)
    size = sum(p.numel() for p in parameters)
    form = form_of(size, request.approx)
    if form == "diagonal" or BatchNormCall in kinds:
        return ExactUnit(parameters, label, calls, diagonal=True)
    if form == "dense":
        return ExactUnit(parameters, label, calls)
    first = group.kinds[0]
    if len(kinds) == 1 and issubclass(first, KroneckerCall):
        shared = {
            tuple(
                (n, id(p)) for n, p in first.parameters_of(m).items() if id(p) in group.parameters
            )
            for m in modules
        }
        if len(shared) == 1:
            return KroneckerUnit(parameters, label, calls, modules[0], first)
    if kinds == {NormCall} or request.fallback == "diagonal":
        return ExactUnit(parameters, label, calls, diagonal=True)
    raise TypeError(
        f"{label}: {size} parameters that layers of different kinds share have no rule for their Fisher block; use "
        "approx=None, approx='diag' or fallback='diagonal'"
    )
