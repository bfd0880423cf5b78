"""A tape is read in one pass: every gate is translated once, in first calls and in all others."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.native import reading
from fubini.native.reading import read

WIRES, LAYERS = 3, 2


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations that are translated, kept alive: their identity is their name."""
    seen: list[Any] = []
    plain = reading.native_gates

    def counted(op: Any, first_slot: int = 0) -> Any:
        seen.append(op)
        return plain(op, first_slot)

    monkeypatch.setattr(reading, "native_gates", counted)
    return seen


def gates(x: Any, w: Any) -> None:
    for layer in range(LAYERS):
        for k in range(WIRES):
            qml.RX(x[..., k], k)
            qml.Rot(*w[layer, k], wires=k)
        qml.CNOT([0, 1])
        qml.adjoint(qml.IsingXX(w[layer, 0, 0] * w[layer, 1, 1], [1, 2]))


COUNT = LAYERS * (2 * WIRES + 2)


def compiled(inputs: Any, w: Any) -> Any:
    gates(inputs, w)
    return qml.expval(qml.Z(0))


def running(inputs: Any, w: Any) -> Any:
    gates(inputs, w)
    if float(w.detach().sum()) > 1e6:
        qml.X(0)
    return qml.expval(qml.Z(0))


def layer_of(function: Any) -> Any:
    qnode = qml.QNode(function, qml.device("default.qubit", wires=WIRES))
    return fubini.QuantumLayer(qnode, {"w": (LAYERS, WIRES, 3)}).double()


def once(translated: list[Any]) -> None:
    assert len({id(op) for op in translated}) == len(translated)
    assert len(translated) == COUNT
    translated.clear()


@pytest.mark.parametrize("function", [compiled, running])
def test_every_gate_is_translated_once_in_every_call(function: Any, translated: list[Any]) -> None:
    layer = layer_of(function)
    x = torch.rand(4, WIRES, dtype=torch.float64)
    layer(x).sum().backward()
    once(translated)
    layer(x).sum().backward()
    if function is compiled:
        assert not translated
    else:
        once(translated)


def test_every_gate_of_a_qnode_is_translated_once(translated: list[Any]) -> None:
    qnode = qml.QNode(running, qml.device("default.qubit", wires=WIRES))
    call = fubini.compiled(qnode)
    x = torch.rand(WIRES, dtype=torch.float64)
    w = torch.rand(LAYERS, WIRES, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        call(x, w).backward()
        once(translated)


def test_every_gate_of_a_metric_is_translated_once(translated: list[Any]) -> None:
    """Its tape has gates with one angle each: Rot is three of them."""
    qnode = qml.QNode(running, qml.device("default.qubit", wires=WIRES), interface="autograd")

    def function(w: Any) -> Any:
        gates(np.ones(WIRES), w)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(function, qml.device("default.qubit", wires=WIRES), interface="autograd")
    w = qml.numpy.array(np.random.default_rng(0).random((LAYERS, WIRES, 3)), requires_grad=True)
    fubini.metric_tensor(qnode)(w)
    assert len(translated) == COUNT + 2 * LAYERS * WIRES


def test_what_is_decomposed_is_read_as_its_parts(translated: list[Any]) -> None:
    x = torch.rand(2, 4, dtype=torch.float64)
    w = torch.rand(2, WIRES, 3, dtype=torch.float64, requires_grad=True)
    with qml.tape.QuantumTape() as tape:
        qml.AmplitudeEmbedding(x, wires=[0, 1], normalize=True)
        qml.StronglyEntanglingLayers(w, wires=range(WIRES))
        qml.expval(qml.Z(0))
    found = read(tape)
    assert len({id(op) for op in translated}) == len(translated)
    circuit = fubini.Circuit.from_tape(tape)
    assert found.structure == circuit.structure
    assert found.batch == 2
    assert found.angles.requires_grad
    assert found.angles.shape == (circuit.num_angles,)
    want = qml.execute([tape], qml.device("default.qubit"), diff_method=None)[0]
    got = circuit.expval(np.tile(found.angles.detach(), (2, 1)), found.state)[:, 0]
    # Rounding of some tens of gates.
    np.testing.assert_allclose(got, want.detach(), atol=1e-12)


def test_basis_states_are_gates() -> None:
    tape = qml.tape.QuantumScript([qml.BasisState([1, 0, 1], range(3))], [qml.state()])
    found = read(tape)
    assert found.state is None
    assert found.batch is None
    assert [gate.wires for gate in found.structure.gates] == [(0,), (2,)]
