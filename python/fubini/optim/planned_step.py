"""What steps by a plan have in common: when to look for a plan, how a step goes, and averages that are written in place."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from fubini.blocks import distributed
from fubini.fisher.plan import Form, Plan, Sized
from fubini.nn.recorder import Pass
from fubini.optim.checks import check_group
from fubini.optim.choices import PER_TERM
from fubini.optim.direct import Group, Taken, is_uniform, rate_of
from fubini.optim.length import StepLength
from fubini.optim.metric_history import COUNT, PREFIX, MetricHistory
from fubini.optim.metric_source import ROUGH, FisherSource

Tensor = torch.Tensor
P = TypeVar("P", bound=Plan)
#: A direction: its squared length in the damped metric, the gradient, and what moves the parameters by a multiple of it.
Direction = tuple[float, Tensor, Callable[[float], None]]
_NUMBERS = ("lr", "lam", "momentum", "weight_decay", "maximize", "damping")
_PATIENCE = 64  # steps
_EMPTY: dict[str, Any] = {}


class PlannedStep(ABC, Generic[P]):
    """Takes steps of a model by a plan, as long as the plan fits.

    Args:
        source: The metric.
        history: Of the metric in other steps; told to forget where this took up its average.
        options: The optimizer's, checked.
    """

    _by_graph = False  # whether plans are for passes whose graph was read

    def __init__(
        self, source: FisherSource, history: MetricHistory, options: MutableMapping[str, Any]
    ) -> None:
        self._source, self._history = source, history
        self._by_length = bool(options.get("by_length"))
        self._in_units = bool(options.get("reasons"))
        self._plan: P | None = None
        self._averages: Any = None
        self._wait = self._patience = 1  # steps until the next look whether there is a plan
        self._numbers: list[tuple[Any, ...]] = []
        self._owned: list[Tensor] = []
        self._rest: list[Tensor] = []  # owned and not of the plan

    def step(self, groups: Sequence[Group], state: MutableMapping[Tensor, Any]) -> Taken | None:
        """Take a step; None, with nothing changed, where it has to be taken in another way.

        Args:
            groups: Parameter groups.
            state: The optimizer's, by parameter.

        Returns:
            What became of it.
        """
        seen = self._source.only_pass()
        if seen is None or (self._by_graph and seen.graph is None):
            return None
        if distributed.active() or not self._are_usual(groups):
            return None
        plan = self._planned(groups, seen)
        if plan is None:
            return None
        x, first, averages = seen.args[0], groups[0], self._averages
        if x.dtype is not plan.dtype or x.shape[1] != plan.width:
            self._given_up()
            return None
        sized = plan.sized(len(x))
        if sized is None:
            return None
        if any(p.grad is not None for p in self._rest) or not plan.holds(seen, sized):
            self._given_up()
            return None
        if (plan.reads_targets and seen.gradient is None) or not averages.begin(state):
            return None
        if averages.restored:
            self._history.forget()
        length = StepLength.of(first) if self._by_length else None
        units = self._source.units_of(sized.size) if self._in_units else 1.0
        damping = 1.0 if length is None else length.damping
        lam = float(first["lam"])
        if first["damping"] == PER_TERM:
            lam *= damping * units
        if lam == 0.0:  # what moves nothing is then an error
            return None
        rough = int(first["steps"]) if length is not None and damping >= ROUGH else None
        found = self._direction(plan, seen, sized, lam, rough)
        if found is None or not math.isfinite(found[0]):
            return None
        square, gradient, move = found
        rate, after = rate_of(first, length, square, units)
        move(rate)
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

    @abstractmethod
    def _made(self, moving: list[Tensor], seen: Pass) -> tuple[P, Averages] | None:
        """A plan for the parameters that move, and its averages; None if there is none."""

    @abstractmethod
    def _direction(
        self, plan: P, seen: Pass, sized: Sized, lam: float, rough: int | None
    ) -> Direction | None:
        """The direction by a pass; None where it has to be found in another way.

        Args:
            plan: The plan.
            seen: The pass.
            sized: What holds for its number of inputs.
            lam: The damping.
            rough: The number of the step, if it is so long that more noise in the metric does not matter.
        """

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

    def _planned(self, groups: Sequence[Group], seen: Pass) -> P | None:
        """The plan of these groups' parameters; a new one, if it is time to look for one; None if there is none for now."""
        owned = [p for group in groups for p in group["params"]]
        if self._plan is not None and (
            len(owned) == len(self._owned) and all(map(operator.is_, owned, self._owned))
        ):
            return self._plan
        self._plan = None
        self._wait -= 1
        if self._wait > 0:
            return None
        moving = [p for p in owned if p.grad is not None and p.numel()]
        found = self._made(moving, seen) if moving else None
        if found is None:
            self._given_up()
            return None
        self._plan, self._averages = found
        known = {id(p) for p in self._plan.parameters}
        self._owned, self._patience, self._wait = owned, 1, 1
        self._rest = [p for p in owned if id(p) not in known]
        return self._plan

    def _given_up(self) -> None:
        """Look for another plan after some steps, ever more of them."""
        self._plan, self._wait = None, self._patience
        self._patience = min(2 * self._patience, _PATIENCE)


class Averages:
    """The averaged matrices of a plan: two sets that take turns, one of which is in the optimizer's state.

    A step that cannot be taken has so changed nothing.

    Args:
        shapes: Of the matrices.
        forms: Of the blocks, in the order of the shapes.
        decay: Of the average, see ``MetricHistory``; 0 for none.

    Attributes:
        tensors: Both sets.
        arrays: The same memory.
        into: Which set the present step writes.
        decays: By which every matrix of the other set enters it.
        restored: Whether ``begin`` took what others left in the state.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        forms: Iterable[Form],
        decay: float,
    ) -> None:
        self._decay = decay
        self.tensors = [[torch.zeros(s, dtype=torch.float64) for s in shapes] for _ in range(2)]
        self.arrays = [[t.numpy() for t in one] for one in self.tensors]
        numbers = iter(range(len(shapes)))
        # First parameter of every block, the entries of its state and their places among the matrices.
        self._places = [
            (form.parameters[0], [(PREFIX + name, next(numbers)) for name in form.names])
            for form in forms
        ]
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
