"""The protocol over gRPC."""

from __future__ import annotations

import hmac
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.serving.model import LARGEST, RequestError, ServedModel

_THREADS = 8


def start_rpc(model: ServedModel, host: str, port: int, token: str | None) -> tuple[Any, int]:
    """Listen; returns the library's server and its port.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import grpc
    from tritonclient.grpc import service_pb2_grpc as services

    # Without reuse of the port: two servers would share it, and answer in turns.
    limits = {"grpc.max_receive_message_length": LARGEST, "grpc.max_send_message_length": -1, "grpc.so_reuseport": 0}
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, "edgead-serve"), options=list(limits.items()), maximum_concurrent_rpcs=2 * _THREADS
    )
    services.add_GRPCInferenceServiceServicer_to_server(_servicer(model, token), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigError(f"cannot listen on {address} for gRPC; is it taken, or no address of this machine?")
    server.start()
    return server, int(bound)


def _servicer(model: ServedModel, token: str | None) -> Any:
    """Return the service, as a subclass of the library's, whose other methods answer that they are not there."""
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as services

    codes = {
        "invalid": grpc.StatusCode.INVALID_ARGUMENT,
        "unknown": grpc.StatusCode.NOT_FOUND,
        "not ready": grpc.StatusCode.UNAVAILABLE,
    }

    def allow(context: Any) -> None:
        if token is None:
            return
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "send authorization: Bearer TOKEN")

    class Service(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return messages.ServerLiveResponse(live=True)

        def ServerReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return messages.ServerReadyResponse(ready=model.ready)

        def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
            try:
                model.require(request.name, request.version)
            except RequestError as error:
                context.abort(codes[error.kind], str(error))
            return messages.ModelReadyResponse(ready=model.ready)

        def ServerMetadata(self, _request: Any, context: Any) -> Any:  # noqa: N802
            allow(context)
            return messages.ServerMetadataResponse(**model.server_metadata())

        def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            allow(context)
            try:
                model.require(request.name, request.version)
            except RequestError as error:
                context.abort(codes[error.kind], str(error))
            return messages.ModelMetadataResponse(**model.metadata())

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            allow(context)
            try:
                return model.infer(request)
            except RequestError as error:
                return context.abort(codes[error.kind], str(error))
            except DataError as error:
                return context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return Service()
