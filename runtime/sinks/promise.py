"""Holds a stream of parts that are all good against the promised false-alarm rate, in a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from edgead.runtime.decision.false_alarm_watch import DEFAULT_RISK, FalseAlarmWatch, PromiseState
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.sinks import Sink

_log = logging.getLogger("edgead.promise")


@runtime_checkable
class Promising(Protocol):
    """What the watch needs of an `edgead.runtime.Inspector`."""

    @property
    def promised(self) -> Mapping[str | None, Threshold]: ...


class PromiseSink(Sink):
    """Tells after every part whether the false-alarm rate that the threshold promises still holds; logs if it does not.

    The promise is the upper end of the threshold's 95 % interval: what lies within it is no broken promise. Parts that
    were not inspected do not count, nor do those judged by another threshold than the bundle's. Where the inspector
    goes on with a bundle that promises otherwise, a test of that one begins; what was found broken stays in `report`.

    Args:
        inspector: the one that judges the stream; all its parts must be good.
        risk: chance of a wrong warning in the whole run of one bundle, of all categories together.

    Raises:
        ConfigError: its thresholds promise no false-alarm rate.
    """

    name = "promise watch"
    keeps_frames = False

    def __init__(self, inspector: Promising, risk: float = DEFAULT_RISK) -> None:
        self._inspector, self._risk = inspector, risk
        self._promised: Mapping[str | None, Threshold] = {}
        self._watches: dict[str | None, FalseAlarmWatch] = {}
        self._broken: list[PromiseState] = []  # by bundles before this one
        self._renew()
        if not self._watches:
            raise ConfigError(
                "the thresholds of this bundle promise no false-alarm rate that could be watched; "
                "make them from good parts: edgead calibrate"
            )

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002 - as every sink
        if self._inspector.promised is not self._promised:
            self._renew()
        watch, promised = self._watches.get(result.category), self._promised.get(result.category)
        if watch is None or promised is None or result.decision is Decision.NOT_INSPECTED:
            return
        if result.threshold != promised.value:
            return
        broken = watch.state.broken
        watch.observe(rejected=result.decision is Decision.ANOMALY)
        if watch.state.broken and not broken:
            _log.warning("%s", watch.state.explain())

    def report(self) -> list[PromiseState]:
        """Return what the parts so far say, of each category."""
        return [*self._broken, *(watch.state for watch in list(self._watches.values()))]

    def _renew(self) -> None:
        before, self._promised = self._promised, self._inspector.promised
        if before and _terms(before) == _terms(self._promised):
            return  # the same promise, such as of the same bundle reloaded
        self._broken += [watch.state for watch in self._watches.values() if watch.state.broken]
        kept = {name: one for name, one in self._promised.items() if one.n_normals and 0.0 < one.high < 1.0}
        self._watches = {
            name: FalseAlarmWatch(one.high, risk=self._risk / len(kept), category=name) for name, one in kept.items()
        }


def _terms(promised: Mapping[str | None, Threshold]) -> dict[str | None, tuple[float, float]]:
    return {name: (one.value, one.high) for name, one in promised.items()}


def promise_watch(inspector: object, *, known_good: bool) -> list[Sink]:
    """Return the watch of a stream whose parts are all known to be good; nothing for another stream.

    Raises:
        ConfigError: this inspector promises nothing.
    """
    if not known_good:
        return []
    if not isinstance(inspector, Promising):
        raise ConfigError("only an inspector that was opened from a bundle promises a false-alarm rate")
    return [PromiseSink(inspector)]
