"""Fubini-Study metrics of a model's quantum layers, from what each of them evaluated."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch

from fubini import _core
from fubini.arrays import all_finite, to_numpy
from fubini.blocks import DenseBlock, distributed
from fubini.blocks.products import operator_block
from fubini.errors import NumericalError
from fubini.metric.call_metric import CallLayer
from fubini.metric.operator import layer_operator
from fubini.metric.points import layer_metric, single_inputs_metric
from fubini.native.operator import MetricOperator
from fubini.nn.evaluations import (
    Evaluation,
    EvaluationRecorder,
    leaf_weights,
    own_parameters,
    owners_of,
    record_layer,
)
from fubini.nn.layer import QuantumLayer
from fubini.nn.recorder import PassRecorder, check_same_weights, missing, paused
from fubini.nn.surroundings import without_autocast
from fubini.nn.watched_calls import CallWatch, SeenCall, watch_calls
from fubini.optim.gather import Counted, Source
from fubini.options import Approx, LayerRule

Tensor = torch.Tensor
Real = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A quantum layer with a moving weight.

    Attributes:
        name: For messages.
        module: The layer.
        recorder: What it evaluated.
        parameters: Its weights, or what they are computed from.
        plain: Whether the parameters are the weights, in order.
    """

    name: str
    module: Any
    recorder: EvaluationRecorder
    parameters: tuple[Tensor, ...]
    plain: bool

    @property
    def passes(self) -> list[Evaluation]:
        """The evaluations whose gradients are being applied."""
        return self.recorder.passes  # type: ignore[return-value]


