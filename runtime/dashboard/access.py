"""Who may see the page, and from where a change may come."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import deque
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from edgead.runtime.errors import ConfigError
from edgead.runtime.http_server import Handler

_COOKIE = "edgead_session"
_SESSIONS = 64
_LEAST_TOKEN = 16


class Access:
    """Keeps the token, the sessions of browsers that showed it, and the word that only our own page knows.

    Args:
        token: None where everybody who reaches the address may look, which is for loopback only.
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and len(token) < _LEAST_TOKEN:
            raise ConfigError(
                f"the page's token must have {_LEAST_TOKEN} characters or more; make one with: openssl rand -hex 16"
            )
        self._token = token
        self.word = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        self._sessions: deque[str] = deque(maxlen=_SESSIONS)

    def granted(self, request: Handler) -> bool:
        """Say whether a request may see anything: no token is set, or it carries the token or a session."""
        if self._token is None or request.bearer_is(self._token):
            return True
        try:
            cookies = SimpleCookie(request.headers.get("Cookie", ""))
        except CookieError:
            return False
        shown = cookies[_COOKIE].value if _COOKIE in cookies else ""
        with self._lock:
            return any(hmac.compare_digest(shown.encode(), known.encode()) for known in self._sessions)

    def log_in(self, token: str) -> str | None:
        """Return the Set-Cookie line of a new session, or None where the token is wrong."""
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        session = secrets.token_urlsafe(24)
        with self._lock:
            self._sessions.append(session)
        return f"{_COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict"

    def same_origin(self, request: Handler) -> bool:
        """Say whether a request comes from a page of this server, and not from another site's script or form."""
        origin = urlsplit(request.headers.get("Origin", ""))
        fetched = request.headers.get("Sec-Fetch-Site", "same-origin")
        host = request.headers.get("Host", "")
        return bool(host) and origin.netloc.lower() == host.strip().lower() and fetched == "same-origin"

    def ours(self, request: Handler) -> bool:
        """Say whether a change was asked for by our own page: same origin, and its word."""
        word = request.headers.get("X-Edgead-Word", "")
        return self.same_origin(request) and hmac.compare_digest(word.encode(), self.word.encode())


def read_token(path: Path) -> str:
    """Return the token that a file holds.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read the page's token from {path}: {error.__class__.__name__}") from error
    if not token:
        raise ConfigError(f"{path} is empty; make a token with: openssl rand -hex 16 > {path}")
    return token
