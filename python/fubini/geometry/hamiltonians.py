"""Hamiltonians that may depend on time, as fixed operators with coefficients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fubini.circuit.arguments import real_numbers
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.operators import (
    Terms,
    matrix,
    merged_terms,
    spectral_bound,
    terms_of,
)
from fubini.native.circuit import Circuit
from fubini.options import Real

# Lowest eigenvalues of larger matrices are bounded by the sum of the coefficients.
_MAX_DENSE_WIRES = 9


class Hamiltonian:
    """H(t) = sum_m c_m(t) O_m for B trajectories.

    Attributes:
        circuit: On whose wires it acts.
        operators: O_m as words. Where H(t) is given as an operator, its words, and more when new ones come.
        batch: Number of trajectories that the coefficients are for, or None where they are the same for all.
        constant: Whether it is the same at all times.
    """

    constant = True

    def __init__(self, circuit: Circuit, operators: Sequence[Terms]) -> None:
        self.circuit = circuit
        self.operators: list[Terms] = list(operators)
        self.batch: int | None = None

    def coefficients(self, t: float) -> Real:
        """Return c(t), (1 or B, M)."""
        return np.ones((1, 1))

    def at(self, times: Real) -> Real:
        """Return the coefficients at several times, (times, 1 or B, M), for the M ``operators`` afterwards."""
        found = [self.coefficients(float(t)) for t in times]
        size = len(self.operators)
        return np.stack(
            [
                c if c.shape[1] == size else np.pad(c, ((0, 0), (0, size - c.shape[1])))
                for c in found
            ]
        )

    def lowest(self, t: float) -> Real:
        """Return lower bounds of the spectrum of H(t), (1 or B,): exact for constant Hamiltonians on up to 9 wires."""
        rows = self.coefficients(t)
        result = np.empty(len(rows))
        for b, row in enumerate(rows):
            total = merged_terms(self.operators, row)
            if self.constant and self.circuit.num_wires <= _MAX_DENSE_WIRES:
                values = np.linalg.eigvalsh(matrix(total, self.circuit.num_wires))
                result[b] = (
                    values[0] - 1e-12 * np.abs(values).max()
                )  # what eigvalsh may be wrong by
            else:
                result[b] = sum(c for word, _, c in total if not word) - spectral_bound(total)
        return result


class _Weighted(Hamiltonian):
    """Operators with coefficients, which are numbers or a function of time."""

    def __init__(self, circuit: Circuit, operators: Sequence[Terms], given: Any, start: float):
        super().__init__(circuit, operators)
        self._given, self.constant = given, not callable(given)
        first = self._values(start)
        self.batch = len(first) if first.ndim == 2 else None
        self._rows = len(np.atleast_2d(first))

    def _values(self, t: float) -> Real:
        name = "coefficients" if self.constant else f"coefficients({t:g})"
        values = real_numbers(name, self._given if self.constant else self._given(t))
        size = len(self.operators)
        if values.ndim not in (1, 2) or values.shape[-1] != size or not len(values):
            raise ValueError(
                f"coefficients: expected {size} numbers, one for each operator, or rows of them for several trajectories, got "
                f"the shape {values.shape}{'' if self.constant else f' at t = {t:g}'}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"coefficients: expected finite numbers, got {values} at t = {t:g}")
        return values

    def coefficients(self, t: float) -> Real:
        found = np.atleast_2d(self._values(t))
        if len(found) != self._rows:
            raise ValueError(
                f"coefficients: expected as many rows at all times, {self._rows} as at the first, got {len(found)} at t = {t:g}"
            )
        return found


class _Function(Hamiltonian):
    """A function from time to an operator: its words are the operators."""

    constant = False

    def __init__(self, circuit: Circuit, function: Callable[[float], Any], start: float) -> None:
        super().__init__(circuit, [])
        self._function = function
        self._places: dict[Any, int] = {}
        self.coefficients(start)

    def coefficients(self, t: float) -> Real:
        terms = terms_of(f"hamiltonian({t:g})", self._function(t), self.circuit)
        for word, wires, _ in terms:
            if (word, wires) not in self._places:
                self._places[word, wires] = len(self.operators)
                self.operators.append(((word, wires, 1.0),))
        result = np.zeros((1, len(self.operators)))
        for word, wires, c in terms:
            result[0, self._places[word, wires]] += c
        return result


def hamiltonian_of(ansatz: Ansatz, given: Any, coefficients: Any, start: float) -> Hamiltonian:
    """Return what the arguments ``hamiltonian`` and ``coefficients`` of ``fubini.evolve`` describe.

    Args:
        ansatz: The circuit.
        given: None for the circuit's own observable, an operator, a function of time, or a list of operators.
        coefficients: For a list: numbers, or a function of time.
        start: When the evolution starts.

    Raises:
        TypeError: For anything else.
        ValueError: For operators that do not fit, see ``operators.terms_of``.
    """
    circuit = ansatz.circuit
    if isinstance(given, list | tuple):
        if coefficients is None:
            raise ValueError(
                f"coefficients: expected one number for each of the {len(given)} operators, or a function of time that returns "
                "them, got None; for their sum pass hamiltonian=qml.sum(*operators)"
            )
        if not given:
            raise ValueError("hamiltonian: expected at least one operator, got an empty list")
        parts = [terms_of(f"hamiltonian[{k}]", one, circuit) for k, one in enumerate(given)]
        return _Weighted(circuit, parts, coefficients, start)
    if coefficients is not None:
        raise ValueError(
            "coefficients: expected None without a list of operators; pass hamiltonian=[...], for an operator H.terms()[1]"
        )
    if given is None:
        return Hamiltonian(circuit, [ansatz.observable("pass hamiltonian=...")])
    if callable(given) and not hasattr(given, "wires"):
        return _Function(circuit, given, start)
    return Hamiltonian(circuit, [terms_of("hamiltonian", given, circuit)])
