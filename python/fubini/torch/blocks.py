"""Metric blocks: the symmetric positive semi-definite metric of some parameters, in the form that is cheapest to solve.

A block belongs to one or more parameters, flattened and concatenated in order; all vectors have that layout. Its numbers
are float64 on the parameters' device, whatever the parameters' dtype. Blocks are values: every operation returns a new
one. Kronecker factors follow Martens and Grosse (2015), arXiv:1503.05671; they are damped exactly, through their
eigenvectors, and not by splitting the damping between the factors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch

from fubini.errors import NumericalError
from fubini.solve import CG, Dual, SolveStatus, solve, solve_blocks

Tensor = torch.Tensor

# Up to so many rows a Kronecker product is solved row by row: eigenvectors cost about 20 Cholesky decompositions.
_FEW_ROWS = 16


@dataclass(frozen=True)
class BlockInfo:
    """What is known about one solution, for diagnostics.

    Attributes:
        label: The block's name.
        size: Number of unknowns.
        method: ``"diagonal"``, ``"cholesky"``, ``"eigen"``, ``"dual"`` or ``"cg"``.
        iterations: Of ``"cg"``; 0 otherwise.
    """

    label: str
    size: int
    method: str
    iterations: int = 0
    _condition: Callable[[], float] = field(default=lambda: float("nan"), repr=False)
    _residual: Callable[[], float] = field(default=lambda: float("nan"), repr=False)

    @cached_property
    def condition(self) -> float:
        """Condition number of the damped block (2-norm, or estimated in the 1-norm); NaN for ``"cg"``. Computed on demand."""
        return self._condition()

    @cached_property
    def residual(self) -> float:
        """``|(G + D) x - b| / |b|``. Computed on demand."""
        return self._residual()


class Block(ABC):
    """The metric G of some parameters.

    Args:
        parameters: The parameters, at least one, all on one device.
        label: Name for messages, e.g. the layer's.

    Attributes:
        parameters: As above.
        label: As above.
        size: Number n of entries of all parameters together.
    """

    #: Whether the element-wise mean of several blocks' ``tensors()`` gives the block of the mean metric (for Kronecker
    #: factors: the mean of the factors, which is what K-FAC averages).
    linear = True

    def __init__(self, parameters: Sequence[Tensor], label: str = "") -> None:
        if not parameters:
            raise ValueError(f"parameters: expected at least one for block {label!r}, got none")
        self.parameters = tuple(parameters)
        self.label = label
        self.size = sum(p.numel() for p in self.parameters)

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Return G v.

        Args:
            v: (n,) or (n, k), float64.
        """

    @abstractmethod
    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``.

        Args:
            rhs: (n,) or (n, k), float64.
            damping: (n,), the diagonal of D, absolute values >= 0.

        Returns:
            x, of the shape of rhs, and information about the solution.

        Raises:
            NumericalError: If the damped block is singular or not positive definite.
        """

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal of G, (n,)."""

    def dense(self) -> Tensor:
        """Return G, (n, n)."""
        return self.product(torch.eye(self.size, dtype=torch.float64, device=self.device))

    def average(self, other: Block, decay: float) -> Self:
        """Return ``decay * self + (1 - decay) * other``; Kronecker factors are averaged one by one, as K-FAC does.

        Args:
            other: A block of the same kind for the same parameters.
            decay: Number in [0, 1].

        Raises:
            ValueError: If the blocks do not fit together.
        """
        self._check_same(other)
        mine, theirs = self.tensors(), other.tensors()
        return self.with_tensors(
            {name: decay * mine[name] + (1.0 - decay) * theirs[name] for name in mine}
        )

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return the block times a number >= 0."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the block's numbers by name, for state dictionaries and for averages over processes."""

    @abstractmethod
    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a block like this one with other numbers.

        Args:
            tensors: What ``tensors()`` returned.
        """

    @abstractmethod
    def restrict(self, keep: Sequence[bool]) -> Block:
        """Return the block of some of the parameters: the exact sub-matrix.

        Args:
            keep: For each parameter, whether it stays.
        """

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.parameters[0].device

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(p.shape)) for p in self.parameters)
        return f"{type(self).__name__}({self.label!r}, {shapes})"

    def _kept(self, keep: Sequence[bool]) -> tuple[list[Tensor], Tensor]:
        """Parameters that stay, and the positions of their entries."""
        if len(keep) != len(self.parameters) or not any(keep):
            raise ValueError(
                f"keep: expected {len(self.parameters)} booleans, at least one of them true, got {list(keep)}"
            )
        mask = torch.cat(
            [
                torch.full((p.numel(),), bool(stays), device=self.device)
                for p, stays in zip(self.parameters, keep, strict=True)
            ]
        )
        return [p for p, stays in zip(self.parameters, keep, strict=True) if stays], mask.nonzero()[
            :, 0
        ]

    def _check_same(self, other: Block) -> None:
        same = (
            type(self) is type(other)
            and len(self.parameters) == len(other.parameters)
            and all(a is b for a, b in zip(self.parameters, other.parameters, strict=True))
        )
        if not same:
            raise ValueError(
                f"other: expected a {type(self).__name__} of the same parameters, got {other}"
            )

    def _residual(self, x: Tensor, rhs: Tensor, damping: Tensor) -> Callable[[], float]:
        def compute() -> float:
            shift = damping if x.ndim == 1 else damping[:, None]
            error = self.product(x) + shift * x - rhs
            return float(error.norm() / rhs.norm().clamp_min(1e-300))

        return compute

    def _singular(self, damping: Tensor, reason: str = "") -> NumericalError:
        return NumericalError(
            f"{self.label}: the {self.size} x {self.size} metric is singular or not positive definite with lam = "
            f"{float(damping.min()):g}; pass a larger lam, e.g. 1e-3{reason}"
        )


class DiagonalBlock(Block):
    """A diagonal metric.

    Args:
        parameters: As for Block.
        values: (n,).
        label: As for Block.
    """

    def __init__(self, parameters: Sequence[Tensor], values: Tensor, label: str = "") -> None:
        super().__init__(parameters, label)
        self._values = _checked("values", values, (self.size,))

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return (self._values if v.ndim == 1 else self._values[:, None]) * v

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        damped = self._values + damping
        if not bool((damped > 0).all()):
            raise self._singular(damping)
        x = rhs / (damped if rhs.ndim == 1 else damped[:, None])
        return x, BlockInfo(
            self.label,
            self.size,
            "diagonal",
            0,
            lambda: float(damped.max() / damped.min()),
            self._residual(x, rhs, damping),
        )

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        return self._values

    def scaled(self, factor: float) -> DiagonalBlock:
        """Return the block times a number, see Block."""
        return DiagonalBlock(self.parameters, self._values * factor, self.label)

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers by name, see Block."""
        return {"values": self._values}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> DiagonalBlock:
        """Return a block with other numbers, see Block."""
        return DiagonalBlock(self.parameters, tensors["values"], self.label)

    def restrict(self, keep: Sequence[bool]) -> DiagonalBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return DiagonalBlock(parameters, self._values[index], self.label)


