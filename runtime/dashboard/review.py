"""Recorded parts reviewed by people in a browser: one key a part, each person's labels kept apart."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

from edgead.runtime.dashboard.access import Access
from edgead.runtime.dashboard.answers import HEADERS, AnsweringHandler, Guarded, integer, read_files
from edgead.runtime.dashboard.thumbnails import SIDE, encode_jpeg
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.http_server import Server, is_loopback, parse_listen
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.review import ReviewQueue
from edgead.runtime.journal.rows import person
from edgead.runtime.journal.writer import Journal

_FILES = {
    "/review": ("review.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
_SHARED = {
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/login": ("login.html", "text/html; charset=utf-8"),
}
_KINDS = 9  # one key each


class TakesOver(Protocol):
    """Lets a taught bundle take over: `edgead.runtime.inspection.takeover.TakeOver` is one."""

    def offered(self) -> dict[str, Any] | None:
        """Return what waits, None where nothing does."""

    def take(self, who: str, expected: str) -> dict[str, Any]:
        """Let it take over; raises `EdgeadError` where it may not."""


class ReviewDesk:
    """What the page asks of a journal; thread-safe, one request at a time.

    Args:
        journal: open for writing; it stays open.
        takeover: of a line that runs; None: nothing can take over.
    """

    def __init__(self, journal: Journal, takeover: TakesOver | None = None) -> None:
        self._journal, self._takeover = journal, takeover
        self._promised: tuple[str, Threshold | None] | None = None
        self._lock = threading.Lock()
        self._reader = JournalReader(journal.folder)
        self._queue = ReviewQueue(self._reader)

    def next(self, who: str, queue: str | None, skip: Collection[int], seq: int) -> dict[str, Any]:
        """Return the part to look at, what is left, and what is known of escapes, schema ``edgead.review/1``.

        Args:
            who: the reviewer's name; queue, skip: see `ReviewQueue.next`.
            seq: this part instead, to look at it again; 0: the next one.

        Raises:
            ConfigError: no name, no such queue or part.
        """
        who = person(who)
        with self._lock:
            row = self._reader.part(seq) if seq else self._queue.next(who, queue, skip)
            part = None
            if row is not None:
                said = self._reader.result(row).to_dict()
                names = ("decision", "score", "threshold", "category", "reason", "source_id", "name", "part_id")
                mine = [one.body for one in self._reader.labels(row.seq) if one.body["who"] == who]
                part = {"row": row.seq, "time_ms": row.time_ms, **{name: said[name] for name in names}, "mine": mine}
            kinds = Counter(str(one.body["defect"]) for one in self._reader.labels() if "defect" in one.body)
            return {
                "schema": "edgead.review/1",
                "part": part,
                "left": self._queue.left(who),
                "escapes": self._queue.escapes(who).to_dict(),
                "kinds": [kind for kind, _ in kinds.most_common(_KINDS)],
                "promise": self._promise(who),
                "waiting": None if self._takeover is None else self._takeover.offered(),
            }

    def label(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write a label down, and return the number of its row; the same as before (a double click) is the same row.

        Raises:
            ConfigError: no such part, label or name. DataError: it could not be written.
        """
        try:
            seq, label, who = asked["row"], asked["label"], asked["who"]
            defect, note = asked.get("defect"), asked.get("note", "")
            right = isinstance(seq, int) and isinstance(defect, str | None)
            if not right or not all(isinstance(text, str) for text in (label, who, note)):
                raise TypeError
        except (KeyError, TypeError) as error:
            raise ConfigError("write row, label and who, and defect and note where there are any") from error
        return {"row": self._journal.label(seq, label, who, defect=defect or None, note=note)}

    def take_over(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Let the taught bundle take over that waits; raises `EdgeadError` where it may not."""
        who, expected = asked.get("who"), asked.get("sha256")
        if not isinstance(who, str) or not isinstance(expected, str):
            raise ConfigError("write who and sha256")
        if self._takeover is None:
            raise ConfigError("no line runs here; open the live page of the run")
        return self._takeover.take(who, expected)

    def _promise(self, who: str) -> dict[str, Any] | None:
        """Return what the person's labels say of the promise of the bundle that judged last; none of a routed one."""
        from edgead.runtime.bundle.bundle import Bundle  # which needs pydantic, and the live page alone does not

        told = [row for row in self._reader.rows("bundle") if row.body.get("sha256")]
        if not told:
            return None
        digest = str(told[-1].body["sha256"])
        if self._promised is None or self._promised[0] != digest:
            promised = None
            with suppress(EdgeadError), Bundle.open(self._reader.bundle(digest)) as bundle:
                opened = self._reader.setup(told[-1]).get("opened") or {}
                promised = bundle.manifest.promised(opened.get("precision") or "fp32").get(None)
            self._promised = digest, promised
        promised = self._promised[1]
        state = None if promised is None else self._queue.promise(who, promised)
        return None if state is None else state.to_dict()

    def picture(self, seq: int, *, heat: bool) -> bytes:
        """Return a part as a JPEG, with its heat map where that is wanted; raises `DataError` where there is none."""
        with self._lock:
            row = self._reader.part(seq)
            frame, result = self._reader.frame(row), self._reader.result(row)
        return encode_jpeg(frame.image, frame.layout, result, SIDE, heat)

    def close(self) -> None:
        """Close what was read; the journal stays open."""
        with self._lock:
            self._reader.close()


class Reviewed(Guarded, Protocol):
    """A page that has parts to review, or not."""

    @property
    def desk(self) -> ReviewDesk | None: ...

    def turn(self) -> AbstractContextManager[None]:
        """Let one request work at a time, where a line must not be slowed down."""


class ReviewRoutes(AnsweringHandler):
    """What a handler answers of the review, for those who may see it."""

    page: Reviewed

    def review_get(self, path: str, query: str) -> bool:
        """Answer a GET of the review; False where it is none of it."""
        desk = self.page.desk
        if desk is None:
            return False
        if path in _FILES:
            body, kind = read_files(_FILES)[path]
            self.answer(body, kind, headers=HEADERS)
        elif path == "/api/review/next":
            asked = parse_qs(query, max_num_fields=8)
            queue = asked.get("queue", [""])[0] or None
            skip = {int(seq) for seq in re.findall(r"[0-9]{1,15}", asked.get("skip", [""])[0])}
            self._say(
                lambda: {
                    **desk.next(asked.get("who", [""])[0], queue, skip, integer(query, "row")),
                    "word": self.page.access.word,
                }
            )
        elif match := re.fullmatch(r"/api/review/picture/([0-9]{1,15})\.jpg", path):
            try:
                with self.page.turn():
                    jpeg = desk.picture(int(match[1]), heat=integer(query, "heat") != 0)
                self.picture(jpeg)
            except EdgeadError as error:
                self.refuse(HTTPStatus.NOT_FOUND, str(error), HEADERS)
        else:
            return False
        return True

    def review_post(self, path: str) -> bool:
        """Answer a POST of the review; False where it is none of it."""
        desk = self.page.desk
        actions = {"/api/review/label": "label", "/api/review/takeover": "take_over"}
        if desk is None or path not in actions:
            return False
        if not self.page.access.ours(self):
            self.refuse(HTTPStatus.FORBIDDEN, "labels are taken from this server's own page only", HEADERS)
            return True
        body = self.body("application/json")
        if body is None:
            return True
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self.refuse(HTTPStatus.BAD_REQUEST, "write a JSON object", HEADERS)
            return True
        self._say(lambda: getattr(desk, actions[path])(asked))
        return True

    def _say(self, ask: Any) -> None:
        try:
            self.json(ask())
        except ConfigError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error), HEADERS)
        except EdgeadError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), HEADERS)


