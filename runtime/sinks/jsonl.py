"""Results as JSON lines."""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgead.runtime.errors import ConfigError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink
from edgead.runtime.uri import Parameters

SCHEMA = "edgead.result/1"


class JsonLinesSink(Sink):
    """Appends one JSON object a line: ``schema``, ``time`` (UTC, when it was written) and `Result.to_dict`.

    Each line goes to the file at once and whole. An earlier file is continued; a line that a power cut left half
    written is closed first, so that only this one line is lost.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = False
        self._torn = False
        self._descriptor: int | None = None
        self._stdout = sys.stdout
        if location == "-":
            return
        path = Path(location)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(path, flags, 0o644)
            self._torn = _ends_inside_a_line(self._descriptor)
        except OSError as error:
            raise ConfigError(f"cannot write {self.name}: {reason(error)}") from error

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        record = {"schema": SCHEMA, "time": time.replace("+00:00", "Z"), **result.to_dict()}
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        if self._descriptor is None:
            self._stdout.write(line)
            self._stdout.flush()
            return
        # Unbuffered: what was reported as written is in the file, and a full disk is noticed at this line.
        data = ("\n" + line if self._torn else line).encode()
        self._torn = True
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _ends_inside_a_line(descriptor: int) -> bool:
    if not os.fstat(descriptor).st_size:  # new, or a pipe
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def _finite(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as None: NaN and Infinity are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
