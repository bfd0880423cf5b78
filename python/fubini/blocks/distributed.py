"""Averages over the processes of ``torch.distributed``, as DistributedDataParallel averages gradients."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fubini.blocks import Block, DenseBlock, FactorBlock, OperatorBlock

Tensor = torch.Tensor
T = TypeVar("T")
_AVAILABLE = dist.is_available()


def active() -> bool:
    """Return whether several processes take every step together."""
    return _AVAILABLE and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, 0 where there is only one."""
    return dist.get_rank() if active() else 0


def unwrapped(model: torch.nn.Module | None) -> torch.nn.Module | None:
    """Return the module inside DistributedDataParallel, or the model itself.

    Args:
        model: A model or None.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        inner: torch.nn.Module = model.module
        return inner
    return model


def together(function: Callable[[], T], device: torch.device) -> T:
    """Call a function in every process; if it fails in one, raise in all, so that none waits for the others forever.

    Args:
        function: Must not communicate.
        device: Where the process group computes.

    Returns:
        Its result.

    Raises:
        Exception: What it raised here.
        RuntimeError: If it raised in another process only.
    """
    if not active():
        return function()
    error: Exception | None = None
    result: T
    try:
        result = function()
    except Exception as caught:  # noqa: BLE001 - raised again below, once all processes know
        error = caught
    flag = torch.tensor([0.0 if error is None else 1.0], dtype=torch.float64, device=device)
    failed = _all_reduced(flag)
    if error is not None:
        raise error
    if failed.item() > 0:
        raise RuntimeError(
            f"step: failed in {int(failed.item())} other of {dist.get_world_size()} processes; see their messages"
        )
    return result


def check_same(parameters: Sequence[Tensor]) -> None:
    """Refuse processes whose parameters differ: averages over them would mean nothing.

    Args:
        parameters: Of this process.

    Raises:
        RuntimeError: In every process, if shapes, dtypes or values differ anywhere.
    """
    if not active() or not parameters:
        return
    shapes = repr([(tuple(p.shape), p.dtype) for p in parameters])
    device = parameters[0].device
    if not _agree(hashlib.blake2b(shapes.encode(), digest_size=7), device):
        raise RuntimeError(
            "params: expected the same parameters in all processes, of the same shapes and dtypes in the same order, got "
            "others in some; sharded optimizers such as ZeroRedundancyOptimizer, which give every process a part of the "
            "parameters, cannot be used, because the metric couples them"
        )
    values = hashlib.blake2b(digest_size=7)
    for p in parameters:
        values.update(p.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if not _agree(values, device):
        raise RuntimeError(
            "params: expected the same values in all processes before the first step, got different ones; seed all processes "
            "alike, load the same state, or broadcast the parameters (torch.distributed.broadcast, DistributedDataParallel)"
        )


def _agree(digest: Any, device: torch.device) -> bool:
    """Whether a digest of seven bytes is the same in all processes."""
    number = int.from_bytes(digest.digest(), "big")
    table = torch.tensor([number, -number], dtype=torch.int64, device=device)
    dist.all_reduce(table, op=dist.ReduceOp.MAX)
    highest, lowest = table.tolist()
    return bool(highest == -lowest)


def number_mean(value: float, weight: float, device: torch.device) -> float:
    """Return the weighted mean of a number over the processes.

    Args:
        value: Of this process.
        weight: Of this process.
        device: Where the process group computes.
    """
    if not active():
        return value
    total = _all_reduced(
        torch.tensor([value * weight, weight], dtype=torch.float64, device=device)
    ).tolist()
    return float(total[0] / total[1]) if total[1] else math.nan


def any_gradient(parameters: Sequence[Tensor]) -> list[bool]:
    """Return for each parameter whether it moves: it is not frozen, and has a gradient in any process.

    Args:
        parameters: In the same order in every process.
    """
    mine = [p.grad is not None and p.requires_grad for p in parameters]
    if not active() or not parameters:
        return mine
    flags = torch.tensor(mine, dtype=torch.float64, device=parameters[0].device)
    return [value > 0 for value in _all_reduced(flags).tolist()]


def mean_tensors(tensors: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """Return weighted means over the processes, in one communication.

    Args:
        tensors: float64, on one device; the same shapes in every process.
        weights: One for each tensor; at least one process has a positive one.
    """
    if not active() or not tensors:
        return list(tensors)
    device = tensors[0].device
    share = torch.tensor(list(weights), dtype=torch.float64, device=device)
    flat = torch.cat([share, *(w * t.reshape(-1) for t, w in zip(tensors, weights, strict=True))])
    total = _all_reduced(flat)
    shares, values = total[: len(tensors)], total[len(tensors) :]
    pieces = torch.split(values, [t.numel() for t in tensors])
    return [
        (piece / w).reshape(t.shape) for piece, w, t in zip(pieces, shares, tensors, strict=True)
    ]


def mean_blocks(blocks: Sequence[Block], counts: Sequence[float]) -> list[Block]:
    """Return the blocks of the mean metric over all processes.

    Args:
        blocks: The same kinds and parameters in every process.
        counts: How many inputs stand behind each block here: its weight.
    """
    if not active() or not blocks:
        return list(blocks)
    blocks = _of_one_kind(blocks)
    linear = [k for k, block in enumerate(blocks) if block.linear]
    named = [(k, t) for k in linear for t in blocks[k].tensors().values()]
    left = iter(mean_tensors([t for _, t in named], [counts[k] for k, _ in named]))
    result = list(blocks)
    for k in linear:
        result[k] = blocks[k].with_tensors({name: next(left) for name in blocks[k].tensors()})
    for k, block in enumerate(blocks):
        if isinstance(block, FactorBlock):
            result[k] = _stacked(block, counts[k])
        elif isinstance(block, OperatorBlock):
            result[k] = _summed(block, counts[k])
    return result


def _of_one_kind(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks, in a form that all processes have: which one is cheapest depends on the number of inputs."""
    codes = [
        2.0 if isinstance(b, OperatorBlock) else 1.0 if isinstance(b, FactorBlock) else 0.0
        for b in blocks
    ]
    mine = torch.tensor(codes, dtype=torch.float64, device=blocks[0].device)
    bounds = torch.stack([mine, -mine])
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    highest, lowest = bounds[0].tolist(), (-bounds[1]).tolist()
    result = []
    for block, low, high in zip(blocks, lowest, highest, strict=True):
        if low == high or (high == 2.0 and isinstance(block, OperatorBlock)):
            result.append(block)
        elif high == 2.0:
            result.append(
                OperatorBlock(block.parameters, block.product, block.label, diagonal=block.diagonal)
            )
        else:
            result.append(DenseBlock(block.parameters, block.dense(), block.label))
    return result


