"""Derivatives of a QNode's results, with what they are made of, so that shots give their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fubini import _core
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
        jacobian: (1 or batch, outputs, angles).
        base: What the circuit itself gave, else None.
        terms: What the derivatives are made of; empty where the device gave them itself.
        slopes: (1 or batch, outputs, features).
    """

    values: Real | None
    jacobian: Real
    base: Estimates | None
    terms: tuple[Terms, ...]
    slopes: Real

    @property
    def errors(self) -> Real:
        """Standard errors of the Jacobian, (1 or batch, outputs, angles); zeros for an analytic device."""
        variance = np.zeros_like(self.jacobian)
        for terms in self.terms:
            found = terms.seen.variance(self.slopes)  # (circuits, batch, outputs)
            weighted = terms.coefficients[:, None, None] ** 2 * found
            np.add.at(variance.transpose(2, 0, 1), terms.angles, weighted)
        if self.base is not None and self.base.shots is not None:
            features = self.base.readout.squared
            derivative = self._feature_jacobian
            unit = np.eye(len(self.base.readout.constant))
            noise = self.base.variance(unit)
            for output, feature in features:
                variance[:, output] += 4.0 * derivative[:, feature] ** 2 * noise[:, feature, None]
        return np.sqrt(variance)

    @property
    def _feature_jacobian(self) -> Real:
        return contracted(self.terms, self.jacobian.shape[2])

    def covariance(self, cotangents: Real) -> Real:
        """Return the covariance of the estimates of cotangents @ jacobian.

        Args:
            cotangents: (1 or batch, outputs).

        Returns:
            (batch, angles, angles).
        """
        functional = (cotangents[:, None, :] @ self.slopes)[:, 0]
        count = self.jacobian.shape[2]
        rows = len(functional)
        result = np.zeros((rows, count, count))
        for terms in self.terms:
            found = terms.seen.variance(functional[:, None, :])[..., 0]  # (circuits, batch)
            weighted = terms.coefficients[:, None] ** 2 * found
            for circuit, angle in enumerate(terms.angles):
                result[:, angle, angle] += weighted[circuit]
        if self.base is not None and self.base.shots is not None:
            noise = self.base.variance(np.eye(len(self.base.readout.constant)))
            derivative = self._feature_jacobian
            for output, feature in self.base.readout.squared:
                # -2 <O> d<O>: the estimate of <O> is common to all angles.
                shared = -2.0 * cotangents[:, output, None] * derivative[:, feature]
                result += (shared[:, :, None] * shared[:, None, :]) * noise[:, feature, None, None]
        return result


def contracted(blocks: Sequence[Terms], count: int) -> Real:
    """Sum the terms: (1 or batch, features, count)."""
    total: Any = 0.0
    for block in blocks:
        features = np.ascontiguousarray(block.seen.features)
        total = total + _core.shift_sum(
            block.angles.astype(np.int64), np.ascontiguousarray(block.coefficients), features, count
        )
    return np.asarray(total)
