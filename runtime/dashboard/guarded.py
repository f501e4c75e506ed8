"""What every page of ours is protected by: log-in, its own origin, small bodies, and headers that forbid the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from edgead.runtime.dashboard.access import Access
from edgead.runtime.http_server import Handler

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
    """What is served."""

    @property
    def access(self) -> Access: ...


class GuardedHandler(Handler):
    """Answers one request of somebody who may look; subclasses answer `show` and `act`.

    Attributes:
        page: what is served; files: path -> content and type; open_paths: what a browser must have before it may see
            anything else; start: the first page.
    """

    page: Guarded
    files: Mapping[str, tuple[bytes, str]]
    open_paths: Collection[str] = ()
    start = "/"

    def show(self, path: str, query: str) -> None:  # noqa: ARG002
        """Answer a GET that is none of the files."""
        self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def act(self, path: str) -> None:  # noqa: ARG002
        """Answer a POST of our own page."""
        self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)

    def get(self, path: str, query: str) -> None:
        if path not in self.open_paths and not self.page.access.granted(self):
            if path in ("/", self.start):
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
            self._log_in()
        elif not self.page.access.granted(self):
            self.refuse(HTTPStatus.UNAUTHORIZED, "log in first", HEADERS)
        elif not path.startswith("/api/"):
            self.refuse(HTTPStatus.NOT_FOUND, headers=HEADERS)
        elif not self.page.access.ours(self):
            self.refuse(HTTPStatus.FORBIDDEN, "changes are taken from this server's own page only", HEADERS)
        else:
            self.act(path)

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
        """Answer with JSON."""
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        self.answer(body, "application/json", headers=HEADERS)

    def picture(self, jpeg: bytes | None) -> None:
        """Answer with a picture, None where it is no longer kept."""
        if jpeg is None:
            self.refuse(HTTPStatus.NOT_FOUND, "no longer kept", HEADERS)
        else:
            self.answer(jpeg, "image/jpeg", headers=HEADERS)

    def go(self, where: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Send the browser elsewhere."""
        self.answer(b"", "text/plain", status=HTTPStatus.SEE_OTHER, headers=(("Location", where), *HEADERS, *headers))

    def _log_in(self) -> None:
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
            self.go(self.start, (("Set-Cookie", cookie),))


def read_files(folder: Path, names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[bytes, str]]:
    """Return path -> content and type, of path -> file name and type."""
    return {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in names.items()}
