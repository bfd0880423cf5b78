"""What was built, how many threads it uses, and how much memory one computation may take."""

import platform
from typing import TypedDict

from fubini import _core, _isa


class BuildInfo(TypedDict):
    """Version, compiler and instruction sets of the kernel."""

    version: str
    isa: str
    supported_isas: list[str]
    compiler: str
    threads: int
    python: str


def build_info() -> BuildInfo:
    """Return version, instruction set, compiler and number of threads of the kernel that is loaded.

    Example:
        >>> import fubini
        >>> sorted(fubini.build_info())
        ['compiler', 'isa', 'python', 'supported_isas', 'threads', 'version']
    """
    return {
        "version": _core.version(),
        "isa": _core.isa(),
        "supported_isas": list(_isa.supported()),
        "compiler": _core.compiler(),
        "threads": _core.num_threads(),
        "python": platform.python_version(),
    }


def get_num_threads() -> int:
    """Return the number of threads that the kernel may use; a system that grants fewer gives fewer.

    The first value is ``FUBINI_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors.

    Example:
        >>> import fubini
        >>> fubini.get_num_threads() >= 1
        True
    """
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Set the number of threads that the kernel may use. Results do not depend on it.

    Args:
        threads: 1 to 1024.

    Raises:
        TypeError: If threads is no integer.
        ValueError: If it is out of range.

    Example:
        >>> import fubini
        >>> before = fubini.get_num_threads()
        >>> fubini.set_num_threads(2)
        >>> fubini.get_num_threads()
        2
        >>> fubini.set_num_threads(before)
    """
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"threads: expected an integer, got {type(threads).__name__}")
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads: expected 1 to 1024, got {threads}")
    _core.set_num_threads(threads)


def get_memory_limit() -> float:
    """Return how many bytes one computation of the kernel may allocate.

    Example:
        >>> import fubini
        >>> fubini.get_memory_limit() > 0
        True
    """
    return _core.memory_limit()


def set_memory_limit(limit: float) -> None:
    """Bound what one computation of the kernel may allocate; a request beyond it is refused before it starts.

    Args:
        limit: Bytes; 0 for the default, three quarters of the memory that this process may use.

    Raises:
        ValueError: If limit is negative or no finite number.

    Example:
        >>> import fubini
        >>> before = fubini.get_memory_limit()
        >>> fubini.set_memory_limit(2e9)
        >>> fubini.get_memory_limit()
        2000000000.0
        >>> fubini.set_memory_limit(before)
    """
    if not 0 <= limit < float("inf"):
        raise ValueError(f"limit: expected a finite number of bytes >= 0, got {limit!r}")
    _core.set_memory_limit(float(limit))


def check_fits(what: str, count: float, remedy: str) -> None:
    """Raise a MemoryError unless so many doubles may be allocated.

    Args:
        what: What would be allocated.
        count: Number of doubles.
        remedy: What to do instead.

    Raises:
        MemoryError: With the size and the bound, before anything is allocated.
    """
    limit = _core.memory_limit()
    if 8 * count > limit:
        raise MemoryError(
            f"{what} would take {8e-9 * count:.3g} GB of memory, and may take {1e-9 * limit:.3g} GB "
            f"(fubini.set_memory_limit); {remedy}"
        )


#: What to do where a matrix does not fit.
MATRIX_FREE = "use fubini.metric_operator(...), which multiplies by the metric without forming it"
#: What to do where a derivative of the metric does not fit: there is no product with it.
FEWER_WEIGHTS = "take fewer weights (argnums) or inputs at a time, or reduce='mean'"
