"""Whether a journal is whole: every row unaltered and in its place, every image and bundle what its row says."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.runtime.journal.schema import (
    COLUMNS,
    FILE,
    bundle_path,
    chain_hash,
    covered,
    first_hash,
    head_message,
    image_path,
    meta,
    open_for_reading,
)
from edgead.runtime.signing import signature_holds

_PAGE = 5000


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        rows, first, head, head_hash: how many rows there are, the numbers of the first and last, the last one's hash.
        removed: rows that retention removed since the journal began.
        images: that were read and compared; images_removed: that retention removed, and said so.
        signature: ``none``, ``valid``, or ``valid, by the key in the journal itself`` where no other was given.
        problems: one line each; empty where the journal is whole.
    """

    rows: int = 0
    first: int = 0
    head: int = 0
    head_hash: str = ""
    removed: int = 0
    images: int = 0
    images_removed: int = 0
    bundles: int = 0
    signature: str = "none"
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.record-verify/1``."""
        return {"schema": "edgead.record-verify/1", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Known:
    """What somebody kept elsewhere: a head ``(seq, hash)`` of earlier, and the public key in hexadecimal."""

    head: tuple[int, str] | None = None
    public_key: str | None = None


def verify(
    folder: str | Path,
    *,
    images: bool = True,
    known: Known | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Go through a whole journal, all of one instant; its writer may go on meanwhile.

    Found are rows that were removed, altered, added or exchanged, images that are missing or hold other pixels,
    bundles and setups that are missing or altered, and a head that is not the last row's. Who can write the file can
    make it anew as a whole, unless its head was signed, or kept elsewhere: see ``known``.

    Args:
        folder: what ``--record`` was given.
        images: read the images too; False: look only whether they are there.
        known: what was kept elsewhere.
        progress: called with rows done and in all.

    Raises:
        ConfigError: no journal, or of another version; or its key cannot be used.
    """
    folder = Path(folder)
    connection = open_for_reading(folder)
    report = VerifyReport()
    try:
        connection.execute("BEGIN")
        _Verifier(connection, folder, report, images, known or Known()).run(progress or (lambda *_: None))
    except sqlite3.Error as error:
        report.problems.append(f"{folder / FILE} cannot be read on: {reason(error)}")
    finally:
        connection.close()
    return report


