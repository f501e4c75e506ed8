"""A GStreamer pipeline read through PyGObject, for machines whose OpenCV has no GStreamer."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from edgead.runtime.errors import SourceError
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Clock
from edgead.runtime.sources.clock import ClockMap

_OPEN_S, _READ_S = 5, 4
_WAKE_NS = 100_000_000  # how often a reader looks whether it was closed


class GstCapture:
    """Reads the ``appsink name=frames`` of a pipeline, BGR; keeps the interface of `Capture`.

    A frame's time is that of its buffer, which cameras stamp when they take it, in the host's clock.

    Args:
        text: as ``gst-launch-1.0`` takes it.
        clock: the host's monotonic clock.

    Raises:
        SourceError: an element is missing, or the text is wrong.
    """

    def __init__(self, text: str, clock: Clock) -> None:
        try:
            import gi

            gi.require_version("Gst", "1.0")
            gi.require_version("GstApp", "1.0")
            from gi.repository import GLib, Gst, GstApp  # noqa: F401 - GstApp gives the sink its methods
        except (ImportError, ValueError) as error:
            raise SourceError(
                f"GStreamer cannot be loaded ({error}); run: sudo apt-get install python3-gi gstreamer1.0-plugins-base "
                "gir1.2-gst-plugins-base-1.0"
            ) from error
        self._gst: Any = Gst
        Gst.init(None)
        self._clock = clock
        self._map = ClockMap()
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._pipeline: Any = Gst.parse_launch(text)
        except GLib.Error as error:
            raise SourceError(f"the pipeline cannot be built: {error.message}; see: edgead doctor") from error
        self._sink: Any = self._pipeline.get_by_name("frames")
        self._pipeline.set_state(Gst.State.PLAYING)
        change, *_ = self._pipeline.get_state(_OPEN_S * Gst.SECOND)
        # A live camera has no picture before it plays, and says so.
        self.opened = change in (Gst.StateChangeReturn.SUCCESS, Gst.StateChangeReturn.NO_PREROLL)

    @property
    def closed(self) -> bool:
        return self._closed

    def read(self, index: int, source_id: str) -> Frame | BadFrame | None:
        """Return the next frame; None at the end, after 4 s of silence, or once closed."""
        with self._lock:
            try:
                sample = None
                for _ in range(_READ_S * 10):
                    if self._closed or self._sink.is_eos():
                        return None
                    sample = self._sink.try_pull_sample(_WAKE_NS)
                    if sample is not None:
                        break
                if sample is None:
                    return None
                return self._frame(sample, index, source_id)
            finally:
                if self._closed:
                    self._release()

    def close(self) -> None:
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._lock.release()

    def _frame(self, sample: Any, index: int, source_id: str) -> Frame | BadFrame:
        arrival_ns = self._clock()
        buffer, form = sample.get_buffer(), sample.get_caps().get_structure(0)
        width, height = form.get_value("width"), form.get_value("height")
        stamp = 0 if buffer.pts == self._gst.CLOCK_TIME_NONE else buffer.pts + 1
        timestamp_ns = self._map.capture_ns(stamp, arrival_ns)
        mapped, memory = buffer.map(self._gst.MapFlags.READ)
        if not mapped:
            return BadFrame(index, timestamp_ns, source_id, "the frame's memory cannot be read")
        try:
            # Rows are padded to 4 bytes.
            stride = (3 * width + 3) // 4 * 4
            rows = np.frombuffer(memory.data, np.uint8)
            if rows.size < stride * height:
                return BadFrame(
                    index, timestamp_ns, source_id, f"the pipeline delivers {form.to_string()[:80]}, not BGR"
                )
            image = rows[: stride * height].reshape(height, stride)[:, : 3 * width].reshape(height, width, 3).copy()
        finally:
            buffer.unmap(memory)
        return Frame(image, index, timestamp_ns, source_id, "bgr")

    def _release(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)
