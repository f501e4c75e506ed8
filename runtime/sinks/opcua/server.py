"""An OPC UA server that shows results to whoever connects, and takes the ids of the next parts."""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Result
from edgead.runtime.http_server import is_loopback, parse_listen
from edgead.runtime.sinks.opcua.security import Security, read_security
from edgead.runtime.sinks.opcua.sink import Loop, OpcUaSink, UaOutput, no_chatter
from edgead.runtime.sinks.opcua.space import Bad, Space
from edgead.runtime.sinks.opcua.station import RESULT, STATE, ResultFields, Station
from edgead.runtime.sinks.part_ids import MAX_AGE_S, PartIds
from edgead.runtime.uri import Parameters

_APPLICATION = "urn:edgead:server"  # where no certificate says another
_START_S, _ANSWER_S = 60.0, 5.0
_CONNECTIONS = 32
_LARGEST = 1 << 20  # bytes of a message

_log = logging.getLogger("edgead.sinks")


class OpcUaServer(OpcUaSink):
    """Listens at ``opcua://[USER[:PASSWORD]@]HOST[:4840]`` for clients that read, subscribe, and announce parts.

    Parameters: ``certificate=FILE``, ``key=FILE``, ``trust=DIR`` (see `Security`), or ``security=none``;
    ``password_file=FILE`` of the user, or ``anonymous=yes``; ``hold=1s``, how long one OK stays; ``max_age=1s`` from
    capture; ``beat=250ms``; ``part_id=announced``: frames take the ids that clients write (`PartIds`), each at most
    ``part_age=10s`` before its capture.

    A number alone listens on this machine's loopback; an address that others reach must be written out.

    Attributes:
        url: where it listens.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        no_chatter()
        where = parameters.where
        login, at, address = location.partition("://")[2].rpartition("@")
        host, port = parse_listen(where, address.rstrip("/"), 4840)
        account = _account(login if at else None, parameters)
        security = read_security(parameters)
        ids = None
        if parameters.choice("part_id", "none", ("none", "announced")) == "announced":
            ids = PartIds(parameters.seconds("part_age") or MAX_AGE_S)
        elif "part_age" in parameters.values:
            raise ConfigError(f"{where}: part_age belongs to part_id=announced")
        if security is None and not is_loopback(host):
            _log.warning("%s: security=none, so whoever reaches this address can read, and alter on the way", where)
        output = _Server("127.0.0.1" if host == "localhost" else host, port, _Access(account, security), ids)
        try:
            self.url = output.start()
        except DataError as error:
            raise ConfigError(f"{where}: cannot listen on {host}:{port}: {error}") from error
        self.part_ids = ids
        super().__init__(where, output, parameters)


@dataclass(frozen=True, slots=True)
class _Account:
    user: str
    password: str = field(repr=False)


def _account(login: str | None, parameters: Parameters) -> _Account | None:
    """Return who may connect; None for everybody, which the URI must say."""
    where = parameters.where
    user, colon, password = (login or "").partition(":")
    word = parameters.secret("password_file") or (unquote(password) if colon else None)
    if parameters.choice("anonymous", "no", ("no", "yes")) == "yes":
        if user or word:
            raise ConfigError(f"{where}: anonymous=yes has no use for a user or password; keep one or the other")
        return None
    if not user or not word:
        raise ConfigError(
            f"{where}: who may connect? Write opcua://USER@HOST?password_file=FILE, or anonymous=yes for everybody"
        )
    return _Account(unquote(user), word)


class _Access:
    """Says who gets a session: what the library calls a user manager.

    It looks at the certificate *of the secure channel*. The library's own check looks at the one that the client names
    in its request for a session, which may be another or none.
    """

    def __init__(self, account: _Account | None, security: Security | None) -> None:
        self.account, self.security = account, security

    def get_user(
        self, _server: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> Any:
        from asyncua.crypto.permission_rules import User, UserRole

        if self.security is not None and (refused := self.security.refuses(certificate)) is not None:
            _log.warning("an OPC UA client was refused: %s", refused)
            return None
        if self.account is not None:
            # Both, always: the time tells nothing of which was wrong.
            known = hmac.compare_digest((username or "").encode(), self.account.user.encode())
            right = hmac.compare_digest((password or "").encode(), self.account.password.encode())
            if not (known and right):
                _log.warning("an OPC UA client was refused: wrong user or password")
                return None
        return User(role=UserRole.User, name=username)


def _sessions(access: _Access) -> Any:
    """Return the library's inner server, without what it grants to those who have no session."""
    from asyncua import ua
    from asyncua.server.internal_server import InternalServer

    def refuse(*_: Any) -> None:
        raise ua.UaStatusCodeError(ua.StatusCodes.BadServiceUnsupported)

    sessions = InternalServer(user_manager=access)
    # Nobody gets another connection's session: its token is a number that can be guessed, and asyncua 2.1 lets whoever
    # names it read and write as its owner, even where the password that they give is wrong.
    sessions.lookup_external_session = lambda _token: None
    # This is no discovery server, and the library asks nobody who registers there who they are.
    sessions.register_server = refuse
    sessions.allow_remote_admin = False
    sessions.max_connections = _CONNECTIONS
    sessions.max_subscriptions = 4 * _CONNECTIONS
    sessions.max_pending_messages_per_connection = 64
    return sessions


