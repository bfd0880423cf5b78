"""A step before it is taken: what would change, by how much, and what the quadratic model expects of it."""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fubini.arrays import first_not_finite
from fubini.blocks import Block, BlockInfo, DenseBlock
from fubini.blocks.matrix import solve_matrices
from fubini.errors import NumericalError
from fubini.optim.length import StepLength
from fubini.optim.momentum import SPRING, VELOCITY
from fubini.optim.policies import predicted_reduction
from fubini.solvers.damping import Damping
from fubini.torch_private import foreach_add_, foreach_mul, unflattened

Tensor = torch.Tensor
Group = MutableMapping[str, Any]


@dataclass(eq=False)
class Part:
    """A block of parameters that all move, with what is needed to move them.

    Attributes:
        block: Their metric.
        gradient: (n,), float64, of the function to be minimised.
        groups: The group of each parameter.
        damped: Whether damping is added to the metric; if not, the metric is the identity.
    """

    block: Block
    gradient: Tensor
    groups: tuple[Group, ...]
    damped: bool = True

    def __post_init__(self) -> None:
        first = self.groups[0]
        self._group = first if all(g is first for g in self.groups) else None

    @cached_property
    def still(self) -> Tensor | None:
        """Which entries move nothing that has a metric, (n,), such as coefficients of an observable; None: all do.

        The metric says nothing of them, so they take the plain step: their metric is the identity, without damping.
        """
        return self.block.still() if self.damped else None

    def product(self, v: Tensor) -> Tensor:
        """Return G v with the identity where nothing moves.

        Args:
            v: (n,).
        """
        found = self.block.product(v)
        return found if self.still is None else torch.where(self.still, v, found)

    def entries(self, of: Callable[[Group], float]) -> float | Tensor:
        """Return a number of the groups: one if it is the same for all parameters, else repeated over their entries, (n,).

        Args:
            of: Takes a group to its number.
        """
        if self._group is not None:
            return of(self._group)
        values = [of(g) for g in self.groups]
        if all(v == values[0] for v in values):
            return values[0]
        sizes, like = [p.numel() for p in self.block.parameters], self.gradient
        return torch.cat([like.new_full((n,), v) for n, v in zip(sizes, values, strict=True)])


def _is_zero(number: float | Tensor) -> bool:
    """Whether a number of the groups is zero in all of them."""
    return not isinstance(number, Tensor) and number == 0.0


