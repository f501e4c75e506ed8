"""Results into the variables of an OPC UA server, mostly a PLC's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Result
from edgead.runtime.sinks.opcua.security import Security, read_security
from edgead.runtime.sinks.opcua.sink import Loop, OpcUaSink, UaOutput, no_chatter
from edgead.runtime.sinks.opcua.station import COUNTERS, RESULT, STATE, ResultFields, Station
from edgead.runtime.uri import Endpoint, Parameters

if TYPE_CHECKING:
    from asyncua import Client, Node

_SIGNALS = ("PartIsOk", "Heartbeat")
_KNOWN = {
    **dict(zip(_SIGNALS, ("Boolean", "UInt32"), strict=True)),
    **RESULT,
    **dict.fromkeys(STATE, "String"),
    **dict.fromkeys(COUNTERS, "UInt64"),
}
# Largest value of each whole number; counters begin at 0 again behind it.
_LIMITS = {f"{sign}Int{bits}": 2 ** (bits - (not sign)) - 1 for bits in (16, 32, 64) for sign in ("U", "")}
_APPLICATION = "urn:edgead:client"  # where no certificate says another
_SESSION_MS = 30_000


class OpcUaClient(OpcUaSink):
    """Writes to the variables below one object of the server at ``opc.tcp://[USER[:PASSWORD]@]HOST[:4840][/PATH]``.

    Parameters: ``root=NODE``, the object's NodeId such as ``ns=3;s="edgead"``; ``certificate=FILE``, ``key=FILE``,
    ``trust=DIR`` (see `Security`), or ``security=none``; ``password_file=FILE`` of the user; ``hold=1s``, how long one
    OK stays; ``max_age=1s`` from capture; ``beat=250ms``; ``timeout=1s`` of an answer.

    Variables are found by their browse names. ``PartIsOk`` (Boolean) and ``Heartbeat`` (a whole number, 16 bits at
    least) must be there; of the other names each that is there is written, in the type that it has. ``PartIsOk`` is set
    off before anything else of a result is written, and on after it.

    A server that is away is tried again indefinitely, at most 5 s apart; ``PartIsOk`` is off first then.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        no_chatter()
        where = parameters.where
        address = Endpoint.parse(where, location.partition("://")[2], 4840)
        root = parameters.values.get("root")
        if not root:
            raise ConfigError(
                f"{where}: root=NODE missing: the object with PartIsOk and Heartbeat, such as root=ns=3;i=7"
            )
        _node_id(where, root)
        password = parameters.secret("password_file") or address.password
        if (address.user is None) is not (password is None):
            raise ConfigError(f"{where}: a user needs password_file=FILE, and a password a user: opc.tcp://USER@HOST")
        host = f"[{address.host}]" if ":" in address.host else address.host
        output = _Variables(
            f"opc.tcp://{host}:{address.port}/{quote(address.path)}",
            root,
            read_security(parameters),
            None if address.user is None or password is None else (address.user, password),
            parameters.seconds("timeout") or 1.0,
        )
        super().__init__(where, output, parameters)


def _node_id(where: str, text: str) -> Any:
    from asyncua import ua

    try:
        return ua.NodeId.from_string(text)
    except (ua.UaError, ValueError) as error:
        raise ConfigError(f"{where}: root={text} is no NodeId such as ns=3;s=edgead or ns=3;i=7") from error


