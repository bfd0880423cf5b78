"""What MkDocs does besides: runs the code of the pages, writes the reference and the pages that come from the code.

``FUBINI_DOCS=quick`` leaves the code of the pages unrun, and the table of gates untried.
"""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import architecture
import gates
import pages
import public_names

QUICK = os.environ.get("FUBINI_DOCS") == "quick"


def on_config(config: Any) -> Any:
    """Give the site the address that ``pyproject.toml`` has for it.

    Args:
        config: MkDocs' configuration.

    Returns:
        The configuration.
    """
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    config["site_url"] = project["urls"]["Documentation"]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is computed.

    Args:
        markdown: The source of the page.
        page: MkDocs' page.

    Returns:
        The source with outputs, pictures and tables.
    """
    name = page.file.src_uri
    if name == "changelog.md":
        return (HERE.parent / "CHANGELOG.md").read_text()
    if "<!-- architecture -->" in markdown:
        markdown = markdown.replace("<!-- architecture -->", architecture.svg())
    if "<!-- support -->" in markdown:
        table = (
            "The table is left out of quick builds."
            if QUICK
            else pages.kept("support", gates.markdown)
        )
        markdown = markdown.replace("<!-- support -->", table)
    markdown = re.sub(r"<!-- names: (.*?) -->", lambda m: public_names.entries(m[1]), markdown)
    markdown = re.sub(r"<!-- from (\S+): (.*?) -->", lambda m: pages.section(m[1], m[2]), markdown)
    if re.search(r"^```python$", markdown, flags=re.MULTILINE) and not QUICK:
        markdown = pages.executed(markdown, HERE / name)
    return markdown
