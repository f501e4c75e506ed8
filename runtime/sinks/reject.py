"""The signal "part is OK" for a machine that sorts parts: fail-safe, with a heartbeat. One class for every output.

The output is **on only after a fresh OK**: it goes on when a result says `OK` and the frame was captured at most
``max_age`` ago, and off again ``hold`` later. Everything else is off: `ANOMALY`, `NOT_INSPECTED`, an OK that came too
late, no result at all, an ended run, a lost connection that came back. So a machine that throws out every part without
the signal throws out what was never inspected.

What no program can do is switch an output off after it was killed, or through a cable that was cut. For that there is
the heartbeat, a register that counts up; the machine must take the signal for off when the heartbeat has stood still.
``hold`` must be shorter than the time from one part to the next, or the OK of one part lets the next pass as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.sinks import Sink

HOLD_S = 0.1
MAX_AGE_S = 1.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.25, 5.0
_ANSWER_S = 10.0

_log = logging.getLogger("edgead.sinks")


class Output(Protocol):
    """What switches. All methods are called from one thread, and raise where they fail."""

    def connect(self) -> None:
        """Make ready; also called after a failure, to begin anew."""

    def switch(self, on: bool) -> None:
        """Set the signal; returns when the other side has confirmed it."""

    def beat(self, count: int) -> None:
        """Set the heartbeat, 0 to 65535; does nothing where there is none."""

    def close(self) -> None:
        """Release; called after each failure too."""


class _Order:
    """One result on its way to the output, and what became of it."""

    def __init__(self, result: Result, on: bool) -> None:
        self.result, self.on = result, on
        self.problem: str | None = None
        self.done = threading.Event()


class PassSignal(Sink):
    """Switches an `Output` by the rule of the module.

    Args:
        name: how reports call it.
        output: closed together with the sink.
        hold_s: how long one OK lasts.
        max_age_s: an OK that is older, from capture to the moment it is written, is not passed on and counts as failed.
        beat_s: seconds from one heartbeat to the next; also how often a lost connection is noticed.
        clock: monotonic clock in ns, the one that stamps the frames.
    """

    def __init__(
        self,
        name: str,
        output: Output,
        *,
        hold_s: float = HOLD_S,
        max_age_s: float = MAX_AGE_S,
        beat_s: float = 0.25,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.keeps_frames = False
        self._output = output
        self._hold, self._max_age, self._beat, self._clock = hold_s, max_age_s, beat_s, clock
        self._changed = threading.Condition()
        self._order: _Order | None = None
        self._ending = False
        self._left_off = False
        self._problem: str | None = "the output is not connected yet"
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"edgead-signal {name}", daemon=True)
        self._thread.start()

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        age_s = (self._clock() - result.timestamp_ns) / 1e9
        late = result.decision is Decision.OK and age_s > self._max_age
        order = _Order(result, result.decision is Decision.OK and not late)
        self._tried.wait(_ANSWER_S)
        with self._changed:
            if self._problem is not None:
                raise DataError(self._problem)
            self._order = order
            self._changed.notify_all()
        if not order.done.wait(_ANSWER_S):
            raise DataError(f"the output did not answer in {_ANSWER_S:g} s")
        if order.problem is not None:
            raise DataError(order.problem)
        if late:
            raise DataError(f"an OK came {age_s:.2f} s after capture, later than {self._max_age:g} s: not passed on")

    def close(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(_ANSWER_S)
        if not self._left_off:
            raise DataError(f"the signal may still be on: {self._problem or 'the output did not answer'}")

    # The one thread that touches the output.

    def show(self, result: Result, on: bool) -> None:  # noqa: ARG002
        """Set the signal for a result; who shows more of it than the signal does so here."""
        self._output.switch(on)

    def pulse(self, count: int) -> int:
        """Beat once, and return the number that was sent; called each ``beat_s`` seconds."""
        count = (count + 1) % 65536
        self._output.beat(count)
        return count

    def _run(self) -> None:
        pause = _FIRST_RETRY_S
        # At the end one more connection is tried, so that the signal is not left on.
        last = False
        while not last:
            with self._changed:
                last = self._ending
            try:
                self._output.connect()
                # Whatever stood there when the connection went, or when another process died.
                self._output.switch(False)
                with self._changed:
                    self._problem = None
                self._tried.set()
                pause = _FIRST_RETRY_S
                self._serve()
                self._left_off = True
                self._output.close()
                return
            except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises, this thread goes on
                self._lost(reason(error))
            with self._changed:
                self._changed.wait_for(lambda: self._ending, pause)
            pause = min(2 * pause, _LAST_RETRY_S)

    def _serve(self) -> None:
        """Switch and beat until the sink is closed, and leave the output off."""
        on, off_at = False, 0.0
        count, beat_at = 0, time.monotonic()
        while True:
            with self._changed:
                due = min(beat_at, off_at) if on else beat_at
                self._changed.wait_for(lambda: self._order or self._ending, max(0.0, due - time.monotonic()))
                order, self._order = self._order, None
                if self._ending and order is None:
                    break
            now = time.monotonic()
            if order is not None:
                try:
                    self.show(order.result, order.on)
                except Exception as error:
                    order.problem = reason(error)
                    raise
                finally:
                    order.done.set()
                on, off_at = order.on, time.monotonic() + self._hold
            elif on and now >= off_at:
                self._output.switch(False)
                on = False
            if now >= beat_at:
                count = self.pulse(count)
                beat_at = now + self._beat
        self._output.switch(False)

    def _lost(self, problem: str) -> None:
        with self._changed:
            if problem != self._problem:  # not once for each of the attempts that go on indefinitely
                _log.warning("the output of %s: %s", self.name, problem)
            self._problem = problem
            order, self._order = self._order, None
        if order is not None:
            order.problem = problem
            order.done.set()
        self._tried.set()
        with suppress(Exception):  # it is gone already
            self._output.close()
