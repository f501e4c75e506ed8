"""Sinks: where results go, one file each, chosen by URI (docs/sinks.md has every parameter).

==============================================  ======================================================================
``results.jsonl``, ``jsonl:PATH``, ``jsonl:-``   one JSON object a result (``?rotate=100MB&keep=5``); ``-``: stdout
``images:DIR``                                  annotated pictures (``?only=all&keep=1000&max_size=2GB&max_age=30d``)
``video:DIR``                                   annotated video, one file a source (``?fps=10&rotate=1GB&keep=20``)
``mqtt://HOST/TOPIC``, ``mqtts://``             results to an MQTT broker (``?qos=1&only=rejected``)
``webhook+https://HOST/PATH``, ``webhook+http`` one POST a result; parameters after a ``#``, the query is the server's
``prometheus://127.0.0.1:9100``                 counters, gauges and latency for a Prometheus server to scrape
``modbus://HOST/coil/N``                        the signal "part is OK" on a PLC's coil, fail-safe, with a heartbeat
``gpio://CHIP/LINE``                            the same on a pin of this board (never tried on a real one)
``opcua://127.0.0.1:4840``                      an OPC UA server: state, results, counters; part ids from the line
``opc.tcp://HOST/?root=NODE``                   results into the variables of a PLC's OPC UA server
==============================================  ======================================================================

`edgead.runtime.CallbackSink` calls a function of yours; a class of your own subclasses `Sink`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgead.runtime.errors import ConfigError, missing_extra, suggest
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.uri import HIDDEN, Parameters, redact_uri, split_query

if TYPE_CHECKING:
    from edgead.runtime.sinks.part_ids import PartIds
    from edgead.runtime.status.summary import StreamSummary


class Sink(Protocol):
    """Takes results in order, from one thread of its own. A class of your own subclasses it.

    What `write` raises is counted and shown in the summary; the stream goes on, and the next result is tried.

    Attributes:
        name: how reports call it, without secrets.
        keeps_frames: True where `write` needs the picture; such a sink gets a shorter queue, because frames are large.
        takes_results_alone: True where a result without its picture is better than none: what finds no room with the
            picture is queued without it.
        part_ids: the ids that the line announces over this sink, for the next frames; None where it announces none.
    """

    name: str
    keeps_frames: bool
    takes_results_alone: bool = False
    part_ids: PartIds | None = None

    def attach(self, summary: Callable[[], StreamSummary]) -> None:  # noqa: ARG002
        """Called once before the first result, with what tells how the run stands; any thread may ask it."""
        return  # with an empty body, mypy would take it for abstract

    def accepts(self, result: Result, frame: Frame | None) -> bool:  # noqa: ARG002
        """Say whether this result is to be written; asked once a result in the stream's own thread, so be quick."""
        return True

    def write(self, result: Result, frame: Frame | None) -> None:
        """Write one result; ``frame`` is None where ``keeps_frames`` is False or there is no usable picture."""

    def missed(self, count: int) -> None:  # noqa: ARG002
        """Told before the next `write` or `close`, in their thread, how many results found no room since the last."""
        return

    def note(self, event: str, fields: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Told what is done to the inspector (``reload``, ``self-test failed``, …), not from the thread of `write`.

        What it raises at ``reload`` prevents that; what it raises at another event is logged.
        """
        return

    def close(self) -> None:
        """Finish; called once, after the last `write`."""
        return

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SinkEntry(NamedTuple):
    """One registry line: where the class lives, which parameters it takes, how it is written, what it needs.

    ``example`` starts with ``scheme://`` where the sink has an address and not a path; ``package`` and ``extra`` name
    a library that must be installed; ``after_hash``: the parameters stand after a ``#``, for the query is the server's.
    """

    module: str
    factory: str
    parameters: tuple[str, ...]
    example: str
    package: str = ""
    extra: str = ""
    after_hash: bool = False


_MQTT = ("only", "qos", "retain", "client_id", "status", "password_file", "ca", "timeout")
_WEBHOOK = ("only", "timeout", "give_up", "token_file", "ca", "proxy")
_SIGNAL = ("hold", "max_age")
_OPCUA = ("beat", "security", "certificate", "key", "trust", "password_file")

# One line a sink. The class is called with (location, parameters): a path, or the whole address with its secrets.
REGISTRY: dict[str, SinkEntry] = {
    "jsonl": SinkEntry("jsonl", "JsonLinesSink", ("rotate", "keep"), "jsonl:results.jsonl"),
    "images": SinkEntry(
        "images", "ImagesSink", ("only", "limit", "format", "keep", "max_size", "max_age"), "images:DIR"
    ),
    "video": SinkEntry("video", "VideoSink", ("only", "fps", "rotate", "keep"), "video:DIR", "cv2", "camera"),
    "mqtt": SinkEntry("mqtt", "MqttSink", _MQTT, "mqtt://broker/line1/results", "paho", "mqtt"),
    "mqtts": SinkEntry("mqtt", "MqttSink", _MQTT, "mqtts://broker/line1/results", "paho", "mqtt"),
    "webhook+http": SinkEntry("webhook", "WebhookSink", _WEBHOOK, "webhook+http://server/path", after_hash=True),
    "webhook+https": SinkEntry("webhook", "WebhookSink", _WEBHOOK, "webhook+https://server/path", after_hash=True),
    "prometheus": SinkEntry(
        "prometheus",
        "PrometheusSink",
        ("token_file",),
        "prometheus://127.0.0.1:9100",
        "prometheus_client",
        "prometheus",
    ),
    "modbus": SinkEntry(
        "modbus",
        "ModbusSink",
        (*_SIGNAL, "heartbeat", "beat", "unit", "timeout"),
        "modbus://plc/coil/3?heartbeat=10",
        "pymodbus",
        "modbus",
    ),
    "opcua": SinkEntry(
        "opcua.server",
        "OpcUaServer",
        (*_SIGNAL, *_OPCUA, "anonymous", "part_id", "part_age"),
        "opcua://127.0.0.1:4840",
        "asyncua",
        "opcua",
    ),
    "opc.tcp": SinkEntry(
        "opcua.client", "OpcUaClient", (*_SIGNAL, *_OPCUA, "root", "timeout"), "opc.tcp://plc:4840", "asyncua", "opcua"
    ),
    "gpio": SinkEntry("gpio", "GpioSink", (*_SIGNAL, "active"), "gpio://gpiochip0/17", "gpiod", "gpio"),
}

# What people write for them, and what they should.
_MEANT = {
    "http": "webhook+http://…",
    "https": "webhook+https://…",
    "webhook": "webhook+https://…",
    "web": "--serve 127.0.0.1:8080 for the live page",
    "metrics": "prometheus://127.0.0.1:9100",
}


def selects(only: str, decision: Decision) -> bool:
    """Say whether ``only=all|anomaly|rejected`` wants a decision; *rejected* is everything that is not `OK`."""
    if only == "anomaly":
        return decision is Decision.ANOMALY
    return only == "all" or decision is not Decision.OK


def open_sink(uri: str | Path) -> Sink:
    """Open a sink.

    Args:
        uri: see the module docstring. Folders that do not exist are made. A broker or server need not be there yet.

    Raises:
        ConfigError: unknown sink or parameter, a path that cannot be written, an address that cannot be listened on,
            or a library that is missing (the message names the pip command).
    """
    text = str(uri)
    # Two letters at least: `C:\results.jsonl` is a path.
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(?://)?", text)
    scheme, rest = (match[1].lower(), text[match.end() :]) if match else ("", text)
    if scheme in _MEANT:
        raise ConfigError(f"there is no sink '{scheme}:'; write {_MEANT[scheme]}")
    if not scheme and split_query(rest)[0].lower().endswith((".jsonl", ".ndjson")):
        scheme = "jsonl"
    if scheme not in REGISTRY:
        hint = suggest(scheme or text, REGISTRY)
        raise ConfigError(f"unknown sink '{redact_uri(text)}'; write jsonl:results.jsonl or images:DIR.{hint}")
    entry = REGISTRY[scheme]
    location, pieces = _split(f"{scheme}://{rest}", entry.after_hash)
    if not location.removeprefix(f"{scheme}://"):
        what = "an address" if "//" in entry.example else "a path"
        raise ConfigError(f"sink '{scheme}:' needs {what}, such as {entry.example}")
    if "//" not in entry.example:
        location = location.removeprefix(f"{scheme}://")
        where = redact_uri(f"{scheme}:{location}")
    else:
        where = _host_only(location) if entry.after_hash else redact_uri(location)
    parameters = Parameters.parse(where, pieces, entry.parameters)
    if entry.package and find_spec(entry.package) is None:
        raise ConfigError(f"{where}: {missing_extra(_DISTRIBUTION.get(entry.package, entry.package), entry.extra)}")
    factory: Callable[[str, Parameters], Sink]
    factory = getattr(import_module(f"edgead.runtime.sinks.{entry.module}"), entry.factory)
    return factory(location, parameters)


# Where a package is not installed under the name that it is imported by.
_DISTRIBUTION = {"cv2": "opencv-python-headless", "paho": "paho-mqtt"}


def _split(uri: str, after_hash: bool) -> tuple[str, list[str]]:
    if not after_hash:
        return split_query(uri)
    location, _, own = uri.partition("#")
    return location, [piece for piece in own.split("&") if piece]


def _host_only(url: str) -> str:
    """Return a URL without login, path and query: the addresses of chat services carry their secret in the path."""
    # First what `redact_uri` knows of passwords with a slash in them.
    scheme, _, rest = redact_uri(url).partition("://")
    authority, _, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2].partition('?')[0]}" + (f"/{HIDDEN}" if path else "")
