"""A bundle takes the place of the one that judges, on the disk and in memory, or nothing changes."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, ConfigError, DataError, EdgeadError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.inspection.inspector import Inspector

# A person and an update may want it at the same time.
_ONE_AT_A_TIME = threading.Lock()

_log = logging.getLogger("edgead.takeover")


def previous_path(bundle: Path) -> Path:
    """Return where the bundle goes that was replaced: ``plate.previous.edgead``."""
    return bundle.with_name(f"{bundle.stem}.previous.edgead")


def exchange(inspector: Inspector, waiting: Path, path: Path, expected: str | None = None) -> None:
    """Check a bundle on this device, let it judge, and move it to ``path``, whose old one stays as ``previous``.

    Args:
        inspector: that judges with the bundle at ``path``.
        waiting: the new bundle; path: where it goes.
        expected: SHA-256 that the new one must have; None: whatever is there.

    Raises:
        BundleError, BackendError: it cannot be used on this device (`Inspector.swap`); the old one goes on.
        ConfigError: likewise, or ``path`` holds another bundle than the one that judges.
        DataError: the files could not be moved, or another bundle was there than expected; the old one goes on, and
            where not even that is possible, the message says so.
    """
    with _ONE_AT_A_TIME:
        running = inspector.bundle
        with Bundle.open(path, made_here=True) as bundle:
            there = bundle.sha256
        if running is None or running[1] != there:
            raise ConfigError(f"{path} is another bundle than the one that judges; reload it first (SIGHUP)")
        kept = path.with_name(f".{path.stem}.old.edgead")
        try:
            # First, and whole or not at all: it is what can be put back. It becomes ``previous`` only once it is one.
            _copy(path, kept)
        except DataError as error:
            raise DataError(f"cannot keep {path}: {error}; the old one goes on") from error
        try:
            _exchange(inspector, (waiting, path, kept), expected)
        finally:
            kept.unlink(missing_ok=True)
        waiting.unlink(missing_ok=True)


def _exchange(inspector: Inspector, files: tuple[Path, Path, Path], expected: str | None) -> None:
    waiting, path, kept = files
    inspector.swap(waiting)
    try:
        _require(inspector, expected)
        _copy(waiting, path)
        # The same bundle by its final name, which self-tests and reloads read.
        inspector.swap(path)
        _require(inspector, expected)
        kept.replace(previous_path(path))
    except (OSError, EdgeadError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        _put_back(inspector, path, kept, why)
        raise DataError(f"cannot put {waiting} in the place of {path}: {why}; the old one goes on") from error


def _require(inspector: Inspector, expected: str | None) -> None:
    bundle = inspector.bundle
    if bundle is None or (expected is not None and bundle[1] != expected):
        raise BundleError("another bundle was put there on the way")


def _put_back(inspector: Inspector, path: Path, kept: Path, why: str) -> None:
    """Have the old bundle judge again; raises `DataError` where not even that is possible."""
    try:
        _copy(kept, path)
    except (OSError, EdgeadError) as error:
        _log.error("%s holds another bundle than the one that judges: %s", path, error)
    try:
        inspector.swap(path)
        return
    except EdgeadError as error:
        _log.error("%s cannot be put back: %s", path, error)
    raise DataError(f"the exchange failed ({why}), and the old bundle cannot be put back: the NEW one judges; restart")


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    with source.open("rb") as stream, atomic_write(target, DataError) as out:
        shutil.copyfileobj(stream, out)
