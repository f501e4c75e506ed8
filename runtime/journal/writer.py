"""The only writer of a journal: a thread that writes rows and images, and commits them at least every second."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.journal import images
from edgead.runtime.journal.chain import Chain
from edgead.runtime.journal.lock import WriterLock
from edgead.runtime.journal.retention import Limits, Retention
from edgead.runtime.journal.rows import NewRow, label_row
from edgead.runtime.journal.schema import canonical, image_path, open_for_writing, setup_digest
from edgead.runtime.signing import Signer

# A power cut loses what is younger than this, and what is being written.
COMMIT_S = 0.8
_ROWS = 4096
_FRAMES = 4  # that wait to be compressed; 12-megapixel frames are 36 MB each
_BATCH = 1000
_CLOCK_STEP_MS = 1000  # a smaller step back is what a clock that is kept on time does

_log = logging.getLogger("edgead.journal")


class _Ticket:
    """Somebody who waits until a row is on the disk."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.seq = 0
        self.error: str | None = None


class Journal:
    """Writes the journal of one folder; thread-safe. Use as a context manager, or call `close`.

    Rows get their numbers and hashes in the order in which they were added, and are on the disk a second later at the
    latest, images before the rows that name them. While the disk takes nothing (it is full, it fails) rows wait, 4,096
    of them, and images are not kept; rows beyond that are lost, counted, and said to be lost by a row of kind ``gap``
    as soon as the disk takes it. Nothing that was committed is ever at risk.

    Args:
        folder: made where it is missing.
        limits: what is removed, see `Limits`.
        key: PEM file of an Ed25519 key that signs the head of the chain at each commit; None: not signed.
        commit_s: seconds after which a row is on the disk, but for the time that the disk takes.

    Raises:
        ConfigError: another writer has it, it is of another version, or the folder cannot be written.

    Example:
        >>> with Journal("line3") as journal:
        ...     journal.label(4711, "good", "Ann")
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        limits: Limits | None = None,
        key: Path | None = None,
        commit_s: float = COMMIT_S,
    ) -> None:
        self.folder, self._commit_s = Path(folder), commit_s
        signer = Signer(key) if key is not None else None
        self._lock = WriterLock(self.folder)
        try:
            self._connection = open_for_writing(self.folder)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._chain = Chain(self._connection, signer)
            self._begin(limits or Limits())
        except BaseException:
            self._connection.close()
            self._lock.release()
            raise

    def _begin(self, limits: Limits) -> None:
        last = self._connection.execute("SELECT time_ms FROM rows ORDER BY seq DESC LIMIT 1").fetchone()
        self._last_ms: int = last[0] if last is not None else 0
        self._retention = Retention(self._connection, self.folder, limits)
        self._changed = threading.Condition()
        self._queue: deque[tuple[NewRow, _Ticket | None]] = deque()
        self._frames = 0
        self._lost = 0
        self._closing = False
        self._failure: str | None = None
        self._setups: dict[str, str] = {}
        self._written_setups: set[str] = set()
        # The batch that is not committed yet; only the writer's thread looks at these.
        self._batch: list[tuple[int, NewRow, int | None, _Ticket | None]] = []
        self._due: float | None = None
        self._took_s = 0.0
        self._thread = threading.Thread(target=self._run, name="edgead-journal", daemon=True)
        self._thread.start()

    def add(self, row: NewRow) -> None:
        """Have a row written within a second; waits only where frames come faster than they are compressed.

        Raises:
            DataError: it is lost, because the disk takes nothing and too many rows wait already, or this is closed.
        """
        self._put(row, None)

    def add_and_wait(self, row: NewRow) -> int:
        """Write a row, and return its number when it is on the disk.

        Raises:
            DataError: it could not be written; then nothing may be done of what it says.
        """
        ticket = _Ticket()
        self._put(row, ticket)
        ticket.done.wait()
        if ticket.error is not None:
            raise DataError(f"cannot write the record {self.folder}: {ticket.error}")
        return ticket.seq

    def label(self, part_seq: int, label: str, who: str, *, defect: str | None = None, note: str = "") -> int:
        """Write down what a person says of a part, and return the number of that row, when it is on the disk.

        Who says the same of the same part again (a double click) gets the number of the row that says so already;
        who says something else gets a new row, and the old one stays.

        Args:
            part_seq: number of the part's row, which is on the disk.
            label, who, defect, note: see `label_row`.

        Raises:
            ConfigError: there is no such part, or something of the rest is not acceptable.
            DataError: it could not be written.
        """
        from edgead.runtime.journal.reader import JournalReader

        with JournalReader(self.folder) as reader:
            row = label_row(reader.part(part_seq), label, who, now_ms(), defect, note)
            mine = [said for said in reader.labels(part_seq) if said.body["who"] == row.body["who"]]
        if mine and mine[-1].body == row.body:
            return mine[-1].seq
        return self.add_and_wait(row)

    def setup(self, setup: Mapping[str, Any]) -> str:
        """Return the name under which rows refer to what judged (bundle, backend, …); kept once, with the next row."""
        digest = setup_digest(setup)
        with self._changed:
            if digest not in self._written_setups:
                self._setups.setdefault(digest, canonical(setup))
        return digest

    def lose(self, count: int) -> None:
        """Count rows that somebody before the journal had to give up; a ``gap`` row says so."""
        with self._changed:
            self._lost += count
            self._changed.notify_all()

    @property
    def failure(self) -> str | None:
        """Why the disk takes nothing at this moment; None where it does."""
        return self._failure

    def close(self) -> None:
        """Write what waits, and let the next writer in; calling it twice is allowed.

        Raises:
            DataError: what waited could not be written, and is lost.
        """
        with self._changed:
            closed, self._closing = self._closing, True
            self._changed.notify_all()
        if closed:
            return
        self._thread.join()
        self._connection.close()
        self._lock.release()
        lost = self._lost + sum(row.kind == "part" for _, row, _, _ in self._batch)
        if lost:
            raise DataError(f"{lost} rows of the record {self.folder} are lost: {self._failure or 'queue full'}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, row: NewRow, ticket: _Ticket | None) -> None:
        canonical(row.body)  # what cannot be written is the caller's to know, and must not end the writer's thread
        with self._changed:
            if row.frame is not None:
                self._changed.wait_for(lambda: self._frames < _FRAMES or self._failure is not None or self._closing)
            if self._failure is None:
                self._changed.wait_for(lambda: len(self._queue) < _ROWS or self._failure is not None or self._closing)
            if self._closing:
                raise DataError(f"the record {self.folder} is closed")
            if row.frame is not None and self._failure is not None:
                row = _without_image(row, self._failure)
            if len(self._queue) >= _ROWS:
                self._lost += ticket is None
                raise DataError(f"cannot write the record {self.folder}: {self._failure}")
            self._frames += row.frame is not None
            self._queue.append((row, ticket))
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._something, self._left())
                ready = self._queue and (self._failure is None or len(self._batch) < _BATCH)
                item = self._queue.popleft() if ready else None
                lost, self._lost = (self._lost, 0) if not self._failure else (0, self._lost)
                # A commit that failed is tried once more at the end, and then given up.
                over = self._closing and not self._queue
            if lost:
                self._admit(NewRow("gap", now_ms(), body={"rows": lost}), None)
            if item is not None:
                self._admit(*item)
                with self._changed:
                    self._frames -= item[0].frame is not None
                    self._changed.notify_all()
            urgent = item is not None and item[1] is not None
            full = len(self._batch) >= _BATCH and self._failure is None
            last = self._closing and (over or self._failure is not None)
            if self._batch and (urgent or full or last or self._left() == 0.0):
                self._commit()
            if last and (over or self._failure is not None):
                self._give_up()
                return

    def _something(self) -> bool:
        takes = self._failure is None or len(self._batch) < _BATCH
        return bool(self._queue and takes) or bool(self._lost and not self._failure) or self._closing

    def _left(self) -> float | None:
        """Return the seconds until the batch must be committed, None where there is none."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def _admit(self, row: NewRow, ticket: _Ticket | None) -> None:
        """Give a row its number, and write its image, not yet safely."""
        if row.time_ms < self._last_ms - _CLOCK_STEP_MS:
            step = {"event": "clock set back", "by_ms": self._last_ms - row.time_ms}
            self._batch.append((self._next(), NewRow("note", row.time_ms, body=step), None, None))
        self._last_ms = row.time_ms
        seq, size = self._next(), None
        if row.frame is not None:
            try:
                data = images.encode(row.frame, row.heat)
                images.write(image_path(self.folder, seq), data)
                size = len(data)
            except Exception as error:  # noqa: BLE001 - whatever it was, the decision is written
                row = _without_image(row, reason(error))
        self._batch.append((seq, replace(row, frame=None, heat=b""), size, ticket))
        if self._due is None:
            # Sooner where the disk is slow: the second that may be lost ends when the commit does.
            self._due = time.monotonic() + max(self._commit_s / 8, self._commit_s - self._took_s)

    def _next(self) -> int:
        return self._chain.seq + len(self._batch) + 1

    def _commit(self) -> None:
        begun = time.monotonic()
        try:
            images.sync_folders([image_path(self.folder, seq) for seq, _, size, _ in self._batch if size is not None])
            with self._changed:
                setups = dict(self._setups)
            self._chain.append([(seq, row, size) for seq, row, size, _ in self._batch], setups)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again, and people are told
            self._chain.roll_back()
            self._failed(reason(error))
            return
        self._due, self._took_s = None, time.monotonic() - begun
        with self._changed:
            self._written_setups |= setups.keys()
            for digest in setups:
                self._setups.pop(digest, None)
        self._retention.committed(self._chain.seq, sum(size or 0 for _, _, size, _ in self._batch))
        for seq, _, _, ticket in self._batch:
            if ticket is not None:
                ticket.seq = seq
                ticket.done.set()
        self._batch.clear()
        if self._failure is not None:
            _log.warning("the record %s is written again", self.folder)
            with self._changed:
                self._failure = None
                self._changed.notify_all()
        try:
            if (removal := self._retention.due()) is not None:
                self._chain.remove(self._retention, removal, max(now_ms(), self._last_ms))
        except (sqlite3.Error, OSError) as error:
            self._chain.roll_back()
            _log.warning("the record %s cannot remove what is too old or too much: %s", self.folder, reason(error))

    def _failed(self, why: str) -> None:
        if self._failure is None:
            _log.error("the record %s cannot be written: %s; it is tried again every second", self.folder, why)
        self._due = time.monotonic() + self._commit_s
        with self._changed:
            self._failure = why
            self._changed.notify_all()
        for number, (seq, row, size, ticket) in enumerate(self._batch):
            if ticket is not None:
                # Who waited is told that it was not written, so it must not be written later.
                withdrawn = NewRow(
                    "note", row.time_ms, body={"event": f"{row.kind} withdrawn: it could not be written"}
                )
                self._batch[number] = (seq, withdrawn, size, None)
                ticket.error = why
                ticket.done.set()

    def _give_up(self) -> None:
        with self._changed:
            waiting, self._queue = list(self._queue), deque()
            self._lost += sum(ticket is None for _, ticket in waiting)
            self._changed.notify_all()
        for _, ticket in waiting:
            if ticket is not None:
                ticket.error = self._failure or "it was closed"
                ticket.done.set()


def now_ms() -> int:
    """Return the wall clock in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def _without_image(row: NewRow, why: str) -> NewRow:
    return replace(row, frame=None, heat=b"", body={**row.body, "no_image": why})
