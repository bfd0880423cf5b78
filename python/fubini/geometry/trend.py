"""How the variance of gradients changes with the number of qubits: barren plateaus, before anything is trained."""

from dataclasses import dataclass

import numpy as np

from fubini.options import Real

# Rates below this are not worth a word, whatever their significance: a tenth of a bit per qubit.
_SLOW = 0.1
# Variances that are smaller by this are those of gradients that vanish: squared rounding, with room.
SILENT = 1e-24


@dataclass(frozen=True, eq=False)
class GradientVariance:
    """The variance of d f / d w over random weights, f a result of the circuit and w a weight.

    Attributes:
        each: For every result and weight, averaged over the inputs, (M, P).
        mean: Over all pairs of a result and a weight that it depends on, so that qubits which an observable does not see do not
            count as a decay.
        error: Standard error of the mean, from the draws.
        seen: How many such pairs there are.
    """

    each: Real
    mean: float
    error: float
    seen: int


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


class GradientMoments:
    """Mean and variance of derivatives, taken up draw by draw (Welford 1962, Technometrics 4, 419)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Real | None = None
        self._squares: Real | None = None
        self._increments: list[float] = []

    def add(self, jacobians: Real) -> None:
        """Take up derivatives (t, X, M, P) of some draws."""
        for one in jacobians:
            self._count += 1
            if self._mean is None or self._squares is None:
                self._mean, self._squares = one.copy(), np.zeros(one.shape[1:])
                continue
            off = one - self._mean
            self._mean += off / self._count
            new = (off**2).mean(axis=0) * ((self._count - 1) / self._count)
            self._squares += new
            self._increments.append(float(new.sum()))

    def variance(self) -> GradientVariance:
        """Return the variance over the draws, of which there are two or more."""
        assert self._squares is not None
        each = self._squares / (self._count - 1)
        seen = max(1, int((each > SILENT * each.max(initial=0.0)).sum()))
        spread = float(np.std(self._increments)) / np.sqrt(len(self._increments))
        return GradientVariance(each, float(each.sum()) / seen, spread / seen, seen)


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
    laws = [(float("nan"),) * 3] * 2
    if len(n) >= 2 and (means > 0.0).all():
        logs = np.log2(means)
        # In bits; a floor keeps sizes whose variance happens to be exact from deciding everything.
        widths = np.maximum(errors / means, 0.02) / np.log(2.0)
        laws = [_line(n, logs, widths), _line(np.log2(n), logs, widths)]
    (rate, rate_error, first), (power, power_error, second) = laws
    return GradientTrend(
        tuple(sizes), means, errors, -rate, rate_error, -power, power_error, (first, second)
    )


def _line(x: Real, y: Real, widths: Real) -> tuple[float, float, float]:
    """Slope, its standard error, and mean squared residual in units of the widths."""
    (slope, start), covariance = np.polyfit(x, y, 1, w=1.0 / widths, cov="unscaled")
    residual = (y - start - slope * x) / widths
    misfit = float(residual @ residual) / len(x)
    # Where the law is only roughly true, the deviations from it say how well the slope is known.
    spread = max(1.0, float(residual @ residual) / max(1, len(x) - 2))
    return float(slope), float(np.sqrt(covariance[0, 0] * spread)), misfit
