"""Steps of models that are read from torch's graph, with averages in place and without objects for each block.

The averages are tensors of the optimizer's state, where the other ways of taking a step find them and leave theirs; two
sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.fisher.graph_plan import GraphPlan, average
from fubini.fisher.plan import Sized
from fubini.nn.recorder import Pass
from fubini.optim.direct import add, flat_gradient
from fubini.optim.planned_step import Averages, Direction, PlannedStep

Tensor = torch.Tensor


class GraphStep(PlannedStep[GraphPlan]):
    """Takes steps of a model as long as its passes have one graph."""

    _by_graph = True

    def _made(self, moving: list[Tensor], seen: Pass) -> tuple[GraphPlan, Averages] | None:
        plan = self._source.graph_plan(moving, seen)
        return (
            None if plan is None else (plan, Averages(plan.shapes, plan.forms, self._history.decay))
        )

    def _direction(
        self, plan: GraphPlan, seen: Pass, sized: Sized, lam: float, rough: int | None
    ) -> Direction | None:
        gradient, averages = flat_gradient(plan.parameters), self._averages
        # Terms without a gradient may be left out of the loss.
        if gradient is None or (
            plan.reads_targets and not bool(seen.gradient.any(dim=-1).all())  # type: ignore[union-attr]
        ):
            return None
        blocks = plan.metric(seen, sized.share)
        if blocks is None:
            return None
        fresh = averages.arrays[averages.into]
        average(
            [to_numpy(t) for block in blocks for t in block.tensors().values()],
            averages.arrays[1 - averages.into],
            fresh,
            averages.decays,
        )
        factors = plan.factors(fresh, lam)
        if factors is None:
            return None
        found, square = factors.apply(gradient.numpy())
        if _core.first_not_finite([found]) >= 0:
            return None
        return (
            square,
            gradient,
            lambda rate: add(plan.parameters, torch.from_numpy(found).mul_(rate)),
        )
