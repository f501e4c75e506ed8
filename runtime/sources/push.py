"""Frames that the caller's own loop hands over: arrays, and buffers in a GPU's memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import BadFrame, Frame, Layout, require_layout, require_part_id
from edgead.runtime.imaging.decode import WIDE_HINT
from edgead.runtime.sources import Clock, Delivery, Policy, Source


class PushSource(Source):
    """A live source whose frames are pushed by the caller, from any thread.

    `push` returns at once: what cannot be judged in time is replaced or handed out as `NOT_INSPECTED`, as the policy
    says, and counted.

    Args:
        name: the source's id.
        policy, max_age_s: see `Delivery`.
        layout: channel order of the pictures, where they have three.
        copy: False hands the pushed array itself on, which must then not be changed: camera libraries fill one buffer
            again and again.
        clock: monotonic clock in ns.
    """

    def __init__(
        self,
        name: str = "push",
        *,
        policy: Policy = "newest",
        max_age_s: float | None = None,
        layout: Layout = "rgb",
        copy: bool = True,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        if layout == "gray":
            raise ConfigError("layout is the order of three channels, rgb or bgr; pictures (H, W) are taken as grey")
        require_layout(layout)
        self.source_id = name
        self.live = True
        self.delivery = Delivery(policy, max_age_s)
        self._layout = layout
        self._copy = copy
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Frame | BadFrame | None] = queue.SimpleQueue()
        self._next = 0
        self._closed = False

    def push(
        self, image: Any, timestamp_ns: int | None = None, name: str | None = None, part_id: str | None = None
    ) -> int:
        """Hand over one picture and return its frame number.

        Args:
            image: ``(H, W, 3)`` or ``(H, W)`` uint8: a numpy array; or anything with ``__cuda_array_interface__``,
                which is copied to the host here, since preprocessing works there (the copy needs ``cuda-bindings``;
                not run on a GPU yet: unverified).
            timestamp_ns: when it was captured, in the source's clock; None: now.
            name: shown in its Result.
            part_id: what the line calls the part, see `Frame`.

        Raises:
            ConfigError: the source is closed, or that is no part id.
            DataError: another shape or dtype.
        """
        pixels = _as_host_array(image)
        layout: Layout = "gray" if pixels.ndim == 2 else self._layout
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
            hint = WIDE_HINT if pixels.dtype == np.uint16 else ""
            raise DataError(f"a picture is (H, W, 3) or (H, W) uint8, got {pixels.shape} {pixels.dtype}{hint}")
        require_part_id(part_id)
        stamp = self._clock() if timestamp_ns is None else timestamp_ns
        shared = self._copy and isinstance(image, np.ndarray)
        pixels = np.array(pixels, order="C") if shared else np.ascontiguousarray(pixels)
        with self._lock:
            if self._closed:
                raise ConfigError(f"{self.source_id} is closed; open a new source")
            index = self._next
            self._next += 1
            # Within the lock, so that frames come in the order of their numbers.
            self._queue.put(Frame(pixels, index, stamp, self.source_id, layout, name, part_id))
        return index

    def frames(self) -> Iterator[Frame | BadFrame]:
        while (frame := self._queue.get()) is not None:
            yield frame

    def end(self) -> None:
        """Push no more; the stream ends when it has judged what was pushed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def close(self) -> None:
        self.end()


def _as_host_array(image: Any) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    described = getattr(image, "__cuda_array_interface__", None)
    if described is None:
        raise DataError(f"a picture is a numpy array or has __cuda_array_interface__, got {type(image).__name__}")
    shape, strides = tuple(described["shape"]), described.get("strides")
    kind = np.dtype(described["typestr"])
    contiguous = tuple(int(kind.itemsize * np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if strides is not None and tuple(strides) != contiguous:
        raise DataError("a picture in GPU memory must be C-contiguous; copy it first")
    from edgead.runtime.backends.cuda_copy import copy_to_host

    return copy_to_host(int(described["data"][0]), shape, kind, described.get("stream"))
