"""The camera loop: sources -> inspector -> sinks, with an exact ledger and latency from capture to decision."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgead.runtime.errors import BackendError, ConfigError, EdgeadError
from edgead.runtime.frame import Decision, Result
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.own_process import OwnProcess
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.worker import SinkWorker
from edgead.runtime.sources import Clock, Source
from edgead.runtime.status.frame_ledger import Ledger
from edgead.runtime.status.latency import Timings
from edgead.runtime.status.summary import State, StreamSummary
from edgead.runtime.streaming.config import StreamConfig, StreamOptions
from edgead.runtime.streaming.ends import open_ends
from edgead.runtime.streaming.frame_queue import Intake
from edgead.runtime.streaming.grabber import Survival
from edgead.runtime.streaming.inference_thread import FrameJudge, Judge
from edgead.runtime.streaming.settlement import FrameSettler, Taken
from edgead.runtime.streaming.upkeep import Upkeep
from edgead.runtime.streaming.watching import watched, watches
from edgead.runtime.uri import redact

if TYPE_CHECKING:
    from typing_extensions import Unpack

# How often a loop whose backend hangs looks whether it is back.
_LOOK_S = 0.05
_GRACE_S = 0.5

_log = logging.getLogger("edgead.stream")


class Stream:
    """Judges the frames of one or several sources, the sources in turn.

    ``for result in stream`` yields every Result, in order for each source, ``async for`` likewise; `run` does so
    without a loop. Threads, sources and sinks are released at the end, on an exception, and when the loop is left
    early. A stream runs once.

    Each Result carries two more timings: ``wait`` (capture to its turn) and ``end_to_end`` (capture to decision).
    A frame for which the inspector raises, or gives no finite score, is `NOT_INSPECTED`, and the stream goes on.

    *A camera that is lost* is opened again for as long as the stream runs, see `Survival`. Frames are numbered on, and
    no frame from before the loss is judged as a new one.

    *A backend that hangs*: a frame that takes longer than ``hang_s`` is given up as `NOT_INSPECTED`. While the backend
    does not return, frames of live sources are settled without it (``newest``: dropped; ``every``: `NOT_INSPECTED`),
    files wait, and the state is ``hung``. When it returns, the stream goes on; what it computed is thrown away. After
    ``give_up_s`` the stream ends with a `BackendError`, since only a new process can help.

    *What it looks after*, where the inspector was opened from a bundle: `reload` goes on with the bundle as it then is
    on the disk; `self_test` replays the references between frames, and while they come out wrong nothing is inspected;
    drift from what normal parts looked like is logged, and in the summary (`StreamConfig.drift`).

    Args:
        inspector: an `Inspector`, or any callable from `Frame` to `Result`; it stays open.
        sources: URIs, or sources of your own; they belong to the stream from now on.
        sinks: URIs, or sinks of your own, likewise.
        config: what is asked for; None: the defaults of `StreamConfig`.
        clock: monotonic clock in ns, the one that stamps the frames.
        options: fields of `StreamConfig`, such as ``duration_s=60.0``, which count more than ``config``.

    Raises:
        ConfigError, SourceError: a source or sink cannot be opened (those already open are closed), a wrong option.

    Example:
        >>> with Inspector.open("screw.edgead") as inspect:
        ...     for result in Stream(inspect, "rtsp://camera/1", sinks=["results.jsonl"], self_test_hours=8.0):
        ...         print(result.decision, result.score)
    """

    def __init__(
        self,
        inspector: Judge,
        sources: str | Path | Source | Sequence[str | Path | Source],
        *,
        sinks: Sequence[str | Path | Sink] = (),
        config: StreamConfig | None = None,
        clock: Clock = time.monotonic_ns,
        **options: Unpack[StreamOptions],
    ) -> None:
        self._config = config = replace(config or StreamConfig(), **options)
        if config.batch > 1 and not hasattr(inspector, "inspect_batch"):
            raise ConfigError("this inspector judges frames one by one; leave batch at 1")
        self._upkeep = Upkeep(inspector, config.self_test_hours)
        self._judge = FrameJudge(inspector, config.hang_s)
        self._clock = clock
        self._drain = config.drain_s
        opened, self._sinks = open_ends(sources, sinks, clock, getattr(inspector, "bits", ALL_BITS))
        self._sinks += watches(inspector, self._sinks, config)
        self._ledger = Ledger([source.source_id for source in opened])
        limit = config.max_frames if all(source.delivery.policy == "every" for source in opened) else None
        self._intake = Intake(opened, self._ledger, clock, config.queue_size, limit, config.survival or Survival())
        self._finite = not any(source.live for source in opened)
        self._workers: list[SinkWorker] = []
        self._timings = Timings()
        self._settle = FrameSettler(self._judge, self._ledger, self._timings, clock, self._deadline)
        self._decisions = dict.fromkeys((decision.value for decision in Decision), 0)
        self._begun: float | None = None
        self._seconds: float | None = None
        self._stop_at: float | None = None
        self._asked = False
        self._error: EdgeadError | None = None
        # Reentrant, for a signal handler that closes what its own thread is closing.
        self._closing = threading.RLock()
        self._closed = False
        self._process = OwnProcess()

    def __iter__(self) -> Iterator[Result]:
        """Yield the Results; after the last one, raise what a source was lost with or why the backend was given up."""
        yield from self._results()
        if self._error is not None:
            raise self._error
        for feed in self._intake.feeds:
            if feed.error is not None:
                raise feed.error

    async def __aiter__(self) -> AsyncIterator[Result]:
        """Yield the Results without blocking the event loop; the camera loop runs in a thread.

        Use the stream as a context manager around it (``with stream: async for result in stream``), so that everything
        is released where the loop is left early or the task is cancelled.
        """
        from edgead.runtime.streaming.async_iterator import iterate

        async for result in iterate(iter(self), self.close):
            yield result

    def run(self) -> StreamSummary:
        """Run to the end and return the summary; sources that were lost are in its ``errors``."""
        for _ in self._results():
            pass
        return self.summary

    def stop(self, within_s: float | None = None) -> None:
        """Capture no more, judge what was captured, and end. Safe in a signal handler.

        Args:
            within_s: the longest that the end may take; None: ``drain_s``.
        """
        self._asked = True
        if within_s is not None:
            self._drain = min(self._drain, within_s)
        self._begin_end()

    def pause(self) -> None:
        """Judge nothing that is captured from now on, until `resume`; any thread may call it.

        What a live source captures meanwhile is counted as ``paused``: dropped (``newest``), or `NOT_INSPECTED`
        (``every``: the part has passed). Files wait. Frames captured before are judged, but for one that waits in
        ``newest``.
        """
        self._intake.pause()

    def resume(self) -> None:
        """Judge what is captured from now on."""
        self._intake.resume()

    def reload(self) -> None:
        """Ask for the bundle as it now is on the disk, in place of the one that judges; safe in a signal handler.

        It is done soon, in a thread of the stream's, or when the stream starts. A bundle that cannot be used changes
        nothing, which the log says; see `Inspector.swap`.

        Raises:
            ConfigError: the inspector was not opened from a bundle.
        """
        self._upkeep.ask("reload")

    def self_test(self) -> None:
        """Ask for a replay of the bundle's references on the backend that judges; safe in a signal handler.

        It is done soon, likewise, and the log says how it went. From a failure to the next pass every frame is
        `NOT_INSPECTED`; see `Inspector.self_test`.

        Raises:
            ConfigError: the inspector was not opened from a bundle.
        """
        self._upkeep.ask("test")

    def close(self) -> None:
        """End at once: what was captured and not judged is dropped. Any thread may call it, twice too."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._upkeep.end()
            self._intake.discard()
            self._intake.close_sources()
            # Threads that were told to end just now need a moment, even where the time for the frames is over.
            now = time.monotonic()
            deadline = max(self._deadline(), now + _GRACE_S) if self._stop_at is not None else now + self._drain
            if not self._judge.close(deadline):
                _log.warning("the backend does not return; it is left to the end of the process")
            self._intake.join(deadline, asked=self._asked)
            if self._begun is None:
                for sink in self._sinks:
                    sink.close()
            for worker in self._workers:
                worker.close(deadline)
            if not self._upkeep.join(deadline):
                _log.warning("a reload or self-test is under way, and left to itself")
            self._seconds = time.monotonic() - self._begun if self._begun is not None else 0.0

    @property
    def state(self) -> State:
        """What the stream does at this instant."""
        if self._closed:
            return "ended"
        if self._begun is None:
            return "ready"
        if self._judge.hung:
            return "hung"
        if self._stop_at is not None:
            return "draining"
        return "paused" if self._intake.paused else "running"

    @property
    def summary(self) -> StreamSummary:
        """The run at this instant: before, during and after it, from any thread."""
        total, by_source = self._ledger.snapshot()
        latency, stages = self._timings.summary()
        running = time.monotonic() - self._begun if self._begun is not None else 0.0
        return StreamSummary(
            seconds=self._seconds if self._seconds is not None else running,
            frames=total,
            sources=self._intake.summaries(by_source),
            decisions=dict(self._decisions),
            latency=latency,
            stages=stages,
            sinks=tuple(worker.report() for worker in self._workers),
            backend=self._judge.describe(),
            **watched(self._sinks),
            state=self.state,
            hangs=self._judge.hangs,
            error=redact(str(self._error)) if self._error is not None else None,
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
            self._judge.start()
            self._intake.start()
            self._upkeep.start(self._sinks)
            while (group := self._next()) is not None:
                settled = self._settle(group)
                del group
                while settled:
                    result, frame = settled.pop(0)
                    self._decisions[result.decision.value] += 1
                    for worker in self._workers:
                        worker.offer(result, frame)
                    # Released before the consumer takes its time over the result.
                    del frame
                    yield result
                    given += 1
                    if given == self._config.max_frames:
                        return
        finally:
            self.close()

    def _begin_end(self) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic()
        self._intake.stop()
        self._judge.wake()

    def _deadline(self) -> float:
        """Return when the end must be reached, in `time.monotonic`; infinite before `stop`."""
        return math.inf if self._stop_at is None else self._stop_at + self._drain

    def _next(self) -> list[Taken] | None:
        """Return the frames to settle next, one or a batch; None at the end."""
        self._process.require("this stream")
        if self._judge.hung:
            return self._next_while_hung()
        taken = self._take()
        if taken is None:
            return None
        group = [taken]
        size = self._config.batch
        if size > 1:
            if self._config.max_frames is not None:
                size = min(size, self._config.max_frames - sum(self._decisions.values()))
            until = time.monotonic() + (self._config.batch_deadline_s if self._stop_at is None else 0.0)
            while len(group) < size and (more := self._intake.take(until)) is not None:
                group.append(more)
        return group

    def _captured_until(self) -> float | None:
        """Return when the duration is over, in `time.monotonic`; None where there is none."""
        duration = self._config.duration_s
        return None if duration is None else (self._begun or 0.0) + duration

    def _take(self) -> Taken | None:
        if self._stop_at is None:
            until = self._captured_until()
            taken = None if until is not None and time.monotonic() >= until else self._intake.take(until)
            if taken is not None:
                return taken
            # The end, the duration is over, or `stop` was called: whatever it was, only captured frames are left.
            self._begin_end()
        return self._intake.take(self._deadline())

    def _next_while_hung(self) -> list[Taken] | None:
        """Return the next frame of a live source, which nobody can judge; an empty list where nothing happened."""
        until = self._captured_until()
        if until is not None and time.monotonic() >= until and self._stop_at is None:
            self._begin_end()
        if not self._judge.busy_s:
            self._judge.recover()
            return []
        if self._judge.busy_s >= (limit := self._config.give_up_s):
            self._error = BackendError(
                f"the backend has not returned for {limit:g} s; restart the program, and check: edgead doctor"
            )
            return None
        if time.monotonic() >= self._deadline():
            return None
        taken = self._intake.take(min(time.monotonic() + _LOOK_S, self._deadline()), live=True)
        if taken is not None:
            return [taken]
        time.sleep(0.001)  # every source may have ended, and then `take` returns at once
        return []
