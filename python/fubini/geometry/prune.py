"""Leaving out operations that are redundant: the others take over what they do, along the metric's null directions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fubini.geometry.evolution_steps import runge_kutta
from fubini.geometry.pool import Chain, Element, StartGates
from fubini.geometry.tangents import tangents
from fubini.metric.spectrum import MetricSpectrum
from fubini.options import Real

# Of a squared tangent that must be spanned by the others for its operation to be a candidate.
_REDUNDANT = 1e-9
# Radians of the weight per step of the integration.
_STEP = 0.05
# Singular values below this part of the largest are no directions to move in.
_RCOND = 1e-6


def without_redundant(
    start: StartGates,
    elements: Sequence[Element],
    weights: Real,
    wires: tuple[Any, ...],
    infidelity: float,
) -> tuple[list[Element], Real]:
    """Return the elements that are needed, and weights at which they make the same state.

    Args:
        start: Of the circuit.
        elements: Its elements.
        weights: (P,).
        wires: Of the circuit.
        infidelity: 1 - fidelity that is allowed in all.
    """
    kept, values = list(elements), weights.copy()
    target = Chain(start, kept, wires).state(values)
    tried: set[int] = set()
    while kept:
        candidates = [
            k for k in _redundant(Chain(start, kept, wires), values) if id(kept[k]) not in tried
        ]
        if not candidates:
            break
        # The one with the least to take over first.
        number = min(candidates, key=lambda k: abs(_reduced(kept[k], float(values[k]))))
        fewer = kept[:number] + kept[number + 1 :]
        values_at = values.copy()
        values_at[number] = _reduced(kept[number], float(values[number]))
        there = _led_to_zero(Chain(start, kept, wires), values_at, number)
        fidelity = abs(np.vdot(target, Chain(start, fewer, wires).state(there))) ** 2
        if 1.0 - fidelity <= infidelity + 1e-14:
            kept, values = fewer, there
        else:
            tried.add(id(kept[number]))
    return kept, values


def _redundant(chain: Chain, weights: Real) -> list[int]:
    """Weights whose tangents the others span: those that a null direction of the metric moves."""
    metric = tangents(chain, weights[None]).metric()[0]
    spectrum = MetricSpectrum.of_matrix(metric, rcond=_REDUNDANT)
    null = spectrum.eigenvectors[:, spectrum.rank :]
    return np.flatnonzero((null**2).sum(axis=1) > 1e-6).tolist()


def _reduced(one: Element, weight: float) -> float:
    """A weight up to full turns."""
    if not one.periodic:
        return float(weight)
    return float((weight + 2 * np.pi) % (4 * np.pi) - 2 * np.pi)


def _led_to_zero(chain: Chain, weights: Real, number: int) -> Real:
    """The other weights, after one has gone to 0 while they made up for it, by a Runge-Kutta integration."""
    values = weights.copy()
    way = -values[number]
    others = np.arange(chain.size) != number

    def velocity(_: float, at: Real) -> Real:
        vectors = tangents(chain, at[None]).weights[0]
        found = np.zeros(chain.size)
        found[number] = way
        if others.any():
            u, s, vt = np.linalg.svd(vectors[others].T, full_matrices=False)
            keep = s > _RCOND * s.max(initial=0.0)
            found[others] = -(vt[keep].T / s[keep]) @ (u[:, keep].T @ vectors[number]) * way
        return found

    steps = max(1, int(np.ceil(abs(way) / _STEP)))
    for _ in range(steps):
        values = runge_kutta(velocity, 0.0, 1.0 / steps, values, velocity(0.0, values))
    rest: Real = values[others]
    return rest
