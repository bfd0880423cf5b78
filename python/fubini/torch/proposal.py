"""A step before it is taken: what would change, by how much, and what the quadratic model expects of it."""

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fubini.damping import Damping
from fubini.errors import NumericalError
from fubini.torch.blocks import Block, BlockInfo, DiagonalBlock
from fubini.torch.checks import all_finite

Tensor = torch.Tensor
Group = MutableMapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A block of parameters that all move, with what is needed to move them.

    Attributes:
        block: Their metric.
        gradient: (n,), float64, of the function to be minimised.
        groups: The group of each parameter.
        damped: Whether damping is added to the metric.
        plain: Whether the metric is the identity.
    """

    block: Block
    gradient: Tensor
    groups: tuple[Group, ...]
    damped: bool = True
    plain: bool = False

    def spread(self, values: Sequence[float]) -> Tensor:
        """Return (n,) with one value for each parameter repeated over its entries.

        Args:
            values: One for each parameter.
        """
        like = self.gradient
        if _one(values):
            return torch.full_like(like, values[0])
        sizes = [p.numel() for p in self.block.parameters]
        return torch.cat([like.new_full((n,), v) for n, v in zip(sizes, values, strict=True)])

    def times(self, values: Sequence[float], vector: Tensor) -> Tensor:
        """Return a vector with the entries of each parameter multiplied by its value.

        Args:
            values: One for each parameter.
            vector: (n,).
        """
        return values[0] * vector if _one(values) else self.spread(values) * vector

    def split(self, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of a parameter and its piece of a vector, of the parameter's shape.

        Args:
            vector: (n,).
        """
        parameters = self.block.parameters
        if len(parameters) == 1:
            return [(parameters[0], vector.view(parameters[0].shape))]
        pieces = vector.split_with_sizes([p.numel() for p in parameters])
        return [(p, v.view(p.shape)) for p, v in zip(parameters, pieces, strict=True)]


def _one(values: Sequence[float]) -> bool:
    return all(v == values[0] for v in values)


def plain(parameters: Sequence[Tensor]) -> DiagonalBlock:
    """Return the metric of parameters that have none: the identity, which makes the step that of the plain gradient.

    Args:
        parameters: On one device.
    """
    size = sum(p.numel() for p in parameters)
    ones = torch.ones(size, dtype=torch.float64, device=parameters[0].device)
    return DiagonalBlock(parameters, ones, "plain gradient")


