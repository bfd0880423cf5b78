"""Sums of Pauli words as bit masks, the form in which generators reach the kernel.

A word over n wires is a pair of integers ``(x, z)``: wire w owns bit ``n - 1 - w`` (the first wire is the most
significant bit, as in PennyLane); x has the bits of the wires with X or Y, z those with Z or Y.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.circuit.words import words_of

PauliTerm = tuple[int, int, float]
PauliSum = tuple[PauliTerm, ...]

# 4^6 words with 2^6 entries each take some milliseconds; nothing in PennyLane's gate set comes close.
_MAX_DENSE_WIRES = 6
_TINY = 1e-14  # relative to the largest coefficient: rounding of the dense decomposition


def pauli_sum(observable: Any, positions: dict[Any, int], num_wires: int) -> PauliSum | None:
    """Return a Hermitian PennyLane operator as a Pauli sum over all wires of a circuit.

    Args:
        observable: Operator with a Pauli representation, or with a matrix on at most 6 wires.
        positions: Position of each wire label in the circuit.
        num_wires: Number of wires of the circuit.

    Returns:
        Terms (x mask, z mask, coefficient), or None where the operator has neither form or is not Hermitian.
    """
    sentence = words_of(observable)
    if sentence is not None:
        terms = []
        for word, coefficient in sentence.items():
            value = complex(qml.math.toarray(coefficient))
            if abs(value.imag) > _TINY * max(1.0, abs(value)):
                return None
            x = z = 0
            for wire, letter in word.items():
                bit = 1 << (num_wires - 1 - positions[wire])
                x |= bit if letter in "XY" else 0
                z |= bit if letter in "ZY" else 0
            terms.append((x, z, value.real))
        return tuple(terms)
    if len(observable.wires) > _MAX_DENSE_WIRES:
        return None
    try:
        matrix = np.asarray(qml.matrix(observable, wire_order=observable.wires), dtype=complex)
    except qml.exceptions.MatrixUndefinedError:
        return None
    if matrix.ndim != 2 or not np.allclose(matrix, matrix.conj().T, atol=1e-12):
        return None
    local = _decompose(matrix)
    bits = [1 << (num_wires - 1 - positions[wire]) for wire in observable.wires]
    return tuple((_spread(x, bits), _spread(z, bits), c) for x, z, c in local)


def _spread(mask: int, bits: Sequence[int]) -> int:
    return sum(bit for k, bit in enumerate(bits) if mask >> (len(bits) - 1 - k) & 1)


def _decompose(matrix: npt.NDArray[np.complex128]) -> list[PauliTerm]:
    size = len(matrix)
    rows = np.arange(size)
    terms = []
    for x in range(size):
        entries = matrix[rows ^ x, rows]  # X^x Z^z has (-1)^|row & z| at (row ^ x, row)
        for z in range(size):
            signs = 1 - 2 * (np.bitwise_count(rows & z) & 1).astype(int)
            phase = 1j ** ((x & z).bit_count())  # Y = i X Z
            coefficient = (np.conj(phase) * (signs @ entries)).real / size
            terms.append((x, z, float(coefficient)))
    largest = max((abs(c) for _, _, c in terms), default=0.0)
    return [term for term in terms if abs(term[2]) > _TINY * largest]


def dense(terms: PauliSum, num_wires: int) -> npt.NDArray[np.complex128]:
    """Return the (2^n, 2^n) matrix of a Pauli sum."""
    size = 1 << num_wires
    rows = np.arange(size)
    matrix = np.zeros((size, size), dtype=complex)
    for x, z, coefficient in terms:
        signs = 1 - 2 * (np.bitwise_count(rows & z) & 1).astype(int)
        matrix[rows ^ x, rows] += coefficient * 1j ** ((x & z).bit_count()) * signs
    return matrix


def words_commute(a: PauliTerm, b: PauliTerm) -> bool:
    """Say whether two words commute: an even number of wires where they anticommute."""
    return ((a[0] & b[1]).bit_count() + (a[1] & b[0]).bit_count()) % 2 == 0


def sums_commute(left: PauliSum, right: PauliSum) -> bool:
    """Say whether two Pauli sums commute, as sums (single words may not)."""
    products: dict[tuple[int, int], complex] = {}
    scale = 0.0
    for a in left:
        for b in right:
            if words_commute(a, b):
                continue
            # (X^x Z^z)(X^u Z^v) = (-1)^|z & u| X^(x^u) Z^(z^v): only phases relative to the product word matter.
            phase = 1j ** ((a[0] & a[1]).bit_count() + (b[0] & b[1]).bit_count())
            sign = -1 if (a[1] & b[0]).bit_count() % 2 else 1
            word = (a[0] ^ b[0], a[1] ^ b[1])
            products[word] = products.get(word, 0) + phase * sign * a[2] * b[2]
            scale = max(scale, abs(a[2] * b[2]))
    return all(abs(value) <= 1e-12 * scale for value in products.values())


def product_basis(generators: Sequence[PauliSum], num_wires: int) -> dict[int, str] | None:
    """Return the letter (X, Y or Z) of every wire on which all words agree.

    Args:
        generators: Pauli sums.
        num_wires: Number of wires.

    Returns:
        Wire position -> letter for the wires that the generators act on, or None where two words need different
        bases on one wire, so that no product basis diagonalises them all.
    """
    letters: dict[int, str] = {}
    for generator in generators:
        for x, z, _ in generator:
            for wire in range(num_wires):
                bit = 1 << (num_wires - 1 - wire)
                if not (x | z) & bit:
                    continue
                letter = "Y" if x & z & bit else "X" if x & bit else "Z"
                if letters.setdefault(wire, letter) != letter:
                    return None
    return letters


def restrict(generator: PauliSum, wires: Sequence[int], num_wires: int) -> PauliSum:
    """Return the generator measured in its product basis: Z on the given wires wherever a letter stood."""
    terms = []
    for x, z, coefficient in generator:
        support = x | z
        mask = 0
        for k, wire in enumerate(wires):
            if support >> (num_wires - 1 - wire) & 1:
                mask |= 1 << (len(wires) - 1 - k)
        terms.append((0, mask, coefficient))
    return tuple(terms)
