"""The states of the global random generators, which functions of the user's may draw from."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

Tensor = torch.Tensor


class RandomState(NamedTuple):
    """The states of torch's random number generators.

    Attributes:
        cpu: Of the CPU.
        cuda: Of the CUDA devices, empty while none is in use.
    """

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """Return the present states."""
        used = torch.cuda.is_initialized() and torch.cuda.is_available()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else [])

    def restore(self) -> None:
        """Put the generators into these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class AllRandom(NamedTuple):
    """The states of the global generators of torch, NumPy and Python.

    Attributes:
        torch: Of torch.
        numpy: Of NumPy.
        python: Of Python.
    """

    torch: RandomState
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> AllRandom:
        """Return the present states."""
        return cls(RandomState.now(), _numpy_now(), _python_now())

    def restore(self) -> None:
        """Put the generators into these states."""
        self.torch.restore()
        if _numpy_now() is not self.numpy:
            np.random.set_state(self.numpy)  # noqa: NPY002
        if _python_now() is not self.python:
            random.setstate(self.python)


class _Watched:
    """A generator whose state is asked for only after it has moved: copying it, word by word, takes long.

    Whether it has moved is seen in its memory, a Mersenne twister of 624 words and a position in any order. Where that is
    not what is found there, the state is asked for every time.

    Args:
        now: Returns the state.
        words: Of the state: its words, and whether it holds a normal number that is still to be given away, of which the
            memory knows nothing.
    """

    def __init__(self, now: Callable[[], Any], words: Callable[[Any], tuple[Any, bool]]) -> None:
        self._now, self._words = now, words
        self._memory, self._state = b"", None

    def state(self, address: int, size: int) -> Any:
        """Return the state, the same object as long as it has not moved.

        Args:
            address: Of the memory.
            size: In bytes.
        """
        memory = ctypes.string_at(address, size)
        if memory == self._memory:
            return self._state
        state = self._now()
        words, has_normal = self._words(state)
        if not has_normal and np.asarray(words, dtype=np.uint32).tobytes() in memory:
            self._memory, self._state = memory, state
        return state


_numpy = _Watched(
    lambda: np.random.get_state(legacy=False),  # noqa: NPY002
    lambda state: (state["state"]["key"], bool(state["has_gauss"])),
)
_python = _Watched(random.getstate, lambda state: (state[1][:-1], state[2] is not None))
_TWISTER = 625 * 4
_SHARED = getattr(random.random, "__self__", None)  # the generator of the module's functions
_HEAD = object.__basicsize__
_BODY: int = getattr(random.Random.__base__, "__basicsize__", 0) - _HEAD


def _numpy_now() -> Any:
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is np.random.MT19937:
        return _numpy.state(generator.ctypes.state_address, _TWISTER)
    return np.random.get_state(legacy=False)  # noqa: NPY002


def _python_now() -> Any:
    # Where CPython keeps its twister; the normal number is an attribute of its own.
    if (
        type(_SHARED) is random.Random
        and _BODY >= _TWISTER
        and getattr(_SHARED, "gauss_next", 0.0) is None
    ):
        return _python.state(id(_SHARED) + _HEAD, _BODY)
    return random.getstate()
