"""How the damping of a natural-gradient step is chosen, as small objects without a model in them.

A damping policy answers ``damping_at(step)`` and hears ``update(actual, predicted, share)`` after each step. Sources: Moré (1978), *The Levenberg-Marquardt algorithm*, for the ratio rule; Martens and Grosse
(2015), arXiv:1503.05671, sections 6.4 and 6.5, for its use with a Fisher matrix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

from fubini.optim.checks import check_count
from fubini.solvers.damping import Damping, as_damping

_FIRST = "_first_state"  # of a policy that belongs to an optimizer
_LAM = 3e-3  # in units of a metric
_TINY = 1e-30  # bounds of the scale, so that it stays a number whatever happens


@runtime_checkable
class DampingPolicy(Protocol):
    """What the optimizer asks of a policy that chooses the damping."""

    def damping_at(self, step: int) -> Damping:
        """Return the damping for the step, counted from 0."""

    def update(self, actual: float, predicted: float, share: float = 1.0) -> bool:
        """Learn from the last step's loss reductions; return whether to keep that step."""

    def state_dict(self) -> dict[str, float]:
        """Return what must be saved to go on later: plain numbers."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""

    @property
    def needs_closure(self) -> bool:
        """Whether ``update`` must be called, for which the loss after the step has to be computed."""

    @property
    def scale(self) -> float:
        """The curvature of the loss in units of the metric: the step is ``lr / scale * (G + D)^-1 g``."""

    @property
    def tries(self) -> int:
        """How many steps may be tried before the optimizer gives up for this time."""


def predicted_reduction(lr: float, slope: float, curvature: float) -> float:
    """Return by how much the quadratic model says that the loss falls in a step ``theta - lr * d``.

    Args:
        lr: Step length.
        slope: ``g . d``, the gradient times the direction.
        curvature: ``d . G d`` with the metric without damping.

    Returns:
        ``lr * slope - lr^2 / 2 * curvature``.
    """
    return lr * slope - 0.5 * lr * lr * curvature


class _Unjudged:
    """What policies have in common that learn nothing from steps."""

    needs_closure = False
    scale = 1.0
    tries = 1

    def update(self, actual: float, predicted: float, share: float = 1.0) -> bool:
        """Return true: every step is kept."""
        return True

    def state_dict(self) -> dict[str, float]:
        """Return nothing: there is no state: the optimizer counts the steps."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Do nothing."""


@dataclass
class Tikhonov(_Unjudged):
    """The same damping in every step.

    Args:
        lam: A number (absolute), or :class:`~fubini.Relative` or :class:`~fubini.Diagonal` of one.

    Example:
        >>> import fubini
        >>> fubini.Tikhonov(0.01).damping_at(7)
        Absolute(lam=0.01)
    """

    lam: Any = 1e-3

    def __post_init__(self) -> None:
        _check_strength(as_damping(self.lam))

    def damping_at(self, step: int) -> Damping:
        """Return the damping, whatever the step."""
        return as_damping(self.lam)


@dataclass
class Schedule(_Unjudged):
    """A damping that depends on the number of the step.

    Args:
        function: Maps the step, counted from 0, to a number, :class:`~fubini.Relative` or :class:`~fubini.Diagonal`.

    Example:
        >>> import fubini
        >>> lam = fubini.Schedule(lambda step: 0.1 * 0.9**step)
        >>> lam.damping_at(0), lam.damping_at(2)
        (Absolute(lam=0.1), Absolute(lam=0.08100000000000002))
    """

    function: Callable[[int], Any]

    def damping_at(self, step: int) -> Damping:
        """Return the function's value, checked.

        Args:
            step: Number of the step, from 0.

        Returns:
            The damping.
        """
        damping = as_damping(self.function(step))
        _check_strength(damping)
        return damping


