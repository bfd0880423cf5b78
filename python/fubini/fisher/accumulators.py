"""Accumulate what backward passes bring into metric blocks: one unit for each block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini.blocks import Block, DenseBlock, DiagonalBlock, FactorBlock, KroneckerBlock
from fubini.fisher.calls import Call, KroneckerCall
from fubini.fisher.quantum import QuantumCall
from fubini.metric.points import at_inputs, layer_metric
from fubini.nn.layer import QuantumLayer
from fubini.nn.stand_in import as_native
from fubini.options import Approx, LayerRule

Tensor = torch.Tensor
Real = npt.NDArray[np.float64]
Cotangents = list[Tensor | None]

# Entries of an array of rows that is made at once.
_CHUNK = 1 << 24


class Unit(ABC):
    """Parameters that get one block, and the uses of the layers that they belong to.

    Args:
        parameters: In the block's order.
        label: For messages.
        calls: Uses of layers, with their numbers in the pass; those of others count for nothing.
    """

    def __init__(
        self, parameters: Sequence[Tensor], label: str, calls: Sequence[tuple[int, Call]]
    ) -> None:
        self.parameters, self.label = list(parameters), label
        self.size = sum(p.numel() for p in parameters)
        order = {id(p): i for i, p in enumerate(parameters)}
        # For every use the rule's names of the parameters by their positions in the block.
        self._calls: list[tuple[int, Call, dict[int, str]]] = []
        for number, call in calls:
            names = {order[id(p)]: n for n, p in call.parameters.items() if id(p) in order}
            if names:
                self._calls.append((number, call, dict(sorted(names.items()))))

    @abstractmethod
    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass.

        Args:
            cotangents: For every call of the pass those of its outputs, (K, *outputs.shape), or None.
            data: Number of data.
        """

    @abstractmethod
    def block(self) -> Block:
        """Return the block."""

    def _live(self, cotangents: Cotangents) -> list[tuple[Call, Tensor, dict[int, str]]]:
        return [
            (call, g, names)
            for number, call, names in self._calls
            if (g := cotangents[number]) is not None
        ]

    def _rows(self, cotangents: Cotangents, data: int, part: slice) -> Tensor | None:
        """Derivatives by the parameters, (K, data in the part, P), summed over all uses."""
        live = self._live(cotangents)
        if not live:
            return None
        parts: list[Tensor | None] = [None] * len(self.parameters)
        for call, g, names in live:
            rows = call.rows(g, data, part)
            for position, name in names.items():
                before = parts[position]
                parts[position] = rows[name] if before is None else before + rows[name]
        known = next(part for part in parts if part is not None)
        return torch.cat(
            [
                known.new_zeros(*known.shape[:2], p.numel()) if found is None else found
                for found, p in zip(parts, self.parameters, strict=True)
            ],
            dim=2,
        )

    def _chunks(self, cotangents: Cotangents, data: int) -> list[slice]:
        """Parts of the data whose rows fit into memory at once."""
        live = self._live(cotangents)
        columns = len(live[0][1]) if live else 1
        count = max(1, _CHUNK // max(1, columns * self.size))
        return [slice(start, start + count) for start in range(0, data, count)]

    def _only(self, cotangents: Cotangents) -> tuple[Call, Tensor, tuple[str, ...]] | None:
        """The one use, where there is one and it has all parameters in order."""
        live = self._live(cotangents)
        if len(live) != 1 or len(live[0][2]) != len(self.parameters):
            return None
        call, g, names = live[0]
        return call, g, tuple(names.values())

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.parameters[0].device)


