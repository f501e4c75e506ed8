"""The built site: whole, without anything from other hosts, with every public name and every command."""

from __future__ import annotations

import importlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT
from tests.docs.conftest import COMMAND, build

# What a browser fetches by itself, as opposed to what a reader clicks on.
FETCHED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("iframe", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("video", "src"),
    ("video", "poster"),
    ("audio", "src"),
    ("image", "href"),
    ("use", "href"),
    ("form", "action"),
}
_FOREIGN = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?!data:)[^'\")\s]+)")
_IN_SCRIPT = re.compile(r"(?:fetch|import|importScripts|open|src\s*=|href\s*=)\s*\(?\s*['\"`]((?:https?:)?//[^'\"`]+)")


class _Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if (tag, name) in FETCHED:
                self.found += [part.split()[0] for part in (value or "").split(",") if part.strip()]
            elif name == "style":
                self.found += _IN_STYLE.findall(value or "")

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += _IN_STYLE.findall(data)
        elif self._inside == "script":
            self.found += _IN_SCRIPT.findall(data)


def foreign(folder: Path) -> list[str]:
    """Return ``file: address`` of everything that a browser would fetch from another host."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".html", ".css", ".js", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".html", ".svg"):
            parser = _Fetches()
            parser.feed(text)
            addresses = parser.found
        else:
            addresses = (_IN_STYLE if path.suffix == ".css" else _IN_SCRIPT).findall(text)
        found += [f"{path.relative_to(folder)}: {one}" for one in addresses if _FOREIGN.match(one)]
    return found


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    assert foreign(site) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<link rel="preconnect" href="https://fonts.example">'),
        ("a.html", '<script src="//cdn.example/x.js"></script>'),
        ("a.html", '<img srcset="own.png 1x, https://cdn.example/x.png 2x">'),
        ("a.html", '<div style="background: url(https://cdn.example/x.png)"></div>'),
        ("a.html", '<script>fetch("https://cdn.example/x")</script>'),
        ("a.css", '@import "https://fonts.example/x.css";'),
        ("a.css", "@font-face { src: url('https://fonts.example/x.woff2') }"),
        ("a.js", 'await import("https://cdn.example/x.js")'),
    ],
)
def test_what_comes_from_another_host_is_found(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert len(foreign(tmp_path)) == 1


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert len(pages) > 40
    assert {page for page in pages if not (site / page).is_file()} == set()


def test_every_public_name_has_its_place_and_a_docstring(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, name: base + name)
    places = {
        name: item.uri for kind, items in inventory.items() if kind.startswith("py:") for name, item in items.items()
    }
    for module in ("edgead", "edgead.runtime", "edgead.export"):
        public = importlib.import_module(module)
        page = f"reference/{'python' if module == 'edgead' else module.partition('.')[2]}.html"
        for name in public.__all__:
            assert places.get(f"{module}.{name}", "").partition("#")[0] == page, f"{module}.{name}"
            assert (getattr(public, name).__doc__ or "").strip(), f"{module}.{name} has no docstring"


def test_every_command_has_its_section_and_options(site: Path) -> None:
    from typer.main import get_command

    from edgead.cli import app

    page = (site / "reference" / "cli.html").read_text()
    for name, command in get_command(app).commands.items():
        assert f"<h3>{name}<" in page.replace(f"<h3>edgead {name}<", f"<h3>{name}<"), name
        assert all(option in page for one in command.params for option in one.opts if option.startswith("--")), name


def test_the_page_of_json_names_the_schemas_that_the_code_writes() -> None:
    written = set()
    for floor in ("edgead", "runtime", "export"):
        for path in (ROOT / floor).rglob("*.py"):
            if path.relative_to(ROOT).parts[:2] not in (("edgead", "runtime"), ("edgead", "export")):
                written |= set(re.findall(r"\bedgead\.[a-z][a-z-]*/\d+\b", path.read_text(encoding="utf-8")))
    named = set(re.findall(r"\bedgead\.[a-z][a-z-]*/\d+\b", (DOCS / "reference" / "json.md").read_text()))
    assert len(written) > 30
    assert named == written


def test_the_schema_of_the_manifest_is_shown(site: Path) -> None:
    page = (site / "reference" / "json.html").read_text()
    assert "target_false_alarm_rate" in page
    assert "format_version" in page


def test_make_docs_builds_as_the_test_does() -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sphinx" in line)
    assert " ".join(COMMAND[1:]) in line


@pytest.mark.parametrize(
    ("page", "old", "new", "said"),
    [
        ("concepts/drift.md", "(../camera.md#drift-watch)", "(../camera.md#no-such-heading)", "no-such-heading"),
        ("concepts/drift.md", "(../camera.md#drift-watch)", "(../kamera.md)", "kamera"),
        ("index.md", "tutorials/teach\n", "", "tutorials/teach"),
    ],
)
@pytest.mark.slow
def test_a_broken_link_or_a_lost_page_fails_the_build(page: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / "docs" / page).read_text()
    assert old in text
    (tmp_path / "docs" / page).write_text(text.replace(old, new))
    done = build(tmp_path / "docs", tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


def test_the_search_finds_pages_without_a_server(site: Path, tmp_path: Path) -> None:
    """As a reader opens it from the disk: the index is a script, and nothing is fetched from elsewhere."""
    from tests.runtime.browser import Browser
    from tests.waiting import wait_for

    browser = Browser(tmp_path)
    try:
        browser.open((site / "search.html").as_uri() + "?q=heartbeat")
        results = "document.querySelectorAll('#search-results li').length"
        wait_for(lambda: browser.evaluate(results) > 0)
        wait_for(
            lambda: (
                "finished" in browser.evaluate("document.getElementById('search-results').textContent.toLowerCase()")
            )
        )
        text = browser.evaluate("document.getElementById('search-results').textContent")
        assert "From camera to PLC" in text
        assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "about", "data"}
    finally:
        browser.close()
