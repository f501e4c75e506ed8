"""Buffers between the grabbers and the one who judges."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from edgead.runtime.errors import SourceError
from edgead.runtime.frame import BadFrame
from edgead.runtime.sources import Source
from edgead.runtime.status.frame_ledger import Counts, Ledger
from edgead.runtime.status.summary import SourceSummary
from edgead.runtime.streaming.grabber import SIGNAL_S, Grabber, Item, Survival, describe
from edgead.runtime.uri import redact

SUPERSEDED = "superseded"
LATE = "not judged in time"
STOPPED = "stopped"
PAUSED = "paused"
LOST = "source lost"

# Frames read ahead of the judge from a file: one being read while one is judged is all that helps.
_READ_AHEAD = 2

_log = logging.getLogger("edgead.stream")


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
    """Takes frames from all sources at once, and hands them out one at a time, the sources in turn.

    - *newest*: one place; a newer frame takes it and the older one is dropped. The grabber never waits.
    - *every*, live: a queue; when it is full its oldest frame gives up its place and is handed out as a `BadFrame`, so
      order is kept, the newest frames have the best chance, and the grabber never waits.
    - *every*, files: the grabber waits for a place; nothing is lost.

    While it is paused a live source's frames are captured and not judged (*newest*: dropped; *every*: handed out as a
    `BadFrame` each), and files wait. When a source is lost and opened again, a frame that waits in *newest* is dropped:
    nothing from before a loss is judged after it. The frames of *every* are parts that were seen, and stay.

    Args:
        sources: with different ids.
        ledger: each frame is counted as captured in the instant it enters.
        clock: the clock of the frames' timestamps.
        queue_size: places of a live ``every`` source.
        limit: frames to capture in all, None for no limit; only sensible where every source is ``every``.
        survival: how a lost source is opened again.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        ledger: Ledger,
        clock: Callable[[], int],
        queue_size: int,
        limit: int | None,
        survival: Survival,
    ) -> None:
        self.feeds = [Feed(source, _capacity(source, queue_size)) for source in sources]
        self._ledger = ledger
        self._clock = clock
        self._limit = limit
        self._turn = 0
        self._stopping = False
        self._discarding = False
        self._paused = False
        # Reentrant, because a signal handler may call `stop` while this very thread holds it.
        lock = threading.RLock()
        self._ready = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._grabbers = [
            Grabber(
                feed.source,
                lock,
                partial(self._enter, feed),
                partial(self._lost, feed),
                partial(self._end, feed),
                survival,
            )
            for feed in self.feeds
        ]

    def start(self) -> None:
        for grabber in self._grabbers:
            grabber.start()

    def take(self, until: float | None, *, live: bool = False) -> tuple[Feed, Item] | None:
        """Return the next frame and its feed, the sources in turn; None at the end, or at ``until`` (`time.monotonic`).

        After `stop` the end is where no captured frame is left; a grabber that sits in its camera is not waited for.
        With ``live`` the frames of files are left where they are.
        """
        with self._ready:
            while True:
                for step in range(len(self.feeds)):
                    position = (self._turn + step) % len(self.feeds)
                    feed = self.feeds[position]
                    if (feed.late or feed.waiting) and (feed.source.live or not live):
                        self._turn = position + 1
                        item: Item = feed.late.popleft() if feed.late else feed.waiting.popleft()
                        self._room.notify_all()
                        return feed, item
                if all(feed.ended or (self._stopping and not feed.holding) for feed in self.feeds):
                    return None
                left = math.inf if until is None else until - time.monotonic()
                if left <= 0:
                    return None
                self._ready.wait(min(left, SIGNAL_S))

    @property
    def ended(self) -> bool:
        """Whether nothing more comes, and nothing waits."""
        with self._ready:
            return all(feed.ended and not len(feed) and not feed.holding for feed in self.feeds)

    @property
    def paused(self) -> bool:
        return self._paused

    def summaries(self, counts: Mapping[str, Counts]) -> dict[str, SourceSummary]:
        """Return how each source is and what became of its frames (``counts``), by its name."""
        return {
            feed.name: SourceSummary(
                counts[feed.name],
                feed.source.delivery.policy,
                feed.source.live,
                redact(str(feed.error)) if feed.error is not None else None,
                grabber.health,
            )
            for feed, grabber in zip(self.feeds, self._grabbers, strict=True)
        }

    def pause(self) -> None:
        """Judge nothing that is captured from now on; what waits in *newest* is dropped."""
        with self._ready:
            self._paused = True
            for feed in self.feeds:
                if feed.source.live and not feed.every:
                    self._drop(feed, PAUSED)

    def resume(self) -> None:
        with self._ready:
            self._paused = False
            self._room.notify_all()

    def stop(self) -> None:
        """Capture no more; what was captured stays to be taken. Safe in a signal handler."""
        for grabber in self._grabbers:
            grabber.stop()
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
            self._room.notify_all()

    def discard(self) -> None:
        """Capture no more, and drop what was captured."""
        for grabber in self._grabbers:
            grabber.stop()
        with self._ready:
            self._stopping = self._discarding = True
            for feed in self.feeds:
                self._drop(feed, STOPPED)
            self._ready.notify_all()
            self._room.notify_all()

    def close_sources(self) -> None:
        """Ask every source to end; grabbers release what they hold themselves."""
        for grabber in self._grabbers:
            grabber.close_source()

    def join(self, deadline: float, *, asked: bool) -> None:
        """Wait for the grabbers; one whose driver does not return by ``deadline`` is named in its feed's error.

        Where the end was ``asked`` for it is only logged: a silent camera is no reason to call that a failure.
        """
        for grabber, feed in zip(self._grabbers, self.feeds, strict=True):
            if grabber.join(deadline) or feed.error is not None:
                continue
            error = SourceError(f"{feed.name} does not return from its driver; unplug it or restart")
            if asked:
                _log.warning("%s", error)
            else:
                feed.error = error

    def _drop(self, feed: Feed, reason: str) -> None:
        for _ in range(len(feed)):
            self._ledger.dropped(feed.name, reason)
        feed.late.clear()
        feed.waiting.clear()

    def _lost(self, feed: Feed) -> None:
        if not feed.every:
            self._drop(feed, LOST)

    def _end(self, feed: Feed, error: SourceError | None) -> None:
        feed.ended = True
        if error is not None and not self._stopping:
            feed.error = error
            _log.warning("%s", describe(error))
        self._ready.notify_all()

    def _enter(self, feed: Feed, item: Item) -> bool:
        """Count a frame as captured and give it a place; False where no more is wanted."""
        if item.timestamp_ns > self._clock():
            # Another clock would make every age negative and switch the fail-safe for stale frames off.
            reason = "timestamp from the future; stamp frames with time.monotonic_ns() at capture"
            item = BadFrame.instead_of(item, reason, feed.name, self._clock())
        with self._ready:
            if self._paused and not feed.source.live:
                self._room.wait_for(lambda: not self._paused or self._stopping)
            if self._stopping or self._limit == 0:
                return False
            if self._limit is not None:
                self._limit -= 1
            self._ledger.captured(feed.name)
            if self._paused:
                if not feed.every:
                    self._ledger.dropped(feed.name, PAUSED)
                    return self._limit != 0
                item = BadFrame.instead_of(item, PAUSED, feed.name, item.timestamp_ns)
            if len(feed.waiting) >= feed.capacity:
                if not feed.every:
                    feed.waiting.popleft()
                    self._ledger.dropped(feed.name, SUPERSEDED)
                elif feed.source.live:
                    oldest = feed.waiting.popleft()
                    feed.late.append(
                        oldest
                        if isinstance(oldest, BadFrame)
                        else BadFrame.instead_of(oldest, LATE, feed.name, oldest.timestamp_ns)
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