class ExactUnit(Unit):
    """The exact matrix."""

    _matrix: Tensor | None = None

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        only = self._only(cotangents)
        matrix = None if only is None else only[0].gram(only[1], data, only[2])
        if matrix is not None:
            self._matrix = matrix if self._matrix is None else self._matrix + matrix
            return
        for part in self._chunks(cotangents, data):
            rows = self._rows(cotangents, data, part)
            if rows is not None:
                flat = rows.flatten(0, 1)
                product = flat.mT @ flat
                self._matrix = product if self._matrix is None else self._matrix + product

    def block(self) -> Block:
        """Return the block."""
        matrix = self._zeros(self.size, self.size) if self._matrix is None else self._matrix
        return DenseBlock(self.parameters, symmetric(matrix), self.label)


class FactorUnit(Unit):
    """The factor X of the exact matrix X^T X."""

    def __init__(
        self, parameters: Sequence[Tensor], label: str, calls: Sequence[tuple[int, Call]]
    ) -> None:
        super().__init__(parameters, label, calls)
        self._factors: list[Tensor] = []

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        rows = self._rows(cotangents, data, slice(None))
        if rows is not None:
            self._factors.append(rows.flatten(0, 1))

    def block(self) -> Block:
        """Return the block."""
        factor = torch.cat(self._factors) if self._factors else self._zeros(0, self.size)
        return FactorBlock(self.parameters, factor, self.label)


class DiagonalUnit(Unit):
    """The exact diagonal."""

    _values: Tensor | None = None

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        only = self._only(cotangents)
        values = None if only is None else only[0].squares(only[1], data, only[2])
        if values is not None:
            self._values = values if self._values is None else self._values + values
            return
        for part in self._chunks(cotangents, data):
            rows = self._rows(cotangents, data, part)
            if rows is not None:
                squares = rows.square().sum((0, 1))
                self._values = squares if self._values is None else self._values + squares

    def block(self) -> Block:
        """Return the block."""
        values = self._zeros(self.size) if self._values is None else self._values
        return DiagonalBlock(self.parameters, values, self.label)


class KroneckerUnit(Unit):
    """K-FAC, over all positions of all uses.

    Args:
        parameters: As for Unit.
        label: As for Unit.
        calls: As for Unit, all of the same kind and with the same parameters.
        module: A layer that has the parameters.
        kind: Its rule.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        label: str,
        calls: Sequence[tuple[int, Call]],
        module: torch.nn.Module,
        kind: type[KroneckerCall],
    ) -> None:
        super().__init__(parameters, label, calls)
        self._kind, self._module = kind, module
        position = {id(p): i for i, p in enumerate(parameters)}
        known = kind.parameters_of(module).items()
        names = {position[id(p)]: name for name, p in known if id(p) in position}
        self._names = tuple(names[i] for i in sorted(names))
        self._outer: Tensor | None = None
        self._inner: Tensor | None = None
        self._count = 0
        self._seen: set[int] = set()

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        for call, g, _ in self._live(cotangents):
            assert isinstance(call, KroneckerCall)
            outer = call.outer(g)
            self._outer = outer if self._outer is None else self._outer + outer
            # The moments of the inputs are the same in all backward passes.
            if id(call) not in self._seen:
                self._seen.add(id(call))
                inner, count = call.inner(self._names)
                self._inner = inner if self._inner is None else self._inner + inner
                self._count += count

    def block(self) -> Block:
        """Return the block."""
        if self._outer is None or self._inner is None:
            outer, inner = (
                self._zeros(*s) for s in self._kind.factor_shapes(self._module, self._names)
            )
        else:
            outer, inner = self._outer, self._inner / self._count
        left, right = (inner, outer) if self._kind.inputs_first else (outer, inner)
        columns = self._kind.columns(self._module, self._names)
        return KroneckerBlock(self.parameters, left, right, columns, self.label)


class ScaledUnit(Unit):
    """The Fubini-Study metric of quantum layers, scaled input by input to bound the Gauss-Newton matrix from above.

    Args:
        parameters: As for Unit.
        label: As for Unit.
        calls: As for Unit, of quantum layers.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        label: str,
        calls: Sequence[tuple[int, Call]],
        approx: Approx,
        layers: LayerRule,
    ) -> None:
        super().__init__(parameters, label, calls)
        self._approx: Approx = approx
        self._layers: LayerRule = layers
        self._factors: dict[int, Real] = {}
        self._uses: dict[int, int] = {}

    def add(self, cotangents: Cotangents, data: int) -> None:
        """Take note of a backward pass, see Unit."""
        live: dict[
            int, Any
        ] = {}  # for every pass how many inputs of the layers each column reaches, (K, data)
        for number, call, _ in self._calls:
            g = cotangents[number]
            if g is not None:
                assert isinstance(call, QuantumCall)
                self._factors[number] = call.curvature_factor(g, self._factors.get(number))
                reached = (call.flat(g) != 0.0).any(-1).reshape(len(g), data, -1).sum(-1)
                live[call.part] = live.get(call.part, 0) + reached
        for part, counts in live.items():
            self._uses[part] = max(self._uses.get(part, 1), int(counts.max(initial=1)))

    def block(self) -> Block:
        """Return the block."""
        calls = [(i, c, names) for i, c, names in self._calls if isinstance(c, QuantumCall)]
        sizes = [p.numel() for p in self.parameters]
        places = np.split(np.arange(self.size), np.cumsum(sizes)[:-1])
        # (sum of m Jacobians)^T B (the same) <= m times the sum of the single terms
        matrix = np.zeros((self.size, self.size))
        for number, call, names in calls:
            if number not in self._factors:
                continue
            bounds = 4.0 * self._uses[call.part] * call.bound(self._factors[number])
            own = weighted_metric(call, bounds, self._approx, self._layers)
            ends = np.cumsum([w.numel() for w in call.parameters.values()])
            mine = dict(zip(call.parameters, np.split(np.arange(len(own)), ends[:-1]), strict=True))
            source = np.concatenate([mine[name] for name in names.values()])
            target = np.concatenate([places[i] for i in names])
            matrix[np.ix_(target, target)] += own[np.ix_(source, source)]
        values = torch.from_numpy(matrix).to(self.parameters[0].device)
        return DenseBlock(self.parameters, symmetric(values), self.label)


