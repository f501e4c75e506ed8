"""What the page's server answers; docs/live-page.md lists what protects it."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

from edgead.runtime.dashboard.answers import HEADERS, integer, read_files
from edgead.runtime.dashboard.review import Reviewed, ReviewRoutes
from edgead.runtime.dashboard.state import Board
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.http_server import Handler

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/login": ("login.html", "text/html; charset=utf-8"),
}


class Page(Reviewed, Protocol):
    """What is served: `edgead.runtime.dashboard.sink.LivePage` is one."""

    @property
    def board(self) -> Board: ...

    def state(self, since: int) -> dict[str, Any]:
        """Return what a browser shows now."""

    def preview(self, value: float, category: str | None) -> dict[str, Any]:
        """Return what a threshold would have decided on the last parts."""

    def change(self, value: float, expected: float, category: str | None, who: str, address: str) -> dict[str, Any]:
        """Change a threshold; raises `ConfigError` where it is another one than was expected."""


class PageHandler(ReviewRoutes):
    """Answers one request; `page_handler` gives it its page and files."""

    page: Page

    def show(self, path: str, query: str) -> None:
        if path == "/api/state":
            with self.page.turn():
                state = self.page.state(integer(query, "since"))
            self.json(state)
        elif path == "/api/preview":
            self._preview(query)
        elif match := re.fullmatch(r"/api/picture/([0-9]{1,4})\.jpg", path):
            with self.page.turn():
                jpeg = self.page.board.picture(
                    int(match[1]), integer(query, "number"), heat=integer(query, "heat") != 0
                )
            self.picture(jpeg)
        elif match := re.fullmatch(r"/api/anomaly/([0-9]{1,15})\.jpg", path):
            with self.page.turn():
                jpeg = self.page.board.thumbnail(int(match[1]), large=integer(query, "large") != 0)
            self.picture(jpeg)
        elif not self.review_get(path, query):
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def act(self, path: str) -> None:
        if self.review_post(path):
            return
        if path != "/api/threshold":
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)
        elif not self.page.access.ours(self):
            self.refuse(HTTPStatus.FORBIDDEN, "changes are taken from this server's own page only", HEADERS)
        else:
            self._change()

    def _change(self) -> None:
        body = self.body("application/json")
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
            self.json(self.page.change(value, expected, category, who, self.client_address[0]))
        except ConfigError as error:
            self.refuse(HTTPStatus.CONFLICT, str(error), HEADERS)
        except EdgeadError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), HEADERS)

    def _preview(self, query: str) -> None:
        asked = parse_qs(query, max_num_fields=4)
        try:
            with self.page.turn():
                seen = self.page.preview(float(asked["value"][0]), asked.get("category", [None])[0])
            self.json(seen)
        except (KeyError, ValueError, EdgeadError) as error:
            what = str(error) if isinstance(error, EdgeadError) else "write value=NUMBER"
            self.refuse(HTTPStatus.BAD_REQUEST, what, HEADERS)


def page_handler(page: Page) -> type[Handler]:
    """Return the handler class of one page."""
    return type("PageHandler", (PageHandler,), {"page": page, "files": read_files(_FILES)})
