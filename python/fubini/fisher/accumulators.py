"""Accumulate what backward passes bring into metric blocks: one unit for each block."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini.blocks import Block, DenseBlock, DiagonalBlock, FactorBlock, KroneckerBlock
from fubini.fisher.calls import Call, KroneckerCall, plus
from fubini.options import Approx, Index, LayerRule, Real

Tensor = torch.Tensor
#: What ``Pass.backward`` returns.
Cotangents = Mapping[int, Tensor]

# Entries of an array of rows that is made at once.
_CHUNK = 1 << 24


@dataclass(eq=False)
class Unit(ABC):
    """Parameters that get one block, and the uses of the layers that they belong to.

    Attributes:
        parameters: In the block's order.
        label: For messages.
        calls: Uses of layers; those of others count for nothing.
    """

    parameters: list[Tensor]
    label: str
    calls: Sequence[Call]

    def __post_init__(self) -> None:
        self.size = sum(p.numel() for p in self.parameters)
        order = {id(p): i for i, p in enumerate(self.parameters)}
        # For every use the rule's names of the parameters by their positions in the block.
        self._uses: list[tuple[Any, dict[int, str]]] = []
        for call in self.calls:
            names = {order[id(p)]: n for n, p in call.parameters.items() if id(p) in order}
            if names:
                self._uses.append((call, dict(sorted(names.items()))))

    @abstractmethod
    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass.

        Args:
            cotangents: For calls of the pass those of their outputs, (K, *outputs.shape).
            data: Number of data.
        """

    @abstractmethod
    def block(self) -> Block:
        """Return the block."""

    def _live(self, cotangents: Cotangents) -> list[tuple[Any, Tensor, dict[int, str]]]:
        return [
            (call, cotangents[call.key], names)
            for call, names in self._uses
            if call.key in cotangents
        ]

    def _rows(self, cotangents: Cotangents, data: int) -> Iterator[Tensor]:
        """Derivatives by the parameters, (K, n, P), summed over all uses: for so many data at once as memory allows."""
        live = self._live(cotangents)
        columns = len(live[0][1]) if live else 1
        count = max(1, _CHUNK // max(1, columns * self.size))
        for start in range(0, data if live else 0, count):
            parts: dict[int, Tensor] = {}
            for call, g, names in live:
                rows = call.rows(g, data, slice(start, start + count))
                for position, name in names.items():
                    parts[position] = plus(parts.get(position), rows[name])
            lead = next(iter(parts.values())).shape[:2]
            found = [
                parts[i] if i in parts else self._zeros(*lead, p.numel())
                for i, p in enumerate(self.parameters)
            ]
            yield torch.cat(found, dim=2)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.parameters[0].device)


@dataclass(eq=False)
class ExactUnit(Unit):
    """The exact matrix, or its diagonal.

    Attributes:
        diagonal: Whether the diagonal alone.
    """

    diagonal: bool = False
    _total: Tensor | None = None

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        live, at_once = self._live(cotangents), None
        # The one use, where there is one and it has all parameters in order.
        if len(live) == 1 and len(live[0][2]) == len(self.parameters):
            call, g, names = live[0]
            sum_of = call.squares if self.diagonal else call.gram
            at_once = sum_of(g, data, tuple(names.values()))
        if at_once is not None:
            self._total = plus(self._total, at_once)
            return
        for rows in self._rows(cotangents, data):
            flat = rows.flatten(0, 1)
            self._total = plus(
                self._total, flat.square().sum(0) if self.diagonal else flat.mT @ flat
            )

    def block(self) -> Block:
        """Return the block."""
        total = self._total
        if total is None:
            total = self._zeros(*[self.size] * (1 if self.diagonal else 2))
        if self.diagonal:
            return DiagonalBlock(self.parameters, total, self.label)
        return DenseBlock(self.parameters, symmetric(total), self.label)


