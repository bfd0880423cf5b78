"""Loads the extension module for the best instruction set that this CPU runs.

``FUBINI_ISA`` (``baseline``, ``avx2``, ``avx512``, ``native``) overrides the choice, ``FUBINI_NUM_THREADS`` the number
of threads, whose default is ``OMP_NUM_THREADS``. The stub ``_core.pyi`` describes the names that end up here; they are
the same for every instruction set.
"""

import importlib
import importlib.util
import os

from fubini import _isa


def _module_name() -> str:
    built = [
        isa
        for isa in ("native", *_isa.supported())
        if importlib.util.find_spec(f"fubini._core_{isa}") is not None
    ]
    wanted = os.environ.get("FUBINI_ISA")
    if wanted is None:
        if not built:
            raise ImportError(
                "fubini: no extension module found. Install the package (pip install .) instead of importing it "
                "from the source tree, or build it in place: cmake --preset python && cmake --build --preset python"
            )
        return f"fubini._core_{built[0]}"
    if wanted not in built:
        raise ImportError(
            f"FUBINI_ISA: expected one of {built} (built, and run by this CPU), got {wanted!r}. "
            "Unset FUBINI_ISA to let fubini choose."
        )
    return f"fubini._core_{wanted}"


def _wanted_threads() -> int | None:
    text = os.environ.get("FUBINI_NUM_THREADS", "").strip()
    if text:
        threads = int(text) if text.isdecimal() and len(text) <= 4 else 0
        if 1 <= threads <= 1024:
            return threads
        raise ImportError(
            f"FUBINI_NUM_THREADS: expected a whole number from 1 to 1024, got {text!r}. "
            "Unset FUBINI_NUM_THREADS for one thread per processor."
        )
    # OpenMP's form: one number for each level of nesting. What is no number, OpenMP's runtime complains about.
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(text), 1024) if text.isdecimal() and len(text) <= 9 and int(text) else None


_module = importlib.import_module(_module_name())
globals().update(
    {name: value for name, value in vars(_module).items() if not name.startswith("__")}
)
if (_threads := _wanted_threads()) is not None:
    _module.set_num_threads(_threads)
