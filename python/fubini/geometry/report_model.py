"""A circuit at many weights at once: its results, their derivatives, and its metric."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.tape import user_tape
from fubini.compile.compiled import Compiled
from fubini.errors import UnsupportedCircuitError
from fubini.metric.points import layer_metric
from fubini.metric.spectrum import labels_of
from fubini.native.measurements import Measurement
from fubini.native.reading import read
from fubini.nn.layer import QuantumLayer
from fubini.nn.layer_weights import initial_weight
from fubini.nn.qnode_function import plain_qnode
from fubini.options import Real

#: Weights by name: a shape, as for QuantumLayer, or values.
Weights = Mapping[str, Any]

# What one sweep over several weights may keep.
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Model:
    """A layer and the inputs at which it is looked at.

    Attributes:
        layer: The layer.
        inputs: (X, features); (1, 0) without data.
        measurements: Of the circuit.
        wires: Number of wires.
        current: The layer's own weights, flattened, (P,).
        known: Whether the caller gave values for them, and not only shapes.
    """

    layer: QuantumLayer
    inputs: torch.Tensor
    measurements: tuple[Measurement, ...]
    wires: int
    current: Real
    known: bool

    @property
    def size(self) -> int:
        """Number of weights P."""
        return len(self.current)

    @property
    def outputs(self) -> int:
        """Number of results M."""
        return sum(m.columns for m in self.measurements)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the weights, e.g. ``"w[0, 2]"``."""
        return labels_of(self.layer.weight_shapes.items())

    def draws(self, count: int, seed: int, init_method: Any = None) -> Real:
        """Return random weights, (count, P).

        Args:
            count: How many.
            seed: Of the generator; torch's own is left as it is.
            init_method: As for ``QuantumLayer``; None: uniform in [0, 2 pi).
        """
        rows = np.empty((count, self.size))
        dtype = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.set_default_dtype(torch.float64)
            try:
                for row in rows:
                    shapes = self.layer.weight_shapes.items()
                    parts = [initial_weight(n, s, init_method).reshape(-1) for n, s in shapes]
                    row[:] = to_numpy(torch.cat(parts))
            finally:
                torch.set_default_dtype(dtype)
        check_finite_array("init_method", rows)
        return rows

    def ball(self, count: int, radius: float, seed: int) -> Real:
        """Return weights that are uniform in the ball of a radius around the layer's own, (count, P)."""
        rng = np.random.default_rng(seed)
        directions = rng.normal(size=(count, self.size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = radius * rng.random(count) ** (1.0 / self.size)
        found: Real = self.current + directions * lengths[:, None]
        return found

    def linearised(self, weights: Real) -> Iterator[tuple[Real, Real]]:
        """Yield the results (t, X, M) and their derivatives by the weights (t, X, M, P), some weights at a time.

        Args:
            weights: (T, P).
        """
        inputs = to_numpy(self.inputs)
        form = self.layer.compiled(_passed(self.layer, self.inputs))
        if form is None or form.batch not in (None, len(inputs)):
            for row in weights:
                results, jacobian = self._by_torch(row)
                yield results[None], jacobian[None]
            return
        each = 24.0 * len(inputs) * self.outputs * (self.size + form.circuit.num_angles)
        width = max(1, int(_CHUNK_BYTES / each))
        for first in range(0, len(weights), width):
            yield self._natively(form, weights[first : first + width], inputs)

    def _natively(self, form: Compiled, weights: Real, inputs: Real) -> tuple[Real, Real]:
        draws, count = len(weights), len(inputs)
        x = np.tile(inputs, (draws, 1))
        if form.affine is not None:
            own = form.affine.weights @ weights.T
            data = form.affine.inputs @ inputs.T
            angles = form.affine.constant + (own.T[:, None, :] + data.T[None])
            angles = angles.reshape(draws * count, -1)
            jacobian = form.jacobian([weights[0]], inputs)
        else:
            w = np.repeat(weights, count, axis=0)
            found = form.map.evaluate(w, x)
            angles = np.ascontiguousarray(found[:, : form.circuit.num_angles])
            values, _ = form.map.jacobian(w, x, form.weighted)
            jacobian = Jacobian(form.weighted, values)
        states = form.states([weights[0]], inputs)
        if states is not None and len(states) > 1:
            states = np.tile(states, (draws, 1))
        circuit = form.circuit
        results = circuit.expval(angles, states)
        by_angles = circuit.jacobian(angles, states)[:, :, jacobian.rows]
        pulled = jacobian.pull(np.ascontiguousarray(by_angles))
        return (
            results.reshape(draws, count, -1),
            pulled.reshape(draws, count, results.shape[1], self.size),
        )

    def _named(self, weights: Real) -> dict[str, torch.Tensor]:
        parts: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in self.layer.weight_shapes.items():
            stop = start + int(np.prod(shape, dtype=int))
            parts[name] = torch.from_numpy(weights[start:stop].copy()).reshape(shape)
            start = stop
        return parts

    def _by_torch(self, weights: Real) -> tuple[Real, Real]:
        """The same for one draw, where the quantum function runs in every call."""
        named = {n: w.requires_grad_() for n, w in self._named(weights).items()}
        rows, derivatives = [], []
        passed = _passed(self.layer, self.inputs)
        for x in [passed] if self.layer.input_arg is None else passed:
            with torch.enable_grad():
                out = self.layer.values(x, list(named.values())).reshape(-1)
                grads = [
                    torch.autograd.grad(
                        value, list(named.values()), retain_graph=True, materialize_grads=True
                    )
                    if value.requires_grad
                    else [torch.zeros_like(w) for w in named.values()]
                    for value in out
                ]
            rows.append(to_numpy(out))
            derivatives.append(
                [np.concatenate([to_numpy(g).reshape(-1) for g in g]) for g in grads]
            )
        return np.array(rows), np.array(derivatives)

    def metric(self, weights: Real) -> Real:
        """Return the metric at one draw of the weights, averaged over the inputs, (P, P).

        Args:
            weights: (P,).
        """
        return layer_metric(
            self.layer, self.inputs, None, reduce="mean", weights=self._named(weights)
        )


def model_of(model: Any, inputs: Any, weights: Weights | None) -> Model:
    """Return a circuit as a :class:`Model`.

    Args:
        model: QuantumLayer, TorchLayer, QNode or compiled QNode.
        inputs: (features,) or (..., features); None for a circuit without data.
        weights: By name, shapes or tensors; needed for QNodes.

    Raises:
        TypeError: If model or inputs are of another kind.
        ValueError: If weights, inputs and circuit do not fit together.
        UnsupportedCircuitError: For shots and noise, and circuits that measure nothing.
    """
    layer = _layer(model, weights)
    _check_exact(layer)
    x = _inputs(layer, inputs)
    for name, weight in layer.qnode_weights.items():
        check_finite_array(name, weight)
    current = [to_numpy(w).reshape(-1) for w in layer.qnode_weights.values()]
    if not sum(map(len, current)):
        raise ValueError("weights: expected at least one weight, got none")
    form = layer.compiled(_passed(layer, x))
    if form is not None:
        structure = form.circuit.structure
    else:
        named = {n: w.detach() for n, w in layer.qnode_weights.items()}
        data = {} if layer.input_arg is None else {layer.input_arg: x[0]}
        structure = read(
            user_tape(layer.qnode, (), {**data, **named}), layer.qnode.device
        ).structure
    measurements, wires = structure.measurements, len(structure.wires)
    if not sum(m.columns for m in measurements):
        raise UnsupportedCircuitError(
            "qnode: expected expectation values, variances or probabilities, got a circuit that returns its state; return "
            "qml.probs() for the outcomes, or use fubini.metric_spectrum, which needs no measurement"
        )
    known = weights is None or all(hasattr(w, "shape") for w in weights.values())
    return Model(layer, x, measurements, wires, np.concatenate(current), known)


def _layer(model: Any, weights: Weights | None) -> QuantumLayer:
    model = plain_qnode(model)
    if isinstance(model, qml.qnn.TorchLayer):
        model = QuantumLayer.from_torch_layer(model)
    if isinstance(model, QuantumLayer):
        given = dict(model.qnode_weights) if weights is None else dict(weights)
        if set(given) != set(model.weight_shapes):
            raise ValueError(
                f"weights: expected the layer's weights {list(model.weight_shapes)}, got {list(given)}; leave them out for "
                "the layer's own"
            )
        return _double(model.qnode, given, model.input_arg)
    if not isinstance(model, qml.QNode):
        hint = (
            "; for a model, pass one of its quantum layers"
            if isinstance(model, torch.nn.Module)
            else ""
        )
        raise TypeError(
            f"model: expected a QNode, a QuantumLayer or a TorchLayer, got {type(model).__name__}{hint}"
        )
    if weights is None:
        raise TypeError(
            "weights: expected the shape or the values of every weight of the QNode, such as weights={'w': (2, 3)}, got none"
        )
    parameters = inspect.signature(model.func).parameters
    names = list(parameters)
    unknown = [n for n in weights if n not in names]
    others = [
        n
        for n, p in parameters.items()
        if n not in weights and p.default is inspect.Parameter.empty
    ]
    if unknown or len(others) > 1:
        raise ValueError(
            f"weights: expected one entry for every argument of the QNode but the data, {names}, got {list(weights)}"
        )
    return _double(model, weights, others[0] if others else None)


def _double(qnode: Any, weights: Weights, data: str | None) -> QuantumLayer:
    """A layer of its own, in float64, so that nothing here touches the caller's."""
    shapes: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, value in weights.items():
        array = isinstance(value, torch.Tensor | np.ndarray)
        shapes[name] = tuple(value.shape) if array else value
        values[name] = (
            torch.from_numpy(real_numbers(f"weights[{name!r}]", value).copy()) if array else None
        )
    result = QuantumLayer.__new__(QuantumLayer)
    result.__dict__["input_arg"] = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result.__init__(qnode, shapes, values)  # type: ignore[misc]
    return result.double()


def _check_exact(layer: QuantumLayer) -> None:
    shots = layer.qnode.shots.total_shots
    if shots is not None or layer.qnode.device.name == "default.mixed":
        found = "a device of mixed states" if shots is None else f"{shots} shots"
        raise UnsupportedCircuitError(
            f"model: expected an exact simulator of pure states, got {found}, whose noise would count as gradient and as "
            "information; report on fubini.QuantumLayer(qml.QNode(qnode.func, qml.device('default.qubit')), shapes)"
        )


def _inputs(layer: QuantumLayer, inputs: Any) -> torch.Tensor:
    if layer.input_arg is None:
        if inputs is not None:
            raise TypeError(
                f"inputs: expected none for a circuit without data, got {type(inputs).__name__}"
            )
        return torch.empty(1, 0, dtype=torch.float64)
    if inputs is None:
        raise TypeError(
            f"inputs: expected a tensor (inputs, features) for the argument {layer.input_arg!r}, got none"
        )
    values = real_numbers("inputs", inputs)
    if values.ndim == 0 or not values.size:
        raise ValueError(f"inputs: expected shape (inputs, features), got {values.shape}")
    check_finite_array("inputs", values)
    return torch.from_numpy(values.reshape(-1, values.shape[-1]).copy())


def _passed(layer: QuantumLayer, inputs: torch.Tensor) -> torch.Tensor:
    return layer.no_inputs() if layer.input_arg is None else inputs


def of_family(family: Callable[[int], Any], size: int, inputs: Any) -> Model:
    """Return the circuit of a size of a family.

    Args:
        family: n -> a layer, or a pair of a QNode and its weights by name.
        size: n.
        inputs: As for :func:`model_of`, or a function of n.

    Raises:
        TypeError: If the family returns something else.
    """
    made = family(size)
    weights = None
    if isinstance(made, Sequence) and not isinstance(made, str):
        if len(made) != 2:
            raise TypeError(
                f"model: expected the family to return a layer or (qnode, weights), got {len(made)} things for n = {size}"
            )
        made, weights = made
    return model_of(made, inputs(size) if callable(inputs) else inputs, weights)
