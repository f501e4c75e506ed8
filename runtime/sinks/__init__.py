"""Sinks: where results go, one file each, chosen by URI.

=============================================  ========================================================
``results.jsonl``, ``jsonl:PATH``, ``jsonl:-``  one JSON object a result; ``-`` is standard output
``images:DIR``                                 annotated pictures (``?only=anomaly|all&limit=N&format=jpg|png``)
=============================================  ========================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.frame import Frame, Result
from edgead.runtime.uri import Parameters, redact, split_query


class Sink(Protocol):
    """Takes results in order, from one thread of its own. A class of your own subclasses it.

    What `write` raises is counted and shown in the summary; the stream goes on, and the next result is tried.

    Attributes:
        name: how reports call it, without secrets.
        keeps_frames: True where `write` needs the picture; such a sink gets a shorter queue, because frames are large.
    """

    name: str
    keeps_frames: bool

    def accepts(self, result: Result, frame: Frame | None) -> bool:  # noqa: ARG002
        """Say whether this result is to be written; asked once a result in the stream's own thread, so be quick."""
        return True

    def write(self, result: Result, frame: Frame | None) -> None:
        """Write one result; ``frame`` is None where ``keeps_frames`` is False or there is no usable picture."""

    def close(self) -> None:
        """Finish; called once, after the last `write`."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SinkEntry(NamedTuple):
    """One registry line: where the class lives and which parameters it takes."""

    module: str
    factory: str
    parameters: tuple[str, ...]


# One line a sink. The class is called with (location, parameters).
REGISTRY: dict[str, SinkEntry] = {
    "jsonl": SinkEntry("jsonl", "JsonLinesSink", ()),
    "images": SinkEntry("images", "ImagesSink", ("only", "limit", "format")),
}

# Named by the design, built by the camera-runtime issue; a clear refusal until then.
_PLANNED = ("video", "mqtt", "mqtts", "webhook", "http", "https", "prometheus", "web")


def open_sink(uri: str | Path) -> Sink:
    """Open a sink.

    Args:
        uri: see the module docstring. Folders that do not exist are made.

    Raises:
        ConfigError: unknown sink or parameter, or a path that cannot be written.
    """
    text = str(uri)
    # Two letters at least: `C:\results.jsonl` is a path.
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(?://)?", text)
    scheme, rest = (match[1].lower(), text[match.end() :]) if match else ("", text)
    if scheme in _PLANNED:
        raise ConfigError(f"sink '{scheme}:' is not in this version of edgead; sinks: {', '.join(REGISTRY)}")
    if not scheme and split_query(rest)[0].lower().endswith((".jsonl", ".ndjson")):
        scheme = "jsonl"
    if scheme not in REGISTRY:
        hint = suggest(scheme or text, REGISTRY)
        raise ConfigError(f"unknown sink '{redact(text)}'; write jsonl:results.jsonl or images:DIR.{hint}")
    location, pieces = split_query(rest)
    if not location:
        raise ConfigError(f"sink '{scheme}:' needs a path, such as {scheme}:{'DIR' if scheme == 'images' else '-'}")
    entry = REGISTRY[scheme]
    parameters = Parameters.parse(redact(f"{scheme}:{location}"), pieces, entry.parameters)
    factory: Callable[[str, Parameters], Sink]
    factory = getattr(import_module(f"edgead.runtime.sinks.{entry.module}"), entry.factory)
    return factory(location, parameters)
