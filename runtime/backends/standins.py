"""What stands in a backend's place: one that has been released, and one that is shared."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo, Inference
from edgead.runtime.errors import BackendError


class ClosedBackend:
    """Stands in for a released backend, so that a late frame is NOT_INSPECTED and never a crash."""

    def __init__(self, info: BackendInfo) -> None:
        self._info = info

    def run(self, images: NDArray[np.uint8]) -> Inference:  # noqa: ARG002 - keeps the protocol
        raise BackendError("the inspector is closed")

    def describe(self) -> BackendInfo:
        return self._info

    def close(self) -> None:
        pass


class SharedBackend:
    """Runs a backend that somebody else uses and closes, one call at a time under their lock.

    Args:
        lock: held for each run.
        current: gives the backend, which may have been replaced since the last run.
    """

    def __init__(self, lock: threading.Lock, current: Callable[[], Backend]) -> None:
        self._lock = lock
        self._current = current

    def run(self, images: NDArray[np.uint8]) -> Inference:
        with self._lock:
            return self._current().run(images)

    def describe(self) -> BackendInfo:
        return self._current().describe()

    def close(self) -> None:
        pass
