"""The signal "part is OK" on a PLC's coil, by Modbus TCP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.sinks.reject import HOLD_S, MAX_AGE_S, Output, PassSignal
from edgead.runtime.uri import Endpoint, Parameters

if TYPE_CHECKING:
    from pymodbus.client import ModbusTcpClient


class ModbusSink(PassSignal):
    """Sets the coil of ``modbus://host:502/coil/N`` on for a fresh OK; off means reject, as `PassSignal` says.

    Parameters: ``hold=100ms``, how long one OK lasts: shorter than the time from part to part; ``max_age=1s`` from
    capture; ``heartbeat=ADDRESS`` of a holding register that counts up every ``beat=250ms`` (without it, the PLC cannot
    see that this process has died); ``unit=1``; ``timeout=1s``. Addresses are those of the protocol, from 0: coil 0 is
    what many manuals call 00001, register 10 is 40011.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        where = Endpoint.parse(parameters.where, location.partition("://")[2], 502)
        match = re.fullmatch(r"coil/([0-9]{1,5})", where.path)
        if match is None or int(match[1]) > 65535:
            raise ConfigError(f"{parameters.where}: write the coil's address, such as modbus://{where.host}/coil/3")
        heartbeat = parameters.integer("heartbeat", -1, 0, 65535)
        output = _Coil(
            where.host,
            where.port,
            int(match[1]),
            None if heartbeat < 0 else heartbeat,
            parameters.integer("unit", 1, 0, 255),
            parameters.seconds("timeout") or 1.0,
        )
        super().__init__(
            parameters.where,
            output,
            hold_s=parameters.seconds("hold") or HOLD_S,
            max_age_s=parameters.seconds("max_age") or MAX_AGE_S,
            beat_s=parameters.seconds("beat") or 0.25,
        )


class _Coil(Output):
    def __init__(self, host: str, port: int, coil: int, heartbeat: int | None, unit: int, timeout_s: float) -> None:
        self._where = (host, port, timeout_s)
        self._coil, self._heartbeat, self._unit = coil, heartbeat, unit
        self._client: ModbusTcpClient | None = None

    def connect(self) -> None:
        from pymodbus.client import ModbusTcpClient

        host, port, timeout = self._where
        # No retries: a coil that is written late says OK of another part.
        self._client = ModbusTcpClient(host, port=port, timeout=timeout, retries=0)
        if not self._client.connect():
            raise DataError(f"the PLC at {host}:{port} cannot be reached")

    def switch(self, on: bool) -> None:
        self._ask(lambda client: client.write_coil(self._coil, on, device_id=self._unit))

    def beat(self, count: int) -> None:
        register = self._heartbeat
        if register is not None:
            self._ask(lambda client: client.write_register(register, count, device_id=self._unit))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, request: Callable[[ModbusTcpClient], Any]) -> None:
        from pymodbus.exceptions import ModbusException

        if self._client is None:
            raise DataError("the PLC is not connected")
        try:
            answer = request(self._client)
        except ModbusException as error:
            raise DataError(f"the PLC does not answer: {error}") from error
        if answer.isError():
            raise DataError(f"the PLC refuses: {answer}")
