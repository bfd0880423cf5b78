"""The objects that were used last, to give an equal one back with all that was derived from it."""

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the objects that were used last; hashable ones that compare by value.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[T, T] = {}  # the one that was used last at the end
        self._lock = threading.Lock()

    def same(self, value: T) -> T:
        """Return the object that was seen before and equals the value, or the value, which is kept from now on.

        Args:
            value: The value.
        """
        with self._lock:
            found = self._known.pop(value, value)
            self._known[found] = found
            if len(self._known) > self._limit:
                del self._known[next(iter(self._known))]
        return found

    def __len__(self) -> int:
        return len(self._known)
