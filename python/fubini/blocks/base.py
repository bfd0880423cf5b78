"""What all metric blocks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import torch

from fubini import _core
from fubini.errors import NumericalError
from fubini.torch_private import foreach_lerp

Tensor = torch.Tensor


@dataclass(eq=False)
class BlockInfo:
    """What is known about one solution, for diagnostics.

    Attributes:
        label: The block's name.
        size: Number of unknowns.
        method: ``"diagonal"``, ``"cholesky"``, ``"eigen"``, ``"dual"``, ``"cg"`` or ``"signal-to-noise"``.
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
    # The block's numbers by name, in the order in which the class takes them after the parameters.
    _numbers: Mapping[str, Tensor] = MappingProxyType({})

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
    def solve(self, rhs: Tensor, damping: Tensor | float) -> tuple[Tensor, BlockInfo]:
        """Solve ``(G + D) x = rhs``.

        Args:
            rhs: (n,) or (n, k), float64.
            damping: The diagonal of D, (n,), or one number for all its entries; absolute values >= 0.

        Returns:
            x, of the shape of rhs, and information about the solution.

        Raises:
            NumericalError: If the damped block is singular or not positive definite.
        """

    def factorise(self, factors: _core.Preconditioner, damping: float) -> bool:
        """Give the damped block to the kernel, to be solved together with others; rows of zeros are those of the identity.

        Args:
            factors: Gets the block as its last one.
            damping: Of all entries.

        Returns:
            Whether it was taken; not if its form is another, it is on another device, or not positive definite.
        """
        return False

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal of G, (n,)."""

    def still(self) -> Tensor | None:
        """Return which entries move nothing, (n,) of booleans: their rows of G are zero. None if there are none."""
        diagonal = self.diagonal()
        return None if bool(diagonal.all()) else diagonal == 0

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

    def tensors(self) -> dict[str, Tensor]:
        """Return the block's numbers by name, for state dictionaries and for averages over processes."""
        return dict(self._numbers)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a block like this one with other numbers.

        Args:
            tensors: What ``tensors()`` returned.
        """
        return self._like(self.parameters, *map(tensors.__getitem__, self._numbers))

    def _like(self, parameters: Sequence[Tensor], *numbers: Tensor) -> Self:
        """A block of this kind."""
        kind: Any = type(self)
        made: Self = kind(parameters, *numbers, label=self.label)
        return made

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
        index = places(keep, [p.numel() for p in self.parameters]).to(self.device)
        return [p for p, stays in zip(self.parameters, keep, strict=True) if stays], index

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

    def _entries(self, damping: Tensor | float) -> Tensor:
        """The diagonal of D, (n,)."""
        if isinstance(damping, Tensor):
            return damping
        return torch.full((self.size,), damping, dtype=torch.float64, device=self.device)

    def _info(
        self,
        method: str,
        condition: Callable[[], float],
        x: Tensor,
        rhs: Tensor,
        damping: Tensor | float,
    ) -> BlockInfo:
        """What is known about the solution x."""

        def residual() -> float:
            shift = self._entries(damping)
            shift = shift if x.ndim == 1 else shift[:, None]
            error = self.product(x) + shift * x - rhs
            return float(error.norm() / rhs.norm().clamp_min(1e-300))

        return BlockInfo(self.label, self.size, method, 0, condition, residual)

    def _singular(self, damping: Tensor | float, reason: str = "") -> NumericalError:
        return NumericalError(
            f"{self.label}: the {self.size} x {self.size} metric is singular or not positive definite with lam = "
            f"{(lam := float(self._entries(damping).min())):g}; pass a larger lam, e.g. {max(1e-3, 10 * lam):g}{reason}"
        )


def averaged(pairs: Sequence[tuple[Block, Block, float]]) -> list[Block]:
    """Return ``decay * first + (1 - decay) * second`` for several pairs of blocks, see ``Block.average``.

    Args:
        pairs: Blocks of one kind for the same parameters, and the decay.
    """
    if not pairs:
        return []
    decay, device = pairs[0][2], pairs[0][0].device
    together = all(
        first.linear and weight == decay and first.device == device for first, _, weight in pairs
    )
    if not together:
        return [first.average(second, weight) for first, second, weight in pairs]
    for first, second, _ in pairs:
        first._check_same(second)
    mine = [first.tensors() for first, _, _ in pairs]
    theirs = [second.tensors() for _, second, _ in pairs]
    # One operation for all tensors: small ones take less time than their operations.
    values = foreach_lerp(
        [new[name] for old, new in zip(mine, theirs, strict=True) for name in old],
        [tensor for old in mine for tensor in old.values()],
        decay,
    )
    left = iter(values)
    return [
        first.with_tensors({name: next(left) for name in old})
        for (first, _, _), old in zip(pairs, mine, strict=True)
    ]


def places(keep: Sequence[bool], sizes: Sequence[int]) -> Tensor:
    """Return the positions of entries that stay.

    Args:
        keep: For each of several pieces that are side by side, whether it stays.
        sizes: Numbers of their entries.
    """
    stays = torch.tensor(keep, dtype=torch.bool)
    return stays.repeat_interleave(torch.tensor(sizes)).nonzero()[:, 0]


def checked(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a block's numbers as float64, without a graph.

    Args:
        name: For messages.
        values: The numbers.
        shape: What they must have.

    Returns:
        The tensor itself where it is float64 and has no graph.

    Raises:
        ValueError: If it is no tensor of this shape.
    """
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        got = tuple(values.shape) if hasattr(values, "shape") else type(values).__name__
        raise ValueError(f"{name}: expected a tensor of shape {shape}, got {got}")
    plain = values.dtype is torch.float64 and not values.requires_grad
    return values if plain else values.detach().to(torch.float64)
