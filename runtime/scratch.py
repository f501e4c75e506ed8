"""Private folders for files that a vendor library wants to find on disk."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_PREFIX = "edgead-"
_LOCK = ".lock"
_GRACE_SECONDS = 60.0


@contextmanager
def private_directory() -> Iterator[Path]:
    """Yield a new folder with mode 0700 under the system's temporary folder; it is removed on exit.

    A process that is killed cannot remove its folder, and a watchdog that restarts it every minute would fill the
    disk. So each folder holds a lock that dies with its process, and the next one removes folders whose lock is free.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = None
    try:
        lock = (folder / _LOCK).open("wb")
        _try_lock(lock)
        yield folder
    finally:
        # Windows keeps files that a library still maps; they go with the system's own cleaning.
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.close()


def _try_lock(file: IO[bytes]) -> bool:
    """Take the lock without waiting; False where another process holds it."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned() -> None:
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            fresh = time.time() - status.st_mtime < _GRACE_SECONDS
            if fresh or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                if _try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
