"""The likelihood that a word, or a loss of PyTorch, stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson


def _cross_entropy(loss: Any, reduction: Any) -> Likelihood:
    return Categorical(
        reduction,
        weight=loss.weight,
        label_smoothing=loss.label_smoothing,
        ignore_index=loss.ignore_index,
    )


def _nll(loss: Any, reduction: Any) -> Likelihood:
    return Categorical(
        reduction, weight=loss.weight, ignore_index=loss.ignore_index, normalised=True
    )


def _bernoulli(loss: Any, reduction: Any) -> Likelihood:
    return Bernoulli(reduction, weight=loss.weight, pos_weight=loss.pos_weight)


def _poisson(loss: Any, reduction: Any) -> Likelihood:
    return Poisson(reduction, log_input=loss.log_input, eps=loss.eps)


_KNOWN: dict[Any, Callable[[Any, Any], Likelihood]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _nll,
    nn.BCEWithLogitsLoss: _bernoulli,
    nn.MSELoss: lambda loss, reduction: Gaussian(reduction),
    nn.PoissonNLLLoss: _poisson,
}
# What to do about others.
_REMEDIES: dict[Any, str] = {
    nn.BCELoss: "leave out the model's last Sigmoid, and use BCEWithLogitsLoss",
    nn.GaussianNLLLoss: (
        "it does not say the variances; for one known variance v use MSELoss times 1/(2 v), with "
        "likelihood=fubini.Gaussian(scale=1 / (2 * v))"
    ),
    nn.L1Loss: "its curvature is zero; likelihood='gaussian' is the metric of the squared error",
    nn.SmoothL1Loss: "likelihood='gaussian' is the metric of the squared error, above the curvature where errors are large",
    nn.HuberLoss: "likelihood='gaussian' is the metric of the squared error, above the curvature where errors are large",
    nn.KLDivLoss: "use CrossEntropyLoss, which takes probabilities for targets and has the same gradient",
}


def as_likelihood(value: Any, argument: str = "likelihood") -> Likelihood:
    """Return a likelihood: itself, the one of that name with the mean reduction, or that of a loss.

    Args:
        value: A Likelihood; ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``; or the module that computes the loss:
            ``CrossEntropyLoss`` with its reduction, weight, label_smoothing and ignore_index, ``NLLLoss`` likewise,
            ``BCEWithLogitsLoss`` with its weight and pos_weight, ``MSELoss``, ``PoissonNLLLoss``.
        argument: Name of the argument, for messages.

    Returns:
        The likelihood.

    Raises:
        TypeError: For a loss that is the negative logarithm of no known distribution.
        ValueError: If it is none of these, or a loss without a reduction.
    """
    if isinstance(value, Likelihood):
        return value
    if isinstance(value, nn.Module):
        return _of_loss(value, argument)
    for kind in (Categorical, Bernoulli, Gaussian):
        if isinstance(value, str) and value == kind.name:
            return kind()
    raise ValueError(
        f"{argument}: expected 'categorical' (CrossEntropyLoss), 'bernoulli' (BCEWithLogitsLoss), 'gaussian' (MSELoss), the "
        f"loss itself, such as torch.nn.CrossEntropyLoss(), or an object such as Categorical(reduction='sum'), got {value!r}"
    )


def _of_loss(loss: nn.Module, argument: str) -> Likelihood:
    kind: Any = type(loss)
    for known, make in _KNOWN.items():
        if not issubclass(kind, known) or kind.forward is not known.forward:
            continue
        if loss.reduction == "none":
            raise ValueError(
                f"{argument}: expected {known.__name__} with reduction='mean' or 'sum', got 'none'; pass the likelihood of "
                "what is done with its results, such as Categorical('sum'), or Gaussian(scale=...)"
            )
        return make(loss, loss.reduction)
    names = ", ".join(known.__name__ for known in _KNOWN)
    remedy = next(
        (
            text.replace("likelihood=", f"{argument}=")
            for other, text in _REMEDIES.items()
            if issubclass(kind, other)
        ),
        "",
    )
    raise TypeError(
        f"{argument}: expected one of the losses {names}, got {kind.__name__}"
        + (
            f"; {remedy}"
            if remedy
            else "; or an object of fubini.fisher.likelihoods that has the loss's curvature"
        )
    )
