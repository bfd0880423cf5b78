"""Pauli words as bit masks, against dense matrices."""

import numpy as np
import pennylane as qml
import pytest
import scipy.sparse

from fubini.circuit import pauli

WIRES = 3


def random_sum(rng: np.random.Generator, words: int = 6) -> pauli.PauliSum:
    masks = rng.choice(4**WIRES, size=words, replace=False)
    return tuple((int(m) >> WIRES, int(m) % 2**WIRES, float(rng.normal())) for m in masks)


@pytest.mark.parametrize("seed", range(5))
def test_sums_as_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_sum(rng), random_sum(rng)
    left, right = pauli.dense(a, WIRES), pauli.dense(b, WIRES)
    positions = {w: w for w in range(WIRES)}
    letters = [(pauli.word_letters(x, z, WIRES), c) for x, z, c in a]
    operators = [
        qml.prod(*(getattr(qml, letter)(w) for w, letter in word.items()), qml.Identity(0))
        for word, _ in letters
    ]
    expected = qml.matrix(qml.dot([c for _, c in letters], operators), wire_order=range(WIRES))
    np.testing.assert_allclose(left, expected, atol=1e-15)
    for word, (x, z, _) in zip(letters, a, strict=True):
        assert pauli.word_masks("".join(word[0].values()), tuple(word[0]), WIRES) == (x, z)
    np.testing.assert_allclose(sorted(pauli.of_matrix(left)), sorted(a), atol=1e-15)
    found = pauli.pauli_sum(qml.Hermitian(left, range(WIRES)), positions, WIRES)
    np.testing.assert_allclose(sorted(found), sorted(a), atol=1e-15)
    products = sum(
        (
            pauli.dense(((x, z, 1.0),), WIRES) * c
            for p in a
            for q in b
            for x, z, c in [pauli.product(p, q)]
        ),
        np.zeros((8, 8), complex),
    )
    np.testing.assert_allclose(products, left @ right, atol=1e-14)
    symmetric = pauli.dense(pauli.symmetric_product(a, b), WIRES)
    np.testing.assert_allclose(symmetric, (left @ right + right @ left) / 2, atol=1e-14)
    states = rng.normal(size=(4, 8)) + 1j * rng.normal(size=(4, 8))
    np.testing.assert_allclose(pauli.applied(a, states), states @ left.T, atol=1e-14)
    assert pauli.sums_commute(a, a)
    commutator = left @ right - right @ left
    assert pauli.sums_commute(a, b) == bool(np.allclose(commutator, 0.0, atol=1e-12))


def test_a_few_wires_of_many() -> None:
    bits = [1 << 6, 1 << 3, 1 << 0]  # wires 0, 3 and 6 of seven
    terms = random_sum(np.random.default_rng(0))
    wide = tuple((pauli.spread(x, bits), pauli.spread(z, bits), c) for x, z, c in terms)
    assert pauli.on_bits(wide, bits) == terms
    assert pauli.bits_of(0b1001001) == bits


@pytest.mark.parametrize("outcome", range(4))
def test_projectors(outcome: int) -> None:
    found = pauli.dense(pauli.projector((2, 0), outcome, WIRES), WIRES)
    basis = [outcome >> 1, outcome & 1]
    expected = qml.matrix(qml.Projector(basis, wires=[2, 0]), wire_order=range(WIRES))
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_signs_and_transforms() -> None:
    values = np.random.default_rng(1).normal(size=8)
    index = np.arange(8)
    signs = pauli.parity_signs(index[:, None] & index)
    np.testing.assert_allclose(pauli.walsh(values), signs @ values, atol=1e-15)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (1j * qml.X(0), "coefficient"),
        (qml.prod(qml.Hadamard(0), qml.S(0)), "not Hermitian"),
        (qml.Hermitian(np.eye(2**9), range(9)), "more than 8"),
    ],
    ids=["imaginary", "product", "wide"],
)
def test_what_is_no_pauli_sum(operator: object, reason: str) -> None:
    positions = {w: w for w in range(9)}
    with pytest.raises(pauli.NoPauliSum, match=reason):
        pauli.pauli_sum(operator, positions, 9)
    assert pauli.known_pauli_sum(operator, positions, 9) is None


def test_sums_and_multiples_of_matrices() -> None:  # devices refused them
    matrix = pauli.dense(random_sum(np.random.default_rng(2)), WIRES)
    operator = 0.5 * qml.Hermitian(matrix, range(WIRES)) + 2.0 * qml.X(1)
    found = pauli.pauli_sum(operator, {w: w for w in range(WIRES)}, WIRES)
    expected = 0.5 * matrix + 2.0 * qml.matrix(qml.X(1), wire_order=range(WIRES))
    np.testing.assert_allclose(pauli.dense(found, WIRES), expected, atol=1e-14)


def test_a_sparse_matrix_of_zeros_has_no_words() -> None:
    nothing = qml.SparseHamiltonian(scipy.sparse.csr_matrix((4, 4)), wires=[0, 1])
    assert pauli.pauli_sum(nothing, {0: 0, 1: 1}, 2) == ()
