"""Momentum of natural-gradient steps: how the step before enters the next one."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from fubini.options import check_number

# Entries of the optimizer's state.
VELOCITY = "velocity"
SPRING = "momentum"


@dataclass(frozen=True)
class HeavyBall:
    """A velocity: ``v+ = rho v + (G + D)^-1 g`` and ``x+ = x - lr v+``.

    Polyak's momentum for the natural gradient, Momentum-QNG (Borysenko et al. 2024, arXiv:2409.01978): for a constant lr
    it is ``x+ = x + rho (x - x_prev) - lr (G + D)^-1 g``. The present lr scales the whole velocity, as in torch's SGD, so
    that a schedule that ends at zero stops. A step that a rule shortens shortens the velocity.

    Args:
        rho: Share of the velocity that is kept, in [0, 1).

    Raises:
        ValueError: If rho is out of range.

    Example:
        >>> import fubini, torch
        >>> opt = fubini.QNGOptimizer([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=fubini.HeavyBall(0.9))
        >>> opt.param_groups[0]["momentum"]
        0.9
    """

    rho: float = 0.9

    def __post_init__(self) -> None:
        check_number("rho", self.rho, 1.0)


@dataclass(frozen=True)
class Spring:
    """Lets the last direction fill in what the metric does not see: ``d = mu d_prev + (G + D)^-1 (g - mu G d_prev)``.

    SPRING (Goldshlager, Abrahamsen and Lin 2024, arXiv:2401.10190), in the space of the parameters: where G is large the
    new gradient decides, where it is small against the damping the last direction persists. For metrics from few
    inputs that change from batch to batch.

    Args:
        mu: Share of the last direction that is kept, in [0, 1).

    Raises:
        ValueError: If mu is out of range.

    Example:
        >>> import fubini, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fubini.QNGOptimizer(model, lr=0.1, metric="fisher", likelihood=torch.nn.MSELoss(), momentum=fubini.Spring(0.9))
        >>> torch.nn.functional.mse_loss(model(torch.ones(4, 2)), torch.zeros(4, 1)).backward()
        >>> opt.step()
    """

    mu: float = 0.9

    def __post_init__(self) -> None:
        check_number("mu", self.mu, 1.0)


def as_momentum(value: Any) -> tuple[bool, float]:
    """Return whether a momentum is SPRING's, and its coefficient.

    Args:
        value: A number (heavy ball), HeavyBall or Spring.
    """
    if isinstance(value, Spring):
        return True, value.mu
    if isinstance(value, HeavyBall):
        return False, value.rho
    check_number("momentum", value, 1.0)
    return False, float(value)


def with_velocities(
    groups: Iterable[Mapping[str, Any]], state: MutableMapping[torch.Tensor, Any]
) -> None:
    """Turn the last changes that states of earlier versions kept into velocities, by the lr that is saved with them.

    Args:
        groups: Parameter groups.
        state: The optimizer's, changed here; of a heavy ball.
    """
    for group in groups:
        lr = float(group["lr"])
        for p in group["params"]:
            entry = state.get(p, {})
            last = entry.pop(SPRING, None)
            if last is not None and VELOCITY not in entry:
                entry[VELOCITY] = last / -lr if lr else torch.zeros_like(last)
