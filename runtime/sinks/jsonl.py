"""Results as JSON lines."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from edgead.runtime.errors import ConfigError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.result_json import as_json
from edgead.runtime.uri import Parameters

_log = logging.getLogger("edgead.sinks")


class JsonLinesSink(Sink):
    """Appends one JSON object a line: ``schema``, ``time`` (UTC, when it was written) and `Result.to_dict`.

    Each line goes to the file at once and whole. An earlier file is continued; a line that a power cut left half
    written is closed first, so that only this one line is lost.

    Parameters: ``rotate=100MB`` begins a new file before a line would make the file larger than this (default: never);
    the full one becomes ``PATH.1``, the one before it ``PATH.2``, up to ``keep`` (5) of them, and older ones go. Only
    one process at a time may write a file that rotates.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        self.name = parameters.where
        self.keeps_frames = False
        self._torn = False
        self._size = 0
        self._descriptor: int | None = None
        self._stdout = sys.stdout if location == "-" else None
        self._path = Path(location)
        self._rotate = parameters.size("rotate")
        self._limit = self._rotate
        self._keep = parameters.integer("keep", 5, 1, 10_000)
        if not self._rotate and "keep" in parameters.values:
            raise ConfigError(f"{self.name}: keep needs rotate, such as ?rotate=100MB&keep=5")
        if location == "-":
            if self._rotate:
                raise ConfigError(f"{self.name}: standard output has no size; rotate needs a file")
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        except OSError as error:
            raise ConfigError(f"cannot write {self.name}: {reason(error)}") from error

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        line = as_json(result) + "\n"
        if self._stdout is not None:
            self._stdout.write(line)
            self._stdout.flush()
            return
        data = line.encode()
        if self._rotate and self._size > 0 and self._size + len(data) > self._limit:
            self._next_file()
        if self._descriptor is None:
            self._descriptor = self._open()
        if self._torn:
            data = b"\n" + data
        # Unbuffered: what was reported as written is in the file, and a full disk is noticed at this line.
        self._torn = True
        while data:
            done = os.write(self._descriptor, data)
            self._size += done
            data = data[done:]
        self._torn = False

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path, flags, 0o644)
        self._size = os.fstat(descriptor).st_size
        self._torn = _ends_inside_a_line(descriptor)
        return descriptor

    def _next_file(self) -> None:
        """Move the full file out of the way; where that fails, the old one is written on, for as much again."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # Windows moves no open file
            self._descriptor = None
        # Only as far as there is no gap: tried again after a failure, this moves nothing twice.
        room = next((n for n in range(1, self._keep) if not self._numbered(n).exists()), self._keep)
        try:
            for number in range(room, 1, -1):
                self._numbered(number - 1).replace(self._numbered(number))
            self._path.replace(self._numbered(1))
            self._limit = self._rotate
        except OSError as error:
            _log.warning("sink %s cannot begin a new file: %s; it writes on", self.name, reason(error))
            self._limit = self._size + self._rotate

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _ends_inside_a_line(descriptor: int) -> bool:
    if not os.fstat(descriptor).st_size:  # new, or a pipe
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"
