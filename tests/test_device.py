"""The device engine: number of circuits, both sources of blocks."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from circuits import DEVICES
from devices_common import Serial, tape_of
from fubini.device import full_metric, metric_blocks
from fubini.layers import find_layers
from fubini.tape import gate_tape


@pytest.mark.parametrize("device", DEVICES)
def test_all_layers_in_one_execution(device: str) -> None:
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
    # default.qubit broadcasts: all layers and inputs are settings of one circuit.
    assert tracker.totals["simulations"] == (1 if device == "default.qubit" else 32 * layers)


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


@pytest.mark.parametrize("kind", ["mixed", "plugin", "shots"])
def test_devices_without_states(kind: str) -> None:
    """Generators without a product basis too, which are measured in a common eigenbasis."""
    dev = qml.device("default.mixed", wires=3) if kind == "mixed" else Serial(wires=3, seed=1)

    def circuit(w: Any) -> Any:
        for k in range(3):
            qml.RY(0.3 + k, k)
        qml.IsingXY(w[0], [0, 1])
        qml.IsingXY(w[1], [1, 2])
        qml.SingleExcitation(w[2], [2, 0])
        return qml.expval(qml.Z(0))

    simulator = qml.device("default.qubit", wires=3)
    weights = [0.4, -0.7, 1.2]
    tape = tape_of(circuit, dev, weights, shots=4000 if kind == "shots" else None)
    exact = tape_of(circuit, simulator, weights)
    # Sample covariances of numbers in [-1/2, 1/2] have errors below 0.25 / sqrt(4000).
    tolerance = 0.02 if kind == "shots" else 1e-9
    for diagonal in (False, True):
        found = metric_blocks(tape, dev, diagonal=diagonal)
        expected = metric_blocks(exact, simulator, diagonal=diagonal)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.angles == theirs.angles
            np.testing.assert_allclose(ours.values, theirs.values, rtol=0, atol=tolerance)
    whole = full_metric(tape, dev).values
    tolerance = 0.1 if kind == "shots" else 1e-9
    np.testing.assert_allclose(whole, full_metric(exact, simulator).values, rtol=0, atol=tolerance)