AnyLayer = _Layer | CallLayer


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Inputs for which one metric is asked: those of all passes with the layer's own weights, or of one pass.

    Attributes:
        passes: The passes.
        rows: (count, features).
        single: Whether the quantum function gets them one by one.
        weights: Where weights are computed, all weights as they were seen.
    """

    passes: list[Evaluation]
    rows: Tensor
    single: bool
    weights: Mapping[str, Tensor] | None


class QuantumSource(Source):
    """Fubini-Study metrics of all quantum layers of a model, from the inputs that each of them saw.

    A quantum layer needs only its own inputs, so each has a recorder of its own and the model is not run again. Calls of
    compiled QNodes with the optimizer's parameters for weights count as layers, unless the closure brings a metric.

    Args:
        model: The model; None: the living layers that have any of the optimizer's parameters.
        approx: As in ``fubini.metric_tensor``.
        layers: Likewise.
    """

    _is_plain = True  # whether the metric is that of the states alone

    def __init__(
        self, model: torch.nn.Module | None, approx: Approx | Literal["auto"], layers: LayerRule
    ) -> None:
        self._model = model
        self._approx, self._layers = approx, layers
        self._recorders: dict[Any, EvaluationRecorder] = {}
        self._units: list[list[AnyLayer]] = []  # layers that share parameters are one unit
        self._covered: set[Tensor] = set()
        self._watch: CallWatch | None = None

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        known, self._recorders, self._units = self._recorders, {}, []
        if self._watch is None:
            self._watch = watch_calls(owner)
        self._watch.watch(owned)
        for name, module in self._named(owned):
            if not isinstance(module, QuantumLayer | qml.qnn.TorchLayer):
                continue
            self.found = True
            parameters = own_parameters(module)
            if not set(parameters) & set(owned):
                continue
            _check_shapes(name, module)
            recorder = known.get(module) or record_layer(module, owner)
            recorder.watch(p for p in parameters if p in owned)
            recorder.known = {id(w) for w in leaf_weights(module).values() if w is not None}
            self._recorders[module] = recorder
            plain = _are(leaf_weights(module).values(), parameters)
            name = name or type(module).__name__
            layer = _Layer(name, module, recorder, tuple(parameters), plain)
            self._units = _joined(self._units, layer)
        self._covered = {p for unit in self._units for p in _parameters(unit)}

    def _named(self, owned: AbstractSet[Tensor]) -> Iterator[tuple[str, Any]]:
        if self._model is not None:
            yield from self._model.named_modules()
            return
        found = owners_of(owned)
        for k, layer in enumerate(found):
            name = type(layer).__name__
            yield name if len(found) == 1 else f"{name} {k}", layer

    @property
    def recorders(self) -> list[PassRecorder]:
        """See Source."""
        watch = self._watch
        calls: list[PassRecorder] = [] if watch is None else [watch, *watch.recorders]
        return [*self._recorders.values(), *calls]

    @property
    def called(self) -> dict[Tensor, None]:
        """See Source."""
        return {} if self._watch is None or self.closure_metric else self._watch.weights

    def covers(self, parameter: Tensor) -> bool:
        """See Source."""
        return parameter in self._covered or parameter in self.called

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """See Source."""
        ids = {id(p) for p in moving}
        found = []
        units = self._with_calls()
        for unit in units:
            here = [p for p in _parameters(unit) if id(p) in ids]
            used = [layer for layer in unit if layer.passes]
            if here and used:
                block = self._straight(used) if self._is_plain else None
                if block is None:
                    with without_autocast(), paused(self.recorders):
                        block = self._unit_block(used, _parameters(unit))
                found.append(block)
            elif here:
                assert isinstance(unit[0], _Layer)
                missing(unit[0].recorder, here, unit[0].name)
        known = {p for unit in units for p in _parameters(unit)}
        lost = [p for p in self.called if id(p) in ids and p not in known]
        if lost and self._watch is not None:
            missing(self._watch, lost, "compiled QNode")
        return found

    def _with_calls(self) -> list[list[AnyLayer]]:
        """The units, with the calls of compiled QNodes as layers."""
        units: list[list[AnyLayer]] = [list(unit) for unit in self._units]
        if self._watch is None or self.closure_metric or not self._watch.known:
            return units
        calls: dict[Any, list[SeenCall]] = {}
        for call in self._watch.calls:
            calls.setdefault(call.key(), []).append(call)
        for some in calls.values():
            layer = CallLayer(some)
            layer.refuse_unclear()
            if layer.parameters:
                units = _joined(units, layer)
        return units

    def _straight(self, unit: list[AnyLayer]) -> Counted | None:
        """The block of a layer whose passes ran one compiled circuit with its parameters; None where there is more to it."""
        layer = unit[0]
        if len(unit) > 1 or not isinstance(layer, _Layer) or self._approx == "auto":
            return None
        passes, inputs = layer.passes, layer.passes[0].args[0]
        form = passes[0].compiled
        if form is None or form.state_weighted or form.decisions or not layer.plain:
            return None
        if any(p.compiled is not form or p.values for p in passes):
            return None
        several = len(passes) > 1
        if layer.module.input_arg is not None:
            if any(p.args[0].ndim != 2 for p in passes) or (several and form.batch is not None):
                return None
            inputs = torch.cat([p.args[0] for p in passes]) if several else inputs
        if several:
            check_same_weights(layer.name, passes)
        rows, *weights = [to_numpy(v) for v in (inputs, *layer.parameters)]
        if _core.first_not_finite([rows, *weights]) >= 0:
            return None  # the other way says which
        metric = form.pullback(weights, rows).metric(self._approx, self._layers, "mean")
        matrix = torch.from_numpy(metric).to(layer.parameters[0].device)
        return DenseBlock(layer.parameters, matrix, layer.name), sum(p.count for p in passes)

    def _unit_block(self, unit: list[AnyLayer], parameters: list[Tensor]) -> Counted:
        layer = unit[0]
        # Processes with different numbers of inputs might choose different forms, which cannot be averaged.
        if len(unit) == 1 and self._approx == "auto" and not distributed.active():
            made = self._operator(layer)
            if made is not None:
                return operator_block(made[0], parameters, layer.name), made[1]
        starts, _ = starts_of(parameters)
        found = [self._layer_metric(layer, starts) for layer in unit]
        label = ", ".join(layer.name for layer in unit)  # calls now know how they run
        block = self._block(parameters, np.sum([metric for metric, _ in found], axis=0), label)
        return block, max(count for _, count in found)

    def _block(self, parameters: list[Tensor], total: Real, label: str) -> DenseBlock:
        """The block of a unit by what its layers have together."""
        return DenseBlock(parameters, torch.from_numpy(total).to(parameters[0].device), label)

    def _operator(self, layer: AnyLayer) -> tuple[MetricOperator, int] | None:
        """The metric of a layer's parameters as an operator, and the number of inputs; None where it is no such thing."""
        if isinstance(layer, CallLayer):
            return layer.operator(self._layers)
        parts = self._inputs(layer)
        if len(parts) > 1 or parts[0].single or not is_plain(layer):
            return None
        return layer_operator(layer.module, parts[0].rows, self._layers), len(parts[0].rows)

    def _layer_metric(self, layer: AnyLayer, starts: Mapping[Tensor, int]) -> tuple[Real, int]:
        """The mean metric of a layer over the parameters of its unit, and the number of inputs."""
        approx = None if self._approx == "auto" else self._approx  # several layers in one matrix
        if isinstance(layer, CallLayer):
            return layer.metric(approx, self._layers, starts)
        size = sum(p.numel() for p in starts)
        total, count = np.zeros((size, size)), 0
        for part in self._inputs(layer):
            if part.single:
                metric = single_inputs_metric(
                    layer.module, part.rows, approx, self._layers, part.weights
                )
            else:
                metric = layer_metric(
                    layer.module, part.rows, approx, self._layers, "mean", weights=part.weights
                )
            pulled = _pulled_back(metric, layer, part, starts)
            inputs = len(part.rows)
            # A mean over the inputs; with one part, that part as it is.
            total = pulled if not count else (count * total + inputs * pulled) / (count + inputs)
            count += inputs
        return total, count

    def _inputs(self, layer: _Layer) -> list[_Inputs]:
        """What the layer saw in the passes whose gradients are being applied, checked."""
        leaves = leaf_weights(layer.module)
        passes = layer.passes
        check_same_weights(layer.name, passes)
        for name, leaf in leaves.items():
            seen = [leaf, *(p.values.get(name) for p in passes)]
            if not all(w is None or all_finite(w) for w in seen):
                raise NumericalError(
                    f"{layer.name}.{name}: expected finite weights, got NaN or infinity"
                )
        kinds: dict[Any, list[Evaluation]] = {}
        for one in passes:
            # Without data there are no inputs to be told apart.
            single = one.single and getattr(layer.module, "input_arg", "") is not None
            kinds.setdefault((single, id(one) if one.values else None), []).append(one)
        found = []
        for (single, _), members in kinds.items():
            rows = torch.cat([p.rows for p in members]) if len(members) > 1 else members[0].rows
            if not all_finite(rows):
                raise NumericalError(
                    f"{layer.name}: expected finite inputs of the layer, got NaN or infinity"
                )
            weights = None
            if members[0].values:
                weights = {n: members[0].values.get(n, w) for n, w in leaves.items()}
            found.append(_Inputs(members, rows, single, weights))  # type: ignore[arg-type]
        return found


