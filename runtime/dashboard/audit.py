"""Who changed what, one JSON object a line, in a file that is only ever added to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.sinks.result_json import finite, utc_now

SCHEMA = "edgead.action/1"


class AuditTrail(Protocol):
    """Where it is written down what is about to be done: an `AuditLog`, or the record of the line."""

    def add(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write it down; raises `DataError` where that fails, and then nothing may be done of what it says."""


class AuditLogs:
    """A file, and the record of the line, which is told what people did: all else the stream tells it itself."""

    def __init__(self, file: AuditTrail, record: AuditTrail) -> None:
        self._file, self._record = file, record

    def add(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write it down in both; raises `DataError` where one does not take it."""
        self._file.add(event, fields)
        if "who" in fields:
            self._record.add(event, fields)


class AuditLog:
    """Appends records to a file; each is on the disk, whole, before `add` returns.

    Args:
        path: made where it is missing, with its folder.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise ConfigError(f"cannot write the audit log {self.path}: {reason(error)}") from error

    def add(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one record: ``schema``, ``time`` (UTC), ``event`` and the fields.

        Raises:
            DataError: it could not be written; then nothing may be done of what it says.
        """
        record = {"schema": SCHEMA, "time": utc_now(), "event": event, **finite(dict(fields))}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with self._lock:
            try:
                descriptor = self._open()  # each time anew: somebody may have moved the file away to keep it
                try:
                    # One call: two processes that add to one file do not mix their lines.
                    if os.write(descriptor, line) != len(line):
                        raise DataError(f"the disk of the audit log {self.path} is full")
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise DataError(f"cannot write the audit log {self.path}: {reason(error)}") from error

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        return os.open(self.path, flags, 0o640)
