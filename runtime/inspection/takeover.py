"""A taught bundle takes the place of the one that judges, when a person says so, without losing a frame."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, ConfigError, EdgeadError
from edgead.runtime.files import reason
from edgead.runtime.inspection.exchange import exchange, previous_path
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.journal.bundles import keep_bundle
from edgead.runtime.journal.rows import NewRow, person
from edgead.runtime.journal.sink import RecordSink
from edgead.runtime.journal.writer import now_ms

_KEY = "teaching"  # of the provenance that `edgead teach` writes

_log = logging.getLogger("edgead.takeover")


def next_path(bundle: Path) -> Path:
    """Return where a bundle lies that waits for its turn: ``plate.next.edgead`` beside ``plate.edgead``."""
    return bundle.with_name(f"{bundle.stem}.next.edgead")


class TakeOver:
    """Offers the bundle that waits beside the one that judges, and lets it take over.

    Args:
        inspector: opened from a bundle.
        record: where it is written down before it is done, who did it, and what came of it.
    """

    def __init__(self, inspector: Inspector, record: RecordSink) -> None:
        self._inspector, self._record = inspector, record
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, int, str], dict[str, Any]] | None = None

    def offered(self) -> dict[str, Any] | None:
        """Return what waits: ``sha256``, ``path``, and what it was taught, or ``problem``; None where nothing does."""
        running = self._inspector.bundle
        if running is None:
            return None
        path, sha256 = next_path(running[0]), running[1]
        try:
            status = path.stat()
        except OSError:
            return None
        key = status.st_mtime_ns, status.st_size, sha256
        seen = self._seen
        if seen is None or seen[0] != key:
            seen = self._seen = key, self._look(path, sha256)
        return seen[1]

    def take(self, who: str, expected: str) -> dict[str, Any]:
        """Let the bundle that waits take over, and return the record of it.

        It is checked on this device first (`Inspector.swap`), then the files change places, so that the next start
        begins with the new one; the old one stays as ``previous``, and so do model and training images beside it.

        Args:
            who: the person, 80 characters at most.
            expected: SHA-256 of the bundle that the person saw; where another waits by now, nothing is done.

        Raises:
            ConfigError: no name, nothing waits, or another one does.
            BundleError, BackendError: it cannot be used on this device.
            DataError: it could not be written down, or the files could not be moved; the old one goes on.
        """
        who = person(who)
        with self._lock:
            offered, running = self.offered(), self._inspector.bundle
            if offered is None or running is None:
                raise ConfigError("no bundle waits to take over")
            if offered.get("problem"):
                raise ConfigError(str(offered["problem"]))
            if offered["sha256"] != expected:
                raise ConfigError("another bundle waits by now; look at it again")
            said = {"who": who, "old": running[1], "new": expected, "taught": offered["taught"]}
            self._tell("asked for", said)
            try:
                self._exchange(*running, expected)
            except EdgeadError as error:
                self._tell("refused", {**said, "reason": str(error)})
                raise
            _log.warning("%s let the taught bundle %s take over", who, expected[:12])
            try:
                self._record.note(
                    "reloaded", {"model": self._inspector.name, "bundle": str(running[0]), "sha256": expected}
                )
                self._tell("done", said)
            except EdgeadError as error:  # it judges; what the record lacks is said
                _log.error("the take-over is done, and could not be written down: %s", error)
                return {**said, "not_recorded": str(error)}
            return said

    def _look(self, path: Path, running: str) -> dict[str, Any]:
        try:
            with Bundle.open(path) as bundle:
                taught = bundle.manifest.provenance.get(_KEY)
                found: dict[str, Any] = {"path": str(path), "sha256": bundle.sha256, "taught": taught}
        except BundleError as error:
            return {"path": str(path), "problem": str(error)}
        if not isinstance(taught, Mapping):
            return {**found, "problem": f"{path} was not made by 'edgead teach'; reload it by hand (SIGHUP)"}
        if taught.get("old_bundle") != running:
            return {**found, "problem": f"{path} was taught to replace another bundle than the one that judges"}
        return found

    def _exchange(self, path: Path, old: str, new: str) -> None:
        folder, waiting = self._record.journal.folder, next_path(path)
        # Kept before it judges anything: what it decides can be made again whatever happens in between.
        for bundle, digest in ((path, old), (waiting, new)):
            keep_bundle(folder, bundle, digest)
        exchange(self._inspector, waiting, path, new)
        _tidy(path)

    def _tell(self, event: str, fields: Mapping[str, Any]) -> None:
        self._record.journal.add_and_wait(NewRow("takeover", now_ms(), body={"event": event, **fields}))


def _tidy(path: Path) -> None:
    """Give what lies beside the new bundle the names of what lay beside the old one, as far as it is there."""
    waiting, previous = next_path(path), previous_path(path)
    for suffix in (".model", ".images"):
        fresh, now, old = (one.with_suffix(suffix) for one in (waiting, path, previous))
        try:
            if fresh.is_dir():
                shutil.rmtree(old, ignore_errors=True)
                if now.exists():
                    now.rename(old)
                fresh.rename(now)
        except OSError as error:
            _log.warning("%s keeps its name: %s", fresh, reason(error))
