"""The thread in which frames are judged, so that a backend that hangs does not hang the loop with it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.streaming.grabber import SIGNAL_S, Item, describe

T = TypeVar("T")

HUNG = "backend hung"

_log = logging.getLogger("edgead.stream")


class Judge(Protocol):
    """What a stream needs of an inspector: `edgead.runtime.Inspector`, or a callable of your own.

    It is called in a thread of the stream's, one call at a time. Where it has a ``threshold`` (float) it is shown in
    the Results of frames that were not inspected; where it has a ``describe()`` with a ``to_dict()`` that is in the
    summary; where it has an ``inspect_batch(frames)`` several frames can be judged at once.
    """

    def __call__(self, frame: Frame, /) -> Result: ...


class FrameJudge:
    """Has frames judged by an inspector, which may raise, answer nonsense, or not return.

    Attributes:
        hangs: times it took longer than ``hang_s``.
        hung: one line, while it does not return; empty otherwise.
    """

    def __init__(self, inspector: Judge, hang_s: float) -> None:
        self._inspector = inspector
        self._hang = hang_s
        self._worker: Worker[list[Result]] | None = None
        self.hangs = 0
        self.hung = ""

    def start(self) -> None:
        self._worker = Worker("edgead-judge")

    def wake(self) -> None:
        """Have a judgement under way look at its deadline; safe in a signal handler."""
        if self._worker is not None:
            self._worker.wake()

    def close(self, deadline: float) -> bool:
        """End the thread; False where the inspector has not returned by ``deadline`` (`time.monotonic`)."""
        return self._worker is None or self._worker.close(deadline)

    @property
    def busy_s(self) -> float:
        """How long the inspector has been at it, 0 where it is not."""
        return self._worker.busy_s if self._worker is not None else 0.0

    def recover(self) -> None:
        """Go on after a hang, once the inspector has returned."""
        self.hung = ""
        _log.warning("the backend is back")

    def __call__(self, frames: Sequence[Frame], deadline: Callable[[], float]) -> list[Result] | None:
        """Return the Results of frames; None where there are none at ``deadline()``, or ``hung`` says why.

        What the inspector raises is a Result; only what is no `Exception`, such as a KeyboardInterrupt, is raised.
        """
        assert self._worker is not None
        self._worker.submit(partial(self._ask, frames))
        hang_at = time.monotonic() + self._hang
        if self._worker.wait(lambda: min(hang_at, deadline())):
            return self._worker.result()
        if time.monotonic() >= hang_at:
            self.hangs += 1
            self.hung = f"{HUNG}: no answer for {self._hang:g} s"
            _log.warning("%s; frames are not inspected until it answers", self.hung)
        return None

    def describe(self) -> Mapping[str, Any] | None:
        """Return what the inspector says that really runs, None where it does not say."""
        described = getattr(self._inspector, "describe", None)
        found: Mapping[str, Any] | None = described().to_dict() if described is not None else None
        return found

    def not_inspected(self, item: Item, reason: str) -> Result:
        """Return the Result of a frame that nobody judged."""
        return Result.not_inspected(item, reason, float(getattr(self._inspector, "threshold", math.nan)))

    def _ask(self, frames: Sequence[Frame]) -> list[Result]:
        """Judge frames in the worker's thread; one that spoils a batch spoils itself only."""
        if len(frames) > 1:
            batch: Callable[[Sequence[Frame]], list[Result]] = getattr(self._inspector, "inspect_batch")  # noqa: B009
            try:
                results: object = batch(frames)
            except Exception as error:  # noqa: BLE001
                _log.warning("a batch of %d frames is judged one by one: %s", len(frames), describe(error))
            else:
                if isinstance(results, list) and len(results) == len(frames):
                    return [self._valid(frame, result) for frame, result in zip(frames, results, strict=True)]
        return [self._ask_one(frame) for frame in frames]

    def _ask_one(self, frame: Frame) -> Result:
        try:
            result: object = self._inspector(frame)
        except Exception as error:  # noqa: BLE001 - whatever it was, the part on the belt must not pass as OK
            message = describe(error)
            _log.warning("frame %d of %s was not inspected: %s", frame.index, frame.source_id, message)
            return self.not_inspected(frame, f"inspector failed: {message}")
        return self._valid(frame, result)

    def _valid(self, frame: Frame, result: object) -> Result:
        if not isinstance(result, Result):
            return self.not_inspected(frame, f"inspector returned {type(result).__name__}, not a Result")
        if not math.isfinite(result.score) and result.decision is not Decision.NOT_INSPECTED:
            return replace(result, decision=Decision.NOT_INSPECTED, reason=result.reason or "non-finite score")
        return result


class Worker(Generic[T]):
    """Runs one call at a time in a thread of its own.

    A call that does not return cannot be ended: Python ends no thread. The worker stays busy, and what a call returns
    that nobody waits for any more is thrown away by the next `submit`.
    """

    def __init__(self, name: str) -> None:
        # Reentrant, because a signal handler may call `wake` while this very thread waits.
        self._changed = threading.Condition(threading.RLock())
        self._call: Callable[[], T] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = False
        self._closing = False
        self._since = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy_s(self) -> float:
        """How long the call has been running, 0 where none is."""
        with self._changed:
            return time.monotonic() - self._since if self._call is not None else 0.0

    def submit(self, call: Callable[[], T]) -> None:
        """Start a call; the worker must not be busy."""
        with self._changed:
            if self._call is not None:
                raise RuntimeError("the worker is busy")
            self._call, self._since = call, time.monotonic()
            self._value = self._error = None
            self._done = False
            self._changed.notify_all()

    def wait(self, deadline: Callable[[], float]) -> bool:
        """Wait for the call to return; False at ``deadline()`` (`time.monotonic`), which `wake` has read again."""
        with self._changed:
            while not self._done:
                left = deadline() - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, SIGNAL_S))
            return True

    def wake(self) -> None:
        """Have `wait` look at its deadline; safe in a signal handler."""
        with self._changed:
            self._changed.notify_all()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised; after `wait` gave True."""
        with self._changed:
            value, error = self._value, self._error
            self._value = self._error = None
            if error is not None:
                raise error
            return value  # type: ignore[return-value]

    def close(self, deadline: float) -> bool:
        """End the thread; False where its call has not returned by ``deadline`` (`time.monotonic`)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._call is not None or self._closing)
                call = self._call
                if call is None:
                    return
            value: T | None = None
            error: BaseException | None = None
            try:
                value = call()
            except BaseException as caught:  # noqa: BLE001 - the one who waits raises it
                error = caught
            del call
            with self._changed:
                self._call = None
                self._value, self._error, self._done = value, error, True
                self._changed.notify_all()
            del value, error
