"""``python -m tests.file_index`` writes docs/files.md: each source file with the first sentence it says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "docs" / "files.md"
_FLOORS = ("edgead", "export", "runtime")
_SUFFIXES = (".py", ".c", ".cpp", ".h", ".hpp", ".cu", ".cuh", ".js")
_HEAD = """# What is in which file

Written by `python -m tests.file_index` from the first sentence of each file; a test compares them. How the rooms belong
together, and which file a usual task leads to, is in [architecture.md](architecture.md).
"""


def source_files() -> list[Path]:
    """Return the tracked source files of the three floors, as paths relative to the root."""
    listed = subprocess.run(["git", "ls-files", *_FLOORS], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in listed.stdout.splitlines()]
    kept = (path for path in paths if path.suffix in _SUFFIXES and not (ROOT / path).is_symlink())
    return sorted(kept, key=lambda path: (path.parent.parts, path.name))


def first_sentence(path: Path) -> str:
    """Return what a file says of itself first, without its line breaks; empty where it says nothing."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?:\"use strict\";)?\s*(?:/\*+(.*?)\*/|((?://[^\n]*\n)+))", text, re.DOTALL)
        said = "" if comment is None else re.sub(r"(?m)^\s*(?://+|\*+)\s?", "", comment[1] or comment[2])
    paragraph = " ".join(said.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s(?=[A-Z`0-9])", paragraph)[0]


def render() -> str:
    """Return the content of the index."""
    parts = [_HEAD]
    room: Path | None = None
    for path in source_files():
        if path.parent != room:
            room = path.parent
            parts.append(f"\n## {room.as_posix()}/\n\n| file | |\n|---|---|\n")
        said = first_sentence(path).replace("|", "\\|")
        parts.append(f"| [{path.name}](../{path.as_posix()}) | {said} |\n")
    return "".join(parts)


if __name__ == "__main__":
    INDEX.write_text(render(), encoding="utf-8")
