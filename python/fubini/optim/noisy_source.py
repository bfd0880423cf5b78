"""Fubini-Study metrics of layers with shots, with the noise of metrics and gradients."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from fubini.blocks import NoisyBlock
from fubini.errors import UnsupportedCircuitError
from fubini.metric.call_metric import CallLayer
from fubini.nn.layer_weights import layer_tape
from fubini.nn.shot_noise import estimated_metric, gradient_covariance
from fubini.optim.quantum_source import AnyLayer, QuantumSource, is_plain, places
from fubini.options import Approx, LayerRule, Real

Tensor = torch.Tensor


class NoisySource(QuantumSource):
    """The same for layers with shots: metrics and gradients with their noise.

    Args:
        model: The model.
        approx: As in ``fubini.metric_tensor``.
        layers: Likewise.
        tolerance: See ``SignalToNoise``.
    """

    _is_plain = False

    def __init__(
        self, model: torch.nn.Module, approx: Approx, layers: LayerRule, tolerance: float
    ) -> None:
        super().__init__(model, approx, layers)
        self._tolerance = tolerance

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        super().attach(owner, owned)
        for recorder in self._recorders.values():
            recorder.keeps_noise = True

    def _block(self, parameters: list[Tensor], total: Real, label: str) -> NoisyBlock:
        # Layers that share a parameter are measured independently of each other: variances add up.
        device, (metric, variance, covariance) = parameters[0].device, total
        matrix, errors, noise = (
            torch.from_numpy(v).to(device) for v in (metric, np.sqrt(variance), covariance)
        )
        return NoisyBlock(parameters, matrix, errors, noise, self._tolerance, label)

    def _layer_metric(self, layer: AnyLayer, starts: Mapping[Tensor, int]) -> tuple[Real, int]:
        """Metric, its variances and the covariance of the gradient, (3, n, n), and the number of inputs."""
        qnode = layer.passes[0].qnode if isinstance(layer, CallLayer) else layer.module.qnode
        if qnode.shots.total_shots is None:
            metric, count = super()._layer_metric(layer, starts)
            return np.stack([metric, np.zeros_like(metric), np.zeros_like(metric)]), count
        if isinstance(layer, CallLayer):
            raise UnsupportedCircuitError(
                f"{layer.name}: a compiled QNode with shots does not say how noisy its gradient is, which lam=SignalToNoise() "
                "needs; make it a layer, fubini.QuantumLayer(qnode, weight_shapes), or pass a number for lam"
            )
        if any(p.noise is None for p in layer.passes):
            raise UnsupportedCircuitError(
                f"{layer.name}: PennyLane differentiates this layer, and does not say how noisy its gradient is, which "
                "lam=SignalToNoise() needs; use a QuantumLayer with diff_method='best' or 'parameter-shift' that returns "
                "expectation values, probabilities or variances, or pass a number for lam"
            )
        if not is_plain(layer):
            raise UnsupportedCircuitError(
                f"{layer.name}: expected weights that are parameters with lam=SignalToNoise(), got weights that are computed "
                "(parametrised, pruned or shared within the layer); pass a number for lam"
            )
        size = sum(p.numel() for p in starts)
        found = np.zeros((3, size, size))
        total, variance, covariance = found
        at = places(layer, starts)
        parts: list[tuple[Tensor, list[Any]]] = []
        for part in self._inputs(layer):
            single = [(p.args[0], [p]) for p in part.passes]
            parts += single if part.single else [(part.rows, part.passes)]
        count = sum(len(p.rows) for _, passes in parts for p in passes)
        for rows, passes in parts:
            share = sum(p.count for p in passes) / count
            tape = layer_tape(layer.module, rows)
            metric, errors = estimated_metric(layer.module, tape, self._approx, self._layers)
            total[at] += share * metric
            variance[at] += (share * errors) ** 2
            noises = [p.noise for p in passes if p.noise is not None]
            covariance[at] += gradient_covariance(tape, noises, [p.count for p in passes])
        return found, count
