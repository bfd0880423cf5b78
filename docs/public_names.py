"""The reference: every public name, once; names that no page lists are on the page ``more``."""

import inspect
import re
from pathlib import Path

import fubini

HERE = Path(__file__).parent
#: What is shown of a class besides what its own body defines.
OPTIONS = {"QNGOptimizer": "\n    options: { inherited_members: true }"}


def listed() -> set[str]:
    """Return the names that the pages of the reference list."""
    pages = [page.read_text() for page in (HERE / "reference").glob("*.md")]
    return {
        name
        for text in pages
        for found in re.findall(r"<!-- names: (.*?) -->", text)
        for name in found.split()
    }


def entries(words: str) -> str:
    """Return the directives for some names, for those that no page lists (``the-rest``), or a table of all (``all``)."""
    names = words.split()
    rest = sorted(set(fubini.__all__) - listed())
    if names == ["all"]:
        rows = [
            f"| [`{name}`][fubini.{name}] | {first_line(name)} |"
            for name in sorted(fubini.__all__, key=str.lower)
        ]
        return "\n".join(["| name | what it is |", "| --- | --- |", *rows])
    if names == ["the-rest"]:
        names = rest or ["__version__"]
    return "\n\n".join(f"::: fubini.{name}" + OPTIONS.get(name, "") for name in names)


def first_line(name: str) -> str:
    """Return the first sentence of a docstring."""
    text = (inspect.getdoc(getattr(fubini, name)) or "").split("\n\n")[0]
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return text.split(". ")[0].rstrip(".").replace("|", "\\|") + "."
