"""What moves in a step: gradients and metric blocks, averaged over the processes, reused and averaged over steps.

The metric comes from a source, of which there is one for each kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch

from fubini.arrays import first_not_finite
from fubini.blocks import Block, DiagonalBlock, distributed
from fubini.errors import NumericalError
from fubini.nn.recorder import PassRecorder
from fubini.nn.surroundings import without_autocast
from fubini.optim.closure_metric import closure_blocks
from fubini.optim.metric_history import MetricHistory
from fubini.optim.proposal import Part
from fubini.torch_private import flattened

Tensor = torch.Tensor
Group = MutableMapping[str, Any]
#: A block of this process, and by how many inputs it is an average (its weight among several processes).
Counted = tuple[Block, float]


class Source(ABC):
    """Where the metric of a step comes from.

    Attributes:
        found: Whether the model has layers with a metric.
        rough: Whether steps are so long that more noise in the metric does not matter.
        closure_metric: Whether the closure brings a metric, which goes before that of compiled QNodes.
        sums: Whether the loss is a sum over inputs rather than a mean.
    """

    found = rough = closure_metric = sums = False

    @abstractmethod
    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """Find the parameters of the optimizer that have a metric, and start recording the passes through them."""

    def begin(  # noqa: B027 - most have nothing to check
        self, groups: Sequence[Mapping[str, Any]], names: Mapping[Any, str], **now: Any
    ) -> None:
        """Check what is known when a step begins, before its metric is computed.

        Args:
            groups: Parameter groups.
            names: Names of the parameters, as far as there are any.
            **now: ``loss``, a number or None, and ``result``, as the closure returned it; ``metric_fn`` of the closure;
                ``scale`` of the gradients; whether there is a ``closure``, and whether steps are ``judged`` by a policy.
        """

    def explain(self) -> list[str]:
        """Return lines about the metric of the last step."""
        return []

    @abstractmethod
    def covers(self, parameter: Tensor) -> bool:
        """Return whether the parameter has a metric."""

    @property
    def called(self) -> dict[Tensor, None]:
        """The parameters that were weights of compiled QNodes and have their metric, in order."""
        return {}

    @abstractmethod
    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """Return the blocks of those units that have a moving parameter; random labels differ from step to step."""

    def units(self) -> float:
        """Return the loss in units of the mean of its terms: their number for a sum, times the scale of the loss."""
        return 1.0

    @property
    @abstractmethod
    def recorders(self) -> list[PassRecorder]:
        """The recorders that are attached."""


class Moving(NamedTuple):
    """Everything that moves in a step.

    Attributes:
        moving: Parameters and their groups, by the parameter's identity.
        blocks: The metric, every parameter once, each block with whether it is damped; undamped ones are the identity.
    """

    moving: Mapping[int, tuple[Tensor, Group]]
    blocks: list[tuple[Block, bool]]


class Gatherer:
    """Collects the parts of a step.

    Args:
        source: The metric.
        history: The metric of earlier steps.
        undamped: Parameters that take the plain gradient with nothing added, unless they have a metric.
        average_gradients: Whether gradients have to be averaged over the processes.
    """

    def __init__(
        self,
        source: Source,
        history: MetricHistory,
        undamped: set[Tensor],
        average_gradients: bool,
    ) -> None:
        self._source, self._history = source, history
        self._undamped, self._average = undamped, average_gradients
        # Which parameters have no metric seldom changes.
        self._identities: dict[tuple[int, ...], Block] = {}

    def metric(
        self,
        groups: Sequence[Group],
        metric_fn: Callable[..., Any] | None,
        *,
        step: int,
        targets: Any,
        state: MutableMapping[Tensor, Any],
    ) -> Moving:
        """Return everything that moves, with its metric.

        Args:
            groups: Parameter groups.
            metric_fn: The closure's, if there is one.
            step: Number of the step, from 0.
            targets: As for ``QNGOptimizer.step``.
            state: The optimizer's, by parameter.

        Raises:
            NumericalError: If a metric is not finite.
        """
        owned = [(p, group) for group in groups for p in group["params"]]
        if not owned:
            return Moving({}, [])
        moves = distributed.any_gradient([p for p, _ in owned])
        moving = {
            id(p): (p, g)
            for (p, g), moved in zip(owned, moves, strict=True)
            if moved and p.numel()  # a weight of no entries is no block
        }
        found: list[tuple[Block, bool]] = []
        covered: set[int] = set()
        for block in self._blocks(moving, owned, metric_fn, step, targets, state):
            keep = [id(p) in moving for p in block.parameters]
            if any(keep):
                mine = block if all(keep) else block.restrict(keep)
                covered.update([id(p) for p in mine.parameters])
                found.append((mine, True))
        if len(covered) < len(moving):
            rest: dict[tuple[torch.device, bool], list[Tensor]] = {}
            for i, (p, _) in moving.items():
                if i not in covered:
                    rest.setdefault((p.device, p not in self._undamped), []).append(p)
            found += [(self._plain(ps), damped) for (_, damped), ps in rest.items()]
        return Moving(moving, found)

    def parts(self, found: Moving, scale: float) -> list[Part]:
        """Return what moves with its gradients.

        Args:
            found: What ``metric`` returned.
            scale: What the gradients have to be divided by.
        """
        moving = found.moving
        gradients = self._gradients(list(moving.values()), scale)
        parts = []
        for block, damped in found.blocks:
            ids = [id(p) for p in block.parameters]
            gradient = flattened([gradients[i] for i in ids])
            parts.append(Part(block, gradient, tuple([moving[i][1] for i in ids]), damped))
        return parts

    def _plain(self, parameters: list[Tensor]) -> Block:
        """The metric of parameters on one device that have none: the identity, which gives the step of the plain gradient."""
        key = tuple(id(p) for p in parameters)  # the blocks keep them alive
        if key not in self._identities:
            if len(self._identities) > 64:
                self._identities.clear()
            size, device = sum(p.numel() for p in parameters), parameters[0].device
            ones = torch.ones(size, dtype=torch.float64, device=device)
            self._identities[key] = DiagonalBlock(parameters, ones, "plain gradient")
        return self._identities[key]

    def weight(self, moving: bool) -> float:
        """How much this process counts among all: the number of inputs whose gradients are waiting here.

        Args:
            moving: Whether there is a gradient here at all.

        Returns:
            A number >= 0; 1 where the processes count alike.
        """
        if not moving:
            return 0.0
        if self._source.sums:
            return 1.0
        return float(max([1, *(sum(x.count for x in r.passes) for r in self._source.recorders)]))

    def units(self, device: torch.device) -> float:
        """Return the loss in units of the mean of its terms, as a mean over the processes that took part.

        Args:
            device: Where the process group computes.
        """
        units = self._source.units()
        if not self._source.sums:
            return units  # the scale, the same everywhere
        found = distributed.number_mean(units, 1.0 if units else 0.0, device)
        return found if found > 0.0 else 1.0  # no pass anywhere: gradients of zero

    def _blocks(
        self,
        moving: Mapping[int, tuple[Tensor, Group]],
        owned: Sequence[tuple[Tensor, Group]],
        metric_fn: Callable[..., Any] | None,
        step: int,
        targets: Any,
        state: MutableMapping[Tensor, Any],
    ) -> list[Block]:
        """The metric of the parameters that have one, from earlier steps where it is not due."""
        source = self._source
        source.closure_metric = metric_fn is not None
        wanted = [p for p, _ in moving.values() if source.covers(p)]
        history = self._history
        due = not history.active or history.due(step)
        if not due:
            known = history.known(wanted)
            if known is not None:
                return known
        device = next(iter(moving.values()))[0].device if moving else torch.device("cpu")

        def compute() -> list[Counted]:
            found = source.blocks(wanted, targets, step)
            if metric_fn is not None:
                free = [p for p, _ in owned if not source.covers(p)]
                with without_autocast():
                    found += [(block, 1.0) for block in closure_blocks(metric_fn, free)]
            check_finite([block for block, _ in found])
            return found

        counted = distributed.together(compute, device)
        blocks = distributed.mean_blocks(
            [block for block, _ in counted], [float(count) for _, count in counted]
        )
        return history.take(blocks, due, state) if history.active else blocks

    def _gradients(self, moving: Sequence[tuple[Tensor, Group]], scale: float) -> dict[int, Tensor]:
        """float64 gradients of the function to be minimised."""
        gradients = []
        for p, group in moving:
            gradient = p.grad
            if gradient is None:  # it has one in another process
                gradients.append(torch.zeros(p.shape, dtype=torch.float64, device=p.device))
                continue
            if gradient.requires_grad:
                gradient = gradient.detach()
            if gradient.dtype is not torch.float64:
                gradient = gradient.to(torch.float64)
            factor = (-1.0 if group["maximize"] else 1.0) / scale
            gradients.append(gradient if factor == 1.0 else gradient * factor)
        if self._average and distributed.active():
            weight = self.weight(any(p.grad is not None for p, _ in moving))
            gradients = distributed.mean_tensors(gradients, [weight] * len(gradients))
        return {id(p): g for (p, _), g in zip(moving, gradients, strict=True)}


def check_finite(blocks: Sequence[Block]) -> None:
    """Refuse metrics with NaN or infinity.

    Args:
        blocks: The blocks.

    Raises:
        NumericalError: Names the block.
    """
    named = [(block, values) for block in blocks for values in block.tensors().values()]
    bad = first_not_finite([values for _, values in named])
    if bad is not None:
        raise NumericalError(
            f"{named[bad][0].label}: expected a finite metric, got NaN or infinity"
        )
