"""PennyLane measurements as moments of the native engine: Pauli words and probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NoReturn

import pennylane as qml

from fubini.circuit.pauli import (
    MAX_MATRIX_WIRES,
    NoPauliSum,
    PauliSum,
    pauli_sum,
    projector,
    symmetric_product,
    word_letters,
    word_masks,
)
from fubini.errors import UnsupportedCircuitError


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
        return 0 if self.kind == "state" else math.prod(self.shape)


def measurement_of(process: Any, index: dict[Any, int]) -> Measurement:
    """Return one measurement process of a tape as the engine knows it.

    Raises:
        UnsupportedCircuitError: For measurements and observables that the engine does not know.
    """
    if getattr(process, "mv", None) is not None:
        _refuse(process, "it refers to a mid-circuit measurement")
    if isinstance(process, qml.measurements.StateMP) and type(process).__name__ == "StateMP":
        return Measurement("state")
    obs = process.obs
    if isinstance(process, qml.measurements.ProbabilityMP):
        if obs is not None:
            _refuse(process, "probabilities of an observable; give wires instead")
        wires = tuple(index[wire] for wire in process.wires) or tuple(range(len(index)))
        return Measurement("probs", wires=wires)
    if not isinstance(process, (qml.measurements.ExpectationMP, qml.measurements.VarianceMP)):
        _refuse(process, "expected expval, var, probs or state")
    kind = "expval" if isinstance(process, qml.measurements.ExpectationMP) else "var"
    if obs is None:
        _refuse(process, "it has no observable")
    if (
        obs.name == "Projector"
        and obs.pauli_rep is None
        and obs.parameters[0].shape == (len(obs.wires),)
    ):
        bits = [int(bit) for bit in qml.math.toarray(obs.parameters[0])]
        value = reduce(lambda total, bit: 2 * total + bit, bits, 0)
        return Measurement(kind, projector=(tuple(index[w] for w in obs.wires), value))
    return Measurement(kind, terms=observable_terms(obs, index))


def observable_terms(
    obs: Any, index: dict[Any, int]
) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Return an observable as words: letters, the wires that they are on, coefficient.

    Raises:
        UnsupportedCircuitError: When it is not Hermitian, or has no Pauli form and acts on too many wires.
    """
    if any(qml.math.requires_grad(data) for data in obs.data):
        raise UnsupportedCircuitError(
            f"{obs.name}: its coefficients require a gradient, and the native engine takes observables as constants. "
            "Detach them, or measure the words one by one and combine the results in torch."
        )
    try:
        return worded(pauli_sum(obs, index, len(index)), len(index))
    except NoPauliSum as found:
        raise UnsupportedCircuitError(
            f"{obs.name}: expected a Hermitian observable, and the native engine measures Pauli sums, projectors and "
            f"Hermitian matrices on up to {MAX_MATRIX_WIRES} wires, got another one: {found}. Write it as a sum of "
            "Pauli words."
        ) from None


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
    words = masked(measurement, num_wires)
    return Measurement("expval", terms=worded(symmetric_product(words, words), num_wires))


def masked(measurement: Measurement, num_wires: int) -> PauliSum:
    """Return the observable of an expectation value or variance as a Pauli sum."""
    if measurement.projector is not None:
        return projector(*measurement.projector, num_wires)
    return tuple((*word_masks(word, wires, num_wires), c) for word, wires, c in measurement.terms)


def observable_sums(
    measurements: Sequence[Measurement], num_wires: int, limit: int
) -> tuple[PauliSum, ...] | None:
    """Return the observable of every result without its part along the identity, as words (x mask, z mask, coefficient).

    Args:
        measurements: Expectation values and probabilities.
        num_wires: Number of wires of the circuit.
        limit: How many words there may be in all.

    Returns:
        The sums; None where there are more words, or where an observable is a multiple of the identity.
    """
    sums: list[PauliSum] = []
    count = 0
    for m in measurements:
        if m.kind == "probs" or m.projector is not None:
            wires, only = m.projector or (m.wires, None)
            size = 2 ** len(wires)
            outcomes = range(size) if only is None else (only,)
            count += size * len(outcomes)
            if count > limit:
                return None
            sums += [projector(wires, outcome, num_wires) for outcome in outcomes]
        else:
            sums.append(masked(m, num_wires))
            count += len(m.terms)
    sums = [tuple(term for term in terms if term[0] | term[1]) for terms in sums]
    return None if count > limit or not all(sums) else tuple(sums)


def worded(terms: PauliSum, num_wires: int) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Return words with a letter for each of their wires, as the kernel takes them."""
    found = []
    for x, z, c in terms:
        letters = word_letters(x, z, num_wires)
        found.append(("".join(letters.values()), tuple(letters), c))
    return tuple(found)


def _refuse(process: Any, why: str) -> NoReturn:
    raise UnsupportedCircuitError(
        f"{process}: the native engine cannot measure this ({why}). Run the QNode on its device (engine='device')."
    )
