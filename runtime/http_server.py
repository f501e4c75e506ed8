"""A small HTTP server for one machine: bounded, quiet, and deaf to the pages of other sites."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import socket
import socketserver
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgead.runtime.errors import ConfigError
from edgead.runtime.files import reason

# A browser holds up to six connections; each costs a thread.
_CONNECTIONS = 48
_IDLE_S = 10.0

_log = logging.getLogger("edgead.web")


def parse_listen(where: str, text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of ``8080``, ``127.0.0.1:8080``, ``localhost`` or ``[::1]:8080``; port 0: any free one.

    Raises:
        ConfigError: anything else; ``where`` begins the message.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9_.-]+))(?::([0-9]{1,5}))?", text)
    if match is not None and match[2] and match[2].isdecimal() and match[3] is None:
        host, port = "127.0.0.1", int(match[2])
    elif match is not None:
        host, port = match[1] or match[2], int(match[3] or default_port)
    if match is None or port > 65535:
        raise ConfigError(f"{where}: write the address to listen on, such as 127.0.0.1:{default_port}")
    return host, port


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach what listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(ThreadingHTTPServer):
    """Serves in threads of its own, a bounded number of them, from `start` to `stop`.

    Args:
        where: names the server in messages.
        host, port: where to listen; port 0 takes a free one, which is then in ``port``.
        handler: a subclass of `Handler`.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """

    daemon_threads = True
    block_on_close = False
    any_name = False  # True: a Host header is not looked at
    request_queue_size = 32

    def __init__(self, where: str, host: str, port: int, handler: type[Handler]) -> None:
        self.host = host
        self.local = is_loopback(host)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._thread: threading.Thread | None = None
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise ConfigError(f"{where}: cannot listen on {host}:{port}: {reason(error)}") from error
        self.port = int(self.server_address[1])

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service who we are: that takes seconds where there is none.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="edgead-web", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and end the connections that are still open. May be called twice."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a request failed", exc_info=True)  # mostly a browser that went away


class Handler(BaseHTTPRequestHandler):
    """One connection: checks where a request is meant to go, then calls `get` or `post` of the subclass."""

    protocol_version = "HTTP/1.1"
    server_version = "edgead"
    sys_version = ""
    timeout = _IDLE_S
    server: Server

    def get(self, path: str, query: str) -> None:  # noqa: ARG002
        self.refuse(HTTPStatus.NOT_FOUND)

    def post(self, path: str, query: str) -> None:  # noqa: ARG002
        self.refuse(HTTPStatus.NOT_FOUND)

    def do_GET(self) -> None:
        if self._meant_for_us():
            path, _, query = self.path.partition("?")
            self.get(path, query)

    def do_POST(self) -> None:
        # What an answer leaves unread of the body would be taken for the next request.
        self.close_connection = True
        if self._meant_for_us():
            path, _, query = self.path.partition("?")
            self.post(path, query)

    def answer(
        self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus, text: str | None = None, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Send an error as one line of text."""
        self.answer(f"{text or status.phrase}\n".encode(), "text/plain; charset=utf-8", status=status, headers=headers)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Replace the base class's page, which repeats what the client sent."""
        self.close_connection = True
        self.refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the base class writes to stderr, where the summary of a run belongs."""

    def bearer_is(self, token: str) -> bool:
        """Say whether the request carries a token, in a time that tells nothing about it."""
        sent = self.headers.get("Authorization", "")
        return hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())

    def _meant_for_us(self) -> bool:
        """Refuse a page whose name was made to point to this machine (DNS rebinding).

        Such a page is named by its own domain. On loopback only names of loopback are ours; elsewhere an address in
        figures, which no name server can bend, or this machine's own name.
        """
        if self.server.any_name:
            return True
        name = self.headers.get("Host", "").strip().lower()
        host = re.sub(r":[0-9]{1,5}$", "", name).strip("[]")
        if is_loopback(host) or host == self.server.host.lower():
            return True
        if not self.server.local:
            if host in (socket.gethostname().lower(), socket.gethostname().lower().partition(".")[0]):
                return True
            try:
                ipaddress.ip_address(host)
                return True
            except ValueError:
                pass
        self.close_connection = True
        self.refuse(HTTPStatus.MISDIRECTED_REQUEST, "this name is not served here; use the address in figures")
        return False
