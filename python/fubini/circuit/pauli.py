"""Sums of Pauli words as bit masks, the form in which generators reach the kernel.

A word over n wires is a pair of integers ``(x, z)``: wire w owns bit ``n - 1 - w`` (the first wire is the most
significant bit, as in PennyLane); x has the bits of the wires with X or Y, z those with Z or Y.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.circuit.observables import words_of

PauliTerm = tuple[int, int, float]
PauliSum = tuple[PauliTerm, ...]

#: 4^8 words with 2^8 entries each take some milliseconds.
MAX_MATRIX_WIRES = 8
#: Of projectors on basis states, which have 2^k words of Z.
MAX_PROJECTOR_WIRES = 12
#: Of sparse matrices: 2^k wires' amplitudes times the combinations of wires that entries flip, at most 2^24 words.
MAX_SPARSE_WORDS = 1 << 24
# Relative to the largest coefficient: rounding of a matrix's decomposition.
_TINY = 1e-15
_PHASES = np.array([1, 1j, -1, -1j])


class NoPauliSum(Exception):
    """An operator that is no real sum of Pauli words, or none that is known; says why, in words."""


def pauli_sum(observable: Any, positions: dict[Any, int], num_wires: int) -> PauliSum:
    """Return a Hermitian PennyLane operator as a Pauli sum over all wires of a circuit.

    Args:
        observable: Operator with a Pauli representation, or with a matrix on at most 8 wires, or sums and multiples of
            such.
        positions: Position of each wire label in the circuit.
        num_wires: Number of wires of the circuit.

    Returns:
        Terms (x mask, z mask, coefficient), every word once.

    Raises:
        NoPauliSum: If it has neither form or is not Hermitian.
    """
    sentence = words_of(observable)
    if sentence is not None:
        terms = []
        for word, coefficient in sentence.items():
            places = tuple(positions[wire] for wire in word)
            masks = word_masks("".join(word.values()), places, num_wires)
            terms.append((*masks, _real(complex(qml.math.toarray(coefficient)))))
        return collected(terms)
    if isinstance(observable, qml.ops.SProd):
        scale = _real(complex(qml.math.toarray(observable.scalar)))
        base = pauli_sum(observable.base, positions, num_wires)
        return tuple((x, z, scale * c) for x, z, c in base)
    if isinstance(observable, qml.ops.Sum):
        parts = [pauli_sum(operand, positions, num_wires) for operand in observable.operands]
        return collected(term for part in parts for term in part)
    wires = observable.wires
    bits = [1 << (num_wires - 1 - positions[wire]) for wire in wires]
    if isinstance(observable, qml.SparseHamiltonian):
        return on_wires(of_sparse(observable.sparse_matrix()), bits)
    if (
        isinstance(observable, qml.Projector)
        and MAX_MATRIX_WIRES < len(wires) <= MAX_PROJECTOR_WIRES
    ):
        state = qml.math.toarray(observable.parameters[0])
        if state.shape == (len(wires),):  # of a basis state
            outcome = int("".join(str(int(bit)) for bit in state), 2)
            return projector([positions[wire] for wire in wires], outcome, num_wires)
    if len(wires) > MAX_MATRIX_WIRES:
        raise NoPauliSum(f"a matrix on {len(wires)} wires, more than {MAX_MATRIX_WIRES}")
    try:
        matrix = np.asarray(qml.math.toarray(qml.matrix(observable, wire_order=wires)), complex)
    except qml.exceptions.MatrixUndefinedError:
        raise NoPauliSum("it has no matrix") from None
    if matrix.ndim != 2 or not is_hermitian(matrix):
        raise NoPauliSum("it is not Hermitian")
    return on_wires(of_matrix(matrix), bits)


def on_wires(terms: PauliSum, bits: Sequence[int]) -> PauliSum:
    """Return a sum over k wires as one over all wires of a circuit.

    Args:
        terms: The sum.
        bits: The bit of each of the k wires in the circuit's masks, the first wire being the most significant.
    """
    return tuple((spread(x, bits), spread(z, bits), c) for x, z, c in terms)


def known_pauli_sum(observable: Any, positions: dict[Any, int], num_wires: int) -> PauliSum | None:
    """Return the operator as a Pauli sum, see :func:`pauli_sum`, or None where it is none."""
    try:
        return pauli_sum(observable, positions, num_wires)
    except NoPauliSum:
        return None


def _real(value: complex) -> float:
    if abs(value.imag) > 1e-12 * max(1.0, abs(value)):
        raise NoPauliSum(f"it is not Hermitian, it has a coefficient {value}")
    return value.real


def is_hermitian(matrix: npt.NDArray[np.complex128]) -> bool:
    """Say whether a matrix is Hermitian up to rounding."""
    scale = max(1.0, float(np.abs(matrix).max()))
    return bool(np.allclose(matrix, matrix.conj().T, rtol=0, atol=1e-10 * scale))


def word_masks(word: str, wires: Sequence[int], num_wires: int) -> tuple[int, int]:
    """Return the masks (x, z) of a word; ``word``: one of I, X, Y, Z for each wire."""
    x = z = 0
    for letter, wire in zip(word, wires, strict=True):
        bit = 1 << (num_wires - 1 - wire)
        x |= bit if letter in "XY" else 0
        z |= bit if letter in "ZY" else 0
    return x, z


def word_letters(x: int, z: int, num_wires: int) -> dict[int, str]:
    """Return the letters of a word by the position of their wire, ascending.

    Args:
        x: Mask of the wires with X or Y.
        z: Mask of the wires with Z or Y.
        num_wires: Number of wires of the circuit.
    """
    letters = {}
    for wire in range(num_wires):
        bit = 1 << (num_wires - 1 - wire)
        if (x | z) & bit:
            letters[wire] = "Y" if x & z & bit else "X" if x & bit else "Z"
    return letters


def bits_of(mask: int) -> list[int]:
    """Return the single bits of a mask, most significant first: its wires in circuit order."""
    return [1 << k for k in range(mask.bit_length() - 1, -1, -1) if mask >> k & 1]


def spread(mask: int, bits: Sequence[int]) -> int:
    """Return a mask over a few wires as one over all of them.

    Args:
        mask: Over the wires of ``bits``, the first one the most significant.
        bits: The bit of each of these wires.
    """
    return sum(bit for k, bit in enumerate(bits) if mask >> (len(bits) - 1 - k) & 1)


def gathered(mask: int, bits: Sequence[int]) -> int:
    """Return a mask as one over those wires alone, the inverse of :func:`spread`.

    Args:
        mask: Over all wires.
        bits: The bit of each of these wires, the first one becomes the most significant.
    """
    return sum(1 << (len(bits) - 1 - k) for k, bit in enumerate(bits) if mask & bit)


def on_bits(terms: PauliSum, bits: Sequence[int]) -> PauliSum:
    """Return a sum as one over those wires alone on which it acts, see :func:`gathered`."""
    return tuple((gathered(x, bits), gathered(z, bits), c) for x, z, c in terms)


def parity_signs(values: Any) -> Any:
    """Return 1 where the number of set bits is even, else -1; integers of any shape."""
    return 1.0 - 2.0 * (np.bitwise_count(values) & 1)


def walsh(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``sum_b (-1)^|z & b| values[b]`` for every z, the Walsh-Hadamard transform of 2^k values."""
    shape = values.shape
    values = values.reshape((2,) * (values.size.bit_length() - 1))
    for axis in range(values.ndim):
        low, high = np.take(values, 0, axis), np.take(values, 1, axis)
        values = np.stack([low + high, low - high], axis)
    return values.reshape(shape)


