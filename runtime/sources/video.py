"""OpenCV's capture, and video files read with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgead.runtime.errors import DataError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.sources import Address, Clock, Source
from edgead.runtime.sources.clock import ClockMap

_JPEG_CODES = frozenset({b"MJPG", b"JPEG"})
_SILENT = 0  # of OpenCV's log levels
_JPEG_START = b"\xff\xd8"


class Capture:
    """One ``cv2.VideoCapture`` that says nothing on stderr and may be closed while another thread reads.

    Motion JPEG is taken as it was sent and decoded by `decode_image`: FFmpeg would complete a picture that broke off
    with the one before, and a part that nobody saw would be judged. Of other codecs (H.264, H.265) pictures depend on
    each other, and what a decoder makes up cannot be told from outside.

    Args:
        target: path, URL or device number; may hold secrets, which no message of this class repeats.
        backend: name in ``cv2.videoio_registry`` such as ``FFMPEG`` or ``V4L2``; OpenCV's choice where it is missing.
        settings: ``(name without CAP_PROP_, value)`` pairs for backends that take them at open.
        clock: stamps each frame when it was grabbed, before it is decoded.
        own_clock: the camera's own timestamps are to be trusted (V4L2, RTP): frames that waited in a buffer of driver
            or network get the time at which they were taken.
    """

    def __init__(
        self,
        target: str | int,
        backend: str,
        settings: tuple[tuple[str, int], ...],
        clock: Clock,
        own_clock: bool = False,
    ) -> None:
        # FFmpeg's and OpenCV's own log lines repeat the URL with its password. FFmpeg's level can only be set this
        # way, and is read once, when the first capture of the process opens.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        self._cv2: Any = cv2
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._map = ClockMap() if own_clock else None
        names = {cv2.videoio_registry.getBackendName(number): number for number in cv2.videoio_registry.getBackends()}
        # OpenCV 5 has it in `utils.logging`, OpenCV 4 beside everything else.
        log = getattr(cv2.utils, "logging", cv2)
        level = log.getLogLevel()
        log.setLogLevel(_SILENT)
        try:
            flat = [int(item) for name, value in settings for item in (getattr(cv2, f"CAP_PROP_{name}"), value)]
            self._capture: Any = cv2.VideoCapture(target, names.get(backend, cv2.CAP_ANY), flat)
        except cv2.error:
            self._capture = cv2.VideoCapture()
        finally:
            log.setLogLevel(level)
        self.opened = bool(self._capture.isOpened())
        self._packets = False
        # How a backend is asked for packets.
        self._asking = ("FORMAT", -1) if backend == "FFMPEG" else ("CONVERT_RGB", 0)
        if self.opened and backend == "FFMPEG":
            self.ask_for_packets()

    def get(self, name: str) -> float:
        return float(self._capture.get(getattr(self._cv2, f"CAP_PROP_{name}")))

    def set(self, name: str, value: float) -> None:
        self._capture.set(getattr(self._cv2, f"CAP_PROP_{name}"), value)

    def ask_for_packets(self) -> None:
        """Have motion JPEG come as it was sent; of a device, once its pixel format is set."""
        code = int(self.get("FOURCC")).to_bytes(4, "little", signed=True)
        name, packets = self._asking
        if code.upper() in _JPEG_CODES:
            self._packets = bool(self._capture.set(getattr(self._cv2, f"CAP_PROP_{name}"), packets))

    def read(self, index: int, source_id: str) -> Frame | BadFrame | None:
        """Return the next frame, RGB where it was a JPEG picture, else BGR or grey; None at the end or once closed."""
        with self._lock:
            try:
                if self._closed or not self._capture.grab():
                    return None
                timestamp_ns = self._clock()
                if self._map is not None:
                    timestamp_ns = self._map.capture_ns(int(self.get("POS_MSEC") * 1e6), timestamp_ns)
                decoded, image = self._capture.retrieve()
            except self._cv2.error:
                return None
            finally:
                if self._closed:
                    self._capture.release()
        if not decoded or image is None or image.size == 0:
            return BadFrame(index, timestamp_ns, source_id, "the frame cannot be decoded")
        if self._packets:
            return self._decode(image.tobytes(), index, timestamp_ns, source_id)
        if image.dtype != np.uint8:
            return BadFrame(index, timestamp_ns, source_id, f"the camera delivers {image.dtype} pixels, not uint8")
        if image.ndim == 2 or image.shape[2] == 1:
            return Frame(image.reshape(image.shape[:2]), index, timestamp_ns, source_id, "gray")
        if image.shape[2] != 3:
            return BadFrame(index, timestamp_ns, source_id, f"the camera delivers {image.shape[2]} channels, not 3")
        return Frame(image, index, timestamp_ns, source_id, "bgr")

    def _decode(self, packet: bytes, index: int, timestamp_ns: int, source_id: str) -> Frame | BadFrame:
        if not packet.startswith(_JPEG_START):
            return BadFrame(index, timestamp_ns, source_id, "the camera's packet is no JPEG picture")
        try:
            return Frame(decode_image(packet, "the picture"), index, timestamp_ns, source_id)
        except DataError as error:
            reason = str(error).partition("; ")[0]
            return BadFrame(index, timestamp_ns, source_id, f"the camera's picture is broken: {reason}")

    def close(self) -> None:
        self._closed = True
        # Releasing under a running read crashes; then the reader releases when its read returns.
        if self._lock.acquire(blocking=False):
            try:
                self._capture.release()
            finally:
                self._lock.release()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def rushing(self) -> bool:
        """Whether the last frame comes from a buffer that is being emptied; False where nobody can tell."""
        return self._map is not None and self._map.rushing


class VideoSource(Source):
    """Reads a video file, every frame in order.

    Frames stay as `Capture` gives them. A file that ends well before the length in its header raises `SourceLost`
    after the last frame that could be read.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        path = Path(address.location)
        self.source_id = address.source_id
        self.live = False
        self.delivery = address.delivery
        try:
            empty = path.stat().st_size == 0
        except OSError as error:
            raise SourceError(f"cannot open {self.source_id}: {error.strerror or error}") from error
        if empty:
            raise SourceError(f"{self.source_id} is empty (0 bytes); record it again")
        self._capture = Capture(str(path), "FFMPEG", (), clock)
        if not self._capture.opened:
            raise SourceError(f"{self.source_id} is not a readable video (damaged, cut off, or another file type)")

    def frames(self) -> Iterator[Frame | BadFrame]:
        expected = self._capture.get("FRAME_COUNT")
        index = 0
        try:
            while (frame := self._capture.read(index, self.source_id)) is not None:
                yield frame
                index += 1
            # Headers of sound files are off by a frame or two (edit lists, rounded durations).
            if not self._capture.closed and expected - index > max(2.0, 0.02 * expected):
                raise SourceLost(
                    f"{self.source_id} ended after {index} of {expected:.0f} frames; the file is damaged or cut off"
                )
        finally:
            self.close()

    def close(self) -> None:
        self._capture.close()
