"""Drift watch: do the parts, the light and the lens still look like those that the threshold was made from?

A threshold holds for pictures like the ones it was calibrated on. A lamp that ages, a lens that is knocked or a new
batch of material changes good parts too, long before somebody counts rejects. The watch compares the median of the last
parts with the middle 90 % of the good ones (`edgead.runtime.decision.baseline`): no single part can raise an alarm, and
an alarm can be said in one sentence. It observes and warns; it changes no decision.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgead.runtime.decision.baseline import SIGNALS, Normals, is_finite

WINDOW = 200
LEAST_PARTS = 50  # below, a median moves with chance
LEAST_NORMALS = 20  # below, the 5 % quantile is the extreme of a handful

# Raised outside the middle 90 %, taken back within the middle 80 %, so that it does not flicker at the border.
_ALARM, _CLEAR = 0.05, 0.10
# A band is never narrower than this, or images of one session in one light would allow nothing at all.
_SLACK_GREY = 2.0
_SLACK_SHARE = 0.05

_log = logging.getLogger("edgead.drift")


@dataclass(frozen=True, slots=True)
class DriftState:
    """One signal of one source: median of its last ``parts`` parts, and the band of good ones that it should lie in."""

    source_id: str
    category: str | None
    signal: str
    median: float
    low: float
    high: float
    parts: int
    drifting: bool

    def explain(self) -> str:
        """Return one sentence for a person."""
        where = f"{self.source_id}, {self.category}" if self.category is not None else self.source_id
        if not self.drifting:
            return f"{where}: {self.signal} is back where good parts were (median of {self.parts}: {self.median:.4g})"
        side = "above" if self.median > self.high else "below"
        return (
            f"{where}: {self.signal} has drifted {side} that of good parts (median of the last {self.parts}: "
            f"{self.median:.4g}, good parts {self.low:.4g} to {self.high:.4g}); {_ADVICE[self.signal]}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "text": self.explain() if self.drifting else None}


_ADVICE = {
    "score": "look at the last parts, then at camera and light; then 'edgead calibrate', or fit with new images",
    "level": "material, camera or light changed; look at them, then 'edgead calibrate', or fit with new images",
    "brightness": "check lamp, exposure and aperture",
    "focus": "check lens, focus, dirt on the window and motion blur",
}


class DriftWatch:
    """Holds a window of signals of each source and category against the good parts' quantiles. Thread-safe.

    Args:
        normals: of each category; the key None is for a model of one category. A signal of fewer than
            `LEAST_NORMALS` images is not watched.
        window: parts that the median is taken of.
    """

    def __init__(self, normals: Mapping[str | None, Normals], *, window: int = WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self.renew(normals)

    def renew(self, normals: Mapping[str | None, Normals]) -> None:
        """Start anew with other normals: those of another model, whose scores are on another scale."""
        with self._lock:
            self._normals = dict(normals)
            watched = {
                name: tuple(signal for signal in SIGNALS if one.count(signal) >= LEAST_NORMALS)
                for name, one in normals.items()
            }
            self._signals = {name: signals for name, signals in watched.items() if signals}
            self._values: dict[tuple[str, str | None], dict[str, deque[float]]] = {}
            self._drifting: set[tuple[str, str | None, str]] = set()

    @property
    def active(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self._signals)

    def watches(self, category: str | None) -> bool:
        """Whether parts of a category are compared with anything."""
        return category in self._signals

    def observe(self, source_id: str, category: str | None, values: Mapping[str, float]) -> list[DriftState]:
        """Take the signals of one part; return the states that changed, which is rarely any.

        Values that are not finite, and parts of a category that is not watched, are omitted.
        """
        if not is_finite(values):
            return []
        key = (source_id, category)
        with self._lock:
            signals = self._signals.get(category)
            if signals is None:
                return []
            held = self._values.setdefault(key, {name: deque(maxlen=self._window) for name in signals})
            for name in signals:
                held[name].append(values[name])
            if len(held[signals[0]]) < min(LEAST_PARTS, self._window):
                return []
            changed = []
            for name in signals:
                before = (*key, name) in self._drifting
                state = self._state(key, name, _CLEAR if before else _ALARM)
                if state.drifting != before:
                    (self._drifting.add if state.drifting else self._drifting.discard)((*key, name))
                    changed.append(self._state(key, name, _ALARM) if state.drifting else state)
        return changed

    def report(self) -> list[DriftState]:
        """Return the state of every signal of every source and category that has shown enough parts."""
        with self._lock:
            return [
                self._state(key, name, _CLEAR if (*key, name) in self._drifting else _ALARM)
                for key, held in self._values.items()
                for name in held
                if len(held[name]) >= min(LEAST_PARTS, self._window)
            ]

    def _state(self, key: tuple[str, str | None], signal: str, outer: float) -> DriftState:
        values = self._values[key][signal]
        middle = float(np.median(values))
        low, high = band(self._normals[key[1]], signal, outer)
        return DriftState(*key, signal, middle, low, high, len(values), not low <= middle <= high)


def band(normals: Normals, signal: str, outer: float = _ALARM) -> tuple[float, float]:
    """Return lowest and highest median of a signal that normals like those give, but for the ``outer`` shares."""
    low, high = normals.band(signal, outer)
    slack = _SLACK_GREY if signal == "brightness" else _SLACK_SHARE * (abs(low) + abs(high)) / 2.0
    return low - slack, high + slack