def of_matrix(matrix: npt.NDArray[np.complex128]) -> PauliSum:
    """Return a Hermitian matrix (2^k, 2^k) as a Pauli sum over k wires."""
    rows = np.arange(len(matrix))
    return _of_flips(len(matrix), ((x, matrix[rows ^ x, rows]) for x in rows.tolist()))


def _of_flips(size: int, parts: Iterable[tuple[int, npt.NDArray[Any]]]) -> PauliSum:
    """The Pauli sum of a matrix by its entries at (c ^ x, c) in every column c, for those x for which there are any."""
    columns = np.arange(size)
    found: list[PauliTerm] = []
    least = 0.0
    for x, values in parts:
        # X^x Z^z has (-1)^|c & z| at (c ^ x, c), and Y = i X Z: all z at once.
        phases = _PHASES.conj()[np.bitwise_count(x & columns) % 4]
        coefficients = (phases * walsh(values)).real / size
        sizes = np.abs(coefficients)
        least = max(least, _TINY * float(sizes.max()))
        found += [(x, z, float(coefficients[z])) for z in np.flatnonzero(sizes > least).tolist()]
    return tuple(term for term in found if abs(term[2]) > least)


def of_sparse(matrix: Any) -> PauliSum:
    """Return a Hermitian sparse matrix (2^k, 2^k) as a Pauli sum over k wires.

    The entries of a Hamiltonian flip few combinations of wires, and each combination has a transform of its own.

    Raises:
        NoPauliSum: If it is not Hermitian, or might have more than MAX_SPARSE_WORDS words.
    """
    entries = matrix.tocoo()
    entries.sum_duplicates()
    size = entries.shape[0]
    columns = entries.col.astype(np.int64)
    flips = entries.row ^ columns
    kinds = np.unique(flips)
    if len(kinds) * size > MAX_SPARSE_WORDS:
        raise NoPauliSum(
            f"a sparse matrix that flips {len(kinds)} combinations of wires, more than {MAX_SPARSE_WORDS // size}"
        )
    if abs(entries - entries.conj().T).max() > 1e-10 * max(1.0, abs(entries).max()):
        raise NoPauliSum("it is not Hermitian")
    order = np.argsort(flips, kind="stable")
    parts = np.split(order, np.searchsorted(flips[order], kinds[1:]))

    def column_values(part: npt.NDArray[np.intp]) -> npt.NDArray[np.complex128]:
        values = np.zeros(size, dtype=complex)
        values[columns[part]] = entries.data[part]
        return values

    # Without any entry there is one empty part and no kind.
    return _of_flips(size, zip(kinds.tolist(), map(column_values, parts), strict=False))


