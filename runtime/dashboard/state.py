"""What the page shows: the last results and rates in bounded memory, and the state that browsers ask for."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgead.runtime.dashboard.thumbnails import SIDE, THUMB_SIDE, Shown, thinned
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.sinks.result_json import finite, utc_now
from edgead.runtime.uri import redact

if TYPE_CHECKING:
    from edgead.runtime.status.summary import StreamSummary

PARTS = 1000
_TRACE = 2000
_SENT = 400
_ANOMALIES = 24
_BINS = 40
# Pictures are made and states put together this often at most, however many browsers ask.
_VIEW_S = 0.1
_SUMMARY_S = 0.25
_CODES = {Decision.OK: 0, Decision.ANOMALY: 1, Decision.NOT_INSPECTED: 2}


class Part(NamedTuple):
    """One judged part, as far as another threshold would judge it anew."""

    score: float
    category: str | None


class Flips(NamedTuple):
    """Of the last ``parts``, how many another threshold would judge otherwise."""

    parts: int
    to_anomaly: int
    to_ok: int


@dataclass(slots=True)
class _Camera:
    """One source: its newest result, and the two last ones that a browser was told of."""

    name: str
    latest: Shown | None = None
    told: deque[Shown] = field(default_factory=lambda: deque(maxlen=2))
    came: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def rate(self, now: float) -> float:
        """Return results per second, 0 after a pause."""
        recent = [at for at in self.came if now - at < 5.0]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0


class Board:
    """Takes results from the stream's side and gives the state to the browsers' side; neither waits for the other.

    Args:
        clock: monotonic clock in ns, the one that stamps the frames: how old a decision is counts from its capture.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._cameras: dict[str, _Camera] = {}
        self._number = 0
        self._trace: deque[tuple[int, int, float, float, int]] = deque(maxlen=_TRACE)
        self._latency: deque[float] = deque(maxlen=PARTS)
        self._parts: deque[Part] = deque(maxlen=PARTS)
        self._anomalies: deque[Shown] = deque(maxlen=_ANOMALIES)
        self._viewed = -math.inf
        self._summary: Callable[[], StreamSummary] | None = None
        self._summed: tuple[float, StreamSummary] | None = None

    def attach(self, summary: Callable[[], StreamSummary]) -> None:
        """Learn how the run stands, and which cameras there are before the first of them delivers."""
        self._summary = summary
        with self._lock:
            for name in summary().sources:
                self._cameras.setdefault(name, _Camera(name))

    def add(self, result: Result, frame: Frame | None) -> None:
        """Take one result; quick, for it is called for every frame whether or not somebody watches."""
        anomalous = result.decision is Decision.ANOMALY
        small = thinned(frame) if anomalous and frame is not None else None
        came = time.monotonic()
        latency = result.timings.get("end_to_end", math.nan)
        with self._lock:
            self._number += 1
            camera = self._cameras.setdefault(result.source_id, _Camera(result.source_id))
            source = list(self._cameras).index(result.source_id)
            layout = frame.layout if frame is not None else "rgb"
            image = frame.image if frame is not None else None
            camera.latest = Shown(self._number, source, result, utc_now(), image, layout)
            camera.came.append(came)
            self._trace.append((self._number, source, result.score, result.threshold, _CODES[result.decision]))
            if math.isfinite(latency) and math.isfinite(result.score):
                self._latency.append(latency)
            if result.decision is not Decision.NOT_INSPECTED:
                self._parts.append(Part(result.score, result.category))
            if anomalous:
                self._anomalies.append(Shown(self._number, source, result, camera.latest.time, small, layout))

    def flips(self, limits: Limits, value: float, category: str | None) -> Flips:
        """Count what another threshold would have judged otherwise than the one that holds now."""
        now = limits.value if category is None else limits.categories[category]
        with self._lock:
            scores = [part.score for part in self._parts if category is None or part.category == category]
        rejected = sum(value < score <= now for score in scores)
        passed = sum(now < score <= value for score in scores)
        return Flips(len(scores), rejected, passed)

    def picture(self, source: int, number: int, *, heat: bool) -> bytes | None:
        """Return the JPEG of a result that `state` told of, None where it is no longer kept."""
        with self._lock:
            cameras = list(self._cameras.values())
            told = list(cameras[source].told) if 0 <= source < len(cameras) else []
        for shown in told:
            if shown.number == number:
                return shown.jpeg(SIDE, heat=heat)
        return None

    def thumbnail(self, number: int, *, large: bool) -> bytes | None:
        """Return the JPEG of one of the last anomalies, with its heat map, None where it is no longer kept."""
        with self._lock:
            kept = {shown.number: shown for shown in self._anomalies}
        return kept[number].jpeg(2 * THUMB_SIDE if large else THUMB_SIDE, heat=True) if number in kept else None

    def state(self, since: int) -> dict[str, Any]:
        """Return all that a browser shows, as JSON; of the score trace only what is newer than ``since``."""
        summary = self._run()
        now_ns, now = self._clock(), time.monotonic()
        with self._lock:
            if now - self._viewed >= _VIEW_S:
                self._viewed = now
                for camera in self._cameras.values():
                    if camera.latest is not None and (not camera.told or camera.told[-1] is not camera.latest):
                        camera.told.append(camera.latest)
            cameras = [
                self._camera(number, camera, summary, now_ns, now)
                for number, camera in enumerate(self._cameras.values())
            ]
            newest = self._number
            # A browser that was away, or that knew an earlier run, begins anew.
            trace = [point for point in self._trace if point[0] > since or since > newest][-_SENT * len(cameras) :]
            latency = sorted(self._latency)
            anomalies = [_anomaly(shown) for shown in reversed(self._anomalies)]
        state: dict[str, Any] = {
            "cameras": cameras,
            "trace": {"newest": newest, "points": trace},
            "latency_ms": {"p50": _rank(latency, 0.5), "p99": _rank(latency, 0.99), "count": len(latency)},
            "anomalies": anomalies,
        }
        if summary is not None:
            # All but the sources, which stand with their cameras, and the latency since the start.
            run = summary.to_dict()
            state |= {key: value for key, value in run.items() if key not in ("schema", "sources", "latency_ms")}
        cleaned: dict[str, Any] = _redacted(finite(state))
        return cleaned

    def histogram(self, category: str | None, threshold: float) -> dict[str, Any]:
        """Return the scores of the last parts in even bins that reach past the threshold, for the slider."""
        with self._lock:
            scores = [part.score for part in self._parts if category is None or part.category == category]
        if not math.isfinite(threshold):
            threshold = 0.0
        low, high = min([*scores, threshold, 0.0]), max([*scores, threshold * 1.5, threshold])
        high = high if high > low else low + 1.0
        counts, _ = np.histogram(np.array(scores, np.float64), _BINS, (low, high))
        return {"low": low, "high": high, "counts": [int(count) for count in counts], "parts": len(scores)}

    def _run(self) -> StreamSummary | None:
        if self._summary is None:
            return None
        now = time.monotonic()
        summed = self._summed
        if summed is None or now - summed[0] > _SUMMARY_S:
            summed = self._summed = (now, self._summary())
        return summed[1]

    def _camera(
        self, number: int, camera: _Camera, summary: StreamSummary | None, now_ns: int, now: float
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": number, "name": camera.name, "rate": round(camera.rate(now), 1)}
        if summary is not None and camera.name in summary.sources:
            entry |= summary.sources[camera.name].to_dict()
        shown = camera.told[-1] if camera.told else None
        if shown is None:
            return entry | {"number": 0, "decision": None, "age_s": None}
        result = shown.result
        return entry | {
            "number": shown.number,
            "decision": result.decision.value,
            "score": result.score,
            "threshold": result.threshold,
            "p_value": result.p_value,
            "category": result.category,
            "reason": result.reason,
            "frame_index": result.frame_index,
            "file": result.name,
            "age_s": round(max(0.0, (now_ns - result.timestamp_ns) / 1e9), 3),
            "has_picture": shown.image is not None,
            "has_map": result.map is not None and math.isfinite(result.score),
        }


def _anomaly(shown: Shown) -> dict[str, Any]:
    result = shown.result
    return {
        "number": shown.number,
        "source": shown.source,
        "time": shown.time,
        "score": result.score,
        "threshold": result.threshold,
        "category": result.category,
        "frame_index": result.frame_index,
        "has_picture": shown.image is not None,
    }


def _rank(values: list[float], quantile: float) -> float | None:
    """Return the nearest rank of sorted values."""
    return round(values[max(1, math.ceil(quantile * len(values))) - 1], 2) if values else None


def _redacted(value: Any) -> Any:
    """Return a state with every text redacted once more: whatever a library put into a message."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(name): _redacted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value
