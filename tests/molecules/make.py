"""Write the Jordan-Wigner Hamiltonians of the tests: ``python tests/molecules/make.py [name ...]``.

Hartree-Fock by PennyLane's own differentiable solver in STO-3G. A file has the words, one letter for
every qubit, their coefficients in hartree, the number of electrons, and the lowest eigenvalue.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pennylane as qml
import scipy.sparse.linalg

ANGSTROM = 1.8897259886  # in bohr
# Of PennyLane's documentation of AdaptiveOptimizer, in bohr.
H3 = [[0.01076341, 0.04449877, 0.0], [0.98729513, 1.63059094, 0.0], [1.87262415, -0.00815842, 0.0]]
#: Symbols, geometry in bohr, charge, active electrons and orbitals (None: all).
MOLECULES = {
    "h3+": (["H"] * 3, H3, 1, None, None),
    "h4": (["H"] * 4, [[0.0, 0.0, 1.5 * ANGSTROM * k] for k in range(4)], 0, None, None),
    "lih": (["Li", "H"], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.6 * ANGSTROM]], 0, 2, 5),
}


def main() -> None:
    for name in sys.argv[1:] or list(MOLECULES):
        symbols, positions, charge, electrons, orbitals = MOLECULES[name]
        molecule = qml.qchem.Molecule(symbols, np.array(positions), charge=charge)
        hamiltonian, qubits = qml.qchem.molecular_hamiltonian(
            molecule, method="dhf", active_electrons=electrons, active_orbitals=orbitals
        )
        words = {
            "".join(word.get(k, "I") for k in range(qubits)): float(np.real(c))
            for word, c in qml.pauli.pauli_sentence(hamiltonian).items()
            if abs(c) > 1e-12
        }
        matrix = hamiltonian.sparse_matrix(wire_order=range(qubits))
        content = {
            "ground": float(scipy.sparse.linalg.eigsh(matrix, k=1, which="SA")[0][0]),
            "electrons": electrons or molecule.n_electrons,
            "words": list(words),
            "coefficients": list(words.values()),
        }
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(content, indent=0) + "\n")
        print(f"{path.name}: {qubits} qubits, {len(words)} words")


if __name__ == "__main__":
    main()
