"""What an evolution on a device with shots returns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fubini.devices.usage import Usage
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.evolution_result import Evolution
from fubini.options import Complex, Real


@dataclass(frozen=True, eq=False, repr=False)
class SampledEvolution(Evolution):
    """An :class:`fubini.Evolution` made of estimates, with their standard errors; T times.

    The weights have moved by what was estimated, and the errors are those of the estimates at these weights. How far noise has
    carried the weights from where they would be without it, nothing here says: ``angle_bound`` and ``infidelity_bound`` are
    NaN. Several runs do, and a run with half of the step says whether it is short enough. ``residuals`` are 0 where noise makes the estimate of their square negative; ``residual_squares``
    have it as it is. ``variances`` are unbiased and may be negative too.

    Attributes:
        shots: Of every circuit; None for a device that is exact and returns no states.
        usage: What the device executed.
        energy_errors: Standard errors of ``energies``, (T,).
        variance_errors: Of ``variances``, (T,).
        residual_squares: Var H - 2 b dw/dt + dw/dt g dw/dt, (T,), and what the velocity fits of the noise, on average.
        residual_square_errors: Their standard errors at the velocity that was taken, (T,).
        observable_errors: Standard errors of ``observables``, by name, (T,) each.
    """

    shots: int | None
    usage: Usage
    energy_errors: Real
    variance_errors: Real
    residual_squares: Real
    residual_square_errors: Real
    observable_errors: Mapping[str, Real]

    def states(self) -> Complex:
        """Raise an error: the device returns none.

        Raises:
            UnsupportedCircuitError: With a remedy.
        """
        raise UnsupportedCircuitError(
            "states: the circuit ran on a device that returns none; a simulator has them at the weights of this evolution, "
            "qml.QNode(function, qml.device('default.qubit')) with a function that returns qml.state()"
        )

    def _joined(self, more: Evolution) -> "SampledEvolution":
        """This evolution and one that goes on from its end."""
        assert isinstance(more, SampledEvolution)

        def joined(a: Real, b: Real) -> Real:
            return np.concatenate([a, b[1:]])

        found = super()._joined(more)
        assert isinstance(found, SampledEvolution)
        own: dict[str, Any] = {
            n: joined(getattr(self, n), getattr(more, n))
            for n in (
                "energy_errors",
                "variance_errors",
                "residual_squares",
                "residual_square_errors",
            )
        }
        errors = {
            n: joined(v, more.observable_errors[n]) for n, v in self.observable_errors.items()
        }
        return replace(found, usage=self.usage + more.usage, observable_errors=errors, **own)

    def __repr__(self) -> str:
        shots = "exact circuits" if self.shots is None else f"{self.shots} shots per circuit"
        why = (
            "the device returns no states"
            if self.shots is None
            else "noise moves the weights, by how much is not known"
        )
        worst = int(np.argmax(self.residual_squares))
        return (
            f"SampledEvolution({self.time} time {self.times[0]:g} to {self.times[-1]:g}, {len(self.times)} times, "
            f"{self.steps} steps by {self.method!r}, {self.evaluations} evaluations, {shots}, {self.usage.circuits} circuits; "
            f"energy {self.energies[-1]:.6g} +- {self.energy_errors[-1]:.1g}, squared residual up to "
            f"{self.residual_squares[worst]:.2g} +- {self.residual_square_errors[worst]:.1g}, no bound of the infidelity: "
            f"{why})"
        )
