"""The fenced blocks of a page, and what the comment above each says of running it.

| comment | the block |
|---|---|
| `<!-- run -->` | runs, in a folder that all blocks of the page share |
| `<!-- images -->` | makes the images; where a page runs small, the test makes fewer |
| `<!-- file: NAME -->` | is written to that file, for later blocks |
| `<!-- background: TEXT -->` | runs until the page ends; the next block begins when it has printed TEXT |
| `<!-- not run: REASON -->` | cannot run here |

A `text` block right after one that runs is what that prints: numbers may differ, and `…` stands for anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CODE = ("bash", "python", "powershell", "sh", "console")  # a block of these needs a mark

_BLOCK = re.compile(
    r"^(?:<!--[ ](?P<mark>.*?)[ ]-->\n)?^(?P<fence>```+)(?P<language>[a-z]*)\n(?P<text>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"(run|images|file|background|not run)(?:: (.+))?", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*(?:e[-+]\d+)?")
_FRAME = re.compile(r"[\u2500-\u257f\s]+")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: where it begins, from 1.
        kind: ``run``, ``images``, ``file``, ``background`` or ``not run``.
        detail: what stands behind the colon of the mark.
        prints: the `text` block after it, empty where there is none.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    detail: str
    prints: str = ""


class MarkError(ValueError):
    """A block has no mark, or one that says nothing."""


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that are code.

    Raises:
        MarkError: a block of code has no mark, an unknown one, or none with what belongs to it.
    """
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else page.name
    found: list[Block] = []
    end = -1
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        place = f"{name}:{line}"
        follows = text[end : match.start()].strip() == "" if end >= 0 else False
        end = match.end()
        if match["language"] == "text":
            if follows and found and found[-1].kind in ("run", "images"):
                found[-1] = Block(**{**vars(found[-1]), "prints": match["text"]})
            continue
        if match["language"] not in CODE:
            if match["mark"] and _MARK.fullmatch(match["mark"]):
                raise MarkError(f"{place}: a mark above a block whose language is none of {', '.join(CODE)}")
            continue
        mark = _MARK.fullmatch(match["mark"] or "")
        if mark is None:
            raise MarkError(f"{place}: no mark above the block; see tests/docs/blocks.py")
        kind, detail = mark[1], (mark[2] or "").strip()
        if (kind in ("file", "background", "not run")) != bool(detail):
            raise MarkError(f"{place}: '{kind}' {'needs' if not detail else 'takes no'} text behind a colon")
        found.append(Block(name, line, match["language"], match["text"], kind, detail))
    return found


def shows(printed: str, expected: str) -> str | None:
    """Return the first line of ``expected`` that ``printed`` does not show in its place; None where all are there."""
    text, place = _plain(printed), 0
    for line in expected.splitlines():
        wanted = ".*?".join(re.escape(part) for part in map(_plain, line.split("…")) if part)
        found = re.compile(wanted).search(text, place)
        if found is None:
            return line
        place = found.end()
    return None


def _plain(text: str) -> str:
    return _NUMBER.sub("0", _FRAME.sub(" ", text)).strip()
