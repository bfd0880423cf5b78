"""The picture of the package: one box per folder, one arrow per import that no other path explains.

The order is that of the test that guards it, the arrows are read from the source.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python/fubini"
HEIGHT, GAP, LEFT, WIDTH = 34, 12, 150, 520


def order() -> list[str]:
    """Return the folders, lowest first, as tests/test_layering.py states them."""
    path = next((ROOT / "tests").rglob("test_layering.py"))
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ORDER":
            found: tuple[str, ...] = ast.literal_eval(node.value)
            return [name for name in found if (PACKAGE / name).is_dir()]
    raise LookupError("test_layering.py: expected ORDER, found none")


def arrows() -> set[tuple[str, str]]:
    """Return who imports whom, folder by folder."""
    found = set()
    for folder in order():
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    parts = name.split(".")
                    if parts[0] == "fubini" and len(parts) > 1 and parts[1] in order():
                        found.add((folder, parts[1]))
    return {(a, b) for a, b in found if a != b}


def direct(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that no longer path replaces."""

    def reached(start: str, goal: str) -> bool:
        return any(b == goal or reached(b, goal) for a, b in edges if a == start)

    return {
        (a, b) for a, b in edges if not any(c != b and reached(c, b) for x, c in edges if x == a)
    }


def sentence(folder: str) -> str:
    """Return what a folder says that it is, without the dot."""
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or folder
    text = text.split("\n\n")[0].replace("\n", " ").replace("`", "").rstrip(".")
    return text if len(text) < 96 else text[:93] + "..."


def svg() -> str:
    """Return the picture, in the colours of the page."""
    folders = order()[::-1]  # who is asked stands below
    y = {name: 10 + i * (HEIGHT + GAP) for i, name in enumerate(folders)}
    right = LEFT + WIDTH
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 130} {y[folders[-1]] + HEIGHT + 64}" '
            'role="img" aria-label="Folders of the package and who imports whom" font-family="sans-serif" '
            'fill="currentColor" stroke="currentColor">'
        ),
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" stroke="none"/></marker></defs>'
        ),
    ]
    for name in folders:
        parts += [
            f'<rect x="10" y="{y[name]}" width="{right - 10}" height="{HEIGHT}" rx="6" fill="none"/>',
            f'<text x="24" y="{y[name] + 22}" font-size="14" font-weight="bold" stroke="none">{name}</text>',
            f'<text x="{LEFT - 20}" y="{y[name] + 22}" font-size="11.5" stroke="none">{escaped(sentence(name))}</text>',
        ]
    for i, (a, b) in enumerate(sorted(direct(arrows()), key=lambda e: y[e[1]] - y[e[0]])):
        start, end = y[a] + HEIGHT / 2 + 4, y[b] + HEIGHT / 2 - 4
        bend = right + 12 + (end - start) * 0.33 + 3 * (i % 3)
        parts.append(
            f'<path d="M{right} {start}C{bend:.0f} {start} {bend:.0f} {end} {right + 1} {end}" fill="none" '
            'opacity="0.75" marker-end="url(#tip)"/>'
        )
    ground = y[folders[-1]] + HEIGHT + GAP
    parts.append(
        f'<rect x="10" y="{ground}" width="{right - 10}" height="{HEIGHT}" rx="6" fill="none" stroke-dasharray="5 3"/>'
        f'<text x="24" y="{ground + 22}" font-size="12.5" stroke="none">C++ core (cpp/core), behind cpp/bind: numbers in, '
        "numbers out; knows neither Python nor torch</text></svg>"
    )
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Return text for XML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


if __name__ == "__main__":
    print(svg())
