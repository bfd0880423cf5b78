"""The metric of QNodes and layers as an operator, in the form that is cheapest to solve."""

from collections.abc import Callable
from typing import Any

import torch

from fubini.circuit.arguments import Argnums
from fubini.metric import circuits
from fubini.metric.circuits import check_of_circuit
from fubini.metric.engines import Point
from fubini.metric.points import Argnum, at_inputs, over_calls, points
from fubini.native.circuit import Circuit
from fubini.native.operator import MetricOperator
from fubini.options import Engine, Form, LayerRule, check_form, check_rule


def metric_operator(
    qnode: Any,
    form: Form = "auto",
    *,
    argnum: Argnum = None,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    engine: Engine = "auto",
) -> Callable[..., MetricOperator]:
    """Return a function that makes the full metric of a QNode or layer as an operator, averaged over the inputs.

    Args:
        qnode: As for :func:`metric_tensor`.
        form: ``"dense"`` forms the matrix, ``"dual"`` a factor X with g = X X^T, ``"matrix-free"`` neither;
            ``"auto"`` takes what is predicted to solve a system fastest within the memory bound, see ``fubini.cost``.
        argnum: As for :func:`metric_tensor`.
        argnums: As there.
        layers: Which gates form a block of the preconditioner and of ``blocks()``.
        engine: As there; the device knows only the dense form.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs) that returns a :class:`MetricOperator` over all
        weights, flattened in order.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown form, layers or engine.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> g = fubini.metric_operator(circuit)(w)
        >>> g.solve(torch.tensor([0.1, 0.2], dtype=torch.float64), damping=1e-3).round(decimals=3)
        tensor([-0.3940,  1.1890], dtype=torch.float64)
    """
    check_form(form)
    check_rule(layers)
    if isinstance(qnode, Circuit):
        check_of_circuit(argnum=argnum, argnums=argnums, engine=engine)
        return lambda angles, state=None: circuits.metric_operator(
            qnode, angles, form, layers, state
        )
    at = points(qnode, argnum, argnums, engine)
    return over_calls(qnode, at, lambda point: _operator(point, form, layers))


def layer_operator(layer: Any, inputs: torch.Tensor, layers: LayerRule = "wires") -> MetricOperator:
    """Return the full metric over the flattened weights of a QuantumLayer or TorchLayer in its cheapest form.

    Args:
        layer: The layer.
        inputs: (features,) or (..., features); the metric is averaged over them.
        layers: Which gates form a block of the preconditioner.

    Returns:
        The operator; dense where the circuit runs on its device.
    """
    return _operator(at_inputs(layer, inputs), "auto", layers)


def _operator(point: Point, form: Form, layers: LayerRule) -> MetricOperator:
    if point.pullback is None:
        if form not in ("auto", "dense"):
            raise ValueError(
                f"form: {form!r} needs the native engine, and the circuit runs on its device: {point.reason}"
            )
        return MetricOperator.of_matrix(point.metric(None, layers, "mean"), point.weights[0])
    return MetricOperator(point.pullback, form, layers=layers, like=point.weights[0])
