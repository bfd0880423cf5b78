"""Classical Fisher information of what is measured, and its mean over random measurement bases.

F_ij = sum_x d_i p_x d_j p_x / p_x is the metric of the measured distribution; it is at most the quantum Fisher
information 4 g (Meyer 2021, arXiv:2103.15191). In a random basis it keeps half of that on average: for Haar-random bases
the mean of F is 2 g, which makes half of a measured F an estimate of g from one shift rule's circuits instead of one circuit
per pair of angles (Kolotouros and Wallden 2023, arXiv:2311.04135).

With n of N shots for an outcome, 1/p is estimated by (N + 1)/(n + 1), whose mean is (1 - (1 - p)^(N+1))/p, and from d_i^2 the
unbiased estimate of its variance is taken off. The result is unbiased but for outcomes that hardly ever occur: an
outcome's share of F is too small by the factor 1 - (1 - p)^(N+1).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.arrays import hermitian
from fubini.circuit.gate_layers import GateShape
from fubini.circuit.tape import Gate, GateTape
from fubini.devices.executor import STATE_VECTORS, Executor
from fubini.devices.gradient import Gradient
from fubini.devices.job import Job, Measured, together
from fubini.devices.shifts import frequencies, gradient_job, has_rule
from fubini.errors import NumericalError
from fubini.options import Real

# d^2/p of less likely outcomes is its limit for p = 0. Exact results have errors of 1e-16, those of density matrices also
# in p, so that d^2/p is off by 2e-16 / sqrt(p) of itself; the limit by sqrt(p).
_CUTOFF = 1e-12
_CUTOFF_OF_STATES = 1e-18
# Second derivatives below this are rounding of zero.
_FLAT = 1e-9


def classical_fisher(probabilities: Real, derivatives: Real, cutoff: float = _CUTOFF) -> Real:
    """Return the Fisher information of distributions, as far as their outcomes occur.

    Args:
        probabilities: (batch, outcomes).
        derivatives: (batch, outcomes, angles).
        cutoff: Outcomes of smaller probability count nothing here, see :func:`vanishing_outcomes`.

    Returns:
        (batch, angles, angles).
    """
    roots = np.sqrt(np.where(probabilities > cutoff, probabilities, np.inf))
    scaled = derivatives / roots[..., None]
    return hermitian(np.swapaxes(scaled, 1, 2) @ scaled)


def vanishing_outcomes(probabilities: Real, curvatures: Real, cutoff: float) -> Real:
    """Return what outcomes contribute to the Fisher information whose probability and its derivative vanish.

    Near its zero p is a quadratic form c t^2 / 2 of the one angle t that it depends on, and (dp/dt)^2 / p = 2 c.

    Args:
        probabilities: (batch, outcomes).
        curvatures: Second derivatives by every angle, (batch, outcomes, angles); NaN where they are not known.
        cutoff: Below it a probability counts as zero.

    Returns:
        (batch, angles), the diagonal; nothing else is there.

    Raises:
        NumericalError: If such an outcome depends on several angles: the limit then depends on the direction.
    """
    gone = (probabilities <= cutoff)[..., None]
    bent = gone & ~(np.abs(curvatures) <= _FLAT)
    several = bent.sum(axis=2) > 1
    unknown = (bent & np.isnan(curvatures)).any(axis=2)
    if (several | unknown).any():
        row, outcome = np.argwhere(several | unknown)[0]
        angles = np.flatnonzero(bent[row, outcome]).tolist()
        raise NumericalError(
            f"fisher_job: outcome {outcome} of input {row} has probability 0, and d_i p d_j p / p has no value there: its "
            f"limit depends on how the angles {angles} approach this point. Move the angles, by 1e-3 say, or take the "
            "metric of the state (metric_job), which is smooth"
        )
    limits: Real = np.where(bent, 2.0 * curvatures, 0.0).sum(axis=1)
    return limits


def _curvatures(tape: GateTape, found: Gradient) -> Real:
    """Second derivatives of the outcomes by every single angle, from the circuits of the first ones."""
    assert found.base is not None
    generators = tape.generators(tape.trainable)
    count = len(generators)
    here = found.base.features
    result = np.full((*here.shape, count), np.nan)
    shiftable = [j for j in range(count) if has_rule(generators[j])]
    if not shiftable:
        return result
    rules = [list(frequencies(generators[j]) or ()) for j in shiftable]
    plan = _core.ShiftPlan(shiftable, rules)
    offsets = plan.angles(np.zeros((1, count)))[:, 0]
    terms = found.terms[0]
    for j, rule in zip(shiftable, rules, strict=True):
        own = np.flatnonzero(terms.angles == j)
        shifts = np.concatenate([[0.0], offsets[own, j]])
        # A trigonometric polynomial: the combination that is right for every cosine and sine in it.
        waves = np.concatenate([[0.0], rule])[:, None]
        system = np.concatenate([np.cos(waves * shifts), np.sin(waves * shifts)])
        wanted = np.concatenate([-(waves[:, 0] ** 2), np.zeros(len(waves))])
        weights = np.linalg.lstsq(system, wanted, rcond=None)[0]
        result[..., j] = weights[0] * here + np.tensordot(
            weights[1:], terms.seen.features[own], axes=1
        )
    return result


def fisher_job(
    tape: GateTape, *, wires: Sequence[Any] | None = None, shots: int | None = None
) -> Job[Measured]:
    """Return the job that finds the Fisher information of the measured distribution over the trainable angles.

    It runs the circuits of a parameter-shift gradient and the circuit itself. With shots the result is nearly unbiased,
    see the module; its standard errors are to first order in 1/(N p), for outcomes that occur ten times or more.

    Args:
        tape: The circuit; its own measurements do not matter.
        wires: Labels of the wires that are measured; None: all.
        shots: Of every circuit; None for exact results.

    Returns:
        The job.

    Raises:
        NumericalError: When it runs exactly at angles where the information has no value: an outcome of probability 0
            that several angles would make possible.
    """
    labels = list(tape.wires) if wires is None else list(wires)
    measured = replace(tape, measurements=(qml.probs(wires=labels),))
    job = gradient_job(measured, shots=shots, values=True, rule="shift")

    if shots is not None:
        return job.then(lambda found: _sampled_fisher(found, shots))

    def exact(found: Gradient, cutoff: float = _CUTOFF) -> Measured:
        assert found.values is not None
        values = classical_fisher(found.values, found.jacobian, cutoff)
        if (found.values <= cutoff).any():
            limits = vanishing_outcomes(found.values, _curvatures(measured, found), cutoff)
            values = values + limits[:, :, None] * np.eye(limits.shape[1])
        return Measured(values, np.zeros_like(values))

    def choose(executor: Executor) -> Job[Measured]:
        of_states = executor.device.name in STATE_VECTORS
        return job.then(lambda found: exact(found, _CUTOFF_OF_STATES if of_states else _CUTOFF))

    return replace(job.then(exact), choose=choose)


def _sampled_fisher(found: Gradient, shots: int) -> Measured:
    """From frequencies: of the circuit itself, and of the circuits whose sums are the derivatives."""
    assert found.base is not None
    count = found.jacobian.shape[2]
    angles = np.concatenate([terms.angles for terms in found.terms])
    coefficients = np.concatenate([terms.coefficients for terms in found.terms])
    frequencies = np.concatenate([terms.seen.features for terms in found.terms])
    seen = found.base.features  # (batch, outcomes)
    which = np.zeros((count, len(angles)))  # circuits that an angle's derivative is made of
    which[angles, np.arange(len(angles))] = 1.0
    rows = [
        _sampled_row(row, frequencies[:, b], which, coefficients, shots)
        for b, row in enumerate(seen)
    ]
    return Measured(*(np.stack(part) for part in zip(*rows, strict=True)))


def _sampled_row(
    seen: Real, parts: Real, which: Real, coefficients: Real, n: int
) -> tuple[Real, Real]:
    """The estimate for one input, and the estimate of its variance.

    Args:
        seen: Frequencies of the circuit itself, (outcomes,).
        parts: Frequencies of the circuits that make the derivatives, (circuits, outcomes).
        which: 1 where a circuit belongs to an angle, (angles, circuits).
        coefficients: Of the circuits.
        n: Shots of every circuit.

    Returns:
        Two arrays (angles, angles).
    """
    counts = np.round(seen * n)
    inverse = (n + 1.0) / (counts + 1.0)
    derivatives = (which * coefficients) @ parts
    factors = which * coefficients**2 / (n - 1.0)
    own = factors @ (parts * (1.0 - parts))  # variances of the derivatives
    diagonal = np.eye(len(which))
    squares = derivatives**2 - own
    # Unbiased for d_i d_j and for its square, outcome by outcome, where the derivatives are normally distributed.
    fourth = derivatives**4 - 6.0 * derivatives**2 * own + 3.0 * own**2

    def summed(weights: Real) -> Real:
        product: Real = (derivatives * weights) @ derivatives.T
        return np.where(diagonal, (squares @ weights)[:, None], product)

    def summed_squares(weights: Real) -> Real:
        return np.where(diagonal, (fourth @ weights)[:, None], (squares * weights) @ squares.T)

    values = summed(inverse)
    # The jackknife over the shots of the circuit itself, of which only the estimates of 1/p depend.
    change = np.where(counts > 0, n / np.maximum(counts * (counts + 1.0), 1.0), 0.0)
    by_base = (
        (n - 1.0) / n * (summed_squares(counts * change**2) - summed(counts * change) ** 2 / n)
    )
    # Products of two derivatives, to second order: with estimates for derivatives, the first order has twice the second.
    scaled = derivatives * inverse
    first = factors @ (parts @ (scaled**2).T - (parts @ scaled.T) ** 2)
    weighted, square = parts * inverse**2, parts**2
    pairs = weighted @ (parts - square).T - (square * inverse**2) @ parts.T
    pairs += ((parts * inverse) @ parts.T) ** 2
    second = factors @ pairs @ factors.T
    by_parts = (first + first.T - second) * (1.0 + diagonal)
    return hermitian(values), hermitian(by_base + by_parts)


def random_basis_metric_job(
    tape: GateTape,
    *,
    bases: int = 1,
    depth: int | None = None,
    shots: int | None = None,
    seed: int | None = None,
) -> Job[Measured]:
    """Return the job that estimates the Fubini-Study metric by the Fisher information in random bases.

    Every basis costs what :func:`fisher_job` costs. A basis is made by ``depth`` layers of Haar-random rotations of every
    wire and a brick of CZ gates; for one wire it is Haar-random, for more it approaches that with the depth.

    Args:
        tape: The circuit, whose state is pure.
        bases: Number of bases to average over.
        depth: Layers; None: 2 for one wire, else 4 times the number of wires.
        shots: Of every circuit; None for exact results.
        seed: Of the bases.

    Returns:
        The job; its result is half the mean Fisher information. The errors are those of the choice of the bases and of
        the shots together, from the spread between the bases; infinite for one basis.

    Raises:
        ValueError: For numbers out of range.
    """
    for name, value in (("bases", bases), ("depth", depth)):
        if value is not None and (int(value) != value or value < 1):
            raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    rng = np.random.default_rng(seed)
    count = len(tape.wires)
    layers = depth if depth is not None else 2 if count == 1 else 4 * count
    everything = GateShape((1 << count) - 1, False, None)
    jobs = []
    for _ in range(bases):
        gates = [Gate(op, None, False, everything) for op in _random_basis(tape.wires, layers, rng)]
        jobs.append(fisher_job(replace(tape, gates=(*tape.gates, *gates)), shots=shots))

    def mean(found: tuple[Measured, ...]) -> Measured:
        halves = 0.5 * np.stack([one.values for one in found])
        values = halves.mean(axis=0)
        if bases == 1:
            return Measured(values, np.full_like(values, np.inf))
        return Measured(values, halves.var(axis=0, ddof=1) / bases)

    return together(*jobs).then(mean)


def _random_basis(wires: Any, layers: int, rng: np.random.Generator) -> list[Any]:
    operations: list[Any] = []
    for layer in range(layers):
        for wire in wires:
            phi, omega = rng.uniform(0.0, 2.0 * np.pi, 2)
            # sin(theta) is the density of Haar-random rotations.
            theta = np.arccos(rng.uniform(-1.0, 1.0))
            operations.append(qml.Rot(phi, theta, omega, wires=wire))
        for k in range(layer % 2, len(wires) - 1, 2):
            operations.append(qml.CZ([wires[k], wires[k + 1]]))
    return operations
