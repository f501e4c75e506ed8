"""What is done to an inspector while it judges: reloading its bundle, and replaying its references."""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Literal

from edgead.runtime.errors import EdgeadError
from edgead.runtime.inspection.inspector import Inspector

Request = Literal["reload", "test", "end"]

_log = logging.getLogger("edgead.run")


class Upkeep:
    """Does what it is asked for, one after the other, in a thread of its own; a context manager.

    Args:
        inspector: stays open; bundle: its file, which may have been replaced since.
        test_hours: a self-test every so many hours; None: only when asked for.
    """

    def __init__(self, inspector: Inspector, bundle: Path, test_hours: float | None) -> None:
        self._inspector = inspector
        self._bundle = bundle
        self._period_s = None if test_hours is None else test_hours * 3600.0
        self._failed = False
        # A simple queue, because a signal handler may put into it whatever this process is at.
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgead-upkeep", daemon=True)

    def ask(self, request: Request) -> None:
        """Have something done soon; safe in a signal handler."""
        self._requests.put(request)

    def __enter__(self) -> Upkeep:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("end")

    def _run(self) -> None:
        due = self._next_test()
        while True:
            try:
                left = None if due is None else max(0.0, due - time.monotonic())
                request = self._requests.get(timeout=left)
            except queue.Empty:
                request = "test"
            if request == "end":
                return
            if request == "reload":
                self._reload()
            else:
                self._test()
                due = self._next_test()

    def _next_test(self) -> float | None:
        return None if self._period_s is None else time.monotonic() + self._period_s

    def _reload(self) -> None:
        try:
            self._inspector.swap(self._bundle)
        except EdgeadError as error:
            _log.error("the bundle was not reloaded, and the old one goes on: %s", error)
        else:
            self._failed = False
            _log.warning("continues with %s as it is now", self._bundle)

    def _test(self) -> None:
        try:
            problems = self._inspector.self_test()
        except EdgeadError as error:
            _log.error("the self-test could not run: %s", error)
            return
        if problems:
            _log.error("the self-test failed, nothing is inspected from now on: %s", "; ".join(problems))
        elif self._failed:
            _log.warning("the self-test passes again")
        else:
            _log.info("the self-test passed")
        self._failed = bool(problems)
