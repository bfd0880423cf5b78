"""Kronecker products, as K-FAC makes them (Martens and Grosse 2015, arXiv:1503.05671).

They are damped exactly, through the eigenvectors of a factor, and not by splitting the damping between the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch

from fubini.torch.blocks.base import Block, BlockInfo, checked
from fubini.torch.blocks.matrix import DenseBlock, cholesky

Tensor = torch.Tensor

# Up to so many rows a Kronecker product is solved row by row: eigenvectors cost about 20 Cholesky decompositions.
_FEW_ROWS = 16


class KroneckerBlock(Block):
    """A metric ``G = L kron R`` over matrices (rows, columns), as K-FAC makes it; also several of them on a diagonal.

    The parameters are the column blocks of a matrix M (groups, rows, columns): parameter i has groups * rows *
    columns[i] entries, row-major. For a linear layer with bias M = [W, b], so columns = (in_features, 1), L is the
    second moment of the gradients by the layer's output and R that of its inputs with a 1 appended.

    Args:
        parameters: As for Block.
        left: L, (groups, rows, rows), or (groups, rows) for a diagonal.
        right: R, (groups, columns, columns).
        columns: Number of columns of each parameter.
        label: As for Block.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        left: Tensor,
        right: Tensor,
        columns: Sequence[int],
        label: str = "",
    ) -> None:
        super().__init__(parameters, label)
        groups, rows = left.shape[:2]
        width = sum(columns)
        if [p.numel() for p in self.parameters] != [groups * rows * c for c in columns]:
            raise ValueError(
                f"columns: expected parameters of {[groups * rows * c for c in columns]} entries for factors "
                f"{tuple(left.shape)} and {tuple(right.shape)}, got {[p.numel() for p in self.parameters]}"
            )
        self._left = checked(
            "left", left, (groups, rows) if left.ndim == 2 else (groups, rows, rows)
        )
        self._right = checked("right", right, (groups, width, width))
        self._columns = tuple(columns)

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        m = _times_columns(self._matrices(v), self._right)
        if self._left.ndim == 2:
            return self._vector(self._left[:, :, None, None] * m, v.ndim)
        return self._vector(_times_rows(self._left, m), v.ndim)

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        # Dampings that are equal within each parameter, or proportional to the diagonal, have this form. Then one
        # eigenvalue decomposition of each factor gives the exact solution; else the matrix is formed.
        found = self._product_form(damping)
        if found is None:
            return DenseBlock(self.parameters, self.dense(), self.label).solve(rhs, damping)
        lam, scales = found
        left, right, m = self._left, self._right, self._matrices(rhs)
        if scales is not None:
            rows, columns = scales
            left = left * rows**2 if left.ndim == 2 else rows[:, :, None] * left * rows[:, None]
            right = columns[:, :, None] * right * columns[:, None]
            m = m * (rows[:, :, None, None] * columns[:, None, :, None])
        vectors = None
        if left.ndim == 3:
            left, vectors = self._left_spectrum if scales is None else torch.linalg.eigh(left)
            m = _times_rows(vectors.mT, m)
        # In the eigenvectors of the left factor every row is a system of its own. Factors are positive semi-definite:
        # eigenvalues below zero are rounding.
        m, condition = self._solve_rows(left.clamp_min(0), right, lam, m, damping)
        if vectors is not None:
            m = _times_rows(vectors, m)
        if scales is not None:
            m = m * (rows[:, :, None, None] * columns[:, None, :, None])
        x = self._vector(m, rhs.ndim)
        residual = self._residual(x, rhs, damping)
        return x, BlockInfo(self.label, self.size, "eigen", 0, condition, residual)

    def _solve_rows(
        self, values: Tensor, right: Tensor, lam: Tensor, m: Tensor, damping: Tensor
    ) -> tuple[Tensor, Callable[[], float]]:
        """Solve ``(values_i R + lam) x_i = m_i`` for each row i, with m (groups, rows, columns, k)."""
        (groups, count), width = values.shape, right.shape[-1]

        def condition() -> float:
            spectrum = torch.linalg.eigvalsh(right).clamp_min(0)
            products = values[:, :, None] * spectrum[:, None, :] + lam
            return float(products.max() / products.min())

        if count > _FEW_ROWS or count >= width:
            known = right is self._right
            spectrum, vectors = self._right_spectrum if known else torch.linalg.eigh(right)
            products = values[:, :, None] * spectrum.clamp_min(0)[:, None, :] + lam
            if not bool((products > products.amax() * 2.3e-16 * max(count, width)).all()):
                raise self._singular(damping)
            m = _times_columns(m, vectors) / products[..., None]
            return _times_columns(m, vectors.mT), condition
        # Few rows: a Cholesky decomposition for each is cheaper than all eigenvectors.
        matrices = values[:, :, None, None] * right[:, None]
        matrices.diagonal(dim1=-2, dim2=-1).add_(lam)
        systems = matrices.reshape(groups * count, width, width).unbind()
        sides = m.reshape(groups * count, width, -1).unbind()
        solved = cholesky(systems, sides, lambda reason: self._singular(damping, reason))
        m = torch.stack(solved).reshape(m.shape)
        return m, condition

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        left = self._left if self._left.ndim == 2 else self._left.diagonal(dim1=-2, dim2=-1)
        right = self._right.diagonal(dim1=-2, dim2=-1)
        return self._vector((left[:, :, None] * right[:, None])[..., None], 1)

    def scaled(self, factor: float) -> KroneckerBlock:
        """Return the block times a number, which goes into L, see Block."""
        return KroneckerBlock(
            self.parameters, self._left * factor, self._right, self._columns, self.label
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers by name, see Block."""
        return {"left": self._left, "right": self._right}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> KroneckerBlock:
        """Return a block with other numbers, see Block."""
        return KroneckerBlock(
            self.parameters, tensors["left"], tensors["right"], self._columns, self.label
        )

    def restrict(self, keep: Sequence[bool]) -> KroneckerBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, _ = self._kept(keep)
        stays = torch.cat(
            [torch.full((c,), bool(k)) for c, k in zip(self._columns, keep, strict=True)]
        )
        index = stays.nonzero()[:, 0].to(self.device)
        columns = [c for c, k in zip(self._columns, keep, strict=True) if k]
        return KroneckerBlock(
            parameters, self._left, self._right[:, index][:, :, index], columns, self.label
        )

    # Kept, because a block is often solved again with another damping.

    @cached_property
    def _left_spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._left)
        return values, vectors

    @cached_property
    def _right_spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._right)
        return values, vectors

    def _matrices(self, v: Tensor) -> Tensor:
        """(n,) or (n, k) -> (groups, rows, columns, k)."""
        groups, rows = self._left.shape[:2]
        parts = torch.split(v, [p.numel() for p in self.parameters])
        shaped = [p.reshape(groups, rows, c, -1) for p, c in zip(parts, self._columns, strict=True)]
        return shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim=2)

    def _vector(self, matrix: Tensor, ndim: int) -> Tensor:
        """The inverse of _matrices."""
        parts = torch.split(matrix, list(self._columns), dim=2)
        shape = (-1,) if ndim == 1 else (-1, matrix.shape[-1])
        return torch.cat([p.reshape(shape) for p in parts])

    def _product_form(self, damping: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None] | None:
        """Write D as lam / (r c)^2 with r for each row and c for each column; None where that is not possible."""
        # Scaling rows and columns by r and c then turns D into lam times the identity.
        if bool((damping == damping[0]).all()):
            return damping[0], None
        if not bool((damping > 0).all()):
            return None
        table = self._matrices(damping)[..., 0]
        left, right = table[:, :, 0], table[:, 0] / table[:, :1, 0]
        if not torch.allclose(left[:, :, None] * right[:, None], table, rtol=1e-13, atol=0):
            return None
        return torch.ones_like(damping[0]), (left.rsqrt(), right.rsqrt())


def _times_rows(matrix: Tensor, m: Tensor) -> Tensor:
    """(groups, a, rows) times (groups, rows, columns, k) over the rows."""
    return (matrix @ m.flatten(2)).reshape(len(m), -1, *m.shape[2:])


def _times_columns(m: Tensor, matrix: Tensor) -> Tensor:
    """(groups, rows, columns, k) times (groups, columns, a) over the columns."""
    moved = m.permute(0, 3, 1, 2)
    product = moved.reshape(len(m), -1, m.shape[2]) @ matrix
    return product.reshape(*moved.shape[:3], -1).permute(0, 2, 3, 1)
