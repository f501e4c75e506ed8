"""Waiting for what other threads and processes do, and what they left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

# What ends a test that hangs, and nothing else: no test may need that long, however busy the machine is.
LONG_S = 120.0


def wait_for(condition: Callable[[], object], seconds: float = LONG_S) -> None:
    """Return as soon as the condition holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def lines(path: Path) -> list[dict[str, object]]:
    """Return the objects of a JSON lines file, none where there is no file yet; a line that is being written waits."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
