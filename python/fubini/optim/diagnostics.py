"""What is known about the last step, for progress bars and TensorBoard."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fubini.optim.proposal import Proposal


@dataclass
class StepRecord:
    """Numbers of one step; what costs something is computed when it is asked for.

    Attributes:
        make: Returns the last change that was tried.
        damping: Strength of the damping, of the first group.
        loss: Before the step, NaN if unknown.
        actual: By how much the loss fell, NaN if it was not evaluated again.
        accepted: Whether the parameters changed.
        evaluations: How often the closure was evaluated.
        metric_seconds: Time for the metric.
        solve_seconds: Time for directions and step lengths, further evaluations of the closure included.
        update_seconds: Time for the parameters.
    """

    make: Callable[[], Proposal]
    damping: float = math.nan
    loss: float = math.nan
    actual: float = math.nan
    accepted: bool = True
    evaluations: int = 0
    metric_seconds: float = 0.0
    solve_seconds: float = 0.0
    update_seconds: float = 0.0

    @cached_property
    def proposal(self) -> Proposal:
        """The last change that was tried."""
        return self.make()

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        proposal = self.proposal
        conditions = [info.condition for info in proposal.infos]
        known = [c for c in conditions if not math.isnan(c)]
        return {
            "loss": self.loss,
            "damping": self.damping,
            "scale": proposal.scale,
            "condition": max(known, default=math.nan),
            "predicted_decrease": proposal.predicted,
            "actual_decrease": self.actual,
            "step_length": math.sqrt(max(proposal.curvature, 0.0)),
            "accepted": float(self.accepted),
            "evaluations": float(self.evaluations),
            "metric_seconds": self.metric_seconds,
            "solve_seconds": self.solve_seconds,
            "update_seconds": self.update_seconds,
        }
