"""How the variance of gradients changes with the number of qubits: barren plateaus, before anything is trained."""

from dataclasses import dataclass

import numpy as np

from fubini.geometry.report_model import Model
from fubini.options import Real

# Rates below this are not worth a word, whatever their significance: a tenth of a bit per qubit.
_SLOW = 0.1


@dataclass(frozen=True, eq=False)
class GradientVariance:
    """The variance of d f / d w over random weights, f a result of the circuit and w a weight.

    Attributes:
        each: For every result and weight, averaged over the inputs, (M, P).
        mean: Over all results and weights.
        error: Standard error of the mean, from the draws.
    """

    each: Real
    mean: float
    error: float


@dataclass(frozen=True, eq=False)
class GradientTrend:
    """Variances for several numbers of qubits, and the two laws that are fitted to them.

    Attributes:
        sizes: Numbers of qubits n, rising.
        variances: Mean variance of every size.
        errors: Their standard errors.
        rate: b of the variance ~ 2^(-b n), by least squares that are weighted by the errors.
        rate_error: Its standard error.
        power: a of the variance ~ n^(-a).
        power_error: Its standard error.
        misfit: Mean squared deviation of the logarithms from the two laws, in units of their errors: (exponential, power).
    """

    sizes: tuple[int, ...]
    variances: Real
    errors: Real
    rate: float
    rate_error: float
    power: float
    power_error: float
    misfit: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``"exponential"``, ``"polynomial"``, ``"flat"``, or ``"undecided"`` for fewer than three sizes or no gradients."""
        if len(self.sizes) < 3 or not np.isfinite(self.rate):
            return "undecided"
        if self.rate < max(_SLOW, 2.0 * self.rate_error):
            return "flat"
        return "exponential" if self.misfit[0] <= self.misfit[1] else "polynomial"

    def __str__(self) -> str:
        pairs = zip(self.sizes, self.variances, strict=True)
        values = ", ".join(f"{n}: {v:.2g}" for n, v in pairs)
        laws = (
            f"2^(-{self.rate:.2f} n) +- {self.rate_error:.2f} or n^(-{self.power:.2f}) +- {self.power_error:.2f}"
        ).replace("--", "")
        meaning = {
            "exponential": "exponential decay, a barren plateau: use local observables, fewer layers or a start near the identity",
            "polynomial": "polynomial decay, no barren plateau",
            "flat": "no decay",
            "undecided": "undecided: three sizes or more with gradients are needed",
        }[self.verdict]
        return f"by qubits {values}; fits {laws}; {meaning}"


def gradient_variance(jacobians: list[Real]) -> GradientVariance:
    """Return the variance of derivatives over random weights.

    Args:
        jacobians: Pieces (t, X, M, P) of at least two draws in all.
    """
    every = np.concatenate(jacobians)
    deviations = (every - every.mean(axis=0)) ** 2
    draws = len(every)
    each = deviations.mean(axis=1).sum(axis=0) / (draws - 1)
    squares = deviations.reshape(draws, -1).mean(axis=1) * (draws / (draws - 1))
    return GradientVariance(each, float(each.mean()), float(squares.std(ddof=1) / np.sqrt(draws)))


def variance_of(model: Model, weights: Real) -> GradientVariance:
    """Return the variance of a model's gradients over given weights (T, P)."""
    return gradient_variance([jacobian for _, jacobian in model.linearised(weights)])


def trend(sizes: list[int], variances: list[GradientVariance]) -> GradientTrend:
    """Fit an exponential and a power law.

    Args:
        sizes: Numbers of qubits, rising.
        variances: One for each.

    Returns:
        The laws; NaN where there are not two sizes with gradients.
    """
    n = np.array(sizes, dtype=float)
    means = np.array([v.mean for v in variances])
    errors = np.array([v.error for v in variances])
    if len(n) < 2 or not (means > 0.0).all():
        nothing = float("nan")
        return GradientTrend(
            tuple(sizes), means, errors, nothing, nothing, nothing, nothing, (nothing, nothing)
        )
    logs = np.log2(means)
    # In bits; a floor keeps sizes whose variance happens to be exact from deciding everything.
    widths = np.maximum(errors / means, 0.02) / np.log(2.0)
    rate, rate_error, first = _line(n, logs, widths)
    power, power_error, second = _line(np.log2(n), logs, widths)
    return GradientTrend(
        tuple(sizes), means, errors, -rate, rate_error, -power, power_error, (first, second)
    )


def _line(x: Real, y: Real, widths: Real) -> tuple[float, float, float]:
    """Slope, its standard error, and mean squared residual in units of the widths."""
    design = np.stack([np.ones_like(x), x], axis=1) / widths[:, None]
    inverse = np.linalg.pinv(design.T @ design)
    found = inverse @ design.T @ (y / widths)
    residual = y / widths - design @ found
    misfit = float(residual @ residual) / len(x)
    # Where the law is only roughly true, the deviations from it say how well the slope is known.
    spread = max(1.0, float(residual @ residual) / max(1, len(x) - 2))
    return float(found[1]), float(np.sqrt(inverse[1, 1] * spread)), misfit
