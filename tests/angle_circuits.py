"""Circuits over their angles, at random, for tests of the engine's metric."""

from typing import Any

import numpy as np
import pennylane as qml
import torch

from circuits import ANGLE_GATES, FIXED_GATES, THREE_ANGLE_GATES
from fubini.native.circuit import Circuit
from fubini.native.gates import TABLE


def random_tape(seed, wires=None, gates=14, prepared=False):
    """Gates of the whole table, some controlled, some inverted; every parameter is an angle."""
    rng = np.random.default_rng(seed)
    wires = wires or int(rng.integers(1, 6))
    operations = [qml.Hadamard(w) for w in range(0, wires, 2)]
    if prepared:
        state = rng.normal(size=2**wires) + 1j * rng.normal(size=2**wires)
        operations = [qml.StatePrep(state / np.linalg.norm(state), wires=range(wires))]
    tables = [ANGLE_GATES, ANGLE_GATES, THREE_ANGLE_GATES, FIXED_GATES]
    while len(operations) < gates:
        if rng.integers(2):
            name = list(TABLE)[rng.integers(len(TABLE))]
            size, count = TABLE[name]
            if name == "GlobalPhase" or size > wires:
                continue
            gate = getattr(qml, name)
        else:
            table = tables[rng.integers(4)]
            gate, size = table[rng.integers(len(table))]
            count = 0 if table is FIXED_GATES else 3 if table is THREE_ANGLE_GATES else 1
        if size > wires:
            continue
        order = rng.permutation(wires).tolist()
        op = gate(*torch.tensor(rng.uniform(-3, 3, count)), wires=order[:size])
        if size < wires and rng.integers(6) == 0:
            op = qml.ctrl(op, order[size], control_values=[int(rng.integers(2))])
        operations.append(qml.adjoint(op) if rng.integers(6) == 0 else op)
    operations.append(qml.RY(torch.tensor(0.3, dtype=torch.float64), wires=0))
    operations.append(qml.PauliRot(torch.tensor(0.4), "Y" * wires, wires=range(wires)))
    return qml.tape.QuantumScript(operations, [qml.state()])


def drawn(seed, batch=None, **kwargs):
    tape = random_tape(seed, **kwargs)
    circuit = Circuit.from_tape(tape, wires=range(len(tape.wires)))
    shape = (circuit.num_angles,) if batch is None else (batch, circuit.num_angles)
    return tape, circuit, np.random.default_rng(seed + 1000).uniform(-3, 3, shape)


def ansatz(wires, layers):
    """RY and RZ on every wire, then a ring of CNOTs."""
    operations = []
    for _ in range(layers):
        for w in range(wires):
            operations += [qml.RY(0.0, w), qml.RZ(0.0, w)]
        operations += [qml.CNOT([w, (w + 1) % wires]) for w in range(wires)]
    return Circuit.from_tape(qml.tape.QuantumScript(operations, [qml.state()]), range(wires))


def shared_and_bent(x: Any, w: Any) -> Any:
    """Weights in several gates, products of weights and inputs, angles of several weights."""
    qml.AngleEmbedding(x, wires=range(3))
    qml.RX(w[0] * x[..., 0], 0)
    qml.RY(torch.sin(w[1]) + w[2], 1)
    qml.CNOT([0, 1])
    qml.CRZ(w[0], [1, 2])
    qml.RY(w[3], 2)
    qml.IsingXX(w[3] * w[1], [0, 2])
    qml.RX(w[4], 1)
    return qml.expval(qml.Z(0))
