"""What an evolution returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fubini.geometry.evolution_plot import draw
from fubini.geometry.tangents import states
from fubini.options import Complex, Real


@dataclass(frozen=True, eq=False)
class Evolution:
    """A trajectory of :func:`fubini.evolve`, or B of them; T times, P weights, M observables.

    The axis of trajectories is missing where there is one. Arrays are NumPy's, except ``weights``.

    Attributes:
        times: (T,), the start first.
        weights: At these times, as the circuit takes them (kind, dtype and shape of what was passed, with the axes T and, for
            several trajectories, B in front); a tuple for several arguments.
        energies: <H(t)>, (T,) or (T, B).
        variances: Of H(t) in the state: the squared speed of the exact evolution without the phase.
        residuals: Distance between the states' velocities, the ansatz's and the exact one, in the best case, that is, by
            McLachlan's principle with its cut-off; 1 / unit of time. Zero: the ansatz can follow.
        angle_bound: Bound of the angle arccos|<exact|psi>| in radians: what the path that was really taken missed, the
            error of the integration and the cut-off included.
        infidelity_bound: sin(angle_bound)^2, a bound of 1 - |<exact|psi>|^2.
        observables: Expectation values by name, (T,) or (T, B) each.
        time: ``"real"`` or ``"imaginary"``.
        method: The method of integration.
        evaluations: How many velocities were computed (of all trajectories at once).
        steps: How many steps were taken.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> w = torch.tensor([0.5], dtype=torch.float64)
        >>> found = fubini.evolve(circuit, w, 3.0, time="imaginary")
        >>> found.times.shape == found.energies.shape, bool(found.energies[-1] < -0.98)
        (True, True)
    """

    times: Real
    weights: Any
    energies: Real
    variances: Real
    residuals: Real
    angle_bound: Real
    observables: Mapping[str, Real]
    time: str
    method: str
    evaluations: int
    steps: int
    _flat: Real = field(repr=False)
    _ansatz: Any = field(repr=False)
    _continue: Callable[["Evolution", Any], "Evolution"] = field(repr=False)

    @property
    def infidelity_bound(self) -> Real:
        """Bound of the infidelity with the exact state, (T,) or (T, B)."""
        return np.sin(np.minimum(self.angle_bound, np.pi / 2)) ** 2

    @property
    def final(self) -> Any:
        """The weights at the last time, as the circuit takes them."""
        return self._ansatz.shaped(self._flat[-1])

    def states(self) -> Complex:
        """Return the states, (T, N) or (T, B, N), N amplitudes, as ``fubini.Circuit.state`` does."""
        flat = self._flat.reshape(-1, self._flat.shape[-1])
        found = states(self._ansatz, flat)
        return found.reshape(*self._flat.shape[:-1], -1)

    def extend(self, times: Any) -> "Evolution":
        """Go on from the last time with the same options.

        Args:
            times: Until when; or several times after the last one, increasing.

        Returns:
            The whole evolution, this one first.

        Raises:
            ValueError: If they are not after the last time.
        """
        return self._continue(self, times)

    def _joined(self, more: "Evolution") -> "Evolution":
        """This evolution and one that goes on from its end."""

        def joined(a: Real, b: Real) -> Real:
            return np.concatenate([a, b[1:]])

        flat = joined(self._flat, more._flat)
        return replace(
            more,
            times=joined(self.times, more.times),
            weights=self._ansatz.shaped(flat),
            energies=joined(self.energies, more.energies),
            variances=joined(self.variances, more.variances),
            residuals=joined(self.residuals, more.residuals),
            angle_bound=joined(self.angle_bound, more.angle_bound),
            observables={n: joined(v, more.observables[n]) for n, v in self.observables.items()},
            evaluations=self.evaluations + more.evaluations,
            steps=self.steps + more.steps,
            _flat=flat,
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__}: expected no pickling or deep copy, for the circuit that it goes on with has no copy; store "
            "result.times, result.weights, result.energies, ..., and go on by fubini.evolve(circuit, result.final, "
            "[result.times[-1], ...])"
        )

    def plot(self, figure: Any = None) -> Any:
        """Draw the energy, the observables, the residual and the bound of the infidelity over time.

        Args:
            figure: A matplotlib figure or sub-figure to draw into; None: a new one.

        Returns:
            The matplotlib figure; ``figure.savefig("evolution.png")`` stores it.

        Raises:
            ImportError: If matplotlib is missing.
        """
        return draw(self, figure)

    def __repr__(self) -> str:
        several = "" if self.energies.ndim == 1 else f", {self.energies.shape[1]} trajectories"
        last, bound = np.atleast_1d(self.energies[-1]), np.atleast_1d(self.infidelity_bound[-1])
        return (
            f"Evolution({self.time} time {self.times[0]:g} to {self.times[-1]:g}{several}, {len(self.times)} times, "
            f"{self.steps} steps by {self.method!r}, {self.evaluations} evaluations; energy {_ends(last)}, residual up to "
            f"{self.residuals.max():.2g}, infidelity at most {bound.max():.2g})"
        )


def _ends(values: Real) -> str:
    if len(values) == 1:
        return f"{values[0]:.8g}"
    return f"{values.min():.8g} to {values.max():.8g}"
