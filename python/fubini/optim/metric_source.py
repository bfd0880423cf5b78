"""Where the metric of a step comes from: which parameters have one, from which passes, as which blocks."""

import contextlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Literal

import torch

from fubini.blocks import distributed
from fubini.fisher.blocks import requested_blocks
from fubini.fisher.chain import chain_layers
from fubini.fisher.chain_plan import ChainPlan
from fubini.fisher.columns import Request
from fubini.fisher.graph import read_graph
from fubini.fisher.graph_blocks import KnownGraphs
from fubini.fisher.graph_plan import GraphPlan
from fubini.fisher.likelihood_base import OutputGradient, split_targets
from fubini.fisher.likelihoods import Poisson
from fubini.fisher.losses import as_likelihood
from fubini.fisher.plan import is_simple
from fubini.nn.recorder import (
    ModelRecorder,
    Pass,
    PassRecorder,
    check_same_weights,
    missing,
    paused,
    record,
)
from fubini.nn.surroundings import Seen, Surroundings, parameters_of, weights_now, without_autocast
from fubini.optim.closure import undisturbed
from fubini.optim.energy_source import EnergySource
from fubini.optim.gather import Counted, Source
from fubini.optim.noisy_source import NoisySource
from fubini.optim.quantum_source import QuantumSource

Tensor = torch.Tensor
Metric = Literal["quantum", "fisher", "hybrid", "energy"]
_STRIDE = 0x9E3779B97F4A7C15  # odd and large, so that the seeds of neighbouring steps have nothing in common

#: Signs are for steps whose damping is still at least this share of what it was: near a minimum without noise they would
#: be the only noise.
ROUGH = 0.3
# From this decay on, an average has so many steps in it that random signs are averaged out as well.
_MANY = 0.8
# Options that are those of ``fisher_blocks`` as they are.
_SAME = ("approx", "fisher", "samples", "fallback", "layers")


