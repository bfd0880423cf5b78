"""What all likelihoods have in common: from outputs to factors and products of their Fisher information."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class OutputGradient:
    """The gradient of the loss by the model's outputs, in place of labels for the empirical Fisher.

    A tensor hook on the model's output receives it in the backward pass of the loss itself.

    Args:
        values: dL/df, of the outputs' shape, of the loss with its reduction and scale.
    """

    values: Tensor


@dataclass(frozen=True)
class Likelihood(ABC):
    """Base of the likelihoods.

    Args:
        reduction: Of the loss, ``"mean"`` or ``"sum"``.
        scale: What the loss is multiplied with, above 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    reduction: Literal["mean", "sum"] = "mean"
    scale: float = 1.0
    name: ClassVar[str] = ""
    # Of the outputs that it was made for by ``at``: the factor r, and numbers (N, T, 1 or C) that multiply the curvature.
    _rate: float | None = field(default=None, init=False, repr=False, compare=False)
    _curvatures: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {self.reduction!r}")
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a finite number above 0, got {self.scale!r}")

    # Outputs are seen as (N, T, C): N data, T terms of each, vectors of C outputs.

    def counts(self, f: Tensor) -> tuple[int, int, int]:
        """Return the numbers of data N, of terms T of each datum, and of outputs C of each term.

        Args:
            f: Outputs, (N, ...).
        """
        if f.ndim < 2:
            return f.numel(), 1, 1
        return f.shape[0], math.prod(f.shape[1:-1]), f.shape[-1]

    def at(self, f: Tensor, targets: Any) -> Likelihood:
        """Return the likelihood of these outputs' terms, for a loss that weighs terms by their labels.

        Args:
            f: Outputs, (N, ...).
            targets: What the loss takes as targets, or an OutputGradient, or None.

        Returns:
            The likelihood itself where labels have no weights.
        """
        return self

    def size(self, f: Tensor) -> int:
        """Return by what the mean of the loss divides, which is how much these outputs count among others.

        Args:
            f: Outputs, (N, ...).
        """
        return self._count(self.counts(f))

    def share(self, f: Tensor) -> float | None:
        """Return the factor r between the loss and the sum of its terms; None where terms have factors of their own.

        Args:
            f: Outputs, (N, ...).
        """
        return self._ratio(self.counts(f)) if self._curvatures is None else None

    def columns(self, f: Tensor, part: slice = slice(None)) -> Tensor:
        """Return columns whose outer products sum to the Fisher information of the outputs, per datum.

        Args:
            f: Outputs, (N, ...).
            part: Which of the T C columns, term by term.

        Returns:
            (K, N, ...) such that ``sum_k column_k[n] column_k[n]^T`` is the Hessian of the loss by f[n].
        """
        z = self._canonical(f)
        share, (_, terms, outputs) = self._share(z.shape), z.shape
        if terms == 1:
            return self._restored(self._factor(z, part, share), f)
        start, stop, _ = part.indices(terms * outputs)
        pieces = []
        while start < stop:
            term, first = divmod(start, outputs)
            last = min(outputs, first + stop - start)
            own = share[:, term : term + 1] if isinstance(share, Tensor) else share
            piece = self._factor(z[:, term : term + 1], slice(first, last), own)
            pieces.append(_only(piece, term, terms))
            start += last - first
        return self._restored(torch.cat(pieces), f)

    def sampled_columns(self, f: Tensor, samples: int) -> Tensor:
        """Return columns of random labels, whose outer products have the expectation of those of ``columns``.

        Args:
            f: Outputs, (N, ...).
            samples: Number of labels drawn for every term, from torch's global generator.

        Returns:
            (samples, N, ...).
        """
        z = self._canonical(f)
        gradients = torch.stack([self._gradient(z, self._sample(z)) for _ in range(samples)])
        share = self._share(z.shape) / samples
        root = share.sqrt() if isinstance(share, Tensor) else math.sqrt(share)
        return self._restored(gradients * root, f)

    def empirical_columns(self, f: Tensor, targets: Any, part: slice = slice(None)) -> Tensor:
        """Return the gradients of the loss's terms, scaled so that their outer products sum to the empirical Fisher.

        Args:
            f: Outputs, (N, ...).
            targets: What the loss takes as targets, or an OutputGradient.
            part: Which of the T terms of each datum.

        Returns:
            (T, N, ...), or fewer.

        Raises:
            ValueError: If the targets do not fit the outputs.
        """
        gradient = self._scaled_gradient(f, targets)
        terms = gradient.shape[1]
        pieces = [
            _only(gradient[None, :, term : term + 1], term, terms)
            for term in range(*part.indices(terms))
        ]
        return self._restored(torch.cat(pieces), f)

    def empirical_product(self, f: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """Return a function that multiplies the empirical Fisher information of the outputs by vectors of their shape.

        Args:
            f: Outputs, (N, ...).
            targets: As for ``empirical_columns``.

        Returns:
            The function.
        """
        gradient = self._scaled_gradient(f, targets)

        def product(v: Tensor) -> Tensor:
            weights = (gradient * self._canonical(v, f)).sum(-1, keepdim=True)
            return self._restored(weights * gradient, f)

        return product

    def _scaled_gradient(self, f: Tensor, targets: Any) -> Tensor:
        """Sqrt(r) grad l, (N, T, C)."""
        z = self._canonical(f)
        share = self._ratio(z.shape)
        if not isinstance(targets, OutputGradient):
            labels = self._labels(torch.as_tensor(targets, device=f.device), f)
            return self._loss_gradient(z, labels) * math.sqrt(share)
        return self._gradient_of(targets, f) / math.sqrt(share)

    def _gradient_of(self, targets: OutputGradient, f: Tensor) -> Tensor:
        """The gradient of the loss by the outputs, (N, T, C)."""
        if targets.values.shape != f.shape:
            raise ValueError(
                f"targets: expected an OutputGradient of the outputs' shape {tuple(f.shape)}, got "
                f"{tuple(targets.values.shape)}"
            )
        return self._canonical(targets.values.detach().to(f), f)

    def vector_product(self, f: Tensor, v: Tensor) -> Tensor:
        """Multiply the Fisher information of all outputs by vectors.

        Args:
            f: Outputs, (N, ...).
            v: (..., *f.shape).

        Returns:
            The products, of the shape of v.
        """
        z = self._canonical(f)
        return self._restored(self._curvature(z, self._canonical(v, f)) * self._share(z.shape), f)

    def _ratio(self, shape: Sequence[int]) -> float:
        """The factor r for outputs seen as (N, T, C)."""
        if self._rate is not None:
            return self._rate
        return self.scale / (self._count(shape) if self.reduction == "mean" else 1.0)

    def _share(self, shape: Sequence[int]) -> float | Tensor:
        """The same times what multiplies the curvature."""
        ratio = self._ratio(shape)
        return ratio if self._curvatures is None else ratio * self._curvatures

    def _with(self, **values: Any) -> Self:
        """The likelihood with what is known of these outputs: numbers that multiply the curvature, another factor r."""
        result = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(result, name, value)
        return result

    def _canonical(self, v: Tensor, f: Tensor | None = None) -> Tensor:
        """(..., *f.shape) -> (..., N, T, C)."""
        shape = v.shape if f is None else f.shape
        lead = v.shape[: v.ndim - len(shape)]
        if len(shape) < 2:
            return v.reshape(*lead, -1, 1, 1)
        return v.reshape(*lead, shape[0], -1, shape[-1])

    def _restored(self, z: Tensor, f: Tensor) -> Tensor:
        """The inverse of _canonical."""
        return z.reshape(*z.shape[:-3], *f.shape)

    def _labels(self, targets: Tensor, f: Tensor) -> Tensor:
        if targets.shape != f.shape:
            raise ValueError(
                f"targets: expected the outputs' shape {tuple(f.shape)}, got {tuple(targets.shape)}"
            )
        return self._canonical(targets.to(f))

    def _count(self, shape: Sequence[int]) -> int:
        """What PyTorch divides by for the mean, for outputs seen as (N, T, C)."""
        return math.prod(shape)

    @abstractmethod
    def _factor(self, z: Tensor, part: slice, share: float | Tensor) -> Tensor:
        """(N, T, C) -> (C or fewer, N, T, C), columns of a factor of r E[grad l grad l^T]."""

    @abstractmethod
    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        """E[grad l grad l^T] v for v (..., N, T, C)."""

    @abstractmethod
    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Grad l at labels y (N, T, C)."""

    def _loss_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient of the loss's terms, without r, at what ``_labels`` returns."""
        return self._gradient(z, y)

    @abstractmethod
    def _sample(self, z: Tensor) -> Tensor:
        """Labels (N, T, C) from the model's own distribution."""


def _only(columns: Tensor, term: int, terms: int) -> Tensor:
    """(K, N, 1, C) for one term -> (K, N, T, C), zero for the others."""
    if terms == 1:
        return columns
    shape = (*columns.shape[:2], terms, columns.shape[3])
    result = columns.new_zeros(shape)
    result[:, :, term] = columns[:, :, 0]
    return result


def split_targets(
    likelihood: Likelihood, targets: Any, outputs: Sequence[Tensor | None]
) -> list[Any]:
    """Return the targets of every pass.

    Args:
        likelihood: Of the outputs.
        targets: Of all passes, in order, joined along the first dimension; or an OutputGradient of such values.
        outputs: Of the passes.

    Raises:
        ValueError: If they do not fit together.
    """
    if len(outputs) == 1:
        return [targets]
    if isinstance(targets, OutputGradient):
        parts = split_targets(likelihood, targets.values, outputs)
        return [OutputGradient(part) for part in parts]
    values, sizes = torch.as_tensor(targets), []
    for f in outputs:
        assert f is not None
        sizes.append(likelihood.counts(f)[0])
    if not values.ndim or len(values) != sum(sizes):
        raise ValueError(
            f"targets: expected {sum(sizes)} along the first dimension, for the data of {len(sizes)} passes, got the "
            f"shape {tuple(values.shape)}"
        )
    parts = list(torch.split(values, sizes))
    # A vector of logits is one datum.
    alone = [f is not None and f.ndim == 1 and n == 1 for f, n in zip(outputs, sizes, strict=True)]
    return [part[0] if one else part for part, one in zip(parts, alone, strict=True)]


def identity(z: Tensor, part: slice) -> Tensor:
    """Rows of the identity over the last dimension of z."""
    size = z.shape[-1]
    start, stop, _ = part.indices(size)
    rows = z.new_zeros(stop - start, size)
    rows.diagonal(start).fill_(1.0)
    return rows
