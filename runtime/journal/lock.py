"""One writer a journal: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

from edgead.runtime.errors import ConfigError
from edgead.runtime.files import reason

_FILE = "journal.lock"


class WriterLock:
    """Held from its making until `release`; the file stays, and means nothing by itself.

    Raises:
        ConfigError: another process, or another writer of this one, has it; or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write the record {folder}: {reason(error)}") from error
        try:
            _lock(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(
                f"the record {folder} is being written by another process; end that one, or give another folder"
            ) from error

    def release(self) -> None:
        """Let the next writer in; calling it twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # which is what unlocks it
            self._descriptor = -1


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
