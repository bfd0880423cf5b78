"""Circuits that make commuting Pauli sums diagonal, so that one measurement of probabilities serves them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.pauli import (
    PauliSum,
    dense,
    on_bits,
    parity_signs,
    product_basis,
    restrict,
    sums_commute,
    words_commute,
)

# A dense common eigenbasis is one unitary on so many wires, which most devices can still decompose.
_MAX_DENSE_WIRES = 5


@dataclass(frozen=True)
class DiagonalBasis:
    """Gates in front of a measurement, and what the Pauli sums are after them.

    Attributes:
        gates: To be appended to the circuit.
        wires: Labels of the wires to measure, the most significant first.
        sums: The Pauli sums as sums of Z words on these wires.
    """

    gates: tuple[Any, ...]
    wires: tuple[Any, ...]
    sums: tuple[PauliSum, ...]

    def values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The value of every sum for every outcome, (sums, 2^wires)."""
        outcomes = np.arange(1 << len(self.wires))
        result = np.zeros((len(self.sums), len(outcomes)))
        for row, terms in zip(result, self.sums, strict=True):
            for _, z, coefficient in terms:
                row += coefficient * parity_signs(outcomes & z)
        return result


def to_z_basis(letter: str, wire: Any) -> list[Any]:
    """Return gates V with V P V^dagger = Z: a measurement of Z after them is one of P before them."""
    if letter == "X":
        return [qml.Hadamard(wire)]
    if letter == "Y":
        return [qml.adjoint(qml.S(wire)), qml.Hadamard(wire)]
    return []


def diagonal_basis(sums: Sequence[PauliSum], labels: Sequence[Any]) -> DiagonalBasis | None:
    """Find a circuit in which commuting Pauli sums are diagonal.

    One-qubit gates where the words agree wire by wire, Clifford gates where the words commute, else one unitary on up
    to 5 wires where only the sums commute.

    Args:
        sums: Over the wires of the circuit.
        labels: The circuit's wires.

    Returns:
        The basis; None where there is none or it would take a larger unitary.
    """
    count = len(labels)
    letters = product_basis(sums, count)
    if letters is not None:
        wires = sorted(letters) or [0]  # a sum without words still needs a wire to measure
        gates = [g for w in wires for g in to_z_basis(letters.get(w, "Z"), labels[w])]
        return DiagonalBasis(
            tuple(gates),
            tuple(labels[w] for w in wires),
            tuple(restrict(s, wires, count) for s in sums),
        )
    words = [(x, z) for s in sums for x, z, _ in s]
    support = 0
    for x, z in words:
        support |= x | z
    used = [w for w in range(count) if support >> (count - 1 - w) & 1]
    if all(words_commute((*a, 1.0), (*b, 1.0)) for i, a in enumerate(words) for b in words[:i]):
        return _clifford_basis(sums, used, labels)
    if len(used) > _MAX_DENSE_WIRES:
        return None
    if not all(sums_commute(a, b) for i, a in enumerate(sums) for b in sums[:i]):
        return None
    return _dense_basis(sums, used, labels)


def _local(terms: PauliSum, used: Sequence[int], count: int) -> PauliSum:
    return on_bits(terms, [1 << (count - 1 - w) for w in used])


