"""Objects of PennyLane's classes that need not be watched while they are made: one like it was, and no code of users ran."""

from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.compile import known


class Making:
    """What is known of how PennyLane's objects are made."""

    def __init__(self) -> None:
        self._draws: dict[type, bool] = {}
        # How objects were made without code of users: whether of numbers alone.
        self._understood: dict[Any, bool] = {}
        self._modes = (0, 0)

    def begin(self) -> None:
        """Note which modes of torch are in force while the function runs."""
        self._modes = _modes()

    def draws(self, kind: type) -> bool:
        """Whether a class draws numbers unless it is given a seed."""
        if kind not in self._draws:
            self._draws[kind] = not known.SEEDED.isdisjoint(c.__name__ for c in kind.__mro__)
        return self._draws[kind]

    def token(self, kind: type, args: Any, kwargs: Any, runs: int) -> Any:
        """Return True for an object that need not be watched, else what ``made`` wants.

        Args:
            kind: The class.
            args: What it is called with.
            kwargs: Likewise.
            runs: How often code of users has run.
        """
        values = (*args, *kwargs.values()) if kwargs else args
        queue = type(_active_queue())
        key = (kind, queue, *map(type, values), *kwargs)
        plain = self._understood.get(key)
        if not (plain or all(map(_is_inert, values))) or _modes() != self._modes:
            return None
        if plain is not None:
            return True
        if not (known.is_library_name(kind.__module__) and known.is_library_name(queue.__module__)):
            return None
        return key, runs, _INERT.issuperset(map(type, values))

    def made(self, token: Any, runs: int) -> None:
        """Note that an object was made under the watch; ``runs`` now."""
        if token is not None and token[1] == runs:
            self._understood[token[0]] = token[2]


def _modes() -> tuple[int, int]:
    """How many modes of torch, which see what is done with tensors, are in force."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


_active_queue = qml.QueuingManager.active_context


def _is_inert(value: Any) -> bool:
    """Whether nothing that is done with a value runs code of users."""
    kind = type(value)
    if kind in (list, tuple):
        return all(map(_is_inert, value))
    return kind in _INERT or (kind is np.ndarray and value.dtype.kind in "bifc")


_INERT = frozenset(
    {int, float, complex, bool, str, type(None), range, torch.Tensor, torch.nn.Parameter, np.float64, np.float32,
     np.int64, np.bool_}
)  # fmt: skip