def dense(terms: PauliSum, num_wires: int) -> npt.NDArray[np.complex128]:
    """Return the (2^n, 2^n) matrix of a Pauli sum."""
    size = 1 << num_wires
    rows = np.arange(size)
    matrix = np.zeros((size, size), dtype=complex)
    for x, z, coefficient in terms:
        matrix[rows ^ x, rows] += _phase(x, z) * coefficient * parity_signs(rows & z)
    return matrix


def applied(terms: PauliSum, states: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Return a sum times states (..., 2^n), without its matrix."""
    rows = np.arange(states.shape[-1])
    result = np.zeros_like(states)
    for x, z, coefficient in terms:
        result += _phase(x, z) * coefficient * (states * parity_signs(rows & z))[..., rows ^ x]
    return result


def _phase(x: int, z: int) -> complex:
    """I for every Y, which is i X Z."""
    return complex(_PHASES[(x & z).bit_count() % 4])


def collected(terms: Iterable[PauliTerm]) -> PauliSum:
    """Return a sum in which every word stands once, where it stood first."""
    sums: dict[tuple[int, int], float] = {}
    for x, z, coefficient in terms:
        sums[x, z] = sums.get((x, z), 0.0) + coefficient
    return tuple((x, z, c) for (x, z), c in sums.items())


def product(a: PauliTerm, b: PauliTerm) -> tuple[int, int, complex]:
    """Return the product of two words: real for words that commute, else imaginary."""
    x, z = a[0] ^ b[0], a[1] ^ b[1]
    # A word is i^|x & z| X^x Z^z, and Z^z X^u = (-1)^|z & u| X^u Z^z.
    turns = (a[0] & a[1]).bit_count() + (b[0] & b[1]).bit_count() - (x & z).bit_count()
    turns += 2 * (a[1] & b[0]).bit_count()
    return x, z, complex(_PHASES[turns % 4]) * a[2] * b[2]


def symmetric_product(left: PauliSum, right: PauliSum) -> PauliSum:
    """Return (A B + B A) / 2 of two sums: the products of words that anticommute cancel."""
    return collected(
        (x, z, c.real)
        for a in left
        for b in right
        if words_commute(a, b)
        for x, z, c in [product(a, b)]
    )


def projector(wires: Sequence[int], outcome: int, num_wires: int) -> PauliSum:
    """Return |outcome><outcome| on some wires, the first one being the most significant bit of the outcome."""
    bits = [1 << (num_wires - 1 - w) for w in wires]
    share = 1.0 / (1 << len(bits))
    return tuple(
        (0, spread(z, bits), share * (-1.0) ** (z & outcome).bit_count())
        for z in range(1 << len(bits))
    )


def words_commute(a: PauliTerm, b: PauliTerm) -> bool:
    """Say whether two words commute: an even number of wires where they anticommute."""
    return ((a[0] & b[1]).bit_count() + (a[1] & b[0]).bit_count()) % 2 == 0


def sums_commute(left: PauliSum, right: PauliSum) -> bool:
    """Say whether two Pauli sums commute, as sums (single words may not)."""
    commutator: dict[tuple[int, int], complex] = {}
    scale = 0.0
    for a in left:
        for b in right:
            if not words_commute(a, b):
                x, z, c = product(a, b)
                commutator[x, z] = commutator.get((x, z), 0) + c
                scale = max(scale, abs(c))
    return all(abs(value) <= 1e-12 * scale for value in commutator.values())


def product_basis(generators: Sequence[PauliSum], num_wires: int) -> dict[int, str] | None:
    """Return the letter (X, Y or Z) of every wire on which all words agree.

    Returns:
        Wire position -> letter for the wires that the generators act on, or None where two words need different
        bases on one wire, so that no product basis diagonalises them all.
    """
    letters: dict[int, str] = {}
    for generator in generators:
        for x, z, _ in generator:
            for wire, letter in word_letters(x, z, num_wires).items():
                if letters.setdefault(wire, letter) != letter:
                    return None
    return letters


def restrict(generator: PauliSum, wires: Sequence[int], num_wires: int) -> PauliSum:
    """Return the generator measured in its product basis: Z on the given wires wherever a letter stood."""
    bits = [1 << (num_wires - 1 - wire) for wire in wires]
    return tuple((0, gathered(x | z, bits), c) for x, z, c in generator)
