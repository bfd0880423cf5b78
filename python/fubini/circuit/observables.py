"""Observables as sums of Pauli words, and measurements of observables whose coefficients are weights or inputs.

PennyLane keeps the words of an observable from when it was made; here they are put together anew, so that coefficients
that were changed in place count. Results are linear in coefficients: where these are differentiated, or differ between
inputs, the words are measured one by one, and torch combines their results.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pennylane as qml
import torch

from fubini.errors import UnsupportedCircuitError

#: Coefficient of each word, of whatever library they are.
Words = dict[Any, Any]

#: Measurements of real numbers.
REAL = (
    qml.measurements.ExpectationMP,
    qml.measurements.VarianceMP,
    qml.measurements.ProbabilityMP,
)
# 4^k words of a matrix made of weights.
_MAX_MATRIX_WIRES = 4


def words_of(obs: Any) -> Words | None:
    """Return the Pauli words of an observable with their present coefficients.

    Returns:
        Coefficients by ``qml.pauli.PauliWord``; None for an observable that is no sum of words.
    """
    # A linear combination too by its operands, as PennyLane measures it: they are not always its coefficients.
    if isinstance(obs, qml.ops.SProd):
        return _scaled(obs.scalar, words_of(obs.base))
    if isinstance(obs, qml.ops.Sum):
        return _sum([words_of(operand) for operand in obs.operands])
    if isinstance(obs, qml.ops.Prod):
        one: Words | None = {qml.pauli.PauliWord({}): 1.0}
        return functools.reduce(_product, map(words_of, obs.operands), one)
    return None if obs.pauli_rep is None else dict(obs.pauli_rep)


def _scaled(scalar: Any, words: Words | None) -> Words | None:
    return None if words is None else {word: scalar * c for word, c in words.items()}


def _sum(parts: Sequence[Words | None]) -> Words | None:
    total: Words = {}
    for part in parts:
        if part is None:
            return None
        for word, c in part.items():
            total[word] = total[word] + c if word in total else c
    return total


def _product(a: Words | None, b: Words | None) -> Words | None:
    if a is None or b is None:
        return None
    return _sum(
        [
            {word: phase * c * d for word, phase in (v @ w).items()}
            for (v, c), (w, d) in product(a.items(), b.items())
        ]
    )


@dataclass(frozen=True)
class Mixture:
    """How results follow from those of the words.

    Attributes:
        parts: For every result of a number its kind and (column, coefficient) of every word, of the square for a variance
            as well; for probabilities their columns.
        shapes: Shapes of the results.
    """

    parts: tuple[tuple[str, Any, Any], ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Combine results.

        Args:
            values: Of the words, (1 or batch, columns).

        Returns:
            (1 or batch, M), with the graph of the coefficients.
        """
        columns = []
        for kind, terms, squares in self.parts:
            if kind == "as it is":
                columns.append(values[:, terms])
                continue
            mean = _combined(values, terms)
            if kind == "var":
                mean = _combined(values, squares) - mean**2
            columns.append(mean[:, None])
        rows = max(len(c) for c in columns)
        return torch.cat([c.expand(rows, -1) for c in columns], dim=1)


def _combined(values: torch.Tensor, terms: Sequence[tuple[int | None, Any]]) -> torch.Tensor:
    total = torch.zeros(len(values), dtype=values.dtype)
    for column, coefficient in terms:
        c = torch.as_tensor(coefficient)
        c = (c.real if c.is_complex() else c).to("cpu", values.dtype)
        total = total + (c if column is None else c * values[:, column])
    return total


def split(measurements: Sequence[Any], shots: int | None) -> tuple[list[Any], Mixture] | None:
    """Replace observables with differentiated or batched coefficients by their words.

    Returns:
        The measurements of which none has such coefficients, and how the results follow from theirs; None where nothing
        is to be replaced.

    Raises:
        ValueError: For an observable made of weights that is no sum of Pauli words, or its variance from shots.
    """
    if not any(m.obs is not None and _is_computed(m.obs) for m in measurements):
        return None
    result: list[Any] = []
    parts: list[tuple[str, Any, Any]] = []
    columns: dict[Any, int] = {}
    count = 0

    def column(word: Any) -> int | None:
        nonlocal count
        if not len(word):
            return None
        if word not in columns:
            columns[word] = count
            result.append(qml.expval(word.operation()))
            count += 1
        return columns[word]

    shapes: list[tuple[int, ...]] = []
    with qml.QueuingManager.stop_recording():
        for m in measurements:
            probabilities = isinstance(m, qml.measurements.ProbabilityMP)
            shapes.append((2 ** len(m.wires),) if probabilities else ())
            if m.obs is None or not _is_computed(m.obs):
                size = 2 ** len(m.wires) if probabilities else 1
                parts.append(("as it is", slice(count, count + size), None))
                result.append(m)
                count += size
                continue
            words = words_of(m.obs) or _matrix_words(m.obs)
            kind = "var" if isinstance(m, qml.measurements.VarianceMP) else "expval"
            if words is None or probabilities or (kind == "var" and shots is not None):
                raise ValueError(
                    f"qnode: {m} has coefficients that are weights or inputs, and its derivatives by them are not "
                    "available here. Measure the words one by one, and combine their results in torch."
                )
            squares = _product(words, words) if kind == "var" else None
            parts.append(
                (
                    kind,
                    [(column(word), c) for word, c in words.items()],
                    [(column(word), c) for word, c in (squares or {}).items()],
                )
            )
    return result, Mixture(tuple(parts), tuple(shapes))


