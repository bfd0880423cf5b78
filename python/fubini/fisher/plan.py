"""What plans have in common: a model that was looked at once, prepared for the steps that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fubini.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from fubini.fisher.columns import Request
from fubini.fisher.likelihoods import CLOSED_FORM, Poisson
from fubini.nn.recorder import Pass

Tensor = torch.Tensor

# Of the tensors of a block, by its form.
_NAMES = {"dense": ("matrix",), "diagonal": ("values",), "kronecker": ("left", "right")}


class Form(NamedTuple):
    """A block without its numbers.

    Attributes:
        label: Of the block.
        parameters: Likewise.
        kind: See ``form_of``.
        columns: Of a Kronecker product, see ``KroneckerBlock``.
    """

    label: str
    parameters: tuple[Tensor, ...]
    kind: str
    columns: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the block's tensors."""
        return _NAMES[self.kind]

    def block(self, tensors: Iterator[Tensor]) -> Block:
        """Return the block of the next matrices.

        Args:
            tensors: In the order of the blocks.
        """
        first = next(tensors)
        if self.kind == "kronecker":
            return KroneckerBlock(self.parameters, first, next(tensors), self.columns, self.label)
        kind = DenseBlock if self.kind == "dense" else DiagonalBlock
        return kind(self.parameters, first, self.label)


class Sized(NamedTuple):
    """What holds for one number of inputs.

    Attributes:
        share: Between the loss and the sum of its terms, see ``Likelihood.share``.
        size: By what a mean divides, see ``Likelihood.size``.
        examples: Inputs of every circuit of a chain, by which its forms are found.
        large: Whether signs may combine the outputs of a circuit of a chain.
    """

    share: float
    size: int
    examples: tuple[Tensor, ...] = ()
    large: bool = False


class Plan(ABC):
    """A model, prepared for steps.

    Args:
        request: What is asked for, simple.

    Attributes:
        forms: Of the blocks, in the order of the layers.
        parameters: Those that are trained, in the order of the blocks.
        dtype: Of all parameters, and of the inputs.
        width: Of the inputs.
        reads_targets: Whether the metric depends on which outputs have no gradient.
    """

    parameters: list[Tensor]
    dtype: torch.dtype
    width: int

    def __init__(self, request: Request) -> None:
        self._request = request
        self._sizes: dict[int, Sized | None] = {}
        self.forms: list[Form] = []
        self.reads_targets = getattr(request.likelihood, "ignore_index", None) is not None

    def sized(self, data: int) -> Sized | None:
        """Return what holds for so many inputs; None where that is to be computed in another way.

        Args:
            data: N.
        """
        if data not in self._sizes:
            if len(self._sizes) > 64:
                self._sizes.clear()
            self._sizes[data] = self._made(data)
        return self._sizes[data]

    @abstractmethod
    def _made(self, data: int) -> Sized | None:
        """What ``sized`` returns."""

    def _sized(self, f: Tensor) -> Sized | None:
        """The same by some outputs of the model for so many inputs."""
        likelihood = self._request.likelihood
        if likelihood.counts(f)[0] != len(f):
            return None
        share = likelihood.share(f)
        return None if share is None else Sized(share, likelihood.size(f))

    @abstractmethod
    def holds(self, seen: Pass, sized: Sized) -> bool:
        """Return whether a pass is one of those that the plan is for.

        Args:
            seen: The pass.
            sized: What ``sized`` returned for its number of inputs.
        """

    def blocks(self, tensors: Sequence[Tensor]) -> list[Block]:
        """Return the blocks of these matrices.

        Args:
            tensors: In the order of the blocks.
        """
        left = iter(tensors)
        return [form.block(left) for form in self.forms]


def is_simple(request: Request) -> bool:
    """Return whether what is asked for is the metric of known outputs alone, by one number for all terms.

    Args:
        request: What is asked for, checked.
    """
    likelihood: Any = request.likelihood
    return (
        request.fisher == "true"
        and request.samples is None
        and request.quantum == "gauss-newton"
        and type(likelihood) in (*CLOSED_FORM, Poisson)
        and getattr(likelihood, "weight", None) is None
        and getattr(likelihood, "pos_weight", None) is None
        and not getattr(likelihood, "normalised", False)
    )
