"""Second derivatives by shifting two angles: of a QNode's results, and of fidelities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fubini import _core
from fubini.circuit.observables import refuse_computed
from fubini.circuit.tape import GateTape
from fubini.devices.job import Job, Measured
from fubini.devices.readout import Estimates, readout_of
from fubini.devices.shifts import at_settings, check_shots, refuse_without_rule
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real

Setting = tuple[tuple[int, float], ...]  # (angle, shift) of what is shifted


@dataclass(frozen=True)
class PairPlan:
    """Settings whose results add up to second derivatives; settings that two derivatives need appear once.

    Attributes:
        settings: What is shifted, in order; the circuit itself is ().
        pairs: (entries, 2), angles i <= j of every second derivative.
        entry: For every term its entry.
        setting: For every term its setting.
        coefficient: For every term.
    """

    settings: tuple[Setting, ...]
    pairs: npt.NDArray[np.int64]
    entry: npt.NDArray[np.int64]
    setting: npt.NDArray[np.intp]
    coefficient: Real

    def angles(self, at: Real) -> Real:
        """Return all shifted angles, (settings, batch, angles), for angles (batch, angles)."""
        result = np.repeat(at[None], len(self.settings), axis=0)
        for row, setting in zip(result, self.settings, strict=True):
            for angle, shift in setting:
                row[:, angle] += shift
        return result

    def matrices(self, values: Real, count: int) -> Real:
        """Return (batch, outputs, count, count) for values (settings, batch, outputs)."""
        taken = np.ascontiguousarray(values[self.setting])
        found = _core.shift_sum(self.entry, self.coefficient, taken, len(self.pairs))
        result = np.zeros((*found.shape[:2], count, count))
        i, j = self.pairs.T
        result[..., i, j] = found
        result[..., j, i] = found
        return result


def pair_plan(
    frequencies: Sequence[Sequence[float]], wanted: Sequence[tuple[int, int]] | None = None
) -> PairPlan:
    """Return the plan of second derivatives.

    Two two-term rules need four settings for two angles, and one besides the circuit itself for one angle: an
    expectation value is periodic in the angle, so that +pi and -pi are the same setting.

    Args:
        frequencies: Of every angle, positive and distinct.
        wanted: Pairs of angles (i, j), i <= j; None: all.

    Returns:
        The plan; ``matrices`` of it have zeros at other pairs.
    """
    rules = [_core.shift_rule(list(f)) for f in frequencies]
    periods = [_period(f) for f in frequencies]
    numbers: dict[Setting, int] = {}
    shifts: list[Setting] = []
    pairs: list[tuple[int, int]] = []
    total: dict[tuple[int, int], float] = {}
    if wanted is None:
        wanted = [(i, j) for i in range(len(rules)) for j in range(i, len(rules))]
    for i, j in wanted:
        entry = len(pairs)
        pairs.append((i, j))
        for a, s in rules[i]:
            for b, t in rules[j]:
                moved = ((i, s), (j, t)) if i != j else _single(i, s + t, periods[i])
                key = tuple((k, round(shift, 10)) for k, shift in moved)
                if key not in numbers:
                    numbers[key] = len(shifts)
                    shifts.append(moved)
                term = (entry, numbers[key])
                total[term] = total.get(term, 0.0) + a * b
    terms = list(total)
    return PairPlan(
        tuple(shifts),
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.array([entry for entry, _ in terms], dtype=np.int64),
        np.array([setting for _, setting in terms], dtype=np.intp),
        np.array(list(total.values())),
    )


def _period(frequencies: Sequence[float]) -> float | None:
    """2 pi / omega where all frequencies are multiples of the smallest."""
    if not len(frequencies):
        return None
    multiples = np.asarray(frequencies) / min(frequencies)
    regular = np.abs(multiples - np.round(multiples)).max() < 1e-9
    return 2.0 * np.pi / min(frequencies) if regular else None


def _single(angle: int, shift: float, period: float | None) -> Setting:
    if period is not None:  # to (-period/2, period/2]
        shift -= period * np.ceil(np.round(shift / period - 0.5, 9))
    return ((angle, shift),) if abs(shift) > 1e-12 else ()


def hessian_job(tape: GateTape, *, shots: int | None = None) -> Job[Measured]:
    """Return the job that finds second derivatives of expectation values and probabilities.

    For P angles with two-term rules it runs 2 P (P - 1) + P + 1 circuits for every input and setting of the readout.

    Args:
        tape: The circuit.
        shots: Of every circuit; None for exact results.

    Returns:
        The job; its result is (1 or batch, outputs, angles, angles).

    Raises:
        UnsupportedCircuitError: For variances, and gates without a shift rule.
        ValueError: For fewer than 2 shots.
    """
    refuse_computed(tape.measurements)
    check_shots(shots)
    readout = readout_of(tape, shots)
    if readout.squared:
        raise UnsupportedCircuitError(
            "qnode: second derivatives of variances are not available; measure qml.expval(O) and qml.expval(O @ O)"
        )
    found = refuse_without_rule(tape, "a second derivative")
    plan = pair_plan(found)
    rows, count = tape.rows, len(found)
    moved = plan.angles(tape.at)

    def hessian(seen: Estimates) -> Measured:
        values = plan.matrices(readout.results(seen.features), count)
        noise = seen.variance(readout.linear)
        return Measured(values, squared(plan).matrices(noise, count))

    return readout.job(at_settings(tape, moved), (len(moved), rows), shots).then(hessian)


def squared(plan: PairPlan) -> PairPlan:
    """Return the plan that adds up variances: the same with squared coefficients."""
    return replace(plan, coefficient=plan.coefficient**2)
