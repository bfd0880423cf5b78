"""Runs what was recorded once more, as torch does it, at other numbers.

While a function is recorded, every operation that a rule was applied to is noted with its arguments. The list is run in
float64 at random points (:mod:`fubini.compile.agreement`); the function itself is not called again.

Tensors are noted as places in memory. A place is found in the memory of the second run by its strides, so that views,
however they were taken, and what is written through them come out as they did.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch

from fubini.compile.shadow import Shadow, UnknownError
from fubini.options import Real

#: Relative change of intermediate results by which rounding is told from errors: 4,500 units in the last place.
SHAKE = 1e-12

_DOUBLED = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class Place(NamedTuple):
    """Where a tensor is.

    Attributes:
        key: Which memory.
        size: Shape of the tensor, real: complex numbers have a last axis of two.
        stride: In numbers.
        offset: In numbers.
    """

    key: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """Return the place of a tensor."""
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        storage: Any = tensor.untyped_storage()
        return cls(storage._cdata, tuple(real.shape), real.stride(), int(real.storage_offset()))

    def within(self, memory: dict[int, torch.Tensor]) -> torch.Tensor:
        """Return the tensor in other memory: one vector of numbers for each key."""
        return memory[self.key].as_strided(self.size, self.stride, self.offset)


class Replay:
    """The operations of a recording.

    Args:
        shadow: What the recording holds of tensors.
    """

    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow
        # Kind, place, number of the first element, length of the memory.
        self._leaves: list[tuple[str, Place, int, int]] = []
        # Function, arguments, options, the memory that it writes to before it first does; then of the result the place, the
        # length of the memory, and whether it is the first argument.
        self._calls: list[tuple[Any, ...]] = []

    def leaf(self, kind: str, tensor: torch.Tensor, first: int) -> None:
        """Note a weight, or the inputs.

        Args:
            kind: ``"weight"`` or ``"input"``.
            tensor: The tensor.
            first: Number of its first element among all weights.
        """
        self._leaves.append((kind, Place.of(tensor), first, _length(tensor)))

    def planned(
        self, function: Any, args: Sequence[Any], kwargs: Any, mutated: Sequence[torch.Tensor]
    ) -> tuple[Any, ...]:
        """Return an operation that is about to be done, for ``note``: constants in it are copied as they are now."""
        fresh = mutated and not self._shadow.tracks(mutated[0])
        before = _whole(mutated[0]) if fresh else None
        places = [
            Place.of(value) if any(value is t for t in mutated) else self._planned(value)
            for value in args
        ]
        return function, places, {k: self._planned(v) for k, v in kwargs.items()}, before

    def note(self, plan: tuple[Any, ...], result: torch.Tensor, in_place: bool) -> None:
        """Append an operation to the list.

        Args:
            plan: What ``planned`` gave.
            result: The result.
            in_place: Whether it was written to the first argument.
        """
        self._calls.append((*plan, Place.of(result), _length(result), in_place))

    def __len__(self) -> int:
        return len(self._calls)

    def clear(self) -> None:
        """Drop the list."""
        self._calls.clear()

    def _planned(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if self._shadow.tracks(value):
                return Place.of(value)
            return value.detach().to("cpu", _wide(value.dtype), copy=True)
        if isinstance(value, list | tuple):
            return [self._planned(v) for v in value]
        if isinstance(value, torch.dtype):
            return _wide(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def run(
        self, weights: Real, inputs: Real, shaken: torch.Generator | None = None
    ) -> dict[int, torch.Tensor]:
        """Do all operations, and return the memory behind them.

        Args:
            weights: All weights, (P,).
            inputs: (B, d).
            shaken: Multiplies every intermediate result by numbers that are 1 up to ``SHAKE``; default: none.

        Returns:
            A tensor for each key, whose storage is laid out as that of the run was.
        """
        memory: dict[int, torch.Tensor] = {}

        def shake(tensor: torch.Tensor) -> None:
            if shaken is not None:
                noise = torch.rand(tensor.shape, dtype=torch.float64, generator=shaken)
                tensor.mul_(1.0 + SHAKE * (2.0 * noise - 1.0))

        for kind, place, first, length in self._leaves:
            numbers = inputs if kind == "input" else weights[first:][: math.prod(place.size)]
            memory[place.key] = torch.zeros(length, dtype=torch.float64)
            leaf = place.within(memory)
            leaf.copy_(torch.from_numpy(numbers.reshape(place.size)))
            shake(leaf)
        for function, places, options, before, place, length, in_place in self._calls:
            if before is not None:
                memory[place.key] = before.clone()
            keywords = {k: _placed(v, memory) for k, v in options.items()}
            found = function(*_placed(places, memory), **keywords)
            if in_place:
                shake(place.within(memory))
                continue
            if found.is_complex():
                found = torch.view_as_real(found)
            if found.stride() != place.stride or found.storage_offset() or place.key in memory:
                if place.key not in memory:
                    memory[place.key] = torch.zeros(length, dtype=torch.float64)
                found = place.within(memory).copy_(found)
            else:
                memory[place.key] = found
            shake(found)
        return memory


def _placed(value: Any, memory: dict[int, torch.Tensor]) -> Any:
    if isinstance(value, Place):
        return value.within(memory)
    return [_placed(v, memory) for v in value] if isinstance(value, list) else value


def _wide(dtype: torch.dtype) -> torch.dtype:
    return _DOUBLED.get(dtype, dtype)


def _length(tensor: torch.Tensor) -> int:
    """How many numbers the memory of a tensor holds."""
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return int(tensor.untyped_storage().nbytes()) // width


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor's memory."""
    if tensor.is_complex():
        raise UnknownError("it writes into complex numbers")
    whole = tensor.detach().new_empty(0).set_(tensor.untyped_storage(), 0, (_length(tensor),), (1,))
    return whole.to("cpu", torch.float64, copy=True)
