"""Annotated pictures as files."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.heatmap import annotate
from edgead.runtime.sinks import Sink
from edgead.runtime.uri import Parameters


class ImagesSink(Sink):
    """Writes `annotate`'s picture of each wanted frame as ``<source>-<index>-<decision>.jpg``.

    Parameters: ``only=anomaly`` (default) or ``all``; ``limit=N``, the number of pictures after which no more are
    written (default 0: no limit); ``format=jpg`` (default) or ``png``. A picture of an earlier run is never replaced:
    the new one gets ``-2``, ``-3``, … Frames that could not be read have no picture and are not written.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = True
        self._all = parameters.choice("only", "anomaly", ("anomaly", "all")) == "all"
        self._limit = parameters.integer("limit", 0, 0, 10**9)
        self._suffix = parameters.choice("format", "jpg", ("jpg", "png"))
        self._accepted = 0
        self._names: dict[str, str] = {}
        self._folder = Path(location)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder of {self.name}: {reason(error)}") from error

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        if frame is None or (self._limit and self._accepted >= self._limit):
            return False
        wanted = self._all or result.decision is Decision.ANOMALY
        self._accepted += wanted
        return wanted

    def write(self, result: Result, frame: Frame | None) -> None:
        if frame is None:
            return
        from PIL import Image

        picture = Image.fromarray(annotate(frame.to_rgb(), result))
        path = self._free_path(f"{self._source_name(result.source_id)}-{result.frame_index:06d}-{result.decision}")
        with atomic_write(path, DataError, durable=False) as stream:
            if self._suffix == "png":
                picture.save(stream, "PNG", compress_level=1)
            else:
                picture.save(stream, "JPEG", quality=90)

    def _source_name(self, source_id: str) -> str:
        """Return a file name for a source; two sources never share one."""
        if source_id not in self._names:
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", source_id).strip("._-") or "source"
            # Different ids can look alike once they are cut to file names.
            if len(name) > 80 or name in self._names.values():
                name = f"{name[-80:]}~{zlib.crc32(source_id.encode('utf-8', 'surrogateescape')):08x}"
            self._names[source_id] = name
        return self._names[source_id]

    def _free_path(self, stem: str) -> Path:
        path, number = self._folder / f"{stem}.{self._suffix}", 2
        while path.exists():
            path, number = self._folder / f"{stem}-{number}.{self._suffix}", number + 1
        return path
