"""The measurements of PennyLane that the table of what runs where tries."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

from gates_templates import HAMILTONIAN

Z = qml.Z

MEASUREMENTS: dict[str, Callable[[], Any]] = {
    "expval of a Pauli word": lambda: qml.expval(Z(0) @ qml.X(1)),
    "expval of a sum": lambda: qml.expval(HAMILTONIAN),
    "expval of Hermitian": lambda: qml.expval(qml.Hermitian(np.diag([1.0, 2.0]), wires=0)),
    "expval of Projector": lambda: qml.expval(qml.Projector([1, 0], wires=[0, 1])),
    "expval of SparseHamiltonian": lambda: qml.expval(
        qml.SparseHamiltonian(HAMILTONIAN.sparse_matrix(), wires=[0, 1])
    ),
    "several expvals": lambda: [qml.expval(Z(0)), qml.expval(Z(1))],
    "var of a Pauli word": lambda: qml.var(Z(0) @ qml.X(1)),
    "var of a sum": lambda: qml.var(HAMILTONIAN),
    "probs of wires": lambda: qml.probs(wires=[0, 1]),
    "probs of all wires": lambda: qml.probs(wires=range(4)),
    "probs of an observable": lambda: qml.probs(op=qml.X(0)),
    "probs and an expval": lambda: [qml.probs(wires=[0, 1]), qml.expval(Z(2))],
    "expval of Identity": lambda: qml.expval(qml.Identity(0)),
    "expval of Hadamard": lambda: qml.expval(qml.Hadamard(0)),
    "expval of a product of sums": lambda: qml.expval((Z(0) + qml.X(0)) @ (Z(1) + qml.Y(1))),
    "expval of qml.dot": lambda: qml.expval(qml.dot([0.1, 0.2], [Z(0), qml.X(1)])),
    "expval of qml.Hamiltonian": lambda: qml.expval(qml.Hamiltonian([0.1, 0.2], [Z(0), qml.X(1)])),
    "expval of a square": lambda: qml.expval(qml.pow(Z(0) + qml.X(1), 2)),
    "expval of a PauliSentence": lambda: qml.expval(
        qml.pauli.PauliSentence({qml.pauli.PauliWord({0: "Z", 1: "X"}): 0.5}).operation()
    ),
    "expval of Hermitian of two wires": lambda: qml.expval(
        qml.Hermitian(np.diag([1.0, 2.0, 3.0, 4.0]), wires=[0, 1])
    ),
    "expval of a number operator": lambda: qml.expval(
        qml.qchem.particle_number(2) + qml.qchem.spinz(2)
    ),
    "var of Hermitian": lambda: qml.var(qml.Hermitian(np.diag([1.0, 2.0]), wires=0)),
    "var of Projector": lambda: qml.var(qml.Projector([1, 0], wires=[0, 1])),
    "shadow_expval": lambda: qml.shadow_expval(Z(0)),
    "probs from shots": lambda: qml.probs(wires=[0]),
    "state": qml.state,
    "density_matrix": lambda: qml.density_matrix(wires=[0]),
    "purity": lambda: qml.purity(wires=[0]),
    "vn_entropy": lambda: qml.vn_entropy(wires=[0]),
    "mutual_info": lambda: qml.mutual_info(wires0=[0], wires1=[1]),
    "expval from shots": lambda: qml.expval(Z(0)),
    "classical_shadow": lambda: qml.classical_shadow(wires=[0]),
    "sample": lambda: qml.sample(Z(0)),
    "counts": lambda: qml.counts(Z(0)),
}
#: Those that need shots.
SHOTS = {
    "classical_shadow",
    "counts",
    "expval from shots",
    "probs from shots",
    "sample",
    "shadow_expval",
}
