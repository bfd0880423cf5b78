"""Which step is taken: damping policies, trust region and line search around a proposal."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from fubini.blocks import OperatorBlock, distributed
from fubini.errors import NumericalError
from fubini.optim.closure import Judge
from fubini.optim.diagnostics import StepRecord
from fubini.optim.energy_sum import EnergyJudge
from fubini.optim.policies import DampingPolicy, LevenbergMarquardt
from fubini.optim.proposal import Part
from fubini.optim.step_rules import Armijo, TrustRegion
from fubini.solvers.damping import Damping

_RAISES = 100  # of the damping, before the curvature of an energy is positive
_NOISE = 4e-15  # of a loss in double precision, relative


def take_step(
    record: StepRecord,
    damping_of: Callable[[Any], Damping],
    policy: DampingPolicy | None,
    rule: TrustRegion | Armijo | None,
    judge: Judge | EnergyJudge | None,
    exact: bool = False,
) -> None:
    """Try steps until one is good enough, and take it; else the parameters stay as they were, to the bit.

    Args:
        record: Has the proposal, and receives what became of it.
        damping_of: The damping of a group.
        policy: Chooses the damping and, with a judge, whether to keep a step.
        rule: Chooses the length.
        judge: Evaluates the loss again, for policies and rules that ask for it.
        exact: Whether the metric is the curvature of the loss, which has a scale of its own and need not be positive.

    Raises:
        NumericalError: If the loss before the step or the last change that was tried is not finite, or a block is
            singular.
    """
    proposal = record.proposal
    objective = judge.objective(record.loss) if judge is not None else 0.0
    searched = isinstance(rule, Armijo)
    tries = policy.tries if policy is not None else 1
    record.accepted = False
    if exact and isinstance(policy, LevenbergMarquardt):
        policy.begin(curvature_unit(proposal.parts))
    # What costs no evaluation is no try: negative curvature that the damping does not make up for yet.
    attempt, left = 0, _RAISES if exact else 0
    while attempt < tries:
        start = time.perf_counter()
        scale = policy.scale if policy is not None and not exact else 1.0
        try:
            # Against the momentum of a step that was refused, no damping helps.
            proposal.make(damping_of, scale, with_momentum=attempt == 0)
        except NumericalError:
            if policy is None or not policy.needs_closure or (attempt == tries - 1 and not left):
                raise
            policy.update(float("nan"), float("nan"))
            record.solve_seconds += time.perf_counter() - start
            attempt, left = (attempt, left - 1) if left else (attempt + 1, 0)
            continue
        attempt += 1
        if isinstance(rule, TrustRegion):
            proposal.shorten(rule.factor(1.0, proposal.curvature))
        record.damping = proposal.strength
        if judge is None:
            operators = any(isinstance(part.block, OperatorBlock) for part in proposal.parts)
            if operators and distributed.active():
                # For the diagnostics: later it would need all processes at once.
                _ = proposal.curvature
            record.accepted = True
        elif isinstance(rule, Armijo):
            _search(record, rule, judge, objective)
        else:
            assert policy is not None
            predicted, share = proposal.predicted, 1.0 if exact else proposal.share
            proposal.save()
            record.actual = objective - judge.at(proposal, 1.0)
            record.evaluations += 1
            # At a minimum, rounding says nothing about the step.
            noise = _NOISE * abs(objective)
            record.accepted = (
                0.0 <= predicted <= noise and abs(record.actual) <= noise
            ) or policy.update(record.actual, predicted, share)
            if not record.accepted:
                proposal.restore()
        record.solve_seconds += time.perf_counter() - start
        if record.accepted or searched:
            break
    start = time.perf_counter()
    if record.accepted:
        if judge is None:  # else the last trial was this step
            proposal.apply()
        proposal.remember()
    record.update_seconds = time.perf_counter() - start


def curvature_unit(parts: Sequence[Part]) -> float:
    """Return the first damping of an energy's curvature: its largest size along an axis, or what makes a step of 1 rad.

    Args:
        parts: What moves; the blocks are the curvature.
    """
    sizes = [float(part.block.diagonal().max()) for part in parts if part.damped]
    square = sum(float(part.gradient @ part.gradient) for part in parts)
    return max([math.sqrt(square), *sizes])


def _search(record: StepRecord, rule: Armijo, judge: Judge | EnergyJudge, objective: float) -> None:
    proposal = record.proposal
    proposal.save()
    found = rule.search(lambda factor: judge.at(proposal, factor), objective, 1.0, proposal.slope)
    record.accepted = found.success
    record.evaluations += found.evaluations
    record.actual = objective - found.loss
    if found.success:
        proposal.shorten(found.factor)
    else:
        proposal.restore()
