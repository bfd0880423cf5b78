"""The device engine: number of circuits, both sources of blocks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from circuits import ANGLE_GATES, DEVICES, FIXED_GATES, random_circuit
from devices_common import Serial, full_metric, metric_blocks, spread, tape_of
from fubini.circuit.angles import gate_tape
from fubini.circuit.gate_layers import find_layers
from fubini.devices.executor import executor_of
from fubini.devices.states import auxiliary_wires
from fubini.errors import UnsupportedCircuitError


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


def test_a_generator_that_no_basis_makes_diagonal() -> None:
    """Its words do not commute, and act on more wires than a dense basis may: only states will do."""
    wires = range(6)
    fields = [qml.X(k) for k in wires]
    hamiltonian = qml.sum(*fields, *(qml.Z(k) @ qml.Z(k + 1) for k in wires[:-1]))

    def circuit(w: Any) -> Any:
        spread(6)
        qml.evolve(hamiltonian, w[0])
        return qml.expval(qml.Z(0))

    simulator = qml.device("default.qubit", wires=6)
    # The other way to the same number: derivative states, word by word.
    expected = full_metric(tape_of(circuit, simulator, [0.3]), simulator).values
    assert expected > 1.0
    for name in DEVICES:
        dev = qml.device(name, wires=6)
        (block,) = metric_blocks(tape_of(circuit, dev, [0.3]), dev, diagonal=False)
        np.testing.assert_allclose(block.values, expected, rtol=1e-12)
    plugin = Serial(wires=6)
    with pytest.raises(UnsupportedCircuitError, match=r"no common basis on up to 5 wires"):
        metric_blocks(tape_of(circuit, plugin, [0.3]), plugin, diagonal=False)


@pytest.mark.parametrize("rule", ["wires", "maximal", "queue"])
@pytest.mark.parametrize("spare", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_layers_as_branches_of_one_circuit(seed: int, spare: int | None, rule: Any) -> None:
    """Every gate, controlled by a spare wire of lightning.qubit, against one broadcast circuit of default.qubit."""
    circuit = random_circuit(4000 + seed, shared=True)
    inputs, weights = circuit.draw(seed, [None, 3][seed % 2])

    def function(x: Any, w: Any) -> Any:
        if seed > 1:
            # Not the first wires, whose order a device without wires would change.
            qml.StatePrep(
                np.arange(1.0, 1.0 + 2**circuit.wires), range(circuit.wires), normalize=True
            )
        circuit.gates(x, w)
        return qml.expval(qml.Z(0))

    names = [f"spare {k}" for k in range(spare or 0)]
    order = [*names[:1], *range(circuit.wires), *names[1:]]
    dev = qml.device("lightning.qubit", wires=None if spare is None else order)
    simulator = qml.device("default.qubit", wires=circuit.wires)
    tape = tape_of(function, dev, weights.detach(), inputs)
    layers = len(find_layers(tuple(g.shape for g in tape.gates), rule))
    assert layers > 3
    for diagonal in (False, True):
        before = executor_of(dev).usage
        found = metric_blocks(tape, dev, diagonal=diagonal, layers=rule)
        expected = metric_blocks(tape, simulator, diagonal=diagonal, layers=rule)
        used = executor_of(dev).usage - before
        room = {None: 17, 0: 1, 1: 2, 2: 3, 3: 5}[spare]
        assert used.calls == 1
        if spare != 0:
            assert used.tapes == -(-layers // room) * (1 if seed % 2 == 0 else 3)
        assert [b.angles for b in found] == [b.angles for b in expected]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                np.broadcast_to(ours.values, theirs.values.shape), theirs.values, rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("k", range(len(ANGLE_GATES)))
def test_branches_with_every_gate(k: int) -> None:
    gate, size = ANGLE_GATES[k]
    wires = max(size, 2)

    def function(w: Any) -> Any:
        spread(wires)
        gate(w[0], wires=list(range(size))[::-1])
        qml.QubitUnitary(qml.matrix(qml.Rot(0.1, 0.2, 0.3, wires=0)), wires=1)
        for fixed, count in FIXED_GATES:
            if count <= wires:
                fixed(wires=range(count))
        qml.adjoint(qml.SX(0))
        for wire in range(wires):
            qml.RX(w[1], wire)
        gate(w[2], wires=range(size))
        qml.Rot(w[0], w[1], w[2], wires=0)
        return qml.expval(qml.Z(0))

    dev = qml.device("lightning.qubit")
    tape = tape_of(function, dev, [0.7, -1.3, 0.4])
    found = metric_blocks(tape, dev, diagonal=False)
    assert executor_of(dev).usage.tapes == 1
    expected = metric_blocks(tape, qml.device("default.qubit"), diagonal=False)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.values, theirs.values, rtol=0, atol=1e-12)


def test_branches_are_left_where_they_would_be_large() -> None:
    tape = tape_of(
        lambda w: (qml.RX(w[0], 0), qml.expval(qml.Z(0)))[1], qml.device("lightning.qubit"), [0.1]
    )
    wide = replace(tape, wires=qml.wires.Wires(range(12)))
    assert auxiliary_wires(wide, qml.device("lightning.qubit")) == [12, 13]
    assert auxiliary_wires(wide, qml.device("lightning.qubit", wires=13)) == [12]
    assert not auxiliary_wires(wide, qml.device("lightning.qubit", wires=12))
    assert not auxiliary_wires(wide, qml.device("lightning.qubit", wires=15))
    named = replace(tape, wires=qml.wires.Wires(["a", "b"]))
    assert len(auxiliary_wires(named, qml.device("lightning.qubit"))) == 5
