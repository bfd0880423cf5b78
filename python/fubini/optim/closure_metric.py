"""Metrics that a closure brings: what a metric function returns, as blocks of the parameters that it was given."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.blocks import Block, DenseBlock
from fubini.metric.functions import MATRIX

Tensor = torch.Tensor


def closure_blocks(
    metric_fn: Callable[..., Any], free: Sequence[Tensor], name: str = "metric_tensor_fn"
) -> list[Block]:
    """Return the blocks that a closure's metric function gives.

    Args:
        metric_fn: Takes parameters, returns their metrics: one per parameter, or one over all.
        free: The parameters that have no other metric; the function gets as many as it takes.
        name: For messages.

    Returns:
        The blocks.

    Raises:
        NumericalError: If a metric is not finite.
        TypeError: If a metric is complex.
        ValueError: If a metric has another shape, or is not symmetric.
    """
    own = getattr(metric_fn, "__dict__", {}).get(MATRIX)
    if own is not None and len(free) == 1 and type(free[0]) in (Tensor, torch.nn.Parameter):
        found = own(*free)
        if found is not None and found.shape == (free[0].numel(),) * 2:
            return [DenseBlock(free, torch.from_numpy(found).to(free[0].device), name)]
    free = list(free)[: _positional_count(metric_fn)]
    with torch.enable_grad():
        metric = metric_fn(*free)
    metrics = metric if isinstance(metric, tuple | list) else (metric,)
    if len(metrics) == 1 and math.prod(metrics[0].shape) == sum(p.numel() for p in free) ** 2:
        parts = [free]  # one matrix over all of them
    elif len(metrics) == len(free):
        parts = [[p] for p in free]
    else:
        raise ValueError(
            f"{name}: expected one metric per parameter, {len(free)}, or one over all, got {len(metrics)}"
        )
    return [_matrix_block(name, m, part) for m, part in zip(metrics, parts, strict=True)]


def _matrix_block(name: str, matrix: Any, part: list[Tensor]) -> Block:
    size = sum(p.numel() for p in part)
    if np.iscomplexobj(matrix) or (isinstance(matrix, torch.Tensor) and matrix.is_complex()):
        raise TypeError(f"{name}: expected a real metric, got a complex one; take its real part")
    if math.prod(matrix.shape) != size**2:
        raise ValueError(
            f"{name}: expected a metric of {size} x {size} entries for parameters of shapes "
            f"{[tuple(p.shape) for p in part]}, got shape {tuple(matrix.shape)}; for a batch of inputs use "
            "fubini.metric_tensor(..., reduce='mean')"
        )
    values = to_numpy(matrix).reshape(size, size)
    # float32 metrics are symmetric to 1e-7; what is not finite is refused for that.
    if np.abs(values - values.T).max(initial=0.0) > 1e-6 * np.abs(values).max(initial=0.0):
        raise ValueError(
            f"{name}: expected a symmetric metric, got one that differs from its transpose"
        )
    return DenseBlock(part, torch.tensor(values, device=part[0].device), name)


def _positional_count(function: Callable[..., Any]) -> int | None:
    """How many positional arguments a function takes; None for any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in parameters)
