"""Grabber threads and the buffers between them and the one who judges."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgead.runtime.errors import EdgeadError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.ledger import Ledger
from edgead.runtime.sources import Source
from edgead.runtime.uri import redact

SUPERSEDED = "superseded"
LATE = "not judged in time"
STOPPED = "stopped"

# Frames read ahead of the judge from a file: one being read while one is judged is all that helps.
_READ_AHEAD = 2

_log = logging.getLogger("edgead.stream")

Item = Frame | BadFrame


@dataclass(slots=True, eq=False)
class Feed:
    """One source and its buffer; guarded by the lock of the `Intake`.

    Attributes:
        late: headers of frames that lost their place in a full queue; all are older than those in ``waiting``.
        waiting: frames to judge, in order; at most ``capacity``.
        holding: the grabber has a frame in its hand and waits for a place.
    """

    source: Source
    capacity: int
    late: deque[BadFrame] = field(default_factory=deque)
    waiting: deque[Item] = field(default_factory=deque)
    holding: bool = False
    ended: bool = False
    error: SourceError | None = None

    @property
    def name(self) -> str:
        return self.source.source_id

    @property
    def every(self) -> bool:
        return self.source.delivery.policy == "every"

    def __len__(self) -> int:
        return len(self.late) + len(self.waiting)


class Intake:
    """Takes frames from all sources at once, one thread a source, and hands them out one at a time in turn.

    - *newest*: one place; a newer frame takes it and the older one is dropped. The grabber never waits.
    - *every*, live: a queue; when it is full its oldest frame gives up its place and is handed out as a `BadFrame`, so
      order is kept, the newest frames have the best chance, and the grabber never waits.
    - *every*, files: the grabber waits for a place; nothing is lost.

    Args:
        sources: with different ids.
        ledger: each frame is counted as captured in the instant it enters.
        clock: the clock of the frames' timestamps.
        queue_size: places of a live ``every`` source.
        limit: frames to capture in all, None for no limit; only sensible where every source is ``every``.
    """

    def __init__(
        self, sources: Sequence[Source], ledger: Ledger, clock: Callable[[], int], queue_size: int, limit: int | None
    ) -> None:
        self.feeds = [Feed(source, _capacity(source, queue_size)) for source in sources]
        self._ledger = ledger
        self._clock = clock
        self._limit = limit
        self._turn = 0
        self._stopping = False
        self._discarding = False
        # Reentrant, because a signal handler may call `stop` while this very thread holds it.
        lock = threading.RLock()
        self._ready = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._threads = [
            threading.Thread(target=self._grab, args=(feed,), name=f"edgead-source {feed.name}", daemon=True)
            for feed in self.feeds
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def take(self, until: float | None) -> tuple[Feed, Item] | None:
        """Return the next frame and its feed, the sources in turn; None at the end, or at ``until`` (`time.monotonic`).

        After `stop` the end is where no captured frame is left; a grabber that sits in its camera is not waited for.
        """
        with self._ready:
            while True:
                for step in range(len(self.feeds)):
                    position = (self._turn + step) % len(self.feeds)
                    feed = self.feeds[position]
                    if feed.late or feed.waiting:
                        self._turn = position + 1
                        item: Item = feed.late.popleft() if feed.late else feed.waiting.popleft()
                        self._room.notify_all()
                        return feed, item
                if all(feed.ended or (self._stopping and not feed.holding) for feed in self.feeds):
                    return None
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._ready.wait(left)

    def stop(self) -> None:
        """Capture no more; what was captured stays to be taken. Safe in a signal handler."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
            self._room.notify_all()

    def discard(self) -> None:
        """Capture no more, and drop what was captured."""
        with self._ready:
            self._stopping = self._discarding = True
            for feed in self.feeds:
                for _ in range(len(feed)):
                    self._ledger.dropped(feed.name, STOPPED)
                feed.late.clear()
                feed.waiting.clear()
            self._ready.notify_all()
            self._room.notify_all()

    def close_sources(self) -> None:
        """Ask every source to end; grabbers release what they hold themselves."""
        for feed in self.feeds:
            try:
                feed.source.close()
            except Exception as error:  # noqa: BLE001 - a source of the user's own may raise anything
                _log.warning("closing %s failed: %s", feed.name, _describe(error))

    def join(self, deadline: float) -> None:
        """Wait for the grabbers; one whose driver does not return by ``deadline`` is named in its feed's error."""
        for thread, feed in zip(self._threads, self.feeds, strict=True):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive() and feed.error is None:
                    feed.error = SourceError(f"{feed.name} does not return from its driver; unplug it or restart")

    def _grab(self, feed: Feed) -> None:
        error: SourceError | None = None
        try:
            frames = iter(feed.source.frames())
            for item in frames:
                if not self._enter(feed, item):
                    break
            # Generators release their camera when they are closed, and only the thread that ran them may do it.
            close = getattr(frames, "close", None)
            if close is not None:
                close()
        except SourceError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - one source that breaks must not take the others with it
            kind = "" if isinstance(caught, EdgeadError) else f"{type(caught).__name__}: "
            error = SourceLost(f"{feed.name} failed: {kind}{_describe(caught)}")
            error.__cause__ = caught
        finally:
            try:
                feed.source.close()
            except Exception as caught:  # noqa: BLE001
                _log.warning("closing %s failed: %s", feed.name, _describe(caught))
            with self._ready:
                feed.ended = True
                if error is not None and not self._stopping:
                    feed.error = error
                    _log.warning("%s", error)
                self._ready.notify_all()

    def _enter(self, feed: Feed, item: Item) -> bool:
        """Count a frame as captured and give it a place; False where no more is wanted."""
        if item.timestamp_ns > self._clock():
            # Another clock would make every age negative and switch the fail-safe for stale frames off.
            reason = "timestamp from the future; stamp frames with time.monotonic_ns() at capture"
            item = BadFrame(item.index, self._clock(), feed.name, reason, item.name)
        with self._ready:
            if self._stopping or self._limit == 0:
                return False
            if self._limit is not None:
                self._limit -= 1
            self._ledger.captured(feed.name)
            if len(feed.waiting) >= feed.capacity:
                if not feed.every:
                    feed.waiting.popleft()
                    self._ledger.dropped(feed.name, SUPERSEDED)
                elif feed.source.live:
                    oldest = feed.waiting.popleft()
                    feed.late.append(
                        oldest
                        if isinstance(oldest, BadFrame)
                        else BadFrame(oldest.index, oldest.timestamp_ns, feed.name, LATE, oldest.name)
                    )
                else:
                    feed.holding = True
                    self._room.wait_for(lambda: len(feed.waiting) < feed.capacity or self._discarding)
                    feed.holding = False
            if self._discarding:
                self._ledger.dropped(feed.name, STOPPED)
                self._ready.notify_all()
                return False
            feed.waiting.append(item)
            self._ready.notify_all()
            return not self._stopping and self._limit != 0


def _capacity(source: Source, queue_size: int) -> int:
    if source.delivery.policy == "newest":
        return 1
    return queue_size if source.live else _READ_AHEAD


def _describe(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__
