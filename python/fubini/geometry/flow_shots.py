r"""McLachlan's principle on devices that return estimates: no states, but shots, and errors of what they estimate.

The principle :math:`g\dot w = b` is that of :mod:`fubini.geometry.flow`. The metric comes from fidelities (Mari et al.
2021, arXiv:2008.06517). In real time so does :math:`b_j = \sum_k h_k\,\mathrm{Im}\langle\partial_j\psi|(1 -
|\psi\rangle\langle\psi|)P_k|\psi\rangle` of :math:`H = \sum_k h_k P_k`: these are entries of the metric of the circuit with
one more gate :math:`\exp(-i s P_k)`, at s = 0. In imaginary time b is minus half the gradient of the energy, from shift rules.
With S words P angles of two-term rules have 2 P (P - 1) + P circuits for the metric and 4 P S, or 2 P for every basis that H is
measured in, for b.

A velocity is solved for in the metric's eigen-directions, weighed by their signal-to-noise ratio
(:mod:`fubini.devices.signal_to_noise`). Noise is nothing that an adaptive step could make small, so that the steps are fixed: the
classical Runge-Kutta method, whose steps average the noise of their four velocities as four short ones of Euler's would. The
residual is estimated from the same numbers, :math:`r^2 = \mathrm{Var} H - 2 b^\top\dot w + \dot w^\top g\dot w`, with an error
of its own. It says what the ansatz misses, and not how far the noise has carried the weights: no bound is claimed.

Without shots on a device that returns no states, everything is exact, and the velocity that of :mod:`fubini.geometry.flow`
with its cut-off.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml

from fubini.devices.full_metric import fidelity_job
from fubini.devices.job import Job, together
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.signal_to_noise import SignalToNoise, snr_direction
from fubini.geometry.device_ansatz import DeviceAnsatz, operator_of, with_word
from fubini.geometry.evolution_result import SampledEvolution
from fubini.geometry.evolution_steps import runge_kutta
from fubini.geometry.flow import Time, velocity
from fubini.geometry.hamiltonians import Hamiltonian
from fubini.geometry.operators import Terms, merged_terms
from fubini.options import Real


@dataclass(frozen=True, eq=False)
class SampledVelocity:
    """An estimate of the velocity of P weights, and what it was made of.

    Attributes:
        weights: dw/dt, (P,).
        force: b, (P,).
        force_covariance: Of its estimate, (P, P).
        metric: g, (P, P).
        metric_errors: Standard errors, (P, P).
        vectors: The metric's eigenvectors, in columns, (P, P).
        gains: How fast the velocity grows with b along every eigenvector, (P,).
    """

    weights: Real
    force: Real
    force_covariance: Real
    metric: Real
    metric_errors: Real
    vectors: Real
    gains: Real

    def missed(self, variance: float, error: float) -> tuple[float, float]:
        """Return the squared residual of the velocity, which noise may make negative, and its standard error.

        The velocity fits the noise of b and g as well, by which the residual would come out too small; what it is on average,
        twice the covariance of the velocity with the noise, is added (Stein's lemma, as the noise is nearly Gaussian).

        Args:
            variance: Var H.
            error: Its standard error.
        """
        v: Real = self.weights
        value = float(variance - 2.0 * self.force @ v + v @ self.metric @ v)
        spread = self.metric_errors**2
        square = v**2
        # An entry and its mirror image are one estimate, which counts twice.
        noise = float(2.0 * square @ spread @ square - np.diagonal(spread) @ square**2)
        noise += float(4.0 * v @ self.force_covariance @ v) + error**2
        # Of what the velocity is solved from, b - g v.
        defect = self.force_covariance + np.outer(v, v) * spread
        defect = defect + np.diag(spread @ square - np.diagonal(spread) * square)
        fitted = self.gains * np.einsum("ik,ij,jk->k", self.vectors, defect, self.vectors)
        value += 2.0 * float(fitted.sum())
        noise += 8.0 * float(fitted @ fitted)
        return value, max(noise, 0.0) ** 0.5


def _no_certainty(errors: Real) -> Real:
    """Return a metric's errors with those on the diagonal at least typical.

    Fidelities of which all shots agree have errors of zero, as for a gate that does nothing. With a direction that is flat for
    certain the noise of b would be divided by the square of that of the other entries, and grow with the shots.
    """
    result = errors.copy()
    typical = np.sqrt(np.mean(errors**2))
    np.fill_diagonal(result, np.maximum(np.diagonal(errors), typical))
    return result


def _exact_velocity(metric: Real, force: Real, variance: float, allowed: float) -> Real:
    """Return what the principle makes of tangents and a direction that have these inner products, (P,)."""
    squares, vectors = np.linalg.eigh(metric)
    lengths = np.sqrt(np.maximum(squares, 0.0))
    # Squares of less are rounding, and far below what the principle's cut-off leaves.
    known = lengths > 1e-7 * lengths[-1]
    along = np.where(known, vectors.T @ force / np.where(known, lengths, 1.0), 0.0)
    rest = np.sqrt(max(variance - float(along @ along), 0.0))
    # One more dimension for what no tangent reaches.
    tangents = np.hstack([vectors * np.where(known, lengths, 0.0), np.zeros((len(force), 1))])
    found: Real = velocity(tangents[None], np.append(along, rest)[None], allowed).weights[0]
    return found


class SampledFlow:
    """McLachlan's principle for a circuit on a device.

    Args:
        ansatz: The circuit.
        hamiltonian: Without an axis of trajectories.
        time: ``"real"`` or ``"imaginary"``.
        allowed: What the cut-off may add to the residual of exact results, see :mod:`fubini.geometry.flow`.

    Attributes:
        evaluations: How many velocities were estimated.
    """

    def __init__(
        self, ansatz: DeviceAnsatz, hamiltonian: Hamiltonian, time: Time, allowed: float
    ) -> None:
        self.ansatz, self.hamiltonian, self.time, self.allowed = ansatz, hamiltonian, time, allowed
        self.evaluations = 0

    def terms(self, t: float) -> tuple[Terms, float]:
        """Return the words of H(t), without the identity, and the part along the identity."""
        coefficients = self.hamiltonian.coefficients(t)[0]
        found = merged_terms(self.hamiltonian.operators, coefficients)
        constant = sum(c for word, _, c in found if not word)
        return tuple(term for term in found if term[0] and term[2]), constant

    def __call__(
        self, t: float, weights: Real, observables: Sequence[Terms] = (), values: bool = False
    ) -> tuple[SampledVelocity, Real]:
        """Estimate the velocity at weights (P,), in one execution.

        Args:
            t: The time.
            weights: (P,).
            observables: M operators, for ``values``.
            values: Whether <H>, Var H and the observables are wanted too.

        Returns:
            The velocity, and values with their standard errors, (2, 2 + M), or of no columns.
        """
        self.evaluations += 1
        terms, constant = self.terms(t)
        tape = self.ansatz.tape(weights)
        exact = tape.shots is None
        metric = fidelity_job(tape, tape.shots)
        job = together(
            metric.then(lambda found: found.pulled_back(tape.jacobian)),
            self._force(tape, terms),
            # The cut-off of exact results depends on Var H.
            self._values(tape, terms, constant, observables if values or exact else None),
        )
        (matrix, errors), (force, covariance), seen = job.run(self.ansatz.executor)
        if exact:
            moved = _exact_velocity(matrix, force, float(seen[0, 1]), self.allowed)
            gains = np.zeros(len(moved))  # of no noise
            vectors = np.eye(len(moved))
        else:
            tolerance = SignalToNoise().tolerance
            found = snr_direction(
                force, covariance, matrix, _no_certainty(errors), tolerance=tolerance
            )
            moved, vectors, gains = found.values, found.vectors, found.gains
        estimate = SampledVelocity(moved, force, covariance, matrix, errors, vectors, gains)
        return estimate, seen

    def _force(self, tape: Any, terms: Terms) -> Job[tuple[Real, Real]]:
        """Estimate b and its covariance."""
        size, shots = tape.jacobian.shape[2], tape.shots
        if not terms:
            return Job((), lambda answers: (np.zeros(size), np.zeros((size, size))))
        jacobian = tape.jacobian[0]
        if self.time == "imaginary":
            operator = operator_of(terms, tape.wires)
            measured = replace(tape, measurements=(qml.expval(operator),))

            def half(found: Any) -> tuple[Real, Real]:
                noise = found.covariance(np.ones((1, 1)))[0]
                force = -0.5 * jacobian.T @ found.jacobian[0, 0]
                return force, 0.25 * jacobian.T @ noise @ jacobian

            return gradient_job(measured, shots=shots).then(half)
        last = len(tape.trainable)
        extended = [with_word(tape, word, wires) for word, wires, _ in terms]
        pairs = [(j, last) for j in range(last)]
        jobs = [fidelity_job(one, shots, pairs) for one in extended]

        def summed(found: tuple[Any, ...]) -> tuple[Real, Real]:
            # Twice: PauliRot turns by s / 2 in what the estimates are about, angles.
            scales = [2.0 * c for _, _, c in terms]
            along = sum(
                c * one.values[0, :last, last] for c, one in zip(scales, found, strict=True)
            )
            noise = sum(
                c**2 * one.errors[0, :last, last] ** 2 for c, one in zip(scales, found, strict=True)
            )
            return jacobian.T @ along, (jacobian.T * noise) @ jacobian

        return together(*jobs).then(summed)

    def _values(
        self, tape: Any, terms: Terms, constant: float, observables: Sequence[Terms] | None
    ) -> Job[Real]:
        """Estimate <H>, Var H and expectation values, with their standard errors."""
        if observables is None:
            return Job((), lambda answers: np.zeros((2, 0)))
        operators = [terms, *[tuple(t for t in one if t[0]) for one in observables]]
        offsets = [constant, *[sum(t[2] for t in one if not t[0]) for one in observables]]
        columns = [0, *range(2, 2 + len(observables))]
        result = np.zeros((2, 2 + len(observables)))
        result[0, columns] = offsets
        measurements, places = [], []
        for column, words in zip(columns, operators, strict=True):
            if words:
                measurements.append(qml.expval(operator_of(words, tape.wires)))
                places.append(column)
        if terms:
            measurements.append(qml.var(operator_of(terms, tape.wires)))
            places.append(1)
        if not measurements:
            return Job((), lambda answers: result)

        def read(found: Any) -> Real:
            readout, features = found.readout, found.features
            noise = found.variance(np.eye(features.shape[-1]))
            values = result.copy()
            values[0, places] += readout.results(features, noise)[0]
            values[1, places] = np.sqrt(found.variance(readout.slopes(features))[0])
            return values

        measured = replace(tape, measurements=tuple(measurements))
        return values_job(measured, shots=tape.shots).then(read)


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

    def slope(t: float, w: Real) -> Real:
        return flow(t, w)[0].weights

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
            first = visit(t, weights, every or not number).weights
            weights = runge_kutta(slope, t, following, weights, first)
    visit(float(times[-1]), weights, True)
    table, squares = np.stack(seen), np.array(residuals)
    flat = np.stack(points)

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
        _continue=partial(evolve_sampled, flow, observables, step, tolerance, weights),
        shots=flow.ansatz.shots,
        usage=flow.ansatz.executor.usage - before,
        energy_errors=table[:, 1, 0],
        variance_errors=table[:, 1, 1],
        residual_squares=squares[:, 0],
        residual_square_errors=squares[:, 1],
        observable_errors={n: table[:, 1, 2 + k] for k, n in enumerate(observables)},
    )
