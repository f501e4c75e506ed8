"""Images that another program sends over HTTP, one a request, each with the id of its part."""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import parse_qs

from edgead.runtime.errors import ConfigError, DataError, SourceError
from edgead.runtime.frame import BadFrame, Frame, require_part_id
from edgead.runtime.http_server import Handler, Server, is_loopback, parse_listen
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.sources import Address, Clock, Source

_LARGEST = 64 << 20  # bytes of an image file
_WAITING = 32  # images that were received and not taken yet


class ReceiveSource(Source):
    """Listens for ``POST /frame?part_id=4711`` with an image file as the body.

    The answer is ``202`` and ``{"frame": N}`` once the image is decoded and handed over; what it was judged as goes to
    the sinks, with the part id. ``400`` says in a line what is wrong with the image or the id, ``503`` that too many
    images wait. An image that was not accepted gives no frame.

    Parameters: ``token_file``: the first line of this file must be sent as ``Authorization: Bearer …``; an address that
    other machines reach needs one.

    Raises:
        SourceError: the address is taken. ConfigError: it is reachable from outside, and there is no token.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = True
        self.delivery = address.delivery
        self.token = address.parameters.secret("token_file")
        self._clock, self._bits = clock, address.bits
        self._queue: queue.Queue[Frame | BadFrame | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._next = 0
        self._closed = False
        host, port = parse_listen(self.source_id, address.location.strip("/"), 8090)
        if self.token is None and not is_loopback(host):
            raise ConfigError(f"{self.source_id} is reachable from other machines and needs a token: ?token_file=FILE")
        handler = type("ReceiveHandler", (_ReceiveHandler,), {"source": self})
        try:
            self._server = Server(self.source_id, host, port, handler)
        except ConfigError as error:
            raise SourceError(str(error)) from error
        self.url = self._server.url
        self._server.start()

    def receive(self, body: bytes, part_id: str | None) -> int | None:
        """Take an image file; returns its frame number, None where too many wait.

        Raises:
            DataError: no image. ConfigError: no part id.
        """
        stamp = self._clock()
        require_part_id(part_id)
        image = decode_image(body, "the image", self._bits)
        with self._lock:
            frame = Frame(image, self._next, stamp, self.source_id, part_id=part_id)
            if self._closed:
                return None
            try:
                # Within the lock, so that frames come in the order of their numbers.
                self._queue.put_nowait(frame)
            except queue.Full:
                return None
            self._next += 1
            return frame.index

    def frames(self) -> Iterator[Frame | BadFrame]:
        while (frame := self._queue.get()) is not None:
            yield frame

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._server.stop()
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue


class _ReceiveHandler(Handler):
    source: ReceiveSource

    def post(self, path: str, query: str) -> None:
        if self.source.token is not None and not self.bearer_is(self.source.token):
            self.refuse(HTTPStatus.UNAUTHORIZED, "send Authorization: Bearer TOKEN")
            return
        if self.headers.get("Origin") is not None:
            self.refuse(HTTPStatus.FORBIDDEN, "images are taken from programs, not from web pages")
            return
        if path != "/frame":
            self.refuse(HTTPStatus.NOT_FOUND, "post an image to /frame?part_id=ID")
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > _LARGEST:
            self.refuse(HTTPStatus.BAD_REQUEST, f"send an image file of at most {_LARGEST} bytes, with its length")
            return
        try:
            asked = parse_qs(query, keep_blank_values=True, max_num_fields=8, strict_parsing=bool(query))
            if set(asked) - {"part_id"} or len(asked.get("part_id", [])) > 1:
                raise ValueError
        except ValueError:
            self.refuse(HTTPStatus.BAD_REQUEST, "the only parameter is part_id, given once: /frame?part_id=4711")
            return
        body = self.rfile.read(int(length))
        try:
            index = self.source.receive(body, asked.get("part_id", [None])[0])
        except (DataError, ConfigError) as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if index is None:
            self.refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many images wait, or the run is ending; send it again later"
            )
            return
        self.answer(json.dumps({"frame": index}).encode() + b"\n", "application/json", status=HTTPStatus.ACCEPTED)
