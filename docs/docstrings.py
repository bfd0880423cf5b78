"""The package's docstrings are plain text with a little reStructuredText; MkDocs reads Markdown."""

import re
from typing import Any

from griffe import Extension


def markdown(text: str) -> str:
    """Return a docstring with its roles, literal blocks and simple tables as Markdown."""
    text = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r":math:`([^`]+)`", lambda found: f"`{plain(found[1])}`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(
        r"^Example::?$", "Examples:", text, flags=re.MULTILINE
    )  # these are fenced by griffe
    text = re.sub(r"^=+( +=+)+\n(?:.+\n)*=+( +=+)+$", table, text, flags=re.MULTILINE)
    result: list[str] = []
    literal = False
    for line in text.split("\n"):
        if literal and line.strip() and not line.startswith("    "):
            result.append("```\n")
            literal = False
        if line.endswith("::") and not line.startswith((">>>", "...")):
            result += [line[:-1], "", "```python"]
            literal = True
        else:
            result.append(line[4:] if literal else line)
    return "\n".join([*result, "```"] if literal else result)


#: What the docstrings' formulas are made of.
SIGNS = {
    **{
        name: chr(code)
        for code, name in enumerate(
            ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"], 945
        )
    },
    "lambda": "λ",
    "mu": "μ",
    "psi": "ψ",
    "Gamma": "Γ",
    "Delta": "Δ",
    "leftarrow": "←",
    "nabla": "∇",
    "partial": "∂",
    "sum": "Σ",
    "langle": "⟨",
    "rangle": "⟩",
    "min": "min",
    "perp": "⊥",
    "top": "ᵀ",
    "cdot": "·",
    "dot": "d/dt ",
    "le": "≤",
    "ge": "≥",
    "|": "‖",
}


def plain(formula: str) -> str:
    """Return a formula of LaTeX as text; what it does not know stays as it is."""
    formula = re.sub(r"\\frac\{([^}]*)\}\{([^}]*)\}", r"(\1)/(\2)", formula)
    formula = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\1/\2 ", formula)
    formula = re.sub(r"\\mathrm\{(\w+)\}", r"\1", formula).replace("\\,", " ")
    signs = "|".join(sorted(map(re.escape, SIGNS), key=len, reverse=True))
    formula = re.sub(rf"\\({signs})(?![a-zA-Z])", lambda found: SIGNS[found[1]], formula)
    return re.sub(r"([∂∇⟨]) ", r"\1", formula)


def table(found: re.Match[str]) -> str:
    """Return a simple table of reStructuredText as Markdown, its cells' continued lines joined."""
    border, *lines = found[0].split("\n")
    starts = [column.start() for column in re.finditer("=+", border)]
    rows: list[list[str]] = []
    header = 0
    for line in lines[:-1]:
        if line.startswith("="):
            header = len(rows)
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    if not header:
        rows.insert(0, [""] * len(starts))
    written = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([written[0], "|" + " --- |" * len(starts), *written[1:]])


class Markdown(Extension):
    """Translates each docstring once."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Translate the docstring of an object that was read.

        Args:
            obj: Griffe's object.
        """
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
