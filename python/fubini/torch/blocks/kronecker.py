"""Kronecker products, as K-FAC makes them (Martens and Grosse 2015, arXiv:1503.05671).

They are damped exactly, through the eigenvectors of a factor, and not by splitting the damping between the factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fubini._solve_factored import module_of
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
        self._spectra: dict[str, Any] = {}

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        m = _times_columns(self._matrices(v), self._right)
        left = self._left
        m = left[:, :, None, None] * m if left.ndim == 2 else _times_rows(left, m)
        result: Tensor = self._vector(m, v.ndim)
        return result

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        left: Any = self._left
        right: Any = self._right
        side: Any = rhs
        shift: Any = damping
        rows, width = left.shape[1], right.shape[2]
        by_rows = rows <= _FEW_ROWS and rows < width and rhs.device.type == "cpu"
        if by_rows:  # small: NumPy's calls cost a third of torch's
            left, right, side, shift = (t.numpy() for t in (left, right, side, shift))
        # Dampings that are equal within each parameter, or proportional to the diagonal, have this form. Then one
        # eigenvalue decomposition of each factor gives the exact solution; else the matrix is formed.
        found = self._product_form(shift)
        if found is None:
            return DenseBlock(self.parameters, self.dense(), self.label).solve(rhs, damping)
        lam, scale = found
        m = self._matrices(side)
        if scale is not None:
            r, c = scale
            left = left * r**2 if left.ndim == 2 else r[:, :, None] * left * r[:, None]
            right = c[:, :, None] * right * c[:, None]
            scale = r[:, :, None, None] * c[:, None, :, None]
            m = m * scale
        vectors = None
        if left.ndim == 3:
            left, vectors = self._spectrum("left", left)
            m = _times_rows(vectors.swapaxes(1, 2), m)
        # In the eigenvectors of the left factor every row is a system of its own. Factors are positive semi-definite:
        # eigenvalues below zero are rounding.
        values = left.clip(0.0)
        m = (self._by_cholesky if by_rows else self._by_spectrum)(values, right, lam, m, damping)
        if vectors is not None:
            m = _times_rows(vectors, m)
        if scale is not None:
            m = m * scale
        x = self._vector(m, rhs.ndim)
        x = torch.from_numpy(x) if by_rows else x

        def condition() -> float:
            spectrum = module_of(right).linalg.eigvalsh(right).clip(0.0)
            products = values[:, :, None] * spectrum[:, None, :] + lam
            return float(products.max() / products.min())

        residual = self._residual(x, rhs, damping)
        return x, BlockInfo(self.label, self.size, "eigen", 0, condition, residual)

    # Arrays are NumPy's or torch's from here on. Both solve (values_i R + lam) x_i = m_i for each row i, with m (groups,
    # rows, columns, k).

    def _by_spectrum(self, values: Any, right: Any, lam: Any, m: Any, damping: Tensor) -> Any:
        spectrum, vectors = self._spectrum("right", right)
        products = values[:, :, None] * spectrum.clip(0.0)[:, None, :] + lam
        smallest = products.max() * 2.3e-16 * max(products.shape[1:])
        if not bool((products > smallest).all()):
            raise self._singular(damping)
        m = _times_columns(m, vectors) / products[..., None]
        return _times_columns(m, vectors.swapaxes(1, 2))

    def _by_cholesky(self, values: Any, right: Any, lam: Any, m: Any, damping: Tensor) -> Any:
        # For few rows cheaper than all eigenvectors.
        width = right.shape[2]
        systems = (values[:, :, None, None] * right[:, None]).reshape(-1, width, width)
        systems.reshape(len(systems), -1)[:, :: width + 1] += lam
        sides = m.reshape(len(systems), width, -1)
        solved = cholesky(list(systems), list(sides), lambda why: self._singular(damping, why))
        return np.stack(solved).reshape(m.shape)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        left = self._left if self._left.ndim == 2 else self._left.diagonal(dim1=-2, dim2=-1)
        right = self._right.diagonal(dim1=-2, dim2=-1)
        result: Tensor = self._vector((left[:, :, None] * right[:, None])[..., None], 1)
        return result

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

    def _spectrum(self, name: str, factor: Any) -> Any:
        """Eigenvalues and eigenvectors; those of the factor itself are kept for other dampings."""
        own = factor is (self._left if name == "left" else self._right)
        if own and name in self._spectra:
            return self._spectra[name]
        found = module_of(factor).linalg.eigh(factor)
        if own:
            self._spectra[name] = found
        return found

    def _matrices(self, v: Any) -> Any:
        """(n,) or (n, k) -> (groups, rows, columns, k)."""
        groups, rows = self._left.shape[:2]
        parts, start = [], 0
        for count in self._columns:
            size = groups * rows * count
            parts.append(v[start : start + size].reshape(groups, rows, count, -1))
            start += size
        return parts[0] if len(parts) == 1 else module_of(v).concatenate(parts, 2)

    def _vector(self, m: Any, ndim: int) -> Any:
        """The inverse of _matrices."""
        shape = (-1,) if ndim == 1 else (-1, m.shape[-1])
        parts, start = [], 0
        for count in self._columns:
            parts.append(m[:, :, start : start + count].reshape(shape))
            start += count
        return module_of(m).concatenate(parts)

    def _product_form(self, damping: Any) -> Any:
        """Write D as lam / (r c)^2 with r for each row and c for each column; None where that is not possible."""
        # Scaling rows and columns by r and c then turns D into lam times the identity.
        if bool((damping == damping[0]).all()):
            return damping[0], None
        if not bool((damping > 0).all()):
            return None
        table = self._matrices(damping)[..., 0]
        left, right = table[:, :, 0], table[:, 0] / table[:, :1, 0]
        product = left[:, :, None] * right[:, None]
        if bool((abs(product - table) > 1e-13 * table).any()):
            return None
        return 1.0, (left**-0.5, right**-0.5)


def _times_rows(matrix: Any, m: Any) -> Any:
    """(groups, a, rows) times (groups, rows, columns, k) over the rows."""
    return (matrix @ m.reshape(*m.shape[:2], -1)).reshape(len(m), -1, *m.shape[2:])


def _times_columns(m: Any, matrix: Any) -> Any:
    """(groups, rows, columns, k) times (groups, columns, a) over the columns."""
    xp = module_of(m)
    moved = xp.moveaxis(m, 3, 1)
    product = moved.reshape(len(m), -1, m.shape[2]) @ matrix
    return xp.moveaxis(product.reshape(*moved.shape[:3], -1), 1, 3)