class _Server(UaOutput):
    def __init__(self, host: str, port: int, access: _Access, ids: PartIds | None) -> None:
        self._host, self._port, self._access = host, port, access
        self._space = Space(ids)
        self._fields = ResultFields()
        self._loop = Loop(f"{host}:{port}")
        self._server: Any = None
        self._showing = False

    def start(self) -> str:
        """Listen, and return the URL; raises DataError where that cannot be."""
        try:
            return self._loop.run(self._start(), _START_S)
        except BaseException:
            self._loop.close()
            raise

    def connect(self) -> None:
        """Nothing: it listens already."""

    def switch(self, on: bool) -> None:
        withdrawn = dict.fromkeys(RESULT, Bad("BadTimeout")) if self._showing and not on else {}
        self._showing = on
        self._loop.run(self._space.write({"PartIsOk": on, **withdrawn}), _ANSWER_S)

    def show(self, result: Result, on: bool) -> None:
        fields = {**self._fields(result, on), "PartIsOk": on}
        self._showing = True
        self._loop.run(self._show(fields), _ANSWER_S)

    def report(self, station: Station) -> None:
        texts = dict(zip(STATE, (station.state, station.mode, station.problem), strict=True))
        self._loop.run(self._space.write({**texts, **station.counters, **self._space.part_fields()}), _ANSWER_S)

    def beat(self, count: int) -> None:
        self._loop.run(self._space.write({"Heartbeat": count}), _ANSWER_S)

    def close(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        try:
            self._loop.run(server.stop(), _ANSWER_S)
        finally:
            self._loop.close()

    async def _show(self, fields: dict[str, Any]) -> None:
        # Whoever reads in between sees no decision rather than one of another part.
        await self._space.write({"PartIsOk": False, "Decision": Bad("BadWaitingForResponse")})
        await self._space.write(fields)
        await self._space.tell(fields)

    async def _start(self) -> str:
        from asyncua import Server, ua

        access = self._access
        server = Server(_sessions(access))
        server.limits.max_message_size = _LARGEST
        await server.init()
        server.set_server_name("edgead")
        await server.set_application_uri(_APPLICATION if access.security is None else access.security.uri)
        host = f"[{self._host}]" if ":" in self._host else self._host
        server.set_endpoint(f"opc.tcp://{host}:{self._port}/")
        server.socket_address = (self._host, self._port)
        server.set_identity_tokens([ua.AnonymousIdentityToken if access.account is None else ua.UserNameIdentityToken])
        policy = ua.SecurityPolicyType.NoSecurity
        if access.security is not None:
            policy = ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt
            await server.load_certificate(access.security.certificate, "der")
            await server.load_private_key(access.security.key, format="pem")
        server.set_security_policy([policy])
        await self._space.build(server)
        await server.start()
        self._server = server
        assert server.bserver is not None
        return f"opc.tcp://{host}:{server.bserver.port}/"