def weighted_metric(call: QuantumCall, weights: Real, approx: Approx, layers: LayerRule) -> Real:
    """Return the sum over a call's inputs of the layer's Fubini-Study metrics, each times a number, (P, P).

    Args:
        call: The call.
        weights: One number for each input.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
    """
    found = call.weighted_metric(weights, approx, layers)
    if found is not None:
        return found
    layer = as_native(call.module) or call.module
    inputs = call.inputs.detach().reshape(-1, call.inputs.shape[-1])
    if call.alone:
        rows = zip(weights, inputs, strict=True)
        parts = [_weighted(layer, x, np.array([w]), approx, layers) for w, x in rows]
        return np.asarray(sum(parts))
    return _weighted(layer, inputs, weights, approx, layers)


def _weighted(
    layer: QuantumLayer, inputs: Tensor, weights: Real, approx: Approx, layers: LayerRule
) -> Real:
    """The same at inputs (L, d), or (d,) for one."""
    pullback = at_inputs(layer, inputs).pullback
    if pullback is not None:
        return pullback.weighted_sum(weights, approx, layers)
    size = sum(w.numel() for w in layer.qnode_weights.values())
    if inputs.ndim == 1:
        return float(weights[0]) * layer_metric(layer, inputs, approx, layers)
    count = max(1, _CHUNK // (size * size))
    total = np.zeros((size, size))
    for start in range(0, len(inputs), count):
        part = slice(start, start + count)
        metrics = layer_metric(layer, inputs[part], approx, layers)
        lead = np.broadcast_to(metrics, (len(weights[part]), size, size))
        total += np.tensordot(weights[part], lead, 1)
    return total


def symmetric(matrix: Tensor) -> Tensor:
    """Return the mean of a matrix and its transpose: products in floating point need not be symmetric to the last bit.

    Args:
        matrix: Symmetric up to rounding.
    """
    return (matrix + matrix.mT).mul_(0.5)
