"""A metric that is estimated from shots, and solved with regard to its noise and the gradient's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fubini.arrays import to_numpy
from fubini.blocks.base import BlockInfo, checked
from fubini.blocks.matrix import DenseBlock
from fubini.devices.signal_to_noise import snr_direction

Tensor = torch.Tensor


class NoisyBlock(DenseBlock):
    """A metric with its standard errors, and the covariance of the gradient that it will be solved for.

    Args:
        parameters: As for Block.
        matrix: (n, n), symmetric.
        errors: Standard errors of its entries, (n, n).
        covariance: Of the gradient's estimate, (n, n).
        tolerance: Signal-to-noise ratio at which a direction counts half.
        label: As for Block.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        matrix: Tensor,
        errors: Tensor,
        covariance: Tensor,
        tolerance: float,
        label: str = "",
    ) -> None:
        super().__init__(parameters, matrix, label)
        self._errors = checked("errors", errors, (self.size, self.size))
        self._covariance = checked("covariance", covariance, (self.size, self.size))
        self._numbers = {**self._numbers, "errors": self._errors, "covariance": self._covariance}
        self._tolerance = tolerance

    @property
    def is_one_part(self) -> bool:
        """False: it must not be solved together with exact blocks."""
        return False

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Return the direction in which every eigen-direction is weighted by its signal-to-noise ratio.

        Args:
            rhs: The gradient, (n,).
            damping: Not used: noise takes its place.

        Returns:
            x, and information about it.
        """
        found = snr_direction(
            to_numpy(rhs),
            to_numpy(self._covariance),
            to_numpy(self._matrix),
            to_numpy(self._errors),
            tolerance=self._tolerance,
        )
        kept = found.eigenvalues[found.weights > 0.5]
        condition = float(kept.max() / kept.min()) if kept.size and kept.min() > 0 else float("nan")
        x = torch.from_numpy(found.values).to(rhs)
        return x, self._info("signal-to-noise", lambda: condition, x, rhs, 0.0)

    def _like(self, parameters: Sequence[Tensor], *numbers: Tensor) -> NoisyBlock:
        matrix, errors, covariance = numbers
        return NoisyBlock(parameters, matrix, errors, covariance, self._tolerance, self.label)
