"""The optimizer's options: checks, and damping in groups, where all is a plain number or word so that it can be saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fubini.blocks import distributed
from fubini.optim.checks import check_count, check_group, listed
from fubini.optim.policies import DampingPolicy, as_policy, is_policy
from fubini.optim.step_rules import Armijo, TrustRegion
from fubini.options import check_approx, check_number, check_rule, check_word
from fubini.solvers.damping import Absolute, Damping, Diagonal, Relative

KINDS: dict[str, type[Damping]] = {kind.kind: kind for kind in (Absolute, Relative, Diagonal)}
# What options may be with a metric that knows no likelihood, with an energy and with SignalToNoise.
_LIKELIHOOD = {"likelihood": (None,), "fisher": ("true",), "samples": (None,), "fallback": (None,)}
_FISHER = "; use metric='fisher' or 'hybrid'"
_ENERGY = {"approx": (None, "auto"), "averaging": (0.0,), "update_every": (1,)}
_NOISY = {
    "metric": ("quantum",), "averaging": (0.0,), "update_every": (1,), "approx": ("block-diag", "diag", None),
}  # fmt: skip


def group_damping(lam: Any) -> Damping:
    """Return the damping that a number, a Damping or a policy begins with, checked.

    Args:
        lam: As for ``QNGOptimizer``.

    Raises:
        TypeError: If it is a class or no number.
        ValueError: If it is out of range.
    """
    if isinstance(lam, type):
        raise TypeError(
            f"lam: expected a number, a damping or a policy, got the class {lam.__name__}; write {lam.__name__}(...)"
        )
    if not (isinstance(lam, Damping) or is_policy(lam)):
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


def checked_group(
    param_group: Mapping[str, Any], defaults: Mapping[str, Any], policy: DampingPolicy | None
) -> dict[str, Any]:
    """Return a parameter group in plain numbers, with a list of its parameters.

    Args:
        param_group: As the caller made it; not changed.
        defaults: The optimizer's.
        policy: Its damping policy, if there is one.

    Returns:
        A new group.

    Raises:
        TypeError: If it is no dictionary, or its parameters are a set.
        ValueError: For a number out of range, a policy in the group, or a duplicate.
    """
    if not isinstance(param_group, Mapping):
        raise TypeError(
            f"param_group: expected a dictionary with 'params', got {type(param_group).__name__}"
        )
    group = dict(param_group)
    if "params" not in group:
        raise ValueError(f"param_group: expected an entry 'params', got {sorted(map(str, group))}")
    if "lam" in group:
        if policy is not None or is_policy(group["lam"]):
            raise ValueError(
                "lam: expected a number, Relative or Diagonal for a group; a policy is for all groups and goes to the "
                "optimizer's lam"
            )
        group.update(damping_entries(group_damping(group["lam"])))
    check_group({**defaults, **group})
    params = group["params"]
    group["params"] = [params] if isinstance(params, torch.Tensor) else listed(params)
    tensors, _ = named_tensors(group["params"])
    if len({id(p) for p in tensors}) < len(tensors):
        raise ValueError("params: expected every parameter once, got a duplicate")
    return group


def named_tensors(params: Sequence[Any]) -> tuple[list[Any], dict[Any, str]]:
    """Return the parameters of a list, and the names of those that have one.

    Args:
        params: Tensors, or pairs of a name and a tensor.
    """
    names = {p[1]: p[0] for p in params if isinstance(p, tuple)}
    return [p[1] if isinstance(p, tuple) else p for p in params], names


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
        "metric": ("quantum", "fisher", "hybrid", "energy"),
        "fisher": ("true", "empirical"),
        "fallback": (None, "diagonal", "identity"),
    }
    for name, known in words.items():
        check_word(name, options[name], known)
    check_approx(options["approx"], auto=metric in ("quantum", "energy"))
    check_rule(options["layers"])
    check_number("averaging", options["averaging"], 1.0)
    for name in ("update_every", "samples"):
        if not (name == "samples" and options[name] is None):
            check_count(name, options[name])
    if metric in ("quantum", "energy"):
        _check_company(
            options, _LIKELIHOOD, f"with metric={metric!r}, which knows no likelihood", _FISHER
        )
    elif options["likelihood"] is None:
        raise ValueError(
            f"likelihood: expected 'categorical', 'bernoulli' or 'gaussian' for metric={metric!r}, got None; it says which "
            "distribution the loss is the negative logarithm of; or pass the loss, such as torch.nn.CrossEntropyLoss()"
        )
    if metric == "energy":  # the curvature is that at the present weights, and has any sign
        why = "with metric='energy', which is the curvature at the present weights"
        _check_company(options, _ENERGY, why, "; leave it out", spring=False)
        if isinstance(rule, TrustRegion):
            raise ValueError(
                "step_rule: expected Armijo(...) or none with metric='energy', in which a step has no length, got TrustRegion; "
                "leave it out: lam=LevenbergMarquardt() shortens steps by the loss"
            )
    if rule is not None and not isinstance(rule, TrustRegion | Armijo):
        raise TypeError(f"step_rule: expected TrustRegion(...), Armijo(...) or None, got {rule!r}")
    if isinstance(rule, Armijo) and policy is not None and policy.needs_closure:
        raise ValueError(
            f"step_rule: expected none but TrustRegion with {type(policy).__name__}, which judges the loss itself"
        )


def _check_company(
    options: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    why: str,
    remedy: str = "",
    *,
    spring: bool = True,
) -> None:
    """Refuse options that do not go with another one, and SPRING's momentum where that does not."""
    for name, values in allowed.items():
        if options[name] not in values:
            expected = " or ".join(map(repr, values))
            raise ValueError(f"{name}: expected {expected} {why}, got {options[name]!r}{remedy}")
    if options.get("spring") and not spring:
        raise ValueError(f"momentum: expected a number {why}, got Spring{remedy}")


def check_signal_to_noise(options: Mapping[str, Any], model: Any) -> None:
    """Check that options go with ``lam=SignalToNoise``.

    Args:
        options: As for ``check_options``.
        model: The optimizer's model, or None.

    Raises:
        RuntimeError: In distributed training.
        ValueError: If they do not.
    """
    if model is None:
        raise ValueError(
            "model: expected a module for lam=SignalToNoise, which knows the noise of its layers, got None"
        )
    _check_company(options, _NOISY, "with lam=SignalToNoise", spring=False)
    if distributed.active():
        raise RuntimeError(
            "lam: expected a number with several processes, whose noise is not gathered, got SignalToNoise"
        )
