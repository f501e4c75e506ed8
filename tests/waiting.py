"""Waiting for what other threads and processes do, and what they left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fails after ``seconds``, which only a busy machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def lines(path: Path) -> list[dict[str, object]]:
    """Return the objects of a JSON lines file, none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
