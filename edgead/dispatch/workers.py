"""Who does a list of tasks: the interface, and the plain implementation that does them one after the other here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

from edgead.runtime.errors import ConfigError, EdgeadError, suggest
from edgead.runtime.files import reason

# What fails one request and not the others. Torch reports memory it does not get as RuntimeError.
FAILURES = (EdgeadError, OSError, MemoryError, RuntimeError)

_BYTES = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Named(Protocol):
    """A request that can be named in a message."""

    @property
    def name(self) -> str: ...


Request = TypeVar("Request", bound=Named)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """What came of one request.

    Attributes:
        index: of the request, counted from 0.
        value: what the function returned; None where nobody could finish it.
        lost: why nobody could, in one line; None otherwise.
    """

    index: int
    value: Value | None
    lost: str | None = None


class Workers(Protocol):
    """Does the same with many requests."""

    def work(self, function: Callable[[Request], Value], requests: Iterable[Request]) -> Iterator[Answer[Value]]:
        """Yield an answer for each request, in the order in which they are done.

        Args:
            function: of a module, so that other processes find it; an exception of it ends the whole work.
            requests: taken one by one, as workers become free; never all at once.
        """
        ...


class LocalWorkers:
    """This process: one request after the other, in their order."""

    def work(self, function: Callable[[Request], Value], requests: Iterable[Request]) -> Iterator[Answer[Value]]:
        for index, request in enumerate(requests):
            yield Answer(index, function(request))


def explain_failure(error: Exception) -> str:
    """Return one line on one of `FAILURES`."""
    plain = reason(error)
    return plain if isinstance(error, EdgeadError) else f"{type(error).__name__}: {plain}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What one task takes of a node.

    Attributes:
        cpus: whole cores, and so many threads compute; None: as many as this process would compute with.
        gpus: 0 hides them; a fraction shares one.
        memory: bytes; 0 reserves none.
    """

    cpus: int | None = None
    gpus: float = 0.0
    memory: int = 0


def parse_needs(text: str | None) -> Needs:
    """Return the needs of ``cpus=2,gpus=0.5,memory=8GB``; raises `ConfigError` for anything else."""
    found: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        known = [field.name for field in fields(Needs)]
        if not equals or name not in known:
            raise ConfigError(f"--ray-task takes cpus=N,gpus=N,memory=8GB, not '{part}'.{suggest(name, known)}")
        if name in found:
            raise ConfigError(f"--ray-task names {name} twice; keep one")
        found[name] = value
    cpus, gpus, memory = found.get("cpus"), found.get("gpus", "0"), found.get("memory", "0")
    if cpus is not None and not re.fullmatch(r"[1-9][0-9]{0,3}", cpus):
        raise ConfigError(f"--ray-task takes whole cores from 1 up, such as cpus=2, not '{cpus}'")
    if not re.fullmatch(r"[0-9]{1,3}|0?\.[0-9]{1,4}", gpus):  # Ray refuses 1.5
        raise ConfigError(f"--ray-task takes whole GPUs or a part of one, such as gpus=1 or gpus=0.5, not '{gpus}'")
    size = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(kB|MB|GB|TB|)", memory)
    if size is None:
        raise ConfigError(f"--ray-task takes an amount of memory such as memory=8GB, not '{memory}'")
    return Needs(None if cpus is None else int(cpus), float(gpus), int(float(size[1]) * _BYTES[size[2]]))
