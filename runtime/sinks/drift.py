"""Feeds the drift watch with the results of a stream, in a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from edgead.runtime.decision.baseline import Normals, map_level, picture_signals
from edgead.runtime.decision.drift import DriftWatch
from edgead.runtime.frame import Frame, Result
from edgead.runtime.imaging.view import View
from edgead.runtime.sinks import Sink

_log = logging.getLogger("edgead.drift")


# Measuring a picture costs about a millisecond of a core: this many at once, and so many a second from then on.
_BURST, _RATE = 200, 10.0


@runtime_checkable
class Inspected(Protocol):
    """What the watch needs of an `edgead.runtime.Inspector`."""

    view: View

    @property
    def normals(self) -> Mapping[str | None, Normals]: ...


class DriftSink(Sink):
    """Feeds a `DriftWatch` with the results of a stream and logs what changes, in a thread of its own.

    Args:
        watch: what judges.
        inspector: the one that judges the stream; its view says how pictures are measured, and when
            it continues with another bundle the watch does so too.
    """

    name = "drift watch"
    keeps_frames = True

    def __init__(self, watch: DriftWatch, inspector: Inspected) -> None:
        self.watch = watch
        self._inspector = inspector
        self._normals = inspector.normals
        self._allowed: dict[str, tuple[int, float]] = {}  # source -> when it was counted, pictures it may have

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        if frame is None or result.map is None or not self.watch.watches(result.category):
            return False
        now = result.timestamp_ns
        last, allowed = self._allowed.get(result.source_id, (now, float(_BURST)))
        allowed = min(float(_BURST), allowed + max(0, now - last) * 1e-9 * _RATE)
        taken = allowed >= 1.0
        self._allowed[result.source_id] = (now, allowed - taken)
        return taken

    def write(self, result: Result, frame: Frame | None) -> None:
        assert frame is not None
        assert result.map is not None
        one = self._inspector
        if one.normals is not self._normals:
            self._normals = one.normals
            self.watch.renew(self._normals)
            return
        picture = one.view.prepare(frame.image, frame.layout)
        values = {"score": result.score, "level": map_level(result.map), **picture_signals(picture)}
        for state in self.watch.observe(result.source_id, result.category, values):
            _log.log(logging.WARNING if state.drifting else logging.INFO, "%s", state.explain())


def drift_watch(inspector: object, sinks: Sequence[Sink]) -> list[Sink]:
    """Return a drift watch for a stream, or nothing.

    There is nothing to do where nobody measured what normal parts looked like, or one of the ``sinks`` is a watch.
    """
    if not isinstance(inspector, Inspected) or any(isinstance(sink, DriftSink) for sink in sinks):
        return []
    watch = DriftWatch(inspector.normals)
    return [DriftSink(watch, inspector)] if watch.active else []
