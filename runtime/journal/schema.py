"""The tables of a journal, its hash chain, and how the file is opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason

FILE = "journal.sqlite"
IMAGES, BUNDLES = "images", "bundles"
VERSION = 1
_APPLICATION = 0x45444A4E  # "EDJN", in the header of the SQLite file

COLUMNS = ("seq", "kind", "time_ms", "part", "ref", "decision", "score", "image", "body", "hash")
# What a row's hash covers besides the hash of the row before it.
Covered = tuple[int, str, int, "str | None", "int | None", "str | None", "float | None", "int | None", str]

_TABLES = f"""
CREATE TABLE rows(
  seq INTEGER PRIMARY KEY,  -- 1, 2, 3, …: the order in which rows were written, whatever the clock said
  kind TEXT NOT NULL,
  time_ms INTEGER NOT NULL, -- wall clock, milliseconds since 1970, UTC, as it was
  part TEXT,                -- the part's id, where one was given
  ref INTEGER,              -- of a label: the part's row
  decision TEXT,
  score REAL,
  image INTEGER,            -- bytes of the image file, where there is one
  body TEXT NOT NULL,       -- canonical JSON: what else the row says
  hash BLOB NOT NULL        -- SHA-256 over the hash before and all columns of this row
);
CREATE INDEX rows_part ON rows(part, seq) WHERE part IS NOT NULL;
CREATE INDEX rows_ref ON rows(ref, seq) WHERE ref IS NOT NULL;
CREATE INDEX rows_other ON rows(kind, seq) WHERE kind <> 'part';
CREATE INDEX rows_decision ON rows(decision, seq) WHERE decision <> 'OK';
CREATE TABLE setups(digest TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
"""


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII, numbers as Python writes them, no NaN."""
    # ASCII: names of files may hold bytes that are no text, and SQLite keeps text only.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chain_hash(before: bytes, covered: Covered) -> bytes:
    """Return the hash of a row: SHA-256 over the hash of the row before it and its columns, as canonical JSON."""
    return hashlib.sha256(before + canonical(covered).encode()).digest()


def first_hash(journal_id: str) -> bytes:
    """Return what stands before the first row: rows of one journal cannot be moved into another."""
    return hashlib.sha256(f"edgead.journal/{VERSION} {journal_id}".encode()).digest()


def setup_digest(setup: Mapping[str, Any]) -> str:
    """Return the name of a setup in rows: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(canonical(setup).encode()).hexdigest()[:16]


def image_path(folder: Path, seq: int) -> Path:
    """Return where the image of a part's row lies; 1,000 of them share a folder."""
    return folder / IMAGES / f"{seq // 1000:07d}" / f"{seq:010d}.png"


def bundle_path(folder: Path, sha256: str) -> Path:
    """Return where the bundle of this digest is kept.

    Raises:
        DataError: that is no digest.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(f"'{sha256[:80]}' is no SHA-256 of a bundle; run: edgead record verify {folder}")
    return folder / BUNDLES / f"{sha256}.edgead"


def open_for_writing(folder: Path) -> sqlite3.Connection:
    """Open the journal of a folder, or make one, for the only writer; the caller holds the lock.

    Each commit is on the disk before it returns (WAL, ``synchronous=FULL``).

    Raises:
        ConfigError: no journal, one of another version, or the folder cannot be written.
    """
    path = folder / FILE
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    except sqlite3.Error as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
    try:
        if not connection.execute("PRAGMA user_version").fetchone()[0] and _empty(connection):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}{_first_meta()}COMMIT;")
        require_version(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Read back into the file often enough that the log beside it stays small, whatever readers do.
        connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute("PRAGMA journal_size_limit = 16777216")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(f"cannot write {path}: {_said(error)}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(folder: Path) -> sqlite3.Connection:
    """Open the journal of a folder beside its writer; nothing can be changed through this connection.

    Raises:
        ConfigError: there is no journal, or it is of another version or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        hint = "give the folder that --record was given" if folder.is_dir() else "check the path"
        raise ConfigError(f"{folder} holds no record ({FILE}); {hint}")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        return _reading(uri, path)
    except sqlite3.Error as error:
        # Beside a writer, or after a crash, what is newest lies in the log; without it the file alone is all there is,
        # and SQLite need not make its own files beside it, which a medium that cannot be written does not allow.
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise ConfigError(f"cannot read {path}: {_said(error)}; read it as the user who writes it") from error
    try:
        return _reading(f"{uri}&immutable=1", path)
    except sqlite3.Error as error:
        raise ConfigError(f"cannot read {path}: {_said(error)}") from error


def _reading(uri: str, path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        require_version(connection, path)
        connection.execute("SELECT count(*) FROM meta").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def require_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no journal, or one of a version that this edgead does not know.

    Raises:
        ConfigError: in one line, with what to do. sqlite3.Error: it cannot be read.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION:
        raise ConfigError(f"{path} is no record of edgead; give another folder")
    if version != VERSION:
        newer = "a newer edgead wrote it; update edgead" if version > VERSION else "this edgead reads no such version"
        raise ConfigError(f"{path} has version {version}, this edgead knows {VERSION}: {newer}")


def meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Return what is said of the whole journal: ``id``, ``created``, ``head_seq``, ``head_hash``, a signature."""
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def covered(row: Sequence[Any]) -> Covered:
    """Return the columns of a stored row that its hash covers."""
    seq, kind, time_ms, part, ref, decision, score, image, body = row[:9]
    return seq, kind, time_ms, part, ref, decision, score, image, body


def _said(error: sqlite3.Error) -> str:
    return reason(error)


def _empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _first_meta() -> str:
    # A quoted literal each: hexadecimal digits only.
    journal_id = os.urandom(16).hex()
    values = {"id": journal_id, "head_seq": "0", "head_hash": first_hash(journal_id).hex()}
    rows = ",".join(f"('{name}','{value}')" for name, value in values.items())
    return f"INSERT INTO meta VALUES {rows};"


def head_message(journal_id: str, seq: str, head_hash: str) -> bytes:
    """Return what is signed: which journal, up to which row, and that row's hash, which covers all before it."""
    return f"edgead.journal-head/1 {journal_id} {seq} {head_hash}".encode()