def _by_words(tape: Any) -> tuple[Sequence[Any], Any]:
    """Measure the words of observables with differentiated or batched coefficients.

    PennyLane's adjoint and finite-difference methods give such coefficients no or a wrong gradient, and nothing in it
    takes coefficients of a batch.

    Returns:
        The tape that is run, and how the results follow.
    """
    plain = all(isinstance(m, REAL) and m.mv is None for m in tape.measurements)
    found = None
    if plain and not tape.shots.has_partitioned_shots:
        found = split(tape.measurements, tape.shots.total_shots)
    if found is None:
        return (tape,), lambda results: results[0]
    measurements, mixture = found
    words = tape.copy(measurements=measurements)

    def combined(results: Any) -> Any:
        parts = results[0] if len(measurements) > 1 else (results[0],)
        rows = words.batch_size or 1
        columns = [
            torch.as_tensor(part).to("cpu", torch.float64).reshape(rows, -1) for part in parts
        ]
        values = mixture(torch.cat(columns, dim=1))
        batched = words.batch_size is not None or len(values) > 1
        sizes = [shape[0] if shape else 1 for shape in mixture.shapes]
        answers = [
            value.reshape((len(values), *shape) if batched else shape)
            for value, shape in zip(torch.split(values, sizes, dim=1), mixture.shapes, strict=True)
        ]
        return tuple(answers) if len(answers) > 1 else answers[0]

    return (words,), combined


#: The same as a transform of QNodes.
by_words: Any = qml.transform(_by_words)


def _is_computed(obs: Any) -> bool:
    """Whether a coefficient is differentiated, or differs between inputs."""
    if isinstance(obs, qml.ops.LinearCombination):
        batched = qml.math.ndim(obs.coeffs) > 1
        own = batched or any(_moves(c) for c in obs.coeffs)
        return own or any(_is_computed(o) for o in obs.ops)
    if isinstance(obs, qml.ops.SProd):
        return _moves(obs.scalar) or _is_computed(obs.base)
    if isinstance(obs, (qml.ops.Sum, qml.ops.Prod)):
        return any(_is_computed(operand) for operand in obs.operands)
    return any(qml.math.requires_grad(v) for v in obs.data)


def _moves(coefficient: Any) -> bool:
    return bool(qml.math.requires_grad(coefficient)) or qml.math.ndim(coefficient) > 0


def _matrix_words(obs: Any) -> Words | None:
    """The words of a matrix made of weights."""
    if not isinstance(obs, qml.Hermitian) or len(obs.wires) > _MAX_MATRIX_WIRES:
        return None
    matrix = torch.as_tensor(obs.matrix()).to(torch.complex128)
    found: Words = {}
    for letters in product("IXYZ", repeat=len(obs.wires)):
        word = qml.pauli.PauliWord(
            {w: p for w, p in zip(obs.wires, letters, strict=True) if p != "I"}
        )
        own = torch.as_tensor(word.to_mat(wire_order=obs.wires)).to(matrix)
        found[word] = (own * matrix.T).sum().real / len(matrix)
    return found


def refuse_computed(measurements: Sequence[Any]) -> None:
    """Refuse derivatives by angles alone where observables depend on weights as well.

    Raises:
        UnsupportedCircuitError: Names the measurement.
    """
    for m in measurements:
        if m.obs is not None and any(qml.math.requires_grad(v) for v in m.obs.data):
            raise UnsupportedCircuitError(
                f"qnode: the coefficients of {m} depend on weights, and derivatives by angles alone would leave them "
                "out. Measure the words one by one and combine their results, or train a QuantumLayer."
            )
