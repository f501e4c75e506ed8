"""Rows appended to the chain, and removed from its beginning, each in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress

from edgead.runtime.journal.retention import Removal, Retention
from edgead.runtime.journal.rows import NewRow
from edgead.runtime.journal.schema import COLUMNS, Covered, canonical, chain_hash, first_hash, head_message, meta
from edgead.runtime.signing import Signer

_INSERT = f"INSERT INTO rows VALUES({','.join('?' * len(COLUMNS))})"


class Chain:
    """The head of a journal's chain; only the writer's thread uses it, after it was made.

    What raises `sqlite3.Error` has changed nothing once `roll_back` was called.

    Attributes:
        seq: number of the last row on the disk, 0 where there is none.
    """

    def __init__(self, connection: sqlite3.Connection, signer: Signer | None) -> None:
        self._connection, self._signer = connection, signer
        said = meta(connection)
        self._id = said["id"]
        self.seq, self._hash = int(said["head_seq"]), bytes.fromhex(said["head_hash"])

    def append(self, rows: Sequence[tuple[int, NewRow, int | None]], setups: Mapping[str, str]) -> None:
        """Write rows, each with its number and the size of its image, and the setups that they name."""
        stored, before = [], self._hash
        for seq, row, size in rows:
            body = canonical(row.body)
            said: Covered = (seq, row.kind, row.time_ms, row.part, row.ref, row.decision, row.score, size, body)
            before = chain_hash(before, said)
            stored.append((*said, before))
        self._connection.execute("BEGIN IMMEDIATE")
        if setups:
            self._connection.executemany("INSERT OR IGNORE INTO setups VALUES(?, ?)", setups.items())
        self._connection.executemany(_INSERT, stored)
        self._end(stored[-1][0], before)

    def remove(self, retention: Retention, removal: Removal, time_ms: int) -> None:
        """Write the checkpoint row and delete rows in one transaction, and files after it."""
        files = retention.files(removal)
        found = self._connection.execute("SELECT hash FROM rows WHERE seq = ?", (removal.rows_through,)).fetchone()
        before_first = self._before_first() if found is None else bytes(found[0])
        body = canonical(retention.body(removal, before_first.hex()))
        said: Covered = (self.seq + 1, "checkpoint", time_ms, None, None, None, None, None, body)
        head = chain_hash(self._hash, said)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("DELETE FROM rows WHERE seq <= ?", (removal.rows_through,))
        self._connection.execute(_INSERT, (*said, head))
        self._end(said[0], head)
        retention.removed(removal, files)
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def roll_back(self) -> None:
        """Undo what a failed call has begun."""
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _end(self, seq: int, head: bytes) -> None:
        said = {"head_seq": str(seq), "head_hash": head.hex()}
        if self._signer is not None:
            said["public_key"] = self._signer.public
            said["signature"] = self._signer.sign(head_message(self._id, said["head_seq"], said["head_hash"]))
        else:  # a signature of an earlier head would look like a broken one
            self._connection.execute("DELETE FROM meta WHERE name IN ('public_key', 'signature')")
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", said.items())
        self._connection.execute("COMMIT")
        self.seq, self._hash = seq, head

    def _before_first(self) -> bytes:
        """Return the hash before the first row that is still there: what the last checkpoint says, or the beginning."""
        last = self._connection.execute(
            "SELECT body FROM rows WHERE kind <> 'part' AND kind = 'checkpoint' ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return first_hash(self._id) if last is None else bytes.fromhex(json.loads(last[0])["hash"])
