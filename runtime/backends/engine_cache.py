"""Device engines on disk: found by what they were made of and for, bound to their content by a hash, written whole.

An engine is code for one graph on one GPU with one version of the vendor's library. It is built by ``edgead build`` and
only looked up here by the backends, so both floors share this file; it knows no vendor library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgead.runtime.backends.engine_key import EngineKey, hash_file
from edgead.runtime.errors import BackendError
from edgead.runtime.files import reason, user_folder

CACHE_VARIABLE = "EDGEAD_ENGINE_CACHE"
DEFAULT_LIMIT_BYTES = 4 << 30
_FORMAT = 1
_MAX_RECORD_BYTES = 1 << 20
_LOCK = ".lock"
_BUILD_AGAIN = "delete it and run 'edgead build' again"


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the cache; ``info`` is what its builder wrote down. `EngineCache.read` gives its bytes."""

    path: Path
    key: EngineKey
    sha256: str
    size: int
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Record:
    """The file beside an engine."""

    key: EngineKey
    sha256: str
    size: int
    info: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps({"format_version": _FORMAT, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, data: bytes) -> _Record:
        """Parse and check; raises `ValueError` or `TypeError` for anything else than what `to_json` writes."""
        content = json.loads(data)
        if content.pop("format_version", None) != _FORMAT:
            raise ValueError("another format")
        record = cls(**{**content, "key": EngineKey(**content["key"])})
        texts = asdict(record.key).values()
        if not (
            all(isinstance(text, str) for text in texts)
            and isinstance(record.sha256, str)
            and re.fullmatch(r"[0-9a-f]{64}", record.sha256)
            and isinstance(record.size, int)
            and isinstance(record.info, dict)
        ):
            raise ValueError("a field of another type")
        return record


class EngineCache:
    """A folder of engines, private to its user.

    Each engine has a record ``KEY.json`` that names its content by SHA-256; the record is put in place last, so a
    builder that is killed at any moment leaves the old state or the new one.

    Args:
        folder: None means `default_folder`. It is created (mode 0700) when the first engine is stored.
        limit_bytes: the least recently used engines beyond it are removed when one is stored.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = default_folder() if folder is None else folder
        self._limit = limit_bytes

    def find(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine for a key, None where there is none.

        Raises:
            BackendError: its record or file was altered, cut short, or belongs to another user; it is not used.
        """
        record_file = self._record_file(key)
        record = self._load(record_file)
        if record is None:
            return None
        if record.key != key:
            raise _refused(record_file, "its record is of another engine")
        path = self._engine_file(key, record.sha256)
        try:
            status = path.lstat()
        except OSError as error:
            raise _refused(path, reason(error)) from error
        _require_private(path, status)
        if status.st_size != record.size:
            raise _refused(path, f"it has {status.st_size} bytes, its record says {record.size}")
        with suppress(OSError):  # a read-only cache is used all the same
            os.utime(record_file)
        return StoredEngine(path, key, record.sha256, record.size, dict(record.info))

    def read(self, engine: StoredEngine) -> bytes:
        """Return the engine's bytes; raises `BackendError` unless they are those that its builder stored."""
        try:
            data = engine.path.read_bytes()
        except OSError as error:
            raise _refused(engine.path, reason(error)) from error
        if hashlib.sha256(data).hexdigest() != engine.sha256:
            raise _refused(engine.path, "its content is not what was built")
        return data

    def others(self, graph: str) -> list[EngineKey]:
        """Return the keys of all engines of a graph, for a message on why none of them fits."""
        found = []
        for file in self._records():
            with suppress(BackendError):
                record = self._load(file)
                if record is not None and record.key.graph == graph:
                    found.append(record.key)
        return found

    @contextmanager
    def building(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the cache for one builder: two at once would take each other's memory and do the same work twice.

        The lock dies with its process. What a killed builder left behind is removed. Windows has no such lock; there
        two builders do the work twice, and the later result stays.

        Args:
            on_wait: called once where another builder must be waited for.

        Raises:
            BackendError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            _require_private(self.folder, self.folder.stat(), f"run: chmod go-w {self.folder}")
            _take(lock, on_wait)
            if sys.platform != "win32":
                for file in self.folder.glob(".*.tmp"):
                    with suppress(OSError):
                        file.unlink()
            yield
        finally:
            os.close(lock)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield the path of a new, empty file (mode 0600) in the cache's folder, removed at the end where it still is.

        Raises:
            BackendError: the folder cannot be written.
        """
        path = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield path
        finally:
            with suppress(OSError):
                path.unlink()

    def store(self, key: EngineKey, built: Path, info: dict[str, Any]) -> StoredEngine:
        """Move a file from `scratch` into the cache, in place of an older engine of the same key; call in `building`.

        Args:
            key: what it was made of and for.
            built: the engine.
            info: what is worth knowing of the build; JSON values.

        Raises:
            BackendError: the disk is full or the folder cannot be written; the cache is as it was.
        """
        try:
            digest, size = _hash_and_sync(built)
            if size == 0:
                raise BackendError(f"the builder gave an empty engine for {key.describe()}")
            path = self._engine_file(key, digest)
            with self.scratch() as temporary:
                temporary.write_text(_Record(key, digest, size, info).to_json())
                _hash_and_sync(temporary)
                built.chmod(0o600)
                built.replace(path)
                temporary.replace(self._record_file(key))
        except OSError as error:
            raise self._unwritable(error) from error
        self._prune(key)
        return StoredEngine(path, key, digest, size, info)

    def _prune(self, keep: EngineKey) -> None:
        """Remove engines without a record, then the least recently used ones beyond the limit."""
        wanted: list[tuple[float, Path, Path]] = []
        for file in self._records():
            with suppress(BackendError, OSError):
                record = self._load(file)
                if record is not None:
                    engine = self.folder / f"{file.stem}.{record.sha256[:16]}.engine"
                    wanted.append((file.stat().st_mtime, file, engine))
        with suppress(OSError):
            for engine in set(self.folder.glob("*.engine")) - {entry[2] for entry in wanted}:
                engine.unlink()
        total = 0
        wanted.sort(key=lambda entry: (entry[1].stem == keep.digest, entry[0]), reverse=True)
        for _, file, engine in wanted:
            with suppress(OSError):
                total += engine.stat().st_size
                if total > self._limit and file.stem != keep.digest:
                    file.unlink()
                    engine.unlink()

    def _records(self) -> list[Path]:
        try:
            return sorted(file for file in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.json", file.name))
        except OSError:
            return []

    def _record_file(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.json"

    def _engine_file(self, key: EngineKey, sha256: str) -> Path:
        # The content is part of the name, so record and engine never disagree while one of them is replaced.
        return self.folder / f"{key.digest}.{sha256[:16]}.engine"

    def _load(self, file: Path) -> _Record | None:
        try:
            with file.open("rb") as stream:
                _require_private(file, os.fstat(stream.fileno()))
                data = stream.read(_MAX_RECORD_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):  # such as below a home that is /dev/null
            return None
        except OSError as error:
            raise _refused(file, reason(error)) from error
        try:
            return _Record.from_json(data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _refused(file, "it is damaged") from error

    def _unwritable(self, error: OSError) -> BackendError:
        return BackendError(
            f"cannot write the engine cache {self.folder}: {reason(error)}; "
            f"choose another folder with --cache DIR (or the variable {CACHE_VARIABLE})"
        )


def default_folder() -> Path:
    """Return the folder named by ``EDGEAD_ENGINE_CACHE``, else ``edgead/engines`` in the user's cache folder.

    A user without a home has one of their own in the system's folder for temporary files, until the next boot.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    caches = user_folder("cache")
    if caches is not None:
        return caches / "edgead" / "engines"
    return Path(tempfile.gettempdir()) / f"edgead-{getattr(os, 'getuid', lambda: 'user')()}" / "engines"


def _hash_and_sync(file: Path) -> tuple[str, int]:
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return hash_file(file)


def _require_private(path: Path, status: os.stat_result, fix: str = _BUILD_AGAIN) -> None:
    """Refuse what another user could have written: an engine is code that runs with our rights."""
    if sys.platform == "win32":
        return
    kind_fits = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    if not kind_fits or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise _refused(path, "other users may write it", fix)


def _refused(path: Path, why: str, fix: str = _BUILD_AGAIN) -> BackendError:
    return BackendError(f"{path} of the engine cache is refused: {why}; {fix}")


def _take(lock: int, on_wait: Callable[[], None] | None) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if on_wait is not None:
            on_wait()
        fcntl.flock(lock, fcntl.LOCK_EX)
