"""Classical Fisher information of what is measured, and its mean over random measurement bases.

F_ij = sum_x d_i p_x d_j p_x / p_x is the metric of the measured distribution; it is at most the quantum Fisher
information 4 g (Meyer 2021, arXiv:2103.15191). In a random basis it keeps half of that on average: for Haar-random bases
the mean of F is 2 g, which makes half of a measured F an estimate of g from one shift rule's circuits instead of one circuit
per pair of angles (Kolotouros and Wallden 2023, arXiv:2311.04135).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini._arrays import hermitian
from fubini.devices.executor import Array
from fubini.devices.job import Job, together
from fubini.devices.shifts import gradient_job
from fubini.layers import GateShape
from fubini.tape import Gate, GateTape

FloatArray = npt.NDArray[np.float64]

# Outcomes less likely than this are left out: p and its derivative vanish together there.
_CUTOFF = 1e-12


def classical_fisher(probabilities: FloatArray, derivatives: FloatArray) -> FloatArray:
    """Return the Fisher information of distributions.

    Args:
        probabilities: (batch, outcomes).
        derivatives: (batch, outcomes, angles).

    Returns:
        (batch, angles, angles). Outcomes of probability below 1e-12 count nothing.
    """
    seen = probabilities > _CUTOFF
    scaled = (
        derivatives
        * np.where(seen, 1.0 / np.sqrt(np.where(seen, probabilities, 1.0)), 0.0)[..., None]
    )
    return hermitian(np.swapaxes(scaled, 1, 2) @ scaled)


def fisher_job(
    tape: GateTape, *, wires: Sequence[Any] | None = None, shots: int | None = None
) -> Job[FloatArray]:
    """Return the job that finds the Fisher information of the measured distribution over the trainable angles.

    It runs the circuits of a parameter-shift gradient and the circuit itself. With shots the result is biased upwards by
    O(1 / shots), because the probabilities stand in the denominator and noise in the derivatives is squared.

    Args:
        tape: The circuit; its own measurements do not matter.
        wires: Labels of the wires that are measured; None: all.
        shots: Of every circuit; None for exact results.

    Returns:
        The job; its result is (1 or batch, angles, angles).
    """
    labels = list(tape.wires) if wires is None else list(wires)
    measured = replace(tape, measurements=(qml.probs(wires=labels),))
    job = gradient_job(measured, shots=shots, values=True)

    def finish(answers: list[list[Array]]) -> FloatArray:
        found = job.finish(answers)
        assert found.values is not None
        return classical_fisher(found.values, found.jacobian)

    return Job(job.sweeps, finish)


def random_basis_metric_job(
    tape: GateTape,
    *,
    bases: int = 1,
    depth: int | None = None,
    shots: int | None = None,
    seed: int | None = None,
) -> Job[FloatArray]:
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
        The job; its result is half the mean Fisher information, (1 or batch, angles, angles).

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
    joined = together(*jobs)
    return Job(joined.sweeps, lambda answers: 0.5 * np.mean(joined.finish(answers), axis=0))


def _random_basis(wires: Any, layers: int, rng: np.random.Generator) -> list[Any]:
    operations: list[Any] = []
    for layer in range(layers):
        for wire in wires:
            phi, omega = rng.uniform(0.0, 2.0 * np.pi, 2)
            theta = np.arccos(
                rng.uniform(-1.0, 1.0)
            )  # sin(theta) is the density of Haar-random rotations
            operations.append(qml.Rot(phi, theta, omega, wires=wire))
        for k in range(layer % 2, len(wires) - 1, 2):
            operations.append(qml.CZ([wires[k], wires[k + 1]]))
    return operations
