"""Files that are there whole or not at all, and what is in them."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from edgead.runtime.errors import DataError, EdgeadError


def user_folder(kind: Literal["cache", "config"]) -> Path | None:
    """Return the folder in which this user's programs keep caches or settings; None where the user has no home.

    It follows the XDG base directory specification, which wants a relative path in its variables ignored; on Windows
    ``LOCALAPPDATA`` and ``APPDATA``. The folder need not exist, nor be writable.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA" if kind == "cache" else "APPDATA", "")
    else:
        base = os.environ.get("XDG_CACHE_HOME" if kind == "cache" else "XDG_CONFIG_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base)
    try:
        return Path.home() / f".{kind}"
    except RuntimeError:  # a container's user whom nobody entered
        return None


@contextmanager
def atomic_write(path: Path, error_type: type[EdgeadError], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of ``path`` when the block ends well.

    It is written under a temporary name in the same folder; on any failure that file is removed and ``path`` stays as
    it was. ``durable`` waits for the disk, so that a power cut leaves the old file or the new one.

    Raises:
        EdgeadError: of type ``error_type``, one line, for every `OSError` in the block (disk full, no right to write).
    """
    # Opened by name and not with mkstemp, whose mode 0600 would keep the service's user from reading the result.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise error_type(f"cannot write {path}: {reason(error)}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; raises `DataError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    return digest.hexdigest()


def reason(error: Exception) -> str:
    """Return why an operation failed, on one line and without the path, which the caller names."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself last; not every system and file system can, and the data are safe by then.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
