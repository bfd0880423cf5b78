r"""Steps of an evolution: the methods, and the path between their points.

A step ends in a point and has a polynomial path to it, whose distance from what the Hamiltonian does bounds the error.

``"metric"`` is Dormand and Prince's pair of order 5(4) (J. Comput. Appl. Math. 6, 19 (1980)) with the error measured by the
metric, :math:`\sqrt{e^\top g e}`, which is how far an error e of the weights moves the state: weights that do not
matter, as they are at singular points, cost no steps. SciPy's methods control the error of the weights.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fubini.errors import NumericalError
from fubini.geometry.flow import Flow
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
    count = max(1, round((end - start) / step))
    times = np.linspace(start, end, count + 1)
    first = flow(start, weights)[0].weights
    for t, following in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        size = following - t
        second = flow(t + size / 2, weights + size / 2 * first)[0].weights
        third = flow(t + size / 2, weights + size / 2 * second)[0].weights
        fourth = flow(following, weights + size * third)[0].weights
        new = weights + size / 6 * (first + 2 * second + 2 * third + fourth)
        last = flow(following, new)[0].weights
        # Hermite's cubic is of a lower order than the step: the velocity in its middle makes up for it.
        half = 0.5 * (weights + new) + size / 8 * (first - last)
        middle = flow(t + size / 2, half)[0].weights
        yield Step(t, following, weights, new, _quintic(t, size, weights, new, first, middle, last))
        weights, first = new, last


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
