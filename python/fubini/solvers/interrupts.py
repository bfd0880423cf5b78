"""Lets Ctrl-C reach computations that do not ask for it, such as those of LAPACK."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Less takes a fraction of a second.
_LONG = 1e9


def interruptible(
    operations: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call a function; what takes long runs beside this thread, which waits for it or for a signal.

    Python handles signals in the main thread, between two of its instructions. After an interrupt the computation goes
    on to its end, and nobody sees its result: it must not change what it is given.

    Args:
        operations: Floating-point operations of the call, roughly.
        function: What releases Python's lock while it computes.
        *args: Its arguments.
        **kwargs: Its arguments.

    Returns:
        What the function returns.
    """
    if operations < _LONG or threading.current_thread() is not threading.main_thread():
        return function(*args, **kwargs)
    context = contextvars.copy_context()  # numpy.errstate
    helper = ThreadPoolExecutor(1)
    try:
        outcome = helper.submit(lambda: context.run(function, *args, **kwargs))
    except RuntimeError:  # no thread to be had
        return function(*args, **kwargs)
    finally:
        helper.shutdown(wait=False)
    while not outcome.done():
        wait(
            [outcome], timeout=0.1
        )  # a signal that another thread received does not end the waiting
    return outcome.result()