class FactorUnit(Unit):
    """The factor X of the exact matrix X^T X."""

    def __post_init__(self) -> None:
        """Begin with no rows."""
        super().__post_init__()
        self._factors = [self._zeros(0, self.size)]

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        self._factors += [rows.flatten(0, 1) for rows in self._rows(cotangents, data)]

    def block(self) -> Block:
        """Return the block."""
        return FactorBlock(self.parameters, torch.cat(self._factors), self.label)


@dataclass(eq=False)
class KroneckerUnit(Unit):
    """K-FAC, over all positions of all uses, which are of the same kind and have the same parameters.

    Attributes:
        module: A layer that has the parameters.
        kind: Its rule.
    """

    module: torch.nn.Module
    kind: type[KroneckerCall]

    def __post_init__(self) -> None:
        """Find the names of the parameters in the layers."""
        super().__post_init__()
        known = {id(p): name for name, p in self.kind.parameters_of(self.module).items()}
        self._names = tuple([known[id(p)] for p in self.parameters])
        self._outer: Tensor | None = None
        # Whose inputs count: their moments are the same in all backward passes.
        self._used: dict[int, Any] = {}

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        for call, g, _ in self._live(cotangents):
            self._outer = plus(self._outer, call.outer(g))
            self._used[id(call)] = call

    def block(self) -> Block:
        """Return the block."""
        if self._outer is None:
            shapes = self.kind.factor_shapes(self.module, self._names)
            outer, inner = [self._zeros(*shape) for shape in shapes]
        else:
            moments, counts = zip(
                *[call.inner(self._names) for call in self._used.values()], strict=True
            )
            outer, inner = self._outer, functools.reduce(plus, moments) / sum(counts)
        left, right = (inner, outer) if self.kind.inputs_first else (outer, inner)
        columns = self.kind.columns(self.module, self._names)
        return KroneckerBlock(self.parameters, left, right, columns, self.label)


@dataclass(eq=False)
class ScaledUnit(Unit):
    """The Fubini-Study metric of quantum layers, scaled input by input to bound the Gauss-Newton matrix from above.

    Attributes:
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
    """

    approx: Approx
    layers: LayerRule

    def __post_init__(self) -> None:
        """Begin without curvature."""
        super().__post_init__()
        self._factors: dict[int, Real] = {}
        # For every pass how many inputs of the layers a datum has at most.
        self._most: dict[int, int] = {}

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        reached: dict[int, Any] = {}
        for call, g, _ in self._live(cotangents):
            self._factors[call.key] = call.curvature_factor(g, self._factors.get(call.key))
            # How many inputs of the layers each column reaches in the pass, (K, data).
            counts = (call.flat(g) != 0.0).any(-1).reshape(len(g), data, -1).sum(-1)
            reached[call.part] = reached.get(call.part, 0) + counts
        for part, counts in reached.items():
            self._most[part] = max(self._most.get(part, 1), int(counts.max(initial=1)))

    def block(self) -> Block:
        """Return the block."""
        places = _places(self.parameters)
        # (sum of m Jacobians)^T B (the same) <= m times the sum of the single terms
        matrix = np.zeros((self.size, self.size))
        for call, names in self._uses:
            if call.key not in self._factors:
                continue
            bounds = 4.0 * self._most[call.part] * call.bound(self._factors[call.key])
            own = call.weighted_metric(bounds, self.approx, self.layers)
            mine = dict(zip(call.parameters, _places(call.parameters.values()), strict=True))
            source = np.concatenate([mine[name] for name in names.values()])
            target = np.concatenate([places[i] for i in names])
            matrix[np.ix_(target, target)] += own[np.ix_(source, source)]
        values = torch.from_numpy(matrix).to(self.parameters[0].device)
        return DenseBlock(self.parameters, symmetric(values), self.label)


def _places(parameters: Iterable[Tensor]) -> list[Index]:
    """Where the entries of each are among those of all."""
    sizes = [p.numel() for p in parameters]
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def symmetric(matrix: Tensor) -> Tensor:
    """Return the mean of a matrix and its transpose: products in floating point need not be symmetric to the last bit.

    Args:
        matrix: Symmetric up to rounding.
    """
    return (matrix + matrix.mT).mul_(0.5)
