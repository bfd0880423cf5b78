"""Derivatives of a QNode's results on any device: parameter-shift rules, and tests by inserted Pauli words.

A gate exp(-i t K) whose generator's eigenvalues have R distinct differences needs 2R shifted circuits (Wierichs et al.
2022, arXiv:2107.12390): two for RX, four for CRX. All shifts of all inputs are settings of one circuit, which is one
broadcast tape on devices that take one. A generator without a well-conditioned rule is taken word by word,
K = sum_k c_k P_k: either by circuits with exp(-+ i pi/4 P_k) behind the gate, two per word (Mitarai et al. 2018,
arXiv:1803.00745), or by a Hadamard test, one circuit per word and one auxiliary wire (Li et al. 2017,
arXiv:1608.00677). A simulator that differentiates exact results by itself needs no rule: one circuit per input.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.circuit.observables import refuse_computed
from fubini.circuit.pauli import PauliSum, bits_of, dense, on_bits, words_commute
from fubini.circuit.tape import GateTape
from fubini.devices.executor import Array, Executor
from fubini.devices.gradient import Gradient, Terms
from fubini.devices.insertion import check_auxiliary, controlled_word, labelled_letters, prepared
from fubini.devices.job import Job, together
from fubini.devices.readout import Estimates, Readout, readout_of, with_auxiliary
from fubini.devices.sweep import Sweep, repeated
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real

Rule = Literal["shift", "hadamard", "adjoint"]

_MAX_DENSE_WIRES = 8
_MAX_WORDS = (
    12  # 2^12 signs of commuting words; more words have more frequencies than a rule should have
)


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
    bits = bits_of(support)
    if len(bits) <= _MAX_DENSE_WIRES:
        words = on_bits(tuple(terms), bits)
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
    """Say whether a generator has a parameter-shift rule of ten correct digits."""
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
    rule: Rule | None = None,
    shifts: Sequence[Sequence[float]] | None = None,
    auxiliary: Any = None,
    base: Estimates | None = None,
) -> Job[Gradient]:
    """Return the job that finds a circuit's derivatives by its trainable angles.

    With S settings of the readout (1 for exact results; with shots, the number of product bases that the observables
    need) and B inputs it runs S B circuits for every term of every angle's rule: 2R for R frequencies; 1 (Hadamard
    test) or 2 per Pauli word of a generator without a rule; and S B more where the values are wanted or the QNode
    measures a variance. By the adjoint method it runs B circuits.

    Args:
        tape: The circuit.
        shots: Of every circuit; None for exact results.
        angles: Trainable angles to differentiate by; None for all. Others have derivative 0.
        values: Whether the results of the circuit itself are wanted.
        rule: ``"shift"``; ``"hadamard"`` for one Hadamard test per Pauli word of every generator; ``"adjoint"`` for the
            device's own derivatives of exact expectation values and variances. None: the last where the device has
            them and does not broadcast, otherwise the first.
        shifts: For every trainable angle as many positive shifts as it has frequencies, in radians, or none for the
            equidistant ones; for ``rule="shift"``, which they imply.
        auxiliary: Label of a wire that the circuit does not use, for Hadamard tests; without one, gates without a
            shift rule take two circuits per word.
        base: What ``values_job`` gave for this circuit, which is then not run again.

    Returns:
        The job.

    Raises:
        UnsupportedCircuitError: For measurements without a rule; when it runs, for ``rule="adjoint"`` on a device that
            has no derivatives of this circuit.
        ValueError: For an unknown rule, an auxiliary wire that is missing or in use, fewer than 2 shots, or impossible shifts.
    """
    refuse_computed(tape.measurements)
    if rule not in (None, "shift", "hadamard", "adjoint"):
        raise ValueError(f"rule: expected 'shift', 'hadamard', 'adjoint' or None, got {rule!r}")
    if rule == "adjoint" and shots is not None:
        raise ValueError(f"shots: expected None for rule='adjoint', got {shots!r}")
    if shifts is not None and rule not in (None, "shift"):
        raise ValueError(f"shifts: expected None for rule={rule!r}, got shifts")
    check_shots(shots)
    if auxiliary is not None or rule == "hadamard":
        check_auxiliary(auxiliary, tape, "rule='shift'")
    readout = readout_of(tape, shots)
    trainable = tape.trainable
    chosen = list(range(len(trainable))) if angles is None else list(angles)
    generators = tape.generators(trainable)
    if rule == "adjoint":
        return _required(_adjoint_job(tape, readout, chosen, values, base))
    shiftable = [j for j in chosen if rule != "hadamard" and has_rule(generators[j])]
    by_words = [j for j in chosen if j not in set(shiftable)]

    moved = [list(shifts[j]) for j in shiftable] if shifts is not None else []
    plan = _core.ShiftPlan(
        shiftable, [list(frequencies(generators[j]) or ()) for j in shiftable], moved
    )
    with_base = base is None and (values or bool(readout.squared))
    rows, at = tape.rows, tape.at
    settings = plan.angles(at)
    if with_base:
        settings = np.concatenate([settings, at[None]])

    # For every job the angles of its circuits, and their coefficients.
    blocks: list[tuple[Any, Any, Job[Estimates]]] = []
    if len(settings):
        job = readout.job(at_settings(tape, settings), (len(settings), rows), shots)
        blocks.append((np.array(plan.index, dtype=np.int64), np.array(plan.coefficient), job))
    for j in by_words:
        for coefficient, job in _word_jobs(tape, j, generators[j], readout, shots, auxiliary):
            blocks.append((np.array([j]), np.array([coefficient]), job))

    def gradient(found: tuple[Estimates, ...]) -> Gradient:
        terms, own = [], base
        for (index, weight, _), seen in zip(blocks, found, strict=True):
            if with_base and own is None:  # the last one is the circuit itself
                own, seen = seen.at(-1), seen.at(slice(-1))
            terms.append(Terms(index, weight, seen))
        if own is None:
            slopes = np.broadcast_to(readout.linear, (rows, *readout.linear.shape))
        else:
            slopes = readout.slopes(own.features)
        results = own.results if values and own is not None else None
        by_features = np.zeros((rows, readout.linear.shape[1], len(trainable)))
        for block in terms:
            features = np.ascontiguousarray(block.seen.features)
            by_features += _core.shift_sum(
                block.angles, block.coefficients, features, len(trainable)
            )
        return Gradient(results, by_features, own, tuple(terms), slopes)

    def choose(executor: Executor) -> Job[Gradient]:
        if executor.broadcasts:  # all shifts in one tape are quicker than derivatives by input
            return shifted
        other = _adjoint_job(tape, readout, chosen, values, base)
        return other if executor.differentiates(other.sweeps[0]) else shifted

    shifted = together(*(job for _, _, job in blocks)).then(gradient)
    if rule is None and shifts is None and shots is None:
        return replace(shifted, choose=choose)
    return shifted


def _word_jobs(
    tape: GateTape,
    angle: int,
    generator: PauliSum,
    readout: Readout,
    shots: int | None,
    auxiliary: Any,
) -> list[tuple[float, Job[Estimates]]]:
    """Coefficients and circuits that add up to the derivative by one angle; estimates have a leading axis of length 1."""
    place = tape.trainable[angle] + 1
    before, behind = tape.operations[:place], tape.operations[place:]
    shape = (1, tape.rows)
    jobs = []
    for x, z, coefficient in generator:
        if not x | z:
            continue
        letters = labelled_letters(x, z, tape)
        if auxiliary is not None:
            # Branches psi and P psi of the auxiliary qubit: <Y O> = Im <psi|O|P psi>, and d<O>/dt is twice that.
            circuit = [
                *prepared(before, qml.Hadamard(auxiliary)),
                controlled_word(letters, auxiliary),
                *behind,
                qml.adjoint(qml.S(auxiliary)),
                qml.Hadamard(auxiliary),
            ]
            job = with_auxiliary(readout, auxiliary).job(circuit, shape, shots)
            jobs.append((2.0 * coefficient, job))
            continue
        for sign in (1.0, -1.0):
            turn = qml.PauliRot(sign * np.pi / 2, "".join(letters.values()), wires=list(letters))
            jobs.append((sign * coefficient, readout.job([*before, turn, *behind], shape, shots)))
    return jobs


def _adjoint_job(
    tape: GateTape, readout: Readout, angles: Sequence[int], values: bool, base: Estimates | None
) -> Job[Gradient]:
    """One run of the circuit for every input, which the device differentiates."""
    (setting,) = readout.settings
    chosen = sorted(angles)
    linear = all(isinstance(m, qml.measurements.ExpectationMP) for m in setting.measurements)
    by = tuple(tape.trainable[j] for j in chosen) if linear else ()
    sweep = Sweep(tuple(tape.operations), setting.measurements, tape.rows, None, by)

    def finish(answers: list[list[Array]]) -> Gradient:
        ((results, derivatives),) = answers
        own = Estimates(readout, (results,), None)
        known = own if base is None else base
        by_features = np.zeros((*results.shape, len(tape.trainable)))
        by_features[..., chosen] = derivatives
        slopes = readout.slopes(known.features)
        return Gradient(own.results if values else None, by_features, known, (), slopes)

    return Job((sweep,), finish)


def _required(job: Job[Gradient]) -> Job[Gradient]:
    """The same, refused where the device cannot do it."""

    def choose(executor: Executor) -> Job[Gradient]:
        if not executor.differentiates(job.sweeps[0]):
            raise UnsupportedCircuitError(
                f"device: {executor.device.name} has no derivatives of this circuit by the adjoint method; use rule='shift'"
            )
        return job

    return replace(job, choose=choose)


def values_job(tape: GateTape, *, shots: int | None = None) -> Job[Estimates]:
    """Return the job that runs the circuit itself, once per input and setting of the readout.

    Args:
        tape: The circuit.
        shots: Of every circuit; None for exact results.

    Returns:
        The job; its result has features of shape (1 or batch, features).
    """
    check_shots(shots)
    return readout_of(tape, shots).job(tape.operations, (tape.rows,), shots)


def check_shots(shots: int | None) -> None:
    """Raise a ValueError unless shots is None or an integer of at least 2.

    Raises:
        ValueError: Otherwise; one shot has no variance.
    """
    if shots is not None and (isinstance(shots, bool) or int(shots) != shots or shots < 2):
        raise ValueError(f"shots: expected None or an integer >= 2, got {shots!r}")


def at_settings(tape: GateTape, settings: Real) -> list[Any]:
    """Return the operations at many settings of the trainable angles, every one with all inputs.

    Args:
        tape: The circuit.
        settings: (settings, 1 or batch, trainable angles); the operations have as many rows as these together.
    """
    count, batch = settings.shape[:2]
    own = set(tape.trainable)
    return [
        op if i in own else repeated(op, count)
        for i, op in enumerate(tape.with_angles(settings.reshape(count * batch, -1)))
    ]


def refuse_without_rule(tape: GateTape, what: str) -> list[tuple[float, ...]]:
    """Return the frequencies of all trainable angles, which must have shift rules.

    Raises:
        UnsupportedCircuitError: Names the first gate without a rule.
    """
    found = []
    for i, generator in zip(tape.trainable, tape.generators(tape.trainable), strict=True):
        if not has_rule(generator):
            raise UnsupportedCircuitError(
                f"qnode: {tape.gates[i].operation.name} has no well-conditioned parameter-shift rule, which {what} "
                "needs; decompose it into gates with fewer frequencies"
            )
        found.append(frequencies(generator) or ())
    return found
