"""What a QNode measures, as features that are linear in the state: what shift rules apply to, and what shots estimate.

A feature is an expectation value or a probability. Exact results are asked for as they stand in the QNode. With shots
the features come from probabilities in as few product bases as a greedy grouping finds; everything is then linear in
the observed frequencies, so that its variance can be estimated without bias from the same shots. A variance is no
linear feature: it is <O^2> - <O>^2, made of two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    spread,
    symmetric_product,
    word_letters,
)
from fubini.circuit.tape import GateTape
from fubini.devices.basis import to_z_basis
from fubini.devices.executor import Array
from fubini.devices.job import Job
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

    def job(
        self, operations: Sequence[Any], shape: tuple[int, ...], shots: int | None
    ) -> "Job[Estimates]":
        """Return the job that measures everything behind operations.

        Args:
            operations: Of the circuit.
            shape: Leading shape of the result; as many rows as it says have the operations, or none.
            shots: Per circuit; None for exact results.

        Returns:
            The job, with a circuit for every setting.
        """
        rows = math.prod(shape)

        def finish(answers: list[list[Array]]) -> Estimates:
            outcomes = []
            for parts in answers:
                seen = np.concatenate([np.real(p).reshape(len(p), -1) for p in parts], axis=1)
                outcomes.append(np.broadcast_to(seen, (rows, seen.shape[1])).reshape(*shape, -1))
            return Estimates(self, tuple(outcomes), shots)

        sweeps = [
            Sweep((*operations, *one.gates), one.measurements, rows, shots) for one in self.settings
        ]
        return Job(tuple(sweeps), finish)

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

    def at(self, which: int | slice) -> "Estimates":
        """Return some of the estimates along their first axis."""
        return replace(self, outcomes=tuple(seen[which] for seen in self.outcomes))

    @property
    def results(self) -> Real:
        """The QNode's results, (..., outputs); those of variances are without bias."""
        noise = None if self.shots is None else self.variance(np.eye(len(self.readout.constant)))
        return self.readout.results(self.features, noise)

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


def exact_readout(tape: GateTape) -> Readout:
    """Return the readout of an analytic device: the QNode's measurements, all in one circuit."""
    linear_in_state, rows, shapes = _outputs(tape)
    measured = tuple(
        m if _kind(m) == "probs" else qml.expval(_square(m.obs) if squared else m.obs)
        for m, squared in linear_in_state
    )
    count = sum(_size(m) for m in measured)
    return _readout([Setting((), measured, np.eye(count))], np.zeros(count), rows, shapes)


def sampled_readout(tape: GateTape) -> Readout:
    """Return the readout of a device with shots.

    Returns:
        The readout, with one setting per group of words that can be measured wire by wire.

    Raises:
        UnsupportedCircuitError: For an observable without a Pauli sum.
    """
    labels = list(tape.wires)
    positions = {label: k for k, label in enumerate(labels)}
    linear_in_state, rows, shapes = _outputs(tape)
    # What is added up: feature, letters of a word, coefficient, outcome of these letters; None: its sign.
    parts: list[tuple[int, dict[int, str], float, int | None]] = []
    count = 0
    for measurement, squared in linear_in_state:
        size = _size(measurement)
        if _kind(measurement) == "probs":
            if measurement.obs is not None:
                raise UnsupportedCircuitError(
                    "qnode: qml.probs(op=...) with shots is not supported; rotate the wires and use qml.probs(wires=...)"
                )
            letters = dict.fromkeys((positions[w] for w in measurement.wires), "Z")
            parts += [(count + k, letters, 1.0, k) for k in range(size)]
        else:
            terms = _terms(measurement.obs, positions, len(labels))
            terms = symmetric_product(terms, terms) if squared else terms
            parts += [(count, word_letters(x, z, len(labels)), c, None) for x, z, c in terms]
        count += size

    bases = _bases([letters for _, letters, _, _ in parts if letters])
    settings = []
    for basis in bases:
        wires = sorted(basis)
        if len(wires) > _MAX_MEASURED_WIRES:
            raise UnsupportedCircuitError(
                f"qnode: expected measurements of at most {_MAX_MEASURED_WIRES} wires together, got {len(wires)}"
            )
        gates = tuple(g for w in wires for g in to_z_basis(basis[w], labels[w]))
        measured = (qml.probs(wires=[labels[w] for w in wires]),)
        settings.append(Setting(gates, measured, np.zeros((count, 1 << len(wires)))))
    constant = np.zeros(count)
    for feature, letters, coefficient, outcome in parts:
        if not letters:
            constant[feature] += coefficient
            continue
        home = next(k for k, basis in enumerate(bases) if basis.items() >= letters.items())
        wires, matrix = sorted(bases[home]), settings[home].matrix
        bits = [1 << (len(wires) - 1 - wires.index(w)) for w in letters]
        seen = np.arange(matrix.shape[1]) & sum(bits)
        values = parity_signs(seen) if outcome is None else seen == spread(outcome, bits)
        matrix[feature] += coefficient * values
    return _readout(settings, constant, rows, shapes)


