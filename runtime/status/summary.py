"""What a run did: frames, decisions, latency, sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgead.runtime.decision.drift import DriftState
from edgead.runtime.decision.false_alarm_watch import PromiseState
from edgead.runtime.status.frame_ledger import Counts
from edgead.runtime.status.latency import Latency
from edgead.runtime.status.sink_report import SinkReport
from edgead.runtime.status.source_health import Health

State = Literal["ready", "running", "paused", "hung", "draining", "ended"]


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What became of one source's frames, and how it is.

    Attributes:
        error: why it ended before it should, else None.
        health: state, reconnections, threads stuck in its driver.
    """

    frames: Counts
    policy: str
    live: bool
    error: str | None
    health: Health

    def to_dict(self) -> dict[str, Any]:
        own = {"policy": self.policy, "live": self.live, "error": self.error}
        return {**self.frames.to_dict(), **own, **self.health.to_dict()}


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """A run at one instant.

    Attributes:
        seconds: since the start, or the length of the run once it has ended.
        frames: the total ledger; ``sources`` holds it by source.
        decisions: number of Results by decision.
        latency: capture to decision, of frames with a valid score; None before the first.
        stages: the parts of it by name: ``wait`` (capture to its turn) and the stages of the inspector.
        sinks: one report a sink.
        backend: what really ran, None where the inspector does not say.
        drift: what the drift watch says, one state a source, category and signal; empty where nothing is watched.
        promise: what parts known to be good say of the promised false-alarm rate, of each category; empty where nobody
            said that they are good.
        state: what the stream does; ``hung`` while the backend does not return.
        hangs: times the backend took longer than it may.
        error: why the stream gave up, None where it did not.
    """

    seconds: float
    frames: Counts
    sources: Mapping[str, SourceSummary]
    decisions: Mapping[str, int]
    latency: Latency | None
    stages: Mapping[str, Latency]
    sinks: tuple[SinkReport, ...]
    backend: Mapping[str, Any] | None
    drift: tuple[DriftState, ...] = ()
    promise: tuple[PromiseState, ...] = ()
    state: State = "ended"
    hangs: int = 0
    error: str | None = None

    @property
    def errors(self) -> list[str]:
        """One line for each source that was lost, and for the backend; empty after a run that ended as it should."""
        lost = [source.error for source in self.sources.values() if source.error is not None]
        return lost if self.error is None else [*lost, self.error]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.run/1``); percentiles are null before the first decision."""
        empty = dict.fromkeys(("p50", "p95", "p99", "max")) | {"count": 0}
        return {
            "schema": "edgead.run/1",
            "state": self.state,
            "seconds": round(self.seconds, 3),
            "frames": self.frames.to_dict(),
            "sources": {name: source.to_dict() for name, source in self.sources.items()},
            "decisions": dict(self.decisions),
            "latency_ms": {
                **(self.latency.to_dict() if self.latency else empty),
                "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
            },
            "sinks": [sink.to_dict() for sink in self.sinks],
            "backend": dict(self.backend) if self.backend is not None else None,
            "drift": [state.to_dict() for state in self.drift],
            "promise": [state.to_dict() for state in self.promise],
            "hangs": self.hangs,
            "error": self.error,
        }
