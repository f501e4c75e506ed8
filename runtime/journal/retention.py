"""What a journal removes of its own, oldest first, so that it stays within its size and age, and what says so."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.runtime.errors import ConfigError
from edgead.runtime.journal.schema import IMAGES, image_path

SMALLEST = 1_000_000  # bytes
# Rows may take this share of the size; the rest is for images, of which the oldest go first.
_ROWS_SHARE = 0.5
# More than is needed goes at once, so that not every second removes something.
_DOWN_TO = 0.9
_LOOK_S = 60.0
# Rows from before this (2020) were written while the clock was not set yet.
_CLOCK_UNSET_BEFORE_MS = 1_577_836_800_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How large and how old a journal may become.

    Attributes:
        max_bytes: of rows and images together (kept bundles are not counted); 0: no limit.
        max_age_s: rows that are older go, with their images and labels; None: no limit.

    Raises:
        ConfigError: a limit in which nothing has room.
    """

    max_bytes: int = 0
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_bytes and self.max_bytes < SMALLEST:
            raise ConfigError(f"a record needs 1 MB or more, not {self.max_bytes} bytes")
        if self.max_age_s is not None and not self.max_age_s > 0:
            raise ConfigError(f"the age of a record must be above 0, not {self.max_age_s}")


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to go: rows up to ``rows_through``, and images of parts nobody labelled up to ``images_through``."""

    rows_through: int
    images_through: int
    why: str


class Retention:
    """Decides what goes, and removes files after a checkpoint row that says so is on the disk.

    Not thread-safe: the writer's thread asks. Ages of this run's rows are measured, not read from the clock, so that
    setting it removes none; a row of an earlier run from the future, or from before the clock was set, counts as
    written when this run began.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path, limits: Limits) -> None:
        self._connection, self._folder, self._limits = connection, folder, limits
        self._opened, self._opened_ms = time.monotonic(), time.time_ns() // 1_000_000
        self._written: deque[tuple[float, int]] = deque()
        self._next_look = 0.0
        self.rows_through, self.images_through = last_removal(connection)
        self._head: int = self._one("SELECT coalesce(max(seq), 0) FROM rows")
        self._earlier = self._head
        kept = f"kind = 'part' AND image IS NOT NULL AND (seq > ? OR seq IN ({_LABELLED}))"
        self._image_bytes: int = self._one(
            f"SELECT coalesce(sum(image), 0) FROM rows WHERE {kept}", self.images_through
        )
        self._sweep()

    def committed(self, head: int, image_bytes: int) -> None:
        """Count what was written just now."""
        self._head = head
        self._image_bytes += image_bytes
        if self._limits.max_age_s is not None:
            self._written.append((time.monotonic(), head))

    def due(self) -> Removal | None:
        """Return what must go now, None where nothing must."""
        now = time.monotonic()
        age = self._limits.max_age_s
        if age is not None and now >= self._next_look:
            self._next_look = now + min(_LOOK_S, age / 20)
            through = self._older_than(age, now)
            if through > self.rows_through:
                return Removal(through, max(through, self.images_through), "age")
        return self._too_large() if self._limits.max_bytes else None

    def body(self, removal: Removal, hash_before: str) -> dict[str, Any]:
        """Return what the checkpoint row says: with it the chain continues over the rows that are gone."""
        gone = self._one("SELECT count(*) FROM rows WHERE seq <= ?", removal.rows_through)
        return {
            "why": removal.why,
            "rows_through": removal.rows_through,
            "rows": gone,
            "hash": hash_before,
            "images_through": removal.images_through,
        }

    def files(self, removal: Removal) -> list[tuple[int, int]]:
        """Return ``(seq, bytes)`` of the images that go; asked before the rows are deleted."""
        found: list[tuple[int, int]] = self._connection.execute(
            "SELECT seq, image FROM rows WHERE kind = 'part' AND image IS NOT NULL AND ("
            f"(seq <= ? AND (seq > ? OR seq IN ({_LABELLED}))) OR (seq > ? AND seq <= ? AND seq NOT IN ({_LABELLED})))",
            (
                removal.rows_through,
                self.images_through,
                max(self.images_through, removal.rows_through),
                removal.images_through,
            ),
        ).fetchall()
        return found

    def removed(self, removal: Removal, files: Iterable[tuple[int, int]]) -> None:
        """Remove the files, after the checkpoint is on the disk: a crash leaves files too many, never one too few."""
        self.rows_through, self.images_through = removal.rows_through, removal.images_through
        while self._written and self._written[0][1] <= removal.rows_through:
            self._written.popleft()
        folders = set()
        for seq, size in files:
            path = image_path(self._folder, seq)
            self._image_bytes -= size
            folders.add(path.parent)
            with suppress(OSError):  # somebody removed it, or may not: `verify` says what is left
                path.unlink()
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()  # only where it is empty

    def _older_than(self, age: float, now: float) -> int:
        """Return the last row that is older, with all rows before it."""
        elapsed = now - self._opened
        if elapsed <= age:  # then no row of this run is too old
            cutoff = self._opened_ms - round((age - elapsed) * 1000)
            young = self._connection.execute(
                "SELECT seq FROM rows WHERE seq <= ? AND (time_ms > ? OR time_ms < ?) ORDER BY seq LIMIT 1",
                (self._earlier, cutoff, _CLOCK_UNSET_BEFORE_MS),
            ).fetchone()
            return max(self.rows_through, self._earlier if young is None else young[0] - 1)
        through = max(self.rows_through, self._earlier)
        for written, head in self._written:
            if now - written <= age:
                break
            through = max(through, head)
        return through

    def _too_large(self) -> Removal | None:
        pages, free, size = (self._one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        rows_bytes, most = (pages - free) * size, self._limits.max_bytes
        if rows_bytes <= _ROWS_SHARE * most and rows_bytes + self._image_bytes <= most:
            return None
        through, spared = self.rows_through, 0
        if rows_bytes > _ROWS_SHARE * most:
            first = self._one("SELECT coalesce(min(seq), 0) FROM rows")
            count = self._head - first + 1
            share = 1 - _DOWN_TO * _ROWS_SHARE * most / rows_bytes
            # The newest row stays: it is the one that the checkpoint follows.
            through = min(self._head - 1, first + int(count * share))
            spared = rows_bytes * (through - first + 1) // max(1, count)
        images = max(through, self.images_through)
        over = rows_bytes - spared + self._image_bytes - round(_DOWN_TO * most)
        over -= sum(n for _, n in self.files(Removal(through, images, "")))
        for seq, bytes_ in self._connection.execute(
            "SELECT seq, image FROM rows WHERE kind = 'part' AND image IS NOT NULL AND seq > ? "
            f"AND seq NOT IN ({_LABELLED}) ORDER BY seq",
            (images,),
        ):
            if over <= 0:
                break
            over, images = over - bytes_, seq
        if over > 0 and through < self._head - 1:
            # Only images of labelled parts are left: the oldest of them go with their rows.
            for seq, bytes_ in self._connection.execute(
                f"SELECT seq, image FROM rows WHERE image IS NOT NULL AND seq > ? AND seq IN ({_LABELLED}) "
                "ORDER BY seq",
                (through,),
            ):
                if over <= 0 or seq >= self._head:
                    break
                over, through = over - bytes_, seq
        if through == self.rows_through and images == self.images_through:
            return None
        return Removal(through, max(images, through), "size")

    def _sweep(self) -> None:
        """Remove what a crash left: images of rows that are gone, or that were never written."""
        root = self._folder / IMAGES
        if not root.is_dir():
            return
        labelled = {seq for (seq,) in self._connection.execute(_LABELLED)}
        gone = max(self.rows_through, self.images_through)
        for folder in root.iterdir():
            number = int(folder.name) if folder.name.isdecimal() else -1
            if not (0 <= number <= gone // 1000 or number >= self._head // 1000):
                continue
            for path in folder.iterdir():
                seq = int(path.stem) if path.stem.isdecimal() else -1
                spared = seq in labelled and seq > self.rows_through
                if path.name.endswith(".tmp") or (0 <= seq <= gone and not spared) or seq > self._head:
                    with suppress(OSError):
                        path.unlink()
            with suppress(OSError):
                folder.rmdir()

    def _one(self, query: str, *values: Any) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])


_LABELLED = "SELECT ref FROM rows WHERE kind <> 'part' AND kind = 'label' AND ref IS NOT NULL"


def last_removal(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return ``(rows_through, images_through)`` of the last checkpoint row, 0 each where there is none."""
    found = connection.execute(
        "SELECT body FROM rows WHERE kind <> 'part' AND kind = 'checkpoint' ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    if found is None:
        return 0, 0
    body = json.loads(found[0])
    return int(body["rows_through"]), int(body["images_through"])