class _Verifier:
    def __init__(
        self, connection: sqlite3.Connection, folder: Path, report: VerifyReport, images: bool, known: Known
    ) -> None:
        self._connection, self._folder, self._report = connection, folder, report
        self._look, self._known = images, known
        self._meta = meta(connection)
        self._found_head = False
        self._images_through: list[tuple[int, int]] = []  # (seq of the checkpoint, images through)
        self._labels: dict[int, int] = {}  # part -> its first label
        self._setups: set[str] = set()
        self._missing: list[tuple[int, str]] = []

    def run(self, progress: Callable[[int, int], None]) -> None:
        total = self._connection.execute("SELECT count(*) FROM rows").fetchone()[0]
        before, last = self._beginning()
        self._report.first = last + 1
        with JournalReader(self._folder) as reader:
            for stored in self._stored():
                before = self._row(stored, before, last)
                last = int(stored[0])
                self._report.rows += 1
                self._content(stored, reader)
                progress(self._report.rows, total)
        self._report.head, self._report.head_hash = last, before.hex()
        self._check_head(last, before)
        self._check_missing()
        self._check_setups()

    def _say(self, problem: str) -> None:
        self._report.problems.append(problem)

    def _beginning(self) -> tuple[bytes, int]:
        """Return the hash and number before the first row, which the last checkpoint says."""
        found = self._connection.execute(
            "SELECT seq, body FROM rows WHERE kind <> 'part' AND kind = 'checkpoint' ORDER BY seq"
        ).fetchall()
        start: tuple[bytes, int] = (first_hash(self._meta.get("id", "")), 0)
        for seq, text in found:
            try:
                body = json.loads(text)
                self._images_through.append((seq, int(body["images_through"])))
                start = bytes.fromhex(body["hash"]), int(body["rows_through"])
            except (ValueError, KeyError, TypeError):
                self._say(f"row {seq} is a checkpoint that says nothing")
        self._report.removed = start[1]
        return start

    def _stored(self) -> Iterator[tuple[Any, ...]]:
        after = -1
        while page := self._connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM rows WHERE seq > ? ORDER BY seq LIMIT {_PAGE}", (after,)
        ).fetchall():
            yield from page
            after = page[-1][0]

    def _row(self, stored: tuple[Any, ...], before: bytes, last: int) -> bytes:
        """Check one row's place and hash; returns the hash to go on with."""
        seq = int(stored[0])
        if seq != last + 1:
            gone = f"row {last + 1} is" if seq == last + 2 else f"rows {last + 1} to {seq - 1} are"
            self._say(f"{gone} missing")
        kept = bytes(stored[9]) if isinstance(stored[9], bytes) else b""
        try:
            right = chain_hash(before, covered(stored)) == kept
        except (TypeError, ValueError):
            right = False
        # After a gap the hash before is not known; the row itself may be as it was.
        if not right and seq == last + 1:
            self._say(f"row {seq} was altered, or its place in the chain was")
        if self._known.head is not None and self._known.head[0] == seq:
            self._found_head = True
            if self._known.head[1] != kept.hex():
                self._say(f"row {seq} has another hash than the head that was kept: the record was made anew")
        return kept

    def _content(self, stored: tuple[Any, ...], reader: JournalReader) -> None:
        try:
            row = Row.stored(stored)
        except DataError:
            self._say(f"row {stored[0]} cannot be read")
            return
        if row.kind == "label" and row.ref is not None:
            self._labels.setdefault(row.ref, row.seq)
        if row.kind != "part":
            return
        if "setup" in row.body:
            self._setups.add(str(row.body["setup"]))
        if row.image is None:
            return
        path = image_path(self._folder, row.seq)
        if not path.is_file():
            self._missing.append((row.seq, f"the image of row {row.seq} is missing: {path}"))
            return
        if not self._look:
            return
        self._report.images += 1
        try:
            reader.frame(row)
            reader.result(row)
        except (DataError, ConfigError, KeyError, TypeError, ValueError) as error:
            self._say(str(error) if isinstance(error, DataError) else f"row {row.seq} does not say what its image is")

    def _check_missing(self) -> None:
        """Tell images that retention removed, and said so before it did, from those that are just gone."""
        # Also what it removed while this went on: the rows are of one instant, the files are not.
        self._connection.execute("COMMIT")
        for seq, text in self._connection.execute(
            "SELECT seq, body FROM rows WHERE kind <> 'part' AND kind = 'checkpoint' ORDER BY seq"
        ):
            if seq > self._report.head:
                self._images_through.append((seq, int(json.loads(text)["images_through"])))
        for seq, problem in self._missing:
            removed = any(
                seq <= through and not self._labels.get(seq, checkpoint) < checkpoint
                for checkpoint, through in self._images_through
            )
            if removed:
                self._report.images_removed += 1
            else:
                self._say(problem)

    def _check_head(self, last: int, before: bytes) -> None:
        seq, head = self._meta.get("head_seq", ""), self._meta.get("head_hash", "")
        if seq != str(last):
            self._say(f"the head is row {seq}, and the last row is {last}: rows at the end are missing or were added")
        elif head != before.hex():
            self._say(f"the head's hash is not the one of row {last}")
        if self._known.head is not None and not self._found_head and self._known.head[0] > self._report.removed:
            self._say(f"row {self._known.head[0]}, the head that was kept, is missing")
        self._check_signature(seq, head)

    def _check_signature(self, seq: str, head: str) -> None:
        wanted, own, signature = self._known.public_key, self._meta.get("public_key"), self._meta.get("signature")
        if own is None or signature is None:
            if wanted is not None:
                self._say("the head is not signed")
            return
        if wanted is not None and wanted != own:
            self._say("the head is signed with another key")
        elif not signature_holds(own, signature, head_message(self._meta["id"], seq, head)):
            self._say("the signature of the head is wrong")
        else:
            self._report.signature = "valid" if wanted is not None else "valid, by the key in the journal itself"

    def _check_setups(self) -> None:
        stored = dict(self._connection.execute("SELECT digest, body FROM setups").fetchall())
        bundles = set()
        for name in sorted(self._setups):
            body = stored.get(name)
            if body is None:
                self._say(f"setup {name}, which rows name, is missing")
            elif hashlib.sha256(body.encode()).hexdigest()[:16] != name:
                self._say(f"setup {name} was altered")
            else:
                bundles |= {sha for sha in [json.loads(body).get("bundle")] if sha is not None}
        for sha256 in sorted(bundles):
            self._bundle(sha256)

    def _bundle(self, sha256: str) -> None:
        path = bundle_path(self._folder, sha256)
        if not path.is_file():
            self._say(f"the bundle {sha256[:12]}… that judged is missing: {path}")
            return
        try:
            with Bundle.open(path, made_here=True) as bundle:
                if bundle.sha256 != sha256:
                    self._say(f"{path} is another bundle")
        except BundleError as error:
            self._say(str(error))
        self._report.bundles += 1
