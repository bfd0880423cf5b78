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
    """The state (N,) and its derivatives (P, N), by torch through PennyLane's simulator."""

    def function(w: Any) -> Any:
        circuit(w)
        return qml.state()

    state = qml.QNode(function, qml.device("default.qubit", wires=wires), diff_method="backprop")
    w = torch.tensor(weights, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(lambda w: torch.view_as_real(state(w)), w)
    by_weights = torch.view_as_complex(found.permute(2, 0, 1).contiguous())
    return state(w).detach().numpy(), by_weights.numpy()
