r"""McLachlan's variational principle: the velocity of the weights that moves the state as a Hamiltonian does.

With the projected tangents :math:`T` and :math:`h` of :mod:`fubini.geometry.tangents`, the velocity minimises
:math:`|T^\top\dot w - h|`, the distance between the states' velocities without the global phase (McLachlan, Mol. Phys. 8, 39
(1964); Yuan et al., Quantum 3, 191 (2019), arXiv:1812.08767): :math:`g\dot w = Th`. In imaginary time :math:`h =
-P(H - E)|\psi\rangle`, and :math:`g\dot w = -\nabla E / 2` is the natural-gradient flow.

The metric is singular where weights are redundant, and often at symmetric points, such as weights of zero. The velocity is
then a Tikhonov solution, :math:`(g + \lambda)\dot w = Th`, an analytic function of :math:`T` and :math:`h`, with the
largest :math:`\lambda` that the residual :math:`r = |T^\top\dot w - h|` allows (after Morozov's discrepancy principle). With
the eigenvalues :math:`s_i^2` of g, what :math:`\lambda` adds to the residual is, in quadrature,

.. math:: e^2 = \sum_i \Big(\frac{\lambda}{s_i^2 + \lambda}\Big)^2 c_i^2 \frac{s_i^2}{s_i^2 + \lambda_0} = \epsilon^2 +
   (r / 100)^2

where :math:`c_i` is h along the direction i, and :math:`\epsilon` follows from the tolerance. A direction is left out as far
as it does not pay: where the ansatz misses r anyway, a hundredth of it more, in quadrature, is not noticed. The last
factor, with a :math:`\lambda_0` of :math:`10^{-10}` of the trace, leaves out of the account what no velocity that can be
integrated would reach; it is added to :math:`\lambda`. Everything is monotone and smooth in :math:`\lambda`, and nothing
in it cancels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fubini.options import Real

# lambda in units of the metric's trace: below which directions count as unreachable, and where lambda ends smoothly, because
# well-conditioned directions would feel it.
_LEAST, _LARGEST = 1e-10, 1e-4
_SHARE = 0.01
# Of lambda's logarithm; the state's velocity moves by less than this times epsilon.
_CONVERGED = 1e-7
_STEPS = 60


@dataclass(frozen=True, eq=False)
class Velocity:
    """The velocity of the weights at B weight vectors.

    Attributes:
        weights: dw/dt, (B, P).
        residuals: Distance |T^T dw/dt - h| to the velocity of the state, (B,).
        variances: |h|^2, the variance of the Hamiltonian, (B,).
        dampings: lambda, (B,).
    """

    weights: Real
    residuals: Real
    variances: Real
    dampings: Real


def velocity(tangents: Real, states: Real, allowed: float) -> Velocity:
    """Return the velocity of the weights by McLachlan's principle.

    Args:
        tangents: T, (B, P, 2 N).
        states: h, (B, 2 N).
        allowed: epsilon, what the cut-off may add to the residual, in quadrature.
    """
    found = [_one(t, h, allowed) for t, h in zip(tangents, states, strict=True)]
    weights, residuals, dampings = zip(*found, strict=True)
    return Velocity(
        np.stack(weights),
        np.array(residuals),
        np.einsum("bi,bi->b", states, states),
        np.array(dampings),
    )


def _one(tangents: Real, state: Real, allowed: float) -> tuple[Real, float, float]:
    size, width = tangents.shape
    trace = float(np.vdot(tangents, tangents))
    total = float(state @ state)
    if trace == 0.0 or total == 0.0:
        return np.zeros(size), math.sqrt(total), 0.0
    dual = width < size
    matrix = tangents.T @ tangents if dual else tangents @ tangents.T  # symmetric to the last bit
    squares, vectors = np.linalg.eigh(matrix)
    squares = np.maximum(squares, 0.0)
    # b = T h in the metric's eigenbasis; of the dual matrix h itself, c = b / s
    side = vectors.T @ (state if dual else tangents @ state)
    sides = side * side * (squares if dual else 1.0)
    damping = _damping(squares, sides, total, allowed, trace)
    found = vectors @ (side / (squares + damping))
    # The eigenbasis is that of a matrix with rounding in it, which fast weights feel; the tangents are exact.
    if dual:
        wrong = state - (tangents @ found) @ tangents - damping * found
    else:
        wrong = tangents @ (state - found @ tangents) - damping * found
    found += vectors @ ((wrong @ vectors) / (squares + damping))
    weights = tangents @ found if dual else found
    rest = weights @ tangents - state
    return weights, math.sqrt(rest @ rest), damping


def _damping(squares: Real, sides: Real, total: float, allowed: float, trace: float) -> float:
    """Lambda by eigenvalues s^2, squares of b along the eigenvectors, and |h|^2."""
    reachable = sides / (squares + _LEAST * trace)

    def excess(x: float) -> float:
        """log(e^2 / goal), which rises with x = log(lambda)."""
        damping = math.exp(x)
        inverse = 1.0 / (squares + damping)
        added = damping * damping * float(reachable @ (inverse * inverse))
        square = total - float(sides @ (inverse + damping * inverse * inverse))
        goal = allowed**2 + _SHARE**2 * max(square, 0.0)
        return math.log(added / goal) if added > 0.0 < goal else -math.inf if goal else math.inf

    most = _LARGEST * trace
    root = math.exp(_root(excess, math.log(1e-6 * _LEAST * trace), math.log(1e4 * most)))
    return root * most / (root + most) + _LEAST * trace


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function of slope 2 at most crosses zero; an end of the interval if it does not."""
    x, value = high, function(high)
    if value <= 0.0:
        return high
    before = math.nan, math.nan
    for _ in range(_STEPS):
        slope = (value - before[1]) / (x - before[0])
        step = value / slope if 0.0 < slope < math.inf else value / 2
        before = x, value
        if not low < x - step < high:
            step = x - 0.5 * (low + high)
        x -= step
        if abs(step) < _CONVERGED:
            break
        value = function(x)
        low, high = (x, high) if value <= 0.0 else (low, x)
    return x
