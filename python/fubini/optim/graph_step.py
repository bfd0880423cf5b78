"""Steps of models that are read from torch's graph, with averages in place and without objects for each block.

The averages are tensors of the optimizer's state, where the other ways of taking a step find them and leave theirs; two
sets of them take turns, so that a step that cannot be taken has changed nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import distributed
from fubini.fisher.graph_plan import GraphPlan, Sized, average
from fubini.nn.recorder import Pass
from fubini.optim.checks import check_group
from fubini.optim.choices import PER_TERM
from fubini.optim.direct import Group, Taken, is_uniform
from fubini.optim.length import StepLength
from fubini.optim.metric_source import FisherSource
from fubini.torch_private import flattened, foreach_add_, unflattened

Tensor = torch.Tensor
_NUMBERS = ("lr", "lam", "momentum", "weight_decay", "maximize", "damping")
_PATIENCE = 64  # steps
# Entries of the optimizer's state, see ``MetricHistory``.
_PREFIX, _COUNT = "metric.", "metric_updates"


class GraphStep:
    """Takes steps of a model as long as its passes have one graph.

    Args:
        source: The metric.
        history: Of the metric in other steps; told to forget where this took up its average.
        options: The optimizer's, checked.
    """

    def __init__(
        self, source: FisherSource, history: Any, options: MutableMapping[str, Any]
    ) -> None:
        self._source, self._history = source, history
        self._decay = float(options["averaging"])
        self._by_length = bool(options.get("by_length"))
        self._in_units = bool(options.get("reasons"))
        self._plan: GraphPlan | None = None
        self._wait = self._patience = 1  # steps until the next look whether there is a plan
        self._numbers: list[tuple[Any, ...]] = []
        self._owned: list[Tensor] = []
        self._rest: list[Tensor] = []  # owned and not of the plan
        self._averages: _Averages | None = None

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
        x, plan = seen.args[0], self._plan
        owned = [p for group in groups for p in group["params"]]
        same = len(owned) == len(self._owned) and all(map(operator.is_, owned, self._owned))
        if plan is None or not same:
            plan = self._planned(owned, seen)
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
        blocks = plan.blocks(seen, sized.share)
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
            lambda: _blocks(plan, metric),
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

    def _planned(self, owned: list[Tensor], seen: Pass) -> GraphPlan | None:
        """A plan for these parameters, if it is time to look for one."""
        self._plan = self._averages = None
        self._wait -= 1
        if self._wait > 0:
            return None
        moving = [p for p in owned if p.grad is not None and p.numel()]
        plan = self._source.graph_plan(moving, seen) if moving else None
        if plan is None:
            self._given_up()
            return None
        known = {id(p) for p in plan.parameters}
        self._plan, self._owned, self._patience, self._wait = plan, owned, 1, 1
        self._rest = [p for p in owned if id(p) not in known]
        self._averages = _Averages(plan, self._decay)
        return plan

    def _given_up(self) -> None:
        """Look for another plan after some steps, ever more of them."""
        self._plan, self._wait = None, self._patience
        self._patience = min(2 * self._patience, _PATIENCE)


class _Averages:
    """The averaged matrices of a plan: two sets that take turns, one of which is in the optimizer's state."""

    def __init__(self, plan: GraphPlan, decay: float) -> None:
        self._decay = decay
        self.tensors = [[torch.zeros(s, dtype=torch.float64) for s in plan.shapes] for _ in "ab"]
        self.arrays = [[t.numpy() for t in one] for one in self.tensors]
        names = iter(range(len(plan.shapes)))
        # First parameter of every block, the entries of its state and their places among the matrices.
        self._places = [
            (form.parameters[0], [(_PREFIX + name, next(names)) for name in form.names])
            for form in plan.forms
        ]
        self.into, self.restored = 1, False  # the set that is written
        self.decays = [0.0] * len(plan.shapes)
        self._counts = [0] * len(self._places)

    def begin(self, state: MutableMapping[Tensor, Any]) -> bool:
        """Find the average so far; False where it is of another kind."""
        self.restored = False
        if self._decay == 0.0:
            return True
        present = self.tensors[1 - self.into]
        entries = [(state.get(p, {}), places) for p, places in self._places]
        if not all(
            entry.get(name) is present[k] for entry, places in entries for name, k in places
        ):
            if not self._restore(entries):
                return False
            self.restored = True
        for count, (_, places) in zip(self._counts, self._places, strict=True):
            fresh = (1.0 - self._decay) / (1.0 - self._decay ** (count + 1))
            for _, k in places:
                self.decays[k] = 1.0 - fresh if count else 0.0
        return True

    def _restore(self, entries: Sequence[tuple[Any, list[tuple[str, int]]]]) -> bool:
        """Copy the average from the state, where others left it, as far as there is one."""
        counts, found = [], []
        for entry, places in entries:
            names = {name for name in entry if name.startswith(_PREFIX)}
            counts.append(int(entry.get(_COUNT, 0)) if names else 0)
            if counts[-1]:
                if names != {name for name, _ in places}:
                    return False
                found += [(entry[name], self.tensors[1 - self.into][k]) for name, k in places]
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
            entry[_COUNT] = self._counts[block]
            for name, k in places:
                entry[name] = fresh[k]


def _blocks(plan: GraphPlan, tensors: Sequence[Tensor]) -> list[tuple[Any, bool]]:
    left = iter(tensors)
    return [(form.block(left), True) for form in plan.forms]