def with_auxiliary(readout: Readout, wire: Any) -> Readout:
    """Return the readout of every feature times Z on one more wire: the last step of a Hadamard test.

    Returns:
        The readout; its features are not offset by constants of observables, which it measures as well.

    Raises:
        UnsupportedCircuitError: For probabilities of an operator's eigenvalues.
    """
    signs = np.array([1.0, -1.0])
    settings = []
    for setting in readout.settings:
        measurements: list[Any] = []
        pieces: list[Real] = []
        ends = np.cumsum([_size(m) for m in setting.measurements])
        blocks = np.split(setting.matrix, ends[:-1], axis=1)
        for measurement, block in zip(setting.measurements, blocks, strict=True):
            if not isinstance(measurement, qml.measurements.ProbabilityMP):
                measurements.append(qml.expval(measurement.obs @ qml.Z(wire)))
                pieces.append(block)
                continue
            if measurement.obs is not None:
                raise UnsupportedCircuitError(
                    "qnode: qml.probs(op=...) cannot be read out by a Hadamard test; rotate the wires and use "
                    "qml.probs(wires=...)"
                )
            measurements.append(qml.probs(wires=[*measurement.wires, wire]))
            pieces.append(np.kron(block, signs))
        settings.append(Setting(setting.gates, tuple(measurements), np.concatenate(pieces, axis=1)))
    if readout.constant.any():
        measured = (qml.probs(wires=[wire]),)
        settings.append(Setting((), measured, np.outer(readout.constant, signs)))
    return replace(readout, settings=tuple(settings), constant=np.zeros_like(readout.constant))


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
            f"{MAX_MATRIX_WIRES} wires, got {obs!r}: {found}"
        ) from None


def _square(obs: Any) -> Any:
    sentence = obs.pauli_rep
    if sentence is not None:
        product = sentence @ sentence
        product.simplify()
        return product.operation(wire_order=obs.wires)
    matrix = qml.matrix(obs, wire_order=obs.wires)
    return qml.Hermitian(matrix @ matrix, wires=obs.wires)


def _bases(wanted: Sequence[dict[int, str]]) -> list[dict[int, str]]:
    """Product bases that serve all words: every word joins the first basis that it fits."""
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


def _outputs(tape: GateTape) -> tuple[list[tuple[Any, bool]], _Rows, list[tuple[int, ...]]]:
    """Measurements that are linear in the state, whether of the observable's square, outputs, and shapes."""
    measured: list[tuple[Any, bool]] = []
    rows: _Rows = []
    shapes: list[tuple[int, ...]] = []
    count = 0
    for measurement in tape.measurements:
        kind = _kind(measurement)
        size = _size(measurement)
        shapes.append((size,) if kind == "probs" else ())
        measured.append((measurement, False))
        if kind == "var":
            measured.append((measurement, True))
            rows.append((count + 1, count))
        else:
            rows += [(count + k, None) for k in range(size)]
        count = rows[-1][0] + 1
    return measured, rows, shapes


def _size(measurement: Any) -> int:
    """Number of features."""
    probabilities = isinstance(measurement, qml.measurements.ProbabilityMP)
    return 1 << len(measurement.wires) if probabilities else 1


def _readout(
    settings: Sequence[Setting], constant: Real, rows: _Rows, shapes: Sequence[tuple[int, ...]]
) -> Readout:
    linear = np.zeros((len(rows), len(constant)))
    linear[np.arange(len(rows)), [feature for feature, _ in rows]] = 1.0
    squared = tuple((output, other) for output, (_, other) in enumerate(rows) if other is not None)
    return Readout(tuple(settings), constant, linear, squared, tuple(shapes))
