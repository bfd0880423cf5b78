"""PennyLane's Hermitian operators as sums of Pauli words over a circuit's wires, for tangents, matrices and products."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.pauli import PauliSum, dense, word_masks
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import Circuit
from fubini.native.measurements import masked, observable_terms, worded
from fubini.options import Complex, Real

#: (word, one letter per wire; the wires' positions in the circuit; coefficient), ... as in ``Measurement.terms``.
Terms = tuple[tuple[str, tuple[int, ...], float], ...]


def terms_of(name: str, operator: Any, circuit: Circuit) -> Terms:
    """Return a Hermitian operator as a sum of Pauli words.

    Args:
        name: The argument's name, for errors.
        operator: PennyLane operator with a Pauli representation, or with a Hermitian matrix on at most 8 wires;
            ``qml.pauli.PauliSentence`` and ``PauliWord`` too.
        circuit: The circuit on whose wires it acts.

    Returns:
        Its words; the identity is ``("", ())``.

    Raises:
        TypeError: If it is no operator.
        ValueError: If it acts on other wires, is not Hermitian, or has a coefficient that is NaN or infinite.
        UnsupportedCircuitError: If it cannot be written in Pauli words.
    """
    if isinstance(operator, qml.pauli.PauliSentence | qml.pauli.PauliWord):
        operator = operator.operation(wire_order=list(circuit.wires))
    if not isinstance(operator, qml.operation.Operator):
        raise TypeError(
            f"{name}: expected a PennyLane operator, got {type(operator).__name__}; for a matrix use "
            "qml.Hermitian(matrix, wires)"
        )
    index = {wire: k for k, wire in enumerate(circuit.wires)}
    missing = [wire for wire in operator.wires if wire not in index]
    if missing:
        raise ValueError(
            f"{name}: expected an operator on wires of the circuit, {list(circuit.wires)}, got one on {missing} as well; "
            "let the circuit act on them, be it by qml.Identity(wire), or leave them out of the operator"
        )
    _check_hermitian(name, operator)
    try:
        words = observable_terms(operator, index)
    except UnsupportedCircuitError as error:
        raise UnsupportedCircuitError(f"{name}: {error}") from error
    bad = [word for word, _, c in words if not math.isfinite(c)]
    if bad:
        raise ValueError(f"{name}: expected finite coefficients, that of {bad[0] or 'I'} is not")
    return words


def _check_hermitian(name: str, operator: Any) -> None:
    """Raise a ValueError for operators whose words or matrix say that they are not Hermitian."""
    sentence = operator.pauli_rep
    if sentence is not None:
        for word, coefficient in sentence.items():
            value = complex(qml.math.toarray(qml.math.detach(coefficient)))
            if abs(value.imag) > 1e-12 * max(1.0, abs(value)):
                raise ValueError(
                    f"{name}: expected a Hermitian operator, got the coefficient {value:.6g} of {word}; take "
                    "(A + qml.adjoint(A)) / 2 of an operator A"
                )
    elif operator.has_matrix and len(operator.wires) <= 8:
        matrix = qml.math.toarray(qml.math.detach(qml.matrix(operator)))
        difference = float(np.abs(matrix - matrix.conj().T).max())
        if not difference <= 1e-10 * max(1.0, float(np.abs(matrix).max())):
            raise ValueError(
                f"{name}: expected a Hermitian operator, got {operator.name} whose matrix differs from its adjoint by "
                f"{difference:.3g}; take (A + qml.adjoint(A)) / 2 of an operator A"
            )


def own_terms(circuit: Circuit, remedy: str) -> Terms:
    """Return the observable of a circuit that measures one expectation value.

    Args:
        circuit: The circuit.
        remedy: What to do if it measures something else.

    Raises:
        ValueError: If it does.
    """
    measured = circuit.structure.measurements
    kinds = [m.kind for m in measured]
    if kinds != ["expval"]:
        raise ValueError(_no_value(kinds, remedy))
    return worded(masked(measured[0], circuit.num_wires), circuit.num_wires)


def measured_terms(measured: Sequence[Any], circuit: Circuit, remedy: str) -> Terms:
    """Return the observable of PennyLane's measurements, which are one expectation value; see :func:`own_terms`."""
    found = measured[0] if len(measured) == 1 else None
    if not isinstance(found, qml.measurements.ExpectationMP) or found.obs is None:
        raise ValueError(_no_value([type(m).__name__ for m in measured], remedy))
    return terms_of("hamiltonian", found.obs, circuit)


def _no_value(kinds: list[str], remedy: str) -> str:
    return f"circuit: expected one that returns one expectation value, got {kinds or 'no measurement'}; {remedy}"


def masks(terms: Terms, num_wires: int) -> PauliSum:
    """Return words as (x mask, z mask, coefficient), see :mod:`fubini.circuit.pauli`.

    Args:
        terms: The words.
        num_wires: Number of wires of the circuit.
    """
    return tuple((*word_masks(word, wires, num_wires), c) for word, wires, c in terms)


def matrix(terms: Terms, num_wires: int) -> Complex:
    """Return the dense matrix of an operator, (N, N) for N = 2^wires amplitudes.

    Args:
        terms: Its words.
        num_wires: Number of wires of the circuit.
    """
    return dense(masks(terms, num_wires), num_wires)


def spectral_bound(terms: Terms) -> float:
    """Return a bound of the operator's norm without its part along the identity: the sum of |coefficients|."""
    return float(sum(abs(c) for word, _, c in terms if word))


def merged_terms(parts: list[Terms], coefficients: Real) -> Terms:
    """Return the weighted sum of operators, equal words added up.

    Args:
        parts: The operators.
        coefficients: One number for each.
    """
    total: dict[tuple[str, tuple[int, ...]], float] = {}
    for terms, factor in zip(parts, coefficients, strict=True):
        for word, wires, c in terms:
            total[word, wires] = total.get((word, wires), 0.0) + float(factor) * c
    return tuple((word, wires, c) for (word, wires), c in total.items())
