"""One result as JSON, the same for every sink that sends or stores it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

from edgead.runtime.frame import Result

SCHEMA = "edgead.result/1"


def as_json(result: Result) -> str:
    """Return one line without its end: ``schema``, ``time`` (UTC, now) and `Result.to_dict`; NaN becomes null."""
    record = {"schema": SCHEMA, "time": utc_now(), **result.to_dict()}
    return json.dumps(finite(record), allow_nan=False)


def utc_now() -> str:
    """Return the time of day in ISO 8601, UTC, to the millisecond: ``2026-11-22T06:30:00.125Z``."""
    time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    return time.replace("+00:00", "Z")


def finite(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as None: NaN and Infinity are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
