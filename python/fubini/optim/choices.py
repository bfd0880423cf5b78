"""What the optimizer chooses by itself, for a loss or without one, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pennylane as qml
import torch

from fubini.devices.signal_to_noise import SignalToNoise
from fubini.fisher.likelihoods import Gaussian
from fubini.fisher.losses import as_likelihood
from fubini.nn.layer import QuantumLayer
from fubini.optim.momentum import Spring
from fubini.optim.policies import LevenbergMarquardt
from fubini.optim.step_rules import Armijo

#: Kind of a damping in units of one term of the loss, of which a sum has many.
PER_TERM = "per term"
#: Added to the curvature of an energy where nothing judges steps, in units of its largest size along an axis.
ENERGY_DAMPING = 0.1


def choose(loss: Any, momentum: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer, with those that were not given chosen for the loss.

    Without a loss these are constants. With one, everything is measured in the curvature of the loss, so that the same
    numbers fit classifiers and regressions: they were compared on mini-batches of both.

    Args:
        loss: As for ``QNGOptimizer``; None if there is none.
        momentum: Likewise.
        given: Its other options by name. Those that were not given are None, the step rule ``"auto"``, approx ``"default"``.

    Returns:
        The options, of which likelihood is the loss if that was given and the step rule is never ``"auto"``. Besides,
        ``by_length``, whether steps are limited by their running length, and ``unit`` of that length, see ``StepLength``;
        ``per_term``, whether lam counts per term of the loss; ``by_closure``, whether lam is a policy for steps with a
        closure, and ``ENERGY_DAMPING`` serves those without; and ``reasons``, what was chosen and why, one line each, none
        without a loss.

    Raises:
        TypeError: If the loss is the negative logarithm of no known distribution.
        ValueError: If it is no loss, or other options do not go with it.
    """
    rule, lam = given["step_rule"], given["lam"]
    by_rule = isinstance(rule, str)
    if by_rule and rule != "auto":
        raise ValueError(
            f"step_rule: expected 'auto', TrustRegion(...), Armijo(...) or None, got {rule!r}"
        )
    energy = loss is None and given["metric"] == "energy"
    options = {**given, "by_length": False, "by_closure": energy and lam is None, "reasons": ()}
    options.update(per_term=False, unit=1.0, step_rule=None if by_rule else rule)
    if isinstance(given["approx"], str) and given["approx"] == "default":
        options["approx"] = "auto" if given["metric"] == "energy" else "block-diag"
    if loss is None:
        defaults = {
            "metric": "quantum",
            "lr": 1.0 if energy else 0.01,
            "lam": LevenbergMarquardt() if energy else 1e-3,
            "averaging": 0.0,
        }
        return {**options, **{n: v for n, v in defaults.items() if given[n] is None}}
    meaning = as_likelihood(loss, "loss")
    _check_company(given["metric"], lam, given["likelihood"])
    judged = getattr(lam, "needs_closure", False) or isinstance(rule, Armijo)
    by_length = by_rule and not judged and not isinstance(momentum, Spring)
    chosen: dict[str, tuple[Any, str]] = {
        "metric": ("fisher", "the curvature of the loss, for quantum and classical layers")
    }
    if by_length:
        why = "half of the full step, in the damped metric no longer than half of that"
        chosen["lr"] = 0.5, why
    elif judged:
        chosen["lr"] = 1.0, "the full step, which is judged by the loss after it"
    else:
        chosen["lr"] = 0.1, "a tenth of the full step, as batches are noisy"
    why = "for each term of the loss, enough against the noise of batches"
    chosen["lam"] = 1e-2, why + (", and less as steps get short" if by_length else "")
    if judged:
        chosen["averaging"] = 0.0, "steps are judged by the present curvature"
    else:
        why = "the metric of some five batches is less noisy than that of one"
        chosen["averaging"] = 0.8, why
    reasons = [f"Chosen for loss={loss!r}:"]
    for name, (value, why) in chosen.items():
        if given[name] is None:
            options[name] = value
            reasons.append(f"  {name}={value!r}: {why}")
        else:
            reasons.append(f"  {name}={given[name]!r}: as given")
    if not by_rule:
        reasons.append(f"  step_rule={rule!r}: as given")
    # Errors have the scale of the targets; the logarithm of a probability has its own.
    unit = 0.0 if isinstance(meaning, Gaussian) else 1.0
    options.update(likelihood=loss, by_length=by_length, unit=unit, per_term=lam is None)
    return {**options, "reasons": tuple(reasons)}


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
    quantum = [m for m in model.modules() if isinstance(m, QuantumLayer | qml.qnn.TorchLayer)]
    if not quantum:
        return []
    owned = owned - {p for module in quantum for p in module.parameters()}
    return [name for name, p in model.named_parameters() if p in owned and p.requires_grad]


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
