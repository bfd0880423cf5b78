"""Energies: quantum functions of weights alone."""

from typing import Any

import pennylane as qml
import torch

import fubini

# Rounding of a few dozen gates in float64; PennyLane's own results carry as much.
EXACT = {"rtol": 0.0, "atol": 1e-12}
WIRES, DEPTH = 3, 2
SHAPE = (DEPTH, WIRES, 2)
ISING = qml.Hamiltonian(
    [1.0, 1.0, 1.0, 0.7, 0.7, 0.7],
    [qml.Z(i) @ qml.Z((i + 1) % WIRES) for i in range(WIRES)] + [qml.X(i) for i in range(WIRES)],
)


def ansatz(w: Any) -> None:
    for layer in range(DEPTH):
        for wire in range(WIRES):
            qml.RY(w[layer, wire, 0], wire)
            qml.RZ(w[layer, wire, 1], wire)
        for wire in range(WIRES):
            qml.CNOT([wire, (wire + 1) % WIRES])


def one(w: Any) -> Any:
    ansatz(w)
    return qml.expval(ISING)


def nonlinear(w: Any) -> Any:
    ansatz(torch.sin(w) * w[0, 0, 0])
    return qml.expval(ISING)


def listed(w: Any) -> Any:
    ansatz(w)
    return [qml.expval(ISING), qml.probs(wires=[0, 1])]


def paired(w: Any) -> Any:
    ansatz(w)
    return qml.expval(qml.Z(0)), qml.expval(qml.X(1))


def branching(w: Any) -> Any:
    ansatz(w if w[0, 0, 0] > 0 else 2 * w)
    return qml.expval(ISING)


def node(function: Any, device: str = "default.qubit", **options: Any) -> Any:
    return qml.QNode(function, qml.device(device, wires=WIRES), **options)


@qml.qnode(qml.device("default.qubit", wires=WIRES))
def module_energy(w: Any) -> Any:
    return one(w)


def start(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE, generator=generator, dtype=torch.float64, requires_grad=True)


def layer_of(function: Any = one, **options: Any) -> fubini.QuantumLayer:
    qnode = function if isinstance(function, qml.QNode) else node(function)
    return fubini.QuantumLayer(qnode, {"w": SHAPE}, {"w": start()}, **options)


def flat(result: Any) -> torch.Tensor:
    parts = result if isinstance(result, list | tuple) else [result]
    return torch.cat([p.reshape(-1) for p in parts])


def matrix(c: Any, w: Any) -> Any:
    ansatz(w)
    return qml.expval(qml.Hermitian(torch.diag(c), 0))
