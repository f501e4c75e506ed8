"""Waiting for the person or service manager that ends a server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_S = 0.2


@contextmanager
def until_asked() -> Iterator[Callable[[], None]]:
    """Give a function that returns once SIGINT or SIGTERM came, even if it came before the function was called.

    It must be called in the main thread. No event is used: a handler that sets one while its own thread looks at it
    waits for itself.
    """
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def wait() -> None:
        # In short waits: a signal that comes just before a wait is only seen after it.
        while not asked:
            time.sleep(_LOOK_S)

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
