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

| ``Poisson`` | PoissonNLLLoss | sum of exp(f) - y f | diag(exp(f)) | 1 / number of elements |

r is 1 for ``"sum"``. The words ``"categorical"``, ``"bernoulli"`` and ``"gaussian"`` stand for the mean of the loss without
further options: a loss that sums has a metric, and a step, of another scale, so pass the loss itself
(``likelihood=torch.nn.CrossEntropyLoss(reduction="sum")``), see :mod:`fubini.fisher.losses`. Class weights and ``pos_weight``
make the terms' curvature depend on the labels; label smoothing alone does not change it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch

from fubini.fisher.categorical import Categorical
from fubini.fisher.likelihood_base import Likelihood, OutputGradient, identity

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "OutputGradient", "Poisson"]

Tensor = torch.Tensor


class _Elementwise(Likelihood):
    """Independent outputs: the Fisher information of the outputs is diagonal."""

    def _factor(self, z: Tensor, part: slice, share: float | Tensor) -> Tensor:
        unit = identity(z, part)
        return unit[:, None, None] * (self._variance(z) * share).sqrt()

    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        return self._variance(z) * v

    @abstractmethod
    def _variance(self, z: Tensor) -> Tensor:
        """The diagonal of E[grad l grad l^T]."""


@dataclass(frozen=True)
class Bernoulli(_Elementwise):
    """Independent events with the probabilities sigmoid(f): ``BCEWithLogitsLoss``.

    The Fisher information under it is the generalised Gauss-Newton matrix of the loss (Martens 2020, arXiv:1412.1193).
    With ``pos_weight`` the metric depends on the labels of the data, see Categorical.

    Args:
        reduction: As for Likelihood; the mean is over all elements.
        scale: As for Likelihood.
        weight: Of the elements, as in ``BCEWithLogitsLoss``; None for all alike.
        pos_weight: Of events that occur, likewise.

    Example:
        >>> import fubini, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fubini.QNGOptimizer(model, lr=0.1, metric="fisher", likelihood=fubini.Bernoulli())
        >>> torch.nn.functional.binary_cross_entropy_with_logits(model(torch.ones(4, 2)), torch.ones(4, 1)).backward()
        >>> opt.step()
    """

    name = "bernoulli"
    weight: Tensor | None = field(default=None, compare=False)
    pos_weight: Tensor | None = field(default=None, compare=False)
    _both: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def at(self, f: Tensor, targets: Any) -> Likelihood:
        """Return the likelihood of these outputs' terms, see Likelihood."""
        if self.weight is None and self.pos_weight is None:
            return self
        weight, positive = self._weights(f)
        if self.pos_weight is None:
            return self._with(_curvatures=weight, _both=(weight, positive))
        if targets is None:
            raise ValueError(
                "targets: expected the labels of the data, which pos_weight depends on, got None; pass step(targets=...)"
            )
        if isinstance(targets, OutputGradient):
            z, g = self._canonical(f).double(), self._gradient_of(targets, f).double()
            p, g = z.sigmoid(), g / (self._ratio(z.shape) * weight)
            # g = (1 - y) p + y pos_weight (p - 1)
            y = ((p - g) / (p + positive * (1.0 - p))).nan_to_num(nan=0.0).clamp(0.0, 1.0).to(f)
        else:
            y = self._labels(torch.as_tensor(targets, device=f.device), f)
        curvatures = weight * (1.0 + (positive - 1.0) * y)
        return self._with(_curvatures=curvatures, _both=(weight, positive))

    def _weights(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Both weights, (N, T, C)."""
        found = []
        for name in ("weight", "pos_weight"):
            given = getattr(self, name)
            given = f.new_ones(()) if given is None else given.to(f)
            try:
                found.append(self._canonical(given.expand(f.shape), f))
            except RuntimeError:
                raise ValueError(
                    f"likelihood: expected a {name} that broadcasts to the outputs' shape {tuple(f.shape)}, got "
                    f"{tuple(given.shape)}"
                ) from None
        return found[0], found[1]

    def _variance(self, z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.sigmoid() - y

    def _loss_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        if self._both is None:
            return self._gradient(z, y)
        weight, positive = self._both
        p = z.sigmoid()
        return weight * ((1.0 - y) * p + y * positive * (p - 1.0))

    def _sample(self, z: Tensor) -> Tensor:
        return torch.bernoulli(z.sigmoid())


@dataclass(frozen=True)
class Gaussian(_Elementwise):
    """Independent numbers around f with the variance 1/2: ``MSELoss``, whose Hessian is 2.

    The Fisher information under it is the generalised Gauss-Newton matrix of the loss (Martens 2020, arXiv:1412.1193).

    Args:
        reduction: As for Likelihood; the mean is over all elements.
        scale: As for Likelihood.

    Example:
        >>> import fubini, torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> opt = fubini.QNGOptimizer(model, lr=1.0, metric="fisher", likelihood=fubini.Gaussian(), lam=1e-9, step_rule=None)
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0], [1.0]])
        >>> torch.nn.functional.mse_loss(model(x), y).backward()
        >>> opt.step()  # least squares: Newton's step
        >>> model.weight.data.round(decimals=3)
        tensor([[ 3., -1.]])
    """

    name = "gaussian"

    def _variance(self, z: Tensor) -> Tensor:
        return torch.full_like(z, 2.0)

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (z - y)

    def _sample(self, z: Tensor) -> Tensor:
        return z + torch.randn_like(z) * math.sqrt(0.5)


@dataclass(frozen=True)
class Poisson(_Elementwise):
    """Independent counts with the means exp(f), or f itself: ``PoissonNLLLoss``.

    The Fisher information under it is the generalised Gauss-Newton matrix of the loss where the outputs are logarithms of
    the means (Martens 2020, arXiv:1412.1193).

    Args:
        reduction: As for Likelihood; the mean is over all elements.
        scale: As for Likelihood.
        log_input: Whether the outputs are logarithms of the means.
        eps: Added to means that are outputs themselves, as in ``PoissonNLLLoss``.

    Example:
        >>> import fubini, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fubini.QNGOptimizer(model, lr=0.1, metric="fisher", likelihood=fubini.Poisson())
        >>> torch.nn.functional.poisson_nll_loss(model(torch.ones(4, 2)), torch.ones(4, 1)).backward()
        >>> opt.step()
    """

    name = "poisson"
    log_input: bool = True
    eps: float = 1e-8

    def at(self, f: Tensor, targets: Any) -> Likelihood:
        """Return the likelihood of these outputs' terms, see Likelihood."""
        if not self.log_input and not bool((f > 0.0).all()):
            raise ValueError(
                "likelihood: expected outputs above 0, which are means of counts with log_input=False, got "
                f"{float(f.min())}; end the model with torch.nn.Softplus, or use log_input=True"
            )
        return self

    def _variance(self, z: Tensor) -> Tensor:
        return z.exp() if self.log_input else 1.0 / (z + self.eps)

    def _gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.exp() - y if self.log_input else 1.0 - y / (z + self.eps)

    def _sample(self, z: Tensor) -> Tensor:
        return torch.poisson(z.exp() if self.log_input else z)


#: Those whose closed form the kernel has; each has a word that stands for it.
CLOSED_FORM: tuple[type[Likelihood], ...] = (Categorical, Bernoulli, Gaussian)
