"""The block-diagonal metric from shots: unbiased covariances of the generators, and their standard errors.

Every layer of commuting gates is measured by one circuit, in a basis in which its generators are diagonal. Of the S
observed outcomes the sample covariance with S - 1 in the denominator is an unbiased estimate of the layer's block, and
its variance is estimated from the same outcomes by k-statistics, without bias too (Kendall and Stuart, The Advanced
Theory of Statistics, volume 1, chapters 12 and 13).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml

from fubini.arrays import hermitian
from fubini.circuit.gate_layers import Layer
from fubini.circuit.tape import GateTape
from fubini.devices.basis import DiagonalBasis, diagonal_basis
from fubini.devices.executor import Array
from fubini.devices.job import Job, Measured
from fubini.devices.shifts import check_shots
from fubini.devices.sweep import Sweep, sweep_of
from fubini.errors import UnsupportedCircuitError
from fubini.options import LayerRule, Real


@dataclass(frozen=True)
class MetricEstimate(Measured):
    """The metric over the trainable angles, and its standard errors.

    Attributes:
        values: (1 or batch, angles, angles); zero outside the blocks.
        variances: Of the same shape; zeros for exact results and for entries that are not measured. They are unbiased;
            where a variance is near the largest possible, its error is of order 1/shots and may be estimated as 0.
        means: (1 or batch, angles), the generators' expectation values.
        independent: (angles, angles), over how many inputs an entry was measured: 1 for a layer that no input precedes,
            in between where only parts of it were.
        circuits: How many circuits were run for every input.
    """

    means: Real
    independent: Real
    circuits: int

    def pulled_back(self, jacobian: Real) -> tuple[Real, Real]:
        """Return the metric over weights averaged over the inputs, and its standard errors.

        Different entries of one block are measured together; where several angles share a weight, their correlation
        is left out of the standard errors.

        Args:
            jacobian: d angle / d weight, (1 or batch, angles, weights).

        Returns:
            Two arrays (weights, weights).
        """
        mean = (np.swapaxes(jacobian, 1, 2) @ self.values @ jacobian).mean(axis=0)
        noise = self.variances / self.independent
        square = jacobian**2
        variance = (np.swapaxes(square, 1, 2) @ noise @ square).mean(axis=0)
        used = jacobian != 0
        if used.sum(axis=1).max(initial=0) > 1 or used.sum(axis=2).max(initial=0) > 1:
            # Entries (i, j) and (j, i) are the same estimate.
            off = noise * (1.0 - np.eye(noise.shape[1]))
            pairs = (
                jacobian[:, :, :, None] * jacobian[:, :, None, :]
            )  # (batch, angles, weights, weights)
            cross = (off @ pairs.reshape(*pairs.shape[:2], -1)).reshape(-1, *pairs.shape[1:])
            variance = variance + (pairs * cross).sum(axis=1).mean(axis=0)
        return 0.5 * (mean + mean.T), np.sqrt(np.maximum(variance, 0.0))


def layer_basis(tape: GateTape, layer: Layer) -> DiagonalBasis:
    """Return the basis in which the generators of a layer are diagonal.

    Raises:
        UnsupportedCircuitError: If only a unitary on more than 5 wires would do.
    """
    found = diagonal_basis(tape.generators(layer.gates), list(tape.wires))
    if found is None:
        names = sorted({tape.gates[i].operation.name for i in layer.gates})
        raise UnsupportedCircuitError(
            f"qnode: the generators of {names} have no common basis on up to 5 wires that could be measured; decompose "
            "these gates into Pauli rotations"
        )
    return found


def layer_sweep(
    tape: GateTape, layer: Layer, basis: DiagonalBasis, shots: int | None = None
) -> Sweep:
    """Return the circuit in front of a layer, measured in a basis of the layer's generators."""
    before = (tape.gates[i].operation for i in layer.before)
    return sweep_of([*before, *basis.gates], qml.probs(wires=list(basis.wires)), shots)


