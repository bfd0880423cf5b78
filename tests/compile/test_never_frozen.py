"""Regression tests: functions whose compiled circuit once ignored what the function would have done."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from captured import CAPTURED, DEVICE, RARE, check, layer_of, set_everything


@pytest.mark.parametrize("angle", RARE.values(), ids=RARE.keys())
def test_rare_branches(angle: Any) -> None:
    layer = layer_of(angle)
    data = torch.tensor(
        [[0.0, 0], [0.5, 0], [11.0, 0], [-25.0, 0], [70.0, 0], [float("nan"), 0]]
    ).double()
    for x in (
        data[:2],
        data,
        data[:1],
        data.repeat(2, 1),
        data.float(),
        data.clone().requires_grad_(),
    ):
        check(layer, x)
    with torch.no_grad():
        layer.weights[1] = 25.0
        check(layer, data)


@pytest.mark.parametrize("angle", CAPTURED.values(), ids=CAPTURED.keys())
def test_captured_state(angle: Any) -> None:
    x = torch.tensor([[0.2, 0.0], [0.4, 0.0]]).double()
    set_everything(0.3)
    layer = layer_of(angle)
    for value in (0.3, 1.7, 0.3, -0.9):
        set_everything(value)
        check(layer, x)


def test_callable_objects_and_replaced_functions() -> None:
    class Circuit:
        __name__ = "circuit"

        def __init__(self) -> None:
            self.value = 0.3

        def __call__(self, inputs: Any, weights: Any) -> Any:
            qml.RX(inputs[..., 0] + self.value, 0)
            qml.RY(weights[0], 0)
            return qml.expval(qml.Z(0))

    circuit = Circuit()
    layer = fubini.QuantumLayer(qml.QNode(circuit, DEVICE), {"weights": 2}).double()
    x = torch.tensor([[0.2, 0.0], [0.4, 0.0]]).double()
    check(layer, x)
    circuit.value = 1.1
    check(layer, x)
    layer.qnode.func = lambda inputs, weights: (qml.RY(inputs[..., 0], 0), qml.expval(qml.Z(0)))[-1]
    check(layer, x)


def test_captured_observables() -> None:
    matrix = np.diag([1.0, -1.0])
    observable = qml.Hermitian(matrix, 0)

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0] + weights[0], 0)
        return qml.expval(observable)

    layer = fubini.QuantumLayer(qml.QNode(circuit, DEVICE), {"weights": 2}).double()
    x = torch.tensor([[0.2, 0.0], [0.4, 0.0]]).double()
    check(layer, x)
    matrix[0, 0] = 3.0
    check(layer, x)
