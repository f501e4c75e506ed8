"""Part ids that the line announces over a fieldbus, one for each frame, and never for another one.

The rule: **one announcement before each frame, one frame after each announcement.** The line announces an id, waits
until that is confirmed, and only then triggers the camera. The next frame takes the id. Whatever breaks the rule (a
frame without an announced id, a second id while the first has no frame, an id that is too old) puts the ids *out of
step*: nobody can tell any more which id belongs to which part, so no frame gets one and none is inspected, until the
line withdraws with the empty id and begins anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import BadFrame, Frame, require_part_id

MAX_AGE_S = 10.0

_log = logging.getLogger("edgead.sinks")


class PartIds:
    """The id of the next part: announced from one thread, taken by a frame in another.

    Args:
        max_age_s: the longest time from an announcement to the capture of its frame.
        clock: monotonic clock in ns, the one that stamps the frames.

    Attributes:
        taken: number of frames that took an id.
    """

    def __init__(self, max_age_s: float = MAX_AGE_S, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._max_age, self._clock = max_age_s, clock
        self._lock = threading.Lock()
        self._waiting: str | None = None
        self._since_ns = 0
        self._problem: str | None = None
        self.taken = 0

    @property
    def waiting(self) -> str:
        """The id that the next frame will take; empty where there is none."""
        with self._lock:
            return self._waiting or ""

    @property
    def problem(self) -> str | None:
        """Why the ids are out of step; None where they are not."""
        with self._lock:
            return self._problem

    def announce(self, part_id: str) -> None:
        """Give the id of the next part; the same one again, before its frame, changes nothing. Empty: begin anew.

        Raises:
            ConfigError: no part id, or out of step, which a second id without a frame between them is too.
        """
        if part_id:
            try:
                require_part_id(part_id)
            except ConfigError as error:
                self.refuse(str(error))
                raise
        with self._lock:
            if not part_id:
                self._waiting = self._problem = None
                return
            if self._problem is None and self._waiting not in (None, part_id):
                self._lose(f"part {part_id!r} was announced while part {self._waiting!r} had no frame")
            if self._problem is not None:
                raise ConfigError(self._explain())
            if self._waiting is None:
                self._waiting, self._since_ns = part_id, self._clock()

    def refuse(self, why: str) -> None:
        """Told of an announcement that is none: if another part's id waits, the next frame may not take that one."""
        with self._lock:
            if self._waiting is not None:
                self._lose(f"while part {self._waiting!r} had no frame, something else was announced: {why}")

    def name(self, item: Frame | BadFrame) -> Frame | BadFrame:
        """Return a captured frame with the announced id; without one, a `BadFrame` that says why."""
        with self._lock:
            problem = self._fault(item)
            if problem is not None and self._problem is None:
                self._lose(problem)
            if self._problem is not None:
                return BadFrame.instead_of(item, self._explain(), item.source_id, item.timestamp_ns)
            part_id, self._waiting = self._waiting, None
            self.taken += 1
            return replace(item, part_id=part_id)

    def interrupt(self) -> None:
        """Told that the camera was away: whether an announced part was seen meanwhile is not known."""
        with self._lock:
            if self._waiting is not None and self._problem is None:
                self._lose(f"the camera was away after part {self._waiting!r} was announced")

    def _fault(self, item: Frame | BadFrame) -> str | None:
        if self._waiting is None:
            return "a frame came without an announced part id"
        if item.part_id is not None:
            return f"a frame came with a part id of its own, {item.part_id!r}"
        age_s = (item.timestamp_ns - self._since_ns) / 1e9
        if age_s < 0:
            return f"a frame came that was captured before part {self._waiting!r} was announced"
        if age_s > self._max_age:
            return f"part {self._waiting!r} was announced {age_s:.1f} s before a frame came"
        return None

    def _lose(self, problem: str) -> None:
        self._problem, self._waiting = problem, None
        _log.warning("part ids are out of step, nothing is inspected until the line writes the empty id: %s", problem)

    def _explain(self) -> str:
        return f"part ids are out of step: {self._problem}; write the empty id to begin anew"
