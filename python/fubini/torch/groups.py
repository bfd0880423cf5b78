"""Damping in parameter groups, where everything is a plain number or word so that it can be saved."""

from typing import Any

import torch

from fubini.damping import Absolute, Damping, Diagonal, Relative
from fubini.policies import DampingPolicy, as_policy
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
