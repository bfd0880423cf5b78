"""Blocks whose entries are all there: diagonals and matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from fubini import _core
from fubini.arrays import shared_array
from fubini.blocks.base import Block, BlockInfo, checked
from fubini.errors import NumericalError
from fubini.solvers.systems import SolveStatus, solve, solve_blocks

Tensor = torch.Tensor

# Larger matrices are factorised by several threads, without a copy that stays.
_LARGE = 256


class DiagonalBlock(Block):
    """A diagonal metric.

    Args:
        parameters: As for Block.
        values: (n,).
        label: As for Block.
    """

    def __init__(self, parameters: Sequence[Tensor], values: Tensor, label: str = "") -> None:
        super().__init__(parameters, label)
        self._values = checked("values", values, (self.size,))
        self._numbers = {"values": self._values}

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return (self._values if v.ndim == 1 else self._values[:, None]) * v

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        damped = self._values + damping
        if not bool((damped > 0).all()):
            raise self._singular(damping)
        x = rhs / (damped if rhs.ndim == 1 else damped[:, None])
        return x, self._info(
            "diagonal", lambda: float(damped.max() / damped.min()), x, rhs, damping
        )

    def factorise(self, factors: _core.Preconditioner, damping: float) -> bool:
        """Give the block to the kernel, see Block."""
        values = shared_array(self._values)
        return values is not None and factors.add_diagonal(values, damping)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        return self._values

    def restrict(self, keep: Sequence[bool]) -> DiagonalBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return self._like(parameters, self._values[index])


class DenseBlock(Block):
    """A metric as a matrix. Parts that its zeros make independent are solved on their own, all of one size in one call.

    Args:
        parameters: As for Block.
        matrix: (n, n), symmetric.
        label: As for Block.
    """

    def __init__(self, parameters: Sequence[Tensor], matrix: Tensor, label: str = "") -> None:
        super().__init__(parameters, label)
        self._matrix = checked("matrix", matrix, (self.size, self.size))
        self._numbers = {"matrix": self._matrix}

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return self._matrix @ v

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        if self.is_one_part and not isinstance(damping, Tensor):
            return solve_matrices([self], [rhs], damping)[0]
        damped = self._damped(damping)
        if self._parts is None:
            [x] = cholesky([damped], [rhs], 0.0, lambda _, reason: self._singular(damping, reason))
            return x, self.info(x, rhs, damping)
        x = torch.empty_like(rhs)
        for index in self._parts:
            parts = damped[index[:, :, None], index[:, None, :]]
            try:
                x[index] = solve(parts, rhs[index], method="cholesky")
            except NumericalError as error:
                raise self._singular(damping, f" ({error})") from error
        return x, self.info(x, rhs, damping)

    def info(self, x: Tensor, rhs: Tensor, damping: Tensor | float) -> BlockInfo:
        """Return what is known of a solution, see ``solve``."""

        def condition() -> float:
            damped = self._damped(damping)
            _, info = solve(damped, rhs, method="cholesky", return_info=True)
            return float(info.condition)

        return self._info("cholesky", condition, x, rhs, damping)

    def _damped(self, damping: Tensor | float) -> Tensor:
        damped = self._matrix.clone()
        damped.diagonal().add_(damping)
        return damped

    def factorise(self, factors: _core.Preconditioner, damping: float) -> bool:
        """Give the block to the kernel, see Block."""
        if self.size > _LARGE:
            return False
        matrix = shared_array(self._matrix)
        return matrix is not None and factors.add_dense(matrix, damping)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        return self._matrix.diagonal()

    def dense(self) -> Tensor:
        """Return G, (n, n)."""
        return self._matrix

    def restrict(self, keep: Sequence[bool]) -> Self:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return self._like(parameters, *(v[index][:, index] for v in self._numbers.values()))

    @property
    def is_one_part(self) -> bool:
        """Whether no zeros make parts of it independent."""
        return self._parts is None

    @cached_property
    def _parts(self) -> list[Tensor] | None:
        """Indices (count, size) of the independent parts of each size; None where there is one part."""
        array = shared_array(self._matrix)
        # No zero among the couplings of the first entry.
        first = self._matrix[0].count_nonzero() if array is None else np.count_nonzero(array[0])
        if int(first) == self.size:
            return None
        entries = self._matrix.detach().cpu().numpy() if array is None else array
        groups = [torch.from_numpy(g).to(self.device) for g in _independent(entries != 0)]
        return None if groups[0].shape[1] == self.size else groups


def _independent(coupled: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.intp]]:
    """Indices (count, size) of the parts that nothing couples, for each size; coupled is symmetric, (n, n)."""
    np.fill_diagonal(coupled, True)
    # The smallest index spreads along couplings; in dense blocks it is there after one round.
    label = coupled.argmax(axis=1)
    while not (coupled <= (label[:, None] == label)).all():
        label = np.where(coupled, label, len(label)).min(axis=1)
    order = np.argsort(label, kind="stable")
    counts = np.bincount(label, minlength=len(label))[label[order]]
    return [order[counts == size].reshape(-1, size) for size in np.unique(counts)]


def solve_matrices(
    blocks: Sequence[DenseBlock], sides: Sequence[Tensor], damping: float
) -> list[tuple[Tensor, BlockInfo]]:
    """Solve for several blocks in one call.

    Args:
        blocks: Each of one part.
        sides: The right-hand side of each.
        damping: Of all entries of all blocks.

    Returns:
        What ``solve`` returns, for each block.

    Raises:
        NumericalError: If a damped block is singular or not positive definite.
    """
    matrices: list[Any] = [shared_array(block._matrix) for block in blocks]
    vectors: list[Any] = [shared_array(rhs) for rhs in sides]
    shared = not any(one is None for one in (*matrices, *vectors))
    if not shared:
        matrices, vectors = [block._matrix for block in blocks], list(sides)
    solved = cholesky(
        matrices, vectors, damping, lambda k, reason: blocks[k]._singular(damping, reason)
    )
    if shared:
        solved = [torch.from_numpy(x) for x in solved]
    return [
        (x, block.info(x, rhs, damping))
        for block, x, rhs in zip(blocks, solved, sides, strict=True)
    ]


def cholesky(
    matrices: Sequence[Any],
    rhs: Sequence[Any],
    damping: float,
    singular: Callable[[int, str], NumericalError],
) -> list[Any]:
    """Solve positive definite systems, of tensors or NumPy arrays.

    A pseudo-inverse would hide that a metric is singular, and a step along a negative eigenvalue goes uphill.

    Args:
        matrices: (n, n) each.
        rhs: (n,) or (n, k) each.
        damping: Added to all diagonals.
        singular: Makes the error from the number of the matrix and the reason.

    Returns:
        The solutions.

    Raises:
        NumericalError: If a matrix is not positive definite.
    """
    solved, status = solve_blocks(
        list(matrices), list(rhs), damping=damping, throw=False, return_status=True
    )
    if np.count_nonzero(status):
        worst = int(status.argmax())
        raise singular(worst, f" ({SolveStatus(status[worst]).text})")
    found: list[Any] = solved
    return found
