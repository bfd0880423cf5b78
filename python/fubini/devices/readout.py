"""What a QNode measures, as features that are linear in the state: what shift rules apply to, and what shots estimate.

A feature is an expectation value or a probability. Exact results are asked for as they stand in the QNode. With shots
the features come from probabilities in as few product bases as a greedy grouping finds; everything is then linear in
the observed frequencies, so that its variance can be estimated without bias from the same shots. A variance is no
linear feature: it is <O^2> - <O>^2, made of two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pennylane as qml

from fubini.circuit.pauli import (
    MAX_MATRIX_WIRES,
    NoPauliSum,
    PauliSum,
    parity_signs,
    pauli_sum,
    symmetric_product,
    word_letters,
)
from fubini.circuit.tape import GateTape
from fubini.devices.basis import to_z_basis
from fubini.devices.sweep import Sweep
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real

_MAX_MEASURED_WIRES = 16


@dataclass(frozen=True)
class Setting:
    """One circuit that is measured.

    Attributes:
        gates: Appended to the circuit.
        measurements: What is measured.
        matrix: (features, outcomes): features are sums of matrix @ outcomes over all settings. Outcomes are the
            results of the measurements side by side.
    """

    gates: tuple[Any, ...]
    measurements: tuple[Any, ...]
    matrix: Real


@dataclass(frozen=True)
class Readout:
    """How results follow from circuits.

    Attributes:
        settings: The circuits.
        constant: (features,), added to the features.
        linear: (outputs, features).
        squared: Pairs (output, feature) of which minus the square is added to the output.
        shapes: Shape of every measurement of the QNode.
    """

    settings: tuple[Setting, ...]
    constant: Real
    linear: Real
    squared: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    def sweeps(self, operations: Sequence[Any], rows: int | None, shots: int | None) -> list[Sweep]:
        """Return the circuits that measure everything behind operations, at so many settings."""
        return [
            Sweep((*operations, *one.gates), one.measurements, rows, shots) for one in self.settings
        ]

    @property
    def outputs(self) -> int:
        """Number of real results."""
        return len(self.linear)

    def results(self, features: Real, variances: Real | None = None) -> Real:
        """Return the QNode's results.

        Args:
            features: (..., features).
            variances: Of the features' estimates, taken off their squares so that these are not biased.

        Returns:
            (..., outputs).
        """
        result: Real = features @ self.linear.T
        for output, feature in self.squared:
            result[..., output] -= features[..., feature] ** 2
            if variances is not None:
                result[..., output] += variances[..., feature]
        return result

    def slopes(self, features: Real) -> Real:
        """Return the derivative of results by features, (..., outputs, features)."""
        result = np.broadcast_to(self.linear, (*features.shape[:-1], *self.linear.shape)).copy()
        for output, feature in self.squared:
            result[..., output, feature] -= 2.0 * features[..., feature]
        return result


@dataclass(frozen=True)
class Estimates:
    """Observed outcomes of every setting.

    Attributes:
        readout: What was measured.
        outcomes: For every setting (..., outcomes); with shots, observed frequencies.
        shots: Per circuit; None for exact results.
    """

    readout: Readout
    outcomes: tuple[Real, ...]
    shots: int | None

    @cached_property
    def features(self) -> Real:
        """(..., features)."""
        total: Real = np.array(self.readout.constant)
        for setting, seen in zip(self.readout.settings, self.outcomes, strict=True):
            total = total + seen @ setting.matrix.T
        return total

    def variance(self, functionals: Real) -> Real:
        """Return unbiased estimates of the variances of linear functions of the features.

        Args:
            functionals: (..., functions, features).

        Returns:
            (..., functions).
        """
        if self.shots is None:
            return np.zeros(
                np.broadcast_shapes((*self.features.shape[:-1], 1), functionals.shape[:-1])
            )
        total: Any = 0.0
        for setting, seen in zip(self.readout.settings, self.outcomes, strict=True):
            values = functionals @ setting.matrix  # (..., functions, outcomes)
            mean = (values @ seen[..., None])[..., 0]
            square = ((values**2) @ seen[..., None])[..., 0]
            total = total + np.maximum(square - mean**2, 0.0) / (self.shots - 1)
        return np.asarray(total)


def estimates_of(
    readout: Readout, answers: Sequence[Sequence[Any]], shape: tuple[int, ...], shots: int | None
) -> Estimates:
    """Return estimates from the answers to the sweeps of all settings.

    Args:
        readout: What was measured.
        answers: For every setting its measurements' results, (rows, ...).
        shape: Leading shape of the result, instead of rows.
        shots: Per circuit; None for exact results.

    Returns:
        The estimates.
    """
    outcomes = []
    rows = int(np.prod(shape, dtype=int))
    for parts in answers:
        seen = np.concatenate([np.real(p).reshape(len(p), -1) for p in parts], axis=1)
        outcomes.append(np.broadcast_to(seen, (rows, seen.shape[1])).reshape(*shape, -1))
    return Estimates(readout, tuple(outcomes), shots)


def exact_readout(tape: GateTape) -> Readout:
    """Return the readout of an analytic device: the QNode's measurements, all in one circuit."""
    measured: list[Any] = []

    def observable(obs: Any, squared: bool) -> None:
        measured.append(qml.expval(_square(obs) if squared else obs))

    rows, shapes = _rows(tape, measured.append, observable)
    count = 1 + max((feature for feature, _ in rows), default=-1)
    return _readout([Setting((), tuple(measured), np.eye(count))], np.zeros(count), rows, shapes)


