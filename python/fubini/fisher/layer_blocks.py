"""The block of one layer, from the factor of the loss's curvature by the layer's outputs, in a few calls of the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from fubini.fisher.accumulators import symmetric, weighted_metric
from fubini.fisher.columns import Request
from fubini.fisher.kfac import form_of
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian
from fubini.fisher.quantum import QuantumCall
from fubini.nn.linearise import Linearised

Tensor = torch.Tensor
Real = npt.NDArray[np.float64]

_CLOSED_FORM = (Categorical, Bernoulli, Gaussian)


def output_factor(f: Tensor, shape: tuple[int, ...], targets: Any, request: Request) -> Real:
    """Return S (N, K, outputs) with the Fisher information S_n^T S_n of the outputs of datum n.

    Args:
        f: What the model returned.
        shape: (N, outputs).
        targets: As for ``fisher_blocks``.
        request: What is asked for.
    """
    likelihood = request.likelihood.at(f, targets)
    closed = request.fisher == "true" and request.samples is None
    share = likelihood.share(f)
    if closed and share is not None and type(likelihood) in _CLOSED_FORM:
        return _core.output_factor(likelihood.name, to_numpy(f).reshape(shape), share)
    if closed:
        columns = likelihood.columns(f)
    elif request.samples is not None:
        columns = likelihood.sampled_columns(f, request.samples)
    else:
        columns = likelihood.empirical_columns(f, targets)
    rows = to_numpy(columns).reshape(-1, *shape)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def linear_block(
    name: str,
    parameters: tuple[Tensor, ...],
    factor: Real,
    inputs: Real,
    approx: Any,
) -> Block:
    """Return the block of a linear layer.

    Args:
        name: Of the layer.
        parameters: Weight, and bias if there is one.
        factor: (N, K, outputs).
        inputs: (N, inputs).
        approx: As for ``fisher_blocks``, not None.
    """
    bias, width, rows = len(parameters) > 1, inputs.shape[1], factor.shape[2]
    form = form_of(rows * (width + bias), approx)
    if form == "diagonal":
        squares = np.square(factor).sum(1)
        weight = (squares.T @ np.square(inputs)).reshape(-1)
        values = np.concatenate([weight, squares.sum(0)]) if bias else weight
        return DiagonalBlock(parameters, torch.from_numpy(values), name)
    if form == "dense":
        matrix = _core.linear_block(factor, inputs, bias)
        return DenseBlock(parameters, torch.from_numpy(matrix), name)
    outer, inner = _core.kronecker_factors(factor, inputs, bias)
    columns = (width, 1) if bias else (width,)
    return KroneckerBlock(
        parameters, torch.from_numpy(outer), torch.from_numpy(inner), columns, name
    )


def circuit_block(
    name: str, parameters: tuple[Tensor, ...], factor: Real, by_weights: Real, approx: Any
) -> Block:
    """Return the Gauss-Newton block of a quantum layer.

    Args:
        name: Of the layer.
        parameters: Its weights.
        factor: (N, K, outputs).
        by_weights: The derivatives of the outputs, (N, outputs, P).
        approx: As for ``fisher_blocks``, not None.
    """
    if approx == "diag":
        rows = _core.pull_factor(factor, by_weights)
        values = np.square(rows.reshape(-1, rows.shape[-1])).sum(0)
        return DiagonalBlock(parameters, torch.from_numpy(values), name)
    matrix = _core.jacobian_block(factor, by_weights)
    return DenseBlock(parameters, torch.from_numpy(matrix), name)


def circuit_block_of_rows(
    name: str, parameters: tuple[Tensor, ...], by_weights: Real, approx: Any
) -> Block:
    """Return the same where the curvature of a datum has one row.

    Args:
        name: Of the layer.
        parameters: Its weights.
        by_weights: The derivative of that row of the outputs, (N, P).
        approx: As for ``fisher_blocks``, not None.
    """
    ones = np.ones((len(by_weights), 1, 1))
    return circuit_block(name, parameters, ones, by_weights[:, None], approx)


def metric_block(
    name: str,
    parameters: tuple[Tensor, ...],
    factor: Real,
    call: QuantumCall,
    request: Request,
) -> Block:
    """Return the Fubini-Study metric of a quantum layer in units of the loss.

    Args:
        name: Of the layer.
        parameters: Its weights.
        factor: (N, K, outputs).
        call: The use of the layer.
        request: What is asked for.
    """
    bounds = 4.0 * call.bound(factor)
    found = torch.from_numpy(weighted_metric(call, bounds, request.approx, request.layers))
    return DenseBlock(parameters, symmetric(found), name)


def quantum_call(
    module: Any, name: str, inputs: Tensor, linear: Linearised, alone: bool
) -> QuantumCall:
    """Return a use of a quantum layer whose results and derivatives are known.

    Args:
        module: The layer.
        name: Its name.
        inputs: (L, d).
        linear: The results and derivatives.
        alone: Whether the quantum function gets the inputs one by one.
    """
    call = QuantumCall.at(module, name, inputs, linear)
    call.alone = alone
    return call
