"""Circuits, Hamiltonians and explicit dense mathematics for the tests of what tangents of a circuit give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch


def ising(wires: int, field: float = 0.9, coupling: float = 1.0) -> Any:
    """The transverse Ising chain with open ends."""
    bonds = [-coupling * qml.Z(k) @ qml.Z(k + 1) for k in range(wires - 1)]
    return qml.sum(*bonds, *[-field * qml.X(k) for k in range(wires)])


def random_hamiltonian(wires: int, rng: np.random.Generator) -> Any:
    """A sum of random words, the identity among them."""
    terms = [0.3 * qml.I(0)]
    for _ in range(2 * wires):
        some = rng.choice(wires, size=rng.integers(1, min(wires, 3) + 1), replace=False)
        letters = [rng.choice([qml.X, qml.Y, qml.Z]) for _ in some]
        word = letters[0](int(some[0]))
        for letter, wire in zip(letters[1:], some[1:], strict=True):
            word = word @ letter(int(wire))
        terms.append(float(rng.normal()) * word)
    return qml.sum(*terms)


def random_circuit(wires: int, weights: int, rng: np.random.Generator) -> Callable[[Any], None]:
    """Gates of which each angle is a multiple of one weight, some weights in several gates."""
    kinds = rng.integers(0, 6, size=weights + wires)
    places = [rng.permutation(wires)[:2].tolist() for _ in kinds]
    scales = rng.choice([1.0, 1.0, 0.7, -1.3], size=len(kinds))

    def circuit(w: Any) -> None:
        for k in range(wires):
            qml.RY(0.3 + 0.2 * k, k)
        for i, (kind, (a, b), scale) in enumerate(zip(kinds, places, scales, strict=True)):
            angle = scale * w[i % weights]
            if kind < 3:
                (qml.RX, qml.RY, qml.RZ)[kind](angle, a)
            elif kind == 3:
                qml.IsingXY(angle, [a, b])
            elif kind == 4:
                qml.CRY(angle, [a, b])
            else:
                qml.PauliRot(angle, "XZ", [a, b])
            qml.CNOT([a, b])

    return circuit


def qnode(circuit: Callable[[Any], None], wires: int, observable: Any) -> Any:
    """A QNode of the expectation value of an observable behind a circuit."""

    def function(w: Any) -> Any:
        circuit(w)
        return qml.expval(observable)

    return qml.QNode(function, qml.device("default.qubit", wires=wires))


def dense_tangents(circuit: Callable[[Any], None], wires: int, weights: Any) -> tuple[Any, Any]:
    """The state (N,) and its derivatives (P, N), from dense matrices of gates U = exp(itG) and dU/dt = iGU."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    with qml.queuing.AnnotatedQueue() as queue:
        circuit(w)
    order = range(wires)
    psi = np.eye(2**wires, dtype=complex)[0]
    derivatives = np.zeros((len(weights), 2**wires), dtype=complex)
    for op in qml.tape.QuantumScript.from_queue(queue).operations:
        gate = qml.math.toarray(qml.math.detach(qml.matrix(op, wire_order=order)))
        psi, derivatives = gate @ psi, derivatives @ gate.T
        if op.data and isinstance(op.data[0], torch.Tensor):
            (slopes,) = torch.autograd.grad(op.data[0], w, retain_graph=True)
            generator = qml.matrix(op.generator(), wire_order=order)
            derivatives += np.outer(slopes, 1j * generator @ psi)
    return psi, derivatives


def alternating(wires: int, observable: Any, plus: bool = False) -> Any:
    """Layers of the two parts of the Ising chain, each term with a weight (2 wires - 1,) of its own."""

    def function(w: Any) -> Any:
        for k in range(wires if plus else 0):
            qml.Hadamard(k)
        for layer in w:
            for k in range(wires - 1):
                qml.IsingZZ(layer[k], [k, k + 1])
            for k in range(wires):
                qml.RX(layer[wires - 1 + k], k)
        return qml.expval(observable)

    return qml.QNode(function, qml.device("default.qubit", wires=wires))


def universal(wires: int, observable: Any) -> Any:
    """Layers of RY and RZ on every wire, weights (2, wires), and a ring of CNOTs."""

    def function(w: Any) -> Any:
        for layer in w:
            for k in range(wires):
                qml.RY(layer[0, k], k)
            for k in range(wires):
                qml.RZ(layer[1, k], k)
            for k in range(wires):
                qml.CNOT([k, (k + 1) % wires])
        return qml.expval(observable)

    return qml.QNode(function, qml.device("default.qubit", wires=wires))
