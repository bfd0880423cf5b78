"""What a quantum function is called with while it is recorded: the caller's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.compile.graph import Graph
from fubini.compile.recorder import Recording
from fubini.options import Real
from fubini.torch_private import is_wrapped

_DOUBLE = (torch.float64, torch.float32)


@dataclass
class Arguments:
    """The arguments by name, and where leaves are in them.

    Attributes:
        values: All of them.
        weights: Those that are weights, in order.
        inputs: The data argument, (features,) or (batch, features); None without one.
        numbers_alone: Whether the inputs are (batch,), one number each.
        made_up: Whether a transform of torch.func hides the caller's numbers, and others take their place.
    """

    values: dict[str, Any]
    weights: list[torch.Tensor] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    numbers_alone: bool = False
    made_up: bool = False

    @property
    def num_weights(self) -> int:
        """Numbers in all weights."""
        return sum(w.numel() for w in self.weights)

    @property
    def width(self) -> int:
        """Number of features."""
        if self.inputs is None or self.numbers_alone:
            return int(self.numbers_alone)
        return self.inputs.shape[-1]

    @property
    def batch(self) -> int | None:
        """Number of inputs; None without a batch."""
        inputs = self.inputs
        alone = inputs is None or (inputs.ndim < 2 and not self.numbers_alone)
        return None if inputs is None or alone else len(inputs)

    def numbers(self) -> tuple[list[Real], Real]:
        """Return weights and inputs (B, d) as arrays."""
        inputs = np.zeros((1, 0))
        if self.inputs is not None:
            inputs = to_numpy(self.inputs).reshape(self.batch or 1, self.width)
        return [to_numpy(w) for w in self.weights], inputs

    def with_inputs(self, inputs: torch.Tensor) -> dict[str, Any]:
        """Return all arguments with other inputs."""
        name = next(n for n, v in self.values.items() if v is self.inputs)
        return {**self.values, name: inputs}

    def recording(self) -> Recording:
        """Return a recording whose leaves are these weights and inputs."""
        recording = Recording(Graph())
        first = 0
        for weight in self.weights:
            recording.leaves("weight", weight, first)
            first += weight.numel()
        if self.inputs is not None:
            recording.leaves("input", self.inputs, 0, batch=self.batch is not None)
        return recording


def arguments_of(
    input_arg: str | None,
    weights: Mapping[str, torch.Tensor],
    inputs: torch.Tensor | None,
    constants: Mapping[str, Any],
    numbers_alone: bool = False,
) -> Arguments:
    """Return the caller's numbers, weights in memory of their own.

    Args:
        input_arg: Name of the data argument, or None.
        weights: The weights by name.
        inputs: The data argument, or None.
        constants: Further arguments by name.
        numbers_alone: Whether the data argument is (batch,), one number for each input.
    """
    # Arguments may share memory; and memory that a function makes NumPy arrays of cannot be resized any more, as the
    # storages of sharded parameters are.
    hidden = any(is_wrapped(t) for t in (*weights.values(), *([] if inputs is None else [inputs])))
    result = Arguments({}, numbers_alone=numbers_alone, made_up=hidden)
    dtype = torch.float64
    if inputs is not None and input_arg is not None:
        rows = _numbers(inputs)
        # What is a part of other memory, or overlaps itself, is copied: all of a data set would be looked at.
        if rows.untyped_storage().nbytes() != rows.nbytes:
            rows = rows.clone(memory_format=torch.contiguous_format)
        if rows.dtype not in _DOUBLE:
            rows = rows.float()
        result.inputs = result.values[input_arg] = rows
        dtype = rows.dtype
    for name, weight in weights.items():
        # Exactly what TorchLayer passes, because the function may look at it.
        value = _numbers(weight)
        value = value.to(result.inputs) if result.inputs is not None else value
        if value.dtype not in _DOUBLE:
            value = value.to(dtype)
        if value is weight:
            # With its graph: the gradients of the first call go through this run.
            value = weight.clone(memory_format=torch.contiguous_format)
        result.values[name] = value
        result.weights.append(value)
    result.values.update(constants)
    return result


def _numbers(t: torch.Tensor) -> torch.Tensor:
    """The tensor as it is; made-up numbers where a transform of torch.func hides the real ones."""
    if is_wrapped(t):
        return torch.linspace(0.1, 0.9, t.numel(), dtype=torch.float64).reshape(t.shape)
    return t.clone() if t.is_inference() else t
