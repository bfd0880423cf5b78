"""Runs the code of a page: every block tagged ``python``, in order, in one process of its own.

What a block prints follows it, and so do the pictures that it leaves open. Blocks tagged ``py`` are shown and not run. What
ran is kept in ``build/docs`` until the page or the package changes. From the command line:

    python docs/pages.py docs/tutorials/*.md      # runs them, says how long each took, and stops at the first error
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Kept = TypeVar("Kept")
HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
#: Pictures look the same on a light and on a dark page.
STYLE = {"figure.dpi": 110, "savefig.bbox": "tight", "figure.figsize": (7, 3.2), "font.size": 9}


def executed(markdown: str, path: Path) -> str:
    """Return the source of a page with the outputs of its code.

    Args:
        markdown: The source.
        path: Its file, for messages.

    Returns:
        The source, each block followed by what it printed and drew.

    Raises:
        RuntimeError: If a block fails; with its traceback.
    """
    outputs = iter(run(markdown, path)["outputs"])
    return BLOCK.sub(lambda block: block[0] + shown(next(outputs)), markdown)


def section(file: str, heading: str) -> str:
    """Return what stands in a file of the repository under a heading, or the first table below a line of text.

    Args:
        file: Its path from the root.
        heading: The heading's text, or the beginning of a line.

    Raises:
        ValueError: If there is none, or no table.
    """
    text = (HERE.parent / file).read_text()
    if found := re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    ):
        return found[1].strip()
    below = text.partition(f"\n{heading}")[2]
    if not (found := re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)):
        raise ValueError(f"{file}: expected a heading {heading!r}, or a table below that line")
    return found[0]


def shown(output: dict[str, object]) -> str:
    """Return what a block printed and drew, as Markdown."""
    text = str(output["text"]).rstrip()
    result = f"\n```text\n{text}\n```\n" if text else ""
    for picture in output["pictures"]:  # type: ignore[attr-defined]
        result += f"\n![What the code above draws](data:image/png;base64,{picture})\n"
    return result


def run(markdown: str, path: Path) -> dict[str, object]:
    """Run the blocks of a page, or find what they left when they ran last.

    Args:
        markdown: The source.
        path: Its file, for messages.

    Returns:
        ``outputs``: text and pictures of each block; ``seconds``.

    Raises:
        RuntimeError: If a block fails; with its traceback.
    """
    blocks = json.dumps([block[1] for block in BLOCK.finditer(markdown)])

    def ran() -> dict[str, object]:
        result = subprocess.run(
            [sys.executable, __file__, "--blocks"],
            input=blocks,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MPLBACKEND": "agg"},
        )
        if result.returncode:
            raise RuntimeError(f"{path}: expected its code to run, got\n{result.stderr}")
        found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
        return found

    return kept(path.stem, ran, blocks)


def kept(name: str, make: Callable[[], Kept], source: str = "") -> Kept:
    """Return what was made earlier from the same package, docs and source, or make and keep it.

    Args:
        name: Of the file in ``build/docs``.
        make: Returns what JSON can keep.
        source: What it is made from besides.
    """
    files = [*sorted((HERE.parent / "python").rglob("*.py")), *sorted(HERE.glob("*.py"))]
    state = hashlib.sha256(source.encode() + b"".join(file.read_bytes() for file in files))
    file = HERE.parent / "build/docs" / f"{name}-{state.hexdigest()[:16]}.json"
    if not file.exists():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    result: Kept = json.loads(file.read_text())
    return result


def run_blocks(blocks: list[str]) -> dict[str, object]:
    """Run blocks in one namespace; warnings are errors, but for those that pyproject.toml names.

    Args:
        blocks: The code.

    Returns:
        As :func:`run`.
    """
    import warnings

    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    warnings.filterwarnings("error", module="fubini")
    names: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    begin = time.perf_counter()
    for number, block in enumerate(blocks, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"block {number}", "exec"), names)
        pictures = []
        for figure in map(plt.figure, plt.get_fignums()):
            stream = io.BytesIO()
            figure.savefig(stream, format="png")
            pictures.append(base64.b64encode(stream.getvalue()).decode())
        plt.close("all")
        outputs.append({"text": printed.getvalue(), "pictures": pictures})
    return {"outputs": outputs, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    if sys.argv[1:] == ["--blocks"]:
        print(json.dumps(run_blocks(json.loads(sys.stdin.read()))))
    else:
        for argument in sys.argv[1:]:
            page = Path(argument)
            print(f"{page}: {run(page.read_text(), page)['seconds']:.1f} s", flush=True)
