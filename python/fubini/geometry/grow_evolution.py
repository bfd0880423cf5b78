"""An evolution of a circuit that grows where McLachlan's residual is above a tolerance."""

from dataclasses import dataclass

import numpy as np

from fubini.geometry.evolution_steps import Bound, steps
from fubini.geometry.flow import Flow, Time
from fubini.geometry.grown import Growth
from fubini.geometry.hamiltonians import Hamiltonian
from fubini.geometry.pool import Chain, Element, Pool, StartGates
from fubini.geometry.scores import Score, behind, missed, scores
from fubini.options import Real

# Of the tolerance: what the integration, and the cut-off of singular metrics, may each add to the residual.
_SHARE = 0.1
# Directions shorter than this part of the longest tangent do not count when it is decided whether the circuit must grow:
# the weights would race in them, as they do where the metric of a circuit that spans everything loses a rank in passing.
_ROBUST = 1e-2
# Times the tolerance: a residual at the end of a step above which the step is taken back, to grow before it.
_OVERSHOT = 1.5
# Of the whole time: the shortest step that is taken back.
_SHORT = 1e-6
# Of the squared residual that a candidate must take away to be worth its weight.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, eq=False)
class Course:
    """An evolution with a growing circuit.

    Attributes:
        elements: Of the circuit at the end.
        times: As asked for, (T,).
        weights: At every time, for as many elements as there were.
        residuals: Of the circuit as it then was, (T,).
        angles: Bound of the angle between the state and the exact one at every time, (T,).
        history: What was added.
        reason: Why it ended.
    """

    elements: list[Element]
    times: Real
    weights: list[Real]
    residuals: Real
    angles: Real
    history: list[Growth]
    reason: str


def follow(
    start: StartGates,
    elements: list[Element],
    weights: Real,
    pool: Pool,
    times: Real,
    time: Time,
    score: Score,
    tolerance: float,
    most: int,
) -> Course:
    """Follow an evolution, and grow the circuit where its residual is above the tolerance.

    Args:
        start: Of the circuit.
        elements: Its elements.
        weights: (P,).
        pool: The candidates, and the Hamiltonian.
        times: Rising, (T,).
        time: Real or imaginary.
        score: Which candidate is added.
        tolerance: Of the residual.
        most: How many may be added.

    Returns:
        The course.
    """
    run = _Run(start, elements, weights, pool, time, score, tolerance, most)
    run.grow(float(times[0]))
    run.keep(run.weights)
    while run.now < times[-1]:
        run.go(times)
    reason = run.failure or f"the residual stayed near or below {tolerance:.2g}"
    return Course(
        run.elements,
        times,
        run.kept,
        np.array(run.residuals),
        np.array(run.angles),
        run.history,
        reason,
    )


class _Run:
    """Where an evolution is, and the circuit as it is there."""

    def __init__(
        self,
        start: StartGates,
        elements: list[Element],
        weights: Real,
        pool: Pool,
        time: Time,
        score: Score,
        tolerance: float,
        most: int,
    ) -> None:
        self._start, self._pool, self._time, self._score = start, pool, time, score
        self._tolerance, self._most = tolerance, most
        self.elements, self.weights = list(elements), weights.copy()
        self.now, self.failure = 0.0, ""
        self._hopeless = False  # whether no candidate helped the last time
        self._window = np.inf
        self._everything: Chain | None = None
        self.kept: list[Real] = []
        self.residuals: list[float] = []
        self.angles: list[float] = []
        self.history: list[Growth] = []
        self._flow = self._made()
        self._bound = Bound(self._flow, np.zeros(1))

    def _made(self) -> Flow:
        chain = Chain(self._start, self.elements, self._pool.wires)
        hamiltonian = Hamiltonian(chain.circuit, [self._pool.terms])
        return Flow(chain, hamiltonian, self._time, _SHARE * self._tolerance)

    def _residuals(self, weights: Real) -> tuple[float, float]:
        """McLachlan's residual, and the one without directions in which the weights would race."""
        velocity, motion = self._flow(self.now, weights[None])
        _, rest = missed(motion.tangents[0], motion.states[0], _ROBUST)
        return float(velocity.residuals[0]), float(np.linalg.norm(rest))

    def keep(self, weights: Real) -> None:
        """Keep the weights of a time that was asked for."""
        self.kept.append(weights.copy())
        self.residuals.append(self._residuals(weights)[0])
        self.angles.append(float(self._bound.angles[0]))

    def grow(self, now: float) -> bool:
        """Add candidates until the residual is below the tolerance.

        Args:
            now: The time.

        Returns:
            Whether any was added.
        """
        self.now, before = now, len(self.elements)
        self._hopeless = False
        residual, robust = self._residuals(self.weights)
        while robust > self._tolerance:
            self._hopeless, failure = True, f"{self._most} operations were added, with"
            if len(self.history) < self._most:
                if self._everything is None:
                    self._everything = behind(self._start, self.elements, self._pool)
                found = scores(self._everything, self.weights, self._pool, self._time, _ROBUST)
                number = found.best(self._score)
                self._hopeless = bool(found.gains[number] < _LEAST_GAIN * robust**2)
                failure = "no candidate lowered"
            if self._hopeless:
                if residual > self._tolerance:
                    self.failure = f"{failure} the residual {residual:.2g} at t = {now:.4g}"
                break
            self.elements.append(self._pool.elements[number])
            self.weights = np.append(self.weights, 0.0)
            self._flow, self._everything = self._made(), None
            first = residual
            residual, robust = self._residuals(self.weights)
            value, operation = float(found.by(self._score)[number]), found.operations[number]
            self.history.append(Growth(operation, number, value, first, residual, now))
        if len(self.elements) == before:
            return False
        self._bound = Bound(self._flow, self._bound.angles)
        return True

    def go(self, times: Real) -> None:
        """Go on to the end, or to where the circuit grew, or until a step is taken back."""
        end, shortest = float(times[-1]), _SHORT * float(times[-1] - times[0])
        end = min(end, self.now + self._window)
        tolerance = _SHARE * self._tolerance * (end - self.now)
        for one in steps(self._flow, self.weights[None], self.now, end, "metric", tolerance, None):
            (residual, robust), size = self._residuals(one.last[0]), one.end - one.start
            overshot = residual > _OVERSHOT * self._tolerance and not self._hopeless
            if overshot and size > shortest:
                self._window = size * max(0.1, 0.7 * self._tolerance / residual)
                return
            done = np.searchsorted(times, one.end, "right")
            for _, weights in self._bound.along(one, times[len(self.kept) : done].tolist()):
                self.keep(weights[0])
            self.weights, self.now = one.last[0], one.end
            if robust > self._tolerance and self.grow(one.end):
                break
        self._window *= 2.0
