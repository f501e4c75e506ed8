"""The camera loop: sources -> inspector -> sinks, with an exact ledger and latency from capture to decision."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import BadFrame, Decision, Frame, Result
from edgead.runtime.intake import LATE, STOPPED, Feed, Intake, Item
from edgead.runtime.ledger import Ledger
from edgead.runtime.sinks import Sink, open_sink
from edgead.runtime.sinks.worker import SinkWorker
from edgead.runtime.sources import Clock, Source, open_source
from edgead.runtime.summary import SourceSummary, StreamSummary
from edgead.runtime.timings import Timings
from edgead.runtime.uri import redact

STALE = "stale"
UNREADABLE = "unreadable frame"

_log = logging.getLogger("edgead.stream")


class Judge(Protocol):
    """What a stream needs of an inspector: `edgead.runtime.Inspector`, or a callable of your own.

    Where it has a ``threshold`` (float) it is shown in the Results of frames that were not inspected; where it has a
    ``describe()`` with a ``to_dict()`` that is in the summary.
    """

    def __call__(self, frame: Frame, /) -> Result: ...


class Stream:
    """Judges the frames of one or several sources, one at a time and the sources in turn.

    ``for result in stream`` yields every Result, in order for each source; `run` does so without a loop. Threads,
    sources and sinks are released at the end, on an exception, and when the loop is left early. A stream runs once.

    Each Result carries two more timings: ``wait`` (capture to its turn) and ``end_to_end`` (capture to decision).
    A frame for which the inspector raises, or gives no finite score, is `NOT_INSPECTED`, and the stream goes on.

    Args:
        inspector: an `Inspector`, or any callable from `Frame` to `Result`; it stays open.
        sources: URIs, or sources of your own; they belong to the stream from now on.
        sinks: URIs, or sinks of your own, likewise.
        max_frames: end after so many Results.
        duration_s: capture for so long, then judge what was captured.
        queue_size: frames that may wait, for a live source with ``policy=every``.
        drain_s: the longest that the end may take: judging captured frames after `stop`, waiting for a driver, and
            emptying the sinks. Where all sources are files, a sink may take longer as long as it gets on: then a full
            sink queue holds the files back (nothing on a line waits for them), and nothing is missed.
        clock: monotonic clock in ns, the one that stamps the frames.

    Raises:
        ConfigError, SourceError: a source or sink cannot be opened; those already open are closed.
    """

    def __init__(
        self,
        inspector: Judge,
        sources: str | Path | Source | Sequence[str | Path | Source],
        *,
        sinks: Sequence[str | Path | Sink] = (),
        max_frames: int | None = None,
        duration_s: float | None = None,
        queue_size: int = 8,
        drain_s: float = 5.0,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        for name, value in (("max_frames", max_frames), ("duration_s", duration_s), ("queue_size", queue_size)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        self._inspector = inspector
        self._clock = clock
        self._max_frames = max_frames
        self._duration = duration_s
        self._drain = drain_s
        with ExitStack() as undo:
            opened: list[Source] = []
            for item in _as_list(sources):
                opened.append(open_source(item, clock=clock) if isinstance(item, str | Path) else item)
                undo.callback(opened[-1].close)
            if not opened:
                raise ConfigError("a stream needs a source, such as 0 or parts/good or synthetic://")
            names = [source.source_id for source in opened]
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"source {name} is given twice; give each source once")
            targets: list[Sink] = []
            for target in sinks:
                targets.append(open_sink(target) if isinstance(target, str | Path) else target)
                undo.callback(targets[-1].close)
            undo.pop_all()
        self._ledger = Ledger(names)
        every = all(source.delivery.policy == "every" for source in opened)
        self._intake = Intake(opened, self._ledger, clock, queue_size, max_frames if every else None)
        self._finite = not any(source.live for source in opened)
        self._sinks = targets
        self._workers: list[SinkWorker] = []
        self._timings = Timings()
        self._decisions = dict.fromkeys((decision.value for decision in Decision), 0)
        self._begun: float | None = None
        self._seconds: float | None = None
        self._stop_at: float | None = None
        # Reentrant, for a signal handler that closes what its own thread is closing.
        self._closing = threading.RLock()
        self._closed = False

    def __iter__(self) -> Iterator[Result]:
        """Yield the Results; after the last one, raise `SourceLost` or `SourceError` where a source was lost."""
        yield from self._results()
        for feed in self._intake.feeds:
            if feed.error is not None:
                raise feed.error

    def run(self) -> StreamSummary:
        """Run to the end and return the summary; sources that were lost are in its ``errors``."""
        for _ in self._results():
            pass
        return self.summary

    def stop(self) -> None:
        """Capture no more, judge what was captured (for ``drain_s`` at most), and end. Safe in a signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic()
        self._intake.stop()

    def close(self) -> None:
        """End at once: what was captured and not judged is dropped. Any thread may call it, twice too."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._intake.discard()
            self._intake.close_sources()
            deadline = time.monotonic() + self._drain
            self._intake.join(deadline)
            if self._begun is None:
                for sink in self._sinks:
                    sink.close()
            for worker in self._workers:
                worker.close(deadline)
            self._seconds = time.monotonic() - self._begun if self._begun is not None else 0.0

    @property
    def summary(self) -> StreamSummary:
        """The run at this instant: before, during and after it, from any thread."""
        total, by_source = self._ledger.snapshot()
        latency, stages = self._timings.summary()
        running = time.monotonic() - self._begun if self._begun is not None else 0.0
        describe = getattr(self._inspector, "describe", None)
        return StreamSummary(
            seconds=self._seconds if self._seconds is not None else running,
            frames=total,
            sources={
                feed.name: SourceSummary(
                    by_source[feed.name],
                    feed.source.delivery.policy,
                    feed.source.live,
                    redact(str(feed.error)) if feed.error is not None else None,
                )
                for feed in self._intake.feeds
            },
            decisions=dict(self._decisions),
            latency=latency,
            stages=stages,
            sinks=tuple(worker.report() for worker in self._workers),
            backend=describe().to_dict() if describe is not None else None,
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _results(self) -> Iterator[Result]:
        if self._begun is not None or self._closed:
            raise ConfigError("a stream runs once; open a new one")
        self._begun = time.monotonic()
        given = 0
        try:
            for sink in self._sinks:
                sink.attach(lambda: self.summary)
            self._workers += [SinkWorker(sink, self._drain if self._finite else 0.0) for sink in self._sinks]
            self._intake.start()
            while (taken := self._next()) is not None:
                result = self._judge(*taken)
                if result is None:
                    continue
                self._decisions[result.decision.value] += 1
                frame = taken[1] if isinstance(taken[1], Frame) else None
                for worker in self._workers:
                    worker.offer(result, frame)
                # Released before the consumer takes its time over the result.
                del taken, frame
                yield result
                given += 1
                if given == self._max_frames:
                    break
        finally:
            self.close()

    def _next(self) -> tuple[Feed, Item] | None:
        begun = self._begun or 0.0
        if self._stop_at is None:
            until = None if self._duration is None else begun + self._duration
            taken = None if until is not None and time.monotonic() >= until else self._intake.take(until)
            if taken is not None:
                return taken
            # The end, the duration is over, or `stop` was called: whatever it was, only captured frames are left.
            self.stop()
        return self._intake.take((self._stop_at or 0.0) + self._drain)

    def _judge(self, feed: Feed, item: Item) -> Result | None:
        """Settle one frame in the ledger; None where it gives no Result."""
        started_ns = self._clock()
        limit = feed.source.delivery.max_age_s
        too_old = limit is not None and started_ns - item.timestamp_ns > limit * 1e9
        out_of_time = self._stop_at is not None and time.monotonic() > self._stop_at + self._drain
        if (too_old or out_of_time) and not feed.every:
            self._ledger.dropped(feed.name, STALE if too_old else STOPPED)
            return None
        if isinstance(item, BadFrame):
            self._ledger.failed(feed.name, LATE if item.reason == LATE else UNREADABLE)
            return self._not_inspected(item, redact(item.reason))
        if too_old or out_of_time:
            reason = LATE if too_old else STOPPED
            self._ledger.failed(feed.name, reason)
            return self._not_inspected(item, reason)
        try:
            result = self._inspect(item)
        except BaseException:
            # Ctrl-C in the middle of a frame: nobody gets a Result, and the ledger still adds up.
            self._ledger.dropped(feed.name, STOPPED)
            raise
        end_to_end_ms = (self._clock() - item.timestamp_ns) / 1e6
        stages = {"wait": (started_ns - item.timestamp_ns) / 1e6, **result.timings}
        if math.isfinite(result.score):
            self._ledger.inspected(feed.name)
            self._timings.record(end_to_end_ms, stages)
        else:
            self._ledger.failed(feed.name, result.reason or "no valid score")
        return replace(result, timings={**stages, "end_to_end": end_to_end_ms})

    def _inspect(self, frame: Frame) -> Result:
        try:
            result: object = self._inspector(frame)
        except Exception as error:  # noqa: BLE001 - whatever it was, the part on the belt must not pass as OK
            message = redact(" ".join(str(error).split()))[:300] or type(error).__name__
            _log.warning("frame %d of %s was not inspected: %s", frame.index, frame.source_id, message)
            return self._not_inspected(frame, f"inspector failed: {message}")
        if not isinstance(result, Result):
            return self._not_inspected(frame, f"inspector returned {type(result).__name__}, not a Result")
        if not math.isfinite(result.score) and result.decision is not Decision.NOT_INSPECTED:
            return replace(result, decision=Decision.NOT_INSPECTED, reason=result.reason or "non-finite score")
        return result

    def _not_inspected(self, item: Item, reason: str) -> Result:
        return Result(
            score=math.nan,
            threshold=float(getattr(self._inspector, "threshold", math.nan)),
            decision=Decision.NOT_INSPECTED,
            frame_index=item.index,
            timestamp_ns=item.timestamp_ns,
            source_id=item.source_id,
            reason=reason,
            name=item.name,
        )


def _as_list(sources: str | Path | Source | Sequence[str | Path | Source]) -> list[str | Path | Source]:
    return list(sources) if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
