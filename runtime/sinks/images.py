"""Annotated pictures as files."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.imaging.heatmap import annotate
from edgead.runtime.sinks import Sink, selects
from edgead.runtime.uri import Parameters

# What this sink calls its pictures, and nothing else is ever removed.
_OWN = re.compile(r".+-\d{6,}-(?:OK|ANOMALY|NOT_INSPECTED)(?:-\d+)?\.(?:jpg|png)")


class ImagesSink(Sink):
    """Writes `annotate`'s picture of each wanted frame as ``<source>-<index>-<decision>.jpg``.

    A part that has an id has it in the name: ``<source>-<part>-<index>-<decision>.jpg``.

    Parameters: ``only=anomaly`` (default), ``rejected`` (also `NOT_INSPECTED`) or ``all``; ``format=jpg`` (default) or
    ``png``; ``limit=N``, the number of pictures after which no more are written. Retention, each without a limit unless
    given: ``keep=N`` pictures, ``max_size=2GB`` in all, ``max_age=30d``; the oldest go first, those of earlier runs in
    this folder too, whenever a picture is written and at the start. Files with other names are never touched.

    A picture of an earlier run is never replaced: the new one gets ``-2``, ``-3``, … Frames that could not be read have
    no picture and are not written. A full disk leaves no half picture; what it cost is counted.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = True
        self._only = parameters.choice("only", "anomaly", ("anomaly", "rejected", "all"))
        self._limit = parameters.integer("limit", 0, 0, 10**9)
        self._suffix = parameters.choice("format", "jpg", ("jpg", "png"))
        self._accepted = 0
        self._names = SourceNames()
        self._folder = Path(location)
        self._store = Retention(
            self._folder,
            parameters.integer("keep", 0, 1, 10**9),
            parameters.size("max_size"),
            parameters.seconds("max_age"),
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store.scan(_OWN)
        except OSError as error:
            raise ConfigError(f"cannot make the folder of {self.name}: {reason(error)}") from error

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        if frame is None or (self._limit and self._accepted >= self._limit):
            return False
        wanted = selects(self._only, result.decision)
        self._accepted += wanted
        return wanted

    def write(self, result: Result, frame: Frame | None) -> None:
        if frame is None:
            return
        from PIL import Image

        picture = Image.fromarray(annotate(frame.to_rgb(), result))
        part = "" if result.part_id is None else f"-{plain_name(result.part_id)[:80] or 'part'}"
        stem = f"{self._names.of(result.source_id)}{part}-{result.frame_index:06d}-{result.decision}"
        path = free_path(self._folder, stem, self._suffix)
        with atomic_write(path, DataError, durable=False) as stream:
            if self._suffix == "png":
                picture.save(stream, "PNG", compress_level=1)
            else:
                picture.save(stream, "JPEG", quality=90)
        self._store.add(path)


def plain_name(text: str) -> str:
    """Return what is left of a name when only letters, digits and ``._-`` may stand in it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")


class SourceNames:
    """File names for sources; two sources never share one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, source_id: str) -> str:
        if source_id not in self._names:
            name = plain_name(source_id) or "source"
            # Different ids can look alike once they are cut to file names.
            if len(name) > 80 or name in self._names.values():
                name = f"{name[-80:]}~{zlib.crc32(source_id.encode('utf-8', 'surrogateescape')):08x}"
            self._names[source_id] = name
        return self._names[source_id]


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """Return ``stem.suffix`` in a folder, with ``-2``, ``-3``, … where the name is taken."""
    path, number = folder / f"{stem}.{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.{suffix}", number + 1
    return path


# Files from before this were written while the clock was not set yet, as after the boot of a board without a battery.
_CLOCK_UNSET_BEFORE = datetime(2020, 1, 1, tzinfo=timezone.utc).timestamp()


class _Stored(NamedTuple):
    written: float  # in `time.monotonic`, which no setting of the clock moves; negative for most earlier runs
    size: int
    path: Path


class Retention:
    """Removes the oldest files of a sink once they are too many, too large or too old; 0 and None mean no limit.

    Ages of this run's files are measured, not read from the clock: setting it removes none. A file of an earlier run
    that is older than any set clock, or from the future, counts as written now.
    """

    def __init__(self, folder: Path, keep: int, max_bytes: int, max_age_s: float | None) -> None:
        self._folder, self._keep, self._max_bytes, self._max_age = folder, keep, max_bytes, max_age_s
        self._files: deque[_Stored] = deque()
        self._bytes = 0

    def scan(self, own: re.Pattern[str]) -> None:
        """Take over the files of earlier runs, by their names, and remove what is beyond the limits."""
        if not self._limited:
            return
        found = []
        for path in self._folder.iterdir():
            if own.fullmatch(path.name):
                status = path.stat()
                age = time.time() - status.st_mtime if status.st_mtime > _CLOCK_UNSET_BEFORE else 0.0
                found.append(_Stored(time.monotonic() - max(0.0, age), status.st_size, path))
        self._files.extend(sorted(found))
        self._bytes = sum(file.size for file in found)
        self._prune()

    def add(self, path: Path) -> None:
        """Count a file that was just written; files that somebody else removed are no error."""
        if not self._limited:
            return
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            self._files.append(_Stored(time.monotonic(), size, path))
            self._bytes += size
        self._prune()

    @property
    def _limited(self) -> bool:
        return bool(self._keep or self._max_bytes or self._max_age)

    def _prune(self) -> None:
        oldest_allowed = time.monotonic() - self._max_age if self._max_age else -math.inf
        while self._files and (
            (self._keep and len(self._files) > self._keep)
            # The newest picture stays, however large it is.
            or (self._max_bytes and self._bytes > self._max_bytes and len(self._files) > 1)
            or self._files[0].written < oldest_allowed
        ):
            with suppress(FileNotFoundError):
                self._files[0].path.unlink()
            self._bytes -= self._files.popleft().size
