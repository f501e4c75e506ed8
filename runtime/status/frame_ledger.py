"""The frame ledger: where every captured frame went, exact at every instant.

``captured = inspected + dropped(reason) + failed(reason) + in_flight``, for each source and in total, where

- *inspected*: the backend returned a valid score (the decision may still be `NOT_INSPECTED`, for low confidence);
- *failed*: captured, but no valid score; each gave a `NOT_INSPECTED` Result;
- *dropped*: never judged, and no Result was given;
- *in flight*: captured, not settled yet.

So the number of Results is inspected + failed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# Reasons come from messages of libraries; a ledger that runs for months keeps only so many different ones.
_MAX_REASONS = 32
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Counts:
    """The ledger of one source, or of all, at one instant.

    Attributes:
        captured, inspected, in_flight: numbers of frames.
        dropped, failed: numbers of frames by reason.
    """

    captured: int
    inspected: int
    in_flight: int
    dropped: Mapping[str, int]
    failed: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return totals as integers, reasons beside them."""
        return {
            "captured": self.captured,
            "inspected": self.inspected,
            "dropped": sum(self.dropped.values()),
            "failed": sum(self.failed.values()),
            "in_flight": self.in_flight,
            "dropped_reasons": dict(self.dropped),
            "failed_reasons": dict(self.failed),
        }


@dataclass(slots=True)
class _Account:
    captured: int = 0
    inspected: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def counts(self) -> Counts:
        settled = self.inspected + sum(self.dropped.values()) + sum(self.failed.values())
        if self.captured != settled + self.in_flight:
            raise RuntimeError(f"the frame ledger does not add up: {self}; please report this")
        return Counts(
            self.captured,
            self.inspected,
            self.in_flight,
            MappingProxyType(dict(self.dropped)),
            MappingProxyType(dict(self.failed)),
        )


class Ledger:
    """Counts frames of several sources under one lock.

    Each captured frame is settled exactly once, as inspected, dropped or failed. Settling more frames than were
    captured raises RuntimeError and changes nothing.

    Args:
        sources: names of the sources; a name that is not among them raises KeyError later.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._accounts = {name: _Account() for name in sources}

    def captured(self, source: str) -> None:
        """Count a frame that left its source; it is in flight from now on."""
        with self._lock:
            account = self._accounts[source]
            account.captured += 1
            account.in_flight += 1

    def inspected(self, source: str) -> None:
        """Settle a frame that got a valid score."""
        with self._lock:
            self._settle(source).inspected += 1

    def dropped(self, source: str, reason: str) -> None:
        """Settle a frame that is never judged."""
        with self._lock:
            _count(self._settle(source).dropped, reason)

    def failed(self, source: str, reason: str) -> None:
        """Settle a frame that got a `NOT_INSPECTED` Result instead of a score."""
        with self._lock:
            _count(self._settle(source).failed, reason)

    def snapshot(self) -> tuple[Counts, dict[str, Counts]]:
        """Return the total and the counts by source, all of the same instant.

        Raises:
            RuntimeError: the identity of the module docstring does not hold; that is a defect of edgead.
        """
        with self._lock:
            total = _Account()
            for account in self._accounts.values():
                total.captured += account.captured
                total.inspected += account.inspected
                total.in_flight += account.in_flight
                for reason, number in account.dropped.items():
                    total.dropped[reason] = total.dropped.get(reason, 0) + number
                for reason, number in account.failed.items():
                    total.failed[reason] = total.failed.get(reason, 0) + number
            return total.counts(), {name: account.counts() for name, account in self._accounts.items()}

    def _settle(self, source: str) -> _Account:
        account = self._accounts[source]
        if account.in_flight == 0:
            raise RuntimeError(f"a frame of {source} was settled twice or never captured; please report this")
        account.in_flight -= 1
        return account


def _count(reasons: dict[str, int], reason: str) -> None:
    if reason not in reasons and len(reasons) >= _MAX_REASONS:
        reason = OTHER
    reasons[reason] = reasons.get(reason, 0) + 1
