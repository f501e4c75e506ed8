"""CSI cameras of a Jetson, through the GStreamer elements of JetPack. Not run on a Jetson yet: unverified there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Protocol

from edgead.runtime.errors import ConfigError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Address, Clock, Source
from edgead.runtime.uri import Parameters

_FLIPS = ("none", "counterclockwise", "rotate-180", "clockwise", "horizontal-flip", "upper-right-diagonal")


class Reader(Protocol):
    """What reads a pipeline: OpenCV or PyGObject."""

    opened: bool

    @property
    def closed(self) -> bool: ...

    def read(self, index: int, source_id: str) -> Frame | BadFrame | None: ...

    def close(self) -> None: ...


class CsiSource(Source):
    """Reads a camera on a Jetson's CSI port (``csi://0``), through OpenCV with GStreamer or through PyGObject.

    Parameters: ``width`` (1280), ``height`` (720), ``fps`` (30), ``flip`` (``none``, ``rotate-180``, …). Size and rate
    must be those of a sensor mode; the image processor scales others. Frames are BGR.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = True
        self.delivery = address.delivery
        self._address, self._clock = address, clock
        self.pipeline = pipeline_text(address.location, address.parameters)
        self._reader = open_pipeline(self.pipeline, clock)
        if not self._reader.opened:
            self._reader.close()
            raise SourceError(
                f"cannot open {self.source_id}; is the camera connected, and is nvargus-daemon running? "
                f"try: gst-launch-1.0 {self.pipeline.rpartition('!')[0]}! fakesink"
            )

    def frames(self) -> Iterator[Frame | BadFrame]:
        index = 0
        try:
            while (frame := self._reader.read(index, self.source_id)) is not None:
                yield frame
                index += 1
            if self._reader.closed:
                return
            if index == 0:
                raise SourceError(f"{self.source_id} opened but delivers no frame; does another program use it?")
            raise SourceLost(
                f"{self.source_id} stopped after {index} frames; try: sudo systemctl restart nvargus-daemon"
            )
        finally:
            self.close()

    def close(self) -> None:
        self._reader.close()

    def reopener(self) -> Callable[[], Source]:
        return partial(CsiSource, self._address, self._clock)


def pipeline_text(sensor: str, parameters: Parameters) -> str:
    """Return the GStreamer pipeline of a CSI camera, as ``gst-launch-1.0`` and OpenCV take it.

    One frame at most waits at its end, a newer one replaces it, and nothing waits for a clock.

    Raises:
        ConfigError: no sensor number, or a parameter out of range.
    """
    if not (sensor.isdecimal() and len(sensor) < 3):
        raise ConfigError(f"{parameters.where}: a CSI camera is a number, such as csi://0")
    width = parameters.integer("width", 1280, 16, 16384)
    height = parameters.integer("height", 720, 16, 16384)
    fps = parameters.number("fps", 30.0, 0.1, 1000.0)
    rate = f"{int(fps)}/1" if fps == int(fps) else f"{round(fps * 1000)}/1000"
    flip = _FLIPS.index(parameters.choice("flip", "none", _FLIPS))
    return " ! ".join(
        (
            f"nvarguscamerasrc sensor-id={int(sensor)}",
            f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate},format=NV12",
            f"nvvidconv flip-method={flip}",
            "video/x-raw,format=BGRx",
            "videoconvert",
            "video/x-raw,format=BGR",
            "appsink name=frames drop=true max-buffers=1 sync=false",
        )
    )


def open_pipeline(text: str, clock: Clock) -> Reader:
    """Open a pipeline with what this machine has; raises `SourceError` where neither OpenCV nor PyGObject can."""
    if find_spec("cv2") is not None:
        import cv2

        if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            from edgead.runtime.sources.video import Capture

            return Capture(text, "GSTREAMER", (), clock)
    if find_spec("gi") is not None:
        from edgead.runtime.sources.gstreamer import GstCapture

        return GstCapture(text, clock)
    raise SourceError(
        "csi:// needs GStreamer, which OpenCV from PyPI never has; use the system's Python packages: "
        "python3 -m venv --system-site-packages, with python3-opencv or python3-gi; see: edgead doctor"
    )
