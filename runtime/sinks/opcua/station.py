"""What is said over OPC UA: the names and types, and the values of a result and of the run's state."""

from __future__ import annotations

import datetime
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgead.runtime.frame import Decision, Result
from edgead.runtime.sinks.result_json import as_json

if TYPE_CHECKING:
    from edgead.runtime.status.summary import StreamSummary

# Name and OPC UA type of what is said of a result, in the order in which it is written: the decision comes last.
RESULT = {
    "ResultId": "String",
    "PartId": "String",
    "CreationTime": "DateTime",
    "SourceId": "String",
    "FrameIndex": "Int64",
    "Name": "String",
    "Score": "Double",
    "Threshold": "Double",
    "PValue": "Double",
    "Category": "String",
    "Reason": "String",
    "BundleSha256": "String",
    "Json": "String",
    "Decision": "String",
}
# `edgead.result/1` has counts; so do these, since the start of the run.
COUNTERS = ("Captured", "Inspected", "Dropped", "Failed", "Ok", "Anomaly", "NotInspected")
STATE = ("State", "Mode", "Problem")


@dataclass(frozen=True, slots=True)
class Station:
    """How the run stands.

    Attributes:
        state: ``Preoperational``, ``Operational``, ``Error`` or ``Halted``.
        mode: of ``Operational``: ``ContinuousExecution``, or ``Ready`` while it is paused or has seen no part; else "".
        problem: one line, where the state is ``Error``.
        able: the next part will be judged; the heartbeat stands still otherwise.
        counters: by the names of `COUNTERS`.
    """

    state: str
    mode: str
    problem: str
    able: bool
    counters: Mapping[str, int]

    @classmethod
    def of(cls, summary: StreamSummary | None, failed_test: str | None) -> Station:
        if summary is None:
            return cls("Preoperational", "", "", False, dict.fromkeys(COUNTERS, 0))
        counts, decided = summary.frames, summary.decisions
        counters = dict(
            zip(
                COUNTERS,
                (
                    *(counts.captured, counts.inspected, sum(counts.dropped.values()), sum(counts.failed.values())),
                    *(decided[decision.value] for decision in Decision),
                ),
                strict=True,
            )
        )
        problem = _problem(summary, failed_test)
        if summary.state in ("draining", "ended"):
            return cls("Halted", "", problem or "", False, counters)
        if summary.state == "ready":
            return cls("Preoperational", "", "", False, counters)
        if problem is not None:
            return cls("Error", "", problem, False, counters)
        able = summary.state == "running"
        return cls("Operational", "ContinuousExecution" if able and counts.captured else "Ready", "", able, counters)


def _problem(summary: StreamSummary, failed_test: str | None) -> str | None:
    if summary.error is not None:
        return summary.error
    if summary.state == "hung":
        return "the backend does not return"
    if failed_test is not None:
        return f"the self-test failed: {failed_test}"
    for name, source in summary.sources.items():
        if source.error is not None:
            return source.error
        if source.health.state == "reconnecting":
            return source.health.last_loss or f"{name} is away"
    return None


class ResultFields:
    """Turns results into the values of `RESULT`, each with an id that no other result of any run has."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._run = uuid.uuid4().hex[:12]
        self._count = 0

    def __call__(self, result: Result, on: bool) -> dict[str, Any]:
        """Return the values by name: text is empty and a number NaN where there is none.

        An OK that is not ``on`` came too late: it is shown as `NOT_INSPECTED`, for nobody may take it for an OK.
        """
        if result.decision is Decision.OK and not on:
            result = replace(result, decision=Decision.NOT_INSPECTED, reason="the decision came too late")
        self._count += 1
        age = datetime.timedelta(microseconds=(self._clock() - result.timestamp_ns) / 1e3)
        return {
            "ResultId": f"{self._run}-{self._count}",
            "PartId": result.part_id or "",
            "CreationTime": datetime.datetime.now(datetime.timezone.utc) - age,
            "SourceId": result.source_id,
            "FrameIndex": result.frame_index,
            "Name": result.name or "",
            "Score": float(result.score),
            "Threshold": float(result.threshold),
            "PValue": math.nan if result.p_value is None else float(result.p_value),
            "Category": result.category or "",
            "Reason": result.reason or "",
            "BundleSha256": result.bundle or "",
            "Json": as_json(result),
            "Decision": result.decision.value,
        }
