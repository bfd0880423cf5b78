"""Derivatives of a QNode's results, with what they are made of, so that shots give their errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fubini.devices.readout import Estimates
from fubini.options import Real


@dataclass(frozen=True)
class Terms:
    """Circuits whose results are added up to derivatives.

    Attributes:
        angles: For every circuit the angle that it belongs to.
        coefficients: For every circuit.
        seen: Its outcomes, (circuits, batch, ...).
    """

    angles: npt.NDArray[np.intp]
    coefficients: Real
    seen: Estimates


@dataclass(frozen=True)
class Gradient:
    """Results of a circuit and their derivatives by its trainable angles.

    Attributes:
        values: (1 or batch, outputs); None where the circuit itself was not run.
        by_features: Derivatives of the features, (1 or batch, features, angles).
        base: What the circuit itself gave, else None.
        terms: What the derivatives are made of; empty where the device gave them itself.
        slopes: (1 or batch, outputs, features).
    """

    values: Real | None
    by_features: Real
    base: Estimates | None
    terms: tuple[Terms, ...]
    slopes: Real

    @cached_property
    def jacobian(self) -> Real:
        """Derivatives of the results, (1 or batch, outputs, angles)."""
        return self.slopes @ self.by_features

    @property
    def errors(self) -> Real:
        """Standard errors of the Jacobian, (1 or batch, outputs, angles); zeros for an analytic device."""
        variance = self._variance(self.slopes)
        for output, derivative, noise in self._squares():
            variance[:, output] += 4.0 * derivative**2 * noise[:, None]
        return np.sqrt(variance)

    def covariance(self, cotangents: Real) -> Real:
        """Return the covariance of the estimates of cotangents @ jacobian.

        Args:
            cotangents: (1 or batch, outputs).

        Returns:
            (batch, angles, angles).
        """
        variance = self._variance(cotangents[:, None, :] @ self.slopes)[:, 0]
        result = variance[:, :, None] * np.eye(variance.shape[1])
        for output, derivative, noise in self._squares():
            # -2 <O> d<O>: the estimate of <O> is common to all angles.
            shared = -2.0 * cotangents[:, output, None] * derivative
            result += (shared[:, :, None] * shared[:, None, :]) * noise[:, None, None]
        return result

    def _variance(self, functionals: Real) -> Real:
        """Of functionals @ by_features, (batch, functionals, angles)."""
        variance = np.zeros((*functionals.shape[:2], self.by_features.shape[2]))
        for terms in self.terms:
            found = terms.seen.variance(functionals)  # (circuits, batch, functionals)
            weighted = terms.coefficients[:, None, None] ** 2 * found
            np.add.at(variance.transpose(2, 0, 1), terms.angles, weighted)
        return variance

    def _squares(self) -> Iterator[tuple[int, Real, Real]]:
        """For every output that is made of a square: its number, the squared feature's derivative and variance."""
        if self.base is not None and self.base.shots is not None:
            noise = self.base.variance(np.eye(len(self.base.readout.constant)))
            for output, feature in self.base.readout.squared:
                yield output, self.by_features[:, feature], noise[:, feature]
