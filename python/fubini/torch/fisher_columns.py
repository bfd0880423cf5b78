"""Which cotangents a Fisher pass carries back, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fubini.layers import LayerRule, check_rule
from fubini.metric import Approx, check_approx
from fubini.torch.fisher_pass import Pass
from fubini.torch.fisher_units import Unit
from fubini.torch.likelihoods import Likelihood

Tensor = torch.Tensor


@dataclass(frozen=True)
class Request:
    """What is asked for, checked."""

    likelihood: Likelihood
    fisher: str
    targets: Any
    samples: int | None
    quantum: str
    layers: LayerRule
    approx: Approx
    fallback: str | None


def check_request(request: Request) -> None:
    """Raise a ValueError unless the request makes sense.

    Args:
        request: The request.

    Raises:
        ValueError: If a word is not known, or options do not fit together.
    """
    check_approx(request.approx)
    check_rule(request.layers)
    words = {
        "fisher": (request.fisher, ("true", "empirical")),
        "quantum": (request.quantum, ("gauss-newton", "fubini-study")),
        "fallback": (request.fallback, (None, "diagonal", "identity")),
    }
    for name, (value, known) in words.items():
        if value not in known:
            raise ValueError(f"{name}: expected one of {known}, got {value!r}")
    if request.fisher == "empirical":
        if request.targets is None:
            raise ValueError(
                "targets: expected the loss's targets, or an OutputGradient, for fisher='empirical', got None"
            )
        if request.samples is not None:
            raise ValueError(
                "samples: expected None for fisher='empirical', which has the labels of the data, "
                f"got {request.samples!r}"
            )
    if request.samples is not None and (
        not isinstance(request.samples, int) or request.samples < 1
    ):
        raise ValueError(f"samples: expected None or a number >= 1, got {request.samples!r}")


def accumulate(
    trace: Pass,
    units: Sequence[Unit],
    data: int,
    request: Request,
    leaves: Sequence[Tensor] = (),
) -> None:
    """Carry all columns back, and let units take note.

    Args:
        trace: The forward pass.
        units: The units.
        data: Number of data; 1 for a batch that counts as one.
        request: What is asked for.
        leaves: Parameters without a rule whose gradients are wanted.
    """
    for part in columns(trace, data, request):
        cotangents = trace.backward(part, leaves)
        for unit in units:
            unit.add(cotangents, data)


def columns(trace: Pass, data: int, request: Request) -> Iterator[Tensor]:
    """Return columns of a factor of the outputs' Fisher information, as many at once as memory allows.

    For a batch that counts as one datum, each datum gets columns of its own.

    Args:
        trace: The forward pass.
        data: Number of data; 1 for a batch that counts as one.
        request: What is asked for.

    Yields:
        (K, *output.shape).
    """
    f, width = trace.output.detach(), trace.width()
    likelihood = request.likelihood
    count, terms, outputs = likelihood.counts(f)

    def slices(total: int) -> Iterator[slice]:
        return (slice(start, start + width) for start in range(0, total, width))

    parts: Iterator[Tensor]
    if request.fisher == "empirical":
        targets = request.targets
        parts = (likelihood.empirical_columns(f, targets, part) for part in slices(terms))
    elif request.samples is not None:
        parts = iter(torch.split(likelihood.sampled_columns(f, request.samples), width))
    else:
        parts = (likelihood.columns(f, part) for part in slices(terms * outputs))
    for part in parts:
        if data == count:
            yield part
            continue
        step = max(1, width // len(part))
        for start in range(0, count, step):
            index = torch.arange(start, min(start + step, count), device=f.device)
            alone = part.new_zeros(len(index), *part.shape)
            alone[index - start, :, index] = part[:, index].movedim(1, 0)
            yield alone.flatten(0, 1)


def curvature(request: Request) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Return a function that takes outputs f to the product of their Fisher information with vectors of f's shape.

    Args:
        request: What is asked for.

    Returns:
        The function.
    """
    likelihood = request.likelihood

    def at(f: Tensor) -> Callable[[Tensor], Tensor]:
        if request.fisher == "true" and request.samples is None:
            return lambda v: likelihood.vector_product(f, v)
        if request.fisher == "empirical":
            return likelihood.empirical_product(f, request.targets)
        columns = likelihood.sampled_columns(f, request.samples or 1)
        count = likelihood.counts(f)[0]
        rows = columns.reshape(len(columns), count, -1)

        def product(v: Tensor) -> Tensor:
            weights = (rows * v.reshape(count, -1)).sum(-1, keepdim=True)
            return (weights * rows).sum(0).reshape(f.shape)

        return product

    return at