def sampled_readout(tape: GateTape) -> Readout:
    """Return the readout of a device with shots.

    Returns:
        The readout, with one setting per group of words that can be measured wire by wire.

    Raises:
        UnsupportedCircuitError: For an observable without a Pauli sum.
    """
    labels = list(tape.wires)
    positions = {label: k for k, label in enumerate(labels)}
    groups: list[tuple[str, Any]] = []  # per feature: its sum, or (wires, outcome)

    def outcomes(measurement: Any) -> None:
        if measurement.obs is not None:
            raise UnsupportedCircuitError(
                "qnode: qml.probs(op=...) with shots is not supported; rotate the wires and use qml.probs(wires=...)"
            )
        wires = [positions[w] for w in measurement.wires]
        groups.extend(("outcome", (wires, outcome)) for outcome in range(1 << len(wires)))

    def observable(obs: Any, squared: bool) -> None:
        terms = _terms(obs, positions, len(labels))
        groups.append(("sum", symmetric_product(terms, terms) if squared else terms))

    rows, shapes = _rows(tape, outcomes, observable)
    bases = _bases(groups, len(labels))
    constant = np.zeros(len(groups))
    settings = []
    for basis in bases:
        wires = sorted(basis)
        if len(wires) > _MAX_MEASURED_WIRES:
            raise UnsupportedCircuitError(
                f"qnode: expected measurements of at most {_MAX_MEASURED_WIRES} wires together, got {len(wires)}"
            )
        gates = tuple(g for w in wires for g in to_z_basis(basis[w], labels[w]))
        measured = (qml.probs(wires=[labels[w] for w in wires]),)
        settings.append((wires, basis, gates, measured, np.zeros((len(groups), 1 << len(wires)))))
    for feature, (kind, what) in enumerate(groups):
        if kind == "outcome":
            where, outcome = what
            wires, _, _, _, matrix = next(
                s for s in settings if all(s[1].get(w) == "Z" for w in where)
            )
            index = np.arange(matrix.shape[1])
            seen = np.zeros_like(index)
            for w in where:
                seen = 2 * seen + (index >> (len(wires) - 1 - wires.index(w)) & 1)
            matrix[feature] = seen == outcome
            continue
        for x, z, coefficient in what:
            if not x | z:
                constant[feature] += coefficient
                continue
            letters = word_letters(x, z, len(labels))
            wires, _, _, _, matrix = next(
                s for s in settings if all(s[1].get(w) == letter for w, letter in letters.items())
            )
            mask = sum(1 << (len(wires) - 1 - wires.index(w)) for w in letters)
            matrix[feature] += coefficient * parity_signs(np.arange(matrix.shape[1]) & mask)
    return _readout(
        [Setting(gates, measured, matrix) for _, _, gates, measured, matrix in settings],
        constant,
        rows,
        shapes,
    )


