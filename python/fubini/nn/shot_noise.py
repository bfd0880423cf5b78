"""Gradients of layers with shots: what their noise is, from the shifted circuits of the backward passes themselves.

The gradient by a layer's angles is a sum of measured derivatives times what the backward pass brought, the cotangents.
Given the cotangents, its covariance follows from the same shots; how the noise of the layer's results changes the
cotangents themselves, through a loss that is not linear, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fubini.circuit.tape import GateTape
from fubini.devices.block_metric import MetricEstimate, metric_job
from fubini.devices.full_metric import full_metric_job
from fubini.devices.gradient import Gradient
from fubini.devices.job import Job
from fubini.options import LayerRule, Real


@dataclass(frozen=True)
class Contribution:
    """One backward pass through a circuit.

    Attributes:
        tape: The circuit, whose weights are its angles.
        gradient: The derivatives that were measured.
        cotangents: (1 or batch, outputs).
        backward: Torch's number of the backward pass.
    """

    tape: GateTape
    gradient: Gradient
    cotangents: Real
    backward: int


@dataclass
class ShotNoise:
    """What became of one forward pass.

    Attributes:
        wanted: Whether backward passes are kept.
        contributions: Those that were.
    """

    wanted: bool = False
    contributions: list[Contribution] = field(default_factory=list)


def estimated_metric(
    layer: Any, tape: GateTape, approx: str | None, layers: LayerRule
) -> tuple[Real, Real]:
    """Return a layer's metric over its weights, averaged over the inputs, and its standard errors.

    Args:
        layer: The layer, with shots.
        tape: Its circuit.
        approx: As in ``fubini.metric_tensor``; the full metric comes from fidelities.
        layers: Likewise.

    Returns:
        Two arrays (weights, weights).
    """
    job: Job[MetricEstimate]
    if approx is None:
        job = full_metric_job(tape, "fidelity", shots=tape.shots)
    else:
        job = metric_job(tape, shots=tape.shots, diagonal=approx == "diag", layers=layers)
    return job.run(layer.executor).pulled_back(tape.jacobian)


def gradient_covariance(tape: GateTape, noises: Sequence[ShotNoise], counts: Sequence[int]) -> Real:
    """Return the covariance of a layer's gradient by its weights, given the cotangents.

    Args:
        tape: The circuit over the weights, at the inputs of all passes.
        noises: Of every pass.
        counts: Number of inputs of every pass.

    Returns:
        (weights, weights).
    """
    size = tape.jacobian.shape[2]
    total = np.zeros((size, size))
    start = 0
    for noise, count in zip(noises, counts, strict=True):
        jacobian = tape.jacobian
        if len(jacobian) > 1:
            jacobian = jacobian[start : start + count]
        start += count
        for one in noise.contributions:
            total += _pulled_back(one, tape, jacobian)
    return total


def _pulled_back(one: Contribution, tape: GateTape, jacobian: Real) -> Real:
    """Sum over the inputs of J^T C J; angles that were not differentiated have no noise."""
    place = {gate: column for column, gate in enumerate(one.tape.trainable)}
    known = [k for k, gate in enumerate(tape.trainable) if gate in place]
    columns = [place[tape.trainable[k]] for k in known]
    covariance = one.gradient.covariance(one.cotangents)[:, columns][:, :, columns]
    inner = jacobian[:, known]
    result: Real = (np.swapaxes(inner, 1, 2) @ covariance @ inner).sum(axis=0)
    return result
