"""The optimizer's options: checks, and damping in groups, where all is a plain number or word so that it can be saved."""

from collections.abc import Mapping
from typing import Any

import torch

from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.layers import check_rule
from fubini.metric import check_approx
from fubini.policies import Armijo, DampingPolicy, TrustRegion, as_policy
from fubini.torch.checks import check_number

KINDS: dict[str, type[Damping]] = {kind.kind: kind for kind in (Absolute, Relative, Diagonal)}


def group_damping(lam: Any) -> Damping:
    """Return the damping that a number, a Damping or a policy begins with, checked.

    Args:
        lam: As for ``QNGOptimizer``.
    """
    if not isinstance(lam, DampingPolicy | Damping):
        check_number("lam", lam)
        lam = float(lam)
    damping = as_policy(lam).damping_at(0)
    check_number("lam", damping.lam)
    return damping


def damping_entries(damping: Damping) -> dict[str, Any]:
    """Return what a parameter group keeps of a damping.

    Args:
        damping: With one number.
    """
    return {"lam": float(damping.lam), "damping": damping.kind}


def listed(params: Any) -> list[Any]:
    """Return a group's ``params`` as a list.

    Args:
        params: A tensor, or an iterable of tensors or of named tensors.
    """
    return [params] if isinstance(params, torch.Tensor) else list(params)


def check_options(options: Mapping[str, Any], policy: DampingPolicy | None) -> None:
    """Check those options that are for all groups.

    Args:
        options: By name, as for ``QNGOptimizer``.
        policy: The damping policy, if there is one.

    Raises:
        TypeError: If the step rule is none.
        ValueError: For an unknown word, a number out of range, or options that do not go together.
    """
    metric, rule = options["metric"], options["step_rule"]
    words = {
        "metric": ("quantum", "fisher", "hybrid"),
        "fisher": ("true", "empirical"),
        "fallback": (None, "diagonal", "identity"),
    }
    for name, known in words.items():
        if options[name] not in known:
            wanted = ", ".join(repr(word) for word in known[:-1]) + f" or {known[-1]!r}"
            raise ValueError(f"{name}: expected {wanted}, got {options[name]!r}")
    check_approx(options["approx"])
    check_rule(options["layers"])
    check_number("averaging", options["averaging"], 1.0)
    for name, lowest in (("update_every", 1), ("samples", 1)):
        value = options[name]
        if not (isinstance(value, int) and value >= lowest) and not (
            name == "samples" and value is None
        ):
            raise ValueError(f"{name}: expected a whole number >= {lowest}, got {value!r}")
    if metric == "quantum":
        usual = {"likelihood": None, "fisher": "true", "samples": None, "fallback": None}
        for name, value in usual.items():
            if options[name] != value:
                raise ValueError(
                    f"{name}: expected {value!r} with metric='quantum', which knows no loss, got {options[name]!r}; "
                    "use metric='fisher' or 'hybrid'"
                )
    elif options["likelihood"] is None:
        raise ValueError(
            f"likelihood: expected 'categorical', 'bernoulli' or 'gaussian' for metric={metric!r}, got None; it says which "
            "distribution the loss is the negative logarithm of"
        )
    if rule is not None and not isinstance(rule, TrustRegion | Armijo):
        raise TypeError(f"step_rule: expected TrustRegion, Armijo or None, got {rule!r}")
    if isinstance(rule, Armijo) and policy is not None and policy.needs_closure:
        raise ValueError(
            f"step_rule: expected none but TrustRegion with {type(policy).__name__}, which judges the loss itself"
        )
