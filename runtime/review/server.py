"""The review of a record where no line runs: the same page, served by a program of its own."""

from __future__ import annotations

from pathlib import Path

from edgead.runtime.dashboard import access as _access
from edgead.runtime.dashboard.access import Access
from edgead.runtime.dashboard.guarded import GuardedHandler, read_files
from edgead.runtime.errors import ConfigError
from edgead.runtime.http_server import Server, is_loopback, parse_listen
from edgead.runtime.journal.writer import Journal
from edgead.runtime.review.review_queue import DEFAULT_SHARE
from edgead.runtime.review.routes import ReviewRoutes

# The log-in and its looks are those of the live page.
_SHARED = {
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/login": ("login.html", "text/html; charset=utf-8"),
}


class ReviewServer:
    """Serves the review of a record from the moment it is made until it is closed.

    Args:
        folder: of the journal; nobody else writes it meanwhile.
        listen, token: as of `LivePage`.
        share: of the random sample.

    Raises:
        ConfigError: no journal, another one writes it, the address is taken, or reachable from outside without a token.

    Example:
        >>> with ReviewServer(Path("line3"), "127.0.0.1:8090") as review:
        ...     print(review.url)
    """

    def __init__(
        self, folder: Path, listen: str = "127.0.0.1:8090", *, token: str | None = None, share: float = DEFAULT_SHARE
    ) -> None:
        host, port = parse_listen("--listen", listen, 8090)
        if token is None and not is_loopback(host):
            raise ConfigError(f"--listen {listen} is reachable from other machines and needs a token: --token FILE")
        if not folder.is_dir():
            raise ConfigError(f"there is no record in {folder}; 'edgead run --record {folder}' writes one")
        self.access = Access(token)
        self.journal = Journal(folder)
        try:
            routes = self._routes = ReviewRoutes(self.journal, self.access.word, share=share)
            shared = read_files(Path(_access.__file__).parent, _SHARED)
            files = {**shared, **routes.files()}
            handler = type("Handler", (_Handler,), {"page": self, "files": files, "routes": routes})
            self._server = Server("--listen", host, port, handler)
        except BaseException:
            self.journal.close()
            raise
        self.url = f"{self._server.url}review"
        self._server.start()

    def close(self) -> None:
        """Serve no more, and let the next writer in."""
        self._server.stop()
        self._routes.close()
        self.journal.close()

    def __enter__(self) -> ReviewServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(GuardedHandler):
    """Answers one request."""

    routes: ReviewRoutes
    open_paths = frozenset(_SHARED)
    start = "/review"

    def show(self, path: str, query: str) -> None:
        if path == "/":
            self.go("/review")
        elif not self.routes.show(self, path, query):
            super().show(path, query)

    def act(self, path: str) -> None:
        if not self.routes.act(self, path):
            super().act(path)
