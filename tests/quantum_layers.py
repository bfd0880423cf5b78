"""Quantum layers of several kinds, compiled once for all tests."""

import copy
import functools
from typing import Any

import pennylane as qml
import torch

import fubini

Tensor = torch.Tensor


def expvals(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(0) @ qml.Y(1)), qml.expval(qml.Z(1))]


def probabilities(inputs: Tensor, weights: Tensor, scale: Tensor) -> Any:
    """A weight that is used in several angles, together with an input."""
    qml.RY(2.0 * inputs[..., 0] + scale, 0)
    qml.RX(0.5 * inputs[..., 1] - 0.3 * scale, 1)
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return qml.probs(wires=[1, 0])


def single(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return qml.expval(qml.Z(0))


def parts(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return qml.probs(wires=0), qml.probs(wires=1)


def squared(inputs: Tensor, weights: Tensor) -> Any:
    """Not affine: the quantum function runs in every call."""
    qml.RY(inputs[..., 0] ** 2, 0)
    qml.RX(inputs[..., 1] * weights[0, 0, 0], 1)
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1))]


SHAPES: dict[Any, dict[str, Any]] = {probabilities: {"weights": (1, 2, 3), "scale": ()}}
OUTPUTS = {expvals: 3, probabilities: 4, squared: 2}


@functools.cache
def compiled(function: Any) -> fubini.QuantumLayer:
    node = qml.QNode(function, qml.device("default.qubit", wires=2), interface="torch")
    layer = fubini.QuantumLayer(node, SHAPES.get(function, {"weights": (2, 2, 3)})).double()
    layer(torch.zeros(2, 2, dtype=torch.float64))
    return layer


def quantum(function: Any = expvals) -> fubini.QuantumLayer:
    """A layer with parameters of its own, compiled once."""
    known = compiled(function)
    layer = copy.deepcopy(known)
    layer.__dict__.update(_forms=copy.copy(known._forms), qnode=known.qnode)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.rand(p.shape) * 6.0)
    return layer
