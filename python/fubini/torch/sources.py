"""Where the metric of a step comes from: which parameters have one, from which passes, as which blocks."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import pennylane as qml
import torch

from fubini._arrays import to_numpy
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.layers import LayerRule
from fubini.metric import Approx, layer_metric, layer_operator
from fubini.metric_operator import MetricOperator
from fubini.torch import distributed
from fubini.torch.blocks import Block, DenseBlock, FactorBlock, NoisyBlock, OperatorBlock
from fubini.torch.checks import all_finite
from fubini.torch.evaluation import undisturbed
from fubini.torch.fisher import requested_blocks
from fubini.torch.fisher_columns import Request, check_request
from fubini.torch.layer import QuantumLayer
from fubini.torch.likelihoods import OutputGradient, as_likelihood
from fubini.torch.recorder import (
    Pass,
    PassRecorder,
    check_same_weights,
    joined,
    parameters_of,
    record,
)
from fubini.torch.shot_noise import estimated_metric, gradient_covariance, layer_tape

Tensor = torch.Tensor
Metric = Literal["quantum", "fisher", "hybrid"]
#: A block of this process, and by how many inputs it is an average (its weight among several processes).
Counted = tuple[Block, float]
_STRIDE = 0x9E3779B97F4A7C15  # odd and large, so that the seeds of neighbouring steps have nothing in common


class Source(Protocol):
    """What the optimizer asks of a metric."""

    found: bool  # whether the model has layers with a metric
    sums: bool  # whether the loss is a sum over inputs rather than a mean

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """Find the parameters of the optimizer that have a metric, and start recording the passes through them."""
        ...

    def covers(self, parameter: Tensor) -> bool:
        """Return whether the parameter has a metric."""
        ...

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """Return the blocks of those units that have a moving parameter; random labels differ from step to step."""
        ...

    @property
    def recorders(self) -> list[PassRecorder]:
        """The recorders that are attached."""
        ...


class QuantumSource:
    """Fubini-Study metrics of all quantum layers of a model, from the inputs that each of them saw.

    A quantum layer needs only its own inputs, so each has a recorder of its own and the model is not run again.

    Args:
        model: The model.
        approx: As in ``fubini.metric_tensor``.
        layers: Likewise.
    """

    def __init__(
        self, model: torch.nn.Module, approx: Approx | Literal["auto"], layers: LayerRule
    ) -> None:
        self._model = model
        self._approx, self._layers = approx, layers
        self._recorders: dict[torch.nn.Module, PassRecorder] = {}
        self._units: list[list[tuple[str, Any]]] = []  # layers that share parameters are one unit
        self._covered: set[Tensor] = set()
        self.found = self.sums = False

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        known, self._recorders, self._units = self._recorders, {}, []
        for name, module in self._model.named_modules():
            if not isinstance(module, QuantumLayer | qml.qnn.TorchLayer):
                continue
            self.found = True
            weights = set(module.qnode_weights.values())
            if not weights & set(owned):
                continue
            _check_shapes(name, module)
            recorder = known.get(module)
            self._recorders[module] = recorder or record(module, owner)
            unit = [(name or type(module).__name__, module)]
            for other in [u for u in self._units if weights & set(_weights(u))]:
                self._units.remove(other)
                unit = other + unit
            self._units.append(unit)
        self._covered = {p for unit in self._units for p in _weights(unit)}

    @property
    def recorders(self) -> list[PassRecorder]:
        """See Source."""
        return list(self._recorders.values())

    def covers(self, parameter: Tensor) -> bool:
        """See Source."""
        return parameter in self._covered

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """See Source."""
        ids = {id(p) for p in moving}
        return [
            self._unit_block(unit)
            for unit in self._units
            if any(id(p) in ids for p in _weights(unit))
        ]

    def _unit_block(self, unit: list[tuple[str, Any]]) -> Counted:
        weights = _weights(unit)
        label = ", ".join(name for name, _ in unit)
        # Processes with different numbers of inputs might choose different forms, which cannot be averaged.
        if len(unit) == 1 and self._approx == "auto" and not distributed.active():
            name, module = unit[0]
            seen = self._inputs(name, module)
            operator = layer_operator(module, seen, self._layers)
            return operator_block(operator, weights, label), len(seen)
        if len(unit) == 1:
            total, count = self._layer_metric(*unit[0])
        else:
            starts = np.cumsum([0, *(p.numel() for p in weights)]).tolist()
            offsets = dict(zip(weights, starts, strict=False))
            total, count = np.zeros((starts[-1], starts[-1])), 0
            for name, module in unit:
                own = list(module.qnode_weights.values())
                index = np.concatenate([np.arange(p.numel()) + offsets[p] for p in own])
                metric, inputs = self._layer_metric(name, module)
                total[np.ix_(index, index)] += metric
                count = max(count, inputs)
        return DenseBlock(weights, torch.from_numpy(total).to(weights[0].device), label), count

    def _layer_metric(self, name: str, module: Any) -> tuple[Any, int]:
        inputs = self._inputs(name, module)
        approx = None if self._approx == "auto" else self._approx  # several layers in one matrix
        return layer_metric(module, inputs, approx, self._layers, "mean"), len(inputs)

    def _inputs(self, name: str, module: Any) -> Tensor:
        """What the layer saw in the passes whose gradients are being applied, checked."""
        for weight, p in module.qnode_weights.items():
            if not all_finite(p):
                raise NumericalError(
                    f"{name}.{weight}: expected finite weights, got NaN or infinity"
                )
        passes = self._recorders[module].passes
        if not passes:
            raise RuntimeError(
                f"{name}: the weights have gradients, but no backward pass went through the layer's forward since the "
                "optimizer was made; call model(inputs) and loss.backward() before step()"
            )
        check_same_weights(name, passes)
        parts = [_inputs_of(p, module) for p in passes]
        inputs = torch.cat([x.reshape(-1, x.shape[-1]) for x in parts])
        if not all_finite(inputs):
            raise NumericalError(
                f"{name}: expected finite inputs of the layer, got NaN or infinity"
            )
        return inputs


class NoisySource(QuantumSource):
    """The same for layers with shots: metrics and gradients with their noise.

    Args:
        model: The model.
        approx: As in ``fubini.metric_tensor``.
        layers: Likewise.
        tolerance: See ``SignalToNoise``.
    """

    def __init__(
        self, model: torch.nn.Module, approx: Approx, layers: LayerRule, tolerance: float
    ) -> None:
        super().__init__(model, approx, layers)
        self._tolerance = tolerance

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        super().attach(owner, owned)
        for recorder in self.recorders:
            recorder.keeps_noise = True

    def _unit_block(self, unit: list[tuple[str, Any]]) -> Counted:
        weights = _weights(unit)
        label = ", ".join(name for name, _ in unit)
        starts = np.cumsum([0, *(p.numel() for p in weights)]).tolist()
        offsets = dict(zip(weights, starts, strict=False))
        # Layers that share a parameter are measured independently of each other: variances add up.
        total, variance, covariance = np.zeros((3, starts[-1], starts[-1]))
        count = 0
        for name, module in unit:
            own = list(module.qnode_weights.values())
            index = np.concatenate([np.arange(p.numel()) + offsets[p] for p in own])
            at = np.ix_(index, index)
            metric, metric_errors, gradient_noise, inputs = self._estimates(name, module)
            total[at] += metric
            variance[at] += metric_errors**2
            covariance[at] += gradient_noise
            count = max(count, inputs)
        matrix, errors, noise = (
            torch.from_numpy(v).to(weights[0].device)
            for v in (total, np.sqrt(variance), covariance)
        )
        return NoisyBlock(weights, matrix, errors, noise, self._tolerance, label), count

    def _estimates(self, name: str, module: Any) -> tuple[Any, Any, Any, int]:
        """Metric, its errors, covariance of the gradient, and number of inputs."""
        inputs = self._inputs(name, module)
        if module.qnode.shots.total_shots is None:
            metric, count = self._layer_metric(name, module)
            return metric, np.zeros_like(metric), np.zeros_like(metric), count
        passes = self._recorders[module].passes
        noises = [p.noise for p in passes if p.noise is not None]
        if len(noises) < len(passes):
            raise UnsupportedCircuitError(
                f"{name}: PennyLane differentiates this layer, and does not say how noisy its gradient is, which "
                "lam=SignalToNoise() needs; use a QuantumLayer with diff_method='best' or 'parameter-shift' that returns "
                "expectation values, probabilities or variances, or pass a number for lam"
            )
        tape = layer_tape(module, inputs)
        metric, errors = estimated_metric(module, tape, self._approx, self._layers)
        counts = [_inputs_of(p, module).numel() // inputs.shape[-1] for p in passes]
        return metric, errors, gradient_covariance(tape, noises, counts), len(inputs)


class FisherSource:
    """Fisher information of the model's output distribution, by a pass of its own over what the model last saw.

    Args:
        model: The model.
        metric: ``"hybrid"`` for the Fubini-Study metric of quantum layers in units of the loss.
        likelihood: See ``fisher_blocks``.
        options: Its further options.
    """

    found = True

    def __init__(
        self, model: torch.nn.Module, *, metric: Metric, likelihood: Any, **options: Any
    ) -> None:
        self._model = model
        quantum = "fubini-study" if metric == "hybrid" else "gauss-newton"
        self._request = Request(
            likelihood=as_likelihood(likelihood), targets=None, quantum=quantum, **options
        )
        self.sums = self._request.likelihood.reduction == "sum"
        self._recorder: PassRecorder | None = None
        self._owned: set[Tensor] = set()

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        mine = set(self._model.parameters())
        self._owned = {p for p in owned if p in mine}
        if self._recorder is None:
            self._recorder = record(self._model, owner)

    @property
    def recorders(self) -> list[PassRecorder]:
        """See Source."""
        return [self._recorder] if self._recorder else []

    def covers(self, parameter: Tensor) -> bool:
        """See Source."""
        return parameter in self._owned

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """See Source."""
        if not moving:
            return []
        passes = self._recorder.passes if self._recorder else []
        if not passes:
            raise RuntimeError(
                "model: the parameters have gradients, but no backward pass went through the model's forward since the "
                "optimizer was made; call model(inputs) and loss.backward() before step()"
            )
        ids = {id(p) for p in moving}
        wanted = [p for p in passes[0].parameters if id(p) in ids]
        if len(wanted) < len(ids):  # one has been frozen since it got its gradient
            wanted = [p for p in parameters_of(self._model) if id(p) in ids]
        check_same_weights("model", passes)
        args, kwargs, count = joined(passes)
        if self._request.fisher == "empirical" and targets is None:
            gradients = [p.gradient for p in passes]
            if any(g is None for g in gradients):
                raise RuntimeError(
                    "targets: expected step(targets=...), because the first output of the model got no gradient, got None"
                )
            targets = OutputGradient(torch.cat([g for g in gradients if g is not None]))
        request = self._request  # of checked options
        if targets is not None:
            request = replace(request, targets=targets)
            check_request(request)
        # Without drawn labels the pass leaves the random numbers alone by itself.
        drawn = request.samples is not None
        with undisturbed(None, _seed(step)) if drawn else contextlib.nullcontext():
            blocks = requested_blocks(self._model, args, kwargs, wanted, request)
        # A sum over the inputs is averaged over processes as DistributedDataParallel averages its gradient.
        return [(block, 1.0 if self.sums else float(count)) for block in blocks]


def make_source(model: torch.nn.Module | None, options: Mapping[str, Any]) -> Source | None:
    """Return the metric that the optimizer's options ask for, None without a model.

    Args:
        model: The model, if any.
        options: The optimizer's, checked.

    Raises:
        ValueError: If a model is missing.
    """
    metric, approx = options["metric"], options["approx"]
    tolerance = options.get("tolerance")
    if model is not None and tolerance is not None:
        return NoisySource(model, approx, options["layers"], tolerance)
    if metric == "quantum":
        return None if model is None else QuantumSource(model, approx, options["layers"])
    if model is None:
        raise ValueError(f"model: expected a module for metric={metric!r}, got None")
    return FisherSource(
        model,
        metric=metric,
        **{
            k: options[k]
            for k in ("likelihood", "approx", "fisher", "samples", "fallback", "layers")
        },
    )


def operator_block(operator: MetricOperator, parameters: Sequence[Tensor], label: str) -> Block:
    """Return a metric in the form that its operator chose: a matrix, a factor of one, or products alone.

    Args:
        operator: The metric.
        parameters: Whose it is.
        label: Name for messages.
    """
    device = parameters[0].device

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64).detach().to(device)

    if operator.form == "dense":
        return DenseBlock(parameters, tensor(operator.dense()), label)
    if operator.form == "dual":
        return FactorBlock(parameters, tensor(operator.factor()).mT, label)

    def inverse(damping: Tensor) -> Callable[[Tensor], Tensor]:
        apply = operator.block_inverse(to_numpy(damping))
        return lambda r: tensor(apply(to_numpy(r)))

    return OperatorBlock(
        parameters,
        lambda v: tensor(operator @ v),
        label,
        diagonal=lambda: tensor(operator.diagonal()),
        preconditioner=inverse,
    )


def _seed(step: int) -> int:
    """Of the random labels of a step, in this process."""
    return (torch.initial_seed() + _STRIDE * (step + 1) + distributed.rank()) % 2**63


def _inputs_of(seen: Pass, module: Any) -> Tensor:
    found: Tensor = seen.args[0] if seen.args else seen.kwargs[module.input_arg]
    return found


def _check_shapes(name: str, module: Any) -> None:
    for weight, shape in getattr(module, "weight_shapes", {}).items():
        actual = tuple(module.qnode_weights[weight].shape)
        if actual != shape:
            raise ValueError(
                f"{name}.{weight}: expected the shape {shape} of this layer's weight_shapes, got a parameter of shape "
                f"{actual}; layers that share a parameter need the same shape for it"
            )


def _weights(unit: list[tuple[str, Any]]) -> list[Tensor]:
    return list(dict.fromkeys(p for _, module in unit for p in module.qnode_weights.values()))
