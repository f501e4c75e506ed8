"""What becomes of a captured frame: too old, unreadable, nobody there to judge it, or judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from edgead.runtime.frame import BadFrame, Frame, Result
from edgead.runtime.sources import Clock
from edgead.runtime.status.frame_ledger import Ledger
from edgead.runtime.status.latency import Timings
from edgead.runtime.streaming.frame_queue import LATE, PAUSED, STOPPED, Feed
from edgead.runtime.streaming.grabber import Item
from edgead.runtime.streaming.inference_thread import HUNG, FrameJudge
from edgead.runtime.uri import redact

STALE = "stale"
UNREADABLE = "unreadable frame"

Taken = tuple[Feed, Item]


class FrameSettler:
    """Settles captured frames in the ledger, one entry each, and gives their results.

    Args:
        judge: runs the inspector; ledger, timings: filled in here.
        clock: monotonic clock in ns, the one that stamps the frames.
        deadline: returns when the run must have ended, in `time.monotonic`.
    """

    def __init__(
        self, judge: FrameJudge, ledger: Ledger, timings: Timings, clock: Clock, deadline: Callable[[], float]
    ) -> None:
        self._judge = judge
        self._ledger = ledger
        self._timings = timings
        self._clock = clock
        self._deadline = deadline

    def __call__(self, group: list[Taken]) -> list[tuple[Result, Frame | None]]:
        """Settle frames in the ledger; returns a Result for each that gives one, in order, with its picture."""
        settled: list[tuple[Result, Frame | None]] = []
        chosen: list[tuple[Feed, Frame]] = []
        started_ns = self._clock()
        for feed, item in group:
            kept = self._sort(feed, item, started_ns)
            if isinstance(kept, Frame):
                chosen.append((feed, kept))
            elif kept is not None:
                settled.append((kept, item if isinstance(item, Frame) else None))
        if chosen:
            settled += self._ask(chosen, started_ns)
        return settled

    def _sort(self, feed: Feed, item: Item, started_ns: int) -> Frame | Result | None:
        """Return the frame where it is to be judged; else settle it, and return its Result where it gives one."""
        limit = feed.source.delivery.max_age_s
        reason = None
        if isinstance(item, BadFrame) and item.reason == PAUSED:
            reason = PAUSED
        elif limit is not None and started_ns - item.timestamp_ns > limit * 1e9:
            reason = LATE if feed.every else STALE
        elif time.monotonic() > self._deadline():
            reason = STOPPED
        elif self._judge.hung:
            reason = HUNG
        if reason is not None and not feed.every:
            self._ledger.dropped(feed.name, reason)
            return None
        if isinstance(item, BadFrame) and reason != PAUSED:
            self._ledger.failed(feed.name, LATE if item.reason == LATE else UNREADABLE)
            return self._judge.not_inspected(item, redact(item.reason))
        if reason is not None:
            self._ledger.failed(feed.name, reason)
            return self._judge.not_inspected(item, reason)
        assert isinstance(item, Frame)
        return item

    def _ask(self, chosen: list[tuple[Feed, Frame]], started_ns: int) -> list[tuple[Result, Frame | None]]:
        frames = [frame for _, frame in chosen]
        try:
            results = self._judge(frames, self._deadline)
        except BaseException:
            # Ctrl-C in the middle of a frame: nobody gets a Result, and the ledger still adds up.
            for feed, _ in chosen:
                self._ledger.dropped(feed.name, STOPPED)
            raise
        ended_ns = self._clock()
        settled: list[tuple[Result, Frame | None]] = []
        for number, (feed, frame) in enumerate(chosen):
            if results is None and not self._judge.hung and not feed.every:
                self._ledger.dropped(feed.name, STOPPED)
                continue
            if results is None:
                self._ledger.failed(feed.name, HUNG if self._judge.hung else STOPPED)
                settled.append((self._judge.not_inspected(frame, self._judge.hung or STOPPED), frame))
                continue
            result = results[number]
            end_to_end_ms = (ended_ns - frame.timestamp_ns) / 1e6
            stages = {"wait": (started_ns - frame.timestamp_ns) / 1e6, **result.timings}
            if math.isfinite(result.score):
                self._ledger.inspected(feed.name)
                self._timings.record(end_to_end_ms, stages)
            else:
                self._ledger.failed(feed.name, result.reason or "no valid score")
            settled.append((replace(result, timings={**stages, "end_to_end": end_to_end_ms}), frame))
        return settled
