"""A Ray cluster of several nodes on one machine: each in a network namespace, and killed with all of its processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.waiting import wait_for

_PORT = 6379
_RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
_SMALL = ["--object-store-memory=80000000", "--num-gpus=0", "--disable-usage-stats", "--block"]


def require_namespaces() -> None:
    """Skip where this user, or this machine, makes no network namespaces."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs ip and nsenter: apt-get install iproute2 util-linux")
    made = subprocess.run(["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    if made.returncode:
        pytest.skip("network namespaces cannot be made here; they take root")


class Nodes:
    """The head, without a CPU for tasks, and nodes that come and go.

    Attributes:
        address: of the head, for ``--ray``.
    """

    def __init__(self, folder: Path) -> None:
        self.address = f"10.99.0.1:{_PORT}"
        self._log, self._started = folder, list[subprocess.Popen[bytes]]()
        # Short: the names of sockets have little room.
        self._temporary = Path("/tmp", f"er{os.getpid()}")
        self._head = self._start("head", ["--net"], {})
        self._in_head("ip", "link", "add", "br0", "type", "bridge")
        self._in_head("ip", "addr", "add", "10.99.0.1/24", "dev", "br0")
        self._in_head("ip", "link", "set", "br0", "up")
        start = ["start", "--head", f"--port={_PORT}", "--node-ip-address=10.99.0.1", "--num-cpus=0"]
        self._go(self._head, [*start, "--include-dashboard=false", f"--temp-dir={self._temporary}", *_SMALL])
        wait_for(lambda: self._reachable())

    def add(self, number: int, *, hidden: Path | None = None, variables: Mapping[str, str] | None = None) -> Node:
        """Start a node with one CPU; ``hidden`` is a folder that is not there, as where nobody mounted it."""
        process = self._start(f"node{number}", ["--net", "--pid", "--mount-proc"], variables or {}, hidden)
        inside = _child(process)
        name, own = f"n{number}", f"10.99.0.{10 + number}"
        self._in_head("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(inside))
        self._in_head("ip", "link", "set", name, "master", "br0", "up")
        enter = ["nsenter", "-t", str(inside), "-n", "ip"]
        subprocess.run([*enter, "addr", "add", f"{own}/24", "dev", "eth0"], check=True)
        subprocess.run([*enter, "link", "set", "eth0", "up"], check=True)
        self._go(process, ["start", f"--address={self.address}", f"--node-ip-address={own}", "--num-cpus=1", *_SMALL])
        node = Node(process, inside)
        wait_for(lambda: any("raylet/raylet" in line for line in node.commands()))
        return node

    def drive(self, arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
        """Start ``edgead`` on the head."""
        return subprocess.Popen(
            [*self._enter(), sys.executable, "-m", "edgead", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        )

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for one in _members(self._namespace):
            os.kill(one, signal.SIGKILL)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(
        self, name: str, spaces: Sequence[str], variables: Mapping[str, str], hidden: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a shell in new namespaces, which waits until its network is there, and then runs what it is told."""
        prepare = "ip link set lo up; " + (f"mount -t tmpfs none '{hidden}'; " if hidden is not None else "")
        shell = ["sh", "-c", prepare + 'IFS= read -r line; eval "exec $line"']
        with (self._log / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", *spaces, "--mount", "--fork", "--kill-child", *shell],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **variables},
            )
        self._started.append(process)
        wait_for(lambda: _child(process) is not None)
        if name == "head":
            self._namespace = _network(_child(process))
        return process

    def _go(self, process: subprocess.Popen[bytes], arguments: Sequence[str]) -> None:
        assert process.stdin is not None
        command = " ".join(f"'{part}'" for part in [*_RAY, *arguments])
        process.stdin.write(command.encode() + b"\n")
        process.stdin.flush()

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(_child(self._head)), "-n"]

    def _in_head(self, *command: str) -> None:
        subprocess.run([*self._enter(), *command], check=True)

    def _reachable(self) -> bool:
        assert self._head.poll() is None, (self._log / "head.log").read_text()
        program = f"import socket; socket.create_connection(('10.99.0.1', {_PORT}), 5)"
        return subprocess.run([*self._enter(), sys.executable, "-c", program], capture_output=True).returncode == 0


class Node:
    """One node, its processes and its end."""

    def __init__(self, process: subprocess.Popen[bytes], inside: int) -> None:
        self._process = process
        self._namespace = _network(inside)

    def commands(self) -> list[str]:
        """What its processes call themselves; one that does a task ``ray::do``."""
        found = []
        for one in _members(self._namespace):
            try:
                found.append(Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """End all of its processes at once, as a loss of power does."""
        self._process.kill()
        self._process.wait()


def _child(process: subprocess.Popen[bytes]) -> int | None:
    assert process.poll() is None, "the namespaces were not made"
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found[0]) if found else None


def _network(process: object) -> str:
    return str(Path(f"/proc/{process}/ns/net").readlink())


def _members(namespace: str) -> list[int]:
    """The processes of a network namespace that these tests made."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if _network(place.name) == namespace:
                found.append(int(place.name))
        except OSError:
            continue
    return found
