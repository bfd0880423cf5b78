"""Layers at their inputs, in a few calls of the kernel: their blocks, and what comes of the curvature before them.

These are the rules of layers for models that are understood without a pass of torch's: chains and graphs. The loss's
curvature by the outputs of a layer is ``S_n^T S_n`` for datum n, with a factor S (N, K, outputs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import all_finite, to_numpy
from fubini.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from fubini.errors import NumericalError
from fubini.fisher.accumulators import symmetric
from fubini.fisher.columns import Request
from fubini.fisher.kfac import form_of
from fubini.fisher.likelihoods import CLOSED_FORM
from fubini.fisher.quantum import QuantumCall
from fubini.nn.linearise import Linearised
from fubini.options import Approx, Real

Tensor = torch.Tensor

# Data times squared widths. Beyond this, sums of products take longer than the calls that are saved, and the general pass
# shares them among threads.
_WORK = 1 << 22


def is_small(layers: Iterable[tuple[bool, tuple[Tensor, ...]]], data: int) -> bool:
    """Return whether calls are what the blocks for so many data cost, not the numbers.

    Args:
        layers: For each whether it is linear, and its parameters.
        data: N.
    """
    widths = [
        sum(own[0].shape) if is_linear else sum(p.numel() for p in own) for is_linear, own in layers
    ]
    return data * sum(width**2 for width in widths) <= _WORK


def output_factor(f: Tensor, targets: Any, request: Request) -> Real | None:
    """Return S (N, K, outputs) with the Fisher information S_n^T S_n of the outputs of datum n; None for other data.

    Args:
        f: What the model returned, (N, outputs) or (N,).
        targets: As for ``fisher_blocks``.
        request: What is asked for.

    Raises:
        NumericalError: If an output is not finite.
        ValueError: If outputs or targets do not fit the likelihood.
    """
    if not all_finite(f):
        raise NumericalError("model: expected finite outputs, got NaN or infinity")
    if request.likelihood.counts(f)[0] != len(f):
        return None
    shape = len(f), f.shape[1] if f.ndim > 1 else 1
    likelihood = request.likelihood.at(f, targets)
    closed = request.fisher == "true" and request.samples is None
    share = likelihood.share(f)
    if closed and share is not None and type(likelihood) in CLOSED_FORM:
        return _core.output_factor(likelihood.name, to_numpy(f).reshape(shape), share)
    if closed:
        columns = likelihood.columns(f)
    elif request.samples is not None:
        columns = likelihood.sampled_columns(f, request.samples)
    else:
        columns = likelihood.empirical_columns(f, targets)
    rows = to_numpy(columns).reshape(-1, *shape)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


@dataclass(eq=False)
class Stage(ABC):
    """A layer at its inputs.

    Attributes:
        name: Of the layer.
        parameters: The layer's, where they get a block; else none.
    """

    name: str
    parameters: tuple[Tensor, ...]

    @abstractmethod
    def pull(self, factor: Real) -> Real:
        """Return the factor (N, K, inputs) of the curvature by the inputs.

        Args:
            factor: Of that by the outputs, (N, K, outputs).
        """

    @abstractmethod
    def block(self, factor: Real, request: Request) -> Block:
        """Return the block of the parameters.

        Args:
            factor: (N, K, outputs).
            request: What is asked for, with an approximation.
        """

    def _dense(self, matrix: Real) -> Block:
        return DenseBlock(self.parameters, torch.from_numpy(matrix), self.name)

    def _diagonal(self, values: Real) -> Block:
        return DiagonalBlock(self.parameters, torch.from_numpy(values), self.name)

    def _gauss_newton(self, factor: Real, jacobian: Real, approx: Approx) -> Block:
        """The block, by the derivatives of the outputs (N, outputs, P)."""
        if approx == "diag":
            rows = _core.pull_factor(factor, jacobian)
            return self._diagonal(np.square(rows.reshape(-1, rows.shape[-1])).sum(0))
        return self._dense(_core.jacobian_block(factor, jacobian))


@dataclass(eq=False)
class LinearStage(Stage):
    """``torch.nn.Linear``.

    Attributes:
        inputs: (N, inputs).
        weight: (outputs, inputs).
    """

    inputs: Real
    weight: Real

    def pull(self, factor: Real) -> Real:
        """Return the factor by the inputs, see Stage."""
        return _core.pull_factor(factor, self.weight)

    def block(self, factor: Real, request: Request) -> Block:
        """Return the block, see Stage."""
        inputs, bias = self.inputs, len(self.parameters) > 1
        width = inputs.shape[1]
        form = form_of(factor.shape[2] * (width + bias), request.approx)
        if form == "diagonal":
            squares = np.square(factor).sum(1)
            weight = (squares.T @ np.square(inputs)).reshape(-1)
            return self._diagonal(np.concatenate([weight, squares.sum(0)]) if bias else weight)
        if form == "dense":
            return self._dense(_core.linear_block(factor, inputs, bias))
        outer, inner = map(torch.from_numpy, _core.kronecker_factors(factor, inputs, bias))
        columns = (width, 1) if bias else (width,)
        return KroneckerBlock(self.parameters, outer, inner, columns, self.name)


@dataclass(eq=False)
class CircuitStage(Stage):
    """A quantum layer.

    Attributes:
        module: The layer.
        inputs: (L, d).
        linear: Its results and their derivatives.
        alone: Whether the quantum function gets the inputs one by one.
    """

    module: Any
    inputs: Tensor
    linear: Linearised
    alone: bool = False

    def pull(self, factor: Real) -> Real:
        """Return the factor by the inputs, see Stage."""
        assert self.linear.by_inputs is not None
        return _core.pull_factor(factor, self.linear.by_inputs)

    def block(self, factor: Real, request: Request) -> Block:
        """Return the block, see Stage: for the Fubini-Study metric, in units of the loss."""
        if request.quantum == "gauss-newton":
            return self._gauss_newton(factor, self.linear.by_weights, request.approx)
        call = QuantumCall.at(self.module, self.name, self.inputs, self.linear, self.alone)
        bounds = 4.0 * call.bound(factor)
        found = torch.from_numpy(call.weighted_metric(bounds, request.approx, request.layers))
        return DenseBlock(self.parameters, symmetric(found), self.name)


@dataclass(eq=False)
class RowStage(Stage):
    """A compiled circuit of which every datum's curvature has one row: its only one, or its rows with random signs.

    Attributes:
        form: How the circuit is evaluated.
        passed: What its forward pass has left.
        signs: Seed of the signs, where there are more rows.
    """

    form: Any
    passed: Any
    signs: int = 0
    _gradients: tuple[Real, Real] | None = None

    def _along(self, factor: Real) -> tuple[Real, Real]:
        """The derivatives of the combined outputs by inputs (N, d) and weights (N, P)."""
        if self._gradients is None:
            one = factor[:, 0] if factor.shape[1] == 1 else _core.combine_rows(factor, self.signs)
            self._gradients = self.form.backward_rows(self.passed, np.ascontiguousarray(one))
        return self._gradients

    def pull(self, factor: Real) -> Real:
        """Return the factor by the inputs, see Stage."""
        return self._along(factor)[0][:, None]

    def block(self, factor: Real, request: Request) -> Block:
        """Return the block, see Stage."""
        by_weights = self._along(factor)[1]
        ones = np.ones((len(by_weights), 1, 1))
        return self._gauss_newton(ones, by_weights[:, None], request.approx)
