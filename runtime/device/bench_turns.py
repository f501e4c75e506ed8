"""Who is measured by ``edgead bench``, and whose turn it is."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.device.bench_report import Accuracy, BenchRow
from edgead.runtime.device.board_status import describe_board
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Decision, Frame
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.progress import StepProgress
from edgead.runtime.status.latency import Latency

# A round per candidate, then the next one: whatever else the machine does meanwhile meets all of them alike.
ROUND = 20
_SETTLE = 2  # uncounted frames at the start of a round, for caches and for threads that still spin
_SAMPLE_S = 60.0  # between two looks at the board in a long run
_SPIN_S = 0.001  # sleeping ends late by less than this, so the rest is spent looking at the clock


@dataclass(slots=True)
class Candidate:
    """One backend and precision while it is measured; times in ms."""

    inspector: Inspector
    precision: str
    accuracy: Accuracy | None = None
    end_to_end: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    busy_s: float = 0.0
    queued: int = 0
    failed: int = 0
    reason: str = ""
    decisions: dict[str, int] = field(default_factory=lambda: dict.fromkeys((d.value for d in Decision), 0))

    def warm(self, pool: Sequence[NDArray[np.uint8]], frames: int) -> None:
        """Judge a few frames without counting them."""
        for number in range(frames):
            self.inspector(Frame(pool[number % len(pool)], number, time.monotonic_ns(), "bench", "bgr"))

    def count(self, pool: Sequence[NDArray[np.uint8]], number: int, captured_ns: int, *, queued: bool) -> None:
        """Judge one frame and count it."""
        started_ns = time.monotonic_ns()
        result = self.inspector(Frame(pool[number % len(pool)], number, captured_ns, "bench", "bgr"))
        done_ns = time.monotonic_ns()
        self.decisions[result.decision.value] += 1
        self.queued += queued
        if not math.isfinite(result.score):
            self.failed += 1
            self.reason = result.reason or "no valid score"
            return
        self.end_to_end.append((done_ns - captured_ns) / 1e6)
        for name, value in {"wait": (started_ns - captured_ns) / 1e6, **result.timings}.items():
            self.stages.setdefault(name, []).append(value)

    @property
    def counted(self) -> int:
        return len(self.end_to_end) + self.failed

    def latency(self) -> Latency:
        if not self.end_to_end:
            raise BackendError(f"{self.inspector.describe().name} gave no valid score for any frame ({self.reason})")
        return _latency(self.end_to_end)

    def row(self) -> BenchRow:
        assert self.accuracy is not None
        latency = self.latency()
        return BenchRow(
            backend=self.inspector.describe(),
            why=self.inspector.why,
            precision=self.precision,
            latency=latency,
            stages={name: _latency(values) for name, values in self.stages.items()},
            throughput_fps=round(len(self.end_to_end) / self.busy_s, 3),
            queued=self.queued,
            inspected=len(self.end_to_end),
            failed=self.failed,
            decisions=self.decisions,
            accuracy=self.accuracy,
        )


def measure_frames(
    candidates: Sequence[Candidate],
    pool: Sequence[NDArray[np.uint8]],
    frames: int,
    length: int,
    rate_fps: float | None,
    progress: StepProgress | None,
) -> None:
    done = 0
    for number, first in enumerate(range(0, frames, length)):
        turn = range(first, min(first + length, frames))
        order = candidates if number % 2 == 0 else candidates[::-1]
        for candidate in order:
            candidate.warm(pool, _SETTLE)
            _run_turn(candidate, pool, turn, rate_fps)
            done += len(turn)
            if progress is not None:
                progress(done, frames * len(candidates))


def measure_for(
    candidates: Sequence[Candidate],
    pool: Sequence[NDArray[np.uint8]],
    seconds: float,
    rate_fps: float | None,
    progress: StepProgress | None,
) -> list[dict[str, Any]]:
    """Measure for so many seconds; returns the board as it was every minute, looked at between two turns."""
    begun, samples = time.monotonic(), []
    due, first = begun + _SAMPLE_S, 0
    # On a schedule a turn is a second of it, so that a queue may build up in each.
    length = ROUND if rate_fps is None else max(ROUND, math.ceil(rate_fps))
    while (now := time.monotonic()) < begun + seconds:
        if now >= due:
            samples.append(describe_board())
            due = now + _SAMPLE_S
        for candidate in candidates if first // length % 2 == 0 else candidates[::-1]:
            candidate.warm(pool, _SETTLE)
            _run_turn(candidate, pool, range(first, first + length), rate_fps)
        first += length
        if progress is not None:
            progress(min(int(time.monotonic() - begun), int(seconds)), int(seconds))
    return samples


def _run_turn(candidate: Candidate, pool: Sequence[NDArray[np.uint8]], turn: range, rate_fps: float | None) -> None:
    begun_ns = time.monotonic_ns()
    for index, number in enumerate(turn):
        if rate_fps is None:
            candidate.count(pool, number, time.monotonic_ns(), queued=False)
            continue
        due_ns = begun_ns + round(index * 1e9 / rate_fps)
        late = time.monotonic_ns() > due_ns and index > 0
        _wait_until(due_ns)
        candidate.count(pool, number, due_ns, queued=late)
    candidate.busy_s += (time.monotonic_ns() - begun_ns) / 1e9


def _wait_until(due_ns: int) -> None:
    left = (due_ns - time.monotonic_ns()) / 1e9
    if left > _SPIN_S:
        time.sleep(left - _SPIN_S)
    while time.monotonic_ns() < due_ns:
        pass


def _latency(values_ms: Sequence[float]) -> Latency:
    """Percentiles by nearest rank, exact: a few hundred values need no histogram."""
    ordered = sorted(values_ms)
    p50, p95, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95, 0.99))
    return Latency(p50, p95, p99, ordered[-1], len(ordered))
