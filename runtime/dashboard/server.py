"""What the page's server answers; docs/live-page.md lists what protects it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from edgead.runtime.dashboard.access import Access
from edgead.runtime.dashboard.state import Board
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.http_server import Handler

_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/login": ("login.html", "text/html; charset=utf-8"),
}
# What a browser must have before it may see anything else.
_OPEN = {"/login", "/page.css", "/icon.svg"}
_LARGEST_BODY = 4096
_WRONG_TOKEN_S = 0.5

HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    # Not "no-referrer": with that, browsers send the log-in form with the origin "null".
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


class Page(Protocol):
    """What is served: `edgead.runtime.dashboard.sink.LivePage` is one."""

    @property
    def access(self) -> Access: ...

    @property
    def board(self) -> Board: ...

    def turn(self) -> AbstractContextManager[None]:
        """Let one request work at a time."""

    def state(self, since: int) -> dict[str, Any]:
        """Return what a browser shows now."""

    def preview(self, value: float, category: str | None) -> dict[str, Any]:
        """Return what a threshold would have decided on the last parts."""

    def change(self, value: float, expected: float, category: str | None, who: str, address: str) -> dict[str, Any]:
        """Change a threshold; raises `ConfigError` where it is another one than was expected."""


class PageHandler(Handler):
    """Answers one request; `page_handler` gives it its page and files."""

    page: Page
    files: Mapping[str, tuple[bytes, str]]

    def get(self, path: str, query: str) -> None:
        if path not in _OPEN and not self.page.access.granted(self):
            if path == "/":
                self._go("/login")
            else:
                self.refuse(HTTPStatus.UNAUTHORIZED, "log in first", HEADERS)
        elif path in self.files:
            body, kind = self.files[path]
            self.answer(body, kind, headers=HEADERS)
        elif path == "/api/state":
            with self.page.turn():
                state = self.page.state(_integer(query, "since"))
            self._json(state)
        elif path == "/api/preview":
            self._preview(query)
        elif match := re.fullmatch(r"/api/picture/([0-9]{1,4})\.jpg", path):
            with self.page.turn():
                jpeg = self.page.board.picture(
                    int(match[1]), _integer(query, "number"), heat=_integer(query, "heat") != 0
                )
            self._picture(jpeg)
        elif match := re.fullmatch(r"/api/anomaly/([0-9]{1,15})\.jpg", path):
            with self.page.turn():
                jpeg = self.page.board.thumbnail(int(match[1]), large=_integer(query, "large") != 0)
            self._picture(jpeg)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def post(self, path: str, query: str) -> None:  # noqa: ARG002
        if path == "/login":
            self._log_in()
        elif not self.page.access.granted(self):
            self.refuse(HTTPStatus.UNAUTHORIZED, "log in first", HEADERS)
        elif path != "/api/threshold":
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)
        elif not self.page.access.ours(self):
            self.refuse(HTTPStatus.FORBIDDEN, "changes are taken from this server's own page only", HEADERS)
        else:
            self._change()

    def _change(self) -> None:
        body = self._body("application/json")
        if body is None:
            return
        try:
            asked = json.loads(body)
            value, expected = float(asked["value"]), float(asked["expected"])
            category, who = asked["category"], asked["who"]
            if not (isinstance(who, str) and isinstance(category, str | None)):
                raise TypeError
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.refuse(HTTPStatus.BAD_REQUEST, "write value, expected, category and who", HEADERS)
            return
        try:
            self._json(self.page.change(value, expected, category, who, self.client_address[0]))
        except ConfigError as error:
            self.refuse(HTTPStatus.CONFLICT, str(error), HEADERS)
        except EdgeadError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), HEADERS)

    def _preview(self, query: str) -> None:
        asked = parse_qs(query, max_num_fields=4)
        try:
            with self.page.turn():
                seen = self.page.preview(float(asked["value"][0]), asked.get("category", [None])[0])
            self._json(seen)
        except (KeyError, ValueError, EdgeadError) as error:
            what = str(error) if isinstance(error, EdgeadError) else "write value=NUMBER"
            self.refuse(HTTPStatus.BAD_REQUEST, what, HEADERS)

    def _log_in(self) -> None:
        if not self.page.access.same_origin(self):
            self.refuse(HTTPStatus.FORBIDDEN, "log in on this server's own page", HEADERS)
            return
        body = self._body("application/x-www-form-urlencoded")
        if body is None:
            return
        try:
            token = parse_qs(body.decode(), max_num_fields=2).get("token", [""])[0]
        except ValueError:
            token = ""
        cookie = self.page.access.log_in(token.strip())
        if cookie is None:
            time.sleep(_WRONG_TOKEN_S)  # guessing is slow, on a bounded number of connections
            self._go("/login?wrong")
        else:
            self._go("/", (("Set-Cookie", cookie),))

    def _body(self, kind: str) -> bytes | None:
        """Return the body of a POST, or refuse it and return None."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != kind or not length.isdecimal():
            self.refuse(HTTPStatus.BAD_REQUEST, f"send {kind} with its length", HEADERS)
            return None
        if int(length) > _LARGEST_BODY:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers=HEADERS)
            return None
        return self.rfile.read(int(length))

    def _json(self, content: dict[str, Any]) -> None:
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        self.answer(body, "application/json", headers=HEADERS)

    def _picture(self, jpeg: bytes | None) -> None:
        if jpeg is None:
            self.refuse(HTTPStatus.NOT_FOUND, "no longer kept", HEADERS)
        else:
            self.answer(jpeg, "image/jpeg", headers=HEADERS)

    def _go(self, where: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.answer(b"", "text/plain", status=HTTPStatus.SEE_OTHER, headers=(("Location", where), *HEADERS, *headers))


def page_handler(page: Page) -> type[Handler]:
    """Return the handler class of one page."""
    files = {path: ((_FOLDER / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
    return type("PageHandler", (PageHandler,), {"page": page, "files": files})


def _integer(query: str, name: str) -> int:
    text = parse_qs(query, max_num_fields=8).get(name, ["0"])[0]
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
