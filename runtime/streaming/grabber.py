"""The life of one source: the thread that reads it, and where it can be opened anew, the one that keeps it alive.

A camera that is lost (it says so, or nothing comes for ``Delivery.silence_s``) is closed and opened again, with a
delay that doubles up to a limit and is partly chance, for as long as the stream runs. A thread that does not return
from its driver is abandoned: whatever it still delivers is refused, and it closes its source itself when it comes back.
While too many are abandoned nothing more is opened, because each of them holds memory and perhaps the device.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgead.runtime.errors import EdgeadError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Source
from edgead.runtime.status.source_health import Health, State
from edgead.runtime.uri import redact

_log = logging.getLogger("edgead.stream")

Item = Frame | BadFrame

# The longest single wait of the thread that iterates a stream, which is mostly the main thread. A signal handler runs
# there between any two steps: one that comes after the last look at its flags and before the wait wakes nobody, and one
# that comes just before the wait is only run when the wait is over.
SIGNAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Survival:
    """How a lost source is opened again.

    Attributes:
        first_s, longest_s: delay before the first try, and the limit that its doubling reaches. From half of it to all
            of it is waited, by chance, so that the cameras of a hall do not come back all at once.
        steady_s: a source that delivered for so long begins with the first delay again.
        opening_s: an opening that takes longer is given up, as silence is.
        stuck: threads that may be abandoned at once.
        wait: also where the source has not delivered a frame yet.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    steady_s: float = 10.0
    opening_s: float = 20.0
    stuck: int = 3
    wait: bool = False

    def delay_s(self, failures: int, chance: float) -> float:
        """Return the delay after so many failures in a row (0: the first), ``chance`` from 0 to 1."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures, 30)) * (0.5 + 0.5 * chance)


@dataclass(slots=True, eq=False)
class _Session:
    """One opening of the source; guarded by the lock."""

    source: Source | None
    offset: int  # added to the source's own frame numbers, which begin at 0 again
    heard: float  # `time.monotonic` of its last sign of life
    begun: float
    thread: threading.Thread | None = None
    open: bool = False
    over: bool = False
    abandoned: bool = False
    error: SourceError | None = None


class Grabber:
    """Reads one source, and survives its losses.

    Args:
        source: open; closed by the grabber.
        lock: guards everything here, and is held while ``enter`` and ``lost`` are called.
        enter: takes an item; False where no more is wanted.
        lost: called at each loss, before anything new is captured.
        ended: called once at the end, with the lock held; the error is None where the source ended by itself.
        survival: how a lost source is opened again.
    """

    def __init__(
        self,
        source: Source,
        lock: threading.RLock,
        enter: Callable[[Item], bool],
        lost: Callable[[], None],
        ended: Callable[[SourceError | None], None],
        survival: Survival,
    ) -> None:
        self.name = source.source_id
        self._live = source.live
        self._silence = source.delivery.silence_s
        self._changed = threading.Condition(lock)
        self._enter = enter
        self._lost = lost
        self._ended = ended
        self._survival = survival
        self._stopping = False
        self._session = _Session(source, 0, 0.0, 0.0)
        self._stuck: list[_Session] = []
        self._next = 0
        self._size: tuple[int, ...] | None = None
        self._state: State = "waiting"
        self._reconnects = self._attempts = self._resized = 0
        self._last_loss: str | None = None
        self._lost_at = 0.0
        # A source that only looks like one need not have it.
        self._reopen: Callable[[], Source] | None = getattr(source, "reopener", lambda: None)()
        self._keeper = threading.Thread(target=self._keep, name=f"edgead-keeper {self.name}", daemon=True)

    @property
    def health(self) -> Health:
        with self._changed:
            return Health(
                self._state, self._reconnects, self._attempts, len(self._stuck), self._resized, self._last_loss
            )

    def start(self) -> None:
        self._keeper.start()

    def stop(self) -> None:
        """Open nothing any more; safe in a signal handler."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close_source(self) -> None:
        """Ask the source that is being read to end; its thread releases what it holds itself."""
        with self._changed:
            source = self._session.source
        if source is not None:
            _close(source, self.name)

    def join(self, deadline: float) -> bool:
        """Wait until ``deadline`` (`time.monotonic`); False where a driver does not return."""
        if self._keeper.ident is None:
            return True
        self._keeper.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            session = self._session
            if not session.over and not session.abandoned:
                session.abandoned = True
                self._stuck.append(session)
                self._changed.notify_all()
                return False
        # The last threads have said that they are over.
        self._keeper.join()
        if session.thread is not None and not session.abandoned:
            session.thread.join()
        return True

    def _keep(self) -> None:
        failures = 0
        session = self._session
        while True:
            error = self._watch(session)
            with self._changed:
                if error is None or not self._survives():
                    self._state = "ended"
                    self._ended(error)
                    return
                self._note_loss(error)
                steady = session.open and session.heard - session.begun >= self._survival.steady_s
                failures = 0 if steady else failures
                self._rest(self._survival.delay_s(failures, random.random()))
                failures += 1
                if self._stopping:
                    self._state = "ended"
                    self._ended(None)
                    return
                self._attempts += 1
                session = self._session = _Session(None, self._next, 0.0, 0.0)

    def _rest(self, seconds: float) -> None:
        """Wait so long, and then until not too many threads are stuck; `stop` ends it."""
        self._changed.wait_for(lambda: self._stopping, seconds)
        self._changed.wait_for(lambda: self._stopping or len(self._stuck) < self._survival.stuck)

    def _survives(self) -> bool:
        if self._stopping or self._reopen is None:
            return False
        return self._state != "waiting" or self._survival.wait

    def _note_loss(self, error: SourceError) -> None:
        message = redact(str(error))
        if self._state != "reconnecting":
            self._lost_at = time.monotonic()
            _log.warning("%s; opening it again", message)
        elif message != self._last_loss:
            _log.warning("%s is still away: %s", self.name, message)
        self._last_loss = message
        if self._state == "running":
            self._state = "reconnecting"
        self._lost()

    def _watch(self, session: _Session) -> SourceError | None:
        """Run a session to its end, or until it is silent for too long; None where the source ended by itself."""
        session.begun = session.heard = time.monotonic()
        session.thread = threading.Thread(
            target=self._read, args=(session,), name=f"edgead-source {self.name}", daemon=True
        )
        session.thread.start()  # joined only after the thread that runs this has ended
        with self._changed:
            while not (session.over or session.abandoned):
                limit = self._silence if session.open else self._survival.opening_s
                # A source that was given open cannot be opened again where its first frame is late, unless told so.
                watched = limit is not None and self._reopen is not None and not self._stopping
                left = session.heard + limit - time.monotonic() if watched and limit is not None else None
                if left is not None and left <= 0:
                    session.abandoned = True
                    self._stuck.append(session)
                    break
                self._changed.wait(left)
            if not session.abandoned or self._stopping:
                return session.error
        what = f"delivered nothing for {limit:g} s" if session.open else f"did not open within {limit:g} s"
        if session.source is not None:
            # Closing may block as reading does.
            closing = threading.Thread(
                target=_close, args=(session.source, self.name), name=f"edgead-closing {self.name}", daemon=True
            )
            closing.start()
        return SourceLost(f"{self.name} {what}; check cable, power and network")

    def _read(self, session: _Session) -> None:
        error: SourceError | None = None
        source = session.source
        try:
            if source is None:
                assert self._reopen is not None
                source = self._reopen()
            with self._changed:
                session.source, session.open, session.heard = source, True, time.monotonic()
                wanted = not (session.abandoned or self._stopping)
                self._changed.notify_all()
            frames = iter(source.frames()) if wanted else iter(())
            for item in frames:
                if not self._deliver(session, item):
                    break
            # Generators release their camera when they are closed, and only the thread that ran them may do it.
            close = getattr(frames, "close", None)
            if close is not None:
                close()
        except SourceError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - one source that breaks must not take the others with it
            kind = "" if isinstance(caught, EdgeadError) else f"{type(caught).__name__}: "
            error = SourceLost(f"{self.name} failed: {kind}{describe(caught)}")
            error.__cause__ = caught
        finally:
            if source is not None:
                _close(source, self.name)
            with self._changed:
                session.error, session.over = error, True
                if session.abandoned:
                    self._stuck.remove(session)
                self._changed.notify_all()

    def _deliver(self, session: _Session, item: Item) -> bool:
        with self._changed:
            if session.abandoned:
                return False
            session.heard = time.monotonic()
            if session.offset:
                item = replace(item, index=item.index + session.offset)
            self._next = max(self._next, item.index + 1)
            if self._state == "reconnecting":
                self._reconnects += 1
                _log.warning("%s is back after %.1f s", self.name, time.monotonic() - self._lost_at)
            self._state = "running"
            if isinstance(item, Frame):
                size = item.image.shape[:2]
                if self._size is not None and size != self._size:
                    self._resized += 1
                    old = f"{self._size[1]}x{self._size[0]}"
                    if self._live or self._resized == 1:  # files differ as they like
                        _log.warning("%s now gives %dx%d pixels, before %s", self.name, size[1], size[0], old)
                self._size = size
            return self._enter(item)


def _close(source: Source, name: str) -> None:
    try:
        source.close()
    except Exception as error:  # noqa: BLE001 - a source of the user's own may raise anything
        _log.warning("closing %s failed: %s", name, describe(error))


def describe(error: BaseException) -> str:
    """Return an error's message on one line, without secrets, at most 300 characters."""
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__
