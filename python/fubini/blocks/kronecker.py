"""Kronecker products, as K-FAC makes them (Martens and Grosse 2015, arXiv:1503.05671).

They are damped exactly, through the eigenvectors of a factor, and not by splitting the damping between the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import shared_array, to_numpy
from fubini.blocks.base import Block, BlockInfo, checked, places
from fubini.blocks.matrix import DenseBlock
from fubini.solvers.systems import SolveStatus

Tensor = torch.Tensor

# Up to so many rows a Kronecker product is solved row by row: eigenvectors cost about 20 Cholesky decompositions.
_FEW_ROWS = 16
# Factors of every row are kept up to this many columns.
_WIDE = 256


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
        self._numbers = {"left": self._left, "right": self._right}
        self._columns = tuple(columns)
        self._spectra: dict[str, Any] = {}

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        m = _times_columns(self._matrices(v), self._right)
        left = self._left
        m = left[:, :, None, None] * m if left.ndim == 2 else _times_rows(left, m)
        return self._vector(m, v.ndim)

    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        # Dampings that are equal within each parameter, or proportional to the diagonal, have this form. Then one
        # eigenvalue decomposition of each factor gives the exact solution; else the matrix is formed.
        found = self._product_form(damping)
        if found is None:
            return DenseBlock(self.parameters, self.dense(), self.label).solve(rhs, damping)
        lam, scales = found
        left, right = self._left, self._right
        scale = None
        if scales is not None:
            r, c = scales
            left = left * r**2 if left.ndim == 2 else r[:, :, None] * left * r[:, None]
            right = c[:, :, None] * right * c[:, None]
            scale = r[:, :, None, None] * c[:, None, :, None]
        rows, width = left.shape[1], right.shape[2]
        few = left.ndim == 3 and rows <= _FEW_ROWS and rows < width and self.device.type == "cpu"
        if few and scale is None and rhs.ndim == 1:
            x = torch.from_numpy(self._by_rows(left, right, self._columns, rhs, lam))
        else:
            m = self._matrices(rhs)
            m = m if scale is None else m * scale
            if few:
                each = [
                    self._by_rows(left, right, (width,), side.reshape(-1), lam)
                    for side in m.unbind(dim=3)
                ]
                m = torch.from_numpy(np.stack(each, axis=-1)).reshape(m.shape)
            else:
                m = self._by_spectra(left, right, lam, m)
            x = self._vector(m if scale is None else m * scale, rhs.ndim)

        def condition() -> float:
            values = left if left.ndim == 2 else torch.linalg.eigvalsh(left)
            spectrum = torch.linalg.eigvalsh(right).clip(0.0)
            products = values.clip(0.0)[:, :, None] * spectrum[:, None, :] + lam
            return float(products.max() / products.min())

        return x, self._info("eigen", condition, x, rhs, damping)

    def factorise(self, factors: _core.Preconditioner, damping: float) -> bool:
        """Give the block to the kernel, see Block; for few rows, as ``solve``."""
        rows, width = self._left.shape[1], self._right.shape[2]
        if self._left.ndim == 2 or not rows <= _FEW_ROWS or rows >= width or width > _WIDE:
            return False
        left, right = shared_array(self._left), shared_array(self._right)
        if left is None or right is None:
            return False
        return factors.add_kronecker(left, right, self._columns, damping)

    def _by_rows(
        self, left: Tensor, right: Tensor, columns: Sequence[int], rhs: Tensor, lam: float
    ) -> Any:
        """One row after the other in the eigenvectors of L: for few rows cheaper than the eigenvectors of R."""
        x, status = _core.solve_kronecker(
            to_numpy(left), to_numpy(right), columns, to_numpy(rhs), lam
        )
        if status:
            raise self._singular(lam, f" ({SolveStatus(status).text})")
        return x

    def _by_spectra(self, left: Tensor, right: Tensor, lam: float, m: Tensor) -> Tensor:
        """Solve in the eigenvectors of both factors, with m (groups, rows, columns, k)."""
        vectors = None
        if left.ndim == 3:
            left, vectors = self._spectrum("left", left)
            m = _times_rows(vectors.mT, m)
        # Factors are positive semi-definite: eigenvalues below zero are rounding.
        spectrum, others = self._spectrum("right", right)
        products = left.clip(0.0)[:, :, None] * spectrum.clip(0.0)[:, None, :] + lam
        smallest = products.max() * 2.3e-16 * max(products.shape[1:])
        if not bool((products > smallest).all()):
            raise self._singular(lam)
        m = _times_columns(_times_columns(m, others) / products[..., None], others.mT)
        return m if vectors is None else _times_rows(vectors, m)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        left = self._left if self._left.ndim == 2 else self._left.diagonal(dim1=-2, dim2=-1)
        right = self._right.diagonal(dim1=-2, dim2=-1)
        return self._vector((left[:, :, None] * right[:, None])[..., None], 1)

    def _like(self, parameters: Sequence[Tensor], *numbers: Tensor) -> KroneckerBlock:
        left, right = numbers
        return KroneckerBlock(parameters, left, right, self._columns, self.label)

    def restrict(self, keep: Sequence[bool]) -> KroneckerBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, _ = self._kept(keep)
        index = places(keep, self._columns).to(self.device)
        columns = [c for c, k in zip(self._columns, keep, strict=True) if k]
        return KroneckerBlock(
            parameters, self._left, self._right[:, index][:, :, index], columns, self.label
        )

    def _spectrum(self, name: str, factor: Tensor) -> Any:
        """Eigenvalues and eigenvectors; those of the factor itself are kept for other dampings."""
        own = factor is (self._left if name == "left" else self._right)
        if own and name in self._spectra:
            return self._spectra[name]
        found = torch.linalg.eigh(factor)
        if own:
            self._spectra[name] = found
        return found

    def _matrices(self, v: Tensor) -> Tensor:
        """(n,) or (n, k) -> (groups, rows, columns, k)."""
        groups, rows = self._left.shape[:2]
        sizes = [groups * rows * count for count in self._columns]
        parts = [
            part.reshape(groups, rows, count, -1)
            for part, count in zip(torch.split(v, sizes), self._columns, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _vector(self, m: Tensor, ndim: int) -> Tensor:
        """The inverse of _matrices."""
        shape = (-1,) if ndim == 1 else (-1, m.shape[-1])
        parts = torch.split(m, list(self._columns), dim=2)
        return torch.cat([part.reshape(shape) for part in parts])

    def _product_form(
        self, damping: Tensor | float
    ) -> tuple[float, tuple[Tensor, Tensor] | None] | None:
        """Write D as lam / (r c)^2 with r for each row and c for each column; None where that is not possible."""
        # Scaling rows and columns by r and c then turns D into lam times the identity.
        if not isinstance(damping, Tensor):
            return damping, None
        if bool((damping == damping[0]).all()):
            return float(damping[0]), None
        if not bool((damping > 0).all()):
            return None
        table = self._matrices(damping)[..., 0]
        left, right = table[:, :, 0], table[:, 0] / table[:, :1, 0]
        product = left[:, :, None] * right[:, None]
        if bool(((product - table).abs() > 1e-13 * table).any()):
            return None
        return 1.0, (left**-0.5, right**-0.5)


def _times_rows(matrix: Tensor, m: Tensor) -> Tensor:
    """(groups, a, rows) times (groups, rows, columns, k) over the rows."""
    return (matrix @ m.reshape(*m.shape[:2], -1)).reshape(len(m), -1, *m.shape[2:])


def _times_columns(m: Tensor, matrix: Tensor) -> Tensor:
    """(groups, rows, columns, k) times (groups, columns, a) over the columns."""
    moved = m.movedim(3, 1)
    product = moved.reshape(len(m), -1, m.shape[2]) @ matrix
    return product.reshape(*moved.shape[:3], -1).movedim(1, 3)