class DenseBlock(Block):
    """A metric as a matrix. Parts that its zeros make independent are solved on their own, all of one size in one call.

    Args:
        parameters: As for Block.
        matrix: (n, n), symmetric.
        label: As for Block.
    """

    def __init__(self, parameters: Sequence[Tensor], matrix: Tensor, label: str = "") -> None:
        super().__init__(parameters, label)
        self._matrix = _checked("matrix", matrix, (self.size, self.size))

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return self._matrix @ v

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        damped = self._matrix.clone()
        damped.diagonal().add_(damping)
        # A pseudo-inverse would hide that a block is singular, and a step along a negative eigenvalue goes uphill.
        if self._parts is None:
            [x], status = solve_blocks(
                [damped], [rhs], damping=0.0, throw=False, return_status=True
            )
            if status[0]:
                raise self._singular(damping, f" ({SolveStatus(status[0]).text})")
        else:
            x = torch.empty_like(rhs)
            for index in self._parts:
                parts = damped[index[:, :, None], index[:, None, :]]
                try:
                    x[index] = solve(parts, rhs[index], method="cholesky")
                except NumericalError as error:
                    raise self._singular(damping, f" ({error})") from error

        def condition() -> float:
            _, info = solve(damped, rhs, method="cholesky", return_info=True)
            return float(info.condition)

        info = BlockInfo(
            self.label, self.size, "cholesky", 0, condition, self._residual(x, rhs, damping)
        )
        return x, info

    def diagonal(self) -> Tensor:
        """Return the diagonal, (n,)."""
        return self._matrix.diagonal()

    def dense(self) -> Tensor:
        """Return G, (n, n)."""
        return self._matrix

    def scaled(self, factor: float) -> DenseBlock:
        """Return the block times a number, see Block."""
        return DenseBlock(self.parameters, self._matrix * factor, self.label)

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers by name, see Block."""
        return {"matrix": self._matrix}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> DenseBlock:
        """Return a block with other numbers, see Block."""
        return DenseBlock(self.parameters, tensors["matrix"], self.label)

    def restrict(self, keep: Sequence[bool]) -> DenseBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return DenseBlock(parameters, self._matrix[index][:, index], self.label)

    @cached_property
    def _parts(self) -> list[Tensor] | None:
        """Indices (count, size) of the independent parts of each size; None where there is one part."""
        coupled = self._matrix != 0
        if bool(coupled[0].all()):
            return None
        coupled.fill_diagonal_(True)
        label = torch.arange(self.size, device=self.device)
        # The smallest index spreads along couplings; blocks are dense, so a few rounds suffice.
        while True:
            spread = torch.where(coupled, label, self.size).amin(dim=1)
            if bool((spread == label).all()):
                break
            label = spread
        groups: dict[int, list[Tensor]] = {}
        for root in torch.unique(label):
            members = (label == root).nonzero()[:, 0]
            groups.setdefault(len(members), []).append(members)
        if len(groups) == 1 and self.size in groups:
            return None
        return [torch.stack(members) for members in groups.values()]


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
        self._left = _checked(
            "left", left, (groups, rows) if left.ndim == 2 else (groups, rows, rows)
        )
        self._right = _checked("right", right, (groups, width, width))
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
        try:
            m = solve(
                matrices.reshape(groups * count, width, width),
                m.reshape(groups * count, width, -1),
                method="cholesky",
            ).reshape(m.shape)
        except NumericalError as error:
            raise self._singular(damping, f" ({error})") from error
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
        self._factor = _checked("factor", factor, (factor.shape[0], self.size))

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        return self._factor.mT @ (self._factor @ v)

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
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

        return x, BlockInfo(
            self.label, self.size, "dual", 0, condition, self._residual(x, rhs, damping)
        )

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
        return FactorBlock(self.parameters, rows, self.label)

    def scaled(self, factor: float) -> FactorBlock:
        """Return the block times a number, see Block."""
        return FactorBlock(self.parameters, self._factor * factor**0.5, self.label)

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers by name, see Block."""
        return {"factor": self._factor}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> FactorBlock:
        """Return a block with other numbers (any number of rows), see Block."""
        return FactorBlock(self.parameters, tensors["factor"], self.label)

    def restrict(self, keep: Sequence[bool]) -> FactorBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)
        return FactorBlock(parameters, self._factor[:, index], self.label)


