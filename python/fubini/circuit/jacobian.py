"""The derivative of a circuit's angles by its weights, and what it makes of blocks of the metric over angles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fubini.arrays import hermitian
from fubini.options import Index, Real

#: Angle slots, and their covariances (rows, m, m) or variances (rows, m); one row per input, or one for all.
AngleBlock = tuple[Sequence[int], npt.NDArray[Any]]
#: Weights, ascending, and the matrices over them, (rows, c, c).
WeightBlock = tuple[Index, npt.NDArray[Any]]
#: Rows of a sparse matrix: where each starts, (P + 1,), and the angles and coefficients of all.
Directions = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Real]


class Jacobian:
    """d angles / d weights, for the angles that depend on weights.

    Nearly always an angle depends on one weight; then the matrix is kept as a column and a coefficient for each angle,
    and products with it are gathers and sums.

    Args:
        rows: The angles' slots in the circuit, ascending, shape (k,).
        values: (1 or batch, k, P): the first axis is 1 where the derivative is the same for every input.

    Attributes:
        rows: As above.
        size: Number of weights P.
        inputs: 1 or batch.
        columns: The weight that each angle depends on, (k,); None where an angle depends on several.
        coefficients: (1 or batch, k); None with ``columns``.
        shared: Whether a weight enters several angles, or an angle depends on several weights.
    """

    def __init__(self, rows: Sequence[int] | Index, values: Real) -> None:
        self.rows: Index = np.asarray(rows, dtype=np.intp)
        self.inputs, _, self.size = values.shape
        self._values: Real | None = values
        self.columns: Index | None = None
        self.coefficients: Real | None = None
        pattern = values.any(axis=0)
        if self.size and (np.count_nonzero(pattern, axis=1) <= 1).all():
            self.columns = pattern.argmax(axis=1)
            self.coefficients = values[:, np.arange(len(self.rows)), self.columns]
        self._find_shared()

    @classmethod
    def gather(
        cls, rows: Sequence[int] | Index, columns: Index, coefficients: Real, size: int
    ) -> "Jacobian":
        """Return the Jacobian of angles that depend on one weight each.

        Args:
            rows: Slots (k,).
            columns: Weights (k,).
            coefficients: (1 or batch, k).
            size: Number of weights.
        """
        self = cls.__new__(cls)
        self.rows = np.asarray(rows, dtype=np.intp)
        self.inputs, self.size, self._values = len(coefficients), size, None
        self.columns, self.coefficients = columns, coefficients
        self._find_shared()
        return self

    def _find_shared(self) -> None:
        self.shared = self.columns is None or len(np.unique(self.columns)) < len(self.columns)

    @classmethod
    def identity(cls, size: int) -> "Jacobian":
        """Return the Jacobian of angles that are the weights."""
        every = np.arange(size)
        return cls.gather(every, every, np.ones((1, size)), size)

    @property
    def values(self) -> Real:
        """The dense matrices, (1 or batch, k, P)."""
        if self._values is None:
            assert self.columns is not None
            assert self.coefficients is not None
            self._values = np.zeros((self.inputs, len(self.rows), self.size))
            self._values[:, np.arange(len(self.rows)), self.columns] = self.coefficients
        return self._values

    def placed(self, blocks: Sequence[tuple[Sequence[int], Real]]) -> Real | None:
        """Return the matrix J^T g J over all weights, (P, P), for blocks of one metric at once.

        Args:
            blocks: Slots, without a common one, with covariances (m, m) or variances (m,).

        Returns:
            The matrix; None where weights are shared, or J differs between inputs.
        """
        if self.shared or self.inputs > 1:
            return None
        diagonal = bool(blocks) and blocks[0][1].ndim == 1
        known = self._places.get(diagonal)
        slots = [block[0] for block in blocks]
        if known is None or known.slots != slots:
            known = self._places[diagonal] = _Placing.of(self, slots, diagonal)
        result = np.zeros(self.size * self.size)
        if known.places is not None:
            values = np.concatenate([values.reshape(-1) for _, values in blocks])
            if known.kept is not None:
                values = values[known.kept]
            result[known.places] = values if known.scales is None else values * known.scales
        return result.reshape(self.size, self.size)

    @cached_property
    def _places(self) -> "dict[bool, _Placing]":
        return {}

    @cached_property
    def directions(self) -> Directions | None:
        """The columns as sparse directions in the space of the angles, where they are fewer than the angles.

        Their metric is then cheaper than that of the angles. None where they are not, or differ between inputs.
        """
        fewer = self.shared and self.size < len(self.rows)
        return self.sparse if fewer else None

    @cached_property
    def sparse(self) -> Directions | None:
        """The columns as sparse directions in the space of the angles; None where they differ between inputs."""
        if self.inputs > 1:
            return None
        weights, angles = np.nonzero(self.values[0].T)
        starts = np.searchsorted(weights, np.arange(self.size + 1))
        coefficients = np.ascontiguousarray(self.values[0].T[weights, angles])
        return starts.astype(np.int64), self.rows[angles].astype(np.int64), coefficients

    @cached_property
    def position(self) -> dict[int, int]:
        """Row number of every slot."""
        return {slot: k for k, slot in enumerate(self.rows.tolist())}

    def restricted(self, slots: Iterable[int]) -> "Jacobian":
        """Return the rows of some slots only."""
        keep = [self.position[slot] for slot in sorted(slots)]
        return Jacobian(self.rows[keep], self.values[:, keep])

    def by(self, columns: Index) -> "Jacobian":
        """Return the derivative by some of the weights, of the angles that depend on them."""
        if len(columns) == self.size and (columns == np.arange(self.size)).all():
            return self
        values = self.values[:, :, columns]
        keep = np.flatnonzero(values.any(axis=(0, 2)))
        return Jacobian(self.rows[keep], values[:, keep])

    def of(self, first: int, last: int) -> "Jacobian":
        """Return the Jacobian of the inputs from first to last."""
        if self.inputs == 1:
            return self
        if self.columns is not None and self.coefficients is not None:
            part = self.coefficients[first:last]
            return Jacobian.gather(self.rows, self.columns, part, self.size)
        return Jacobian(self.rows, self.values[first:last])

    def push(self, vectors: Real) -> Real:
        """Return J v, (1 or batch, c, k), for vectors (c, P)."""
        if self.columns is not None and self.coefficients is not None:
            return self.coefficients[:, None, :] * vectors[None][:, :, self.columns]
        result: Real = vectors[None] @ self.values.transpose(0, 2, 1)
        return result

    def pull(self, covectors: Real) -> Real:
        """Return J^T u, (batch, c, P), for covectors (batch, c, k)."""
        if self.columns is None or self.coefficients is None:
            result: Real = covectors @ self.values
            return result
        scaled = covectors * self.coefficients[:, None, :]
        result = np.zeros((*scaled.shape[:-1], self.size))
        columns, starts, order = self._every
        if len(columns):
            result[..., columns] = np.add.reduceat(scaled[..., order], starts, axis=-1)
        return result

    @cached_property
    def _every(self) -> tuple[Index, Index, Index]:
        assert self.columns is not None
        return _groups(self.columns)

    def congruence(self, block: AngleBlock) -> WeightBlock:
        """Return J^T g J of one block of the metric over angles, on the weights that it touches.

        Args:
            block: Slots without a row here are left out.
        """
        slots, values = block
        chosen = self._selection(tuple(slots))
        diagonal = values.ndim == 2
        if chosen.kept is not None:
            values = values[:, chosen.kept]
            values = values if diagonal else values[:, :, chosen.kept]
        if self.coefficients is not None:
            return chosen.weights, _gathered(values, self.coefficients[:, chosen.rows], chosen)
        part = self.values[:, chosen.rows][:, :, chosen.weights]
        pulled = part.transpose(0, 2, 1) @ (
            values[:, :, None] * part if diagonal else values @ part
        )
        return chosen.weights, hermitian(pulled)

    def _selection(self, slots: tuple[int, ...]) -> "_Selection":
        """What a block of these slots means for the weights; found once."""
        known = self._selections.get(slots)
        if known is None:
            kept = [k for k, slot in enumerate(slots) if slot in self.position]
            rows = np.array([self.position[slots[k]] for k in kept], dtype=np.intp)
            if self.columns is None:
                weights = np.flatnonzero(self.values[:, rows].any(axis=(0, 1)))
                groups = None
            else:
                weights, starts, order = _groups(self.columns[rows])
                rows = rows[order]
                kept = [kept[k] for k in order]
                groups = starts if len(weights) < len(rows) else None
            every = kept == list(range(len(slots)))
            known = _Selection(
                None if every else np.array(kept, dtype=np.intp), rows, weights, groups
            )
            self._selections[slots] = known
        return known

    @cached_property
    def _selections(self) -> "dict[tuple[int, ...], _Selection]":
        return {}


@dataclass(frozen=True, eq=False)
class _Placing:
    """Where the entries of blocks, one after the other, go in the matrix over the weights."""

    slots: list[Sequence[int]]
    kept: Index | None  # entries whose slots have a row; None for all
    places: Index | None  # None for no entry at all
    scales: Real | None  # None for ones

    @classmethod
    def of(cls, jacobian: Jacobian, slots: list[Sequence[int]], diagonal: bool) -> "_Placing":
        assert jacobian.columns is not None
        assert jacobian.coefficients is not None
        places, scales = [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
        for one in slots:
            rows = np.array([jacobian.position.get(slot, -1) for slot in one], dtype=np.intp)
            weights = np.where(rows < 0, -1, jacobian.columns[rows])
            factors = jacobian.coefficients[0, rows]
            if diagonal:
                places.append(np.where(rows < 0, -1, weights * (jacobian.size + 1)))
                scales.append(factors**2)
            else:
                inside = (rows[:, None] >= 0) & (rows >= 0)
                at = weights[:, None] * jacobian.size + weights
                places.append(np.where(inside, at, -1).reshape(-1))
                scales.append((factors[:, None] * factors).reshape(-1))
        every, factors = np.concatenate(places), np.concatenate(scales)
        kept = None if (every >= 0).all() else np.flatnonzero(every >= 0)
        if kept is not None:
            every, factors = every[kept], factors[kept]
        return cls(
            slots, kept, every if len(every) else None, None if (factors == 1.0).all() else factors
        )


@dataclass(frozen=True, eq=False)
class _Selection:
    """The slots of a block that have a row, ordered by weight."""

    kept: Index | None  # their positions in the block, None for all as they stand
    rows: Index
    weights: Index  # distinct, ascending
    starts: Index | None  # where a weight's rows start, if some weight has several


def _groups(columns: Index) -> tuple[Index, Index, Index]:
    """Distinct columns, where each starts in sorted order, and that order."""
    order = np.argsort(columns, kind="stable")
    distinct, starts = np.unique(columns[order], return_index=True)
    return distinct, starts, order


def _gathered(values: npt.NDArray[Any], coefficients: Real, chosen: _Selection) -> npt.NDArray[Any]:
    count = len(chosen.weights)
    if not count:
        return np.zeros((len(values), 0, 0))
    if values.ndim == 2:
        sums = values * coefficients**2
        if chosen.starts is not None:
            sums = np.add.reduceat(sums, chosen.starts, axis=1)
        result = np.zeros((len(sums), count, count))
        every = np.arange(count)
        result[:, every, every] = sums
        return result
    scaled = values
    if (coefficients != 1.0).any():
        # The product of the coefficients first: it is the same for (i, j) and (j, i).
        scaled = values * (coefficients[:, :, None] * coefficients[:, None, :])
    if chosen.starts is None:
        return scaled
    sums = np.add.reduceat(scaled, chosen.starts, axis=1)
    return hermitian(np.add.reduceat(sums, chosen.starts, axis=2))


def merged(blocks: Iterable[WeightBlock]) -> list[WeightBlock]:
    """Add up blocks that share weights: what is left has no weight in common.

    Returns:
        Blocks in the order of their first weight.
    """
    result: list[WeightBlock] = []
    for columns, matrices in blocks:
        if not len(columns):
            continue
        touching = [b for b in result if np.intersect1d(b[0], columns, assume_unique=True).size]
        if touching:
            result = [b for b in result if not any(b is t for t in touching)]
            parts = [*touching, (columns, matrices)]
            columns = np.unique(np.concatenate([c for c, _ in parts]))
            rows = max(len(m) for _, m in parts)
            matrices = np.zeros((rows, len(columns), len(columns)))
            for c, m in parts:
                at = np.searchsorted(columns, c)
                matrices[:, at[:, None], at] += m
        result.append((columns, matrices))
    return sorted(result, key=lambda block: int(block[0][0]))
