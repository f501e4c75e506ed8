"""The sinks that watch a stream without deciding anything: drift, and the promised false-alarm rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from edgead.runtime.decision.drift import DriftState
from edgead.runtime.decision.false_alarm_watch import PromiseState
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.drift import DriftSink, drift_watch
from edgead.runtime.sinks.promise import PromiseSink, promise_watch
from edgead.runtime.streaming.config import StreamConfig


class Watched(TypedDict):
    """What the watches say, as `StreamSummary` has it."""

    drift: tuple[DriftState, ...]
    promise: tuple[PromiseState, ...]


def watches(inspector: object, sinks: Sequence[Sink], config: StreamConfig) -> list[Sink]:
    """Return the watches that a stream is asked for; raises `ConfigError` where its inspector promises nothing."""
    drift = drift_watch(inspector, sinks) if config.drift else []
    return [*drift, *promise_watch(inspector, known_good=config.known_good)]


def watched(sinks: Sequence[Sink]) -> Watched:
    """Return what the watches among the sinks say at this instant."""
    return {
        "drift": tuple(state for sink in sinks if isinstance(sink, DriftSink) for state in sink.watch.report()),
        "promise": tuple(state for sink in sinks if isinstance(sink, PromiseSink) for state in sink.report()),
    }
