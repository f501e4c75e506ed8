"""Generated tables of docs/kernels.md: each stands between two marks that carry its name."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "kernels.md"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: generated -->\n", f"<!-- end of {name} -->"


def read(name: str) -> str:
    """Text between the marks of a table."""
    begin, end = _marks(name)
    _, found, rest = PAGE.read_text().partition(begin)
    body, closed, _ = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE} has no place for {name}: {begin.strip()} ... {end}")
    return body.strip()


def write(name: str, text: str) -> None:
    """Put a table in its place."""
    begin, end = _marks(name)
    read(name)
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}")
