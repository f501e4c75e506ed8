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
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from edgead.cli._output import Output
from edgead.runtime.errors import SourceError
from edgead.runtime.frame import Decision
from edgead.runtime.inspector import Inspector
from edgead.runtime.ledger import Counts
from edgead.runtime.page.sink import LivePage
from edgead.runtime.sinks import Sink
from edgead.runtime.sources import REGISTRY, parse_address
from edgead.runtime.stream import Stream
from edgead.runtime.summary import StreamSummary
from edgead.runtime.uri import redact

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 5.0


def run_stream(
    out: Output,
    bundle: Path,
    sources: Sequence[str],
    sinks: Sequence[str],
    *,
    duration_s: float | None,
    max_frames: int | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    wait: bool,
    watch: bool,
    page: Callable[[Inspector], LivePage] | None = None,
) -> StreamSummary:
    """Run to the end, or until SIGINT or SIGTERM, which drain; before the first frame they give an empty summary.

    ``page`` makes the live page, which is there before the sources are, so that it can say what is waited for.
    """
    switch = _Switch()
    with switch.installed(), _calm_log(), ExitStack() as stack:
        try:
            with Inspector.open(bundle, backend=backend, precision=precision, threads=threads) as inspector:
                out.note(f"backend: {inspector.why}")
                targets: list[str | Path | Sink] = list(sinks)
                if page is not None:
                    live = page(inspector)
                    stack.callback(live.close)
                    targets.append(live)
                    out.note(f"live page: {live.url}")
                stream = _open(out, inspector, sources, targets, duration_s, max_frames, wait)
                with stream:
                    switch.stream = stream
                    if not (watch and out.watched):
                        return stream.run()
                    line = _Status(stream)
                    # stdout is left alone: what is printed there is for programs, or comes after the end.
                    with Live(line, console=out.notes, refresh_per_second=4, transient=True, redirect_stdout=False):
                        return stream.run()
        except KeyboardInterrupt:
            out.note("stopped before the first frame")
            decisions = dict.fromkeys((decision.value for decision in Decision), 0)
            return StreamSummary(0.0, Counts(0, 0, 0, {}, {}), {}, decisions, None, {}, (), None)


class _Switch:
    """Makes SIGINT and SIGTERM the orderly end of a stream, or, while there is none yet, a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.stream: Stream | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.stream is None:
            raise KeyboardInterrupt
        self.stream.stop()


def _open(
    out: Output,
    inspector: Inspector,
    sources: Sequence[str],
    sinks: Sequence[str | Path | Sink],
    duration_s: float | None,
    max_frames: int | None,
    wait: bool,
) -> Stream:
    delay = _FIRST_RETRY_S
    said = ""
    while True:
        try:
            return Stream(inspector, list(sources), sinks=list(sinks), duration_s=duration_s, max_frames=max_frames)
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

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __rich__(self) -> RenderableType:
        summary = self._stream.summary
        frames = summary.frames.to_dict()
        counts = ", ".join(f"{name} {frames[name]}" for name in ("captured", "dropped", "failed"))
        decisions = ", ".join(f"{name} {count}" for name, count in summary.decisions.items() if count)
        latency = f"{summary.latency.p50:.1f} ms (p99 {summary.latency.p99:.1f})" if summary.latency else "-"
        text = f"{summary.seconds:.0f} s | {counts} | {decisions or '-'} | {latency}"
        return Text(text, no_wrap=True, overflow="ellipsis")


@contextmanager
def _calm_log() -> Iterator[None]:
    """Send the runtime's remarks to stderr, the same kind once a second at most: a camera fails 30 times a second."""
    logger = logging.getLogger("edgead")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_Calm())
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


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