def _stacked(block: FactorBlock, count: float) -> Block:
    """The rows of all processes below each other; they may differ in number."""
    (factor,) = block.tensors().values()
    size, own = dist.get_world_size(), dist.get_rank()
    table = torch.zeros(size, 2, dtype=torch.float64, device=factor.device)
    table[own, 0], table[own, 1] = len(factor), count
    table = _all_reduced(table)
    rows, total = table[:, 0].to(torch.int64).tolist(), float(table[:, 1].sum())
    stacked = factor.new_zeros(sum(rows), factor.shape[1])
    start = sum(rows[:own])
    stacked[start : start + rows[own]] = math.sqrt(count / total) * factor
    return block.with_tensors({"factor": _all_reduced(stacked)})


def _summed(block: OperatorBlock, count: float) -> Block:
    """Every product is summed over the processes, which all run the same conjugate gradients."""
    # The diagonal is one more sum, which all processes must want or none.
    known = block.knows_diagonal
    table = torch.tensor([count, float(known)], dtype=torch.float64, device=block.device)
    total, knowing = _all_reduced(table).tolist()
    weight = count / total
    everywhere = knowing == dist.get_world_size()
    return OperatorBlock(
        block.parameters,
        lambda v: _all_reduced(weight * block.product(v)),
        block.label,
        diagonal=(lambda: _all_reduced(weight * block.diagonal())) if everywhere else None,
    )


def _all_reduced(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor
