"""Passes run again for their metric, which must be those whose gradients are applied."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from fubini.fisher.passes import Layout, Pass, run
from fubini.nn.surroundings import Seen

Tensor = torch.Tensor

# By how much the outputs of the second run may differ, relative to the largest of them. Its operations are the same up to
# their order, in the precision of the parameters; a mask of dropout or other noise makes more than this.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3}
# Half precision, also inside of the model.
_COARSE = 0.1
# Results that are zero up to rounding, as of circuits, have no scale of their own.
_SMALLEST = 1e-3


def repeated(
    layout: Layout, seen: Seen, parameters: Collection[Tensor], *, fixed_statistics: bool
) -> Pass:
    """Run a pass again, with its layers cut from the graph where the model allows it.

    A model that differentiates inside of its forward, or looks at its own graph, computes something else with layers that
    are cut; torch then differentiates through all of it.

    Args:
        layout: The model.
        seen: The pass.
        parameters: Whose metric is wanted.
        fixed_statistics: Whether the statistics of batch norm count as constants.

    Returns:
        The pass.

    Raises:
        RuntimeError: If the model returns something else than in the pass.
    """
    precisions = {p.dtype for p in layout.model.parameters()}

    def attempt(cut: bool) -> Pass:
        return run(layout, seen, wanted=parameters, fixed_statistics=fixed_statistics, cut=cut)

    if seen.output is None and layout.may_attend and not layout.has_shots:
        # Nobody knows what a forward of the user's does with cut layers: see what it returns without.
        plain = attempt(cut=False)
        seen = replace(seen, output=plain.output.detach())
    try:
        result = attempt(cut=True)
    except RuntimeError:
        result = attempt(cut=False)
    if _same(result, seen, layout, precisions):
        return result
    result = attempt(cut=False)
    if _same(result, seen, layout, precisions):
        return result
    raise RuntimeError(
        "model: expected a forward pass that can be repeated, because the metric must be that of the pass whose gradient "
        "is applied; with the same weights, arguments, buffers, training flags and states of the global random generators of "
        "torch, NumPy and Python it returned something else. Draw random numbers from the global generators, and do not "
        "change state in forward() that is no buffer; or use metric='quantum', which does not run the model again"
    )


def _same(found: Pass, seen: Seen, layout: Layout, precisions: Collection[torch.dtype]) -> bool:
    """Whether a pass returned what it returned the first time, up to rounding; true where that is not to be expected."""
    before, now = seen.output, found.output.detach()
    if before is None or layout.has_shots:
        return True
    if before.shape != now.shape:
        return False
    tolerance = max(_ROUNDING.get(t, _COARSE) for t in (before.dtype, now.dtype, *precisions))
    if found.autocast or seen.surroundings.autocast:
        tolerance = _COARSE
    before, now = before.double(), now.double()
    if not now.numel() or not bool(torch.isfinite(now).all()):
        return True  # refused for that elsewhere
    return float((now - before).abs().max()) <= tolerance * max(
        float(before.abs().max()), _SMALLEST
    )
