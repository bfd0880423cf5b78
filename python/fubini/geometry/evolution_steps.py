r"""Steps of an evolution: the methods, the path between their points, and a bound of the error along it.

A step ends in a point and has a polynomial path to it, whose distance from what the Hamiltonian does bounds the error.

``"metric"`` is Dormand and Prince's pair of order 5(4) (J. Comput. Appl. Math. 6, 19 (1980)) with the error measured by the
metric, :math:`\sqrt{e^\top g e}`, which is how far an error e of the weights moves the state: weights that do not
matter, as they are at singular points, cost no steps. SciPy's methods control the error of the weights.

The bound is one of the angle between the state on a path of weights and the exact one. In real time the exact evolution keeps angles, so that the angle grows by at most the distance r of the velocities,
projected. In imaginary time, :math:`\frac{d}{dt}|\psi\rangle = -(H - E)|\psi\rangle`, two exact states at the angle d move
apart by

.. math:: d' = -\sin d [\cos d (E_\chi - E) - 2 h \sin d] \le \sin d [\cos d (E - E_\mathrm{min}) + 2 \sigma\sin d]

with :math:`\chi` the second state's part beside the first, :math:`h = \mathrm{Re}\langle\psi|H|\chi\rangle \le \sigma`
and :math:`\sigma^2 = \mathrm{Var} H`: the second derivative of the flow's potential, the energy. The integral is taken by
Gauss' rule.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fubini.errors import NumericalError
from fubini.geometry.flow import Flow, norms
from fubini.options import Real

SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
METHODS = ("metric", "RK4", *SCIPY)

# Dormand and Prince's coefficients: stages, the error of order 5 less that of order 4, and the path (Shampine 1986).
_C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1])
_A = [
    np.array([]),
    np.array([1 / 5]),
    np.array([3 / 40, 9 / 40]),
    np.array([44 / 45, -56 / 15, 32 / 9]),
    np.array([19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729]),
    np.array([9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656]),
    np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]),
]
_E = np.array([-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40])
_PATH = np.array(
    [
        [1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432],
        [0, 0, 0, 0],
        [0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799],
        [0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072],
        [0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632],
        [0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844],
        [0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423],
    ]
)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
# A step below this part of the whole time means that there is no way on.
# Attempts of steps from one time that was asked for to the next.
_MOST = 20_000
_SMALLEST = 1e-10

# Gauss' rule of order 6 on [-1, 1].
_NODES = np.array([-np.sqrt(0.6), 0.0, np.sqrt(0.6)])
_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 9.0

# The path of any method as a polynomial through its values at Chebyshev's points, the ends of the step among them.
_DEGREE = 8
_POINTS = -np.cos(np.pi * np.arange(_DEGREE + 1) / _DEGREE)
_TO_SERIES = np.linalg.inv(np.polynomial.chebyshev.chebvander(_POINTS, _DEGREE))


@dataclass(frozen=True, eq=False)
class Step:
    """A step of all trajectories.

    Attributes:
        start: Time at which it starts.
        end: Time at which it ends.
        first: Weights at its start, (B, P).
        last: Weights at its end.
        path: Weights (S, B, P) at times (S,) within.
    """

    start: float
    end: float
    first: Real
    last: Real
    path: Callable[[Real], Real]

    def polynomial(self) -> "Path":
        """Return the path as a polynomial that ends exactly in the step's points."""
        half = 0.5 * (self.end - self.start)
        values = self.path(self.start + half * (1.0 + _POINTS))
        values[0], values[-1] = self.first, self.last
        return Path(self.start, half, np.tensordot(_TO_SERIES, values, 1))


@dataclass(frozen=True, eq=False)
class Path:
    """A polynomial path of weights, as a Chebyshev series over a step."""

    start: float
    half: float
    series: Real

    def __call__(self, times: Real) -> tuple[Real, Real]:
        """Return weights and their velocities, (S, B, P) each, at times (S,) within the step."""
        x = (times - self.start) / self.half - 1.0
        slopes = np.polynomial.chebyshev.chebder(self.series) / self.half
        vander = np.polynomial.chebyshev.chebvander(x, _DEGREE)
        return np.tensordot(vander, self.series, 1), np.tensordot(vander[:, :-1], slopes, 1)


def steps(
    flow: Flow, weights: Real, start: float, end: float, method: str, tolerance: float, step: Any
) -> Iterator[Step]:
    """Integrate the flow.

    Args:
        flow: The velocities.
        weights: At the start, (B, P).
        start: Time.
        end: Time.
        method: One of ``METHODS``.
        tolerance: Of the whole time; see :func:`fubini.evolve`.
        step: Length of the steps of ``"RK4"``.

    Returns:
        An iterator of steps.
    """
    if method == "metric":
        return _adaptive(flow, weights, start, end, tolerance)
    if method == "RK4":
        return _fixed(flow, weights, start, end, step)
    return _scipy(flow, weights, start, end, method, tolerance)


def _adaptive(flow: Flow, weights: Real, t: float, end: float, tolerance: float) -> Iterator[Step]:
    whole = end - t
    now, motion = flow(t, weights)
    speed = float(motion.lengths(now.weights).max())
    size = min(whole, tolerance**0.2 / max(speed, 1e-3 / whole))
    for attempt in itertools.count():
        if t >= end:
            return
        size = min(size, end - t)
        if size < _SMALLEST * whole or attempt == _MOST:
            raise NumericalError(_stuck(t, float(np.abs(now.weights).max())))
        slopes = [now.weights]
        for c, row in zip(_C[1:], _A[1:-1], strict=True):
            moved = np.tensordot(row, np.stack(slopes), 1)
            slopes.append(flow(t + c * size, weights + size * moved)[0].weights)
        stages = np.stack(slopes)
        new = weights + size * np.tensordot(_A[-1], stages, 1)
        later, motion = flow(t + size, new)
        stages = np.concatenate([stages, later.weights[None]])
        wrong = size * np.tensordot(_E, stages, 1)
        # To first order, and what the state may be wrong by to second order, be the metric ever so small.
        error = float((motion.lengths(wrong) + np.einsum("bp,bp->b", wrong, wrong)).max())
        allowed = tolerance * size / whole
        factor = _SAFETY * (allowed / error) ** 0.25 if error > 0.0 else _GROW
        if error <= allowed:
            following = end if end - t - size < _SMALLEST * whole else t + size
            yield Step(t, following, weights, new, _path(t, size, weights, stages))
            t, weights, now = following, new, later
        if not np.isfinite(error):
            factor = _SHRINK
        size *= min(_GROW, max(_SHRINK, factor))


def _path(start: float, size: float, weights: Real, stages: Real) -> Callable[[Real], Real]:
    series = np.tensordot(_PATH.T, stages, 1)

    def path(times: Real) -> Real:
        x = ((times - start) / size)[:, None]
        return weights + size * np.tensordot(x ** np.arange(1, 5), series, 1)

    return path


def _fixed(flow: Flow, weights: Real, start: float, end: float, step: float) -> Iterator[Step]:
    def slope(t: float, at: Real) -> Real:
        return flow(t, at)[0].weights

    times = np.linspace(start, end, max(1, round((end - start) / step)) + 1)
    first = slope(start, weights)
    for t, following in itertools.pairwise(times.tolist()):
        size = following - t
        new = runge_kutta(slope, t, following, weights, first)
        last = slope(following, new)
        # Hermite's cubic is of a lower order than the step: the velocity in its middle makes up for it.
        half = 0.5 * (weights + new) + size / 8 * (first - last)
        middle = slope(t + size / 2, half)
        yield Step(t, following, weights, new, _quintic(t, size, weights, new, first, middle, last))
        weights, first = new, last


def runge_kutta(
    slope: Callable[[float, Real], Real], start: float, end: float, weights: Real, first: Real
) -> Real:
    """Return the weights after a step of the classical method of order 4, whose first slope is known."""
    size = end - start
    second = slope(start + size / 2, weights + size / 2 * first)
    third = slope(start + size / 2, weights + size / 2 * second)
    fourth = slope(end, weights + size * third)
    return weights + size / 6 * (first + 2 * second + 2 * third + fourth)


def _quintic(
    start: float, size: float, a: Real, b: Real, first: Real, middle: Real, last: Real
) -> Callable[[Real], Real]:
    """The polynomial of degree 5 through two points with the velocities there and half-way."""
    cubic = 1.5 * (b - a) - 0.25 * size * (
        first + last
    )  # half-way velocity of Hermite's cubic, times size
    # What is added below has no value or slope at the ends, no value half-way, and the slope 1 there.
    extra = size * middle - cubic

    def path(times: Real) -> Real:
        x = ((times - start) / size)[:, None, None]
        hermite = (
            (1 + 2 * x) * (1 - x) ** 2 * a
            + x * (1 - x) ** 2 * size * first
            + x**2 * (3 - 2 * x) * b
            - x**2 * (1 - x) * size * last
        )
        return hermite + 16 * x**2 * (1 - x) ** 2 * (x - 0.5) * extra

    return path


