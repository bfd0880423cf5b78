"""Variational time evolution on devices with shots: fixed steps of estimated velocities, see :mod:`fubini.geometry.flow_shots`."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fubini.geometry.evolution_options import times_of
from fubini.geometry.evolution_sampled import SampledEvolution
from fubini.geometry.flow_shots import SampledFlow, SampledVelocity
from fubini.geometry.operators import Terms
from fubini.options import Real


def evolve_sampled(
    flow: SampledFlow,
    observables: Mapping[str, Terms],
    step: float,
    tolerance: float,
    weights: Real,
    times: Real,
    every: bool,
) -> SampledEvolution:
    """Evolve a circuit on a device by the classical Runge-Kutta method with fixed steps.

    Args:
        flow: The principle.
        observables: What to measure along the way.
        step: The longest step; those between two times are of equal length.
        tolerance: What the cut-off of exact results may add to the state's error, as of :func:`fubini.evolve`.
        weights: Where to start, (P,).
        times: What the result has, the start first.
        every: Whether it has the times of all steps too.

    Returns:
        The trajectory.
    """
    flow.allowed = tolerance / float(times[-1] - times[0])
    operators = list(observables.values())
    before, evaluations, count = flow.ansatz.executor.usage, flow.evaluations, 0
    moments: list[float] = []
    points: list[Real] = []
    seen: list[Real] = []
    residuals: list[tuple[float, float]] = []

    def visit(t: float, w: Real, wanted: bool) -> SampledVelocity:
        found, values = flow(t, w, operators, wanted)
        if wanted:
            moments.append(t)
            points.append(w)
            seen.append(values)
            residuals.append(found.missed(*values[:, 1].tolist()))
        return found

    for start, end in itertools.pairwise(times.tolist()):
        steps = max(1, math.ceil((end - start) / step * (1.0 - 1e-12)))
        grid = np.linspace(start, end, steps + 1).tolist()
        count += steps
        for number, (t, following) in enumerate(itertools.pairwise(grid)):
            h = following - t
            first = visit(t, weights, every or not number).weights
            second = flow(t + h / 2, weights + h / 2 * first)[0].weights
            third = flow(t + h / 2, weights + h / 2 * second)[0].weights
            fourth = flow(following, weights + h * third)[0].weights
            weights = weights + h / 6 * (first + 2 * second + 2 * third + fourth)
    visit(float(times[-1]), weights, True)
    table, squares = np.stack(seen), np.array(residuals)
    flat = np.stack(points)

    def extended(result: SampledEvolution, until: Any) -> SampledEvolution:
        later, all_steps = times_of(until, after=float(result.times[-1]))
        more = evolve_sampled(
            flow, observables, step, tolerance, result._flat[-1], later, all_steps
        )
        return result._joined(more)

    return SampledEvolution(
        times=np.array(moments),
        weights=flow.ansatz.shaped(flat),
        energies=table[:, 0, 0],
        variances=table[:, 0, 1],
        residuals=np.sqrt(np.maximum(squares[:, 0], 0.0)),
        angle_bound=np.full(len(moments), np.nan),
        observables={n: table[:, 0, 2 + k] for k, n in enumerate(observables)},
        time=flow.time,
        method="RK4",
        evaluations=flow.evaluations - evaluations,
        steps=count,
        _flat=flat,
        _ansatz=flow.ansatz,
        _continue=extended,  # type: ignore[arg-type]
        shots=flow.ansatz.shots,
        usage=flow.ansatz.executor.usage - before,
        energy_errors=table[:, 1, 0],
        variance_errors=table[:, 1, 1],
        residual_squares=squares[:, 0],
        residual_square_errors=squares[:, 1],
        observable_errors={n: table[:, 1, 2 + k] for k, n in enumerate(observables)},
    )
