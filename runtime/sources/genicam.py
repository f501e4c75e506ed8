"""Industrial cameras (GigE Vision, USB3 Vision) by GenICam, through the package harvesters.

It needs the GenTL producer (a ``.cti`` file) of a camera's vendor. Written against the API of harvesters; not run with
a camera yet: unverified.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgead.runtime.errors import ConfigError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame, Layout
from edgead.runtime.imaging.decode import FEWEST_BITS
from edgead.runtime.sources import Address, Clock, Source
from edgead.runtime.sources.clock import ClockMap

_LAYOUTS: dict[str, Layout] = {"Mono8": "gray", "RGB8": "rgb", "RGB8Packed": "rgb", "BGR8": "bgr", "BGR8Packed": "bgr"}
# Unpacked: a value of so many bits in the lower end of 16.
_BITS = {"Mono10": 10, "Mono12": 12, "Mono14": 14, "Mono16": 16}
_LAYOUTS.update(dict.fromkeys(_BITS, "gray"))
_FETCH_S = 0.2  # how often a reader looks whether it was closed; a triggered camera may be silent for hours
# Where the GenTL standard has vendors' installers name their producers.
_PRODUCERS = "GENICAM_GENTL64_PATH"


class GenicamSource(Source):
    """Reads a GenICam camera: ``genicam://0`` by number, ``genicam://SERIAL`` by serial number.

    Parameters: ``cti``, the producer's file (default: all that the vendors' installers made known); ``format``, the
    pixel format to set: ``Mono8``, ``RGB8``, ``BGR8``, or ``Mono10``, ``Mono12``, ``Mono14``, ``Mono16``, of which the
    upper 8 bits are kept: of the format's bits, or of the model's where these are fewer (`Address.bits`), as of files
    that this camera's pictures were saved in (default: as the camera is set). Frames carry the time at which the camera
    took them, in the host's clock.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = True
        self.delivery = address.delivery
        self._address, self._clock = address, clock
        self._map = ClockMap()
        self._closed = threading.Event()
        self._reading = threading.Lock()
        wanted = address.parameters.values.get("format")
        if wanted is not None and wanted not in _LAYOUTS:
            raise ConfigError(f"{self.source_id}: format={wanted} is not one of {', '.join(_LAYOUTS)}")
        with ExitStack() as stack:
            self._timeout, self._camera = self._open(stack, wanted)
            self._cleanup = stack.pop_all()

    def frames(self) -> Iterator[Frame | BadFrame]:
        index = 0
        try:
            while not self._closed.is_set():
                with self._reading:
                    try:
                        with self._camera.fetch(timeout=_FETCH_S) as buffer:
                            frame = self._frame(buffer, index)
                    except self._timeout:
                        continue
                    except Exception as error:
                        # The vendors' errors have no base class in common.
                        if self._closed.is_set():
                            return
                        raise SourceLost(f"{self.source_id} stopped after {index} frames ({error})") from error
                yield frame
                index += 1
        finally:
            self.close()

    def close(self) -> None:
        self._closed.set()
        # Under a running fetch the reader releases the camera itself, when it returns.
        if self._reading.acquire(timeout=2 * _FETCH_S):
            try:
                self._cleanup.close()
            finally:
                self._reading.release()

    def reopener(self) -> Callable[[], Source]:
        return partial(GenicamSource, self._address, self._clock)

    def _open(self, stack: ExitStack, pixel_format: str | None) -> tuple[type[Exception], Any]:
        try:
            from genicam.gentl import TimeoutException
            from harvesters.core import Harvester
        except ImportError as error:
            raise SourceError(
                f"{self.source_id}: harvesters cannot be loaded ({error}); run: pip install 'edgead[genicam]'"
            ) from error
        producers = self._producers()
        harvester = Harvester()
        stack.callback(harvester.reset)
        try:
            for producer in producers:
                harvester.add_file(str(producer))
            harvester.update()
            found = list(harvester.device_info_list)
            place = self._address.location
            if place.isdecimal() and int(place) < len(found):
                camera = harvester.create(int(place))
            else:
                camera = harvester.create({"serial_number": place})
            stack.callback(camera.destroy)
            if pixel_format is not None:
                camera.remote_device.node_map.PixelFormat.value = pixel_format
            # The newest frame, not the one that waited longest; the stream asks for each where it wants each.
            camera.num_buffers = 4
            camera.start()
            stack.callback(camera.stop)
        except Exception as error:
            raise SourceError(
                f"cannot open {self.source_id} ({' '.join(str(error).split())[:200] or type(error).__name__}); "
                f"is it connected, in this machine's network, and used by no other program?"
            ) from error
        return TimeoutException, camera

    def _producers(self) -> list[Path]:
        given = self._address.parameters.values.get("cti")
        if given is not None:
            if not Path(given).is_file():
                raise ConfigError(f"{self.source_id}: no producer file {given}; the camera's vendor has it")
            return [Path(given)]
        folders = [Path(folder) for folder in os.environ.get(_PRODUCERS, "").split(os.pathsep) if folder]
        found = [file for folder in folders for file in sorted(folder.glob("*.cti"))]
        if not found:
            raise SourceError(
                f"{self.source_id}: no GenTL producer is installed; install the camera vendor's, "
                "or name its file: genicam://0?cti=/path/producer.cti"
            )
        return found

    def _frame(self, buffer: Any, index: int) -> Frame | BadFrame:
        arrival_ns = self._clock()
        timestamp_ns = self._map.capture_ns(_device_ns(buffer), arrival_ns)
        components = buffer.payload.components
        if not components:
            return BadFrame(index, timestamp_ns, self.source_id, "the camera delivered a frame without a picture")
        picture = components[0]
        layout = _LAYOUTS.get(str(picture.data_format))
        if layout is None:
            known = ", ".join(("Mono8", "RGB8", "BGR8", *_BITS))
            reason = f"the camera delivers {picture.data_format}, not {known}; set ?format="
            return BadFrame(index, timestamp_ns, self.source_id, reason)
        shape = (picture.height, picture.width) if layout == "gray" else (picture.height, picture.width, 3)
        data = np.asarray(picture.data)
        bits = _BITS.get(str(picture.data_format))
        if data.dtype != (np.uint8 if bits is None else np.uint16) or data.size != np.prod(shape):
            return BadFrame(index, timestamp_ns, self.source_id, "the camera delivered an incomplete frame")
        if bits is not None:
            bits = min(bits, self._address.bits)
            largest = int(data.max(initial=0))
            if largest >> bits:
                reason = (
                    f"the camera delivers values up to {largest}, and {bits} bits are taken (up to {(1 << bits) - 1})"
                )
                return BadFrame(index, timestamp_ns, self.source_id, reason)
            data = (data >> (bits - FEWEST_BITS)).astype(np.uint8)
        # Copied: the buffer goes back to the camera.
        return Frame(data.reshape(shape).copy(), index, timestamp_ns, self.source_id, layout)


def _device_ns(buffer: Any) -> int:
    """Return the camera's timestamp, 0 where the producer has none: some then raise."""
    try:
        return int(buffer.timestamp_ns or 0)
    except Exception:  # noqa: BLE001 - the vendors' errors have no base class in common
        return 0
