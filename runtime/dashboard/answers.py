"""What the pages' handlers have in common: log-in, bodies that are bounded, answers that browsers may not misuse."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from edgead.runtime.dashboard.access import Access
from edgead.runtime.http_server import Handler

_FOLDER = Path(__file__).parent
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


class Guarded(Protocol):
    """What is served to those who may see it."""

    @property
    def access(self) -> Access: ...


class AnsweringHandler(Handler):
    """A handler that shows nothing to who is not logged in, and answers with JSON and pictures.

    A subclass answers `show` and `act`, which are asked by those who may see the page only.

    Attributes:
        page: what is served.
        files: path -> content and type; ``open_files`` are those that a browser needs before it is logged in.
        starts: pages that lead to the log-in, where others are refused.
    """

    page: Guarded
    files: Mapping[str, tuple[bytes, str]]
    open_files: Collection[str] = ("/login", "/page.css", "/icon.svg")
    starts: Collection[str] = ("/",)

    def show(self, path: str, query: str) -> None:  # noqa: ARG002
        """Answer a GET that is none of the files."""
        self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def act(self, path: str) -> None:  # noqa: ARG002
        """Answer a POST."""
        self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def get(self, path: str, query: str) -> None:
        if path not in self.open_files and not self.page.access.granted(self):
            if path in self.starts:
                self.go("/login")
            else:
                self.refuse(HTTPStatus.UNAUTHORIZED, "log in first", HEADERS)
        elif path in self.files:
            body, kind = self.files[path]
            self.answer(body, kind, headers=HEADERS)
        else:
            self.show(path, query)

    def post(self, path: str, query: str) -> None:  # noqa: ARG002
        if path == "/login":
            self.log_in()
        elif not self.page.access.granted(self):
            self.refuse(HTTPStatus.UNAUTHORIZED, "log in first", HEADERS)
        else:
            self.act(path)

    def log_in(self) -> None:
        """Answer the log-in form."""
        if not self.page.access.same_origin(self):
            self.refuse(HTTPStatus.FORBIDDEN, "log in on this server's own page", HEADERS)
            return
        body = self.body("application/x-www-form-urlencoded")
        if body is None:
            return
        try:
            token = parse_qs(body.decode(), max_num_fields=2).get("token", [""])[0]
        except ValueError:
            token = ""
        cookie = self.page.access.log_in(token.strip())
        if cookie is None:
            time.sleep(_WRONG_TOKEN_S)  # guessing is slow, on a bounded number of connections
            self.go("/login?wrong")
        else:
            self.go("/", (("Set-Cookie", cookie),))

    def body(self, kind: str) -> bytes | None:
        """Return the body of a POST, or refuse it and return None."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != kind or not length.isdecimal():
            self.refuse(HTTPStatus.BAD_REQUEST, f"send {kind} with its length", HEADERS)
            return None
        if int(length) > _LARGEST_BODY:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers=HEADERS)
            return None
        return self.rfile.read(int(length))

    def json(self, content: dict[str, Any]) -> None:
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        self.answer(body, "application/json", headers=HEADERS)

    def picture(self, jpeg: bytes | None) -> None:
        if jpeg is None:
            self.refuse(HTTPStatus.NOT_FOUND, "no longer kept", HEADERS)
        else:
            self.answer(jpeg, "image/jpeg", headers=HEADERS)

    def go(self, where: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.answer(b"", "text/plain", status=HTTPStatus.SEE_OTHER, headers=(("Location", where), *HEADERS, *headers))


def read_files(names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[bytes, str]]:
    """Return path -> content and type, of path -> name of a file beside this one and type."""
    return {path: ((_FOLDER / name).read_bytes(), kind) for path, (name, kind) in names.items()}


def integer(query: str, name: str) -> int:
    """Return a whole number of a query, 0 where it is none."""
    text = parse_qs(query, max_num_fields=8).get(name, ["0"])[0]
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
