"""Latency percentiles in bounded memory, for streams that run for months."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

# Each bucket is 1 % wider than the one before, and its geometric middle is reported: at most 0.5 % off.
_GROWTH = math.log(1.01)
_LOWEST_MS = 1e-3
_BUCKETS = 2100  # 1 µs · 1.01^2100 = 20 minutes
_MAX_STAGES = 64
_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one stage in milliseconds, by nearest rank: at most 0.5 % off between 1 µs and 20 minutes; max is
    exact. All are rounded to 0.1 µs here, once, so that text and JSON show the same figures."""

    p50: float
    p95: float
    p99: float
    max: float
    count: int

    def __post_init__(self) -> None:
        for name in ("p50", "p95", "p99", "max"):
            object.__setattr__(self, name, round(getattr(self, name), _DECIMALS))

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


class Histogram:
    """Counts values of one stage in logarithmic buckets (17 kB). Not thread-safe."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self._number = 0
        self._low = math.inf
        self._high = -math.inf

    def add(self, value_ms: float) -> None:
        """Count one value; a negative one counts as 0 (clocks of two processors), a non-finite one not at all."""
        if not math.isfinite(value_ms):
            return
        value_ms = max(value_ms, 0.0)
        bucket = int(math.log(value_ms / _LOWEST_MS) / _GROWTH) if value_ms > _LOWEST_MS else 0
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self._number += 1
        self._low = min(self._low, value_ms)
        self._high = max(self._high, value_ms)

    def summary(self) -> Latency | None:
        """Return the percentiles, or None while nothing was counted."""
        if self._number == 0:
            return None
        cumulative = np.cumsum(self._counts)
        p50, p95, p99 = (self._quantile(cumulative, quantile) for quantile in (0.5, 0.95, 0.99))
        return Latency(p50, p95, p99, self._high, self._number)

    def _quantile(self, cumulative: NDArray[np.int64], quantile: float) -> float:
        rank = max(1, math.ceil(quantile * self._number))
        bucket = int(np.searchsorted(cumulative, rank))
        middle = _LOWEST_MS * math.exp((bucket + 0.5) * _GROWTH)
        return min(max(middle, self._low), self._high)


class Timings:
    """Records end-to-end latency and the time of each stage; any thread may record and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end_to_end = Histogram()
        self._stages: dict[str, Histogram] = {}

    def record(self, end_to_end_ms: float, stages_ms: Mapping[str, float]) -> None:
        """Count one frame: capture to decision, and its stages by name (further names than 64 are omitted)."""
        with self._lock:
            self._end_to_end.add(end_to_end_ms)
            for name, value in stages_ms.items():
                if name not in self._stages and len(self._stages) < _MAX_STAGES:
                    self._stages[name] = Histogram()
                if name in self._stages:
                    self._stages[name].add(value)

    def summary(self) -> tuple[Latency | None, dict[str, Latency]]:
        """Return the percentiles end to end (None before the first frame) and by stage."""
        with self._lock:
            stages = {name: histogram.summary() for name, histogram in self._stages.items()}
            return self._end_to_end.summary(), {name: value for name, value in stages.items() if value is not None}
