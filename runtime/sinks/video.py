"""Annotated video as files that play."""

from __future__ import annotations

import datetime
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.imaging.heatmap import annotate, highest_strip
from edgead.runtime.sinks import Sink, selects
from edgead.runtime.sinks.images import Retention, SourceNames, free_path
from edgead.runtime.uri import Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OWN = re.compile(r".+-\d{8}T\d{6}(?:-\d+)?\.mp4")
# OpenCV does not say when the disk is full; with less than this left nothing is begun or continued.
_LEAST_FREE = 64_000_000


@dataclass(slots=True)
class _Recording:
    """One open file: its writer, where it is written, where it belongs, the size of its pictures."""

    writer: Any
    part: Path
    target: Path
    width: int
    height: int


class VideoSink(Sink):
    """Writes `annotate`'s picture of each wanted frame to ``<source>-<UTC time>.mp4`` (MPEG-4 Part 2), one a source.

    Parameters: ``only=all`` (default), ``anomaly`` or ``rejected``; ``fps=10``, how fast it plays: every picture is
    shown for 1/fps seconds, whenever it was taken; ``rotate=1GB`` (default), the size at which the next file begins, so
    that a power cut costs the open one only; ``keep=N`` files (default: all), the oldest go first.

    A file has the name ``.part-…`` until it is finished, by rotation or at the end of the run; only then does it play.
    A source whose frames change their size gets a new file.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = True
        self._only = parameters.choice("only", "all", ("all", "anomaly", "rejected"))
        self._fps = parameters.number("fps", 10.0, 0.1, 1000.0)
        self._rotate = parameters.size("rotate", 10**9)
        self._names = SourceNames()
        self._open: dict[str, _Recording] = {}
        self._folder = Path(location)
        self._store = Retention(self._folder, parameters.integer("keep", 0, 1, 10**6), 0, None)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store.scan(_OWN)
        except OSError as error:
            raise ConfigError(f"cannot make the folder of {self.name}: {reason(error)}") from error

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        return frame is not None and selects(self._only, result.decision)

    def write(self, result: Result, frame: Frame | None) -> None:
        if frame is None:
            return
        free = shutil.disk_usage(self._folder).free
        if free < _LEAST_FREE:
            raise DataError(f"only {free // 1_000_000} MB are left on the disk of {self.name}")
        picture = _fixed_size(annotate(frame.to_rgb(), result), frame.image.shape[0])
        height, width = picture.shape[:2]
        recording = self._open.get(result.source_id)
        if recording is not None and (
            (recording.width, recording.height) != (width, height)
            or (recording.part.exists() and recording.part.stat().st_size >= self._rotate)
        ):
            self._finish(result.source_id)
            recording = None
        if recording is None:
            recording = self._open[result.source_id] = self._begin(result.source_id, width, height)
        recording.writer.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def close(self) -> None:
        problem: DataError | None = None
        for source_id in list(self._open):
            try:
                self._finish(source_id)
            except DataError as error:
                problem = error  # the others are finished all the same
        if problem is not None:
            raise problem

    def _begin(self, source_id: str, width: int, height: int) -> _Recording:
        import cv2

        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
        target = free_path(self._folder, f"{self._names.of(source_id)}-{now}", "mp4")
        part = target.with_name(f".part-{target.name}")
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, (width, height))
        if not writer.isOpened():
            raise DataError(f"OpenCV cannot write {width}x{height} video to {self._folder}; see: edgead doctor")
        return _Recording(writer, part, target, width, height)

    def _finish(self, source_id: str) -> None:
        recording = self._open.pop(source_id)
        recording.writer.release()
        try:
            recording.part.replace(recording.target)
        except OSError as error:
            raise DataError(f"cannot finish {recording.target}: {reason(error)}") from error
        self._store.add(recording.target)


def _fixed_size(picture: NDArray[np.uint8], frame_height: int) -> NDArray[np.uint8]:
    """Extend the strip to the height that it has with a short text, and odd sides by one: codecs want even ones."""
    height = frame_height + highest_strip(frame_height)
    rows, columns = height % 2, picture.shape[1] % 2
    return np.pad(picture, ((height - picture.shape[0], rows), (0, columns), (0, 0)), "edge")
