"""Real services for the tests, on free loopback ports: a broker, a web server, a Modbus server."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LONG_S, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A server that can be killed, stopped and started again on the same port."""

    def __init__(self, command: list[str], port: int) -> None:
        self.command, self.port = command, port
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.child = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: answers(self.port))

    def signal(self, number: int) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


def mosquitto(folder: Path, *settings: str) -> Process:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs a broker: apt-get install mosquitto")
    port = free_port()
    configuration = folder / "mosquitto.conf"
    user = ("user root",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    lines = [f"listener {port} 127.0.0.1", *user, *(settings or ("allow_anonymous true",))]
    configuration.write_text("\n".join(lines) + "\n")
    return Process([program, "-c", str(configuration)], port)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    files = folder / "own.pem", folder / "own.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return files


_MODBUS = """
    import sys
    from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
    from pymodbus.server import StartTcpServer
    store = ModbusDeviceContext(
        co=ModbusSequentialDataBlock(1, [True] * 100), hr=ModbusSequentialDataBlock(1, [0] * 100)
    )
    StartTcpServer(context=ModbusServerContext(devices=store, single=True), address=("127.0.0.1", int(sys.argv[1])))
"""


def modbus() -> Process:
    pytest.importorskip("pymodbus", reason="needs pymodbus: pip install 'edgead[modbus]'")
    port = free_port()
    return Process([sys.executable, "-c", textwrap.dedent(_MODBUS), str(port)], port)


class Web:
    """A web server that keeps what is posted, and answers with the next of ``statuses``, then with 200."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.posts: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.statuses: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.gate.wait(2 * LONG_S)
                status = web.statuses.pop(0) if web.statuses else 200
                web.requests.append((self.path, dict(self.headers)))
                if status == 200:
                    web.posts.append(json.loads(body))
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                with contextlib.suppress(OSError):  # the client may have gone
                    self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Web]:
        self._thread.start()
        try:
            yield self
        finally:
            self.gate.set()
            self._server.shutdown()
            self._server.server_close()


_PLC = """
    import asyncio, sys
    from asyncua import Server, ua

    class Users:
        def get_user(self, server, username=None, password=None, certificate=None):
            from asyncua.crypto.permission_rules import User, UserRole
            good = not sys.argv[2:] or (username, password) == ("edgead", "open sesame")
            return User(role=UserRole.User) if good else None

    async def main(port, *files):
        server = Server(user_manager=Users())
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
        policy = ua.SecurityPolicyType.NoSecurity
        if files:
            policy = ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt
            await server.load_certificate(files[0])
            await server.load_private_key(files[1])
        server.set_security_policy([policy])
        block = await server.nodes.objects.add_object(ua.NodeId("edgead", 1), "1:edgead")
        kinds = dict(PartIsOk="Boolean", Heartbeat="Int16", Decision="String", Score="Float", PartId="String",
                     ResultId="String", State="String", Captured="UInt32", FrameIndex="UInt16", Other="String")
        for name, kind in kinds.items():
            kind = getattr(ua.VariantType, kind)
            # As another program left it.
            value = True if name == "PartIsOk" else "OK" if name == "Decision" else ua.get_default_value(kind)
            node = await block.add_variable(ua.NodeId(name, 1), f"1:{name}", value, kind)
            await node.set_writable()
        async with server:
            await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""


def opcua_plc(*files: Path) -> Process:
    """A PLC with the variables of `opc.tcp://` sinks below ``ns=1;s=edgead``; a safe one with certificate and key."""
    pytest.importorskip("asyncua", reason="needs asyncua: pip install 'edgead[opcua]'")
    port = free_port()
    return Process([sys.executable, "-c", textwrap.dedent(_PLC), str(port), *map(str, files)], port)


def application(folder: Path, name: str, *, days: tuple[int, int] = (-1, 2)) -> tuple[Path, Path]:
    """Certificate and key of an OPC UA application ``urn:test:NAME``, valid from and until so many days from now."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.UniformResourceIdentifier(f"urn:test:{name}"), x509.DNSName(socket.gethostname())]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    files[1].touch(mode=0o600)
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return files
