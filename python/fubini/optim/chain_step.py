"""Steps of small chains: metric, average, direction and length by one call of the kernel.

The usual step of ``QNGOptimizer(model, loss=...)`` on a chain of linear layers and circuits is some hundred operations on
small tensors, each of which takes longer than its numbers. A plan of the chain (``ChainPlan``) leaves those that see
that everything is as it was. The averages are tensors of the optimizer's state, where the other ways of taking a step
find them and leave theirs; two sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import increment_version

from fubini.arrays import to_numpy
from fubini.fisher import chain
from fubini.fisher.chain_plan import ChainPlan
from fubini.fisher.plan import Sized
from fubini.nn.recorder import Pass
from fubini.optim.planned_step import Averages, Direction, PlannedStep

Tensor = torch.Tensor


class ChainStep(PlannedStep[ChainPlan]):
    """Takes steps of a model that is a chain, as long as it stays one."""

    def _made(self, moving: list[Tensor], seen: Pass) -> tuple[ChainPlan, Averages] | None:
        plan = self._source.chain_plan(moving, seen.args[0])
        return None if plan is None else (plan, _Averages(plan, self._history.decay))

    def _direction(
        self, plan: ChainPlan, seen: Pass, sized: Sized, lam: float, rough: int | None
    ) -> Direction | None:
        gradients, averages = _gradients(plan), self._averages
        if gradients is None:
            return None
        square = plan.kernel.direction(
            to_numpy(seen.args[0]),
            gradients,
            averages.into,
            averages.decays,
            lam,
            sized.share,
            self._source.signs(rough) if sized.large and rough is not None else None,
            chain.SWEEPS,
            to_numpy(seen.gradient) if plan.reads_targets else None,
            plan.passes(),
        )

        def move(rate: float) -> None:
            plan.kernel.move(rate)
            for p in plan.parameters:
                increment_version(p)

        return square, averages.gradients[averages.into], move


class _Averages(Averages):
    """Averages that the kernel writes, and with them those of the gradients of all parameters, side by side."""

    def __init__(self, plan: ChainPlan, decay: float) -> None:
        super().__init__(plan.kernel.matrices, plan.forms, decay)
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
