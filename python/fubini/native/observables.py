"""PennyLane measurements as moments of the native engine: Pauli words and probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.words import words_of
from fubini.errors import UnsupportedCircuitError

#: A Pauli sum: word (one letter per wire, with its wires) -> real coefficient.
PauliSum = dict[tuple[str, tuple[int, ...]], float]

#: Matrices are written as Pauli words up to this many wires (4^k words).
MAX_HERMITIAN_WIRES = 8


@dataclass(frozen=True)
class Measurement:
    """One measurement of a circuit.

    Args:
        kind: "expval", "var", "probs" or "state".
        terms: ((word, wires, coefficient), ...) of the observable, wires by number.
        projector: (wires, index) when the observable is one projector of the computational basis.
        wires: Measured wires, for "probs".
    """

    kind: str
    terms: tuple[tuple[str, tuple[int, ...], float], ...] = ()
    projector: tuple[tuple[int, ...], int] | None = None
    wires: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result of one batch element: () or (2^k,)."""
        return (2 ** len(self.wires),) if self.kind == "probs" else ()

    @property
    def columns(self) -> int:
        """Number of real results."""
        if self.kind == "state":
            return 0
        return 2 ** len(self.wires) if self.kind == "probs" else 1


def measurement_of(process: Any, index: dict[Any, int]) -> Measurement:
    """Translates one measurement process of a tape.

    Args:
        process: The measurement process.
        index: Number of each wire label.

    Returns:
        The measurement.

    Raises:
        UnsupportedCircuitError: For measurements and observables that the engine does not know.
    """
    if getattr(process, "mv", None) is not None:
        raise UnsupportedCircuitError(
            _unsupported(process, "it refers to a mid-circuit measurement")
        )
    if isinstance(process, qml.measurements.StateMP) and type(process).__name__ == "StateMP":
        return Measurement("state")
    if isinstance(process, qml.measurements.ProbabilityMP):
        if process.obs is not None:
            raise UnsupportedCircuitError(
                _unsupported(process, "probabilities of an observable; give wires instead")
            )
        wires = tuple(index[wire] for wire in process.wires) or tuple(range(len(index)))
        return Measurement("probs", wires=wires)
    if isinstance(process, qml.measurements.ExpectationMP):
        kind = "expval"
    elif isinstance(process, qml.measurements.VarianceMP):
        kind = "var"
    else:
        raise UnsupportedCircuitError(_unsupported(process, "expected expval, var, probs or state"))
    obs = process.obs
    if obs is None:
        raise UnsupportedCircuitError(_unsupported(process, "it has no observable"))
    if (
        obs.name == "Projector"
        and obs.pauli_rep is None
        and obs.parameters[0].shape == (len(obs.wires),)
    ):
        bits = [int(bit) for bit in qml.math.toarray(obs.parameters[0])]
        value = reduce(lambda total, bit: 2 * total + bit, bits, 0)
        return Measurement(kind, projector=(tuple(index[w] for w in obs.wires), value))
    words = pauli_sum(obs, index)
    return Measurement(kind, terms=_frozen(words))


def square(measurement: Measurement, num_wires: int) -> Measurement:
    """The measurement of the squared observable.

    Args:
        measurement: A measurement of kind "var" or "expval".
        num_wires: Number of wires of the circuit.

    Returns:
        A measurement of kind "expval".
    """
    if measurement.projector is not None:
        return Measurement("expval", projector=measurement.projector)
    masks = {_masks(word, wires, num_wires): c for word, wires, c in measurement.terms}
    product: dict[tuple[int, int], complex] = {}
    for (ax, az), a in masks.items():
        for (bx, bz), b in masks.items():
            key = (ax ^ bx, az ^ bz)
            # i^n X^x Z^z with n the number of Y: the product's phase follows from moving Z^az past X^bx.
            power = (ax & az).bit_count() + (bx & bz).bit_count() + 2 * (az & bx).bit_count()
            power -= (key[0] & key[1]).bit_count()
            product[key] = product.get(key, 0) + a * b * 1j ** (power % 4)
    words = {_word(x, z, num_wires): c.real for (x, z), c in product.items()}
    return Measurement("expval", terms=_frozen(words))


def observable_sums(
    measurements: Sequence[Measurement], num_wires: int, limit: int
) -> tuple[tuple[tuple[int, int, float], ...], ...] | None:
    """Return the observable of every result without its part along the identity, as words (x mask, z mask, coefficient).

    Args:
        measurements: Expectation values and probabilities.
        num_wires: Number of wires of the circuit.
        limit: How many words there may be in all.

    Returns:
        The sums; None where there are more words, or where an observable is a multiple of the identity.
    """
    sums: list[tuple[tuple[int, int, float], ...]] = []
    count = 0
    for m in measurements:
        if m.kind == "probs" or m.projector is not None:
            wires, only = m.projector or (m.wires, None)
            size = 2 ** len(wires)
            outcomes = range(size) if only is None else (only,)
            count += size * len(outcomes)
            if count > limit:
                return None
            sums += [_projector(wires, outcome, num_wires) for outcome in outcomes]
        else:
            words = [(*_masks(word, wires, num_wires), c) for word, wires, c in m.terms]
            sums.append(tuple((x, z, c) for x, z, c in words if x | z))
            count += len(words)
    return None if count > limit or not all(sums) else tuple(sums)


