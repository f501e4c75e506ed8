"""A journal read beside its writer: parts, labels, what judged, and the stored pixels."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.files import reason
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.journal import images
from edgead.runtime.journal.retention import last_removal
from edgead.runtime.journal.rows import KINDS, Row, frame_digest, map_digest
from edgead.runtime.journal.schema import COLUMNS, FILE, bundle_path, image_path, meta, open_for_reading
from edgead.runtime.journal.schema import setup_digest as digest_of

_PAGE = 2000


class JournalReader:
    """Reads the journal of a folder; its writer goes on meanwhile. Use as a context manager, or call `close`.

    One thread at a time. Rows that are written while `rows` or `parts` goes on may or may not be among them.

    Args:
        folder: what ``--record`` was given.

    Raises:
        ConfigError: there is no journal, it is of another version, or damaged beyond reading.

    Example:
        >>> with JournalReader("line3") as reader:
        ...     for part in reader.parts(part="4711"):
        ...         print(part.decision, part.score, [label.body["label"] for label in reader.labels(part.seq)])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._connection = open_for_reading(self.folder)

    def rows(
        self,
        kind: str | None = None,
        *,
        part: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        after: int = 0,
    ) -> Iterator[Row]:
        """Yield rows in the order in which they were written.

        Args:
            kind: of this `Kind` only.
            part: of the part with this id only, its labels too.
            since_ms, until_ms: with this wall clock or later, or before.
            after: with a higher ``seq`` only.
        """
        where, values = _conditions(kind, part, since_ms, until_ms)
        while True:
            # A page at a time: a reader that holds one long query open keeps the log beside the file from shrinking.
            page = self._all(
                f"SELECT {_NAMES} FROM rows WHERE seq > ?{where} ORDER BY seq LIMIT {_PAGE}", after, *values
            )
            for stored in page:
                yield Row.stored(stored)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def last(
        self,
        count: int,
        kind: str | None = None,
        *,
        part: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> list[Row]:
        """Return the last rows of those that `rows` yields, the newest last."""
        where, values = _conditions(kind, part, since_ms, until_ms)
        query = f"SELECT {_NAMES} FROM rows WHERE seq > 0{where} ORDER BY seq DESC LIMIT ?"
        return [Row.stored(stored) for stored in reversed(self._all(query, *values, count))]

    def rejected(self, count: int, *, before: int | None = None) -> list[Row]:
        """Return the last parts that were not `OK`, the newest last; ``before``: with a lower ``seq`` only."""
        query = (
            f"SELECT {_NAMES} FROM rows WHERE decision <> 'OK' AND kind = 'part' AND seq < ? ORDER BY seq DESC LIMIT ?"
        )
        return [Row.stored(stored) for stored in reversed(self._all(query, before or (1 << 62), count))]

    def parts(
        self, *, part: str | None = None, since_ms: int | None = None, until_ms: int | None = None, after: int = 0
    ) -> Iterator[Row]:
        """Yield the rows of judged parts, as `rows`."""
        return self.rows("part", part=part, since_ms=since_ms, until_ms=until_ms, after=after)

    def part(self, seq: int) -> Row:
        """Return the row of a part by its number.

        Raises:
            ConfigError: there is no such part, or no longer.
        """
        found = self._all(f"SELECT {_NAMES} FROM rows WHERE seq = ?", seq)
        row = Row.stored(found[0]) if found else None
        if row is None or row.kind != "part":
            raise ConfigError(f"the record {self.folder} has no part in row {seq}; it may have been removed")
        return row

    def labels(self, part_seq: int | None = None) -> list[Row]:
        """Return all labels, or those of one part, in the order in which they were given; each is kept."""
        if part_seq is None:
            return list(self.rows("label"))
        found = self._all(f"SELECT {_NAMES} FROM rows WHERE ref = ? ORDER BY seq", part_seq)
        return [row for row in map(Row.stored, found) if row.kind == "label"]

    def setup(self, part: Row) -> dict[str, Any]:
        """Return what judged a part: ``bundle`` (SHA-256), ``model``, ``precision``, ``backend``, ``machine``, ….

        Raises:
            DataError: the row names none, or it is missing or altered.
        """
        name = part.body.get("setup")
        if name is None:
            raise DataError(f"row {part.seq} does not say what judged it")
        found = self._all("SELECT body FROM setups WHERE digest = ?", name)
        try:
            setup = json.loads(found[0][0])
            if digest_of(setup) != name:
                raise ValueError
        except (IndexError, ValueError, TypeError) as error:
            raise DataError(
                f"what judged row {part.seq} is missing; run: edgead record verify {self.folder}"
            ) from error
        return dict(setup)

    def frame(self, part: Row) -> Frame:
        """Return the stored pixels of a part, just as they were judged.

        Raises:
            DataError: none were kept, the file is missing, or it holds other pixels than were judged.
        """
        if part.image is None:
            why = part.body.get("no_image", "the record was not asked to keep it")
            raise DataError(f"row {part.seq} has no image: {why}")
        path = image_path(self.folder, part.seq)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image of row {part.seq}, {path}: {reason(error)}") from error
        layout = str(part.body["layout"])
        pixels = images.decode(data, layout, str(path))
        frame = Frame(
            pixels,
            int(part.body["frame"]),
            0,
            str(part.body["source"]),
            layout,  # type: ignore[arg-type]  # which Frame checks
            part.body.get("name"),
            part.part,
        )
        if frame_digest(frame) != part.body["pixels"]:
            raise DataError(f"{path} holds other pixels than row {part.seq} judged")
        return frame

    def result(self, part: Row) -> Result:
        """Return a part's decision as a `Result`, with its anomaly map where its image was kept.

        Raises:
            DataError: the image is missing, or its map is another one than was judged.
        """
        body = part.body
        grid, place = None, dict[str, Any]()
        if part.image is not None:
            path = image_path(self.folder, part.seq)
            try:
                found = images.decode_map(path.read_bytes(), str(path))
            except OSError as error:
                raise DataError(f"cannot read the image of row {part.seq}, {path}: {reason(error)}") from error
            if found is not None:
                grid, place = found
                if map_digest(grid) != body.get("map"):
                    raise DataError(f"{path} holds another anomaly map than row {part.seq} gave")
        return Result(
            math.nan if part.score is None else part.score,
            math.nan if body.get("threshold") is None else body["threshold"],
            Decision(part.decision),
            int(body["frame"]),
            0,
            str(body["source"]),
            body.get("category"),
            grid,
            body.get("timings_ms", {}),
            body.get("reason"),
            body.get("name"),
            part_id=part.part,
            **place,
        )

    def image_removed(self, part: Row) -> bool:
        """Say whether a part's image is gone because the record was to stay within its limits; a row says so."""
        return part.seq <= self.images_removed_through() and not image_path(self.folder, part.seq).is_file()

    def images_removed_through(self) -> int:
        """Return the row up to which images were removed, but for those of parts that were labelled by then."""
        return last_removal(self._connection)[1]

    @property
    def journal_id(self) -> str:
        """What tells this journal from every other."""
        return meta(self._connection)["id"]

    def bundle(self, sha256: str) -> Path:
        """Return where the kept bundle of a digest lies; raises `DataError` where it is missing."""
        path = bundle_path(self.folder, sha256)
        if not path.is_file():
            raise DataError(f"the bundle {sha256[:12]}… is not kept in {path.parent}; give it with --bundle")
        return path

    def counts(self) -> dict[str, int]:
        """Return how many rows there are of each kind."""
        return dict(self._all("SELECT kind, count(*) FROM rows GROUP BY kind ORDER BY kind"))

    def head(self) -> tuple[int, str]:
        """Return the number and hash of the last row; who keeps them elsewhere can prove later that nothing is gone."""
        said = meta(self._connection)
        return int(said["head_seq"]), said["head_hash"]

    def close(self) -> None:
        """Close the file; calling it twice is allowed."""
        self._connection.close()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _all(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"cannot read {self.folder / FILE}: {reason(error)}") from error


_NAMES = ", ".join(COLUMNS)


def _conditions(
    kind: str | None, part: str | None, since_ms: int | None, until_ms: int | None
) -> tuple[str, list[str | int]]:
    """Return what follows a WHERE, and its values."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of row '{kind}'.{suggest(kind, KINDS)}")
    # SQLite uses an index of some rows only where the query has the index's own words.
    of_kind = "kind = ?" if kind == "part" else "kind <> 'part' AND kind = ?"
    conditions = [(of_kind, kind), ("part = ?", part), ("time_ms >= ?", since_ms), ("time_ms < ?", until_ms)]
    given = [(text, value) for text, value in conditions if value is not None]
    return "".join(f" AND {text}" for text, _ in given), [value for _, value in given]
