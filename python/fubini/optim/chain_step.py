"""Steps of small chains: metric, average, direction and length by one call of the kernel.

The usual step of ``QNGOptimizer(model, loss=...)`` on a chain of linear layers and circuits is some hundred operations on
small tensors, each of which takes longer than its numbers. A plan of the chain (``ChainPlan``) leaves those that see
that everything is as it was. The averages are tensors of the optimizer's state, where the other ways of taking a step
find them and leave theirs; two sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from fubini.arrays import to_numpy
from fubini.blocks import distributed
from fubini.fisher import chain
from fubini.fisher.chain_plan import ChainPlan
from fubini.fisher.plan import Sized
from fubini.nn.recorder import Pass
from fubini.optim.choices import PER_TERM
from fubini.optim.direct import Group, Taken
from fubini.optim.length import StepLength
from fubini.optim.metric_source import ROUGH
from fubini.optim.planned_step import Averages, PlannedStep

Tensor = torch.Tensor


class ChainStep(PlannedStep[ChainPlan]):
    """Takes steps of a model that is a chain, as long as it stays one."""

    _averages: _Averages | None = None

    def step(self, groups: Sequence[Group], state: MutableMapping[Tensor, Any]) -> Taken | None:
        """Take a step; None, with nothing changed, where it has to be taken in another way.

        Args:
            groups: Parameter groups.
            state: The optimizer's, by parameter.

        Returns:
            What became of it.
        """
        seen = self._source.only_pass()
        if seen is None or distributed.active() or not self._are_usual(groups):
            return None
        x = seen.args[0]
        plan = self._planned(groups, lambda moving: self._made(moving, x))
        if plan is None:
            return None
        if x.dtype is not plan.dtype or x.shape[1] != plan.width:
            self._given_up()
            return None
        sized = plan.sized(len(x))
        if sized is None:
            return None
        if any(p.grad is not None for p in self._rest) or not plan.holds(sized):
            self._given_up()
            return None
        return self._taken(plan, sized, seen, groups, state)

    def _taken(
        self,
        plan: ChainPlan,
        sized: Sized,
        seen: Pass,
        groups: Sequence[Group],
        state: MutableMapping[Tensor, Any],
    ) -> Taken | None:
        first = groups[0]
        gradients = _gradients(plan)
        by_outputs = None
        if plan.reads_targets:
            if seen.gradient is None:
                return None
            by_outputs = to_numpy(seen.gradient)
        averages = self._averages
        if averages is None:
            averages = self._averages = _Averages(plan, self._history.decay)
        if gradients is None or not averages.begin(state):
            return None
        if averages.restored:
            self._history.forget()
        length = StepLength.of(first) if self._by_length else None
        step, units = (
            int(first["steps"]),
            self._source.units_of(sized.size) if self._in_units else 1.0,
        )
        damping = 1.0 if length is None else length.damping
        lam = float(first["lam"])
        if first["damping"] == PER_TERM:
            lam *= damping * units
        if lam == 0.0:  # what moves nothing is then an error
            return None
        rough = sized.large and length is not None and damping >= ROUGH
        square = plan.kernel.direction(
            to_numpy(seen.args[0]),
            gradients,
            averages.into,
            averages.decays,
            lam,
            sized.share,
            self._source.signs(step) if rough else None,
            chain.SWEEPS,
            by_outputs,
            plan.passes(),
        )
        if not math.isfinite(square):
            return None
        rate = -float(first["lr"])
        after = length
        if length is not None:
            after = length.after(square / units)
            rate *= after.factor
        plan.kernel.move(-rate if first["maximize"] else rate)
        for p in plan.parameters:
            increment_version(p)
        metric, gradient = averages.tensors[averages.into], averages.gradients[averages.into]
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

    def _made(self, moving: list[Tensor], inputs: Tensor) -> ChainPlan | None:
        self._averages = None
        return self._source.chain_plan(moving, inputs)


class _Averages(Averages):
    """Averages that the kernel writes, and with them those of the gradients of all parameters, side by side."""

    def __init__(self, plan: ChainPlan, decay: float) -> None:
        blocks = [(form.parameters[0], form.names) for form in plan.forms]
        super().__init__(plan.kernel.matrices, blocks, decay)
        size = sum(p.numel() for p in plan.parameters)
        gradients = torch.zeros((2, size), dtype=torch.float64)
        self.gradients = gradients.unbind()
        self._change = torch.zeros((1, size), dtype=torch.float64)
        even, odd = self.arrays
        plan.kernel.hold(even, odd, gradients.numpy(), self._change.numpy())


def _gradients(plan: ChainPlan) -> list[Any] | None:
    """The gradients' memory; None where one is missing, or not like its parameter."""
    found = []
    for p in plan.parameters:
        g = p.grad
        if (
            g is None
            or g.dtype is not plan.dtype
            or g.layout is not torch.strided
            or not g.is_contiguous()
            or not g.is_cpu
            or g.is_neg()
        ):
            return None
        found.append(g.detach().numpy())
    return found