class ReviewHandler(ReviewRoutes):
    """The review without a camera."""

    starts = ("/", "/review")

    def show(self, path: str, query: str) -> None:
        if path == "/":
            self.go("/review")
        elif not self.review_get(path, query):
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def act(self, path: str) -> None:
        if not self.review_post(path):
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)


class ReviewPage:
    """Serves the review of a journal from the moment it is made until it is closed.

    Args:
        journal: open for writing; it stays open.
        listen: ``127.0.0.1:8080``; port 0 takes a free one, see ``url``.
        token: 16 characters or more; an address that other machines reach needs one.

    Raises:
        ConfigError: the address is taken, or reachable from outside without a token.
    """

    def __init__(self, journal: Journal, listen: str = "127.0.0.1:8080", token: str | None = None) -> None:
        host, port = parse_listen("--serve", listen, 8080)
        if token is None and not is_loopback(host):
            raise ConfigError(
                f"--serve {listen} is reachable from other machines and needs a token: --serve-token FILE "
                "(openssl rand -hex 16 > FILE)"
            )
        self.access = Access(token)
        self.desk = ReviewDesk(journal)
        handler = type("ReviewPageHandler", (ReviewHandler,), {"page": self, "files": read_files(_SHARED)})
        self._server = Server("--serve", host, port, handler)
        self.url = self._server.url
        self._server.start()

    def turn(self) -> AbstractContextManager[None]:
        """Let each request work at once: there is no line that it could slow down."""
        return nullcontext()

    def close(self) -> None:
        """Serve no more; calling it twice is allowed."""
        self._server.stop()
        self.desk.close()

    def __enter__(self) -> ReviewPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
