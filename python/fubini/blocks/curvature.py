"""The curvature of an energy as a block: symmetric like a metric, but with negative eigenvalues away from a minimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from fubini.blocks.base import Block, BlockInfo
from fubini.blocks.matrix import DenseBlock
from fubini.blocks.products import OperatorBlock
from fubini.errors import NumericalError

Tensor = torch.Tensor

# A negative eigenvalue below this share of the largest is rounding.
_ROUNDING = 1e-13
# A damping so many times the size of the lowest eigenvalue is enough.
_MARGIN = 1.1


class CurvatureBlock(Block):
    """A symmetric matrix B, or its products, that need not be positive semi-definite.

    Args:
        inner: The numbers, as a block.
        shifts: Whether ``solve`` raises the damping to twice the size of the lowest eigenvalue where that is negative and
            the damping does not exceed its size by a tenth, so that the direction always leads down. If not, it raises
            an error where the damping is too small, from which a policy learns.
        noise: Length up to which a right-hand side is rounding. Its solution is zero: where an energy is constant, B is
            rounding too, and any step would be as likely.
    """

    linear = False  # products have no numbers to be averaged

    def __init__(self, inner: DenseBlock | OperatorBlock, shifts: bool, noise: float = 0.0) -> None:
        super().__init__(inner.parameters, inner.label)
        self.shifts, self.noise = shifts, noise
        self._inner = inner

    def product(self, v: Tensor) -> Tensor:
        """Return B v, see Block."""
        return self._inner.product(v)

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(B + D) x = rhs``, see Block; with more damping where that was asked for."""
        if self.noise and float(torch.linalg.vector_norm(rhs)) <= self.noise:
            return torch.zeros_like(rhs), BlockInfo(self.label, self.size, "none: no gradient")
        least = float(damping.min()) if isinstance(damping, Tensor) else damping
        low = self.lowest if self.shifts else 0.0
        if low == 0.0 or least >= -_MARGIN * low:
            try:
                return self._inner.solve(rhs, damping)
            except NumericalError as error:
                if isinstance(damping, Tensor) and least <= _ROUNDING * float(damping.max()):
                    raise NumericalError(
                        f"{self.label}: expected a damping above zero of every weight, got {least:g} for one without "
                        "curvature, to which a damping in proportion to the diagonal adds nothing however large lam is; "
                        "pass lam=fubini.Relative(0.5) or a number"
                    ) from error
                raise
        x, info = self._inner.solve(rhs, damping + (-2.0 * low - least))
        info.method += f", damping raised to {-2.0 * low:.3g} against negative curvature"
        return x, info

    @cached_property
    def lowest(self) -> float:
        """The lowest eigenvalue of B where it is negative; 0 where none is, but for rounding."""
        if isinstance(self._inner, DenseBlock):
            matrix = self._inner.dense().cpu().numpy()
            low = float(eigvalsh(matrix, subset_by_index=[0, 0])[0])
            high = float(np.abs(matrix).sum(1).max())
        else:
            low, high = self._extremes(self._inner)
        return low if low < -_ROUNDING * self.size * high else 0.0

    def _extremes(self, inner: OperatorBlock) -> tuple[float, float]:
        """The lowest and the largest eigenvalue by products (Lanczos, from a fixed vector)."""
        start = np.cos(np.arange(1.0, self.size + 1.0))

        def apply(v: np.ndarray) -> np.ndarray:
            vector = torch.from_numpy(v.reshape(-1).astype(np.float64)).to(self.device)
            return inner.product(vector).cpu().numpy()

        if self.size < 4:
            values = torch.linalg.eigvalsh(inner.dense())
            return float(values[0]), float(values.abs().max())
        operator = LinearOperator((self.size, self.size), matvec=apply, dtype=np.float64)
        find = partial(eigsh, operator, 1, v0=start, return_eigenvectors=False)

        def end(which: str, tolerance: float) -> float:
            try:
                [value] = find(which=which, tol=tolerance)
            except ArpackNoConvergence as error:
                value = min(error.eigenvalues, default=0.0)
            return float(value)

        high = abs(end("LM", 1e-2))
        return end("SA", 1e-9), high

    def still(self) -> Tensor | None:
        """Return None: where a row of B is zero, the state may move all the same, and the damping limits its step."""
        return None

    def diagonal(self) -> Tensor:
        """Return the size of the curvature along each axis, (n,), for damping in proportion to it.

        With products alone, the mean of these sizes is estimated by one of them and stands for all.
        """
        if isinstance(self._inner, DenseBlock):
            return self._inner.diagonal().abs()
        signs = torch.cos(torch.arange(1, self.size + 1, dtype=torch.float64, device=self.device))
        signs = torch.where(signs > 0, 1.0, -1.0).to(torch.float64)
        mean = (signs @ self.product(signs)).abs() / self.size
        return torch.full((self.size,), float(mean), dtype=torch.float64, device=self.device)

    def scaled(self, factor: float) -> CurvatureBlock:
        """Return the block times a number of either sign."""
        inner = self._inner
        if isinstance(inner, DenseBlock):
            inner = inner.with_tensors({"matrix": factor * inner.dense()})
        else:
            products = inner.product
            inner = OperatorBlock(inner.parameters, lambda v: factor * products(v), inner.label)
        return CurvatureBlock(inner, self.shifts, abs(factor) * self.noise)

    def tensors(self) -> dict[str, Tensor]:
        """Return the block's numbers by name, see Block."""
        return self._inner.tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> CurvatureBlock:
        """Return a block with other numbers, see Block."""
        return CurvatureBlock(self._inner.with_tensors(tensors), self.shifts, self.noise)

    def restrict(self, keep: Sequence[bool]) -> CurvatureBlock:
        """Return the block of some of the parameters, see Block."""
        return CurvatureBlock(self._inner.restrict(keep), self.shifts, self.noise)