class _Variables(UaOutput):
    def __init__(
        self, url: str, root: str, security: Security | None, login: tuple[str, str] | None, timeout_s: float
    ) -> None:
        self._url, self._root, self._security, self._login = url, root, security, login
        self._timeout = timeout_s
        self._fields = ResultFields()
        self._loop: Loop | None = None
        self._client: Client | None = None
        self._nodes: dict[str, tuple[Node, Any]] = {}

    def connect(self) -> None:
        self._loop = Loop(self._url)
        # Endpoints, channel, session, browsing and types: each answer has its own limit.
        self._loop.run(self._connect(), 10 * self._timeout)

    def switch(self, on: bool) -> None:
        self._run(self._write({"PartIsOk": on} if on else {"PartIsOk": False, "Decision": ""}))

    def show(self, result: Result, on: bool) -> None:
        fields = self._fields(result, on)
        self._run(self._write({"PartIsOk": False, "Decision": ""}))
        self._run(self._write(fields))
        if on:
            self._run(self._write({"PartIsOk": True}))

    def report(self, station: Station) -> None:
        texts = dict(zip(STATE, (station.state, station.mode, station.problem), strict=True))
        self._run(self._write({**texts, **station.counters}))

    def beat(self, count: int) -> None:
        self._run(self._write({"Heartbeat": count}))

    def close(self) -> None:
        loop, self._loop = self._loop, None
        client, self._client = self._client, None
        if loop is None:
            return
        try:
            if client is not None:
                loop.run(client.disconnect(), 2 * self._timeout)
        finally:
            loop.close()

    def _run(self, work: Any) -> None:
        if self._loop is None or self._client is None:
            work.close()
            raise DataError("the server is not connected")
        self._loop.run(work, 2 * self._timeout)

    async def _connect(self) -> None:
        from asyncua import Client, ua

        client = Client(self._url, timeout=self._timeout)
        client.name = client.description = "edgead"
        client.session_timeout = _SESSION_MS
        client.application_uri = _APPLICATION
        try:
            if self._security is not None:
                await self._secure(client, self._security)
            if self._login is not None:
                client.set_user(self._login[0])
                client.set_password(self._login[1])
            await client.connect()
        except (OSError, asyncio.TimeoutError) as error:
            raise DataError(f"{self._url} cannot be reached: {reason(error)}") from error
        except ua.UaError as error:
            raise DataError(f"{self._url} refuses the connection: {reason(error)}") from error
        self._client = client
        await self._find(client)

    async def _secure(self, client: Client, security: Security) -> None:
        """Ask for the server's certificate, and speak only to who has the key of a trusted one."""
        from asyncua import ua
        from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256 as Policy
        from asyncua.crypto.uacrypto import CertProperties

        client.application_uri = security.uri
        endpoints = await client.connect_and_get_server_endpoints()
        mode = ua.MessageSecurityMode.SignAndEncrypt
        offered = [e for e in endpoints if e.SecurityMode == mode and e.SecurityPolicyUri == Policy.URI]
        if not offered:
            raise DataError(f"{self._url} offers no Basic256Sha256 with signing and encryption")
        certificate = offered[0].ServerCertificate
        if (refused := security.refuses(certificate)) is not None:
            raise DataError(f"{self._url} is not spoken to: {refused}")
        own, key = CertProperties(security.certificate, "der"), CertProperties(security.key, "pem")
        await client.set_security(Policy, own, key, server_certificate=CertProperties(certificate, "der"), mode=mode)

    async def _find(self, client: Client) -> None:
        from asyncua import ua

        children = await client.get_node(self._root).get_children(nodeclassmask=ua.NodeClass.Variable)
        nodes = {}
        for node in children:
            name = (await node.read_browse_name()).Name
            if name in _KNOWN:
                nodes[name] = (node, await node.read_data_type_as_variant_type())
        missing = [name for name in _SIGNALS if name not in nodes]
        if missing:
            raise DataError(f"{self._root} of {self._url} has no variable {' and no '.join(missing)}")
        for name, (_, kind) in nodes.items():
            if kind.name not in _fits(name):
                raise DataError(f"{name} of {self._url} is {kind.name}; make it one of {', '.join(_fits(name))}")
        self._nodes = nodes

    async def _write(self, values: Mapping[str, Any]) -> None:
        """Write those of the values that have a variable, in order and in its type."""
        from asyncua import ua

        there = [(name, value) for name, value in values.items() if name in self._nodes]
        if not there or self._client is None:
            return
        nodes = [self._nodes[name][0].nodeid for name, _ in there]
        kinds = [self._nodes[name][1] for name, _ in there]
        data = [
            ua.DataValue(ua.Variant(_rolled(value, kind), kind)) for (_, value), kind in zip(there, kinds, strict=True)
        ]
        results = await self._client.uaclient.write_attributes(nodes, data, ua.AttributeIds.Value)
        for (name, _), status in zip(there, results, strict=True):
            if not status.is_good():
                raise DataError(f"{self._url} does not take {name}: {status.name}")


def _fits(name: str) -> tuple[str, ...]:
    """Return the types that a variable of this name may have in the server."""
    kind = _KNOWN[name]
    if kind in _LIMITS:
        return tuple(_LIMITS)
    return ("Float", "Double") if kind == "Double" else (kind,)


def _rolled(value: Any, kind: Any) -> Any:
    limit = _LIMITS.get(kind.name)
    return value if limit is None else value % (limit + 1)
