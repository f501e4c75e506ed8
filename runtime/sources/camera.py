"""Cameras through OpenCV: USB and built-in ones (V4L2), network ones (RTSP, HTTP)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial

from edgead.runtime.errors import ConfigError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Address, Clock, Source
from edgead.runtime.sources.video import Capture
from edgead.runtime.uri import encode_credentials

# A little less than the default drain of a stream, so that stopping one waits for a silent camera and no longer.
_OPEN_TIMEOUT_MS, _READ_TIMEOUT_MS = 5000, 4000
# Pictures that stay this old come from a buffer that never empties; opening the camera again empties it.
_BEHIND_S, _BEHIND_FOR_S = 2.0, 5.0
# Frames omitted at most while what was buffered during the opening comes; it is over after so many in their own time.
_RUSH, _CALM = 200, 2


class CameraSource(Source):
    """Reads a live camera.

    Frames keep the channel order that OpenCV delivers (BGR or grey) and are stamped when they are grabbed. The driver's
    buffer is kept at one frame where it allows that. A network camera that says nothing for 4 s is lost, and so is one
    whose pictures, by its own clock (RTSP, V4L2), stay more than 2 s behind.

    What such a camera sent while it was being opened comes at once and is older than it seems. With ``policy=newest``
    these first frames are omitted: capturing begins with the first that comes in its own time.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = True
        self.delivery = address.delivery
        self._clock = clock
        self._address = address
        network = address.scheme != "v4l2"
        # RTP has a clock; a series of pictures over HTTP has none, and FFmpeg makes one up.
        self._own_clock = sys.platform == "linux" if not network else address.scheme.startswith("rtsp")
        self._capture = self._open_network(address) if network else self._open_device(address)

    def frames(self) -> Iterator[Frame | BadFrame]:
        index = 0
        rush = _RUSH if self.delivery.policy == "newest" and self._own_clock else 0
        calm = 0
        in_time_ns = self._clock()
        try:
            while (frame := self._capture.read(index, self.source_id)) is not None:
                if rush:
                    calm = 0 if self._capture.rushing else calm + 1
                    rush = 0 if calm == _CALM else rush - 1
                    if rush:
                        continue
                now_ns = self._clock()
                behind_s = (now_ns - frame.timestamp_ns) / 1e9
                if behind_s <= _BEHIND_S:
                    in_time_ns = now_ns
                elif now_ns - in_time_ns > _BEHIND_FOR_S * 1e9:
                    raise SourceLost(
                        f"{self.source_id} delivers pictures that are {behind_s:.1f} s old; "
                        "a smaller size or rate may help"
                    )
                yield frame
                index += 1
            if self._capture.closed:
                return
            if index == 0:
                raise SourceError(f"{self.source_id} opened but delivers no frame; does another program use it?")
            raise SourceLost(f"{self.source_id} stopped after {index} frames; check cable, power and network")
        finally:
            self.close()

    def close(self) -> None:
        self._capture.close()

    def reopener(self) -> Callable[[], Source]:
        return partial(CameraSource, self._address, self._clock)

    def _open_network(self, address: Address) -> Capture:
        timeouts = (("OPEN_TIMEOUT_MSEC", _OPEN_TIMEOUT_MS), ("READ_TIMEOUT_MSEC", _READ_TIMEOUT_MS))
        capture = Capture(encode_credentials(address.location), "FFMPEG", timeouts, self._clock, self._own_clock)
        if not capture.opened:
            raise SourceError(
                f"cannot open {self.source_id}; check its address, user and password (write %25 for a % in it), "
                "and the network to it"
            )
        return capture

    def _open_device(self, address: Address) -> Capture:
        parameters = address.parameters
        width = parameters.integer("width", 0, 1, 32768)
        height = parameters.integer("height", 0, 1, 32768)
        fps = parameters.number("fps", 0.0, 0.01, 10_000.0)
        fourcc = parameters.values.get("fourcc", "")
        if fourcc and not re.fullmatch(r"[\x21-\x7e]{3}[\x20-\x7e]", fourcc):
            raise ConfigError(f"{self.source_id}: fourcc={fourcc} is not a four-character code such as MJPG or YUYV")
        location = address.location
        if not re.fullmatch(r"[0-9]{1,4}|/dev/.+", location):
            raise ConfigError(f"{self.source_id}: a camera is a number or a device, such as v4l2://0 or /dev/video0")
        target = int(location) if location.isdecimal() else location
        capture = Capture(target, "V4L2" if sys.platform == "linux" else "", (), self._clock, self._own_clock)
        if not capture.opened:
            raise SourceError(f"cannot open camera {self.source_id}; is it plugged in, and may this user read it?")
        # The pixel format first: it decides which sizes and rates there are.
        if fourcc:
            capture.set("FOURCC", sum(ord(letter) << 8 * position for position, letter in enumerate(fourcc)))
        for name, value in (("FRAME_WIDTH", width), ("FRAME_HEIGHT", height), ("FPS", fps), ("BUFFERSIZE", 1)):
            if value:
                capture.set(name, value)
        got = int(capture.get("FRAME_WIDTH")), int(capture.get("FRAME_HEIGHT"))
        if (width or got[0], height or got[1]) != got:
            # OpenCV takes the nearest size in silence, and another size is another picture to the model.
            capture.close()
            raise SourceError(
                f"camera {self.source_id} gives {got[0]}x{got[1]}, not {width or got[0]}x{height or got[1]}; "
                "ask for a size it has (v4l2-ctl --list-formats-ext)"
            )
        return capture
