"""The likelihood that a word, or a loss of PyTorch, stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from fubini.fisher.likelihoods import (
    CLOSED_FORM,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    Poisson,
)

# For every loss its likelihood, and the options that both have besides the reduction.
_KNOWN: dict[Any, tuple[Callable[..., Likelihood], tuple[str, ...]]] = {
    nn.CrossEntropyLoss: (Categorical, ("weight", "label_smoothing", "ignore_index")),
    nn.NLLLoss: (functools.partial(Categorical, normalised=True), ("weight", "ignore_index")),
    nn.BCEWithLogitsLoss: (Bernoulli, ("weight", "pos_weight")),
    nn.MSELoss: (Gaussian, ()),
    nn.PoissonNLLLoss: (Poisson, ("log_input", "eps")),
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
    for kind in CLOSED_FORM:
        if isinstance(value, str) and value == kind.name:
            return kind()
    raise ValueError(
        f"{argument}: expected 'categorical' (CrossEntropyLoss), 'bernoulli' (BCEWithLogitsLoss), 'gaussian' (MSELoss), the "
        f"loss itself, such as torch.nn.CrossEntropyLoss(), or an object such as Categorical(reduction='sum'), got {value!r}"
    )


def _of_loss(loss: nn.Module, argument: str) -> Likelihood:
    kind: Any = type(loss)
    for known, (make, names) in _KNOWN.items():
        if not issubclass(kind, known) or kind.forward is not known.forward:
            continue
        if loss.reduction == "none":
            raise ValueError(
                f"{argument}: expected {known.__name__} with reduction='mean' or 'sum', got 'none'; pass the likelihood of "
                "what is done with its results, such as Categorical('sum'), or Gaussian(scale=...)"
            )
        return make(loss.reduction, **{name: getattr(loss, name) for name in names})
    losses = ", ".join(known.__name__ for known in _KNOWN)
    remedies = [text for other, text in _REMEDIES.items() if issubclass(kind, other)]
    remedy = "or an object of fubini.fisher.likelihoods that has the loss's curvature"
    if remedies:
        remedy = remedies[0].replace("likelihood=", f"{argument}=")
    raise TypeError(
        f"{argument}: expected one of the losses {losses}, got {kind.__name__}; {remedy}"
    )
