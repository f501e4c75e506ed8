"""Recorded parts as pictures; heat maps are computed anew by the bundle that judged."""

from __future__ import annotations

import threading
from pathlib import Path

from edgead.runtime.dashboard.thumbnails import SIDE, Shown
from edgead.runtime.frame import Decision, Result
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.journal.reader import JournalReader


class Pictures:
    """Makes pictures of recorded parts; one bundle is open at a time, on one thread, beside what judges the line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: tuple[str, Inspector] | None = None

    def jpeg(self, seq: int, *, heat: bool) -> bytes | None:
        """Return the picture of a part.

        Raises:
            EdgeadError: there is no such part, or no longer; its image is missing or altered; no bundle for its map.
        """
        with JournalReader(self._folder) as record:
            row = record.part(seq)
            frame = record.frame(row)
            result = Result.not_inspected(frame, "")
            if heat and row.decision != Decision.NOT_INSPECTED.value:
                digest = str(record.setup(row)["bundle"])
                with self._lock:
                    result = self._inspector(digest, record.bundle(digest))(frame)
        return Shown(seq, 0, result, "", frame.image, frame.layout).jpeg(SIDE, heat=heat)

    def close(self) -> None:
        """Close the bundle that is open."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
            self._open = None

    def _inspector(self, digest: str, path: Path) -> Inspector:
        if self._open is None or self._open[0] != digest:
            if self._open is not None:
                self._open[1].close()
            self._open = None
            self._open = digest, Inspector.open(path, RunConfig(threads=1))
        return self._open[1]
