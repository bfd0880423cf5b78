"""The device engine: number of circuits, both sources of blocks, parameter shift."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from circuits import DEVICES, random_circuit
from fubini.device import full_metric, metric_blocks, shift_jacobian
from fubini.layers import find_layers
from fubini.tape import gate_tape


@pytest.mark.parametrize("device", DEVICES)
def test_one_circuit_per_layer_in_one_execution(device: str) -> None:
    dev = qml.device(device, wires=4)

    @qml.qnode(dev)
    def circuit(x: Any, w: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(4))
        qml.StronglyEntanglingLayers(w, wires=range(4))
        return qml.expval(qml.Z(0))

    w = torch.rand(3, 4, 3, dtype=torch.float64, requires_grad=True)
    tape = gate_tape(circuit, (torch.rand(32, 4), w), {}, [1])
    layers = len(find_layers(tuple(g.shape for g in tape.gates)))
    with qml.Tracker(dev) as tracker:
        metric_blocks(tape, dev, diagonal=False)
    assert tracker.totals["batches"] == 1
    if device == "default.qubit":  # broadcasts: the batch costs no further circuits
        assert tracker.totals["simulations"] == layers


def test_full_metric_needs_one_circuit_per_word() -> None:
    dev = qml.device("default.qubit", wires=2)

    @qml.qnode(dev)
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.CRY(w[1], [0, 1])  # Y/4 - ZY/4: two words
        return qml.expval(qml.Z(0))

    tape = gate_tape(circuit, (torch.rand(2, requires_grad=True),), {}, [0])
    with qml.Tracker(dev) as tracker:
        full_metric(tape, dev)
    assert tracker.totals["simulations"] == 1 + 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(16))
def test_parameter_shift_equals_backprop(seed: int, device: str) -> None:
    circuit = random_circuit(1000 + seed, shared=True)
    inputs, weights = circuit.draw(seed, [None, 1, 3, 4][seed % 4])

    def expvals(x: Any, w: Any) -> Any:
        circuit.gates(x, w)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(0)), qml.probs(wires=[1])

    oracle = qml.QNode(
        expvals, qml.device("default.qubit", wires=circuit.wires), diff_method="backprop"
    )
    dev = qml.device(device, wires=circuit.wires)
    tape = gate_tape(qml.QNode(expvals, dev), (inputs, weights), {}, [1])
    jacobian = shift_jacobian(tape, dev) @ tape.jacobian

    for b in range(1 if inputs.ndim == 1 else len(inputs)):
        x = inputs if inputs.ndim == 1 else inputs[b]
        expected = torch.autograd.functional.jacobian(
            lambda v, x=x: torch.cat([r.reshape(-1) for r in oracle(x, v)]), weights.detach()
        )
        # Two to eight shifted values of order one.
        np.testing.assert_allclose(jacobian[b], expected.numpy(), rtol=0, atol=1e-11)


def test_all_shifts_are_one_broadcast_circuit() -> None:
    dev = qml.device("default.qubit", wires=2)

    @qml.qnode(dev)
    def circuit(x: Any, w: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(2))
        qml.RX(w[0], 0)
        qml.CRY(w[1], [0, 1])
        return qml.expval(qml.Z(1))

    tape = gate_tape(circuit, (torch.rand(5, 2), torch.rand(2, requires_grad=True)), {}, [1])
    with qml.Tracker(dev) as tracker:
        assert shift_jacobian(tape, dev).shape == (5, 1, 2)
    assert tracker.totals["simulations"] == 1
    assert tracker.totals["executions"] == (2 + 4) * 5


def test_a_device_with_too_few_wires_is_named() -> None:
    dev = qml.device("default.qubit", wires=1)

    @qml.qnode(dev)
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RY(w[1], 1)
        return qml.expval(qml.Z(0))

    tape = gate_tape(circuit, (torch.rand(2, requires_grad=True),), {}, [0])
    with pytest.raises(ValueError, match=r"device: default\.qubit refused a circuit"):
        metric_blocks(tape, dev, diagonal=False)
