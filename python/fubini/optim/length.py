"""Steps whose length needs no tuning: lr over the running length of the direction in the damped metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fubini.errors import NumericalError

DECAY = 0.95
#: The direction is never multiplied by more than this: at lr=0.1, no step is longer than the full natural-gradient step, so
#: that a loss without noise is solved to the end instead of being circled.
LIMIT = 10.0
# Entries of the parameter groups: plain numbers, to be saved with them.
_MEAN, _WEIGHT = "length_mean", "length_weight"


@dataclass(frozen=True)
class RunningLength:
    """Exponential average of the squared length ``d . (G + D) d`` of the directions d, with bias correction.

    Divided by its root, directions have a length of about 1 at every scale of the loss, while those of a step with an
    unusually small gradient stay short; the first step has the length lr exactly. The square is the loss's own unit,
    nats for a mean negative log-likelihood.

    Attributes:
        mean: The average, not yet corrected.
        weight: The sum of its weights, below 1.
    """

    mean: float = 0.0
    weight: float = 0.0

    def after(self, square: float) -> RunningLength:
        """Return the average with one more squared length.

        Args:
            square: ``gradient . d``, which is the squared length; zero, of no gradient at all, does not count.

        Raises:
            NumericalError: If it is not finite.
        """
        if not math.isfinite(square):
            raise NumericalError(
                "gradient: expected a step of finite length in the metric, got one that overflows; scale the loss down"
            )
        if square <= 0.0:
            return self
        share = 1.0 - DECAY
        return RunningLength(DECAY * self.mean + share * square, DECAY * self.weight + share)

    @property
    def factor(self) -> float:
        """What the direction is multiplied with besides lr."""
        if self.weight == 0.0:
            return 1.0  # there was no gradient yet
        length = math.sqrt(self.mean / self.weight)
        return LIMIT if LIMIT * length <= 1.0 else 1.0 / length

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> RunningLength:
        """Return what a parameter group keeps.

        Args:
            group: The group; of a checkpoint without these numbers, nothing is known.
        """
        return cls(float(group.get(_MEAN, 0.0)), float(group.get(_WEIGHT, 0.0)))

    def keep(self, group: MutableMapping[str, Any]) -> None:
        """Write it into a parameter group.

        Args:
            group: Changed.
        """
        group.update({_MEAN: self.mean, _WEIGHT: self.weight})
