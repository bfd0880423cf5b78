"""Blocks without a matrix: low-rank factors, and metrics known by their products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from fubini.arrays import to_numpy
from fubini.blocks.base import Block, BlockInfo, checked
from fubini.blocks.matrix import DenseBlock
from fubini.errors import NumericalError
from fubini.native.operator import MetricOperator
from fubini.solvers.systems import CG, Dual, solve

Tensor = torch.Tensor
Preconditioner = Callable[[Tensor], Callable[[Tensor], Tensor]]
_TOLERANCE = 1e-10  # residual at which conjugate gradients stop, relative to the right-hand side


class FactorBlock(Block):
    """A metric ``G = X^T X`` with few rows: solved by the dual, ``X^T (X X^T + lam)^-1``.

    Args:
        parameters: As for Block.
        factor: X, (m, n).
        label: As for Block.
    """

    # The mean of factors is no factor of the mean: rows of several factors are stacked instead, see average.
    linear = False

    def __init__(self, parameters: Sequence[Tensor], factor: Tensor, label: str = "") -> None:
        super().__init__(parameters, label)
        self._factor = checked("factor", factor, (factor.shape[0], self.size))
        self._numbers = {"factor": self._factor}

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return self._factor.mT @ (self._factor @ v)

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        damping = self._entries(damping)
        if len(self._factor) >= self.size or not bool((damping > 0).all()):
            return DenseBlock(self.parameters, self.dense(), self.label).solve(rhs, damping)
        scale = damping.rsqrt()
        factor = (self._factor * scale).mT
        right = rhs * (scale if rhs.ndim == 1 else scale[:, None])
        try:
            x = solve(factor, right, method=Dual(), damping=1.0)
        except NumericalError as error:
            raise self._singular(damping, f" ({error})") from error
        x = x * (scale if rhs.ndim == 1 else scale[:, None])

        def condition() -> float:
            values = torch.linalg.eigvalsh(factor.mT @ factor).clamp_min(0)
            return float(values.max() + 1.0)

        return x, self._info("dual", condition, x, rhs, damping)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        return self._factor.square().sum(dim=0)

    def dense(self) -> Tensor:
        """Return G, (n, n)."""
        return self._factor.mT @ self._factor

    def average(self, other: Block, decay: float) -> FactorBlock:
        """Return ``decay * self + (1 - decay) * other``; its factor has the rows of both, at most n, see Block."""
        self._check_same(other)
        assert isinstance(other, FactorBlock)
        rows = torch.cat([decay**0.5 * self._factor, (1.0 - decay) ** 0.5 * other._factor])
        if len(rows) > self.size:
            rows = torch.linalg.qr(rows, mode="r").R
        return self._like(self.parameters, rows)

    def restrict(self, keep: Sequence[bool]) -> FactorBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return self._like(parameters, self._factor[:, index])


class OperatorBlock(Block):
    """A metric known by its products with vectors: solved by preconditioned conjugate gradients.

    Args:
        parameters: As for Block.
        apply: Maps v (n,) to G v (n,), float64.
        label: As for Block.
        diagonal: Returns the diagonal of G, (n,), for the preconditioner and ``diagonal()``; None: the diagonal costs
            n products, and the preconditioner is the damping alone.
        preconditioner: Maps the damping (n,) to an approximate inverse of the damped metric, a function of residuals
            (..., n); None: the damped diagonal.
        max_iterations: Limit of conjugate gradients; None: 10 n, at least 100.
    """

    linear = False

    def __init__(
        self,
        parameters: Sequence[Tensor],
        apply: Callable[[Tensor], Tensor],
        label: str = "",
        *,
        diagonal: Callable[[], Tensor] | None = None,
        preconditioner: Preconditioner | None = None,
        max_iterations: int | None = None,
    ) -> None:
        super().__init__(parameters, label)
        self._apply = apply
        self._preconditioner = preconditioner
        self._find_diagonal = diagonal
        self._max_iterations = max_iterations

    def still(self) -> Tensor | None:
        """Return which entries move nothing, see Block: what a product with a vector without zeros leaves at zero."""
        probe = torch.arange(1, self.size + 1, dtype=torch.float64, device=self.device).cos()
        image = self.product(probe)
        return None if bool(image.all()) else image == 0

    @property
    def knows_diagonal(self) -> bool:
        """Whether the diagonal costs less than n products."""
        return self._find_diagonal is not None

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        if v.ndim == 1:
            return self._apply(v)
        return torch.stack([self._apply(column) for column in v.unbind(dim=1)], dim=1)

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        damping = self._entries(damping)
        invert = self._inverse(damping)

        def damped(v: Tensor) -> Tensor:
            return self.product(v.mT).mT + damping * v

        columns = (rhs if rhs.ndim == 2 else rhs[:, None]).mT
        method = CG(_TOLERANCE, self._max_iterations, invert)
        x, info = solve(damped, columns.contiguous(), method=method, throw=False, return_info=True)
        if (info.status > 1).any():
            raise NumericalError(
                f"{self.label}: conjugate gradients stopped after {int(info.iterations.max())} iterations at a residual of "
                f"{float(info.residual.max()):.1e}, expected {_TOLERANCE:g}; pass a larger lam"
            )
        solution = x.mT if rhs.ndim == 2 else x[0]
        worst = float(info.residual.max())
        iterations = int(info.iterations.max())
        return solution, BlockInfo(self.label, self.size, "cg", iterations, _residual=lambda: worst)

    def _inverse(self, damping: Tensor) -> Callable[[Tensor], Tensor]:
        if self._preconditioner is not None:
            return self._preconditioner(damping)
        weights = damping if self._find_diagonal is None else damping + self.diagonal()
        # Where nothing is known, the residual itself is the direction.
        weights = torch.where(weights > 0, weights, torch.ones_like(weights))
        return lambda r: r / weights

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,); without a function for it at the cost of n products."""
        return self._diagonal

    @cached_property
    def _diagonal(self) -> Tensor:
        if self._find_diagonal is not None:
            return self._find_diagonal()
        result = torch.empty(self.size, dtype=torch.float64, device=self.device)
        unit = torch.zeros_like(result)
        for i in range(self.size):
            unit[i] = 1.0
            result[i] = self._apply(unit)[i]
            unit[i] = 0.0
        return result

    def average(self, other: Block, decay: float) -> OperatorBlock:
        """Raise a ValueError: there are no numbers to average.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{self.label}: a metric known by its products alone cannot be averaged over steps; "
            "use no averaging, or approx='block-diag'"
        )

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> OperatorBlock:
        """Return the block itself: there are no numbers."""
        return self

    def restrict(self, keep: Sequence[bool]) -> OperatorBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)

        def on_part(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
            whole = v.new_zeros(*v.shape[:-1], self.size)
            whole[..., index] = v
            return function(whole)[..., index]

        known, inverse = self._find_diagonal, self._preconditioner

        def preconditioner(damping: Tensor) -> Callable[[Tensor], Tensor]:
            assert inverse is not None
            everywhere = damping.new_full((self.size,), float(damping.mean()))
            everywhere[index] = damping
            invert = inverse(everywhere)
            return lambda r: on_part(invert, r)

        return OperatorBlock(
            parameters,
            lambda v: on_part(self._apply, v),
            self.label,
            diagonal=None if known is None else lambda: self.diagonal()[index],
            preconditioner=None if inverse is None else preconditioner,
            max_iterations=self._max_iterations,
        )


def operator_block(operator: MetricOperator, parameters: Sequence[Tensor], label: str) -> Block:
    """Return a metric in the form that its operator chose: a matrix, a factor of one, or products alone.

    Args:
        operator: The metric.
        parameters: Whose it is.
        label: Name for messages.
    """
    device = parameters[0].device

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64).detach().to(device)

    if operator.form == "dense":
        return DenseBlock(parameters, tensor(operator.dense()), label)
    if operator.form == "dual":
        return FactorBlock(parameters, tensor(operator.factor()).mT, label)

    def inverse(damping: Tensor) -> Callable[[Tensor], Tensor]:
        apply = operator.block_inverse(to_numpy(damping))
        return lambda r: tensor(apply(to_numpy(r)))

    return OperatorBlock(
        parameters,
        lambda v: tensor(operator @ v),
        label,
        diagonal=lambda: tensor(operator.diagonal()),
        preconditioner=inverse,
    )
