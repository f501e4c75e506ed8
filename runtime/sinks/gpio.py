"""The signal "part is OK" on a pin of this board, through libgpiod. Never tried on a real board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgead.runtime.errors import ConfigError
from edgead.runtime.sinks.reject import HOLD_S, MAX_AGE_S, Output, PassSignal
from edgead.runtime.uri import Parameters

if TYPE_CHECKING:
    from gpiod import LineRequest


class GpioSink(PassSignal):
    """Sets the pin of ``gpio://gpiochip0/17`` on for a fresh OK; off means reject (`edgead.runtime.sinks.reject`).

    Parameters: ``hold=100ms``, ``max_age=1s`` (see `PassSignal`); ``active=high`` (default) or ``low``, the level that
    means OK. Choose high with a pull-down resistor: then a board that is off, or boots, rejects. The kernel keeps or
    resets the pin when this process dies, as its driver likes; where that matters, use Modbus with its heartbeat.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        chip, _, line = location.partition("://")[2].rpartition("/")
        if not chip or not line.isdecimal():
            raise ConfigError(f"{parameters.where}: write chip and line, such as gpio://gpiochip0/17")
        path = Path("/dev") / chip
        if not path.exists():
            raise ConfigError(f"{parameters.where}: there is no {path}; `gpiodetect` lists the chips")
        super().__init__(
            parameters.where,
            _Pin(str(path), int(line), parameters.choice("active", "high", ("high", "low")) == "low"),
            hold_s=parameters.seconds("hold") or HOLD_S,
            max_age_s=parameters.seconds("max_age") or MAX_AGE_S,
        )


class _Pin(Output):
    def __init__(self, chip: str, line: int, active_low: bool) -> None:
        self._chip, self._line, self._active_low = chip, line, active_low
        self._request: LineRequest | None = None

    def connect(self) -> None:
        import gpiod
        from gpiod.line import Direction, Value

        settings = gpiod.LineSettings(
            direction=Direction.OUTPUT, active_low=self._active_low, output_value=Value.INACTIVE
        )
        self._request = gpiod.request_lines(self._chip, consumer="edgead", config={self._line: settings})

    def switch(self, on: bool) -> None:
        from gpiod.line import Value

        if self._request is None:
            raise OSError(f"line {self._line} of {self._chip} is not held")
        self._request.set_value(self._line, Value.ACTIVE if on else Value.INACTIVE)

    def beat(self, count: int) -> None:
        """A pin has no heartbeat."""

    def close(self) -> None:
        if self._request is not None:
            self._request.release()
            self._request = None
