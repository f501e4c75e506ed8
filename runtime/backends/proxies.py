"""What stands in a backend's place: one that has been released, and one that is shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Inference

# Locks are not fair: who asks again at once may get it before one who has been waiting.
_COURTESY_S = 0.001


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
            found = self._current().run(images)
        time.sleep(_COURTESY_S)
        return found

    def describe(self) -> BackendInfo:
        return self._current().describe()

    def close(self) -> None:
        pass
