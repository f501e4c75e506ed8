"""The bounded queue and the thread behind which a sink works, so that it never delays a decision."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink
from edgead.runtime.status.sink_report import SinkReport
from edgead.runtime.uri import redact

_RESULTS = 4096
_FRAMES = 8  # 12-megapixel frames are 36 MB each

_log = logging.getLogger("edgead.sinks")


class SinkWorker:
    """Runs one sink.

    Args:
        sink: closed by the worker.
        patience_s: 0 for a live stream: what does not fit in the queue is missed. Above 0, for files, where nothing
            waits for a decision: a full queue is waited for as long as the sink gets on, at most this long a result.
    """

    def __init__(self, sink: Sink, patience_s: float) -> None:
        self._sink = sink
        self._patience = patience_s
        # A sink that only looks like one need not have it.
        self._alone = getattr(sink, "takes_results_alone", False)
        self._capacity = _FRAMES if sink.keeps_frames and not self._alone else _RESULTS
        self._pictures = 0
        self._untold = 0
        self._changed = threading.Condition()
        self._queue: deque[tuple[Result, Frame | None]] = deque()
        self._busy = False
        self._closing = False
        self._abandoned = False
        self._progress = time.monotonic()
        self._accepted = self._written = self._failed = self._missed = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"edgead-sink {sink.name}", daemon=True)
        self._thread.start()

    def offer(self, result: Result, frame: Frame | None) -> None:
        """Queue a result, or count it as missed; never raises."""
        kept = frame if self._sink.keeps_frames else None
        try:
            if not self._sink.accepts(result, frame):
                return
        except Exception as error:  # noqa: BLE001 - a sink of the user's own may raise anything
            with self._changed:
                self._accepted += 1
                self._note_failure(error)
            return
        with self._changed:
            self._accepted += 1
            if self._closing:
                self._miss(1)
                return
            self._wait_for(lambda: self._room(kept), self._patience)
            if self._alone and not self._room(kept):
                kept = None
            if not self._room(kept):
                self._miss(1)
                return
            if self._idle():
                self._progress = time.monotonic()
            self._queue.append((result, kept))
            self._pictures += kept is not None
            self._changed.notify_all()

    def close(self, deadline: float) -> None:
        """Write what is queued, until ``deadline`` (`time.monotonic`), or with patience as long as the sink gets on.

        What is left then counts as missed. A sink that never returns keeps its thread, which ends with the process.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._patience:
                self._wait_for(self._idle, self._patience)
            else:
                self._changed.wait_for(self._idle, max(0.0, deadline - time.monotonic()))
            if not self._idle():
                self._error = f"did not finish; {len(self._queue) + self._busy} results were given up"
            self._miss(len(self._queue) + self._busy)
            self._queue.clear()
            self._abandoned = True
            self._changed.notify_all()
            blocked = self._busy
        # What is left is the sink's own `close`.
        self._thread.join(0.0 if blocked else max(1.0, deadline - time.monotonic()))
        with self._changed:
            if self._thread.is_alive() and self._error is None:
                self._error = "did not close in time"

    def report(self) -> SinkReport:
        """Return the counters, all of one instant."""
        with self._changed:
            pending = 0 if self._abandoned else len(self._queue) + self._busy
            return SinkReport(
                self._sink.name, self._accepted, self._written, self._failed, self._missed, pending, self._error
            )

    def _idle(self) -> bool:
        return not self._queue and not self._busy

    def _room(self, kept: Frame | None) -> bool:
        return len(self._queue) < self._capacity and (kept is None or self._pictures < _FRAMES)

    def _miss(self, count: int) -> None:
        self._missed += count
        self._untold += count

    def _wait_for(self, ready: Callable[[], bool], patience: float) -> None:
        """Wait until ``ready()``, but no longer than ``patience`` after the sink last began or finished a result."""
        while not ready():
            left = self._progress + patience - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                result, frame = self._queue.popleft()
                self._pictures -= frame is not None
                untold, self._untold = self._untold, 0
                self._busy = True
                self._step()
            error: Exception | None = None
            try:
                self._tell_missed(untold)
                self._sink.write(result, frame)
            except Exception as caught:  # noqa: BLE001
                error = caught
            del result, frame
            with self._changed:
                self._busy = False
                if self._abandoned:
                    break
                if error is None:
                    self._written += 1
                else:
                    self._note_failure(error)
                self._step()
        try:
            self._tell_missed(self._untold)
            self._sink.close()
        except Exception as error:  # noqa: BLE001
            with self._changed:
                self._error = _describe(error)

    def _tell_missed(self, count: int) -> None:
        if count and hasattr(self._sink, "missed"):
            self._sink.missed(count)

    def _step(self) -> None:
        self._progress = time.monotonic()
        self._changed.notify_all()

    def _note_failure(self, error: Exception) -> None:
        self._failed += 1
        if self._error is None:
            _log.warning("sink %s failed: %s", self._sink.name, _describe(error))
        self._error = _describe(error)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text)[:300]