def metric_job(
    tape: GateTape,
    *,
    shots: int | None = None,
    diagonal: bool = False,
    layers: LayerRule = "wires",
    angles: Sequence[int] | None = None,
) -> Job[MetricEstimate]:
    """Return the job that finds the block-diagonal metric from measured probabilities.

    It runs one circuit per layer of gates that depend on weights, and input.

    Args:
        tape: The circuit, without channels.
        shots: Of every circuit; None for exact results.
        diagonal: Only the variances.
        layers: Which gates form a block, see ``fubini.circuit.gate_layers``.
        angles: Trainable angles to take; layers without any of them are not run. None for all.

    Returns:
        The job.

    Raises:
        UnsupportedCircuitError: For channels, and generators without a basis to measure in.
        ValueError: For fewer than 2 shots.
    """
    check_shots(shots)
    refuse_channels(tape)
    order = tape.position
    chosen = set(range(len(order)) if angles is None else angles)
    wanted = [
        layer for layer in tape.layers(layers) if any(order[i] in chosen for i in layer.gates)
    ]
    bases = [layer_basis(tape, layer) for layer in wanted]
    sweeps = [
        layer_sweep(tape, layer, basis, shots) for layer, basis in zip(wanted, bases, strict=True)
    ]

    def finish(answers: list[list[Array]]) -> MetricEstimate:
        count = len(order)
        rows = max((len(parts[0]) for parts in answers), default=1)
        values = np.zeros((rows, count, count))
        variances = np.zeros_like(values)
        means = np.zeros((rows, count))
        independent = np.ones((count, count))
        for layer, basis, (seen,) in zip(wanted, bases, answers, strict=True):
            keep = [k for k, i in enumerate(layer.gates) if order[i] in chosen]
            indices = np.array([order[layer.gates[k]] for k in keep])
            block, variance, mean = covariances(
                basis.values()[keep], seen.reshape(len(seen), -1), shots
            )
            if diagonal:
                mask = np.eye(len(keep), dtype=bool)
                block, variance = block * mask, variance * mask
            values[:, indices[:, None], indices] = block
            variances[:, indices[:, None], indices] = variance
            means[:, indices] = mean
            independent[indices[:, None], indices] = len(block)
        return MetricEstimate(values, variances, means, independent, len(wanted))

    return Job(tuple(sweeps), finish)


def covariances(values: Real, frequencies: Real, shots: int | None) -> tuple[Real, Real, Real]:
    """Return covariances, their variances, and means.

    Args:
        values: Of every quantity for every outcome, (k, outcomes).
        frequencies: Of the outcomes, (batch, outcomes).
        shots: Number of observations; None: the frequencies are probabilities.

    Returns:
        Unbiased covariances (batch, k, k), estimates of their variances (batch, k, k), and means (batch, k).
    """
    means = frequencies @ values.T
    centred = values[None] - means[:, :, None]  # (batch, k, outcomes)
    weighted = centred * frequencies[:, None, :]
    moments = hermitian(weighted @ np.swapaxes(centred, 1, 2))
    if shots is None:
        return moments, np.zeros_like(moments), means
    result = moments * (shots / (shots - 1))
    square = centred**2
    fourth = (square * frequencies[:, None, :]) @ np.swapaxes(square, 1, 2)
    return result, _variances(moments, fourth, shots), means


def _variances(second: Real, fourth: Real, n: int) -> Real:
    """Unbiased estimates of the variances of sample covariances, from the sample's central moments."""
    # Var(k11) = K22/n + (K20 K02 + K11^2)/(n - 1) in cumulants. K22 has the unbiased k-statistic k22; the products
    # follow from E(k20 k02) = K20 K02 + K22/n + 2 K11^2/(n - 1) and E(k11^2) = K11^2 + Var(k11).
    variances = np.diagonal(second, axis1=1, axis2=2)
    products = variances[:, :, None] * variances[:, None, :]
    if n < 4:  # the plain estimate; k22 needs four observations
        estimate = (fourth - second**2) / n + (second**2 + products) / (n * (n - 1))
        return np.maximum(estimate, 0.0)
    k22 = (n + 1) * fourth - (n - 1) * (products + 2.0 * second**2)
    k22 *= n**2 / ((n - 1) * (n - 2) * (n - 3))
    scale = (n / (n - 1)) ** 2
    a = scale * products - k22 / n
    c = scale * second**2 - k22 / n
    square = (c - a / (n - 1)) / (n / (n - 1) - 2.0 / (n - 1) ** 2)
    # Unbiased, so that it is negative now and then where it is of second order, as for a fair coin.
    return np.maximum(scale * second**2 - square, 0.0)


def refuse_channels(tape: GateTape) -> None:
    """Raise an error if the circuit has noise channels.

    Raises:
        UnsupportedCircuitError: Names the channel.
    """
    for gate in tape.gates:
        if isinstance(gate.operation, qml.operation.Channel):
            raise UnsupportedCircuitError(
                f"qnode: {gate.operation.name} is a channel, and the Fubini-Study metric is defined for pure states; "
                "use fubini.quantum_fisher(qnode)(...) on default.mixed, which is four times the metric where states are "
                "pure, or fubini.devices.mixed for other metrics of mixed states"
            )
