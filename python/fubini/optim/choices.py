"""What the optimizer chooses by itself, for a loss or without one, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pennylane as qml
import torch

from fubini.devices.signal_to_noise import SignalToNoise
from fubini.fisher.likelihoods import Gaussian
from fubini.fisher.losses import as_likelihood
from fubini.nn.layer import QuantumLayer
from fubini.optim.momentum import Spring
from fubini.optim.policies import Armijo, LevenbergMarquardt

#: Kind of a damping in units of one term of the loss, of which a sum has many.
PER_TERM = "per term"
#: Added to the curvature of an energy where nothing judges steps, in units of its largest size along an axis.
ENERGY_DAMPING = 0.1


@dataclass(frozen=True)
class Choices:
    """The settings that have to be chosen together.

    Attributes:
        lr: As for ``QNGOptimizer``.
        metric: Likewise.
        lam: Likewise.
        averaging: Likewise.
        step_rule: Likewise, never ``"auto"``.
        likelihood: Likewise; the loss if that is what was given.
        by_length: Whether steps are limited by their running length.
        unit: Of that length, see ``StepLength``.
        per_term: Whether lam counts per term of the loss.
        by_closure: Whether lam is a policy for steps with a closure, and ``ENERGY_DAMPING`` serves those without.
        reasons: What was chosen and why, one line each; empty without a loss.
    """

    lr: Any
    metric: Any
    lam: Any
    averaging: Any
    step_rule: Any
    likelihood: Any
    by_length: bool = False
    unit: float = 1.0
    per_term: bool = False
    by_closure: bool = False
    reasons: tuple[str, ...] = ()


def choose(
    loss: Any,
    *,
    lr: Any,
    metric: Any,
    lam: Any,
    averaging: Any,
    step_rule: Any,
    likelihood: Any,
    momentum: Any,
) -> Choices:
    """Return the settings of an optimizer, with those that were not given chosen for the loss.

    Without a loss these are constants. With one, everything is measured in the curvature of the loss, so that the same
    numbers fit classifiers and regressions: they were compared on mini-batches of both.

    Args:
        loss: As for ``QNGOptimizer``; None if there is none.
        lr: Likewise; None where it was not given.
        metric: Likewise.
        lam: Likewise.
        averaging: Likewise.
        step_rule: Likewise; ``"auto"`` where it was not given.
        likelihood: Likewise.
        momentum: Likewise.

    Raises:
        TypeError: If the loss is the negative logarithm of no known distribution.
        ValueError: If it is no loss, or other options do not go with it.
    """
    if isinstance(step_rule, str) and step_rule != "auto":
        raise ValueError(
            f"step_rule: expected 'auto', TrustRegion(...), Armijo(...) or None, got {step_rule!r}"
        )
    if loss is None and metric == "energy":
        return Choices(
            1.0 if lr is None else lr,
            metric,
            LevenbergMarquardt() if lam is None else lam,
            0.0 if averaging is None else averaging,
            None if step_rule == "auto" else step_rule,
            likelihood,
            by_closure=lam is None,
        )
    if loss is None:
        return Choices(
            0.01 if lr is None else lr,
            "quantum" if metric is None else metric,
            1e-3 if lam is None else lam,
            0.0 if averaging is None else averaging,
            None if step_rule == "auto" else step_rule,
            likelihood,
        )
    meaning = as_likelihood(loss, "loss")
    _check_company(metric, lam, likelihood)
    judged = getattr(lam, "needs_closure", False) or isinstance(step_rule, Armijo)
    by_length = step_rule == "auto" and not judged and not isinstance(momentum, Spring)
    reasons: list[str] = []

    def pick(name: str, given: Any, chosen: Any, why: str) -> Any:
        if given is not None:
            reasons.append(f"{name}={given!r}: as given")
            return given
        reasons.append(f"{name}={chosen!r}: {why}")
        return chosen

    metric = pick(
        "metric", metric, "fisher", "the curvature of the loss, for quantum and classical layers"
    )
    if by_length:
        default, why = (
            0.5,
            "half of the full step, in the damped metric no longer than half of that",
        )
    elif judged:
        default, why = 1.0, "the full step, which is judged by the loss after it"
    else:
        default, why = 0.1, "a tenth of the full step, as batches are noisy"
    lr = pick("lr", lr, default, why)
    per_term = lam is None
    why = "for each term of the loss, enough against the noise of batches"
    lam = pick("lam", lam, 1e-2, why + (", and less as steps get short" if by_length else ""))
    averaging = pick(
        "averaging",
        averaging,
        0.0 if judged else 0.8,
        "steps are judged by the present curvature"
        if judged
        else "the metric of some five batches is less noisy than that of one",
    )
    if step_rule != "auto":
        reasons.append(f"step_rule={step_rule!r}: as given")
    rule = None if step_rule == "auto" else step_rule
    # Errors have the scale of the targets; the logarithm of a probability has its own.
    unit = 0.0 if isinstance(meaning, Gaussian) else 1.0
    return Choices(
        lr, metric, lam, averaging, rule, loss, by_length, unit, per_term, reasons=tuple(reasons)
    )


def _check_company(metric: Any, lam: Any, likelihood: Any) -> None:
    """Refuse what contradicts a loss."""
    if likelihood is not None:
        raise ValueError(
            f"likelihood: expected None besides loss=, which says it, got {likelihood!r}; leave one of them out"
        )
    if metric in ("quantum", "energy"):
        knows = "knows no loss" if metric == "quantum" else "knows its loss, the energy"
        raise ValueError(
            f"metric: expected 'fisher' or 'hybrid' with loss=, got {metric!r}, which {knows}; leave loss= out for it"
        )
    if isinstance(lam, SignalToNoise):
        raise ValueError(  # noqa: TRY004 - the options contradict each other
            "loss: expected None with lam=SignalToNoise, which needs metric='quantum', got a loss; leave one of them out"
        )


def without_metric(model: torch.nn.Module, owned: set[torch.Tensor]) -> list[str]:
    """Return the names of the optimizer's trained parameters that are outside of all quantum layers of a model.

    Args:
        model: The model.
        owned: The optimizer's parameters.

    Returns:
        The names; none if the model has no quantum layer at all.
    """
    inside: set[torch.Tensor] = set()
    found = False
    for module in model.modules():
        if isinstance(module, QuantumLayer | qml.qnn.TorchLayer):
            found = True
            inside |= set(module.parameters())
    if not found:
        return []
    return [
        name
        for name, p in model.named_parameters()
        if p in owned and p not in inside and p.requires_grad
    ]


def better_call(names: list[str]) -> str:
    """Return the warning about classical parameters under the quantum metric that nobody asked for.

    Args:
        names: Theirs.
    """
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"metric: the quantum metric, which is the default without loss=, says nothing of classical parameters ({some}), "
        "which take the plain gradient step; pass the loss, QNGOptimizer(model, loss=torch.nn.CrossEntropyLoss()), for the "
        "metric of the whole model and a step size that needs no tuning, or metric='quantum' if that is what is meant"
    )


def described(reasons: tuple[str, ...], options: Mapping[str, Any]) -> list[str]:
    """Return the lines of ``explain`` about what was chosen.

    Args:
        reasons: Of the choices.
        options: The optimizer's.
    """
    if not reasons:
        return []
    return [f"Chosen for loss={options['likelihood']!r}:", *(f"  {line}" for line in reasons)]