class FisherSource(Source):
    """Fisher information of the model's output distribution, by a pass of its own over what the model last saw.

    Args:
        model: The model.
        options: The optimizer's, checked.
    """

    found = True

    def __init__(self, model: torch.nn.Module, options: Mapping[str, Any]) -> None:
        self._model = model
        self._combines = options["averaging"] >= _MANY
        self._request = Request(
            likelihood=as_likelihood(options["likelihood"]),
            targets=None,
            quantum="fubini-study" if options["metric"] == "hybrid" else "gauss-newton",
            **{name: options[name] for name in _SAME},
        )
        self.sums = self._request.likelihood.reduction == "sum"
        self._recorder: ModelRecorder | None = None
        self._owned: set[Tensor] = set()
        self._known = KnownGraphs()

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source."""
        mine = set(self._model.parameters())
        self._owned = {p for p in owned if p in mine}
        if self._recorder is None:
            self._recorder = record(self._model, owner)
        self._recorder.watch(self._owned)
        # A chain is understood by its modules alone; with counts, whole steps go by the graph.
        request = self._request
        counts = isinstance(request.likelihood, Poisson) and request.approx == "block-diag"
        by_graph = counts and is_simple(request)
        if request.approx is not None and (by_graph or chain_layers(self._model) is None):
            self._recorder.reader = read_graph

    @property
    def recorders(self) -> list[PassRecorder]:
        """See Source."""
        return [self._recorder] if self._recorder else []

    def units(self) -> float:
        """See Source; of this process."""
        size = self._request.likelihood.size
        passes = self._recorder.passes if self._recorder and self.sums else []
        return self.units_of(sum(p.count if p.output is None else size(p.output) for p in passes))

    def covers(self, parameter: Tensor) -> bool:
        """See Source."""
        return parameter in self._owned

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """See Source."""
        if not moving:
            return []
        assert self._recorder is not None
        passes = self._recorder.passes
        if missing(self._recorder, moving):
            return []
        ids = {id(p) for p in moving}
        wanted = [p for p in passes[0].parameters if id(p) in ids]
        if len(wanted) < len(ids):  # one has been frozen since it got its gradient
            wanted = [p for p in parameters_of(self._model) if id(p) in ids]
        check_same_weights("model", passes)
        seen = self._seen(passes, targets)
        count = sum(p.count for p in passes)
        request = self._request  # of checked options
        if self.rough:
            request = replace(request, signs=self.signs(step))
        # Without drawn labels the passes leave the random numbers alone by themselves.
        drawn = request.samples is not None
        aside = undisturbed(None, _seed(step)) if drawn else contextlib.nullcontext()
        with without_autocast(), paused(self.recorders), aside:
            blocks = requested_blocks(self._model, seen, wanted, request, self._known)
        # A sum over the inputs is averaged over processes as DistributedDataParallel averages its gradient.
        return [(block, 1.0 if self.sums else float(count)) for block in blocks]

    def only_pass(self) -> Pass | None:
        """Return the pass of a step that has no other, if its only argument is a batch of numbers on the host."""
        passes = [] if self._recorder is None else self._recorder.passes
        if len(passes) != 1 or passes[0].kwargs or len(passes[0].args) != 1:
            return None
        x = passes[0].args[0]
        usual = type(x) in (Tensor, torch.nn.Parameter) and x.ndim == 2 and x.numel() and x.is_cpu
        return passes[0] if usual and x.layout is torch.strided else None

    def chain_plan(self, moving: Sequence[Tensor], inputs: Tensor) -> ChainPlan | None:
        """Return how the kernel takes whole steps of the model, if it does.

        Args:
            moving: The parameters that have gradients.
            inputs: Of a pass, (N, features).
        """
        if not all(p in self._owned for p in moving):
            return None
        return ChainPlan.of(self._model, self._request, moving, inputs)

    def units_of(self, size: int) -> float:
        """Return ``units`` of passes.

        Args:
            size: By what a mean over them divides.
        """
        return self._request.likelihood.scale * (size if self.sums else 1)

    def signs(self, step: int) -> int | None:
        """Return the seed of the signs with which a step combines outputs while steps are long; None: it does not.

        Args:
            step: Its number.
        """
        return _seed(step) if self._combines else None

    def graph_plan(self, moving: Sequence[Tensor], seen: Pass) -> GraphPlan | None:
        """Return how whole steps of the model are taken by the graph of its passes, if they are.

        Args:
            moving: The parameters that have gradients.
            seen: What ``only_pass`` returned, with a graph.
        """
        if not all(p in self._owned for p in moving):
            return None
        return GraphPlan.of(self._model, self._request, self._known, moving, seen)

    def _seen(self, passes: Sequence[Pass], targets: Any) -> list[Seen]:
        """The passes as they are to be run again, each with its targets."""
        # Targets are in the order of the forward passes.
        passes = sorted(passes, key=lambda p: p.number)
        if targets is not None:
            outputs = [p.output for p in passes]
            known: list[Any] = split_targets(self._request.likelihood, targets, outputs)
        elif self._request.fisher == "empirical" and any(p.gradient is None for p in passes):
            raise RuntimeError(
                "targets: expected step(targets=...), because the first output of the model got no gradient (or an "
                "operation in place took its place), got None"
            )
        else:
            known = [None if p.gradient is None else OutputGradient(p.gradient) for p in passes]
        # The metric is that of the weights as they are; only with those of the pass the outputs are the same.
        same = weights_now(self._model) == passes[0].weights
        return [
            Seen(
                p.args,
                p.kwargs,
                p.surroundings or Surroundings.now(self._model),
                p.output if same else None,
                target,
                p.graph if same else None,
            )
            for p, target in zip(passes, known, strict=True)
        ]


def make_source(model: torch.nn.Module | None, options: Mapping[str, Any]) -> Source:
    """Return the metric that the optimizer's options ask for.

    Args:
        model: The model, if any.
        options: The optimizer's, checked.

    Raises:
        ValueError: If a model is missing.
    """
    metric, approx = options["metric"], options["approx"]
    tolerance = options.get("tolerance")
    if model is not None and tolerance is not None:
        return NoisySource(model, approx, options["layers"], tolerance)
    if metric == "quantum":
        return QuantumSource(model, approx, options["layers"])
    if metric == "energy":
        return EnergySource(model, options["layers"], dense=True if approx is None else None)
    if model is None:
        raise ValueError(f"model: expected a module for metric={metric!r}, got None")
    return FisherSource(model, options)


def _seed(step: int) -> int:
    """Of the random labels of a step, in this process."""
    return (torch.initial_seed() + _STRIDE * (step + 1) + distributed.rank()) % 2**63
