"""What is done to an inspector while it judges: reloading its bundle, and replaying its references."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from edgead.runtime.errors import ConfigError
from edgead.runtime.sinks import Sink
from edgead.runtime.streaming.grabber import describe

Request = Literal["reload", "test", "end"]

_NEEDS_BUNDLE = "needs an inspector that was opened from a bundle: Inspector.open('NAME.edgead')"

_log = logging.getLogger("edgead.stream")


@runtime_checkable
class OpenedFromBundle(Protocol):
    """What the upkeep needs of an `edgead.runtime.Inspector`; ``bundle`` is None where there is none to look after."""

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> tuple[Path, str] | None: ...

    def swap(self, path: str | Path) -> None: ...

    def self_test(self) -> list[str]: ...


class Upkeep:
    """Does what it is asked for, one after the other, in a thread of its own.

    Args:
        inspector: where it was opened from a bundle there is something to do, and the bundle's file may be replaced at
            any time; it stays open.
        test_hours: a self-test every so many hours; None: only when asked for.

    Raises:
        ConfigError: self-tests are asked for, and there is no bundle whose references could be replayed.
    """

    def __init__(self, inspector: object, test_hours: float | None) -> None:
        self._period_s = None if test_hours is None else test_hours * 3600.0
        self._sinks: Sequence[Sink] = ()
        self._failed = False
        self._over = False
        # A simple queue, because a signal handler may put into it whatever this process is at.
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if isinstance(inspector, OpenedFromBundle) and inspector.bundle is not None:
            self._thread = threading.Thread(target=self._run, args=(inspector,), name="edgead-upkeep", daemon=True)
        elif test_hours is not None:
            raise ConfigError(f"self_test_hours {_NEEDS_BUNDLE}")

    def ask(self, request: Literal["reload", "test"]) -> None:
        """Have something done soon, or once this is started; safe in a signal handler.

        Raises:
            ConfigError: the inspector was not opened from a bundle.
        """
        if self._thread is None:
            raise ConfigError(f"reload or self-test {_NEEDS_BUNDLE}")
        self._requests.put(request)

    def start(self, sinks: Sequence[Sink]) -> None:
        """Start the thread; ``sinks`` are told what is done, and one that cannot write it down prevents a reload."""
        self._sinks = sinks
        if self._thread is not None:
            self._thread.start()

    def end(self) -> None:
        """Begin nothing any more, whatever was asked for."""
        self._over = True
        self._requests.put("end")

    def join(self, deadline: float) -> bool:
        """Wait for what is under way, until ``deadline`` (`time.monotonic`); False where it is not over by then."""
        thread = self._thread
        # Not where it was never started, nor where a sink that is told of something closes the stream.
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return True
        thread.join(max(0.0, deadline - time.monotonic()))
        return not thread.is_alive()

    def _run(self, inspector: OpenedFromBundle) -> None:
        due = self._next_test()
        while True:
            try:
                left = None if due is None else min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
                request = self._requests.get(timeout=left)
            except queue.Empty:
                request = "test"
            if self._over:
                return
            if request == "reload":
                self._reload(inspector)
            else:
                self._test(inspector)
                due = self._next_test()

    def _next_test(self) -> float | None:
        return None if self._period_s is None else time.monotonic() + self._period_s

    def _reload(self, inspector: OpenedFromBundle) -> None:
        opened = inspector.bundle
        assert opened is not None
        path, sha256 = opened
        said = {"model": inspector.name, "bundle": str(path), "sha256": sha256}
        refused = self._tell("reload", said)
        if not refused:
            try:
                inspector.swap(path)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next request is served
                refused = describe(error)
        if refused:
            _log.error("the bundle was not reloaded, and the old one goes on: %s", refused)
            self._tell("not reloaded", {**said, "reason": refused})
            return
        self._failed = False
        _log.warning("continues with %s as it is now", path)
        _, sha256 = inspector.bundle or opened
        self._tell("reloaded", {"model": inspector.name, "bundle": str(path), "sha256": sha256})

    def _test(self, inspector: OpenedFromBundle) -> None:
        try:
            problems = inspector.self_test()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next request is served
            _log.error("the self-test could not run: %s", describe(error))
            self._tell("self-test not run", {"model": inspector.name, "reason": describe(error)})
            return
        if problems:
            _log.error("the self-test failed, nothing is inspected from now on: %s", "; ".join(problems))
        elif self._failed:
            _log.warning("the self-test passes again")
        else:
            _log.info("the self-test passed")
        self._failed = bool(problems)
        event = "self-test failed" if problems else "self-test passed"
        self._tell(event, {"model": inspector.name, "problems": problems})

    def _tell(self, event: str, fields: Mapping[str, Any]) -> str:
        """Tell every sink, and return what the last one raised that did not take it; empty where all did."""
        refused = ""
        for sink in self._sinks:
            try:
                sink.note(event, fields)
            except Exception as error:  # noqa: BLE001 - a sink of the user's own may raise anything
                refused = describe(error)
                _log.error("%s did not take '%s': %s", sink.name, event, refused)
        return refused
