"""A blocking iterator as an asynchronous one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def iterate(values: Iterator[T], close: Callable[[], None]) -> AsyncIterator[T]:
    """Yield what ``values`` yields, each taken in one thread that belongs to it, and raise what it raises.

    Args:
        values: never None.
        close: called where the loop is left early or cancelled; has ``values`` end soon, from any thread.
    """
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(1, "edgead-async")
    try:
        while (value := await loop.run_in_executor(pool, next, values, None)) is not None:
            yield value
    finally:
        pool.shutdown(wait=False)
        # In a thread too: it may wait for a driver.
        await asyncio.to_thread(close)
