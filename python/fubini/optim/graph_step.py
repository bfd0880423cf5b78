"""Steps of models that are read from torch's graph, with averages in place and without objects for each block.

The averages are tensors of the optimizer's state, where the other ways of taking a step find them and leave theirs; two
sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import distributed
from fubini.fisher.graph_plan import GraphPlan, average
from fubini.fisher.plan import Sized
from fubini.nn.recorder import Pass
from fubini.optim.choices import PER_TERM
from fubini.optim.direct import Group, Taken
from fubini.optim.length import StepLength
from fubini.optim.planned_step import Averages, PlannedStep
from fubini.torch_private import flattened, foreach_add_, unflattened

Tensor = torch.Tensor


class GraphStep(PlannedStep[GraphPlan]):
    """Takes steps of a model as long as its passes have one graph."""

    _averages: Averages | None = None

    def step(self, groups: Sequence[Group], state: MutableMapping[Tensor, Any]) -> Taken | None:
        """Take a step; None, with nothing changed, where it has to be taken in another way.

        Args:
            groups: Parameter groups.
            state: The optimizer's, by parameter.

        Returns:
            What became of it.
        """
        seen = self._source.read_pass()
        if seen is None or distributed.active() or not self._are_usual(groups):
            return None
        x, plan = seen.args[0], self._planned(groups, lambda moving: self._made(moving, seen))
        if plan is None:
            return None
        sized = None
        if x.dtype is plan.dtype and x.shape[1] == plan.width and plan.holds(seen):
            sized = plan.sized(len(x))
        if sized is None or any(p.grad is not None for p in self._rest):
            self._given_up()
            return None
        return self._taken(plan, sized, seen, groups, state)

    def _taken(
        self,
        plan: GraphPlan,
        sized: Sized,
        seen: Pass,
        groups: Sequence[Group],
        state: MutableMapping[Tensor, Any],
    ) -> Taken | None:
        first, averages = groups[0], self._averages
        if plan.reads_targets and (
            seen.gradient is None or not bool(seen.gradient.any(dim=-1).all())
        ):  # terms without a gradient may be left out of the loss
            return None
        gradients = [p.grad for p in plan.parameters if p.grad is not None]
        if averages is None or len(gradients) < len(plan.parameters):
            return None
        if not averages.begin(state):
            return None
        if averages.restored:
            self._history.forget()
        length = StepLength.of(first) if self._by_length else None
        units = 1.0
        if self._in_units:
            likelihood = self._source.likelihood
            units = likelihood.scale * (sized.size if self._source.sums else 1)
        lam = float(first["lam"])
        if first["damping"] == PER_TERM:
            lam *= (1.0 if length is None else length.damping) * units
        if lam == 0.0:  # what moves nothing is then an error
            return None
        blocks = plan.metric(seen, sized.share)
        if blocks is None:
            return None
        average(
            [to_numpy(t) for block in blocks for t in block.tensors().values()],
            averages.arrays[1 - averages.into],
            averages.arrays[averages.into],
            averages.decays,
        )
        factors = plan.factors(averages.arrays[averages.into], lam)
        if factors is None:
            return None
        gradient = flattened([g.to(torch.float64) for g in gradients]).detach()
        if len(gradients) == 1:
            gradient = gradient.clone()
        found, square = factors.apply(gradient.numpy())
        if not math.isfinite(square) or _core.first_not_finite([found]) >= 0:
            return None
        rate, after = -float(first["lr"]), length
        if length is not None:
            after = length.after(square / units)
            rate *= after.factor
        change = torch.from_numpy(found).mul_(-rate if first["maximize"] else rate)
        pieces = unflattened(change.to(plan.dtype), plan.parameters)
        foreach_add_(plan.parameters, pieces)
        metric = averages.tensors[averages.into]
        averages.keep(state)
        return Taken(
            lambda: [(block, True) for block in plan.blocks(metric)],
            lam,
            gradient,
            [dict(g) for g in groups],
            length,
            after,
            units,
        )

    def _made(self, moving: list[Tensor], seen: Pass) -> GraphPlan | None:
        self._averages = None
        plan = self._source.graph_plan(moving, seen)
        if plan is not None:
            blocks = [(form.parameters[0], form.names) for form in plan.forms]
            self._averages = Averages(plan.shapes, blocks, self._history.decay)
        return plan