def _scipy(
    flow: Flow, weights: Real, start: float, end: float, method: str, tolerance: float
) -> Iterator[Step]:
    import scipy.integrate

    shape = weights.shape

    def slope(t: float, flat: Real) -> Real:
        found: Real = flow(t, flat.reshape(shape))[0].weights.reshape(-1)
        return found

    solver = getattr(scipy.integrate, method)(
        slope, start, weights.reshape(-1), end, rtol=max(tolerance, 1e-13), atol=tolerance
    )
    for count in itertools.count():
        if solver.status != "running":
            return
        first, t = solver.y.reshape(shape).copy(), float(solver.t)
        message = solver.step()
        if solver.status == "failed" or count == _MOST:
            speed = float(np.abs(solver.f).max())
            said = "" if message is None else f". SciPy says: {message}"
            raise NumericalError(_stuck(t, speed) + said)
        dense = solver.dense_output()

        def path(times: Real, dense: Any = dense) -> Real:
            found: Real = np.stack([dense(t) for t in times]).reshape(len(times), *shape)
            return found

        yield Step(t, float(solver.t), first, solver.y.reshape(shape).copy(), path)


def _stuck(t: float, speed: float) -> str:
    return (
        f"times: no step is short enough at t = {t:.6g}, where the weights move by up to {speed:.3g} a unit of time; take "
        "steps of a fixed length, method='RK4' with step, whose bound says what that costs, raise tolerance, whose cut-off "
        "leaves out what moves so fast, or start from other weights; where hamiltonian(t) jumps, evolve what is before and "
        "after by itself, each with its own hamiltonian, from the last weights on"
    )


class Bound:
    """The bound of B trajectories as they go on.

    Args:
        flow: What they follow.
        angles: Where it starts, (B,).

    Attributes:
        angles: The bound, (B,), radians; at most pi / 2.
    """

    def __init__(self, flow: Flow, angles: Real) -> None:
        self._flow, self.angles = flow, angles
        self._lowest: Real | None = None

    def along(self, step: Step, stops: Iterable[float]) -> Iterator[tuple[float, Real]]:
        """Go along a step, and yield the rising times (t, weights (B, P)) on the way at which to stop."""
        path, at = step.polynomial(), step.start
        for stop in stops:
            self._add(path, at, stop)
            yield stop, path(np.array([stop]))[0][0]
            at = stop
        if at < step.end:
            self._add(path, at, step.end)

    def _add(self, path: Path, start: float, end: float) -> None:
        """Go along a part of a path from start to end."""
        half = 0.5 * (end - start)
        times = start + half * (1.0 + _NODES)
        points, velocities = path(times)
        motion = self._flow.motion(times, points)
        shape = points.shape[:2]
        flat = velocities.reshape(
            shape[0] * shape[1], -1
        )  # a circuit that grows may have no weight yet
        distances = motion.distances(flat).reshape(shape)
        missed = half * (_WEIGHTS @ distances)
        if self._flow.time == "real":
            self.angles = np.minimum(self.angles + missed, np.pi / 2)
            return
        energies = self._flow.energies(times, points)
        above = half * (_WEIGHTS @ np.maximum(energies - self._bounds(times), 0.0))
        spread = half * (_WEIGHTS @ norms(motion.states).reshape(shape))
        # With sin d <= d and cos d <= 1, and d at most L: what follows is at most L where L was large enough. At pi / 2
        # it is.
        before = self.angles + missed

        def after(largest: Real) -> Real:
            found: Real = before * np.exp(above + 2.0 * spread * largest)
            return np.minimum(found, np.pi / 2)

        largest = before
        for _ in range(3):
            largest = after(largest)
        largest = 1.01 * largest
        found = after(largest)
        self.angles = np.where(found <= largest, found, after(np.full_like(found, np.pi / 2)))

    def _bounds(self, times: Real) -> Real:
        if self._flow.hamiltonian.constant:
            if self._lowest is None:
                self._lowest = self._flow.hamiltonian.lowest(float(times[0]))
            return self._lowest
        return np.stack([self._flow.hamiltonian.lowest(float(t)) for t in times])
