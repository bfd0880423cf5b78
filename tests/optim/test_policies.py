"""Damping and step-length policies: their rules, bounds, and what they make of NaN."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import fubini
from fubini.optim.policies import (
    DampingPolicy,
    LevenbergMarquardt,
    Schedule,
    Tikhonov,
    as_policy,
    predicted_reduction,
)
from fubini.optim.step_rules import Armijo, TrustRegion


def test_tikhonov_and_schedule():
    assert Tikhonov(0.1).damping_at(7) == fubini.Absolute(0.1)
    assert Tikhonov(fubini.Relative(0.1)).damping_at(0) == fubini.Relative(0.1)
    schedule = Schedule(lambda step: fubini.Diagonal(1.0 / (1 + step)))
    assert schedule.damping_at(0) == fubini.Diagonal(1.0)
    assert schedule.damping_at(3) == fubini.Diagonal(0.25)
    with pytest.raises(ValueError, match="damping: expected finite numbers >= 0"):
        Schedule(lambda step: -1.0).damping_at(0)
    for policy in (Tikhonov(0.1), schedule):
        assert policy.update(math.nan, 1.0)
        assert not policy.needs_closure
        policy.load_state_dict(policy.state_dict())


def test_as_policy():
    assert as_policy(0.5) == Tikhonov(0.5)
    assert as_policy(fubini.Relative(0.5)).damping_at(0) == fubini.Relative(0.5)
    policy = LevenbergMarquardt(0.5)
    assert as_policy(policy) is policy
    assert isinstance(policy, DampingPolicy)
    with pytest.raises(TypeError, match="damping: expected a number"):
        as_policy("large")
    with pytest.raises(ValueError, match="damping: expected finite"):
        as_policy(-0.5)
    with pytest.raises(ValueError, match="damping: expected one number"):
        as_policy([0.1, 0.2])


@pytest.mark.parametrize(
    ("actual", "predicted", "factor", "kept"),
    [
        (1.0, 1.0, 0.5, True),
        (0.76, 1.0, 0.5, True),
        (0.5, 1.0, 1.0, True),
        (0.2, 1.0, 2.0, True),
        (0.0, 1.0, 2.0, True),
        (-0.1, 1.0, 2.0, False),
        (math.nan, 1.0, 2.0, False),
        (-math.inf, 1.0, 2.0, False),
        (math.inf, 1.0, 2.0, False),
        (0.5, math.nan, 1.0, True),
        (0.5, 0.0, 1.0, True),
        (0.5, -1.0, 1.0, True),
        (-0.5, -1.0, 2.0, False),
        (0.0, 0.0, 2.0, False),
        (-0.5, math.nan, 2.0, False),
    ],
)
def test_levenberg_marquardt(actual, predicted, factor, kept):
    policy = LevenbergMarquardt(fubini.Relative(0.1))
    assert policy.update(actual, predicted) is kept
    assert policy.damping_at(0) == fubini.Relative(0.1 * factor)


def test_levenberg_marquardt_bounds_and_state():
    policy = LevenbergMarquardt(1.0, minimum=0.3, maximum=3.0)
    for _ in range(5):
        policy.update(1.0, 1.0)
    assert policy.strength == 0.3
    saved = policy.state_dict()
    for _ in range(5):
        policy.update(math.nan, 1.0)
    assert policy.strength == 3.0
    policy.load_state_dict(saved)
    assert policy.strength == 0.3
    for wrong in ({}, {"strength": 10.0}, {"strength": math.nan}):
        with pytest.raises(ValueError, match="state: expected a strength between"):
            policy.load_state_dict(wrong)
    assert LevenbergMarquardt(1.0, accept=-math.inf).update(-5.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.0}, "lam: expected a number above 0"),
        ({"lam": -1.0}, "damping: expected finite"),
        ({"lam": 1e9}, "lam: expected a number above 0 between"),
        ({"decrease": 1.0}, "decrease: expected"),
        ({"lower": 0.8}, "accept, lower, upper: expected"),
        ({"accept": 0.5}, "accept, lower, upper: expected"),
        ({"minimum": 0.0}, "lam: expected"),
    ],
)
def test_levenberg_marquardt_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(**options)


@hypothesis.given(
    actual=st.floats(-10, 10),
    predicted=st.floats(1e-3, 10),
    share=st.floats(0, 1),
)
def test_levenberg_marquardt_splits_the_factor(actual, predicted, share):
    """Strength times scale moves by the whole factor, each by its share of it."""
    policy = LevenbergMarquardt(1.0)
    kept = policy.update(actual, predicted, share)
    ratio = actual / predicted
    factor = 0.5 if ratio > 0.75 else 2.0 if ratio < 0.25 else 1.0
    assert kept is (ratio >= 0)
    assert policy.strength == pytest.approx(factor**share)
    assert policy.scale == pytest.approx(factor ** (1 - share))
    other = LevenbergMarquardt(7.0)
    other.load_state_dict(policy.state_dict())
    assert (other.strength, other.scale) == (policy.strength, policy.scale)


def test_levenberg_marquardt_scale():
    policy = LevenbergMarquardt(1.0)
    policy.update(math.nan, 1.0, 0.0)
    assert (policy.strength, policy.scale) == (1.0, 2.0)
    policy.update(math.nan, math.nan, math.nan)  # nothing is known: the damping grows
    assert (policy.strength, policy.scale) == (2.0, 2.0)
    policy.load_state_dict({"strength": 0.5})  # of a version without the scale
    assert (policy.strength, policy.scale) == (0.5, 1.0)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="state: expected a scale above 0"):
            policy.load_state_dict({"strength": 0.5, "scale": scale})
    for _ in range(300):
        policy.update(math.nan, 1.0, 0.0)
    assert math.isfinite(policy.scale)
    with pytest.raises(ValueError, match="tries: expected a whole number >= 1"):
        LevenbergMarquardt(1.0, tries=0)


def test_trust_region():
    region = TrustRegion(0.1)
    assert region.factor(0.1, 1.0) == 1.0
    assert region.factor(1.0, 4.0) == pytest.approx(0.05)
    assert region.factor(1.0, -1e-18) == 1.0
    for curvature in (math.nan, math.inf):
        with pytest.raises(ValueError, match="curvature: expected finite"):
            region.factor(1.0, curvature)
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius: expected"):
            TrustRegion(radius)


def test_armijo():
    # loss (1 - t)^2 along a step of length lr * d = t with slope 2: t = 4 overshoots, t = 1 is exact
    found = Armijo().search(lambda factor: (1 - 4 * factor) ** 2, 1.0, 4.0, 2.0)
    assert (found.factor, found.loss, found.evaluations) == (0.25, 0.0, 3)
    assert found.success
    rising = Armijo(max_evaluations=5).search(lambda factor: 1.0 + factor, 1.0, 1.0, 1.0)
    assert (rising.factor, rising.loss, rising.evaluations) == (0.0, 1.0, 5)
    assert not rising.success
    for slope in (0.0, -1.0, math.nan, math.inf):
        assert Armijo().search(lambda factor: 0.0, 1.0, 1.0, slope).evaluations == 0
    holes = Armijo().search(lambda factor: math.nan if factor > 0.3 else 0.0, 1.0, 1.0, 1.0)
    assert holes.factor == 0.25
    with pytest.raises(ValueError, match="loss: expected a finite number"):
        Armijo().search(lambda factor: 0.0, math.nan, 1.0, 1.0)
    for options in ({"share": 0.0}, {"shrink": 1.0}, {"max_evaluations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            Armijo(**options)


def test_policies_train_a_quadratic():
    """Levenberg-Marquardt with exact curvature must drive its damping down and converge like Newton."""
    a = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    theta = torch.ones(3, dtype=torch.float64)
    policy = LevenbergMarquardt(10.0)
    for step in range(30):
        gradient = a @ theta
        d = fubini.solve(a, gradient, damping=policy.damping_at(step))
        promised = predicted_reduction(1.0, float(gradient @ d), float(d @ a @ d))
        new = theta - d
        if policy.update(float(theta @ a @ theta - new @ a @ new) / 2, promised):
            theta = new
    assert theta.norm() < 1e-12
    assert policy.strength < 1e-6