@dataclass
class LevenbergMarquardt:
    """Less damping after a step that kept its promise, more after one that did not; and the scale of the metric.

    With ``rho = actual / predicted``: above ``upper`` the model of the loss, ``scale * (G + D)``, is made flatter by the
    factor ``decrease``; below ``lower`` it is made steeper by the inverse; below ``accept`` the step is taken back and
    tried again. A loss that is not a number is the worst step of all. A prediction that is not a positive number says
    nothing about the model, so it only counts as bad when the loss did not fall.

    Which of the two numbers moves is decided by what held the step back. With ``share = d.D d / d.(G + D) d``, lam is
    multiplied by ``factor^share`` and the scale by ``factor^(1 - share)``: where the damping made the step what it is,
    the damping changes, and where the metric did, the scale between the metric and the curvature of the loss, which
    nobody knows beforehand for the Fubini-Study metric. For a Fisher matrix, in units of the loss, it is of order 1.

    With ``metric="energy"`` the metric is the curvature of the loss itself, so that there is no scale to be found: only lam
    changes. It begins at the largest curvature along an axis, with bounds in the same unit, and is raised, at no cost in
    evaluations, until the damped curvature is positive definite.

    Trial steps are judged by a forward pass alone: while the closure runs for one, ``loss.backward()`` does nothing and torch
    builds no graph. A closure for which that will not do, because it uses gradients to compute the loss, is noticed and run
    as it is. The metric of a step is computed once, however many of its lengths are refused. Decreases below the rounding of
    a loss in double precision are no reason to refuse a step.

    Use it with ``lr=1``: a smaller lr is first of all a slower start. The ratio and the retries are those of Moré (1978,
    *The Levenberg-Marquardt algorithm: implementation and theory*).

    Args:
        lam: First strength, above 0: a number, or :class:`~fubini.Relative` or :class:`~fubini.Diagonal` of one. None
            chooses it: 3e-3, and with ``metric="energy"`` the largest curvature along an axis in the first step.
        decrease: Factor between 0 and 1.
        lower: Ratio below which the model gets steeper.
        upper: Ratio above which it gets flatter.
        accept: Ratio below which the step is refused; ``-inf`` keeps every step with a finite loss.
        minimum: Smallest strength; where lam was chosen for an energy, in units of what was chosen.
        maximum: Largest strength, likewise.
        tries: How many steps one call of the optimizer's ``step`` may try, each with one more evaluation of the
            closure; if all are refused, the parameters stay as they were.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> energy = fubini.compiled(circuit)
        >>> w = torch.nn.Parameter(torch.tensor([0.4, 0.3], dtype=torch.float64))
        >>> opt = fubini.QNGOptimizer([w], 1.0, approx=None, lam=fubini.LevenbergMarquardt())
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = energy(w)
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(40):
        ...     loss = opt.step(closure)
        >>> print(f"{loss.item():.6f}")
        -1.000000
    """

    lam: Any = None
    decrease: float = 0.5
    lower: float = 0.25
    upper: float = 0.75
    accept: float = 0.0
    minimum: float = 1e-12
    maximum: float = 1e6
    tries: int = 10
    needs_closure = True

    def __post_init__(self) -> None:
        start = as_damping(_LAM if self.lam is None else self.lam)
        _check_strength(start)
        self._unit = 0.0 if self.lam is None else 1.0  # of the bounds; 0 until it is known
        self._kind = type(start)
        self._strength = float(start.lam)
        self._scale = 1.0
        if not 0.0 < self.decrease < 1.0:
            raise ValueError(f"decrease: expected a number between 0 and 1, got {self.decrease!r}")
        if not self.accept <= self.lower < self.upper:
            raise ValueError(
                "accept, lower, upper: expected accept <= lower < upper, "
                f"got {self.accept!r}, {self.lower!r}, {self.upper!r}"
            )
        if not 0.0 < self.minimum <= self._strength <= self.maximum < math.inf:
            raise ValueError(
                "lam: expected a number above 0 between minimum and maximum, "
                f"got {self._strength!r} with {self.minimum!r} and {self.maximum!r}"
            )
        check_count("tries", self.tries)

    @property
    def strength(self) -> float:
        """The present strength."""
        return self._strength

    @property
    def scale(self) -> float:
        """The curvature of the loss in units of the metric, as far as it is known."""
        return self._scale

    def begin(self, unit: float) -> None:
        """Take the curvature of the loss for the first strength, once, where none was given.

        Args:
            unit: The largest curvature along an axis; where it is not above 0, the first strength stays.
        """
        if self._unit == 0.0:
            self._unit = 1.0
            if 0.0 < unit < math.inf:
                self._strength = self._unit = unit

    def _bounds(self, unit: float) -> tuple[float, float]:
        return self.minimum * (unit or 1.0), self.maximum * (unit or 1.0)

    def damping_at(self, step: int) -> Damping:
        """Return the present damping, whatever the step."""
        return self._kind(self._strength)

    def update(self, actual: float, predicted: float, share: float = 1.0) -> bool:
        """Adapt the strength and the scale.

        Args:
            actual: Loss before the step minus loss after it, on the same data; NaN or infinity if that is what the loss
                became.
            predicted: The same by the quadratic model, see :func:`predicted_reduction`.
            share: Share of the damping in the damped metric along the step, between 0 and 1.

        Returns:
            Whether to keep the step.
        """
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 1.0
        if not math.isfinite(actual):
            self._change(1.0 / self.decrease, share)
            return False
        if predicted > 0.0 and math.isfinite(predicted):
            ratio = actual / predicted
        elif actual > 0.0:  # it went well, but not because of the model: all is kept
            return True
        else:
            ratio = -math.inf
        if ratio > self.upper:
            self._change(self.decrease, share)
        elif ratio < self.lower:
            self._change(1.0 / self.decrease, share)
        return ratio >= self.accept

    def _change(self, factor: float, share: float) -> None:
        lowest, highest = self._bounds(self._unit)
        self._strength = min(max(self._strength * factor**share, lowest), highest)
        self._scale = min(max(self._scale * factor ** (1.0 - share), _TINY), 1.0 / _TINY)

    def state_dict(self) -> dict[str, float]:
        """Return the present strength and scale, and the unit of the bounds."""
        return {"strength": self._strength, "scale": self._scale, "unit": self._unit}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the strength and the scale.

        Args:
            state: What ``state_dict`` returned.

        Raises:
            ValueError: If the strength is missing or not between ``minimum`` and ``maximum``, or the scale is no
                positive number.
        """
        strength, scale = float(state.get("strength", math.nan)), float(state.get("scale", 1.0))
        unit = float(state.get("unit", 1.0))
        if not 0.0 <= unit < math.inf:
            raise ValueError(f"state: expected a unit >= 0, got {state!r}")
        lowest, highest = self._bounds(unit)
        if not lowest <= strength <= highest:
            raise ValueError(
                f"state: expected a strength between {lowest} and {highest}, got {state!r}"
            )
        if not 0.0 < scale < math.inf:
            raise ValueError(f"state: expected a scale above 0, got {state!r}")
        self._strength, self._scale, self._unit = strength, scale, unit


def own_policy(policy: DampingPolicy) -> DampingPolicy:
    """Return a policy for one more optimizer: the first gets the object itself, every other one as it was then.

    Args:
        policy: What a caller passed to the optimizer.
    """
    attributes = getattr(policy, "__dict__", None)
    if attributes is None:
        return copy.copy(policy)
    if _FIRST not in attributes:
        attributes[_FIRST] = policy.state_dict()
        return policy
    other = copy.copy(policy)
    other.load_state_dict(dict(attributes[_FIRST]))
    return other


def is_policy(value: Any) -> TypeGuard[DampingPolicy]:
    """Return whether a value is a damping policy; asking the protocol takes long, and numbers are the usual case.

    Args:
        value: What a caller passed as ``lam`` or ``damping``.
    """
    return not isinstance(value, int | float | Damping) and isinstance(value, DampingPolicy)


def as_policy(value: Any) -> DampingPolicy:
    """Return a damping policy: itself, or :class:`Tikhonov` of a number or a :class:`~fubini.Damping`.

    Args:
        value: What a caller passed as ``lam`` or ``damping``.

    Returns:
        The policy.
    """
    return value if is_policy(value) else Tikhonov(value)


def _check_strength(damping: Damping) -> None:
    values = damping.values(())
    if values.size != 1:
        raise ValueError(f"lam: expected one number, got shape {values.shape}")
