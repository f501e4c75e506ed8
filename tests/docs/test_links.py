"""Every relative link and anchor of the documentation leads somewhere, as GitHub shows it; nothing is fetched."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

_FENCE = re.compile(r"^(```+|~~~+).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a\s[^>]*(?:id|name)=\"([^\"]+)\"")


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    found: dict[str, int] = {}
    result = set(_ANCHOR.findall(text))
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        result.add(f"{slug}-{number}" if number else slug)
    return result


def links(text: str) -> list[str]:
    """Return the targets of a page's links that are no addresses; code is no link."""
    without = _FENCE.sub("", text)
    # A link's text may be code, so only code outside of links is taken away: what looks like a link in it.
    without = _CODE.sub(lambda found: "code" if "](" in found[0] else found[0], without)
    return [one for one in _LINK.findall(without) if not re.match(r"[a-z][a-z0-9+.-]*:", one)]


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere, with the reason."""
    found = []
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        if not target.exists():
            found.append(f"{link}: there is no such file")
        elif not target.resolve().is_relative_to(ROOT) and ROOT in page.parents:
            found.append(f"{link}: leads out of the project")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            found.append(f"{link}: there is no such heading")
    return found


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_links_to_nowhere_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# One `code` & two\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    good = ["other.md", "other.md#one-code--two", "other.md#twice-1", "#here", "https://example.org/x"]
    bad = ["othr.md", "other.md#three", "other.md#no-heading", "#there", "folder/x.png"]
    page.write_text("# Here\n\n" + "\n".join(f"[`a` text]({one}) and ![p]({one})" for one in good + bad))
    assert [one.partition(":")[0] for one in broken(page)] == [one for one in bad for _ in range(2)]


def test_code_is_no_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`[a](nowhere.md)` ``[b](nowhere.md)``\n\n```\n[c](nowhere.md)\n```\n")
    assert broken(page) == []
