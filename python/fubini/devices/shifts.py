"""Derivatives of a QNode's results on any device: parameter-shift rules, and tests by inserted Pauli words.

A gate exp(-i t K) whose generator's eigenvalues have R distinct differences needs 2R shifted circuits (Wierichs et al.
2022, arXiv:2107.12390): two for RX, four for CRX. All shifts of all inputs are settings of one circuit, which is one
broadcast tape on devices that take one. A generator without a well-conditioned rule is taken word by word,
K = sum_k c_k P_k: either by circuits with exp(-+ i pi/4 P_k) behind the gate, two per word (Mitarai et al. 2018,
arXiv:1803.00745), or by a Hadamard test, one circuit per word and one auxiliary wire (Li et al. 2017,
arXiv:1608.00677).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini import _core
from fubini.devices.executor import Array
from fubini.devices.job import Job
from fubini.devices.readout import Estimates, Readout, estimates_of, readout_of, with_auxiliary
from fubini.devices.sweep import Sweep, repeated
from fubini.errors import UnsupportedCircuitError
from fubini.pauli import PauliSum, dense, words_commute
from fubini.tape import GateTape

FloatArray = npt.NDArray[np.float64]
Rule = Literal["shift", "hadamard"]

_MAX_DENSE_WIRES = 8
_MAX_WORDS = (
    12  # 2^12 signs of commuting words; more words have more frequencies than a rule should have
)


@dataclass(frozen=True)
class _Terms:
    """Circuits whose results are added up to derivatives.

    Attributes:
        angles: For every circuit the angle that it belongs to.
        coefficients: For every circuit.
        seen: Its outcomes, (circuits, batch, ...).
    """

    angles: npt.NDArray[np.intp]
    coefficients: FloatArray
    seen: Estimates


@dataclass(frozen=True)
class Gradient:
    """Results of a circuit and their derivatives by its trainable angles.

    Attributes:
        values: (1 or batch, outputs); None where the circuit itself was not run.
        jacobian: (1 or batch, outputs, angles).
        base: What the circuit itself gave, else None.
        terms: What the derivatives are made of.
        slopes: (1 or batch, outputs, features).
    """

    values: FloatArray | None
    jacobian: FloatArray
    base: Estimates | None
    terms: tuple[_Terms, ...]
    slopes: FloatArray

    @property
    def errors(self) -> FloatArray:
        """Standard errors of the Jacobian, (1 or batch, outputs, angles); zeros for an analytic device."""
        variance = np.zeros_like(self.jacobian)
        for terms in self.terms:
            found = terms.seen.variance(self.slopes)  # (circuits, batch, outputs)
            weighted = terms.coefficients[:, None, None] ** 2 * found
            np.add.at(variance.transpose(2, 0, 1), terms.angles, weighted)
        if self.base is not None:
            features = self.base.readout.squared
            derivative = self._feature_jacobian
            unit = np.eye(len(self.base.readout.constant))
            noise = self.base.variance(unit)
            for output, feature in features:
                variance[:, output] += 4.0 * derivative[:, feature] ** 2 * noise[:, feature, None]
        return np.sqrt(variance)

    @property
    def _feature_jacobian(self) -> FloatArray:
        return _contracted(self.terms, self.jacobian.shape[2])

    def covariance(self, cotangents: FloatArray) -> FloatArray:
        """Return the covariance of the estimates of cotangents @ jacobian.

        Args:
            cotangents: (1 or batch, outputs).

        Returns:
            (batch, angles, angles).
        """
        functional = (cotangents[:, None, :] @ self.slopes)[:, 0]
        count = self.jacobian.shape[2]
        rows = len(functional)
        result = np.zeros((rows, count, count))
        for terms in self.terms:
            found = terms.seen.variance(functional[:, None, :])[..., 0]  # (circuits, batch)
            weighted = terms.coefficients[:, None] ** 2 * found
            for circuit, angle in enumerate(terms.angles):
                result[:, angle, angle] += weighted[circuit]
        if self.base is not None:
            noise = self.base.variance(np.eye(len(self.base.readout.constant)))
            derivative = self._feature_jacobian
            for output, feature in self.base.readout.squared:
                # -2 <O> d<O>: the estimate of <O> is common to all angles.
                shared = -2.0 * cotangents[:, output, None] * derivative[:, feature]
                result += (shared[:, :, None] * shared[:, None, :]) * noise[:, feature, None, None]
        return result


def _contracted(blocks: Sequence[_Terms], count: int) -> FloatArray:
    """Sum the terms: (1 or batch, features, count)."""
    total: Any = 0.0
    for block in blocks:
        features = np.ascontiguousarray(block.seen.features)
        total = total + _core.shift_sum(
            block.angles.astype(np.int64), np.ascontiguousarray(block.coefficients), features, count
        )
    return np.asarray(total)


@functools.lru_cache(maxsize=4096)
def frequencies(generator: PauliSum) -> tuple[float, ...] | None:
    """Return the distinct positive differences of a generator's eigenvalues.

    Args:
        generator: Pauli sum K of the gate exp(-i t K).

    Returns:
        Ascending; None where there are too many eigenvalues to compare.
    """
    terms = [(x, z, c) for x, z, c in generator if x | z]
    if not terms:
        return ()
    support = 0
    for x, z, _ in terms:
        support |= x | z
    bits = [1 << k for k in range(support.bit_length() - 1, -1, -1) if support >> k & 1]

    def local(mask: int) -> int:
        return sum(1 << (len(bits) - 1 - k) for k, bit in enumerate(bits) if mask & bit)

    if len(bits) <= _MAX_DENSE_WIRES:
        words = tuple((local(x), local(z), c) for x, z, c in terms)
        values = np.unique(np.round(np.linalg.eigvalsh(dense(words, len(bits))), 12))
    elif len(terms) <= _MAX_WORDS and all(
        words_commute(a, b) for i, a in enumerate(terms) for b in terms[:i]
    ):
        # At most these eigenvalues; a rule with frequencies that do not occur is exact as well.
        values = np.zeros(1)
        for _, _, c in terms:
            values = np.unique(np.round(np.concatenate([values - c, values + c]), 12))
    else:
        return None
    if len(values) > 64:
        return None
    differences = np.abs(values[:, None] - values[None, :]).ravel()
    found = np.unique(np.round(differences[differences > 1e-9], 10))
    # Rounding splits equal differences now and then.
    kept = [f for k, f in enumerate(found) if k == 0 or f - found[k - 1] > 1e-9]
    return tuple(float(f) for f in kept)


@functools.lru_cache(maxsize=1024)
def has_rule(generator: PauliSum) -> bool:
    """Say whether a generator has a parameter-shift rule of ten correct digits.

    Args:
        generator: Pauli sum.

    Returns:
        Whether it has.
    """
    found = frequencies(generator)
    if found is None:
        return False
    try:
        _core.shift_rule(list(found))
    except ValueError:
        return False
    return True


def gradient_job(
    tape: GateTape,
    *,
    shots: int | None = None,
    angles: Sequence[int] | None = None,
    values: bool = False,
    rule: Rule = "shift",
    shifts: Sequence[Sequence[float]] | None = None,
    auxiliary: Any = None,
    base: Estimates | None = None,
) -> Job[Gradient]:
    """Return the job that finds a circuit's derivatives by its trainable angles.

    With S settings of the readout (1 for exact results; with shots, the number of product bases that the observables
    need) and B inputs it runs S B circuits for every term of every angle's rule: 2R for R frequencies; 1 (Hadamard
    test) or 2 per Pauli word of a generator without a rule; and S B more where the values are wanted or the QNode
    measures a variance.

    Args:
        tape: The circuit.
        shots: Of every circuit; None for exact results.
        angles: Trainable angles to differentiate by; None for all. Others have derivative 0.
        values: Whether the results of the circuit itself are wanted.
        rule: ``"shift"``, or ``"hadamard"`` for one Hadamard test per Pauli word of every generator.
        shifts: For every trainable angle as many positive shifts as it has frequencies, in radians, or none for the
            equidistant ones.
        auxiliary: Label of a wire that the circuit does not use, for Hadamard tests; without one, gates without a
            shift rule take two circuits per word.
        base: What ``values_job`` gave for this circuit, which is then not run again.

    Returns:
        The job.

    Raises:
        UnsupportedCircuitError: For measurements without a rule.
        ValueError: For an auxiliary wire that is missing or in use, fewer than 2 shots, or impossible shifts.
    """
    if rule not in ("shift", "hadamard"):
        raise ValueError(f"rule: expected 'shift' or 'hadamard', got {rule!r}")
    check_shots(shots)
    if auxiliary is not None and auxiliary in tape.wires:
        raise ValueError(
            f"auxiliary: expected a wire that the circuit does not use, got {auxiliary!r} of {tape.wires.tolist()}"
        )
    if rule == "hadamard" and auxiliary is None:
        raise ValueError(
            "auxiliary: expected the label of a free wire for rule='hadamard', got None"
        )
    readout = readout_of(tape, shots)
    trainable = tape.trainable
    chosen = list(range(len(trainable))) if angles is None else list(angles)
    generators = [tape.gates[i].generator or () for i in trainable]
    shiftable = [j for j in chosen if rule == "shift" and has_rule(generators[j])]
    by_words = [j for j in chosen if j not in set(shiftable)]

    moved = [list(shifts[j]) for j in shiftable] if shifts is not None else []
    plan = _core.ShiftPlan(
        shiftable, [list(frequencies(generators[j]) or ()) for j in shiftable], moved
    )
    with_base = base is None and (values or bool(readout.squared))
    rows = batch_rows(tape)
    at = tape.angles if trainable else np.zeros((1, 0))
    at = np.ascontiguousarray(np.broadcast_to(at, (rows, at.shape[1])))
    settings = plan.angles(at)
    if with_base:
        settings = np.concatenate([settings, at[None]])

    blocks: list[tuple[Any, Any, Readout, list[Sweep], int]] = []
    if len(settings):
        sweeps = [
            setting_sweep(tape, settings, setting.gates, setting.measurements, shots)
            for setting in readout.settings
        ]
        index, weight = np.array(plan.index, dtype=np.intp), np.array(plan.coefficient)
        blocks.append((index, weight, readout, sweeps, len(settings)))
    for j in by_words:
        blocks += _word_blocks(tape, j, generators[j], readout, shots, auxiliary)

    def finish(answers: list[list[Array]]) -> Gradient:
        start = 0
        terms = []
        own_base = base
        for index, weight, own, own_sweeps, count in blocks:
            mine = answers[start : start + len(own_sweeps)]
            start += len(own_sweeps)
            seen = estimates_of(own, mine, (count, rows), shots)
            if count > len(index):  # the last one is the circuit itself
                own_base = Estimates(own, tuple(o[-1] for o in seen.outcomes), shots)
                seen = Estimates(own, tuple(o[:-1] for o in seen.outcomes), shots)
            if len(index):
                terms.append(_Terms(index, weight, seen))
        if own_base is None:
            slopes = np.broadcast_to(readout.linear, (rows, *readout.linear.shape))
        else:
            slopes = readout.slopes(own_base.features)
        by_features = (
            _contracted(terms, len(trainable))
            if terms
            else np.zeros((rows, readout.linear.shape[1], len(trainable)))
        )
        results = None
        if values and own_base is not None:
            noise = None if shots is None else own_base.variance(np.eye(len(readout.constant)))
            results = readout.results(own_base.features, noise)
        return Gradient(results, slopes @ by_features, own_base, tuple(terms), slopes)

    return Job(tuple(s for block in blocks for s in block[3]), finish)


def values_job(tape: GateTape, *, shots: int | None = None) -> Job[Estimates]:
    """Return the job that runs the circuit itself, once per input and setting of the readout.

    Args:
        tape: The circuit.
        shots: Of every circuit; None for exact results.

    Returns:
        The job; its result has features of shape (1 or batch, features).
    """
    check_shots(shots)
    readout = readout_of(tape, shots)
    rows = batch_rows(tape)
    operations = tuple(gate.operation for gate in tape.gates)
    count = None if tape.batch is None else tape.batch
    sweeps = tuple(
        Sweep((*operations, *setting.gates), setting.measurements, count, shots)
        for setting in readout.settings
    )
    return Job(sweeps, lambda answers: estimates_of(readout, answers, (rows,), shots))


def check_shots(shots: int | None) -> None:
    """Raise a ValueError unless shots is None or an integer of at least 2.

    Args:
        shots: What to check.

    Raises:
        ValueError: Otherwise; one shot has no variance.
    """
    if shots is not None and (isinstance(shots, bool) or int(shots) != shots or shots < 2):
        raise ValueError(f"shots: expected None or an integer >= 2, got {shots!r}")


def batch_rows(tape: GateTape) -> int:
    """Number of inputs, 1 for a circuit without a batch."""
    return 1 if tape.batch is None else tape.batch


def setting_sweep(
    tape: GateTape,
    settings: FloatArray,
    gates: Sequence[Any],
    measurements: Sequence[Any],
    shots: int | None,
) -> Sweep:
    """Return a circuit at many settings of its trainable angles, every one with all inputs.

    Args:
        tape: The circuit.
        settings: (settings, 1 or batch, trainable angles).
        gates: Appended.
        measurements: What is measured.
        shots: Of every circuit.
    """
    count, batch = settings.shape[:2]
    operations = tape.with_angles(settings.reshape(count * batch, -1))
    own = set(tape.trainable)
    operations = [
        op if i in own or op.batch_size is None else repeated(op, count)
        for i, op in enumerate(operations)
    ]
    return Sweep((*operations, *gates), tuple(measurements), count * batch, shots)


# -- word by word -----------------------------------------------------------------------------------------------


def _word_blocks(
    tape: GateTape,
    angle: int,
    generator: PauliSum,
    readout: Readout,
    shots: int | None,
    auxiliary: Any,
) -> list[tuple[Any, Any, Readout, list[Sweep], int]]:
    place = tape.trainable[angle] + 1
    operations = [gate.operation for gate in tape.gates]
    blocks = []
    for x, z, coefficient in generator:
        if not x | z:
            continue
        letters = word_letters(x, z, tape)
        if auxiliary is not None:
            # Branches psi and P psi of the auxiliary qubit: <Y O> = Im <psi|O|P psi>, and d<O>/dt is twice that.
            own = with_auxiliary(readout, auxiliary)
            end = [qml.adjoint(qml.S(auxiliary)), qml.Hadamard(auxiliary)]
            circuit = [
                *prepared(operations[:place], qml.Hadamard(auxiliary)),
                controlled_word(letters, auxiliary),
                *operations[place:],
                *end,
            ]
            sweeps = [
                Sweep((*circuit, *s.gates), s.measurements, tape.batch, shots) for s in own.settings
            ]
            blocks.append((np.array([angle]), np.array([2.0 * coefficient]), own, sweeps, 1))
            continue
        for sign in (1.0, -1.0):
            turn = qml.PauliRot(sign * np.pi / 2, "".join(letters.values()), wires=list(letters))
            circuit = [*operations[:place], turn, *operations[place:]]
            sweeps = [
                Sweep((*circuit, *s.gates), s.measurements, tape.batch, shots)
                for s in readout.settings
            ]
            blocks.append((np.array([angle]), np.array([sign * coefficient]), readout, sweeps, 1))
    return blocks


def prepared(operations: Sequence[Any], *gates: Any) -> list[Any]:
    """Return operations with gates on other wires in front, behind a state preparation.

    Args:
        operations: Of the circuit.
        *gates: What comes first.
    """
    first = 1 if operations and isinstance(operations[0], qml.operation.StatePrepBase) else 0
    return [*operations[:first], *gates, *operations[first:]]


def word_letters(x: int, z: int, tape: GateTape) -> dict[Any, str]:
    """Return the letters of a word by wire label.

    Args:
        x: Mask of the wires with X or Y.
        z: Mask of the wires with Z or Y.
        tape: Whose wires they are.
    """
    letters = {}
    for position, wire in enumerate(tape.wires):
        bit = 1 << (len(tape.wires) - 1 - position)
        if (x | z) & bit:
            letters[wire] = "Y" if x & z & bit else "X" if x & bit else "Z"
    return letters


def controlled_word(letters: dict[Any, str], control: Any, value: int = 1) -> Any:
    """Return a Pauli word controlled by a wire.

    Args:
        letters: The word.
        control: Label.
        value: For which value of the control it acts.
    """
    paulis = {"X": qml.X, "Y": qml.Y, "Z": qml.Z}
    word = qml.prod(*(paulis[letter](wire) for wire, letter in letters.items()))
    base = word if len(letters) > 1 else paulis[next(iter(letters.values()))](next(iter(letters)))
    return qml.ctrl(base, control=control, control_values=[value])


def refuse_without_rule(tape: GateTape, what: str) -> list[tuple[float, ...]]:
    """Return the frequencies of all trainable angles, which must have shift rules.

    Args:
        tape: The circuit.
        what: Needs them, for the message.

    Raises:
        UnsupportedCircuitError: Names the first gate without a rule.
    """
    found = []
    for i in tape.trainable:
        generator = tape.gates[i].generator or ()
        if not has_rule(generator):
            raise UnsupportedCircuitError(
                f"qnode: {tape.gates[i].operation.name} has no well-conditioned parameter-shift rule, which {what} "
                "needs; decompose it into gates with fewer frequencies"
            )
        found.append(frequencies(generator) or ())
    return found
