"""Both transports of one served model, ready once its self-test passed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from edgead.runtime.errors import ConfigError
from edgead.runtime.http_server import Server, is_loopback, parse_listen
from edgead.runtime.serving.model import Inspects, ServedModel
from edgead.runtime.serving.rest import rest_handler
from edgead.runtime.serving.rpc import start_rpc

_END_S = 5.0


class InferenceServer:
    """Listens at once; `ready` is False, and nothing is judged, until `self_test` passed.

    Args:
        inspector: opened from a bundle; it stays open.
        rest, rpc: addresses such as ``127.0.0.1:8000``; port 0: any free one.
        token: asked of every request but those for life and readiness; an address that others reach needs one.

    Attributes:
        url: of REST; target: of gRPC, ``host:port``.

    Raises:
        ConfigError: an address cannot be listened on, or is reachable from outside without a token.

    Example:
        >>> with Inspector.open("plate.edgead") as inspect, InferenceServer(inspect) as server:
        ...     print(server.self_test(), server.url, server.target)
    """

    def __init__(
        self, inspector: Inspects, rest: str = "127.0.0.1:8000", rpc: str = "127.0.0.1:8001", token: str | None = None
    ) -> None:
        self.model = ServedModel(inspector)
        web, grpc = parse_listen("--rest", rest, 8000), parse_listen("--grpc", rpc, 8001)
        for option, (host, _) in (("--rest", web), ("--grpc", grpc)):
            if token is None and not is_loopback(host):
                raise ConfigError(f"{option} {host} is reachable from other machines and needs a token: --token FILE")
        self._web = Server("--rest", *web, rest_handler(self.model, token))
        try:
            self._rpc: Any
            self._rpc, port = start_rpc(self.model, *grpc, token)
        except BaseException:
            self._web.stop()
            raise
        self._web.start()
        self.url, self.target = self._web.url, f"{grpc[0]}:{port}"

    def self_test(self) -> list[str]:
        """Replay the bundle's references, as `Inspector.self_test`; empty where all is well, and the server ready."""
        return self.model.self_test()

    def close(self) -> None:
        """Answer what was asked, at most 5 s long, and listen no more."""
        self.model.ready = False
        self._rpc.stop(_END_S).wait(_END_S + 1.0)
        self._web.stop()

    def __enter__(self) -> InferenceServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