def _products(numbers: Sequence[float | Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Each vector times its number, or entry by entry."""
    scalars = [number for number in numbers if not isinstance(number, Tensor)]
    if len(scalars) == len(vectors):
        return list(foreach_mul(list(vectors), scalars))
    return [number * v for number, v in zip(numbers, vectors, strict=True)]


class Proposal:
    """The change of all moving parameters, and the model ``-g.c + c.(s G)c / 2`` of what it does to the loss.

    Args:
        parts: What moves.
        state: The optimizer's state by parameter; read here, written by ``remember``.
        spring: Whether momentum is SPRING's instead of the heavy ball's.
        length: What bounds the length of steps; None: nothing does. This step's length is in it after
            ``make``.
        units: Terms of the loss, in which its square is measured, and scale of the loss.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        state: MutableMapping[Tensor, Any],
        spring: bool,
        length: StepLength | None = None,
        units: float = 1.0,
    ) -> None:
        self.parts = list(parts)
        self.length, self._before, self._units = length, length, units
        self._state, self._spring = state, spring
        self._key = SPRING if spring else VELOCITY
        self.infos: list[BlockInfo] = []
        self.changes: list[Tensor] = []
        self.scale = 1.0
        self.strength = math.nan  # of the first group's damping
        self._kept: list[Tensor] = []
        self._dampings: list[Tensor | float] = []
        self._originals: list[tuple[Tensor, Tensor]] = []

    def make(
        self, damping_of: Callable[[Group], Damping], scale: float, with_momentum: bool
    ) -> None:
        """Compute the change: ``-lr v`` with a velocity v of the damped solution d, ``rho v + d / scale``, and weight decay.

        Args:
            damping_of: The damping of a group.
            scale: Curvature of the loss in units of the metric.
            with_momentum: Whether the last velocity enters.

        Raises:
            NumericalError: If a block cannot be solved, or the change is not finite.
        """
        self.infos, self.changes, self._kept = [], [], []
        self.__dict__.pop("curvature", None)
        self.__dict__.pop("slope", None)
        self.scale = scale
        groups = {id(g): g for part in self.parts for g in part.groups}
        dampings = {i: damping_of(g) for i, g in groups.items()}
        self.strength = float(next(iter(dampings.values())).lam)
        self._dampings = [_entries_of(part, dampings) for part in self.parts]
        carried: list[Tensor | None] = []
        sides = []
        for part in self.parts:
            rho = part.entries(_momentum) if with_momentum else 0.0
            last = None if _is_zero(rho) else self._last(part)
            rhs = part.gradient
            if self._spring and last is not None:
                rhs = rhs - part.product(rho * last)
            carried.append(None if last is None else rho * last)
            sides.append(rhs)
        solved = self._solutions(sides)
        self.infos = [info for _, info in solved]
        directions = [direction for direction, _ in solved]
        if scale != 1.0 and not self._spring:
            directions = list(foreach_mul(directions, 1.0 / scale))
        # SPRING's direction is in units of the metric, a velocity in those of the step.
        self._kept = [d if c is None else d + c for d, c in zip(directions, carried, strict=True)]
        rate = -1.0 / scale if self._spring else -1.0
        if self._before is not None:
            # d . (G + D) d is the gradient times d. The rate takes it, so that velocities do not depend on it.
            square = sum(
                float(part.gradient @ d) for part, d in zip(self.parts, directions, strict=True)
            )
            self.length = self._before.after(square / self._units)
            rate *= self.length.factor
        rates = [part.entries(lambda g: rate * float(g["lr"])) for part in self.parts]
        self.changes = _products(rates, self._kept)
        for k, part in enumerate(self.parts):
            decay = part.entries(_decay)
            if not _is_zero(decay):
                weights = torch.cat([p.reshape(-1) for p in part.block.parameters])
                self.changes[k] = self.changes[k] - decay * weights.to(self.changes[k])
        bad = first_not_finite(self.changes)
        if bad is not None:
            raise NumericalError(
                f"{self.parts[bad].block.label}: expected a finite step, got NaN or infinity; pass a larger lam"
            )

    def _solutions(self, sides: Sequence[Tensor]) -> list[tuple[Tensor, BlockInfo]]:
        """The damped solution of every part; matrices with the same damping are solved in one call."""
        found: dict[int, tuple[Tensor, BlockInfo]] = {}
        together: dict[float, list[int]] = {}
        for k, (part, rhs, damping) in enumerate(
            zip(self.parts, sides, self._dampings, strict=True)
        ):
            block = part.block
            if not part.damped:
                found[k] = rhs, BlockInfo(block.label, block.size, "diagonal")
                continue
            # Damping in proportion to the diagonal leaves zeros; without any damping, a singular metric is refused.
            if part.still is not None and isinstance(damping, Tensor) and bool(damping.any()):
                damping = torch.where(part.still, 1.0, damping)
            if isinstance(damping, float) and isinstance(block, DenseBlock) and block.is_one_part:
                together.setdefault(damping, []).append(k)
            else:
                found[k] = block.solve(rhs, damping)
        for damping, members in together.items():
            blocks: Any = [self.parts[k].block for k in members]
            solved = solve_matrices(blocks, [sides[k] for k in members], damping)
            found.update(zip(members, solved, strict=True))
        for k, part in enumerate(self.parts):
            if part.still is not None:
                x, info = found[k]
                found[k] = torch.where(part.still, sides[k], x), info
        return [found[k] for k in range(len(self.parts))]

    @cached_property
    def slope(self) -> float:
        """``-g . change``: what the gradient promises."""
        return -sum(float(p.gradient @ c) for p, c in zip(self.parts, self.changes, strict=True))

    @cached_property
    def curvature(self) -> float:
        """``change . G change``, the squared length of the step in the metric."""
        return sum(float(c @ p.product(c)) for p, c in zip(self.parts, self.changes, strict=True))

    @property
    def predicted(self) -> float:
        """By how much the loss should fall."""
        return predicted_reduction(1.0, self.slope, self.scale * self.curvature)

    @property
    def share(self) -> float:
        """Share of the damping in ``change . (G + D) change``."""
        added = 0.0
        for part, d, c in zip(self.parts, self._dampings, self.changes, strict=True):
            moving = c if part.still is None else torch.where(part.still, 0.0, c)
            added += float(moving @ (d * moving))
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
        parameters: list[Tensor] = []
        pieces: list[Tensor] = []
        for part, change in zip(self.parts, self.changes, strict=True):
            parameters += part.block.parameters
            pieces += unflattened(
                change if factor == 1.0 else factor * change, part.block.parameters
            )
        pieces = [
            piece if piece.dtype is p.dtype else piece.to(p.dtype)
            for p, piece in zip(parameters, pieces, strict=True)
        ]
        foreach_add_(parameters, pieces)

    def restore(self) -> None:
        """Put the parameters back, to the bit."""
        for p, original in self._originals:
            p.copy_(original)

    def remember(self) -> None:
        """Store what the next step's momentum needs: the velocity, or SPRING's direction."""
        for part, kept in zip(self.parts, self._kept, strict=True):
            if _is_zero(part.entries(_momentum)):
                continue
            pieces = unflattened(kept, part.block.parameters)
            for p, piece, group in zip(part.block.parameters, pieces, part.groups, strict=True):
                if float(group["momentum"]):
                    self._state[p][self._key] = piece.clone()

    def _last(self, part: Part) -> Tensor | None:
        known = [self._state.get(p, {}).get(self._key) for p in part.block.parameters]
        if all(found is None for found in known):
            return None
        pieces = [
            part.gradient.new_zeros(p.numel()) if found is None else found.reshape(-1)
            for p, found in zip(part.block.parameters, known, strict=True)
        ]
        return torch.cat(pieces)


def _entries_of(part: Part, dampings: Mapping[int, Damping]) -> Tensor | float:
    """The diagonal that dampings of the groups add to the metric of a part: its entries, or one number for all."""
    if not part.damped:
        return 0.0

    def strength(kind: str) -> float | Tensor:
        of_this_kind = {i: float(d.lam) for i, d in dampings.items() if d.kind == kind}
        return part.entries(lambda g: of_this_kind.get(id(g), 0.0))

    if all(dampings[id(g)].kind == "absolute" for g in part.groups):
        return strength("absolute")
    diagonal = part.block.diagonal()
    return (
        strength("absolute")
        + strength("relative") * diagonal.mean()
        + strength("diagonal") * diagonal
    )


def _momentum(group: Group) -> float:
    return float(group["momentum"])


def _decay(group: Group) -> float:
    return float(group["lr"]) * float(group["weight_decay"])
