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


def _clifford_basis(
    sums: Sequence[PauliSum], used: Sequence[int], labels: Sequence[Any]
) -> DiagonalBasis:
    """Words carried through Clifford gates, signs included (Aaronson and Gottesman 2004)."""
    local = [_local(s, used, len(labels)) for s in sums]
    words = list(dict.fromkeys((x, z) for s in local for x, z, _ in s))
    chosen = [labels[w] for w in used]
    bits = 1 << np.arange(len(used))[::-1]
    # Letters of every word, (words, wires), and whether its sign has changed.
    x, z = (np.array([word[k] for word in words])[:, None] & bits > 0 for k in (0, 1))
    flipped = np.zeros(len(words), dtype=bool)
    gates: list[Any] = []
    for k in range(len(words)):
        if not x[k].any():
            continue
        pivot, *others = np.flatnonzero(x[k]).tolist()
        for w in others:
            gates.append(qml.CNOT([chosen[pivot], chosen[w]]))
            flipped ^= x[:, pivot] & z[:, w] & ~(x[:, w] ^ z[:, pivot])
            x[:, w] ^= x[:, pivot]
            z[:, pivot] ^= z[:, w]
        if z[k, pivot]:
            gates.append(qml.adjoint(qml.S(chosen[pivot])))  # X -> -Y, Y -> X
            flipped ^= x[:, pivot] & ~z[:, pivot]
            z[:, pivot] ^= x[:, pivot]
        for w in np.flatnonzero(z[k]).tolist():
            gates.append(qml.CZ([chosen[pivot], chosen[w]]))
            flipped ^= x[:, pivot] & x[:, w] & (z[:, pivot] ^ z[:, w])
            z[:, pivot] ^= x[:, w]
            z[:, w] ^= x[:, pivot]
        # The word is X on the pivot; all others commute with it, so that Z there stays diagonal from now on.
        gates.append(qml.Hadamard(chosen[pivot]))
        flipped ^= x[:, pivot] & z[:, pivot]
        x[:, pivot], z[:, pivot] = z[:, pivot].copy(), x[:, pivot].copy()
    masks, signs = (z @ bits).tolist(), np.where(flipped, -1.0, 1.0).tolist()
    place = {word: k for k, word in enumerate(words)}
    diagonal = []
    for terms in local:
        places = [place[term[:2]] for term in terms]
        diagonal.append(
            tuple((0, masks[k], signs[k] * c) for k, (_, _, c) in zip(places, terms, strict=True))
        )
    return DiagonalBasis(tuple(gates), tuple(chosen), tuple(diagonal))


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
