"""A whole directory put in the place of another in one step, after its files are on the disk."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from pathlib import Path


def wait_for_disk(folder: Path) -> None:
    """Let no power cut find the folder in its place and its files not yet on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def swap_directory(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``, in one step where the system can; what was there is then in ``new``."""
    if not path.exists() or not _exchange(new, path):
        old = path.with_name(f".{path.name}.{secrets.token_hex(6)}.old")
        replaced = path.exists()
        if replaced:
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if replaced:
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places atomically (Linux's renameat2); False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)
