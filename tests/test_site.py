"""The documentation: it lists every public name, its code compiles, and a browser opens every page."""

import ast
import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILT = ROOT / "build/site"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DEMONSTRATION = DOCS / "pennylane_demo"
PAGES = sorted(set(DOCS.rglob("*.md")) - set(DEMONSTRATION.glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_code_of_the_pages_is_code(page):
    for language, block in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        if language in ("python", "py"):
            ast.parse(block)


def test_sections_of_other_files_are_found():
    sys.path.insert(0, str(DOCS))
    import pages

    for page in PAGES:
        for file, heading in re.findall(r"<!-- from (\S+): (.*?) -->", page.read_text()):
            assert "| --- |" in pages.section(file, heading)
    with pytest.raises(ValueError, match="expected a heading 'Nothing'"):
        pages.section("README.md", "Nothing")


def test_every_page_is_in_the_menu():
    menu = re.findall(r"^\s+- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_address_of_the_project_stands_in_one_place():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    address = urls["Documentation"]
    assert all(url.startswith(address) for url in urls.values())
    assert "site_url" not in (ROOT / "mkdocs.yml").read_text()  # hooks.py reads pyproject.toml
    assert f"<{address.rstrip('/')}>" in (DEMONSTRATION / "demo.py").read_text()
    for page in [*PAGES, ROOT / "README.md"]:
        assert address not in page.read_text()


#: Other sites that may be linked to. A job asks them every week whether the pages are still there.
KNOWN = {"arxiv.org", "doi.org", "pennylane.ai", "docs.pennylane.ai", "pytorch.org"}


def test_links_to_other_sites_are_whole():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    known = KNOWN | {urllib.parse.urlsplit(urls["Documentation"]).hostname}
    for page in [*PAGES, ROOT / "README.md", ROOT / "CITATION.cff", DEMONSTRATION / "demo.py"]:
        for link in re.findall(r"https?://[^\s)>\"'`]+", page.read_text()):
            parts = urllib.parse.urlsplit(link.rstrip(".,;"))
            assert parts.scheme == "https", link
            assert parts.hostname in known, link
            if parts.hostname == "arxiv.org":
                assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}(v\d+)?", parts.path), link
            if parts.hostname == "doi.org":
                assert re.fullmatch(r"/10\.\d{4,9}/\S+", parts.path), link


def test_the_demonstration_for_pennylane_has_what_its_collection_asks_for():
    metadata = json.loads((DEMONSTRATION / "metadata.json").read_text())
    text = ast.get_docstring(ast.parse((DEMONSTRATION / "demo.py").read_text())) or ""
    assert text.splitlines()[0] == metadata["title"]
    assert text.splitlines()[1] == "=" * len(metadata["title"])
    assert metadata["previewImages"][0]["uri"].removeprefix("/_static/") in text
    for reference in metadata["references"]:
        assert f"[#{reference['id']}]_" in (DEMONSTRATION / "demo.py").read_text()
    for needed in ("fubini", "torch", "pennylane"):
        assert needed in (DEMONSTRATION / "requirements.in").read_text().split()


@pytest.mark.slow
def test_the_demonstration_for_pennylane_runs(tmp_path):
    for script, arguments in (("demo.py", []), ("thumbnail.py", [str(tmp_path / "x.png")])):
        result = subprocess.run(
            [sys.executable, str(DEMONSTRATION / script), *arguments],
            env={**os.environ, "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the site on this machine; built without running its code, unless it is there."""
    if not (BUILT / "index.html").exists():
        if importlib.util.find_spec("mkdocs") is None:
            pytest.skip("no mkdocs: pip install '.[docs]'")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q"]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "FUBINI_DOCS": "quick"})
    handler = functools.partial(Quiet, directory=str(BUILT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_opens_every_page(site):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install '.[docs]'"
    )
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        troubles: list[str] = []
        tab.on(
            "console",
            lambda m: troubles.append(f"{tab.url}: {m.text}") if m.type == "error" else None,
        )
        tab.on("pageerror", lambda e: troubles.append(f"{tab.url}: {e}"))
        tab.on("requestfailed", lambda r: troubles.append(f"{tab.url}: {r.url} {r.failure}"))
        tab.on(
            "request",
            lambda r: (
                troubles.append(r.url) if not r.url.startswith((site, "data:", "blob:")) else None
            ),
        )
        for page in sorted(BUILT.rglob("index.html")):
            tab.goto(site + page.relative_to(BUILT).parent.as_posix() + "/")
            assert tab.title(), page
            assert len(tab.inner_text("article")) > 50, page
            broken = "images => images.filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80))"
            assert tab.eval_on_selector_all("article img", broken) == [], page
        tab.goto(site, wait_until="networkidle")
        tab.click("input.md-search__input")
        tab.wait_for_function(
            "document.querySelector('.md-search-result__meta').innerText.includes('start')"
        )
        tab.keyboard.type("LevenbergMarquardt", delay=20)
        tab.wait_for_selector(".md-search-result__item a", state="attached", timeout=60_000)
        assert "/" in (tab.get_attribute(".md-search-result__item a", "href") or "")
        browser.close()
    assert troubles == []