def _projector(
    wires: tuple[int, ...], outcome: int, num_wires: int
) -> tuple[tuple[int, int, float], ...]:
    """|outcome><outcome| on wires, the first one being the most significant: words of Z, each with the sign of its bits."""
    places = [1 << (num_wires - 1 - w) for w in reversed(wires)]
    return tuple(
        (
            0,
            sum(place for k, place in enumerate(places) if chosen >> k & 1),
            (-1.0 if (chosen & outcome).bit_count() % 2 else 1.0) / 2 ** len(wires),
        )
        for chosen in range(1, 2 ** len(wires))
    )


def pauli_sum(obs: Any, index: dict[Any, int]) -> PauliSum:
    """Writes an observable as a sum of Pauli words.

    Args:
        obs: The observable.
        index: Number of each wire label.

    Returns:
        Coefficient of each word.

    Raises:
        UnsupportedCircuitError: When it is not Hermitian, or has no Pauli form and acts on too many wires.
    """
    if any(qml.math.requires_grad(data) for data in obs.data):
        raise UnsupportedCircuitError(
            f"{obs.name}: its coefficients require a gradient, and the native engine takes observables as constants. "
            "Detach them, or measure the words one by one and combine the results in torch."
        )
    words = words_of(obs)
    if words is not None:
        return _from_sentence(obs, words, index)
    if isinstance(obs, qml.ops.SProd):
        scale = _real(obs, complex(qml.math.toarray(obs.scalar)))
        return {word: scale * c for word, c in pauli_sum(obs.base, index).items()}
    if isinstance(obs, qml.ops.Sum):
        total: PauliSum = {}
        for operand in obs.operands:
            for word, c in pauli_sum(operand, index).items():
                total[word] = total.get(word, 0.0) + c
        return total
    return _from_matrix(obs, index)


def _from_sentence(obs: Any, sentence: Any, index: dict[Any, int]) -> PauliSum:
    total: PauliSum = {}
    for word, coefficient in sentence.items():
        pairs = sorted((index[wire], letter) for wire, letter in word.items())
        key = ("".join(letter for _, letter in pairs), tuple(wire for wire, _ in pairs))
        total[key] = total.get(key, 0.0) + _real(obs, complex(qml.math.toarray(coefficient)))
    return total


def _from_matrix(obs: Any, index: dict[Any, int]) -> PauliSum:
    wires = tuple(obs.wires)
    if len(wires) > MAX_HERMITIAN_WIRES or not obs.has_matrix:
        raise UnsupportedCircuitError(
            f"{obs.name} on {len(wires)} wires: the native engine measures Pauli sums, projectors and Hermitian matrices "
            f"on up to {MAX_HERMITIAN_WIRES} wires. Write the observable as a sum of Pauli words."
        )
    matrix = np.asarray(qml.math.toarray(qml.matrix(obs)), dtype=np.complex128)
    scale = max(1.0, float(np.abs(matrix).max()))
    if not np.allclose(matrix, matrix.conj().T, atol=1e-10 * scale):
        raise UnsupportedCircuitError(f"{obs.name}: expected a Hermitian observable")
    k = len(wires)
    dimension = 2**k
    rows = np.arange(dimension)
    total: PauliSum = {}
    for x in range(dimension):
        # tr(P M) = i^ny sum_c (-1)^parity(z & c) M[c, c ^ x], for all z at once by a Walsh-Hadamard transform.
        values = matrix[rows, rows ^ x].reshape((2,) * k)
        for axis in range(k):
            low, high = np.take(values, 0, axis), np.take(values, 1, axis)
            values = np.stack([low + high, low - high], axis)
        values = values.reshape(-1) / dimension
        for z in range(dimension):
            c = (1j ** ((x & z).bit_count() % 4) * values[z]).real
            if abs(c) > 1e-16 * scale:
                word, places = _word(x, z, k)
                total[word, tuple(index[wires[p]] for p in places)] = c
    return total


def _masks(word: str, wires: tuple[int, ...], num_wires: int) -> tuple[int, int]:
    x = sum(
        1 << (num_wires - 1 - w) for letter, w in zip(word, wires, strict=True) if letter in "XY"
    )
    z = sum(
        1 << (num_wires - 1 - w) for letter, w in zip(word, wires, strict=True) if letter in "ZY"
    )
    return x, z


def _word(x: int, z: int, num_wires: int) -> tuple[str, tuple[int, ...]]:
    wires = tuple(w for w in range(num_wires) if (x | z) >> (num_wires - 1 - w) & 1)
    letters = {(1, 0): "X", (0, 1): "Z", (1, 1): "Y"}
    word = "".join(
        letters[x >> (num_wires - 1 - w) & 1, z >> (num_wires - 1 - w) & 1] for w in wires
    )
    return word, wires


def _frozen(words: PauliSum) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    return tuple((word, wires, float(c)) for (word, wires), c in words.items())


def _real(obs: Any, value: complex) -> float:
    if abs(value.imag) > 1e-12 * max(1.0, abs(value)):
        raise UnsupportedCircuitError(
            f"{obs.name}: expected a Hermitian observable, got a coefficient {value}"
        )
    return value.real


def _unsupported(process: Any, why: str) -> str:
    return f"{process}: the native engine cannot measure this ({why}). Run the QNode on its device (engine='device')."
