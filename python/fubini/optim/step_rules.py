"""How the length of a natural-gradient step is chosen, as small objects without a model in them.

A rule is asked for a factor. Source: Nocedal and Wright, *Numerical Optimization*, algorithm 3.1 for backtracking and
chapter 4 for trust regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fubini.optim.checks import check_count


@dataclass(frozen=True)
class TrustRegion:
    """Shortens steps that are longer than a radius in the metric's norm, ``sqrt(step . G step)``.

    In the Fubini-Study metric that is the angle in radians that the state moves, to first order. The norm is the whole
    model's, so that no layer takes more than its share. Steps of K-FAC are cut like this by Wu et al. (2017,
    arXiv:1708.05144, section 4).

    Args:
        radius: Largest length, above 0.

    Raises:
        ValueError: If the radius is not a positive number.

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
        >>> opt = fubini.QNGOptimizer([w], 1.0, lam=1e-6, step_rule=fubini.TrustRegion(0.1))
        >>> energy(w).backward()
        >>> opt.step()
        >>> print(f"{opt.diagnostics()['step_length']:.3f}")
        0.100
    """

    radius: float

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < math.inf:
            raise ValueError(f"radius: expected a number above 0, got {self.radius!r}")

    def factor(self, lr: float, curvature: float) -> float:
        """Return what to multiply the step ``lr * d`` with.

        Args:
            lr: Step length.
            curvature: ``d . G d``, summed over all blocks; rounding may make it slightly negative.

        Returns:
            A number in (0, 1].

        Raises:
            ValueError: If the curvature or lr is not a number.
        """
        length = abs(lr) * math.sqrt(max(curvature, 0.0)) if math.isfinite(curvature) else math.nan
        if not math.isfinite(length):
            raise ValueError(
                f"curvature: expected finite numbers, got {curvature!r} with lr {lr!r}; check the metric and gradient"
            )
        return 1.0 if length <= self.radius else self.radius / length


@dataclass(frozen=True)
class LineSearchResult:
    """What a line search found.

    Attributes:
        factor: What to multiply the step with; 0 if no length was good enough.
        loss: The loss there.
        evaluations: How often the loss was computed.
    """

    factor: float
    loss: float
    evaluations: int

    @property
    def success(self) -> bool:
        """Whether a length was found."""
        return self.factor > 0.0


@dataclass(frozen=True)
class Armijo:
    """Backtracking: shrink the step until the loss falls by a given share of what the slope promises (Armijo 1966).

    Args:
        share: Fraction of the promised reduction that is enough, between 0 and 1.
        shrink: Factor for the next try, between 0 and 1.
        max_evaluations: Give up after so many losses.

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
        >>> opt = fubini.QNGOptimizer([w], 1.0, lam=1e-2, step_rule=fubini.Armijo())
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = energy(w)
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(40):
        ...     loss = opt.step(closure)
        >>> print(f"{loss.item():.4f}")
        -1.0000
    """

    share: float = 1e-4
    shrink: float = 0.5
    max_evaluations: int = 20

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("shrink", self.shrink)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
        check_count("max_evaluations", self.max_evaluations)

    def search(
        self, loss_at: Callable[[float], float], loss: float, lr: float, slope: float
    ) -> LineSearchResult:
        """Find a factor for the step ``lr * d``.

        Args:
            loss_at: The loss when the step is multiplied with a factor.
            loss: The loss at factor 0.
            lr: Step length.
            slope: ``g . d``, the gradient times the direction.

        Returns:
            The first factor of 1, shrink, shrink^2, ... with ``loss_at(factor) <= loss - share * factor * lr * slope``.
            Factor 0 if there is none, or if the direction does not lead down; a loss of NaN or infinity, of either sign, is never good
            enough.

        Raises:
            ValueError: If the loss at factor 0 is not a number.
        """
        if not math.isfinite(loss):
            raise ValueError(f"loss: expected a finite number, got {loss!r}")
        if not lr * slope > 0.0 or not math.isfinite(lr * slope):
            return LineSearchResult(0.0, loss, 0)
        factor = 1.0
        for evaluation in range(1, self.max_evaluations + 1):
            value = loss_at(factor)
            if math.isfinite(value) and value <= loss - self.share * factor * lr * slope:
                return LineSearchResult(factor, value, evaluation)
            factor *= self.shrink
        return LineSearchResult(0.0, loss, self.max_evaluations)
