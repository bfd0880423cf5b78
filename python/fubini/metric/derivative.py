"""The derivative of the metric of QNodes and layers along a direction."""

from collections.abc import Callable
from typing import Any

import torch

from fubini.circuit.arguments import Argnums, check_finite_array, returned
from fubini.metric import circuits
from fubini.metric.circuits import check_of_circuit
from fubini.metric.engines import Point
from fubini.metric.gradient import Wanted, derivative_along
from fubini.metric.points import over_calls, points
from fubini.native.circuit import Circuit
from fubini.options import Approx, LayerRule, Reduce, check_approx, check_reduce, check_rule


def metric_derivative(
    qnode: Any,
    direction: Any,
    approx: Approx = None,
    *,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
) -> Callable[..., Any]:
    r"""Return a function that computes d/dt g(w + t v) at t = 0, as geodesic corrections need it.

    These are the second-order terms of a step (Transtrum and Sethna 2012, arXiv:1201.5885). With D = dg/dt and L = v^T
    g v, the Christoffel symbol of the first kind along v is :math:`\Gamma_{k,ij} v^i v^j = (D v)_k - \frac12 \partial_k
    L`, and L is what torch differentiates. The derivative is exact, for angles that are any function of the weights; it
    costs one second-order sweep per angle.

    Args:
        qnode: As for :func:`metric_tensor`; its weights must be torch tensors.
        direction: v: a tensor of the weight's shape, for several weights a tuple, or one flat tensor for all.
        approx: As for :func:`metric_tensor`, like all that follow.
        argnums: As there.
        layers: As there.
        reduce: As there.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs), which returns one matrix over all weights,
        flattened in order: (P, P), or (batch, P, P) for a batch of inputs without reduction; without a graph.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown approx, layers or reduce.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(w):
        ...     qml.RX(w[0], wires=0)
        ...     qml.RY(w[1], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> along = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> change = fubini.metric_derivative(circuit, along)(w)
        >>> tuple(change.shape), round(change[1, 1].item(), 6)
        ((2, 2), -0.179339)
    """
    check_approx(approx)
    check_rule(layers)
    check_reduce(reduce)
    if isinstance(qnode, Circuit):
        check_of_circuit(argnums=argnums, approx=approx)
        return lambda angles, state=None: circuits.metric_derivative(
            qnode, angles, direction, reduce, state
        )
    at = points(qnode, None, argnums, "native")

    def value(point: Point) -> Any:
        if not all(isinstance(w, torch.Tensor) for w in point.weights):
            raise TypeError(
                "arguments: expected weights that are torch tensors, got "
                f"{', '.join(type(w).__name__ for w in point.weights)}; use torch.as_tensor, or "
                "fubini.metric_derivative(circuit, ...) for angles"
            )
        given = direction if isinstance(direction, tuple | list) else (direction,)
        parts = [torch.as_tensor(d) for d in given]
        size = sum(w.numel() for w in point.weights)
        shapes = [tuple(w.shape) for w in point.weights]
        if sum(d.numel() for d in parts) != size or (
            len(parts) > 1 and [tuple(d.shape) for d in parts] != shapes
        ):
            raise ValueError(
                f"direction: expected tensors of the weights' shapes {shapes}, or one of {size} numbers, got "
                f"{[tuple(d.shape) for d in parts]}"
            )
        for d in parts:
            check_finite_array("direction", d)
        found = derivative_along(point, parts, Wanted(approx, layers, reduce, True))
        return returned(found, point.weights, True)

    return over_calls(qnode, at, value)
