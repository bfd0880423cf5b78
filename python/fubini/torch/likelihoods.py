"""What a model's outputs mean: the probability model behind a loss, with PyTorch's conventions.

Write PyTorch's loss as ``L = r sum_t l_t`` over its terms t: one for every vector of outputs that has a label of its own,
usually one for each datum. ``l_t = -log p(y_t | f_t)`` up to a constant. The Fisher information of the batch is

    F = r sum_t J_t^T E_y[grad l_t grad l_t^T] J_t,    J_t = d f_t / d theta,

and equals the generalised Gauss-Newton matrix of L, because the outputs f are the natural parameters of p (Martens 2014,
arXiv:1412.1193). It scales with the loss. The empirical Fisher has the labels of the data in place of the expectation.

| likelihood | loss | l_t | E[grad l grad l^T] | r for "mean" |
|---|---|---|---|---|
| ``Categorical`` | CrossEntropyLoss | -log softmax(f)_y | diag(p) - p p^T | 1 / number of terms |
| ``Bernoulli`` | BCEWithLogitsLoss | sum of -log over the elements | diag(p (1 - p)) | 1 / number of elements |
| ``Gaussian`` | MSELoss | sum of (f - y)^2 | 2 I, y has the variance 1/2 | 1 / number of elements |

r is 1 for ``"sum"``. Class weights, label smoothing, ``ignore_index`` and ``pos_weight`` are not represented: the metric is
that of the loss without them.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

Tensor = torch.Tensor

# Identity matrices up to this size are kept.
_SMALL = 256


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

    def share(self, f: Tensor) -> float:
        """Return the factor r between the loss and the sum of its terms.

        Args:
            f: Outputs, (N, ...).
        """
        return self._share(self.counts(f))

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
            piece = self._factor(z[:, term : term + 1], slice(first, last), share)
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
        return self._restored(gradients * math.sqrt(self._share(z.shape) / samples), f)

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
        share = self._share(z.shape)
        if not isinstance(targets, OutputGradient):
            labels = self._labels(torch.as_tensor(targets, device=f.device), f)
            return self._gradient(z, labels) * math.sqrt(share)
        if targets.values.shape != f.shape:
            raise ValueError(
                f"targets: expected an OutputGradient of the outputs' shape {tuple(f.shape)}, got "
                f"{tuple(targets.values.shape)}"
            )
        return self._canonical(targets.values.to(f), f) / math.sqrt(share)

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

    def _share(self, shape: Sequence[int]) -> float:
        """The factor r for outputs seen as (N, T, C)."""
        return self.scale / (self._count(shape) if self.reduction == "mean" else 1.0)

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
    def _factor(self, z: Tensor, part: slice, share: float) -> Tensor:
        """(N, T, C) -> (C or fewer, N, T, C), columns of a factor of r E[grad l grad l^T]."""

    @abstractmethod
    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        """E[grad l grad l^T] v for v (..., N, T, C)."""

    @abstractmethod
    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Grad l at labels y (N, T, C)."""

    @abstractmethod
    def _sample(self, z: Tensor) -> Tensor:
        """Labels (N, T, C) from the model's own distribution."""


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes with the probabilities softmax(f): ``CrossEntropyLoss``, or ``NLLLoss`` of ``log_softmax``.

    Args:
        reduction: As for Likelihood.
        scale: As for Likelihood.
        dim: Dimension of the classes in the outputs. PyTorch's is 1 (0 for outputs with one dimension); use -1 for a
            model with outputs (N, T, C) that are flattened to (N T, C) for the loss.
    """

    dim: int = 1
    name = "categorical"

    def counts(self, f: Tensor) -> tuple[int, int, int]:
        """Return the numbers of data, terms and classes, see Likelihood."""
        axis = self._axis(f)
        classes = f.shape[axis]
        if f.ndim == 1:
            return 1, 1, classes
        return f.shape[0], f.numel() // (f.shape[0] * classes), classes

    def _axis(self, f: Tensor) -> int:
        axis = 0 if f.ndim == 1 else self.dim + f.ndim if self.dim < 0 else self.dim
        valid = f.ndim == 1 or 0 < axis < f.ndim
        if not valid or f.shape[axis] < 2:
            raise ValueError(
                f"outputs: expected two classes or more along dimension {self.dim}, after the data, got the shape "
                f"{tuple(f.shape)}; a single logit is likelihood='bernoulli'"
            )
        return axis

    def _canonical(self, v: Tensor, f: Tensor | None = None) -> Tensor:
        f = v if f is None else f
        lead, axis = v.ndim - f.ndim, self._axis(f)
        if f.ndim == 1:
            return v[..., None, None, :]
        if f.ndim == 2:
            return v.unsqueeze(-2)
        moved = v.movedim(lead + axis, -1)
        return moved.reshape(*moved.shape[: lead + 1], -1, moved.shape[-1])

    def _restored(self, z: Tensor, f: Tensor) -> Tensor:
        if f.ndim < 3:
            return z.reshape(*z.shape[:-3], *f.shape)
        lead, axis = z.ndim - 3, self._axis(f)
        rest = [size for i, size in enumerate(f.shape) if i not in (0, axis)]
        return z.reshape(*z.shape[: lead + 1], *rest, z.shape[-1]).movedim(-1, lead + axis)

    def _labels(self, targets: Tensor, f: Tensor) -> Tensor:
        if targets.shape == f.shape and targets.is_floating_point():  # probabilities of the classes
            return self._canonical(targets.to(f))
        axis = self._axis(f)
        shape = (*f.shape[:axis], *f.shape[axis + 1 :])
        if targets.shape != shape or targets.is_floating_point():
            raise ValueError(
                f"targets: expected classes of shape {tuple(shape)}, got {targets.dtype} {tuple(targets.shape)}"
            )
        if bool((targets < 0).any()) or bool((targets >= f.shape[axis]).any()):
            raise ValueError(
                f"targets: expected classes from 0 to {f.shape[axis] - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}; ignore_index is not supported"
            )
        one_hot = torch.nn.functional.one_hot(targets, f.shape[axis]).to(f)
        return one_hot.reshape(self._canonical(f).shape)

    def _count(self, shape: Sequence[int]) -> int:
        return shape[0] * shape[1]

    def _factor(self, z: Tensor, part: slice, share: float) -> Tensor:
        p = z.softmax(-1)
        unit = _identity(z, part)
        return (p * share).sqrt().movedim(-1, 0)[part, ..., None] * (unit[:, None, None] - p)

    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        p = z.softmax(-1)
        return p * (v - (p * v).sum(-1, keepdim=True))

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.softmax(-1) * y.sum(-1, keepdim=True) - y

    def _sample(self, z: Tensor) -> Tensor:
        classes = z.shape[-1]
        drawn = torch.multinomial(z.softmax(-1).reshape(-1, classes), 1)[:, 0]
        return torch.nn.functional.one_hot(drawn, classes).to(z).reshape(z.shape)


class _Elementwise(Likelihood):
    """Independent outputs: the Fisher information of the outputs is diagonal."""

    def _factor(self, z: Tensor, part: slice, share: float) -> Tensor:
        unit = _identity(z, part)
        return unit[:, None, None] * (self._variance(z) * share).sqrt()

    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        return self._variance(z) * v

    @abstractmethod
    def _variance(self, z: Tensor) -> Tensor:
        """The diagonal of E[grad l grad l^T]."""


@dataclass(frozen=True)
class Bernoulli(_Elementwise):
    """Independent events with the probabilities sigmoid(f): ``BCEWithLogitsLoss``.

    Args:
        reduction: As for Likelihood; the mean is over all elements.
        scale: As for Likelihood.
    """

    name = "bernoulli"

    def _variance(self, z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.sigmoid() - y

    def _sample(self, z: Tensor) -> Tensor:
        return torch.bernoulli(z.sigmoid())


@dataclass(frozen=True)
class Gaussian(_Elementwise):
    """Independent numbers around f with the variance 1/2: ``MSELoss``, whose Hessian is 2.

    Args:
        reduction: As for Likelihood; the mean is over all elements.
        scale: As for Likelihood.
    """

    name = "gaussian"

    def _variance(self, z: Tensor) -> Tensor:
        return torch.full_like(z, 2.0)

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (z - y)

    def _sample(self, z: Tensor) -> Tensor:
        return z + torch.randn_like(z) * math.sqrt(0.5)


def _only(columns: Tensor, term: int, terms: int) -> Tensor:
    """(K, N, 1, C) for one term -> (K, N, T, C), zero for the others."""
    if terms == 1:
        return columns
    shape = (*columns.shape[:2], terms, columns.shape[3])
    result = columns.new_zeros(shape)
    result[:, :, term] = columns[:, :, 0]
    return result


def _identity(z: Tensor, part: slice) -> Tensor:
    """Rows of the identity over the last dimension of z."""
    size = z.shape[-1]
    start, stop, _ = part.indices(size)
    if size <= _SMALL:
        return _eye(size, z.dtype, z.device)[start:stop]
    rows = z.new_zeros(stop - start, size)
    rows.diagonal(start).fill_(1.0)
    return rows


@functools.lru_cache(maxsize=16)
def _eye(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=dtype, device=device)


def as_likelihood(value: Any) -> Likelihood:
    """Return a likelihood: itself, or the one of that name with the mean reduction.

    Args:
        value: A Likelihood, ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.

    Returns:
        The likelihood.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, Likelihood):
        return value
    for kind in (Categorical, Bernoulli, Gaussian):
        if value == kind.name:
            return kind()
    raise ValueError(
        "likelihood: expected 'categorical' (CrossEntropyLoss), 'bernoulli' (BCEWithLogitsLoss), 'gaussian' (MSELoss), or "
        f"an object such as Categorical(reduction='sum'), got {value!r}"
    )
