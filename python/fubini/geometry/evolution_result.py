"""What an evolution returns, with states or with estimates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.devices.usage import Usage
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.tangents import states
from fubini.metric.plot import figure_for
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

    #: What is added up when an evolution goes on.
    _counts: ClassVar[tuple[str, ...]] = ("evaluations", "steps")

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
    _continue: Callable[[Real, bool], "Evolution"] = field(repr=False)

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

    def extend(self, times: Any) -> Self:
        """Go on from the last time with the same options.

        Args:
            times: Until when; or several times after the last one, increasing.

        Returns:
            The whole evolution, this one first.

        Raises:
            ValueError: If they are not after the last time.
        """
        more = self._continue(*times_of(times, after=float(self.times[-1])))
        assert isinstance(more, type(self))
        joined = {n: getattr(self, n) + getattr(more, n) for n in self._counts}
        for name, rows in vars(self).items():
            if isinstance(rows, np.ndarray | Mapping):  # a row for every time
                joined[name] = _joined(rows, getattr(more, name))
        joined["weights"] = self._ansatz.shaped(joined["_flat"])
        return replace(more, **joined)

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
        figure = figure_for("plot", (7, 7), figure)
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        top.plot(self.times, self.energies, color="C0", label="energy")
        for number, (name, values) in enumerate(self.observables.items()):
            middle.plot(self.times, values, color=f"C{number % 10}", label=name)
        top.set_ylabel("energy")
        middle.set_ylabel("expectation values")
        if self.observables:
            middle.legend(*_once(middle), fontsize="small")
        tiny = np.finfo(float).tiny
        bottom.semilogy(self.times, np.maximum(self.residuals, tiny), color="C1", label="residual")
        bound = np.where(self.infidelity_bound > 0, self.infidelity_bound, np.nan)
        if np.isfinite(bound).any():
            bottom.semilogy(self.times, bound, color="C3", label="bound of the infidelity")
        bottom.legend(*_once(bottom), fontsize="small")
        bottom.set_xlabel("time" if self.time == "real" else "imaginary time")
        return figure

    def __repr__(self) -> str:
        several = "" if self.energies.ndim == 1 else f", {self.energies.shape[1]} trajectories"
        last, bound = np.atleast_1d(self.energies[-1]), np.atleast_1d(self.infidelity_bound[-1])
        return (
            f"Evolution({self.time} time {self.times[0]:g} to {self.times[-1]:g}{several}, {len(self.times)} times, "
            f"{self.steps} steps by {self.method!r}, {self.evaluations} evaluations; energy {_ends(last)}, residual up to "
            f"{self.residuals.max():.2g}, infidelity at most {bound.max():.2g})"
        )


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

    _counts = (*Evolution._counts, "usage")

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


def _ends(values: Real) -> str:
    if len(values) == 1:
        return f"{values[0]:.8g}"
    return f"{values.min():.8g} to {values.max():.8g}"


def _once(axes: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels, each label once: several trajectories are drawn as lines of one label."""
    found: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        found.setdefault(label, handle)
    return list(found.values()), list(found)


def _joined(first: Any, second: Any) -> Any:
    """Rows of an evolution, and of one that goes on from its last time."""
    if isinstance(first, Mapping):
        return {name: _joined(rows, second[name]) for name, rows in first.items()}
    return np.concatenate([first, second[1:]])


def times_of(times: Any, after: float | None = None) -> tuple[Real, bool]:
    """Return the times of the result, and whether those of all steps are wanted as well.

    Args:
        times: As of :func:`fubini.evolve`.
        after: What they continue.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If they do not increase.
    """
    values = real_numbers("times", times)
    check_finite_array("times", values)
    if values.ndim > 1:
        raise ValueError(f"times: expected a number or a sequence, got the shape {values.shape}")
    if not values.ndim:
        first = 0.0 if after is None else after
        if not values > first:
            raise ValueError(f"times: expected a time after {first:g}, got {float(values):g}")
        return np.array([first, float(values)]), True
    if after is not None:
        values = np.concatenate([[after], values])
    if len(values) < 2:
        raise ValueError(f"times: expected at least two, the start and the end, got {len(values)}")
    wrong = np.flatnonzero(np.diff(values) <= 0)
    if len(wrong):
        at = int(wrong[0]) - (after is not None)
        before = "the last time" if at < 0 else f"times[{at}]"
        raise ValueError(
            f"times: expected increasing times, got {values[wrong[0] + 1]:g} after {values[wrong[0]]:g}, {before}"
        )
    return values.copy(), False
