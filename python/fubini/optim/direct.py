"""Steps whose direction is one call of the kernel: a metric in blocks, factorised once, for all gradients that meet it.

The usual step has one damping and one learning rate for everything, no momentum, and nothing that judges it. Its
direction, its length and its change then need no objects for each block. What is known about it afterwards
(``Proposal``) is made when somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fubini import _core
from fubini.arrays import shared_array
from fubini.blocks import Block
from fubini.optim.length import StepLength
from fubini.optim.proposal import Part, Proposal
from fubini.solvers.damping import Absolute
from fubini.torch_private import flattened, foreach_add_, unflattened

Tensor = torch.Tensor
Group = MutableMapping[str, Any]
# What groups must have in common.
_SAME = ("lr", "lam", "damping", "maximize")


class Direct:
    """Takes steps with the factors of the last metric, as long as that is the metric."""

    def __init__(self) -> None:
        self._metric: list[tuple[Block, bool]] = []
        self._lam = math.nan
        self._factors: _core.Preconditioner | None = None
        self._parameters: list[Tensor] = []  # in the order of the blocks

    def step(
        self,
        blocks: Sequence[tuple[Block, bool]],
        groups: Sequence[Group],
        lam: float,
        length: StepLength | None,
        units: float,
    ) -> Taken | None:
        """Take a step; None, with nothing changed, where it has to be taken in another way.

        Args:
            blocks: The metric of everything that moves, each block with whether it is damped.
            groups: The parameter groups, see ``is_uniform``.
            lam: What is added to the diagonals.
            length: What bounds the length of steps, or None.
            units: See ``Proposal``.

        Returns:
            What became of it.
        """
        if not self._serves(blocks, lam):
            self._factors = factored(blocks, lam)
            self._metric, self._lam = [] if self._factors is None else list(blocks), lam
            self._parameters = [p for block, _ in blocks for p in block.parameters]
        if self._factors is None:
            return None
        gradient = flat_gradient(self._parameters)
        values = None if gradient is None else shared_array(gradient)
        if gradient is None or values is None:
            return None
        found, square = self._factors.apply(values)
        if not math.isfinite(square):
            return None
        rate, after = rate_of(groups[0], length, square, units)
        change = torch.from_numpy(found).mul_(rate)
        if _core.first_not_finite([found]) >= 0:
            return None
        add(self._parameters, change)
        metric = self._metric
        return Taken(lambda: metric, lam, gradient, [dict(g) for g in groups], length, after, units)

    def _serves(self, blocks: Sequence[tuple[Block, bool]], lam: float) -> bool:
        """Whether the factors are those of this damped metric."""
        return (
            lam == self._lam
            and len(blocks) == len(self._metric)
            and all(
                b is known and d is damped
                for (b, d), (known, damped) in zip(blocks, self._metric, strict=True)
            )
        )


def factored(blocks: Sequence[tuple[Block, bool]], lam: float) -> _core.Preconditioner | None:
    """Return the factors of a damped metric, or None where a block is of another form, on another device or singular.

    Args:
        blocks: Each with whether it is damped; an undamped one is the identity.
        lam: The damping.
    """
    factors = _core.Preconditioner()
    for block, damped in blocks:
        if not damped:
            factors.add_identity(block.size)
        elif not block.factorise(factors, lam):
            return None
    return factors


@dataclass(eq=False)
class Taken:
    """A step that was taken, for whoever asks about it.

    Attributes:
        metric: Makes the blocks, each with whether it is damped; to be called before the next step.
        lam: The damping.
        gradient: Of all parameters side by side.
        groups: The parameter groups at the time.
        before: The running length before the step.
        length: The same with this step.
        units: See ``Proposal``.
    """

    metric: Callable[[], Sequence[tuple[Block, bool]]]
    lam: float
    gradient: Tensor
    groups: list[Mapping[str, Any]]
    before: StepLength | None
    length: StepLength | None
    units: float

    def proposal(self) -> Proposal:
        """Return the step as if it were still to be taken."""
        home = {id(p): g for g in self.groups for p in g["params"]}
        sign = -1.0 if self.groups[0]["maximize"] else 1.0
        parts, start = [], 0
        for block, damped in self.metric():
            gradient = sign * self.gradient[start : start + block.size]
            mine: Any = tuple(home[id(p)] for p in block.parameters)
            parts.append(Part(block, gradient, mine, damped))
            start += block.size
        proposal = Proposal(parts, {}, False, self.before, self.units)
        with torch.no_grad():
            proposal.make(lambda _: Absolute(self.lam), 1.0, with_momentum=False)
        return proposal


def is_uniform(groups: Sequence[Group]) -> bool:
    """Return whether the groups have one learning rate and damping, and neither momentum nor weight decay.

    Args:
        groups: Parameter groups, checked.
    """
    first = groups[0]
    return first["damping"] in ("absolute", "per term") and not any(
        float(group["momentum"])
        or float(group["weight_decay"])
        or (group is not first and any(group[name] != first[name] for name in _SAME))
        for group in groups
    )


def rate_of(
    group: Group, length: StepLength | None, square: float, units: float
) -> tuple[float, StepLength | None]:
    """Return what a direction is multiplied with to be the change, and the running length with it.

    Args:
        group: The first parameter group.
        length: What bounds the length of steps, or None.
        square: Of the direction, its squared length in the damped metric.
        units: See ``Proposal``.
    """
    rate = float(group["lr"])
    if length is not None:
        length = length.after(square / units)
        rate *= length.factor
    return (rate if group["maximize"] else -rate), length


def add(parameters: Sequence[Tensor], change: Tensor) -> None:
    """Move parameters.

    Args:
        parameters: What moves.
        change: By how much, (n,), float64.
    """
    first = parameters[0].dtype
    if all(p.dtype is first for p in parameters):
        pieces = unflattened(change.to(first), parameters)
    else:
        pieces = unflattened(change, parameters)
        pieces = [x.to(p.dtype) for x, p in zip(pieces, parameters, strict=True)]
    foreach_add_(parameters, pieces)


def flat_gradient(parameters: Sequence[Tensor]) -> Tensor | None:
    """Return the gradients side by side, float64, in memory of their own; None where one is missing.

    Args:
        parameters: Whose they are.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(gradients) < len(parameters):
        return None
    if any(g.dtype is not torch.float64 for g in gradients):
        gradients = [g.to(torch.float64) for g in gradients]
    flat = flattened(gradients).detach()
    return flat.clone() if len(gradients) == 1 else flat
