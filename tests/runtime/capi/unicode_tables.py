"""``python -m tests.runtime.capi.unicode_tables`` writes the tables of libedgead that come from Unicode.

``src/unprintable.h``: what ``str.isprintable`` is False of. ``src/letters.h``: letters beyond ASCII that a member's
name may hold, and what they become where case is ignored. Only letters that stand by themselves: a combining mark, or
a script that is not listed, would need all of Unicode's normalisation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[3] / "runtime" / "capi" / "src"
# Latin, Greek, Cyrillic, kana, Chinese characters, Hangul.
BLOCKS = [(0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]
# The Unicode version that the tables are of; later ones only add.
VERSION = "14.0.0"


def ranges(points: Iterable[int], holds: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Return first and last of each run of code points of which something holds."""
    found: list[tuple[int, int]] = []
    for point in points:
        if not holds(chr(point)):
            continue
        if found and found[-1][1] == point - 1:
            found[-1] = found[-1][0], point
        else:
            found.append((point, point))
    return found


def stands_alone(letter: str) -> bool:
    """Whether a letter is printed, and neither joins the one before it nor is another one once normalised."""
    alone = unicodedata.combining(letter) == 0 and unicodedata.category(letter) != "Mn"
    joins = any(unicodedata.normalize("NFC", base + letter) != base + letter for base in "aeiouAEIOUかカウうは")
    return letter.isprintable() and alone and not joins and unicodedata.normalize("NFC", letter) == letter


def folded(letter: str) -> str:
    """What a letter becomes where case is ignored, as `edgead.runtime.bundle.layout.fold_name`."""
    return unicodedata.normalize("NFC", letter.casefold())


def letters() -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Return the ranges of letters that are taken, and what those become that change."""
    points = [point for first, last in BLOCKS for point in range(first, last + 1)]
    taken = ranges(points, stands_alone)
    inside = [point for first, last in taken for point in range(first, last + 1)]
    return taken, {point: folded(chr(point)) for point in inside if folded(chr(point)) != chr(point)}


def wrapped(items: Iterable[str]) -> str:
    """Return items with commas on lines of at most 118 characters."""
    lines, line = [], ""
    for item in items:
        if len(line) + len(item) > 116:
            lines.append(line.rstrip())
            line = ""
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip()]) + "\n"


def pairs(found: list[tuple[int, int]]) -> str:
    """Return ranges as the members of an array."""
    return wrapped(f"{{0x{first:x}, 0x{last:x}}}" for first, last in found)


def hexadecimal(text: str) -> str:
    """Return the bytes of a text as C writes them."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def render() -> dict[str, str]:
    """Return the content of each file by its name."""
    unprintable = ranges(range(0x110000), lambda letter: not letter.isprintable())
    taken, changes = letters()
    escaped = (f'{{0x{point:x}, "{hexadecimal(text)}"}}' for point, text in changes.items())
    head = "// {} of Unicode {}; written by tests/runtime/capi/unicode_tables.py.\n"
    return {
        "unprintable.h": head.format("Ranges of code points that Python does not print,", VERSION) + pairs(unprintable),
        "letters.h": head.format("Letters beyond ASCII that a member's name may hold,", VERSION)
        + "static const uint32_t LETTERS[][2] = {\n"
        + pairs(taken)
        + "};\n// What they become where case is ignored.\n"
        + "static const struct {\n    uint32_t point;\n    const char *folded;\n} FOLDED[] = {\n"
        + wrapped(escaped)
        + "};\n",
    }


if __name__ == "__main__":
    for file, content in render().items():
        (SOURCES / file).write_text(content, encoding="utf-8")
