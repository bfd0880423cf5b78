"""What steps by a plan have in common: when to look for a plan, and averages that are written in place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from fubini.fisher.plan import Plan
from fubini.optim.checks import check_group
from fubini.optim.direct import Group, is_uniform
from fubini.optim.metric_history import COUNT, PREFIX, MetricHistory
from fubini.optim.metric_source import FisherSource

Tensor = torch.Tensor
_NUMBERS = ("lr", "lam", "momentum", "weight_decay", "maximize", "damping")
_PATIENCE = 64  # steps
_EMPTY: dict[str, Any] = {}


P = TypeVar("P", bound=Plan)


class PlannedStep(Generic[P]):
    """Takes steps of a model by a plan, as long as the plan fits.

    Args:
        source: The metric.
        history: Of the metric in other steps; told to forget where this took up its average.
        options: The optimizer's, checked.
    """

    def __init__(
        self, source: FisherSource, history: MetricHistory, options: MutableMapping[str, Any]
    ) -> None:
        self._source, self._history = source, history
        self._by_length = bool(options.get("by_length"))
        self._in_units = bool(options.get("reasons"))
        self._plan: P | None = None
        self._wait = self._patience = 1  # steps until the next look whether there is a plan
        self._numbers: list[tuple[Any, ...]] = []
        self._owned: list[Tensor] = []
        self._rest: list[Tensor] = []  # owned and not of the plan

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

    def _planned(
        self, groups: Sequence[Group], make: Callable[[list[Tensor]], P | None]
    ) -> P | None:
        """The plan of these groups' parameters; a new one, if it is time to look for one.

        Args:
            groups: Parameter groups.
            make: Makes a plan for the parameters that move, and what belongs to it; None if there is none.

        Returns:
            The plan; None if there is none for now.
        """
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
        plan = make(moving) if moving else None
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

    A step that cannot be taken has so changed nothing.

    Args:
        shapes: Of the matrices.
        blocks: For every block its first parameter and the names of its matrices, in the order of the shapes.
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
        blocks: Iterable[tuple[Tensor, Iterable[str]]],
        decay: float,
    ) -> None:
        self._decay = decay
        self.tensors = [[torch.zeros(s, dtype=torch.float64) for s in shapes] for _ in range(2)]
        self.arrays = [[t.numpy() for t in one] for one in self.tensors]
        numbers = iter(range(len(shapes)))
        # First parameter of every block, the entries of its state and their places among the matrices.
        self._places = [
            (p, [(PREFIX + name, next(numbers)) for name in names]) for p, names in blocks
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
