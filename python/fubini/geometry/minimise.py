"""Energies of small circuits, minimised to rounding: Newton's method with exact Hessians in a trust region."""

import numpy as np

from fubini import _core
from fubini.geometry.pool import Chain
from fubini.options import Real

# Gradients per unit of energy, below which nothing is left to gain in float64.
_FLAT = 1e-10
_MOST_STEPS = 200
# Radians, by the length of the weights' step: less than half a period of anything.
_FIRST_RADIUS, _LARGEST_RADIUS = 0.5, 2.0


def minimise(chain: Chain, weights: Real, scale: float) -> Real:
    """Return weights at a local minimum of the chain's energy, downhill from given ones.

    One Hessian is P products of it with unit vectors, which the kernel computes side by side. A step solves (H + mu) d =
    -grad with the smallest mu that makes H + mu positive and keeps d in the region (More and Sorensen 1983, SIAM Journal
    on Scientific and Statistical Computing 4, 553).

    Args:
        chain: The circuit, which measures the energy.
        weights: (P,).
        scale: Size of the energy's terms, by which gradients are judged.
    """
    point, radius = weights.copy(), _FIRST_RADIUS
    energy, gradient = chain.energy(point), chain.gradient(point)
    for _ in range(_MOST_STEPS):
        if np.abs(gradient).max(initial=0.0) <= _FLAT * scale:
            break
        values, vectors = np.linalg.eigh(hessian(chain, point))
        along = vectors.T @ gradient
        while True:
            step = _step(values, along, radius)
            expected = float(-(along @ step + step @ (values * step) / 2))
            there = point + vectors @ step
            found = chain.energy(there)
            ratio = (energy - found) / expected if expected > 0.0 else 0.0
            # Where the expected decrease is rounding, the step is taken for its gradient.
            if ratio > 0.1 or expected < 1e-13 * scale:
                break
            radius = 0.25 * float(np.linalg.norm(step))
            if radius < 1e-9:
                return point
        following = chain.gradient(there)
        if expected < 1e-13 * scale and np.abs(following).max() >= np.abs(gradient).max():
            break
        if ratio > 0.75:
            radius = min(_LARGEST_RADIUS, max(radius, 2.0 * float(np.linalg.norm(step))))
        point, energy, gradient = there, found, following
    return point


def hessian(chain: Chain, weights: Real) -> Real:
    """Return the Hessian of the chain's energy by the weights, (P, P).

    Args:
        chain: The circuit.
        weights: (P,).
    """
    size = chain.size
    angles = np.repeat(chain.angles(weights[None]), size, axis=0)
    states = chain.initial
    products = _core.hessian_product(
        chain.circuit.program, angles, np.ones((size, 1)), chain.push(np.eye(size)), states
    )
    found = chain.pull(products)
    return (found + found.T) / 2


def _step(values: Real, along: Real, radius: float) -> Real:
    """The step in the Hessian's eigenbasis, no longer than the radius."""
    size = max(float(np.abs(values).max()), float(np.linalg.norm(along)) / radius, 1e-300)
    least = max(0.0, -float(values[0])) + 1e-12 * size

    def step(shift: float) -> Real:
        return -along / (values + shift)

    lower = least if values[0] <= 1e-12 * size else 0.0
    if np.linalg.norm(step(lower)) <= radius:
        return step(lower)
    upper = lower + float(np.linalg.norm(along)) / radius
    for _ in range(60):
        middle = (lower + upper) / 2
        if np.linalg.norm(step(middle)) > radius:
            lower = middle
        else:
            upper = middle
        if upper - lower <= 1e-3 * upper:
            break
    return step(upper)
