"""The camera loop as a process: signals, waiting for a source, a status line, remarks that do not flood a log."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from edgead.cli._output import Output, handled_by
from edgead.cli.terminal.progress import clock_text
from edgead.runtime.backends import batch_size, choose
from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.errors import EdgeadError, SourceError, StreamFailed
from edgead.runtime.frame import Decision
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.inspection.shadow import ShadowReport, ShadowSink
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.sinks import Sink
from edgead.runtime.sources import REGISTRY, parse_address
from edgead.runtime.status.frame_ledger import Counts
from edgead.runtime.status.summary import StreamSummary
from edgead.runtime.streaming.config import StreamConfig
from edgead.runtime.streaming.stream import Stream
from edgead.runtime.uri import redact

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 5.0
# From a signal to the end; who sent it waits 2 s at most.
_END_S = 1.0

_log = logging.getLogger("edgead.run")


@dataclass(frozen=True, slots=True)
class Ends:
    """Where frames come from, and where results go.

    Attributes:
        sources, sinks: URIs.
        page: makes the live page, which is there before the sources are, so that it can say what is waited for.
        record: what ``--record`` was given; shadow: a second bundle that judges and decides nothing.
        updates: what ``--updates`` was given.
        watch: show a status line where a person watches; not beside results on stdout.
    """

    sources: Sequence[str]
    sinks: Sequence[str]
    page: Callable[[Inspector, RecordSink | None], LivePage] | None = None
    watch: bool = True
    record: str | None = None
    shadow: Path | None = None
    updates: str | None = None


def run_stream(
    out: Output, bundle: Path, ends: Ends, run: RunConfig, stream: StreamConfig
) -> tuple[StreamSummary, ShadowReport | None]:
    """Run to the end, or until SIGINT or SIGTERM, which drain; before the first frame they give an empty summary.

    SIGHUP loads the bundle as it then is on the disk, SIGUSR1 has the references replayed: see `Stream`.
    """
    # Read before anything is opened: a mistake is said at once.
    options = RecordOptions.parse(ends.record) if ends.record is not None else None
    switch = _Switch()
    with switch.installed(), _calm_log():
        try:
            with ExitStack() as stack:
                inspector = stack.enter_context(Inspector.open(bundle, _for_batches(run, stream.batch)))
                out.note(f"backend: {inspector.why}")
                if inspector.left_out is not None:
                    out.warn(inspector.left_out)
                record = shadow = None
                sinks: list[str | Path | Sink] = [*ends.sinks]
                if options is not None:
                    record = RecordSink(options, inspector)
                    stack.callback(record.close)
                if ends.shadow is not None:
                    shadow = ShadowSink(ends.shadow, run, inspector.bits)
                    stack.callback(shadow.close)
                    sinks.append(shadow)
                if ends.updates is not None:
                    sinks.append(_updates(ends.updates, inspector, run, record, stack))
                if record is not None:
                    # After the shadow: sinks are closed in this order, and it writes down what the shadow says.
                    sinks.append(record)
                    if shadow is not None:
                        shadow.on_difference = record.shadow_differs
                if ends.page is not None:
                    live = ends.page(inspector, record)
                    stack.callback(live.close)
                    sinks.append(live)
                    out.note(f"live page: {live.url}")
                opened = stack.enter_context(_open(out, inspector, ends.sources, sinks, stream))
                switch.stream = opened
                out.note(_started(ends))
                if ends.watch and out.watched:
                    # stdout is left alone: what is printed there is for programs, or comes after the end.
                    line = _Status(opened, stream)
                    stack.enter_context(
                        Live(line, console=out.notes, refresh_per_second=4, transient=True, redirect_stdout=False)
                    )
                return _run(opened), None if shadow is None else shadow.report
        except KeyboardInterrupt:
            out.note("stopped before the first frame")
            decisions = dict.fromkeys((decision.value for decision in Decision), 0)
            return StreamSummary(0.0, Counts(0, 0, 0, {}, {}), {}, decisions, None, {}, (), None), None


def _started(ends: Ends) -> str:
    shown = "" if ends.sinks or not ends.watch else "; --sink jsonl:- prints each decision"
    return f"running: {', '.join(ends.sources)}; Ctrl-C ends it{shown}"


def _updates(text: str, inspector: Inspector, run: RunConfig, record: RecordSink | None, stack: ExitStack) -> Sink:
    from edgead.runtime.updates.updating import UpdateOptions, Updates

    updates = Updates(UpdateOptions.parse(text), inspector, run, record)
    stack.callback(updates.close)
    updates.start()
    return updates


def _run(stream: Stream) -> StreamSummary:
    try:
        return stream.run()
    except (EdgeadError, OSError, MemoryError) as error:
        # It began in order: whatever came in between, a service may try again.
        raise StreamFailed(f"the run broke off: {error or 'not enough memory'}") from error


def _for_batches(run: RunConfig, batch: int) -> RunConfig:
    """Return what to open the bundle with; a profile was measured on single frames, and says nothing of batches."""
    return run if batch == 1 else replace(run, batch=batch_size(choose(run.backend)[0], batch), profile=None)


class _Switch:
    """Makes SIGINT and SIGTERM the orderly end of a stream, or, while there is none yet, a KeyboardInterrupt.

    SIGHUP and SIGUSR1, where there are any, ask it to reload the bundle and for a self-test.
    """

    def __init__(self) -> None:
        self.stream: Stream | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        handlers: dict[int, Callable[[int, FrameType | None], None]]
        handlers = {signal.SIGINT: self._end, signal.SIGTERM: self._end}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self._reload
        if hasattr(signal, "SIGUSR1"):
            handlers[signal.SIGUSR1] = self._test
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if self.stream is None:
            raise KeyboardInterrupt
        self.stream.stop(_END_S)

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        if self.stream is not None:
            self.stream.reload()

    def _test(self, _number: int, _frame: FrameType | None) -> None:
        if self.stream is not None:
            self.stream.self_test()


def _open(
    out: Output, inspector: Inspector, sources: Sequence[str], sinks: Sequence[str | Path | Sink], config: StreamConfig
) -> Stream:
    wait = config.survival is not None and config.survival.wait
    delay = _FIRST_RETRY_S
    said = ""
    while True:
        try:
            return inspector.stream(list(sources), sinks=sinks, config=config)
        except SourceError as error:
            if not wait or _lacks_package(sources):
                raise
            # All sources are closed by now: none fills its buffers while another is waited for.
            if str(error) != said:
                said = str(error)
                out.warn(f"waiting: {said}")
        time.sleep(delay)
        delay = min(2 * delay, _LAST_RETRY_S)


def _lacks_package(sources: Sequence[str]) -> bool:
    """A camera may still come, a package does not."""
    for uri in sources:
        try:
            entry = REGISTRY[parse_address(uri).scheme]
        except SourceError:
            continue
        if entry.package and find_spec(entry.package) is None:
            return True
    return False


class _Status:
    """The line on which a person watches the stream."""

    def __init__(self, stream: Stream, config: StreamConfig) -> None:
        self._stream, self._config = stream, config

    def __rich__(self) -> RenderableType:
        summary = self._stream.summary
        frames = summary.frames.to_dict()
        counts = ", ".join(f"{name} {frames[name]}" for name in ("captured", "dropped", "failed"))
        decisions = ", ".join(f"{name} {count}" for name, count in summary.decisions.items() if count)
        away = sum(source.health.state == "reconnecting" for source in summary.sources.values())
        troubles = [f"{away} of {len(summary.sources)} sources away"] if away else []
        troubles += [f"state: {summary.state}"] if summary.state in ("hung", "paused") else []
        latency = f"{summary.latency.p50:.1f} ms (p99 {summary.latency.p99:.1f})" if summary.latency else "-"
        left = self._left_s(summary)
        took = f"{summary.seconds:.0f} s" + ("" if left is None else f", {clock_text(left)} left")
        text = " | ".join([*troubles, took, counts, decisions or "-", latency])
        return Text(text, no_wrap=True, overflow="ellipsis")

    def _left_s(self, summary: StreamSummary) -> float | None:
        """Return the seconds left to what ``--duration`` and ``--max-frames`` say, None where there is no end."""
        ends = []
        if self._config.duration_s is not None:
            ends.append(self._config.duration_s - summary.seconds)
        given = sum(summary.decisions.values())
        if self._config.max_frames is not None and given:
            ends.append(summary.seconds / given * (self._config.max_frames - given))
        return max(0.0, min(ends)) if ends else None


@contextmanager
def _calm_log() -> Iterator[None]:
    """Send the runtime's remarks to stderr, the same kind once a second at most: a camera fails 30 times a second."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_Calm())
    with handled_by("edgead", handler):
        yield


class _Calm(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), time.monotonic()
        with self._lock:
            if now - self._last.get(kind, -math.inf) < 1.0:
                self._held[kind] = self._held.get(kind, 0) + 1
                return False
            self._last[kind] = now
            held = self._held.pop(kind, 0)
        text = redact(record.getMessage()) + (f" (and {held} more of this kind)" if held else "")
        record.msg, record.args = text, ()
        return True
