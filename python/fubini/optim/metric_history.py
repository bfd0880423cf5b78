"""The metric over several steps: reuse between updates, and exponential averaging with bias correction."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from fubini.blocks import Block, DenseBlock, FactorBlock, OperatorBlock, averaged

Tensor = torch.Tensor
#: How entries of the optimizer's state begin that are numbers of a block, and the one with the number of metrics in it.
PREFIX = "metric."
COUNT = "metric_updates"


class MetricHistory:
    """Keeps the blocks of earlier steps.

    The average is ``M_t = (1 - w) M_(t-1) + w F_t`` with ``w = (1 - decay) / (1 - decay^t)``: the exponential average
    divided by ``1 - decay^t``, so the first metric counts in full and the identity never enters. Kronecker factors are
    averaged one by one, as K-FAC does.

    Args:
        decay: In [0, 1); 0 for no averaging.
        update_every: Compute a new metric in every so many-th step.

    Attributes:
        active: Whether earlier steps matter.
        decay: As above.
    """

    def __init__(self, decay: float, update_every: int) -> None:
        self.decay, self._every = decay, update_every
        self.active = decay > 0.0 or update_every > 1
        self._blocks: list[Block] = []

    def due(self, step: int) -> bool:
        """Return whether the step is one of those that compute a new metric.

        Args:
            step: Number of the step, from 0.
        """
        return step % self._every == 0

    def known(self, wanted: Iterable[Tensor]) -> list[Block] | None:
        """Return the blocks of earlier steps, if they cover the parameters.

        Args:
            wanted: The parameters that move.
        """
        covered = {p for block in self._blocks for p in block.parameters}
        return list(self._blocks) if covered and all(p in covered for p in wanted) else None

    def take(
        self, fresh: Sequence[Block], due: bool, state: MutableMapping[Tensor, Any]
    ) -> list[Block]:
        """Return the metric of this step.

        Args:
            fresh: The metric at the present weights.
            due: Whether it counts. If not, it only gives saved numbers their form, after loading a state.
            state: The optimizer's state by parameter. What must be saved to go on later is kept there, under the first
                parameter of each block, as tensors and one number.

        Returns:
            The blocks.

        Raises:
            ValueError: If a block is known by its products only.
        """
        for block in fresh:
            if isinstance(block, OperatorBlock):
                raise ValueError(  # noqa: TRY004 - the options are wrong, not a type
                    f"averaging, update_every: expected 0 and 1 with {block.label}, whose metric is known by its "
                    "products at the present weights only; use approx='block-diag'"
                )
        earlier = {_key(block): block for block in self._blocks}
        result: list[Block] = []
        waiting: list[tuple[int, Block, Block, float]] = []  # to be averaged together
        changed = []
        for block in fresh:
            entry = state[block.parameters[0]]
            count = int(entry.get(COUNT, 0))
            saved = _tensors(entry)
            before = earlier.get(_key(block)) or _restored(block, saved)
            if before is None:
                count = 0
            if before is not None and not due:
                block = before
            else:
                count += 1
                if before is not None and self.decay > 0.0:
                    weight = (1.0 - self.decay) / (1.0 - self.decay**count)
                    waiting.append((len(result), *_alike(before, block), 1.0 - weight))
                entry[COUNT] = count
                changed.append(len(result))
            result.append(block)
        for (place, *_), block in zip(waiting, averaged([w[1:] for w in waiting]), strict=True):
            result[place] = block
        for place in changed:
            entry, tensors = state[result[place].parameters[0]], result[place].tensors()
            for name in _tensors(entry).keys() - tensors.keys():
                del entry[PREFIX + name]
            entry.update({PREFIX + name: t for name, t in tensors.items()})
        kept = {_key(block) for block in result}
        self._blocks = result + [b for b in self._blocks if _key(b) not in kept]
        return result

    def forget(self) -> None:
        """Drop the blocks; what the state holds is taken up again with the next metric."""
        self._blocks = []


def _restored(block: Block, saved: Mapping[str, Tensor]) -> Block | None:
    """The block that was saved for the parameters of this one; None if there is none, or it was for other parameters."""
    saved = {name: values.to(block.device) for name, values in saved.items()}
    try:
        if set(saved) == set(block.tensors()):
            return block.with_tensors(saved)
        if set(saved) == {"matrix"}:
            return DenseBlock(block.parameters, saved["matrix"], block.label)
        if set(saved) == {"factor"}:
            return FactorBlock(block.parameters, saved["factor"], block.label)
    except ValueError:  # of another size
        pass
    return None


def _alike(first: Block, second: Block) -> tuple[Block, Block]:
    """The same blocks, as matrices if they are of two kinds: a joint metric has a factor or not as the batch is small."""
    if type(first) is type(second):
        return first, second
    a, b = (DenseBlock(x.parameters, x.dense(), x.label) for x in (first, second))
    return a, b


def _key(block: Block) -> tuple[int, ...]:
    return tuple(id(p) for p in block.parameters)


def _tensors(entry: MutableMapping[str, Any]) -> dict[str, Tensor]:
    return {
        name.removeprefix(PREFIX): value for name, value in entry.items() if name.startswith(PREFIX)
    }
