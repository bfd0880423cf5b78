"""The full Fubini-Study metric on devices that return no states: with or without an auxiliary wire.

``"hadamard"``: Re <d_i psi|d_j psi> of gates in different layers by one Hadamard test per pair of Pauli words, on one
auxiliary wire (Li and Benjamin 2017, arXiv:1611.09301); blocks and means from the layers' probabilities.
``"fidelity"``: g = -1/2 of the second derivative of F(t') = |<psi(t)|psi(t')>|^2 at t' = t, by shifting two angles (Mari
et al. 2021, arXiv:2008.06517); F is the probability that the circuit followed by its inverse returns zeros only, so the
circuits are twice as deep, and no wire is needed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pennylane as qml

from fubini.circuit.any_angle import rebind
from fubini.circuit.tape import GateTape
from fubini.devices.block_metric import MetricEstimate, metric_job, refuse_channels
from fubini.devices.executor import Array
from fubini.devices.hessian import PairPlan, pair_plan, squared
from fubini.devices.insertion import check_auxiliary, controlled_word, labelled_letters, prepared
from fubini.devices.job import Job, together
from fubini.devices.shifts import at_settings, check_shots, refuse_without_rule
from fubini.devices.sweep import Sweep, sweep_of
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real

Method = Literal["hadamard", "fidelity"]


def full_metric_job(
    tape: GateTape, method: Method = "fidelity", *, shots: int | None = None, auxiliary: Any = None
) -> Job[MetricEstimate]:
    """Return the job that finds the full metric over the trainable angles.

    ``"hadamard"`` runs, for every input, one circuit per layer and one per pair of Pauli words of gates in different
    layers; ``"fidelity"`` runs 2 P (P - 1) + P for P angles with two-term rules, all settings of one circuit.

    Args:
        tape: The circuit, without channels.
        method: See the module.
        shots: Of every circuit; None for exact results.
        auxiliary: Label of a wire that the circuit does not use, for ``"hadamard"``; see :func:`free_wire`.

    Returns:
        The job.

    Raises:
        UnsupportedCircuitError: For channels; for ``"fidelity"``, gates without a shift rule or an inverse.
        ValueError: For an unknown method, an auxiliary wire that is missing or in use, or fewer than 2 shots.
    """
    check_shots(shots)
    refuse_channels(tape)
    if method == "fidelity":
        return fidelity_job(tape, shots)
    if method != "hadamard":
        raise ValueError(f"method: expected 'hadamard' or 'fidelity', got {method!r}")
    check_auxiliary(auxiliary, tape, "method='fidelity'")
    return _hadamard_job(tape, shots, auxiliary)


def free_wire(tape: GateTape, device: Any) -> Any:
    """Return the label of a wire of the device that a circuit leaves free.

    Args:
        tape: The circuit.
        device: The device.

    Returns:
        The label.

    Raises:
        UnsupportedCircuitError: If there is none.
    """
    if device.wires is None:
        label = "auxiliary"
        while label in tape.wires:
            label += "_"
        return label
    free = [w for w in device.wires if w not in tape.wires]
    if not free:
        raise UnsupportedCircuitError(
            f"device: expected one more wire than the circuit's {tape.wires.tolist()} for a Hadamard test, got "
            f"{device.name!r} with {device.wires.tolist()}; use method='fidelity'"
        )
    return free[0]


# -- with an auxiliary wire -------------------------------------------------------------------------------------


def _hadamard_job(tape: GateTape, shots: int | None, auxiliary: Any) -> Job[MetricEstimate]:
    blocks = metric_job(tape, shots=shots)
    trainable = tape.trainable
    order = tape.position
    home = {gate: k for k, layer in enumerate(tape.layers("wires")) for gate in layer.gates}
    operations = tape.operations
    sweeps: list[Sweep] = []
    terms: list[tuple[int, int, float]] = []
    for first, second in itertools.combinations(trainable, 2):
        if home[first] == home[second]:
            continue
        for (x, z, a), (u, v, b) in itertools.product(*tape.generators([first, second])):
            if not (x | z) or not (u | v):
                continue
            circuit = [
                *prepared(operations[: first + 1], qml.Hadamard(auxiliary)),
                controlled_word(labelled_letters(x, z, tape), auxiliary, 1),
                *operations[first + 1 : second + 1],
                controlled_word(labelled_letters(u, v, tape), auxiliary, 0),
                qml.Hadamard(auxiliary),
            ]
            sweeps.append(sweep_of(circuit, qml.probs(wires=[auxiliary]), shots))
            terms.append((order[first], order[second], a * b))
    # <K> without the identity's part, which drops out of covariances.
    offsets = np.array([sum(c for x, z, c in g if not x | z) for g in tape.generators(trainable)])

    def metric(found: tuple[MetricEstimate, list[list[Array]]]) -> MetricEstimate:
        inner, tests = found
        rows = max([len(inner.values), *(len(seen) for (seen,) in tests)])
        values = np.broadcast_to(inner.values, (rows, *inner.values.shape[1:])).copy()
        variances = np.broadcast_to(inner.variances, values.shape).copy()
        independent = inner.independent.copy()
        for (i, j, coefficient), (seen,) in zip(terms, tests, strict=True):
            overlap = seen[:, 0] - seen[:, 1]
            values[:, i, j] += coefficient * overlap
            if shots is not None:
                variances[:, i, j] += coefficient**2 * (1.0 - overlap**2) / (shots - 1)
            independent[i, j] = independent[j, i] = len(seen)
        means = inner.means - offsets
        # Of the means, from the variances of the generators; layers are measured independently of each other.
        spread = np.diagonal(inner.values, axis1=1, axis2=2) / (shots or 1) * (shots is not None)
        for i, j in dict.fromkeys((i, j) for i, j, _ in terms):
            parts = [(variances[:, i, j].copy(), independent[i, j])]
            for own, other in ((i, j), (j, i)):
                # A mean that is the same for all inputs has one error, however many inputs there are.
                count = inner.independent[own, own]
                slope = means[:, other].mean() ** 2 if count == 1 else means[:, other] ** 2
                parts.append((slope * spread[:, own], count))
            values[:, i, j] -= means[:, i] * means[:, j]
            noise = means[:, i] ** 2 * spread[:, j] + means[:, j] ** 2 * spread[:, i]
            variances[:, i, j] += np.maximum(noise - spread[:, i] * spread[:, j], 0.0)
            values[:, j, i] = values[:, i, j]
            variances[:, j, i] = variances[:, i, j]
            average = sum(float(np.mean(part)) / count for part, count in parts)
            if average > 0:
                independent[i, j] = independent[j, i] = variances[:, i, j].mean() / average
        circuits = inner.circuits + len(terms)
        return MetricEstimate(values, variances, inner.means, independent, circuits)

    return together(blocks, Job(tuple(sweeps), lambda answers: answers)).then(metric)


# -- without ----------------------------------------------------------------------------------------------------


def fidelities_job(tape: GateTape, settings: Real, shots: int | None) -> Job[Real]:
    """Return the job that finds fidelities with the circuit at other angles.

    Args:
        tape: The circuit.
        settings: Other angles, (settings, 1 or batch, angles).
        shots: Of every circuit.

    Returns:
        The job; its result is (settings, 1 or batch), the probability that all wires are measured as 0.
    """
    plain = _without_preparation(tape)
    shape = settings.shape[:2]
    here = np.repeat(np.broadcast_to(plain.angles, settings.shape[1:])[None], len(settings), axis=0)
    back = [_inverse(op) for op in reversed(at_settings(plain, here))]
    measurement = (qml.probs(wires=list(tape.wires)),)
    sweep = Sweep((*at_settings(plain, settings), *back), measurement, math.prod(shape), shots)
    return Job((sweep,), lambda answers: answers[0][0].reshape(*shape, -1)[..., 0])


def _inverse(op: Any) -> Any:
    if isinstance(op, qml.ops.Evolution):  # PennyLane's own cannot be broadcast
        return rebind(op, [-op.data[0]])
    try:
        return qml.adjoint(op, lazy=False)
    except (qml.exceptions.AdjointUndefinedError, NotImplementedError) as error:
        raise UnsupportedCircuitError(f"qnode: {op.name} has no inverse ({error})") from error


def _without_preparation(tape: GateTape) -> GateTape:
    """The same with the state preparation as gates, which have an inverse."""
    first = tape.gates[0]
    if not isinstance(first.operation, qml.operation.StatePrepBase):
        return tape
    gates = [replace(first, operation=op) for op in first.operation.decomposition()]
    return replace(tape, gates=(*gates, *tape.gates[1:]))


def fidelity_job(
    tape: GateTape, shots: int | None, pairs: Sequence[tuple[int, int]] | None = None
) -> Job[MetricEstimate]:
    """Return the job that finds the full metric, or some entries of it, from fidelities.

    Args:
        tape: The circuit, without channels.
        shots: Of every circuit; None for exact results.
        pairs: Trainable angles (i, j), i <= j, whose entries are wanted, the others being zero; None: all. Different entries
            have circuits of their own, where i != j.

    Returns:
        The job.

    Raises:
        UnsupportedCircuitError: For gates without a shift rule or an inverse.
    """
    plan: PairPlan = pair_plan(refuse_without_rule(tape, "a fidelity's second derivative"), pairs)
    rows, count = tape.rows, len(tape.trainable)
    # The circuit with itself has fidelity 1 and is not run.
    run = [k for k, setting in enumerate(plan.settings) if setting]

    def metric(zeros: Real) -> MetricEstimate:
        values = np.ones((len(plan.settings), rows, 1))
        values[run, :, 0] = zeros
        noise = np.zeros_like(values)
        if shots is not None:
            noise[run, :, 0] = zeros * (1.0 - zeros) / (shots - 1)
        found = -0.5 * plan.matrices(values, count)[:, 0]
        variances = 0.25 * squared(plan).matrices(noise, count)[:, 0]
        independent = np.full((count, count), float(rows))
        means = np.full((rows, count), np.nan)  # fidelities do not tell them
        return MetricEstimate(found, variances, means, independent, len(run))

    return fidelities_job(tape, plan.angles(tape.at)[run], shots).then(metric)
