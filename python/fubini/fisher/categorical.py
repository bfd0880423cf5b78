"""Classes: the likelihood of ``CrossEntropyLoss`` and ``NLLLoss``, with class weights, smoothing and ignored labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fubini.fisher.likelihood_base import Likelihood, OutputGradient, identity

Tensor = torch.Tensor


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes with the probabilities softmax(f): ``CrossEntropyLoss``, or ``NLLLoss`` of ``log_softmax``.

    The Fisher information under it is the generalised Gauss-Newton matrix of the loss (Martens 2020, arXiv:1412.1193).
    With class weights or ignored labels, the metric depends on the labels of the data: they are the targets of the step,
    or follow from the gradient of the loss by the outputs, which the optimizer knows.

    Args:
        reduction: As for Likelihood.
        scale: As for Likelihood.
        dim: Dimension of the classes in the outputs. PyTorch's is 1 (0 for outputs with one dimension); use -1 for a
            model with outputs (N, T, C) that are flattened to (N T, C) for the loss.
        weight: Of the classes, (C,), as in ``CrossEntropyLoss``; None for all alike.
        label_smoothing: As in ``CrossEntropyLoss``.
        ignore_index: Label of what is left out; None for none.
        normalised: Whether the outputs are logarithms of probabilities, as ``NLLLoss`` takes them.

    Example:
        >>> import fubini, torch
        >>> model = torch.nn.Linear(2, 3)
        >>> opt = fubini.QNGOptimizer(model, lr=0.1, metric="fisher", likelihood=fubini.Categorical(label_smoothing=0.1))
        >>> labels = torch.tensor([0, 1, 2, 0])
        >>> torch.nn.functional.cross_entropy(model(torch.ones(4, 2)), labels, label_smoothing=0.1).backward()
        >>> opt.step()
    """

    dim: int = 1
    weight: Tensor | None = field(default=None, compare=False)
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    normalised: bool = False
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

    def at(self, f: Tensor, targets: Any) -> Likelihood:
        """Return the likelihood of these outputs' terms, see Likelihood."""
        z = self._canonical(f)
        if self.normalised and float(z.logsumexp(-1).abs().max()) > 1e-2:
            raise ValueError(
                "likelihood: expected outputs that are logarithms of probabilities, as NLLLoss takes them, got some whose "
                "probabilities do not sum to 1; end the model with torch.nn.LogSoftmax"
            )
        if self.weight is not None and self.weight.numel() != z.shape[-1]:
            raise ValueError(
                f"likelihood: expected weights of the {z.shape[-1]} classes of the outputs, got {self.weight.numel()}"
            )
        if self.weight is None and self.ignore_index is None:
            return self
        if self.weight is None:
            ignored = self._ignored(z, f, targets)
            if ignored is None or not bool(ignored.any()):
                return self
            kept = (~ignored).to(z).unsqueeze(-1)
            return self._with(_curvatures=kept, _rate=self._rate_of(float(kept.sum())))
        if targets is None:
            raise ValueError(
                "targets: expected the labels of the data, which the weights of classes depend on, got None; pass "
                "step(targets=...)"
            )
        y, soft = self._known(z, f, targets), False
        if not isinstance(targets, OutputGradient):
            soft = torch.as_tensor(targets).is_floating_point()
        # The mean divides by the weights of the labels, without smoothing; with probabilities for labels by their number.
        rate = None if soft else self._rate_of(float(self._label_weights(z, y).sum()))
        return self._with(_curvatures=y.sum(-1, keepdim=True), _rate=rate)

    def _rate_of(self, total: float) -> float:
        if self.reduction == "sum":
            return self.scale
        return self.scale / total if total > 0.0 else 0.0

    def _ignored(self, z: Tensor, f: Tensor, targets: Any) -> Tensor | None:
        """Which terms are left out, (N, T); None where it is not known, and none is."""
        if targets is None:
            return None
        if not isinstance(targets, OutputGradient):
            labels = torch.as_tensor(targets, device=f.device)
            if labels.is_floating_point():
                return None
            if labels.numel() != z[..., 0].numel():
                raise ValueError(
                    f"targets: expected {z[..., 0].numel()} classes, got the shape {tuple(labels.shape)}"
                )
            return torch.eq(labels.reshape(z.shape[:-1]), self.ignore_index or 0)
        # Terms without influence, unless their class is certain, which makes the gradient vanish as well.
        live = self._gradient_of(targets, f).any(-1)
        if bool(live.all()):
            return None
        silent = ~live
        return silent if self.normalised else silent & (z.softmax(-1).amax(-1) < 1.0 - 1e-6)

    def _label_weights(self, z: Tensor, y: Tensor) -> Tensor:
        """Weights of the labels themselves, (N, T), of smoothed and weighted labels y."""
        weight = z.new_ones(z.shape[-1]) if self.weight is None else self.weight.to(z)
        smooth = self.label_smoothing
        # y = w ((1 - s) q + s / C): the sum over the classes without the second term.
        live = y.abs().sum(-1) > 0
        own = (y.sum(-1) - smooth / z.shape[-1] * weight.sum()) / (1.0 - smooth)
        return torch.where(live, own, torch.zeros_like(own))

    def _known(self, z: Tensor, f: Tensor, targets: Any) -> Tensor:
        """Smoothed and weighted labels, (N, T, C), zero where ignored."""
        if not isinstance(targets, OutputGradient):
            return self._labels(torch.as_tensor(targets, device=f.device), f)
        g = self._gradient_of(targets, f)
        return self._smoothed(self._inferred(z.double(), g.double()).to(z))

    def _inferred(self, z: Tensor, g: Tensor) -> Tensor:
        """One-hot labels (N, T, C) from the gradient of the loss by the outputs, zero for terms without influence."""
        classes = z.shape[-1]
        silent = (g == 0).all(-1)
        if self.normalised:
            label = g.argmin(-1)
        else:
            # g = r (u + c_y (p - e_y)): the label whose direction fits best.
            p = z.softmax(-1)
            weight = z.new_ones(classes) if self.weight is None else self.weight.to(z)
            smooth = self.label_smoothing / classes
            u = smooth * (weight.sum() * p - weight)
            c = (1.0 - self.label_smoothing) * weight
            along = (g * u).sum(-1, keepdim=True) + c * ((g * p).sum(-1, keepdim=True) - g)
            square = (
                u.square().sum(-1, keepdim=True)
                + 2.0 * c * ((u * p).sum(-1, keepdim=True) - u)
                + c.square() * (p.square().sum(-1, keepdim=True) - 2.0 * p + 1.0)
            )
            fit = along / (square * g.square().sum(-1, keepdim=True)).sqrt()
            best = torch.where(square > 0, fit, -torch.inf).nan_to_num(nan=-2.0).max(-1)
            label, certain = best.indices, p.max(-1).values
            # Where a class is all but certain, gradients are rounding.
            clear = ~silent & (certain < 0.99)
            if bool((best.values[clear] < 0.999).any()):
                raise ValueError(
                    "targets: expected the gradient of the stated loss by the outputs, to infer the labels that its metric "
                    "depends on, got another one; pass step(targets=...)"
                )
            # A gradient that vanishes because the class is certain belongs to a label all the same.
            sure = silent & (certain > 1.0 - 1e-6)
            label = torch.where(sure, p.argmax(-1), label)
            silent = silent & ~sure
        one_hot = torch.nn.functional.one_hot(label, classes).to(z)
        return one_hot.masked_fill(silent.unsqueeze(-1), 0.0)

    def _smoothed(self, y: Tensor) -> Tensor:
        """Labels with smoothing and weights, (N, T, C); those that are zero stay zero."""
        s = self.label_smoothing
        if s:
            y = (1.0 - s) * y + s / y.shape[-1] * y.sum(-1, keepdim=True)
        return y if self.weight is None else y * self.weight.to(y)

    def _labels(self, targets: Tensor, f: Tensor) -> Tensor:
        if targets.shape == f.shape and targets.is_floating_point():  # probabilities of the classes
            return self._smoothed(self._canonical(targets.to(f)))
        axis = self._axis(f)
        shape = (*f.shape[:axis], *f.shape[axis + 1 :])
        if targets.shape != shape or targets.is_floating_point():
            raise ValueError(
                f"targets: expected classes of shape {tuple(shape)}, got {targets.dtype} {tuple(targets.shape)}"
            )
        ignored = torch.zeros_like(targets, dtype=torch.bool)
        if self.ignore_index is not None:
            ignored = targets == self.ignore_index
            targets = targets.masked_fill(ignored, 0)
        if bool((targets < 0).any()) or bool((targets >= f.shape[axis]).any()):
            hint = (
                "" if self.ignore_index is not None else "; state an ignore_index in the likelihood"
            )
            raise ValueError(
                f"targets: expected classes from 0 to {f.shape[axis] - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}{hint}"
            )
        one_hot = torch.nn.functional.one_hot(targets, f.shape[axis]).to(f)
        one_hot = one_hot.masked_fill(ignored.unsqueeze(-1), 0.0)
        return self._smoothed(one_hot.reshape(self._canonical(f).shape))

    def _count(self, shape: Sequence[int]) -> int:
        return shape[0] * shape[1]

    def _factor(self, z: Tensor, part: slice, share: float | Tensor) -> Tensor:
        p = z.softmax(-1)
        unit = identity(z, part)
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
