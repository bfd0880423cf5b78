"""An evolution of a circuit that grows where McLachlan's residual is above a tolerance."""

from dataclasses import dataclass, field

import numpy as np

from fubini.geometry.evolution_steps import Bound, steps
from fubini.geometry.flow import Flow, Time
from fubini.geometry.grown import Growth
from fubini.geometry.hamiltonians import Hamiltonian
from fubini.geometry.pool import Chain, Element, Pool
from fubini.geometry.scores import Score, missed, scores
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


@dataclass(eq=False)
class Course:
    """An evolution with a growing circuit: where it is, and the circuit as it is there.

    Attributes:
        pool: The candidates, the circuit's start, and the Hamiltonian.
        elements: Of the circuit.
        weights: Where it is, (P,).
        time: Real or imaginary.
        score: Which candidate is added.
        tolerance: Of the residual.
        most: How many may be added.
        now: The time.
        failure: Why the residual is above the tolerance, if it is.
        kept: Weights at every time that was asked for, for as many elements as there were.
        residuals: Of the circuit as it then was.
        angles: Bound of the angle between the state and the exact one at every time.
        history: What was added.
    """

    pool: Pool
    elements: list[Element]
    weights: Real
    time: Time
    score: Score
    tolerance: float
    most: int
    now: float = 0.0
    failure: str = ""
    kept: list[Real] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)
    history: list[Growth] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._hopeless = False  # whether no candidate helped the last time
        self._window = np.inf
        self._everything: Chain | None = None
        self._flow = self._made()
        self._bound = Bound(self._flow, np.zeros(1))

    def follow(self, times: Real) -> None:
        """Follow the evolution over rising times (T,), and grow the circuit where its residual is above the tolerance."""
        self._grow(float(times[0]))
        self._keep(self.weights)
        while self.now < times[-1]:
            self._go(times)

    def _made(self) -> Flow:
        chain = self.pool.chain(self.elements)
        hamiltonian = Hamiltonian(chain.circuit, [self.pool.terms])
        return Flow(chain, hamiltonian, self.time, _SHARE * self.tolerance)

    def _residuals(self, weights: Real) -> tuple[float, float]:
        """McLachlan's residual, and the one without directions in which the weights would race."""
        velocity, motion = self._flow(self.now, weights[None])
        _, rest = missed(motion.tangents[0], motion.states[0], _ROBUST)
        return float(velocity.residuals[0]), float(np.linalg.norm(rest))

    def _keep(self, weights: Real) -> None:
        """Keep the weights of a time that was asked for."""
        self.kept.append(weights.copy())
        self.residuals.append(self._residuals(weights)[0])
        self.angles.append(float(self._bound.angles[0]))

    def _grow(self, now: float) -> bool:
        """Add candidates until the residual at a time is below the tolerance; return whether any was added."""
        self.now, before = now, len(self.elements)
        self._hopeless = False
        residual, robust = self._residuals(self.weights)
        while robust > self.tolerance:
            self._hopeless, failure = True, f"{self.most} operations were added, with"
            if len(self.history) < self.most:
                if self._everything is None:
                    self._everything = self.pool.chain([*self.elements, *self.pool.elements])
                found = scores(self._everything, self.weights, self.pool, self.time, _ROBUST)
                number = found.best(self.score)
                self._hopeless = bool(found.gains[number] < _LEAST_GAIN * robust**2)
                failure = "no candidate lowered"
            if self._hopeless:
                if residual > self.tolerance:
                    self.failure = f"{failure} the residual {residual:.2g} at t = {now:.4g}"
                break
            self.elements.append(self.pool.elements[number])
            self.weights = np.append(self.weights, 0.0)
            self._flow, self._everything = self._made(), None
            first = residual
            residual, robust = self._residuals(self.weights)
            value, operation = float(found.by(self.score)[number]), found.operations[number]
            self.history.append(Growth(operation, number, value, first, residual, now))
        if len(self.elements) == before:
            return False
        self._bound = Bound(self._flow, self._bound.angles)
        return True

    def _go(self, times: Real) -> None:
        """Go on to the end, or to where the circuit grew, or until a step is taken back."""
        end, shortest = float(times[-1]), _SHORT * float(times[-1] - times[0])
        end = min(end, self.now + self._window)
        tolerance = _SHARE * self.tolerance * (end - self.now)
        for one in steps(self._flow, self.weights[None], self.now, end, "metric", tolerance, None):
            (residual, robust), size = self._residuals(one.last[0]), one.end - one.start
            overshot = residual > _OVERSHOT * self.tolerance and not self._hopeless
            if overshot and size > shortest:
                self._window = size * max(0.1, 0.7 * self.tolerance / residual)
                return
            done = np.searchsorted(times, one.end, "right")
            for _, weights in self._bound.along(one, times[len(self.kept) : done].tolist()):
                self._keep(weights[0])
            self.weights, self.now = one.last[0], one.end
            if robust > self.tolerance and self._grow(one.end):
                break
        self._window *= 2.0
