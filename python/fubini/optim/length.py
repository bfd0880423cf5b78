"""Steps whose length needs no tuning: a share of the full step, within a radius in the damped metric; both decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from fubini.errors import NumericalError

#: Longest step in the damped metric, in units of lr: at lr = 0.5 a quarter of the unit.
RADIUS = 0.5
#: Steps after which the radius, and the share of the full step, have begun to fall as the root of the steps: the radius
#: early, as it is what gradient noise meets; the share late, so that losses without noise are solved to the end.
RADIUS_STEPS, SHARE_STEPS = 10.0, 100.0
#: Decay of the mean of the squared lengths, the root mean square in units below which damping falls in proportion, and the
#: lowest factor. The mean keeps the damping from falling on one easy batch: the next one would take a wild step.
DECAY, LEVEL, LOWEST = 0.9, 2.0, 1e-3
# Entries of the parameter groups: plain numbers, to be saved with them.
_KEYS = {name: f"length_{name}" for name in ("unit", "steps", "mean", "weight")}


@dataclass(frozen=True)
class StepLength:
    """How long the next step may be, and how much damping it needs, by the lengths of the directions so far.

    A direction d, the damped solution of the gradient, has the squared length ``d . (G + D) d = g . d``: twice the decrease
    that the quadratic model promises for the full step, in units of the loss. The step is lr times d, or shorter: never
    longer than lr times ``RADIUS`` units. The radius falls as 1 / sqrt(1 + t / 10) with the steps t that were taken, the
    share of the full step as 1 / sqrt(1 + t / 100). Where noise dominates, lengths stay and the radius gives the decay that
    stochastic approximation asks for (Robbins and Monro 1951); near a minimum without noise lengths vanish, and what is left
    is a damped Newton step. The damping falls with the root mean square of the lengths, as Levenberg and Marquardt's may
    fall with the error (Fan and Yuan 2005, Computing 74:23). It must not fall with its square: where a model is sure of all
    its data its metric vanishes, and a change of length l may move weights by l over the root of the damping, which so goes
    to zero with l.

    Attributes:
        unit: Length that counts as one: 1 for losses in nats, which have a natural scale. 0: half of the first length,
            for squared errors, whose scale is that of the targets.
        steps: Directions so far, without those of no gradient.
        mean: Exponential average of the squared lengths, not yet corrected.
        weight: The sum of its weights, below 1.
        last: The present direction's length.
    """

    unit: float = 1.0
    steps: int = 0
    mean: float = 0.0
    weight: float = 0.0
    last: float = 0.0

    def after(self, square: float) -> StepLength:
        """Return this with one more direction.

        Args:
            square: ``gradient . d``, its squared length; zero, of no gradient at all, does not count.

        Raises:
            NumericalError: If it is not finite.
        """
        if not math.isfinite(square):
            raise NumericalError(
                "gradient: expected a step of finite length in the metric, got one that overflows; scale the loss down"
            )
        if square <= 0.0:
            return replace(self, last=0.0)
        length, share = math.sqrt(square), 1.0 - DECAY
        return StepLength(
            self.unit or length / 2.0,
            self.steps + 1,
            DECAY * self.mean + share * square,
            DECAY * self.weight + share,
            length,
        )

    @property
    def factor(self) -> float:
        """What the direction is multiplied with besides lr, at most 1."""
        if self.last == 0.0:
            return 1.0
        before = self.steps - 1
        radius = RADIUS * self.unit / math.sqrt(1.0 + before / RADIUS_STEPS)
        return min(1.0 / math.sqrt(1.0 + before / SHARE_STEPS), radius / self.last)

    @property
    def damping(self) -> float:
        """What the damping of the next direction is multiplied with, in [LOWEST, 1]."""
        if self.steps == 0:
            return 1.0
        mean = math.sqrt(self.mean / self.weight)
        return max(LOWEST, min(1.0, mean / (LEVEL * self.unit)))

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> StepLength:
        """Return what a parameter group keeps.

        Args:
            group: The group; of a checkpoint without these numbers, nothing is known.
        """
        return cls(**{name: group[key] for name, key in _KEYS.items() if key in group})

    def keep(self, group: MutableMapping[str, Any]) -> None:
        """Write it into a parameter group.

        Args:
            group: Changed.
        """
        group.update({key: getattr(self, name) for name, key in _KEYS.items()})
