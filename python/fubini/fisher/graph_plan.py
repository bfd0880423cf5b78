"""Models whose passes have one graph, prepared for steps without objects for what is the same in every step.

A plan is what ``ChainPlan`` is for chains, with the graph of each pass in place of the modules: it holds as long as passes
have the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import Block, KroneckerBlock
from fubini.fisher.columns import Request
from fubini.fisher.graph import Graph, is_small_graph, trained_uses
from fubini.fisher.graph_blocks import Home, KnownGraphs, pulled_back
from fubini.fisher.likelihoods import Poisson
from fubini.fisher.plan import Form, Plan, Sized, is_simple
from fubini.fisher.stages import output_factor
from fubini.nn.recorder import Pass
from fubini.nn.surroundings import weights_now
from fubini.options import Real

Tensor = torch.Tensor


class GraphPlan(Plan):
    """A model whose passes have one graph.

    Args:
        model: The model.
        request: What is asked for, checked.
        seen: A pass.
        homes: The layers of its graph's parameters.
        trained: Identities of the parameters that are trained.

    Attributes:
        shapes: Of the blocks' matrices.
        is_solvable: Whether blocks of these forms are factorised in one call.
    """

    def __init__(
        self,
        model: nn.Module,
        request: Request,
        seen: Pass,
        homes: dict[int, Home],
        trained: set[int],
    ) -> None:
        super().__init__(request)
        self._model, self._key = model, seen.graph.key
        self._homes, self._trained = homes, trained
        self._uses = trained_uses(seen.graph.operations)
        assert seen.output is not None
        self._outputs = seen.output.shape[1:]
        self.width, self.dtype = seen.args[0].shape[1], seen.args[0].dtype
        blocks = self.metric(seen, 1.0) or []
        self.forms = [_form_of(block) for block in blocks]
        self.shapes = [tuple(t.shape) for block in blocks for t in block.tensors().values()]
        self.parameters = [p for form in self.forms for p in form.parameters]
        self.is_solvable = bool(blocks) and all(
            block.factorise(_core.Preconditioner(), 1.0) for block in blocks
        )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        request: Request,
        graphs: KnownGraphs,
        trained: Sequence[Tensor],
        seen: Pass,
    ) -> GraphPlan | None:
        """Return a plan; None where the model or what is asked for needs another way.

        Args:
            model: The model.
            request: What is asked for, checked.
            graphs: Those that were met before.
            trained: The parameters whose metric is wanted, at least one.
            seen: A pass with one batch of inputs, (N, features).
        """
        graph: Graph | None = seen.graph
        if (
            graph is None
            or seen.output is None
            or not graphs.trusts(graph)
            or request.approx != "block-diag"
            or not is_simple(request)
            or any(p.dtype is not seen.args[0].dtype for p in trained)
        ):
            return None
        known = {id(p) for use in trained_uses(graph.operations) for p in use.parameters}
        homes, wanted = graphs.homes(model, graph, known), {id(p) for p in trained}
        if homes is None or not wanted <= known:
            return None
        plan = cls(model, request, seen, homes, wanted)
        return plan if plan.is_solvable and plan.sized(len(seen.args[0])) is not None else None

    def _made(self, data: int) -> Sized | None:
        f = torch.empty((data, *self._outputs))
        return self._sized(f) if is_small_graph(self._uses, data) else None

    def holds(self, seen: Pass, sized: Sized) -> bool:
        """See Plan: whether the graph is the same, and intact."""
        graph: Graph | None = seen.graph
        return (
            graph is not None
            and seen.output is not None
            and graph.key == self._key
            and graph.is_intact
            and weights_now(self._model) == seen.weights
        )

    def metric(self, seen: Pass, share: float) -> list[Block] | None:
        """Return the metric of a pass.

        Args:
            seen: The pass.
            share: See ``Likelihood.share``.
        """
        assert seen.output is not None
        f, likelihood = to_numpy(seen.output), self._request.likelihood
        if isinstance(likelihood, Poisson):
            factor = output_factor(seen.output, None, self._request)
            if factor is None:
                return None
        else:
            factor = _core.output_factor(likelihood.name, f.reshape(len(f), -1), share)
        columns = factor if f.ndim > 1 else factor[:, :, 0]
        return pulled_back(seen.graph, self._homes, self._trained, self._request, columns)

    def factors(self, matrices: Sequence[Real], damping: float) -> _core.Preconditioner | None:
        """Return the factors of the damped blocks; None where one is singular.

        Args:
            matrices: Of the shapes.
            damping: What is added to the diagonals.
        """
        factors, left = _core.Preconditioner(), iter(matrices)
        for form in self.forms:
            if form.kind == "dense":
                found = factors.add_dense(next(left), damping)
            else:
                found = factors.add_kronecker(next(left), next(left), form.columns, damping)
            if not found:
                return None
        return factors


def _form_of(block: Block) -> Form:
    """What is known of a matrix or a Kronecker product besides its numbers."""
    if not isinstance(block, KroneckerBlock):
        return Form(block.label, block.parameters, "dense")
    rows = block.tensors()["left"].shape[1]
    columns = tuple([p.numel() // rows for p in block.parameters])
    return Form(block.label, block.parameters, "kronecker", columns)


def average(
    fresh: Sequence[Real], before: Sequence[Real], after: Sequence[Real], decays: Sequence[float]
) -> None:
    """Write ``fresh + decay (before - fresh)`` for each matrix.

    Args:
        fresh: The matrices of a pass.
        before: The average so far.
        after: Is written.
        decays: One for each matrix.
    """
    for mine, old, to, decay in zip(fresh, before, after, decays, strict=True):
        if decay == 0.0:
            np.copyto(to, mine)
            continue
        np.subtract(old, mine, out=to)
        to *= decay
        to += mine
