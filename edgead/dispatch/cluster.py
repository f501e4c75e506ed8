"""Tasks on a Ray cluster: a bounded number at a time, lost ones again, and no node of other versions."""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from edgead.dispatch import node
from edgead.dispatch.node import Reply, Terms
from edgead.dispatch.workers import Answer, Named, Needs, Request, Value
from edgead.runtime.errors import BackendUnavailable, ConfigError, DataError, missing_extra
from edgead.runtime.files import reason
from edgead.runtime.machine import describe_machine

TRIES = 3  # of a request whose worker is lost
PATIENCE_S = 300.0  # without any node that can take a task

_LOOK_S = 2.0  # between two looks at the nodes
_PROBE_S = 120.0
_WAITING = 16  # tasks at most that wait at the nodes, beyond those that run
_STORE_BYTES = 256 << 20  # of Ray's shared memory for answers, which are small
_THREADS = "OMP_NUM_THREADS"  # torch, NumPy's BLAS and OpenMP all keep to it
# A Ray that is started here must be out of reach: it executes what anybody sends it. It then listens on loopback only,
# and to whoever knows the token; nothing is reported to its makers.
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "AUTOSCALER_METRIC_PORT": "0",
}
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster, and what each task takes of it.

    Attributes:
        address: ``local`` starts a Ray for this command on this machine; else ``HOST:PORT`` or ``auto``, of a cluster
            that this machine is a node of.
        needs: of each task.
        threads: that this process computes with, for needs that do not say.
        environment: variables of this process that change how libraries compute; nodes get them, too.
    """

    address: str
    needs: Needs
    threads: int
    environment: Mapping[str, str]

    @property
    def cpus(self) -> int:
        return self.needs.cpus or self.threads


@contextmanager
def open_cluster(cluster: Cluster, warn: Callable[[str], None]) -> Iterator[ClusterWorkers]:
    """Yield the workers of a cluster whose nodes all have the versions of this machine.

    Args:
        warn: hears of lost workers and of what may make results differ, one line each.

    Raises:
        BackendUnavailable: Ray is not installed.
        ConfigError: no such cluster, no node with what a task needs, or one with other versions.
    """
    local = cluster.address == "local"
    if not local:
        _check_address(cluster.address)
    os.environ.update(_QUIET)
    if local:
        os.environ.update(_PRIVATE, RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailable(missing_extra("ray", "ray")) from error
    folder = tempfile.mkdtemp(prefix="edgead-ray-") if local else None
    # Ray prints paragraphs on lost workers to stdout, which belongs to the command; `warn` hears of them.
    with redirect_stdout(_Nowhere()):
        try:
            _start(ray, cluster, folder)
            yield ClusterWorkers(ray, cluster, warn)
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _check_address(address: str) -> None:
    """Say at once what Ray would say after a minute."""
    if address == "auto":
        return
    match = re.fullmatch(r"\[?([^\s/]+?)\]?:([0-9]{1,5})", address)
    if match is None or address.startswith("ray:"):
        raise ConfigError(
            f"--ray takes local, auto, or HOST:PORT of a cluster that this machine is a node of, not '{address}'"
        )
    try:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray answers at {address} ({reason(error)}); start it with: ray start --head, or give --ray local"
        ) from error


def _start(ray: Any, cluster: Cluster, folder: str | None) -> None:
    variables = {**cluster.environment, _THREADS: str(cluster.cpus)}
    common = {"runtime_env": {"env_vars": variables}, "log_to_driver": False, "logging_level": "error"}
    try:
        if folder is None:
            ray.init(cluster.address, **common)
            return
        cores = describe_machine()["cores"]
        more = {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "_temp_dir": folder}
        ray.init("local", num_cpus=cores, **more, **common)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray cannot be used at '{cluster.address}': {reason(error)}") from error
    if any(one["NodeManagerAddress"] not in ("127.0.0.1", "::1") for one in ray.nodes()):
        raise ConfigError(
            f"Ray {ray.__version__} listens to more than this machine and was stopped; take the version of "
            "constraints.txt, or start a cluster yourself and give its address"
        )


class ClusterWorkers:
    """The nodes of a cluster; made by `open_cluster`.

    A request whose worker or node is lost is given to another one, `TRIES` times in all.
    """

    def __init__(self, ray: Any, cluster: Cluster, warn: Callable[[str], None]) -> None:
        self._ray, self._warn = ray, warn
        needs = cluster.needs
        self._needs = {"CPU": float(cluster.cpus), "GPU": needs.gpus, "memory": float(needs.memory)}
        self._terms = Terms(node.versions(), cluster.cpus, needs.gpus)
        # A lost task is counted and named here; Ray would repeat it in silence, without end where memory is short.
        self._task = ray.remote(
            max_retries=0,
            num_cpus=cluster.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            scheduling_strategy="SPREAD",
        )(node.do)
        self._probe = ray.remote(max_retries=0, num_cpus=0)(node.do)
        self._processors = {describe_machine()["cpu"]}
        self._looked, self._fitting_seen, self._slots = 0.0, time.monotonic(), 0
        self._require_nodes()

    def work(self, function: Callable[[Request], Value], requests: Iterable[Request]) -> Iterator[Answer[Value]]:
        """See `Workers.work`.

        Raises:
            ConfigError: a node with other versions came later.
            DataError: for `PATIENCE_S` no node could take a task.
        """
        new = enumerate(requests)
        again: deque[_Try] = deque()
        running: dict[Any, _Try] = {}
        try:
            while True:
                self._look()
                while len(running) < self.window:
                    one = again.popleft() if again else _next(new)
                    if one is None:
                        break
                    running[self._task.remote(function, one.request, self._terms)] = one
                if not running:
                    return
                ready, _ = self._ray.wait(list(running), num_returns=1, timeout=_LOOK_S)
                for reference in ready:
                    one = running.pop(reference)
                    found = self._get(reference)
                    if isinstance(found, Reply):
                        yield Answer(one.index, self._heard(found).value)
                    elif one.tries < TRIES:
                        self._warn(f"{one.request.name}: {found}; it is done again elsewhere")
                        again.append(_Try(one.index, one.request, one.tries + 1))
                    else:
                        yield Answer(one.index, None, f"{found}, {TRIES} times")
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    @property
    def window(self) -> int:
        """How many tasks may be at the nodes, running or waiting there."""
        return max(1, self._slots + min(self._slots, _WAITING))

    def _get(self, reference: Any) -> Reply | str:
        """Return the reply, or why there is none; an exception of the function is raised."""
        errors = self._ray.exceptions
        try:
            reply: Reply = self._ray.get(reference, timeout=_PROBE_S)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise ConfigError(f"a node cannot run this edgead ({reason(error.cause)}); install it there") from error
            raise
        except errors.OutOfMemoryError:
            return "the node ran out of memory (reserve more with --ray-task memory=…)"
        except errors.RayError as error:
            return f"the worker was lost ({type(error).__name__})"
        return reply

    def _heard(self, reply: Reply) -> Reply:
        if reply.refused is not None:
            raise ConfigError(reply.refused)
        if reply.cpu not in self._processors:
            self._processors.add(reply.cpu)
            self._warn(
                f"node {reply.node} has another processor ({reply.cpu}) than this machine: what it computes may differ "
                "in the last digits"
            )
        for text in reply.told:
            node.say_again(text)
        return reply

    def _require_nodes(self) -> None:
        """Refuse a cluster that cannot do the work, before any of it."""
        self._look()
        if not self._slots:
            raise ConfigError(f"no node of the cluster has {self._named_needs()} for a task; see --ray-task")
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {}
        for one in self._fitting():
            there = strategy(one["NodeID"], soft=False)
            asked[self._probe.options(scheduling_strategy=there).remote(None, None, self._terms)] = one
        ready, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_S)
        for reference in ready:
            address = asked[reference]["NodeManagerAddress"]
            try:
                found = self._get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise ConfigError(f"node {address} cannot run edgead: {reason(error.cause or error)}") from error
            if isinstance(found, Reply):
                self._heard(found)
            else:
                self._warn(f"node {address} gave no answer: {found}")
        for reference in late:
            self._warn(f"node {asked[reference]['NodeManagerAddress']} did not answer yet; it is looked at later")

    def _look(self) -> None:
        """Count what the nodes can take at once; nodes come and go."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self._slots = sum(self._slots_of(one["Resources"]) for one in self._fitting())
        if self._slots:
            self._fitting_seen = now
        elif now - self._fitting_seen > PATIENCE_S:
            raise DataError(
                f"for {PATIENCE_S:g} s no node of the cluster had {self._named_needs()}; what was finished is kept: "
                "start nodes and run the same command again"
            )

    def _fitting(self) -> list[Mapping[str, Any]]:
        return [one for one in self._ray.nodes() if one["Alive"] and self._slots_of(one["Resources"])]

    def _slots_of(self, resources: Mapping[str, float]) -> int:
        return int(min(resources.get(name, 0.0) // need for name, need in self._needs.items() if need))

    def _named_needs(self) -> str:
        cpus, gpus, memory = self._needs.values()
        parts = [f"{cpus:g} CPUs", *([f"{gpus:g} GPUs"] if gpus else []), *([f"{memory / 1e9:g} GB"] if memory else [])]
        return ", ".join(parts)


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


@dataclass(frozen=True, slots=True)
class _Try:
    index: int
    request: Any
    tries: int = 1


def _next(requests: Iterator[tuple[int, Named]]) -> _Try | None:
    found = next(requests, None)
    return None if found is None else _Try(*found)
