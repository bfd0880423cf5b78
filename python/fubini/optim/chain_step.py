"""Steps of small chains: metric, average, direction and length by one call of the kernel.

The usual step of ``QNGOptimizer(model, loss=...)`` on a chain of linear layers and circuits is some hundred operations on
small tensors, each of which takes longer than its numbers. A plan of the chain (``ChainPlan``) leaves those that see
that everything is as it was. The averages are tensors of the optimizer's state, where the other ways of taking a step
find them and leave theirs; two sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from fubini.arrays import to_numpy
from fubini.blocks import distributed
from fubini.fisher import chain
from fubini.fisher.chain_plan import ChainPlan, Sized
from fubini.nn.recorder import Pass
from fubini.optim.checks import check_group
from fubini.optim.choices import PER_TERM
from fubini.optim.direct import Group, Taken, is_uniform
from fubini.optim.length import StepLength
from fubini.optim.metric_history import COUNT, PREFIX, MetricHistory
from fubini.optim.metric_source import ROUGH, FisherSource

Tensor = torch.Tensor
_NUMBERS = ("lr", "lam", "momentum", "weight_decay", "maximize", "damping")
_PATIENCE = 64  # steps
_EMPTY: dict[str, Any] = {}


class ChainStep:
    """Takes steps of a model that is a chain, as long as it stays one.

    Args:
        source: The metric.
        history: Of the metric in other steps.
        options: The optimizer's, checked.
    """

    def __init__(
        self, source: FisherSource, history: MetricHistory, options: MutableMapping[str, Any]
    ) -> None:
        self._source, self._history = source, history
        self._by_length, self._in_units = (
            bool(options.get("by_length")),
            bool(options.get("reasons")),
        )
        self._plan: ChainPlan | None = None
        self._wait = self._patience = 1  # steps until the next look whether there is a plan
        self._numbers: list[tuple[Any, ...]] = []
        self._owned: list[Tensor] = []
        self._rest: list[Tensor] = []  # owned and not of the plan
        self._averages: Averages | None = None

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
        plan = self._plan
        owned = [p for group in groups for p in group["params"]]
        if plan is None or not (
            len(owned) == len(self._owned) and all(map(operator.is_, owned, self._owned))
        ):
            plan = self._planned(owned, x)
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
        gradients = _addresses(plan)
        by_outputs = None
        if plan.reads_targets:
            if seen.gradient is None:
                return None
            by_outputs = to_numpy(seen.gradient)
        averages = self._averages
        if averages is None:
            averages = self._averages = Averages(plan, self._history.decay)
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

    def _are_usual(self, groups: Sequence[Group]) -> bool:
        """Whether the groups have good numbers, the same for all; others are refused, or taken care of, elsewhere."""
        numbers = [tuple([group[name] for name in _NUMBERS]) for group in groups]
        if numbers == self._numbers:
            return True
        for group in groups:
            check_group(group)
        if not is_uniform(groups):
            return False
        self._numbers = numbers
        return True

    def _planned(self, owned: list[Tensor], inputs: Tensor) -> ChainPlan | None:
        """A plan for these parameters, if it is time to look for one."""
        self._plan = None
        self._wait -= 1
        if self._wait > 0:
            return None
        moving = [p for p in owned if p.grad is not None and p.numel()]
        self._averages = None
        plan = self._source.chain_plan(moving, inputs) if moving else None
        if plan is None:
            self._given_up()
            return None
        known = {id(p) for p in plan.parameters}
        self._plan, self._owned, self._patience, self._wait = plan, owned, 1, 1
        self._rest = [p for p in owned if id(p) not in known]
        return plan

    def _given_up(self) -> None:
        """Look for another plan after some steps, ever more of them."""
        self._plan, self._wait = None, self._patience
        self._patience = min(2 * self._patience, _PATIENCE)


class Averages:
    """The averaged matrices of a plan: two sets that take turns, one of which is in the optimizer's state.

    Args:
        plan: The plan.
        decay: Of the average, see ``MetricHistory``; 0 for none.

    Attributes:
        tensors: Both sets.
        gradients: Of all parameters side by side, for both sets.
        into: Which set the present step writes.
        decays: By which every matrix of the other set enters it.
        restored: Whether ``begin`` took what others left in the state.
    """

    def __init__(self, plan: ChainPlan, decay: float) -> None:
        self._decay = decay
        shapes = plan.kernel.matrices
        self.tensors = [[torch.zeros(s, dtype=torch.float64) for s in shapes] for _ in range(2)]
        names = iter(range(len(shapes)))
        # First parameter of every block, the entries of its state and their places among the matrices.
        self._places = [
            (kept.parameters[0], [(PREFIX + name, next(names)) for name in kept.names])
            for kept in plan.kept
        ]
        size = sum(p.numel() for p in plan.parameters)
        gradients = torch.zeros((2, size), dtype=torch.float64)
        self.gradients = gradients.unbind()
        self._change = torch.zeros((1, size), dtype=torch.float64)
        even, odd = [[t.numpy() for t in one] for one in self.tensors]
        plan.kernel.hold(even, odd, gradients.numpy(), self._change.numpy())
        self.into, self.restored = 1, False
        self.decays = [0.0] * len(shapes)
        self._counts = [0] * len(self._places)

    def begin(self, state: MutableMapping[Tensor, Any]) -> bool:
        """Find the average so far.

        Args:
            state: The optimizer's, by parameter.

        Returns:
            Whether it is of this kind; if not, nothing has changed.
        """
        self.restored = False
        if self._decay == 0.0:
            return True
        present = self.tensors[1 - self.into]
        for p, places in self._places:
            entry = state.get(p, _EMPTY)
            for name, k in places:
                if entry.get(name) is not present[k]:
                    self.restored = True
        if self.restored and not self._restore(state):
            return False
        for count, (_, places) in zip(self._counts, self._places, strict=True):
            fresh = (1.0 - self._decay) / (1.0 - self._decay ** (count + 1))
            for _, k in places:
                self.decays[k] = 1.0 - fresh if count else 0.0
        return True

    def _restore(self, state: MutableMapping[Tensor, Any]) -> bool:
        """Copy the average from the state, where others left it, as far as there is one."""
        present, counts, found = self.tensors[1 - self.into], [], []
        for p, places in self._places:
            entry = state.get(p, _EMPTY)
            names = {name for name in entry if name.startswith(PREFIX)}
            counts.append(int(entry.get(COUNT, 0)) if names else 0)
            if counts[-1]:
                if names != {name for name, _ in places}:
                    return False
                found += [(entry[name], present[k]) for name, k in places]
        if any(t.shape != mine.shape or t.dtype is not torch.float64 for t, mine in found):
            return False
        self._counts = counts
        for t, mine in found:
            mine.copy_(t)
        return True

    def keep(self, state: MutableMapping[Tensor, Any]) -> None:
        """The step was taken: leave the average in the state."""
        fresh = self.tensors[self.into]
        self.into = 1 - self.into
        if self._decay == 0.0:
            return
        for block, (p, places) in enumerate(self._places):
            self._counts[block] += 1
            entry = state[p]
            entry[COUNT] = self._counts[block]
            for name, k in places:
                entry[name] = fresh[k]


def _addresses(plan: ChainPlan) -> list[int] | None:
    """Where the gradients are; None where one is missing, or not like its parameter."""
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
        found.append(g.data_ptr())
    return found