def is_plain(layer: _Layer) -> bool:
    """Whether the layer's weights are its parameters, in order."""
    return _are(leaf_weights(layer.module).values(), layer.parameters)


def _are(weights: Collection[Tensor | None], parameters: Sequence[Tensor]) -> bool:
    """Whether weights are these parameters, in order."""
    return len(weights) == len(parameters) and all(
        w is p for w, p in zip(weights, parameters, strict=True)
    )


def starts_of(parameters: Sequence[Tensor]) -> tuple[dict[Tensor, int], int]:
    """Return where the entries of each parameter begin in those of all, and how many these are.

    Args:
        parameters: Side by side.
    """
    *starts, size = itertools.accumulate((p.numel() for p in parameters), initial=0)
    return dict(zip(parameters, starts, strict=True)), size


def places(layer: _Layer, starts: Mapping[Tensor, int]) -> Any:
    """Where the layer's parameters are in the matrix of its unit."""
    index = np.concatenate([np.arange(p.numel()) + starts[p] for p in layer.parameters])
    return np.ix_(index, index)


def _pulled_back(metric: Real, layer: _Layer, part: _Inputs, starts: Mapping[Tensor, int]) -> Real:
    """A metric over a layer's weights as one over the parameters of its unit, ``J^T g J``."""
    if part.weights is None and is_plain(layer):
        if len(starts) == len(layer.parameters):
            return metric
        size = sum(p.numel() for p in starts)
        total = np.zeros((size, size))
        total[places(layer, starts)] = metric
        return total
    jacobian = weights_by_parameters(layer, part, starts)
    return np.asarray(jacobian.T @ metric @ jacobian)


def weights_by_parameters(layer: _Layer, part: _Inputs, starts: Mapping[Tensor, int]) -> Real:
    """Return the derivative of a layer's weights, (weights, entries of all parameters).

    Args:
        layer: The layer.
        part: What it saw.
        starts: Where the entries of each parameter begin.
    """
    leaves = leaf_weights(layer.module)
    one = part.passes[0]
    size = sum(p.numel() for p in starts)
    rows = []
    for name, leaf in leaves.items():
        if name in one.values:
            row = np.zeros((one.values[name].numel(), size))
            for parameter, block in one.jacobians.get(name, {}).items():
                start = starts[parameter]
                row[:, start : start + parameter.numel()] = to_numpy(block)
        else:
            assert leaf is not None
            row = np.eye(leaf.numel(), size, starts[leaf])
        rows.append(row)
    return np.concatenate(rows)


def _check_shapes(name: str, module: Any) -> None:
    shapes = getattr(module, "weight_shapes", {})
    for weight, leaf in leaf_weights(module).items():
        if leaf is not None and tuple(leaf.shape) != shapes.get(weight, tuple(leaf.shape)):
            raise ValueError(
                f"{name}.{weight}: expected the shape {shapes[weight]} of this layer's weight_shapes, got a parameter of "
                f"shape {tuple(leaf.shape)}; layers that share a parameter need the same shape for it"
            )


def _parameters(unit: Sequence[AnyLayer]) -> list[Tensor]:
    return list(dict.fromkeys(p for layer in unit for p in layer.parameters))


def _joined(units: list[list[AnyLayer]], layer: AnyLayer) -> list[list[AnyLayer]]:
    """The units with another layer: those with which it shares parameters are one with it, at the end."""
    mine = set(layer.parameters)
    rest: list[list[AnyLayer]] = []
    joined: list[AnyLayer] = [layer]
    for unit in units:
        if mine.isdisjoint(_parameters(unit)):
            rest.append(unit)
        else:
            joined = unit + joined
    return [*rest, joined]