class Proposal:
    """The change of all moving parameters, and the model ``-g.c + c.(s G)c / 2`` of what it does to the loss.

    Args:
        parts: What moves.
        state: The optimizer's state by parameter; read here, written by ``remember``.
        spring: Whether momentum is SPRING's instead of the heavy ball's.
    """

    def __init__(
        self, parts: Sequence[Part], state: MutableMapping[Tensor, Any], spring: bool
    ) -> None:
        self.parts = list(parts)
        self._state, self._spring = state, spring
        self.infos: list[BlockInfo] = []
        self.changes: list[Tensor] = []
        self.scale = 1.0
        self._kept: list[Tensor] = []
        self._dampings: list[Tensor] = []
        self._originals: list[tuple[Tensor, Tensor]] = []

    def make(
        self, damping_of: Callable[[Group], Damping], scale: float, with_momentum: bool
    ) -> None:
        """Compute the change: ``-lr (d / scale)`` with the damped solution d, momentum and weight decay.

        Args:
            damping_of: The damping of a group.
            scale: Curvature of the loss in units of the metric.
            with_momentum: Whether the last change enters.

        Raises:
            NumericalError: If a block cannot be solved, or the change is not finite.
        """
        self.infos, self.changes, self._kept, self._dampings = [], [], [], []
        self.__dict__.pop("curvature", None)
        self.__dict__.pop("slope", None)
        self.scale = scale
        for part in self.parts:
            damping = self._damping(part, damping_of)
            rho = [float(g["momentum"]) for g in part.groups]
            last = self._last(part) if with_momentum and any(rho) else None
            rhs = part.gradient
            if self._spring and last is not None:
                rhs = rhs - part.block.product(part.times(rho, last))
            if part.plain and not part.damped:
                direction, info = rhs, BlockInfo(part.block.label, part.block.size, "diagonal")
            else:
                direction, info = part.block.solve(rhs, damping)
            if self._spring and last is not None:
                direction = direction + part.times(rho, last)
            change = part.times([-float(g["lr"]) / scale for g in part.groups], direction)
            if not self._spring and last is not None:
                change = change + part.times(rho, last)
            self._kept.append(direction if self._spring else change)
            decay = [float(g["lr"]) * float(g["weight_decay"]) for g in part.groups]
            if any(decay):
                weights = torch.cat([p.reshape(-1) for p in part.block.parameters])
                change = change - part.times(decay, weights.to(change))
            if not all_finite(change):
                raise NumericalError(
                    f"{part.block.label}: expected a finite step, got NaN or infinity; pass a larger lam"
                )
            self.infos.append(info)
            self.changes.append(change)
            self._dampings.append(damping)

    @cached_property
    def slope(self) -> float:
        """``-g . change``: what the gradient promises."""
        return -sum(float(p.gradient @ c) for p, c in zip(self.parts, self.changes, strict=True))

    @cached_property
    def curvature(self) -> float:
        """``change . G change``, the squared length of the step in the metric."""
        return sum(
            float(c @ p.block.product(c)) for p, c in zip(self.parts, self.changes, strict=True)
        )

    @property
    def predicted(self) -> float:
        """By how much the loss should fall."""
        return self.slope - 0.5 * self.scale * self.curvature

    @property
    def share(self) -> float:
        """Share of the damping in ``change . (G + D) change``."""
        added = sum(float(c @ (d * c)) for d, c in zip(self._dampings, self.changes, strict=True))
        total = added + max(self.curvature, 0.0)
        return added / total if total > 0 and math.isfinite(total) else 1.0

    def shorten(self, factor: float) -> None:
        """Multiply the change with a factor.

        Args:
            factor: In (0, 1].
        """
        if factor == 1.0:
            return
        curvature, slope = self.curvature, self.slope
        self.changes = [factor * c for c in self.changes]
        if not self._spring:
            self._kept = [factor * c for c in self._kept]
        self.__dict__.update(curvature=factor**2 * curvature, slope=factor * slope)

    def save(self) -> None:
        """Remember the parameters as they are, for ``restore`` and for ``apply`` with another factor."""
        self._originals = [(p, p.clone()) for part in self.parts for p in part.block.parameters]

    def apply(self, factor: float = 1.0) -> None:
        """Change the parameters by the factor times the change, counted from where ``save`` found them.

        Args:
            factor: Multiplies the change.
        """
        self.restore()
        pairs = [
            (p, piece.to(p.dtype))
            for part, change in zip(self.parts, self.changes, strict=True)
            for p, piece in part.split(change if factor == 1.0 else factor * change)
        ]
        torch._foreach_add_([p for p, _ in pairs], [piece for _, piece in pairs])

    def restore(self) -> None:
        """Put the parameters back, to the bit."""
        for p, original in self._originals:
            p.copy_(original)

    def remember(self) -> None:
        """Store what the next step's momentum needs."""
        for part, kept in zip(self.parts, self._kept, strict=True):
            if not any(float(g["momentum"]) for g in part.groups):
                continue
            for (p, piece), group in zip(part.split(kept), part.groups, strict=True):
                if float(group["momentum"]):
                    self._state[p]["momentum"] = piece.clone()

    def _last(self, part: Part) -> Tensor | None:
        if not any("momentum" in self._state.get(p, {}) for p in part.block.parameters):
            return None
        pieces = []
        for p in part.block.parameters:
            found = self._state.get(p, {}).get("momentum")
            pieces.append(
                part.gradient.new_zeros(p.numel()) if found is None else found.reshape(-1)
            )
        return torch.cat(pieces)

    def _damping(self, part: Part, damping_of: Callable[[Group], Damping]) -> Tensor:
        if not part.damped:
            return torch.zeros_like(part.gradient)
        dampings = {id(g): damping_of(g) for g in part.groups}
        kinds = {d.kind for d in dampings.values()}
        lam = part.spread([float(dampings[id(g)].lam) for g in part.groups])
        if kinds == {"absolute"}:
            return lam
        diagonal = part.block.diagonal()
        ones = torch.ones_like(diagonal)
        by_kind = {"absolute": ones, "relative": ones * diagonal.mean(), "diagonal": diagonal}
        result = torch.zeros_like(lam)
        for kind in kinds:
            mine = part.spread([float(dampings[id(g)].kind == kind) for g in part.groups])
            result += mine * lam * by_kind[kind]
        return result
