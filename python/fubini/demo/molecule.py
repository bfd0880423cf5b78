"""The ground state of the hydrogen molecule: STO-3G basis, four qubits by the Jordan-Wigner map, 24 angles.

The Hamiltonian is computed from the atoms' places by PennyLane's Hartree-Fock solver, the exact energy by dense
diagonalisation. Two layers of rotations and CNOTs act on the Hartree-Fock determinant, from random angles: the circuit
that PennyLane's natural-gradient tutorial for VQE uses, repeated once, so that the blocks of the second layer are not
diagonal.
"""

import functools
import math
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.demo.training import MINIMIZE, Case, minimiser

DISTANCE = 1.3228  # bohr; the bond's length at equilibrium is about 1.40
LAYERS = 2
CHEMICAL_ACCURACY = 1.6e-3  # hartree, 1 kcal/mol


@functools.cache
def hydrogen() -> tuple[Any, float]:
    """Return the Hamiltonian of H2 on four qubits and its smallest eigenvalue, in hartree."""
    places = np.array([[0.0, 0.0, -DISTANCE / 2], [0.0, 0.0, DISTANCE / 2]])
    molecule = qml.qchem.Molecule(["H", "H"], places)
    hamiltonian, qubits = qml.qchem.molecular_hamiltonian(molecule)
    energies = np.linalg.eigvalsh(qml.matrix(hamiltonian, wire_order=range(qubits)))
    return hamiltonian, float(energies[0])


def make_circuit() -> Any:
    """Return the QNode: angles of shape (LAYERS, 4, 3) to the energy."""
    hamiltonian, _ = hydrogen()

    def energy(angles: torch.Tensor) -> Any:
        qml.BasisState(np.array([1, 1, 0, 0]), wires=range(4))
        for layer in angles:
            for wire in range(4):
                qml.RZ(layer[wire, 0], wires=wire)
                qml.RY(layer[wire, 1], wires=wire)
                qml.RZ(layer[wire, 2], wires=wire)
            for wires in ([2, 3], [2, 0], [3, 1]):
                qml.CNOT(wires=wires)
        return qml.expval(hamiltonian)

    return qml.QNode(energy, qml.device("default.qubit", wires=4), interface="torch")


def start(seed: int) -> torch.Tensor:
    """Return where to begin, uniform in [0, 2 pi), by a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(LAYERS, 4, 3, dtype=torch.float64, generator=generator) * (2 * math.pi)


CASE = Case(
    name="molecule",
    title="Ground state of H2",
    measure="energy error / hartree",
    target="error <= 1.6e-3",
    steps=100,
    quick_steps=3,
    grid=((0.03,), (0.1,), (0.3,), (1.0,), (3.0,)),
    rates={
        "SGD": (1.0,),
        "Adam": (1.0,),
        "QNG diag": (0.3,),
        "QNG block-diag": (0.3,),
        MINIMIZE: (),
    },
    log_scale=True,
    train=minimiser(make_circuit, start, lambda: hydrogen()[1], CHEMICAL_ACCURACY),
)
