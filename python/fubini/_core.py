"""Loads the extension module for the best instruction set that this CPU runs.

``FUBINI_ISA`` (``baseline``, ``avx2``, ``avx512``, ``native``) overrides the choice. The stub ``_core.pyi``
describes the names that end up here; they are the same for every instruction set.
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


_module = importlib.import_module(_module_name())
globals().update(
    {name: value for name, value in vars(_module).items() if not name.startswith("__")}
)
