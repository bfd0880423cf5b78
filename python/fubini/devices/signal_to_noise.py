"""Natural-gradient directions from noisy estimates, and how to share shots between gradient and metric.

The direction is taken in the eigenbasis of the estimated metric. A component of the gradient that is smaller than its
standard error carries no information and is filtered out smoothly, with the weight 1 / (1 + (tolerance / snr)^6) of
Schmitt and Heyl (2020, arXiv:1912.08828); an eigenvalue is bounded below by its own standard error, so that noise in a
flat direction is not amplified. Without noise this is the pseudo-inverse.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fubini.errors import NumericalError
from fubini.options import Real
from fubini.solvers.damping import Absolute, Damping

# Eigenvalues below this part of the largest are rounding: the direction has no length.
_RELATIVE_CUTOFF = 1e-10
# Of the filter.
_POWER = 6


@dataclass(frozen=True)
class Direction:
    """A natural-gradient direction.

    Attributes:
        values: (weights,), to be multiplied by the learning rate and subtracted.
        weights: Filter weight of every eigen-direction, 0 to 1.
        eigenvalues: Of the metric, ascending.
        vectors: Its eigenvectors, in columns, (weights, weights).
        gains: How fast the direction's component along every eigenvector grows with the gradient's.
    """

    values: Real
    weights: Real
    eigenvalues: Real
    vectors: Real
    gains: Real


def snr_direction(
    gradient: Real,
    gradient_covariance: Real,
    metric: Real,
    metric_errors: Real,
    *,
    tolerance: float = 2.0,
) -> Direction:
    """Solve metric @ d = gradient, every eigen-direction weighted by its signal-to-noise ratio.

    Args:
        gradient: (P,).
        gradient_covariance: Of its estimate, (P, P); zeros for exact results.
        metric: (P, P), symmetric.
        metric_errors: Standard errors of its entries, (P, P), taken as independent.
        tolerance: Signal-to-noise ratio at which a direction counts half.

    Returns:
        The direction.

    Raises:
        ValueError: For a tolerance that is not positive.
        NumericalError: If anything is NaN or infinite.
    """
    _check_tolerance(tolerance)
    for name, value in (
        ("gradient", gradient),
        ("gradient_covariance", gradient_covariance),
        ("metric", metric),
        ("metric_errors", metric_errors),
    ):
        if not np.isfinite(value).all():
            raise NumericalError(f"{name}: expected finite numbers, got NaN or infinity")
    eigenvalues, vectors = np.linalg.eigh(metric)
    along = vectors.T @ gradient
    noise = np.sqrt(
        np.maximum(np.einsum("ik,ij,jk->k", vectors, gradient_covariance, vectors), 0.0)
    )
    square = vectors**2
    spread = metric_errors**2
    # d lambda = sum_ij v_i v_j dG_ij; the two triangles are the same estimate.
    doubled = 2.0 * spread - np.diag(np.diagonal(spread))
    floor = tolerance * np.sqrt(np.einsum("ik,ij,jk->k", square, doubled, square))
    length = np.hypot(np.maximum(eigenvalues, 0.0), floor)
    real = length > _RELATIVE_CUTOFF * max(length.max(initial=0.0), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.where(noise > 0, np.abs(along) / np.where(noise > 0, noise, 1.0), np.inf)
        weights = np.where(
            ratio > 0, 1.0 / (1.0 + (tolerance / np.maximum(ratio, 1e-50)) ** _POWER), 0.0
        )
    weights = np.where(real, weights, 0.0)
    inverse = weights / np.where(real, length, 1.0)
    gains = inverse * (1.0 + _POWER * (1.0 - weights))  # d(weight * along) / d along
    return Direction(vectors @ (inverse * along), weights, eigenvalues, vectors, gains)


def _check_tolerance(tolerance: float) -> None:
    if not tolerance > 0 or not np.isfinite(tolerance):
        raise ValueError(f"tolerance: expected a finite number > 0, got {tolerance!r}")


@dataclass(frozen=True)
class SignalToNoise:
    """As ``lam`` of ``QNGOptimizer``: no damping, but :func:`snr_direction` for quantum layers with shots.

    Gradient and metric of these layers bring their standard errors along. The gradient's are those given what the
    backward pass brings to the layer, so any loss and any classical layers around it will do. Layers without shots are
    exact, and solved by the pseudo-inverse; parameters without a metric take the plain gradient. Gradients must reach
    the optimizer as the backward passes made them: clipping them changes their noise. The filter is that of Schmitt and
    Heyl (2020, arXiv:1912.08828).

    Args:
        tolerance: Signal-to-noise ratio at which an eigen-direction counts half.

    Raises:
        ValueError: For a tolerance that is not positive.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.set_shots(1000)
        ... @qml.qnode(qml.device("default.qubit", wires=1, seed=0), diff_method="parameter-shift")
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> layer = fubini.QuantumLayer(circuit, {"w": (1,)}, torch.nn.init.ones_)
        >>> opt = fubini.QNGOptimizer(layer, lr=0.2, metric="quantum", lam=fubini.SignalToNoise())
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     layer().backward()
        ...     opt.step()
        >>> bool(layer.w > 2)
        True
    """

    tolerance: float = 2.0
    needs_closure = False
    scale = 1.0
    tries = 1

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)

    def damping_at(self, step: int) -> Damping:
        """Return no damping."""
        return Absolute(0.0)

    def update(self, actual: float, predicted: float, share: float = 1.0) -> bool:
        """Return true: every step is kept."""
        return True

    def state_dict(self) -> dict[str, float]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Split:
    """Shots of every circuit.

    Attributes:
        gradient: For the gradient's circuits.
        metric: For the metric's circuits; 0 where it is not estimated.
    """

    gradient: int
    metric: int


def split_shots(
    budget: int, gradient_circuits: int, metric_circuits: int, ratio: float | None = None
) -> Split:
    """Share a budget between gradient and metric so that the direction's variance is smallest.

    With n circuits of N / n shots each, gradient and metric add v_g n_g / N_g + v_m n_m / N_m to the variance of the
    direction, where v is its variance with one shot per circuit; the sum is smallest for
    N_g / N_m = sqrt(v_g n_g / (v_m n_m)) (van Straaten and Koczor 2021, arXiv:2005.05172, section III).

    Args:
        budget: Shots of all circuits together.
        gradient_circuits: n_g.
        metric_circuits: n_m, 0 for a step without a new metric.
        ratio: v_g / v_m from :func:`variance_ratio` of an earlier step; None: the same shots for every circuit.

    Returns:
        Shots of every circuit, at least 2.

    Raises:
        ValueError: If the budget is not 2 shots for every circuit.
    """
    needed = 2 * (gradient_circuits + metric_circuits)
    if budget < needed:
        raise ValueError(
            f"shots: expected at least 2 for each of {gradient_circuits + metric_circuits} circuits, {needed}, got {budget}"
        )
    if not metric_circuits:
        return Split(budget // gradient_circuits, 0)
    if ratio is None:
        share = gradient_circuits / (gradient_circuits + metric_circuits)
    else:
        odds = np.sqrt(ratio * gradient_circuits / metric_circuits)
        share = float(odds / (1.0 + odds)) if np.isfinite(odds) else 1.0
    least = 2 * gradient_circuits / budget
    most = 1.0 - 2 * metric_circuits / budget
    for_gradient = int(min(max(share, least), most) * budget)
    return Split(
        max(2, for_gradient // gradient_circuits),
        max(2, (budget - for_gradient) // metric_circuits),
    )


def variance_ratio(
    gradient_covariance: Real, metric: Real, metric_errors: Real, direction: Real, split: Split
) -> float:
    """Return v_g / v_m for :func:`split_shots`: what gradient and metric would add to the direction with one shot each.

    To first order the direction d = G^-1 g moves by G^-1 dg - G^-1 dG d.

    Args:
        gradient_covariance: (P, P).
        metric: G, (P, P).
        metric_errors: (P, P).
        direction: d, (P,).
        split: The shots with which these were estimated.

    Returns:
        The ratio, between 1e-6 and 1e6.
    """
    eigenvalues, vectors = np.linalg.eigh(metric)
    floor = max(1e-3 * eigenvalues.max(initial=0.0), 1e-12)
    inverse = (vectors / np.maximum(eigenvalues, floor)) @ vectors.T
    by_gradient = float(np.trace(inverse @ gradient_covariance @ inverse)) * split.gradient
    gram = inverse @ inverse
    diagonal = np.diagonal(gram)
    spread = metric_errors**2
    # |G^-1 (e_i d_j + e_j d_i)|^2 for every pair, once.
    pair = diagonal[:, None] * direction[None, :] ** 2 + diagonal[None, :] * direction[:, None] ** 2
    pair = pair + 2.0 * gram * np.outer(direction, direction)
    single = diagonal * direction**2
    off = np.triu(spread, 1)
    by_metric = float((off * pair).sum() + (np.diagonal(spread) * single).sum()) * split.metric
    if by_metric <= 0.0:
        return 1e6
    return float(np.clip(by_gradient / by_metric, 1e-6, 1e6))
