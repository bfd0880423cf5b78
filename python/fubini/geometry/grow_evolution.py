r"""McLachlan's principle for a circuit that grows while it follows an evolution.

The weights move so that :math:`|h - \sum_j \dot w_j t_j|` is least, with the projected tangents t and h = -iPH|psi> in real
time, -PH|psi> in imaginary time. In real time the integral of that residual bounds the distance of the state, up to its phase,
from the exact one. Directions that the tangents hardly span are left out of the velocity, and the residual is that of the
velocity which is taken, so that it stays a bound.
"""

from dataclasses import dataclass

import numpy as np

from fubini.geometry.grown import Growth
from fubini.geometry.pool import Chain, Element, Pool, StartGates
from fubini.geometry.scores import SPANNED, Flow, Score, scores
from fubini.geometry.tangents import tangents, times_minus_i
from fubini.options import Real

# Of the tolerance: what the integration may add to the residual.
_SHARE = 0.1
# Dormand and Prince's fifth-order steps with an error of fourth order (1980, J. Comp. Appl. Math. 6, 19).
_STAGES: tuple[tuple[float, ...], ...] = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Of the residual that a candidate must take away to be worth its weight.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, eq=False)
class Course:
    """An evolution with a growing circuit.

    Attributes:
        elements: Of the circuit at the end.
        times: As asked for, (T,).
        weights: At every time, for as many elements as there were.
        residuals: (T,).
        bound: Integral of the residual up to every time, (T,).
        history: What was added.
        reason: Why it ended.
    """

    elements: list[Element]
    times: Real
    weights: list[Real]
    residuals: Real
    bound: Real
    history: list[Growth]
    reason: str


class _Mover:
    """The circuit as it is."""

    def __init__(
        self, start: StartGates, elements: list[Element], weights: Real, pool: Pool, flow: Flow
    ) -> None:
        self.start, self.pool, self.flow = start, pool, flow
        self.elements, self.weights = list(elements), weights.copy()
        self._chain = Chain(start, self.elements, pool.wires)

    def velocity(self, weights: Real) -> "_Velocity":
        """Return how the weights move at a point (P,)."""
        found = tangents(self._chain, weights[None], (self.pool.terms,))
        vectors, wanted = found.weights[0], found.operators[0, 0]
        if self.flow == "imaginary":
            wanted = times_minus_i(wanted)
        speed = float(np.linalg.norm(wanted))
        if not len(vectors):
            return _Velocity(np.zeros(0), speed, speed, vectors)
        u, s, vt = np.linalg.svd(vectors, full_matrices=False)
        faded = (s / (SPANNED * s.max(initial=0.0) + 1e-300)) ** 6
        inverse = faded / (1.0 + faded) / np.where(s > 0.0, s, 1.0)
        rate = u @ (inverse * (vt @ wanted))
        return _Velocity(rate, float(np.linalg.norm(wanted - rate @ vectors)), speed, vectors)

    def add(self, number: int) -> None:
        """Append a candidate with the weight 0."""
        self.elements.append(self.pool.elements[number])
        self.weights = np.append(self.weights, 0.0)
        self._chain = Chain(self.start, self.elements, self.pool.wires)

    def step(self, first: "_Velocity", dt: float) -> tuple[Real, float, "_Velocity"]:
        """Try a step.

        Args:
            first: The velocity where it starts.
            dt: The time.

        Returns:
            Weights there, the error of the state that the step made, and the velocity there.
        """
        rates, last = [first.rate], first
        point = self.weights
        for row in _STAGES:
            move = sum((c * k for c, k in zip(row, rates, strict=True)), np.zeros_like(point))
            there = point + dt * move
            last = self.velocity(there)
            rates.append(last.rate)
        error = sum((c * k for c, k in zip(_ERROR, rates, strict=True)), np.zeros_like(point))
        # By how far the state is off: to first order, or as far as it may ever be.
        off = dt * max(np.linalg.norm(error @ v.vectors) for v in (first, last))
        return there, float(off), last


@dataclass(frozen=True, eq=False)
class _Velocity:
    """How the weights move: dw/dt (P,), the residual, the speed of the exact state, and the tangents (P, 2 N)."""

    rate: Real
    residual: float
    speed: float
    vectors: Real


def follow(
    start: StartGates,
    elements: list[Element],
    weights: Real,
    pool: Pool,
    times: Real,
    flow: Flow,
    score: Score,
    tolerance: float,
    most: int,
    max_step: float,
) -> Course:
    """Follow an evolution, and grow the circuit where its residual is above the tolerance.

    Args:
        start: Of the circuit.
        elements: Its elements.
        weights: (P,).
        pool: The candidates, and the Hamiltonian.
        times: Rising, (T,).
        flow: In real or imaginary time.
        score: Which candidate is added.
        tolerance: Of the residual.
        most: How many may be added.
        max_step: Longest way of the exact state in one step.

    Returns:
        The course.
    """
    mover = _Mover(start, elements, weights, pool, flow)
    history: list[Growth] = []
    now, total, exhausted = float(times[0]), 0.0, ""
    kept, residuals, bound = [], [], []
    shortest = 1e-9 * float(times[-1] - times[0])
    velocity = mover.velocity(mover.weights)
    trial = max_step / max(velocity.speed, 1e-12)
    for goal in times:
        while True:
            while velocity.residual > tolerance:
                found = scores(start, mover.elements, mover.weights, pool, flow)
                number, gains = found.best(score), found.gains
                if len(history) >= most:
                    exhausted = f"{most} operations were added, with the residual {velocity.residual:.2g} at t = {now:.4g}"
                    break
                if gains[number] < _LEAST_GAIN * velocity.residual**2:
                    exhausted = f"no candidate lowered the residual of {velocity.residual:.2g} at t = {now:.4g}"
                    break
                mover.add(number)
                before, velocity = velocity.residual, mover.velocity(mover.weights)
                value, operation = float(found.by(score)[number]), pool.elements[number].operation
                history.append(Growth(operation, number, value, before, velocity.residual, now))
            if now >= goal:
                break
            longest = min(goal - now, max_step / max(velocity.speed, 1e-12))
            dt = min(trial, longest)
            there, error, after = mover.step(velocity, dt)
            allowed = _SHARE * tolerance * dt
            if error > allowed and dt > shortest:
                trial = dt * max(0.1, 0.9 * (allowed / error) ** 0.2)
                continue
            total += dt * (velocity.residual + after.residual) / 2 + error
            now = float(goal) if dt >= goal - now else now + dt
            mover.weights, velocity = there, after
            trial = dt * min(4.0, 0.9 * (allowed / max(error, 1e-300)) ** 0.2)
        kept.append(mover.weights.copy())
        residuals.append(velocity.residual)
        bound.append(total)
    reason = exhausted or f"the residual stayed below {tolerance:.2g} at every step"
    return Course(
        mover.elements, times, kept, np.array(residuals), np.array(bound), history, reason
    )
