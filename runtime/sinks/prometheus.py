"""Counters, gauges and latency for a Prometheus server; prometheus-client writes its text format."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from edgead.runtime.frame import Frame, Result
from edgead.runtime.http_server import Handler, Server, is_loopback, parse_listen
from edgead.runtime.sinks import Sink
from edgead.runtime.uri import Parameters
from edgead.runtime.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from edgead.runtime.status.summary import StreamSummary

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds; wide enough for a small board, fine enough for a fast one.
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)

Values = Iterable[tuple[Sequence[str], float]]


class PrometheusSink(Sink):
    """Answers ``http://HOST:PORT/metrics`` for ``prometheus://127.0.0.1:9100``; docs/sinks.md names every metric.

    Counters and the ledger are those of the run at the moment of the scrape, latency is counted result by result.
    An address that other machines reach must be written out (``prometheus://0.0.0.0:9100``); what is shown holds no
    secrets, and ``token_file=FILE`` asks for it as Bearer authorization.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = False
        host, port = parse_listen(self.name, location.partition("://")[2].rstrip("/"), 9100)
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._summary: Callable[[], StreamSummary] | None = None
        token = parameters.secret("token_file")
        sink = self

        class Scrape(Handler):
            def get(self, path: str, query: str) -> None:  # noqa: ARG002
                if path != "/metrics":
                    self.refuse(HTTPStatus.NOT_FOUND, "metrics are at /metrics")
                elif token is not None and not self.bearer_is(token):
                    self.refuse(HTTPStatus.UNAUTHORIZED, headers=(("WWW-Authenticate", "Bearer"),))
                else:
                    self.answer(sink.exposition(), CONTENT_TYPE)

        self._server = Server(self.name, host, port, Scrape)
        # A scraper comes by whatever name its configuration has; only on loopback is a strange name an attack.
        self._server.any_name = not is_loopback(host)
        self.url = f"{self._server.url}metrics"

    def attach(self, summary: Callable[[], StreamSummary]) -> None:
        self._summary = summary
        self._server.start()

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        latency_ms = result.timings.get("end_to_end", math.nan)
        with self._lock:
            seen = self._seen.setdefault(result.source_id, _Seen())
            seen.at = time.monotonic()
            seen.score = result.score
            seen.thresholds[result.category or ""] = result.threshold
            if math.isfinite(latency_ms) and math.isfinite(result.score):
                seconds = max(latency_ms, 0.0) / 1e3
                seen.counts[bisect_left(BUCKETS_S, seconds)] += 1
                seen.sum += seconds

    def close(self) -> None:
        self._server.stop()

    def exposition(self) -> bytes:
        """Return the text that a scrape gets now."""
        from prometheus_client.exposition import generate_latest

        text: bytes = generate_latest(self)
        return text

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment, as a registry of prometheus-client does."""
        summary = self._summary() if self._summary is not None else None
        with self._lock:
            seen = {source: one.copy() for source, one in self._seen.items()}
        if summary is not None:
            yield from _of_run(summary)
        now = time.monotonic()
        yield _histogram("edgead_latency_seconds", "Capture to decision, of frames with a valid score.", seen)
        yield _gauge("edgead_score", "Last raw image score.", ["source"], [((s,), o.score) for s, o in seen.items()])
        yield _gauge(
            "edgead_threshold",
            "Threshold of the last result, by category where the model routes.",
            ["source", "category"],
            [((s, c), value) for s, o in seen.items() for c, value in o.thresholds.items()],
        )
        yield _gauge(
            "edgead_last_result_age_seconds",
            "Seconds since the last result: alarm on this, for a line that stands still sends no bad news.",
            ["source"],
            [((s,), now - o.at) for s, o in seen.items()],
        )


@dataclass(slots=True)
class _Seen:
    """What is known of one source from its results."""

    at: float = 0.0
    score: float = math.nan
    sum: float = 0.0
    thresholds: dict[str, float] = field(default_factory=dict)
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))

    def copy(self) -> _Seen:
        return _Seen(self.at, self.score, self.sum, dict(self.thresholds), list(self.counts))


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _filled(family: Any, values: Values) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, text: str, seen: Mapping[str, _Seen]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    family = HistogramMetricFamily(name, text, labels=["source"])
    for source, one in seen.items():
        bounds = [floatToGoString(bound) for bound in (*BUCKETS_S, math.inf)]
        family.add_metric([source], list(zip(bounds, accumulate(one.counts), strict=True)), one.sum)
    return family


def _of_run(summary: StreamSummary) -> Iterator[Metric]:
    yield from _of_frames(summary)
    yield _counter("edgead_backend_hangs", "Times the backend took longer than it may.", [], [((), summary.hangs)])
    decisions = [((name,), count) for name, count in summary.decisions.items()]
    yield _counter("edgead_results", "Results by decision.", ["decision"], decisions)
    yield from _of_sinks(summary)
    yield _gauge(
        "edgead_drift",
        "1 while a signal of the last parts lies away from that of normal ones.",
        ["source", "category", "signal"],
        [((one.source_id, one.category or "", one.signal), float(one.drifting)) for one in summary.drift],
    )
    if summary.promise:
        yield _gauge(
            "edgead_promise_evidence",
            "Evidence of known good parts against the promised false-alarm rate; its inverse bounds the p-value.",
            ["category"],
            [((one.category or "",), one.evidence) for one in summary.promise],
        )
        yield _gauge(
            "edgead_promise_broken",
            "1 once the promised false-alarm rate was found not to hold.",
            ["category"],
            [((one.category or "",), float(one.broken)) for one in summary.promise],
        )
    yield _gauge("edgead_run_seconds", "Seconds since the start.", [], [((), summary.seconds)])
    info = {"version": __version__}
    if summary.backend is not None:
        info |= {key: str(summary.backend[key]) for key in ("name", "precision", "device") if key in summary.backend}
    yield _gauge("edgead_info", "What runs; always 1.", list(info), [(tuple(info.values()), 1.0)])


def _of_frames(summary: StreamSummary) -> Iterator[Metric]:
    """Yield each source's ledger (captured = inspected + dropped + failed + in flight) and how the source is."""
    frames = {source: one.frames for source, one in summary.sources.items()}
    health = {source: one.health for source, one in summary.sources.items()}
    source, reason = ["source"], ["source", "reason"]
    captured = [((s,), f.captured) for s, f in frames.items()]
    yield _counter("edgead_frames_captured", "Frames captured.", source, captured)
    inspected = [((s,), f.inspected) for s, f in frames.items()]
    yield _counter("edgead_frames_inspected", "Frames with a valid score.", source, inspected)
    dropped = [((s, r), n) for s, f in frames.items() for r, n in f.dropped.items()]
    yield _counter("edgead_frames_dropped", "Frames never judged, by reason.", reason, dropped)
    failed = [((s, r), n) for s, f in frames.items() for r, n in f.failed.items()]
    yield _counter("edgead_frames_failed", "Frames without a valid score (NOT_INSPECTED), by reason.", reason, failed)
    waiting = [((s,), f.in_flight) for s, f in frames.items()]
    yield _gauge("edgead_frames_in_flight", "Frames captured and not settled yet.", source, waiting)
    yield _gauge(
        "edgead_camera_up",
        "1 while frames come, 0 while the source is waited for, lost or at its end.",
        source,
        [((s,), one.state == "running") for s, one in health.items()],
    )
    lost = [((s,), one.reconnects) for s, one in health.items()]
    yield _counter("edgead_camera_reconnects", "Times a source was lost and delivered again.", source, lost)


def _of_sinks(summary: StreamSummary) -> Iterator[Metric]:
    # A sample that stands there twice makes a scraper refuse all of them.
    names = [sink.name for sink in summary.sinks]
    sinks = [
        (name if name not in names[:number] else f"{name} ({number + 1})", sink)
        for number, (name, sink) in enumerate(zip(names, summary.sinks, strict=True))
    ]
    yield _counter(
        "edgead_sink_results",
        "What became of the results a sink accepted.",
        ["sink", "outcome"],
        [
            ((name, outcome), count)
            for name, sink in sinks
            for outcome, count in (("written", sink.written), ("failed", sink.failed), ("missed", sink.missed))
        ],
    )
    pending = [((name,), sink.pending) for name, sink in sinks]
    yield _gauge("edgead_sink_pending", "Results on their way.", ["sink"], pending)
