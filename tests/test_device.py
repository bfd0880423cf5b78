"""The device engine: number of circuits, both sources of blocks."""

from typing import Any

import pennylane as qml
import pytest
import torch

from circuits import DEVICES
from fubini.device import full_metric, metric_blocks
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
