"""Models whose passes have one graph, prepared for steps without objects for what is the same in every step.

A plan is what ``ChainPlan`` is for chains, with the graph of each pass in place of the modules: it holds as long as passes
have the same graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import Block, DenseBlock, KroneckerBlock
from fubini.fisher.columns import Request
from fubini.fisher.graph import Graph, is_small
from fubini.fisher.graph_blocks import Backward, Home, KnownGraphs, trained_uses
from fubini.fisher.layer_blocks import output_factor
from fubini.fisher.likelihood_base import Likelihood
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from fubini.nn.recorder import Pass
from fubini.nn.surroundings import weights_now
from fubini.options import Real

Tensor = torch.Tensor

#: Likelihoods whose metric is that of the outputs alone.
FAMILIES: tuple[type[Likelihood], ...] = (Categorical, Bernoulli, Gaussian, Poisson)


class Form(NamedTuple):
    """A block without its numbers.

    Attributes:
        label: Of the block.
        parameters: Likewise.
        columns: Of a Kronecker product, see ``KroneckerBlock``; none for a matrix.
    """

    label: str
    parameters: tuple[Tensor, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, block: Block) -> Form:
        """Return what is known of a block.

        Args:
            block: A matrix or a Kronecker product.
        """
        parameters = tuple(block.parameters)
        columns: tuple[int, ...] = ()
        if isinstance(block, KroneckerBlock):
            rows = block.tensors()["left"].shape[1]
            columns = tuple(p.numel() // rows for p in parameters)
        return cls(block.label, parameters, columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the block's tensors."""
        return ("left", "right") if self.columns else ("matrix",)

    def block(self, tensors: Iterator[Tensor]) -> Block:
        """Return the block of the next matrices.

        Args:
            tensors: In the order of the blocks.
        """
        if not self.columns:
            return DenseBlock(self.parameters, next(tensors), self.label)
        left, right = next(tensors), next(tensors)
        return KroneckerBlock(self.parameters, left, right, self.columns, self.label)

    def factorise(
        self, factors: _core.Preconditioner, matrices: Iterator[Real], damping: float
    ) -> bool:
        """Give the next matrices to the kernel; see ``Block.factorise``.

        Args:
            factors: Of the blocks before.
            matrices: In the order of the blocks.
            damping: What is added to the diagonal.

        Returns:
            Whether it is positive definite.
        """
        if not self.columns:
            return factors.add_dense(next(matrices), damping)
        return factors.add_kronecker(next(matrices), next(matrices), self.columns, damping)


class Sized(NamedTuple):
    """What holds for one number of inputs.

    Attributes:
        share: Between the loss and the sum of its terms, see ``Likelihood.share``.
        size: By what a mean divides, see ``Likelihood.size``.
    """

    share: float
    size: int


class GraphPlan:
    """A model whose passes have one graph.

    Args:
        model: The model.
        request: What is asked for, checked.
        seen: A pass.
        homes: The layers of its graph's parameters.
        trained: Identities of the parameters that are trained.

    Attributes:
        forms: Of the blocks, in the order of the layers.
        shapes: Of their matrices.
        parameters: Those that are trained, in the order of the blocks.
        dtype: Of all parameters, and of the inputs.
        width: Of the inputs.
        reads_targets: Whether the metric depends on which outputs have no gradient.
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
        self._model, self._request, self._key = model, request, seen.graph.key
        self._homes, self._trained = homes, trained
        self._uses = trained_uses(seen.graph)
        self._sizes: dict[int, Sized | None] = {}
        self.reads_targets = getattr(request.likelihood, "ignore_index", None) is not None
        assert seen.output is not None
        self._outputs = seen.output.shape[1:]
        self.width, self.dtype = seen.args[0].shape[1], seen.args[0].dtype
        blocks = self.blocks(seen, 1.0) or []
        self.forms = [Form.of(block) for block in blocks]
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
        if graph is None or seen.output is None or not graphs.trusts(graph):
            return None
        if not is_simple(request) or any(p.dtype is not seen.args[0].dtype for p in trained):
            return None
        known = {id(p) for use in trained_uses(graph) for p in use.parameters}
        homes, wanted = graphs.homes(model, graph, known), {id(p) for p in trained}
        if homes is None or not wanted <= known:
            return None
        plan = cls(model, request, seen, homes, wanted)
        return plan if plan.is_solvable and plan.sized(len(seen.args[0])) is not None else None

    def sized(self, data: int) -> Sized | None:
        """Return what holds for so many inputs; None where that is to be computed in another way.

        Args:
            data: N.
        """
        if data not in self._sizes:
            if len(self._sizes) > 64:
                self._sizes.clear()
            self._sizes[data] = self._made(data)
        return self._sizes[data]

    def _made(self, data: int) -> Sized | None:
        f, likelihood = torch.empty((data, *self._outputs)), self._request.likelihood
        if not is_small(self._uses, data) or likelihood.counts(f)[0] != data:
            return None
        share = likelihood.share(f)
        return None if share is None else Sized(share, likelihood.size(f))

    def holds(self, seen: Pass) -> bool:
        """Return whether a pass is one of those that the plan is for.

        Args:
            seen: The pass.
        """
        graph: Graph | None = seen.graph
        return (
            graph is not None
            and seen.output is not None
            and graph.key == self._key
            and graph.is_intact
            and weights_now(self._model) == seen.weights
        )

    def blocks(self, seen: Pass, share: float) -> list[Block] | None:
        """Return the metric of a pass.

        Args:
            seen: The pass.
            share: See ``Likelihood.share``.
        """
        assert seen.output is not None
        f, likelihood = to_numpy(seen.output), self._request.likelihood
        if isinstance(likelihood, Poisson):
            shape = len(f), f.size // len(f)
            factor = output_factor(seen.output, shape, None, self._request)
        else:
            factor = _core.output_factor(likelihood.name, f.reshape(len(f), -1), share)
        backward = Backward(seen.graph, self._homes, self._trained, self._request)
        return backward.blocks(factor if f.ndim > 1 else factor[:, :, 0])

    def factors(self, matrices: Sequence[Real], damping: float) -> _core.Preconditioner | None:
        """Return the factors of the damped blocks; None where one is singular.

        Args:
            matrices: Of the shapes.
            damping: What is added to the diagonals.
        """
        factors, left = _core.Preconditioner(), iter(matrices)
        found = all(form.factorise(factors, left, damping) for form in self.forms)
        return factors if found else None


def is_simple(request: Request) -> bool:
    """Return whether what is asked for is the metric of known outputs alone, by one number for all terms.

    Args:
        request: What is asked for, checked.
    """
    likelihood: Any = request.likelihood
    return (
        request.approx == "block-diag"
        and request.fisher == "true"
        and request.samples is None
        and request.quantum == "gauss-newton"
        and type(likelihood) in FAMILIES
        and getattr(likelihood, "weight", None) is None
        and getattr(likelihood, "pos_weight", None) is None
        and not getattr(likelihood, "normalised", False)
    )


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
