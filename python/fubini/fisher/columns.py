"""Which cotangents a Fisher pass carries back, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fubini.fisher.accumulators import Unit
from fubini.fisher.likelihoods import Likelihood, OutputGradient
from fubini.fisher.passes import Pass
from fubini.options import Approx, LayerRule, check_approx, check_rule, check_word

Tensor = torch.Tensor


@dataclass(frozen=True)
class Request:
    """What is asked for, checked.

    Attributes:
        likelihood: As for ``fisher_blocks``, like those that follow.
        fisher: As there.
        targets: As there.
        samples: As there.
        quantum: As there.
        layers: As there.
        approx: As there.
        fallback: As there.
        signs: For a metric that is averaged over many calls: seed of the random signs with which the outputs of a large
            circuit may be combined to one for each datum, so that a datum costs one reverse sweep. The mean over the
            signs is the exact metric. None: every metric is exact.
    """

    likelihood: Likelihood
    fisher: str
    targets: Any
    samples: int | None
    quantum: str
    layers: LayerRule
    approx: Approx
    fallback: str | None
    signs: int | None = None


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
        check_word(name, value, known)
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


@dataclass(frozen=True)
class Part:
    """A pass, as a part of what a step's gradient is made of.

    Attributes:
        run: The pass.
        data: Number of data that its outputs depend on one by one; 1 for a batch that counts as one.
        count: Number of data.
        likelihood: Of its outputs.
        targets: The loss's targets, or an ``OutputGradient``.
        weight: Its share in the metric.
    """

    run: Pass
    data: int
    count: int
    likelihood: Likelihood
    targets: Any
    weight: float


class Trace:
    """All passes whose gradients are applied together.

    Attributes:
        parts: The passes.
        calls: All uses of layers with a rule, in order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.calls = [call for part in parts for call in part.run.calls]
        for number, part in enumerate(parts):
            for call in part.run.calls:
                call.part = number

    @property
    def independent(self) -> bool:
        """Whether no datum depends on another."""
        return all(part.data == part.count for part in self.parts)


def accumulate(
    trace: Trace,
    units: Sequence[Unit],
    request: Request,
    leaves: Sequence[Tensor] = (),
    *,
    joined: bool = False,
) -> None:
    """Carry all columns back, and let units take note.

    Args:
        trace: The forward passes.
        units: The units.
        request: What is asked for.
        leaves: Parameters without a rule whose gradients are wanted.
        joined: Whether the batches count as one datum each.
    """
    for part in trace.parts:
        data = 1 if joined else part.data
        for some in columns(part, data, request):
            cotangents = part.run.backward(some, leaves)
            for unit in units:
                unit.add(cotangents, data)


def columns(part: Part, data: int, request: Request) -> Iterator[Tensor]:
    """Return columns of a factor of the outputs' Fisher information, as many at once as memory allows.

    For a batch that counts as one datum, each datum gets columns of its own.

    Args:
        part: The pass.
        data: Number of data; 1 for a batch that counts as one.
        request: What is asked for.

    Yields:
        (K, *output.shape).
    """
    f, width = part.run.output.detach(), part.run.width()
    likelihood, targets = part.likelihood, part.targets
    count, terms, outputs = likelihood.counts(f)
    scale = part.weight**0.5

    def slices(total: int) -> Iterator[slice]:
        return (slice(start, start + width) for start in range(0, total, width))

    pieces: Iterator[Tensor]
    if request.fisher == "empirical":
        pieces = (likelihood.empirical_columns(f, targets, some) for some in slices(terms))
        if isinstance(targets, OutputGradient):
            scale = 1.0 / scale  # the gradient has the share of its pass already
    elif request.samples is not None:
        pieces = iter(torch.split(likelihood.sampled_columns(f, request.samples), width))
    else:
        pieces = (likelihood.columns(f, some) for some in slices(terms * outputs))
    for piece in pieces:
        some = piece if scale == 1.0 else scale * piece
        if data == count:
            yield some
            continue
        step = max(1, width // len(some))
        for start in range(0, count, step):
            index = torch.arange(start, min(start + step, count), device=f.device)
            alone = some.new_zeros(len(index), *some.shape)
            alone[index - start, :, index] = some[:, index].movedim(1, 0)
            yield alone.flatten(0, 1)


def curvature(part: Part, request: Request) -> Callable[[Tensor], Tensor]:
    """Return the product of the Fisher information of a pass's outputs with vectors of their shape.

    Args:
        part: The pass.
        request: What is asked for.

    Returns:
        The function.
    """
    likelihood, f, weight = part.likelihood, part.run.output.detach(), part.weight
    if request.fisher == "true" and request.samples is None:
        return lambda v: weight * likelihood.vector_product(f, v)
    if request.fisher == "empirical":
        if isinstance(part.targets, OutputGradient):
            weight = 1.0 / weight
        product = likelihood.empirical_product(f, part.targets)
        return lambda v: weight * product(v)
    columns = likelihood.sampled_columns(f, request.samples or 1)
    count = likelihood.counts(f)[0]
    rows = columns.reshape(len(columns), count, -1)

    def sampled(v: Tensor) -> Tensor:
        weights = (rows * v.reshape(count, -1)).sum(-1, keepdim=True)
        return weight * (weights * rows).sum(0).reshape(f.shape)

    return sampled