class OperatorBlock(Block):
    """A metric known by its products with vectors: solved by preconditioned conjugate gradients.

    Args:
        parameters: As for Block.
        apply: Maps v (n,) to G v (n,), float64.
        label: As for Block.
        diagonal: Returns the diagonal of G, (n,), for the preconditioner and ``diagonal()``; None: the diagonal costs
            n products, and the preconditioner is the damping alone.
        tolerance: Residual at which conjugate gradients stop, relative to the right-hand side.
        max_iterations: Their limit; None: 10 n, at least 100.
    """

    linear = False

    def __init__(
        self,
        parameters: Sequence[Tensor],
        apply: Callable[[Tensor], Tensor],
        label: str = "",
        *,
        diagonal: Callable[[], Tensor] | None = None,
        tolerance: float = 1e-10,
        max_iterations: int | None = None,
    ) -> None:
        super().__init__(parameters, label)
        self._apply = apply
        self._find_diagonal = diagonal
        self._tolerance, self._max_iterations = tolerance, max_iterations

    def product(self, v: Tensor) -> Tensor:
        """Return G v, see Block."""
        if v.ndim == 1:
            return self._apply(v)
        return torch.stack([self._apply(column) for column in v.unbind(dim=1)], dim=1)

    def solve(self, rhs: Tensor, damping: Tensor) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``, see Block."""
        weights = damping if self._find_diagonal is None else damping + self.diagonal()
        # Where nothing is known, the residual itself is the direction.
        weights = torch.where(weights > 0, weights, torch.ones_like(weights))

        def damped(v: Tensor) -> Tensor:
            return self.product(v.mT).mT + damping * v

        columns = (rhs if rhs.ndim == 2 else rhs[:, None]).mT
        method = CG(self._tolerance, self._max_iterations, lambda r: r / weights)
        x, info = solve(damped, columns.contiguous(), method=method, throw=False, return_info=True)
        if (info.status > 1).any():
            raise NumericalError(
                f"{self.label}: conjugate gradients stopped after {int(info.iterations.max())} iterations at a residual of "
                f"{float(info.residual.max()):.1e}, expected {self._tolerance:g}; pass a larger lam"
            )
        solution = x.mT if rhs.ndim == 2 else x[0]
        worst = float(info.residual.max())
        return solution, BlockInfo(
            self.label,
            self.size,
            "cg",
            int(info.iterations.max()),
            _residual=lambda: worst,
        )

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

    def scaled(self, factor: float) -> OperatorBlock:
        """Return the block times a number, see Block."""
        known = self._find_diagonal
        return self._like(
            self.parameters,
            lambda v: factor * self._apply(v),
            None if known is None else lambda: factor * self.diagonal(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: there are no numbers."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> OperatorBlock:
        """Return the block itself: there are no numbers."""
        return self

    def restrict(self, keep: Sequence[bool]) -> OperatorBlock:
        """Return the block of some of the parameters, see Block."""
        parameters, index = self._kept(keep)

        def apply(v: Tensor) -> Tensor:
            whole = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            whole[index] = v
            return self._apply(whole)[index]

        known = self._find_diagonal
        return self._like(
            parameters, apply, None if known is None else lambda: self.diagonal()[index]
        )

    def _like(
        self,
        parameters: Sequence[Tensor],
        apply: Callable[[Tensor], Tensor],
        diagonal: Callable[[], Tensor] | None,
    ) -> OperatorBlock:
        return OperatorBlock(
            parameters,
            apply,
            self.label,
            diagonal=diagonal,
            tolerance=self._tolerance,
            max_iterations=self._max_iterations,
        )


def _checked(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        got = tuple(values.shape) if hasattr(values, "shape") else type(values).__name__
        raise ValueError(f"{name}: expected a tensor of shape {shape}, got {got}")
    plain = values.dtype is torch.float64 and not values.requires_grad
    return values if plain else values.detach().to(torch.float64)
