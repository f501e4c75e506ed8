"""The live page as a sink: results come in on one side, browsers ask on the other."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgead.runtime.dashboard.access import Access
from edgead.runtime.dashboard.audit import AuditLog, AuditTrail
from edgead.runtime.dashboard.review import ReviewDesk
from edgead.runtime.dashboard.server import page_handler
from edgead.runtime.dashboard.state import Board
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import ConfigError, DataError, EdgeadError
from edgead.runtime.frame import Frame, Result
from edgead.runtime.http_server import Server, is_loopback, parse_listen
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.result_json import finite, utc_now
from edgead.runtime.version import __version__

if TYPE_CHECKING:
    from edgead.runtime.status.summary import StreamSummary

STALE_S = 3.0
_CHANGES = 5
_LONGEST_REST_S = 0.2


class ThresholdControl(Protocol):
    """What the page needs to change a threshold: `edgead.runtime.Inspector` is one."""

    @property
    def limits(self) -> Limits: ...

    @property
    def name(self) -> str: ...

    def set_threshold(self, value: float, category: str | None = None) -> float:
        """Judge with ``value`` from now on, and return the threshold it replaces."""


class LivePage(Sink):
    """Serves the page from the moment it is made until it is closed.

    Anybody who reaches a loopback address may look; an address that other machines reach needs a token. Thresholds can
    be tried out on the last 1,000 parts by everybody who looks, and changed only where there is an audit log.

    Args:
        listen: ``127.0.0.1:8080``, ``8080``, ``[::1]:8080``; port 0 takes a free one, see ``url``.
        token: 16 characters or more, which browsers are asked for.
        control: whose threshold is shown; None: the page has no slider.
        audit: file, or another `AuditTrail`, to which changes of the threshold and reloads of the bundle are written
            before they are made, and what self-tests found; None: the page changes no threshold.
        stale_s: a decision that is older, counted from capture, is shown as out of date.
        clock: monotonic clock in ns, the one that stamps the frames.

    Raises:
        ConfigError: the address is taken, or reachable from outside without a token; the audit log cannot be written.
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:8080",
        *,
        token: str | None = None,
        control: ThresholdControl | None = None,
        audit: str | Path | AuditTrail | None = None,
        stale_s: float = STALE_S,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        host, port = parse_listen("--serve", listen, 8080)
        self.name = "live page"
        self.keeps_frames = True
        self.board = Board(clock)
        self.access = Access(token)
        # Set by who has a record: then its parts are reviewed on the page, too.
        self.desk: ReviewDesk | None = None
        if token is None and not is_loopback(host):
            raise ConfigError(
                f"--serve {listen} is reachable from other machines and needs a token: --serve-token FILE "
                "(openssl rand -hex 16 > FILE)"
            )
        self._control = control
        self._audit = AuditLog(audit) if isinstance(audit, str | Path) else audit
        self._stale_s = stale_s
        self._turn = threading.Lock()
        self._changes: deque[dict[str, Any]] = deque(maxlen=_CHANGES)
        self._server = Server("--serve", host, port, page_handler(self))
        self.url = self._server.url
        self._server.start()

    def attach(self, summary: Callable[[], StreamSummary]) -> None:
        self.board.attach(summary)

    def write(self, result: Result, frame: Frame | None) -> None:
        self.board.add(result, frame)

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        if self._audit is not None:
            self._audit.add(event, fields)

    def close(self) -> None:
        self._server.stop()
        if self.desk is not None:
            self.desk.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one request work at a time, and rest for as long as it took.

        However many browsers ask, and however often, they take at most half a core from those who judge parts.
        """
        with self._turn:
            started = time.monotonic()
            try:
                yield
            finally:
                time.sleep(min(time.monotonic() - started, _LONGEST_REST_S))

    # What browsers ask, each in a thread of its own.

    def state(self, since: int) -> dict[str, Any]:
        """Return what a browser shows now, schema ``edgead.page/1``."""
        control = self._control
        return {
            "schema": "edgead.page/1",
            "version": __version__,
            "model": control.name if control is not None else "",
            "word": self.access.word,
            "review": self.desk is not None,
            "stale_s": self._stale_s,
            "control": None if control is None else self._control_state(control),
            **self.board.state(since),
        }

    def preview(self, value: float, category: str | None) -> dict[str, Any]:
        """Return what another threshold would have changed of the last parts, and their scores in bins.

        Raises:
            ConfigError: no finite number, or a category that the model has not.
        """
        limits = self._limits(value, category)
        now = limits.value if category is None else limits.categories[category]
        flips = self.board.flips(limits, value, category)
        return {"value": value, "now": now, **flips._asdict(), "histogram": finite(self.board.histogram(category, now))}

    def change(self, value: float, expected: float, category: str | None, who: str, address: str) -> dict[str, Any]:
        """Set a threshold, after it was written down who did it, and return the record.

        Args:
            value: the new threshold.
            expected: the one that the person saw; where it is another by now, nothing is changed.
            category: of a routed model, else None.
            who: name that the person gave.
            address: where the request came from.

        Raises:
            ConfigError: something of this is not acceptable.
            DataError: the audit log cannot be written; nothing was changed.
        """
        who = " ".join(who.split())
        if not who or len(who) > 80 or not who.isprintable():
            raise ConfigError("write your name, 80 characters at most: it goes into the audit log")
        if self._control is None or self._audit is None:
            raise ConfigError("thresholds cannot be changed here; start with --serve-audit FILE")
        limits = self._limits(value, category)
        now = limits.value if category is None else limits.categories[category]
        if not math.isclose(now, expected, rel_tol=1e-9, abs_tol=1e-12):
            raise ConfigError(f"the threshold is {now:.6g} by now, somebody else changed it; look again")
        record = {
            "who": who,
            "from": address,
            "model": self._control.name,
            "category": category,
            "old": now,
            "new": value,
            **self.board.flips(limits, value, category)._asdict(),
        }
        self._audit.add("threshold", record)
        try:
            self._control.set_threshold(value, category)
        except EdgeadError as error:
            self._audit.add("threshold not changed", {**record, "reason": str(error)})
            raise
        self._changes.appendleft({"time": utc_now(), "who": who, "category": category, "old": now, "new": value})
        return record

    def _limits(self, value: float, category: str | None) -> Limits:
        if self._control is None:
            raise DataError("this run has no threshold to look at")
        limits = self._control.limits
        if not math.isfinite(value):
            raise ConfigError("a threshold is a finite number")
        if category is None and limits.categories:
            raise ConfigError("this model has a threshold for each category; choose one")
        if category is not None and category not in limits.categories:
            raise ConfigError("this model has no such category")
        return limits

    def _control_state(self, control: ThresholdControl) -> dict[str, Any]:
        limits = control.limits
        why = "start with --serve-audit FILE to allow changes" if self._audit is None else None
        return {
            "thresholds": [{"category": name, "value": value} for name, value in limits.categories.items()]
            or [{"category": None, "value": limits.value}],
            "locked": why,
            "changes": list(self._changes),
        }