def with_auxiliary(readout: Readout, wire: Any) -> Readout:
    """Return the readout of every feature times Z on one more wire: the last step of a Hadamard test.

    Returns:
        The readout; its features are not offset by constants of observables, which it measures as well.

    Raises:
        UnsupportedCircuitError: For probabilities of an operator's eigenvalues.
    """
    settings = []
    for setting in readout.settings:
        measurements: list[Any] = []
        pieces: list[Real] = []
        start = 0
        for measurement in setting.measurements:
            if isinstance(measurement, qml.measurements.ProbabilityMP):
                size = 1 << len(measurement.wires)
                if measurement.obs is not None:
                    raise UnsupportedCircuitError(
                        "qnode: qml.probs(op=...) cannot be read out by a Hadamard test; rotate the wires and use "
                        "qml.probs(wires=...)"
                    )
                measurements.append(qml.probs(wires=[*measurement.wires, wire]))
                block = setting.matrix[:, start : start + size]
                pieces.append(np.kron(block, np.array([1.0, -1.0])))
            else:
                size = 1
                measurements.append(qml.expval(measurement.obs @ qml.Z(wire)))
                pieces.append(setting.matrix[:, start : start + 1])
            start += size
        settings.append(Setting(setting.gates, tuple(measurements), np.concatenate(pieces, axis=1)))
    if readout.constant.any():
        matrix = np.outer(readout.constant, np.array([1.0, -1.0]))
        settings.append(Setting((), (qml.probs(wires=[wire]),), matrix))
    return Readout(
        tuple(settings),
        np.zeros_like(readout.constant),
        readout.linear,
        readout.squared,
        readout.shapes,
    )


def readout_of(tape: GateTape, shots: int | None) -> Readout:
    """Return the readout of a circuit, with or without shots."""
    return exact_readout(tape) if shots is None else sampled_readout(tape)


def _kind(measurement: Any) -> str:
    kinds = {
        qml.measurements.ExpectationMP: "expval",
        qml.measurements.VarianceMP: "var",
        qml.measurements.ProbabilityMP: "probs",
    }
    kind = kinds.get(type(measurement))
    observed = measurement.obs is not None or (kind == "probs" and len(measurement.wires))
    if kind is None or not observed:
        raise UnsupportedCircuitError(
            f"qnode: expected expectation values, variances or probabilities of named wires, got {measurement!r}; "
            "nothing else has a parameter-shift rule"
        )
    return kind


def _terms(obs: Any, positions: dict[Any, int], wires: int) -> PauliSum:
    try:
        return pauli_sum(obs, positions, wires)
    except NoPauliSum as found:
        raise UnsupportedCircuitError(
            "qnode: expected an observable that is a sum of Pauli words or a Hermitian matrix on at most "
            f"{MAX_MATRIX_WIRES} wires, got {obs!r}: {found.reason}"
        ) from None


def _square(obs: Any) -> Any:
    sentence = obs.pauli_rep
    if sentence is not None:
        product = sentence @ sentence
        product.simplify()
        return product.operation(wire_order=obs.wires)
    matrix = qml.matrix(obs, wire_order=obs.wires)
    return qml.Hermitian(matrix @ matrix, wires=obs.wires)


def _bases(groups: Sequence[tuple[str, Any]], wires: int) -> list[dict[int, str]]:
    """Product bases that serve all words: every word joins the first basis that it fits."""
    wanted: list[dict[int, str]] = []
    for kind, what in groups:
        if kind == "outcome":
            wanted.append(dict.fromkeys(what[0], "Z"))
        else:
            wanted += [word_letters(x, z, wires) for x, z, _ in what if x | z]
    bases: list[dict[int, str]] = []
    for letters in sorted(wanted, key=len, reverse=True):
        home = next(
            (b for b in bases if all(b.get(w, letter) == letter for w, letter in letters.items())),
            None,
        )
        if home is None:
            bases.append(home := {})
        home.update(letters)
    return bases


#: For every output its feature, and the feature of which minus the square is added.
_Rows = list[tuple[int, int | None]]


def _rows(
    tape: GateTape, outcomes: Callable[[Any], None], observable: Callable[[Any, bool], None]
) -> tuple[_Rows, list[tuple[int, ...]]]:
    """The outputs of a QNode, and shapes of its measurements; ``outcomes`` and ``observable`` take the features in order."""
    rows: _Rows = []
    shapes: list[tuple[int, ...]] = []
    count = 0
    for measurement in tape.measurements:
        kind = _kind(measurement)
        if kind == "probs":
            outcomes(measurement)
            size = 1 << len(measurement.wires)
            shapes.append((size,))
            rows += [(count + k, None) for k in range(size)]
            count += size
            continue
        shapes.append(())
        observable(measurement.obs, False)
        if kind == "expval":
            rows.append((count, None))
        else:
            observable(measurement.obs, True)
            rows.append((count + 1, count))
        count = rows[-1][0] + 1
    return rows, shapes


def _readout(
    settings: Sequence[Setting], constant: Real, rows: _Rows, shapes: Sequence[tuple[int, ...]]
) -> Readout:
    linear = np.zeros((len(rows), len(constant)))
    linear[np.arange(len(rows)), [feature for feature, _ in rows]] = 1.0
    squared = tuple((output, other) for output, (_, other) in enumerate(rows) if other is not None)
    return Readout(tuple(settings), constant, linear, squared, tuple(shapes))
