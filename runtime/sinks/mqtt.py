"""Results to an MQTT broker."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink, selects
from edgead.runtime.sinks.result_json import as_json
from edgead.runtime.uri import Endpoint, Parameters

if TYPE_CHECKING:
    from paho.mqtt.client import Client

_ONLINE, _OFFLINE = "online", "offline"
_KEEPALIVE_S = 15
_FIRST_RETRY_S, _LAST_RETRY_S = 1, 30

_log = logging.getLogger("edgead.sinks")


class MqttSink(Sink):
    """Publishes one JSON object a result, as ``results.jsonl`` would hold it, to ``mqtt://user@host:1883/topic``.

    Parameters: ``only=all`` (default), ``anomaly`` or ``rejected``; ``qos=1`` (default; 0, 2); ``retain=0``;
    ``client_id``; ``password_file=FILE``, so that no password stands in the process list; ``timeout=5s`` for the
    broker's acknowledgement; ``status=TOPIC`` (default: the topic and ``/status``), where ``online`` or ``offline``
    stands, retained; ``offline`` is also the last will, so that it stands there when this process has died. ``mqtts://``
    is TLS with the system's authorities, or those of ``ca=FILE``.

    While the broker is away, results fail at once and are counted, and nothing is kept for it: a decision that arrives
    minutes late helps nobody, and ``jsonl:`` keeps all. Connections are retried indefinitely, at most 30 s apart.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        import paho.mqtt.client as mqtt

        scheme, _, rest = location.partition("://")
        self.name = parameters.where
        self.keeps_frames = False
        where = Endpoint.parse(self.name, rest, 8883 if scheme == "mqtts" else 1883)
        self._topic = _topic(self.name, "topic", where.path)
        self._status = _topic(self.name, "status", parameters.values.get("status", f"{self._topic}/status"))
        self._only = parameters.choice("only", "all", ("all", "anomaly", "rejected"))
        self._qos = parameters.integer("qos", 1, 0, 2)
        self._retain = bool(parameters.integer("retain", 0, 0, 1))
        self._timeout = parameters.seconds("timeout") or 5.0
        self._problem = "is not connected yet"
        self._tried = threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=parameters.values.get("client_id", ""))
        password = parameters.secret("password_file") or where.password
        if where.user is not None:
            client.username_pw_set(where.user, password)
        elif password is not None:
            raise ConfigError(f"{self.name}: a password needs a user: {scheme}://user@host/topic")
        authorities = parameters.values.get("ca")
        if authorities is not None and scheme != "mqtts":
            raise ConfigError(f"{self.name}: ca is for mqtts://")
        if scheme == "mqtts":
            try:
                client.tls_set(ca_certs=authorities)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{self.name}: cannot use ca {authorities}: {reason(error)}") from error
        client.will_set(self._status, _OFFLINE, qos=1, retain=True)
        client.reconnect_delay_set(_FIRST_RETRY_S, _LAST_RETRY_S)
        client.connect_timeout = self._timeout
        client.on_connect = self._connected
        client.on_connect_fail = self._not_reached
        client.on_disconnect = self._disconnected
        client.connect_async(where.host, where.port, _KEEPALIVE_S)
        client.loop_start()
        self._client = client

    def accepts(self, result: Result, frame: Frame | None) -> bool:  # noqa: ARG002
        return selects(self._only, result.decision)

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        # The first results of a run may come before the broker has answered.
        self._tried.wait(self._timeout)
        self._tried.set()
        if not self._client.is_connected():
            raise DataError(f"the broker {self._problem}")
        message = self._client.publish(self._topic, as_json(result), qos=self._qos, retain=self._retain)
        try:
            message.wait_for_publish(self._timeout)
            published = message.is_published()
        except (RuntimeError, ValueError) as error:  # the connection went, or the library's own queue is full
            raise DataError(f"the broker {self._problem}: {reason(error)}") from error
        if not published:
            raise DataError(f"the broker did not acknowledge in {self._timeout:g} s; the result may arrive late")

    def close(self) -> None:
        if self._client.is_connected():
            farewell = self._client.publish(self._status, _OFFLINE, qos=1, retain=True)
            farewell.wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()

    # Called in the library's own thread.

    def _connected(self, client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self._away(f"refuses the connection: {code}")
        else:
            self._problem = "is gone"
            client.publish(self._status, _ONLINE, qos=1, retain=True)
        self._tried.set()

    def _not_reached(self, _client: Client, _data: Any) -> None:
        self._away("cannot be reached")
        self._tried.set()

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:  # and not our own good-bye
            self._away(f"is gone: {code}")

    def _away(self, problem: str) -> None:
        if problem != self._problem:  # not once for each of the attempts that go on indefinitely
            _log.warning("the broker of %s %s", self.name, problem)
        self._problem = problem


def _topic(where: str, name: str, text: str) -> str:
    if not text or set(text) & set("#+\0") or text.startswith("$") or len(text.encode()) > 65535:
        raise ConfigError(f"{where}: '{text}' is no {name} to write to; it needs a name, without + and #")
    return text
