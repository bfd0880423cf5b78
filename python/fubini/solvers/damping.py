"""What is added to a metric before it is inverted: the same words for ``solve`` and for the optimizer.

A plain number or array means :class:`Absolute`. Marquardt (1963), SIAM J. Appl. Math. 11, 431, scales with the
diagonal; Levenberg (1944), Q. Appl. Math. 2, 164, adds a multiple of the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fubini.arrays import RealArray, is_tensor, real_array


@dataclass(frozen=True)
class Damping:
    """Base of the three kinds; use :class:`Absolute`, :class:`Relative` or :class:`Diagonal`.

    Args:
        lam: Strength, at least 0: one number, or an array with one for each system (block) of the batch.

    Example:
        >>> import fubini, numpy as np
        >>> per_block = fubini.Absolute(np.array([0.0, 1.0]))  # one number for each of two systems
        >>> fubini.solve(np.ones((2, 1, 1)), np.ones((2, 1)), damping=per_block)
        array([[1. ],
               [0.5]])
    """

    lam: Any
    kind: ClassVar[str] = ""

    def values(self, batch_shape: tuple[int, ...]) -> RealArray:
        """The strengths as an array with 1 entry, or one for each system [batch].

        Args:
            batch_shape: The leading dimensions of the matrices.

        Returns:
            A contiguous float64 array with one dimension.

        Raises:
            ValueError: If a strength is negative or not finite, or the shape does not fit.
        """
        lam = real_array("damping", self.lam)
        if not (np.isfinite(lam).all() and (lam >= 0).all()):
            raise ValueError(
                f"damping: expected finite numbers >= 0, got {self.lam!r}; use 0 for no damping"
            )
        if lam.ndim == 0:
            return lam.reshape(1)
        try:
            return np.broadcast_to(lam, batch_shape).copy().reshape(-1)
        except ValueError:
            raise ValueError(
                f"damping: expected one number or an array of shape (batch) = {batch_shape}, got {lam.shape}"
            ) from None

    def scaled(self, factor: float) -> Damping:
        """The same kind, with its strength multiplied by the factor.

        Args:
            factor: Number to multiply with.

        Returns:
            A new object of the same kind.
        """
        lam = self.lam if is_tensor(self.lam) else np.asarray(self.lam, dtype=np.float64)
        product = lam * factor
        return type(self)(
            float(product) if product.ndim == 0 and not is_tensor(product) else product
        )


@dataclass(frozen=True)
class Absolute(Damping):
    """Adds ``lam * I``: in the units of the matrix.

    In least squares this is Levenberg's damping (1944, *A method for the solution of certain non-linear problems in
    least squares*).

    Args:
        lam: Strength, at least 0: one number, or an array with one for each system (block) of the batch.

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve(np.diag([1.0, 3.0]), np.array([2.0, 4.0]), damping=fubini.Absolute(1.0))
        array([1., 1.])
    """

    kind: ClassVar[str] = "absolute"


@dataclass(frozen=True)
class Relative(Damping):
    """Adds ``lam * mean(diag(G)) * I``: does not change when the matrix is rescaled as a whole.

    Args:
        lam: Strength, at least 0: one number, or an array with one for each system (block) of the batch.

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve(np.diag([1.0, 3.0]), np.array([2.0, 4.0]), damping=fubini.Relative(0.5))  # 0.5 times the mean, 2
        array([1., 1.])
    """

    kind: ClassVar[str] = "relative"


@dataclass(frozen=True)
class Diagonal(Damping):
    """Adds ``lam * diag(G)`` (Marquardt 1963): does not change when the parameters are rescaled one by one.

    A zero on the diagonal stays zero, so that a parameter without any effect is left to the pseudo-inverse.

    Args:
        lam: Strength, at least 0: one number, or an array with one for each system (block) of the batch.

    Example:
        >>> import fubini, numpy as np
        >>> fubini.solve(np.diag([1.0, 3.0]), np.array([2.0, 6.0]), damping=fubini.Diagonal(1.0))
        array([1., 1.])
    """

    kind: ClassVar[str] = "diagonal"


def as_damping(value: Any) -> Damping:
    """A number or array becomes :class:`Absolute`; a :class:`Damping` stays what it is.

    Args:
        value: What a caller passed as ``damping`` or ``lam``.

    Returns:
        The damping object.

    Raises:
        TypeError: If the value is a string, None or a boolean.
    """
    if isinstance(value, Damping):
        return value
    if value is None or isinstance(value, (str, bool)):
        raise TypeError(
            "damping: expected a number, an array with one number for each system, or "
            f"Absolute, Relative or Diagonal of these, got {value!r}"
        )
    return Absolute(value)
