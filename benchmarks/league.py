"""The table of docs/league.md, made of signed rows: ``python -m benchmarks.league [FILE…]``.

The rows lie in docs/league/; each is verified, and one that was altered ends it with 2 and leaves the page as it was.
FILEs are verified and copied there first. A row is written on a device with ``edgead bench NAME.edgead --league FILE``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from edgead.runtime.device.league import LeagueFile, read_entry
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.files import atomic_write

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "league"
PAGE = FOLDER.with_suffix(".md")
BEGIN, END = "<!-- rows: generated -->", "<!-- end of rows -->"
_HEADINGS = (
    "device",
    "power mode; watts at most",
    "backend, precision",
    "bundle",
    "p50, ms",
    "p99, ms",
    "measured",
    "references: changed decisions",
    "idle",
    "edgead; signed by",
)


def table(rows: Sequence[LeagueFile]) -> str:
    """Return the rows, the fastest first."""
    ordered = sorted(rows, key=lambda row: row.entry.latency_ms.p50)
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|---" * len(_HEADINGS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, cells(row))) + " |" for row in ordered)])


def cells(row: LeagueFile) -> list[str]:
    """Return what a row shows."""
    entry = row.entry
    after = entry.board.get("after")
    mode = (after.get("power_mode") or after.get("governor") if isinstance(after, dict) else None) or "not told"
    watts = "watts not told" if entry.watts is None else f"{entry.watts:.1f} W"
    schedule = "one after the other" if entry.rate_fps is None else f"{entry.rate_fps:g} fps"
    measured = f"{entry.measured_at[:10]}, {entry.duration_s:g} s, {entry.frames} frames of {entry.camera[0]}x"
    measured += f"{entry.camera[1]}, {schedule}" + (f", {entry.failed} failed" if entry.failed else "")
    changed = entry.accuracy.get("decision_changes")
    bundle = entry.bundle
    return [
        entry.device,
        f"{mode}; {watts}",
        f"{entry.backend.get('name')}, {entry.precision}",
        f"{bundle.name} ({bundle.detector}, {bundle.width}x{bundle.height}), {bundle.sha256[:12]}",
        f"{entry.latency_ms.p50:.2f}",
        f"{entry.latency_ms.p99:.2f}",
        measured,
        f"{len(changed) if isinstance(changed, list) else '?'} of {entry.accuracy.get('references')}",
        "yes" if entry.idle else f"**not idle** (load {entry.load_before:g})",
        f"{entry.versions.get('edgead')}; {row.key_id[:12]}",
    ]


def write_page(rows: Sequence[LeagueFile], page: Path) -> None:
    """Put the rows in their place; raises `ConfigError` where the page has none."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"{page} has no place for the rows: lines {BEGIN} and {END}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    with atomic_write(page, ConfigError) as stream:
        stream.write(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}".encode())


def collect(folder: Path) -> list[LeagueFile]:
    """Read and verify all rows of a folder; raises `DataError` for the first that is wrong."""
    return [read_entry(path) for path in sorted(folder.glob("*.json"))]


def _cell(text: str) -> str:
    """Return text as a cell holds it: strangers' words make no column, no line and no markup."""
    plain = " ".join(str(text).split())[:200]
    return re.sub(r"([|<>`\[\]])", r"\\\1", plain)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args(arguments)
    try:
        for file in given.files:
            row = read_entry(file)
            target = FOLDER / f"{row.entry.measured_at[:10]}-{row.signature.signature[:12]}.json"
            with atomic_write(target, ConfigError) as stream:
                stream.write(file.read_bytes())
        write_page(rows := collect(FOLDER), PAGE)
    except EdgeadError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(rows)} rows, all signatures hold: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