class _Conjugation:
    """Pauli words carried through Clifford gates, signs included (Aaronson and Gottesman 2004)."""

    def __init__(self, words: Sequence[tuple[int, int]], wires: int) -> None:
        self.x = [x for x, _ in words]
        self.z = [z for _, z in words]
        self.sign = [1] * len(words)
        self.wires = wires
        self.gates: list[tuple[str, tuple[int, ...]]] = []

    def bit(self, mask: int, wire: int) -> int:
        return mask >> (self.wires - 1 - wire) & 1

    def apply(self, name: str, *wires: int) -> None:
        self.gates.append((name, wires))
        for k in range(len(self.x)):
            if name == "CZ":
                self._hadamard(k, wires[1])
                self._cnot(k, *wires)
                self._hadamard(k, wires[1])
            elif name == "CNOT":
                self._cnot(k, *wires)
            elif name == "H":
                self._hadamard(k, wires[0])
            else:  # the adjoint of S: X -> -Y, Y -> X
                if self.bit(self.x[k], wires[0]):
                    if not self.bit(self.z[k], wires[0]):
                        self.sign[k] = -self.sign[k]
                    self.z[k] ^= 1 << (self.wires - 1 - wires[0])

    def _hadamard(self, k: int, wire: int) -> None:
        x, z = self.bit(self.x[k], wire), self.bit(self.z[k], wire)
        if x & z:
            self.sign[k] = -self.sign[k]
        if x != z:
            self.x[k] ^= 1 << (self.wires - 1 - wire)
            self.z[k] ^= 1 << (self.wires - 1 - wire)

    def _cnot(self, k: int, control: int, target: int) -> None:
        xc, zc = self.bit(self.x[k], control), self.bit(self.z[k], control)
        xt, zt = self.bit(self.x[k], target), self.bit(self.z[k], target)
        if xc & zt & (xt ^ zc ^ 1):
            self.sign[k] = -self.sign[k]
        self.x[k] ^= xc << (self.wires - 1 - target)
        self.z[k] ^= zt << (self.wires - 1 - control)


def _clifford_basis(
    sums: Sequence[PauliSum], used: Sequence[int], labels: Sequence[Any]
) -> DiagonalBasis:
    local = [_local(s, used, len(labels)) for s in sums]
    words = list(dict.fromkeys((x, z) for s in local for x, z, _ in s))
    wires = len(used)
    table = _Conjugation(words, wires)
    for k in range(len(words)):
        if not table.x[k]:
            continue
        pivot = next(w for w in range(wires) if table.bit(table.x[k], w))
        for w in range(wires):
            if w != pivot and table.bit(table.x[k], w):
                table.apply("CNOT", pivot, w)
        if table.bit(table.z[k], pivot):
            table.apply("S+", pivot)
        for w in range(wires):
            if w != pivot and table.bit(table.z[k], w):
                table.apply("CZ", pivot, w)
        # The word is X on the pivot; all others commute with it, so that Z there stays diagonal from now on.
        table.apply("H", pivot)
    chosen = [labels[w] for w in used]
    make = {
        "H": qml.Hadamard,
        "S+": lambda wires: qml.adjoint(qml.S(wires)),
        "CNOT": qml.CNOT,
        "CZ": qml.CZ,
    }
    gates = [make[name](wires=[chosen[w] for w in where]) for name, where in table.gates]
    image = {w: (table.z[k], table.sign[k]) for k, w in enumerate(words)}
    diagonal = tuple(tuple((0, image[x, z][0], c * image[x, z][1]) for x, z, c in s) for s in local)
    return DiagonalBasis(tuple(gates), tuple(chosen), diagonal)


def _dense_basis(
    sums: Sequence[PauliSum], used: Sequence[int], labels: Sequence[Any]
) -> DiagonalBasis | None:
    wires = len(used)
    matrices = [dense(_local(s, used, len(labels)), wires) for s in sums]
    # The eigenspaces of a generic combination of commuting matrices are common to all of them.
    mixed = sum(np.cos(1.0 + k) * m for k, m in enumerate(matrices))
    _, vectors = np.linalg.eigh(mixed)
    outcomes = np.arange(1 << wires)
    diagonal = []
    for matrix in matrices:
        rotated = vectors.conj().T @ matrix @ vectors
        values = np.diagonal(rotated).real
        if np.abs(rotated - np.diag(values)).max() > 1e-9 * max(1.0, np.abs(values).max()):
            return None
        terms = [
            (0, z, float(parity_signs(outcomes & z) @ values) / len(outcomes))
            for z in outcomes.tolist()
        ]
        diagonal.append(tuple(t for t in terms if abs(t[2]) > 1e-15))
    chosen = [labels[w] for w in used]
    unitary = qml.QubitUnitary(vectors.conj().T, wires=chosen)
    return DiagonalBasis((unitary,), tuple(chosen), tuple(diagonal))
