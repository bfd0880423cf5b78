"""Makes the stubs of the extension modules: ``python tests/stubs.py`` writes them after a change to cpp/bind."""

import subprocess
import sys
import tempfile
from pathlib import Path

import fubini
from fubini import _core

PACKAGE = Path(__file__).parents[1] / "python" / "fubini"


def generate() -> dict[str, str]:
    """Return the stub text of every extension module, by file name."""
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        built = f"_core_{_core.isa()}"
        for module, file in ((built, "_core.pyi"), ("_isa", "_isa.pyi")):
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pybind11_stubgen",
                    f"fubini.{module}",
                    "-o",
                    folder,
                    "--exit-code",
                ],
                check=True,
                capture_output=True,
            )
            texts[file] = (
                (Path(folder) / "fubini" / f"{module}.pyi").read_text().replace(built, "_core")
            )
    return texts


if __name__ == "__main__":
    for name, text in generate().items():
        (PACKAGE / name).write_text(text)
        print(f"{name}: {len(text.splitlines())} lines, from fubini {fubini.__version__}")
