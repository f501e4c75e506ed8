"""Medians of interleaved runs in one process: the only figures worth comparing on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleave(functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 5) -> dict[str, float]:
    """Call every function once a round; return each one's median in milliseconds."""
    return {name: median(values) for name, values in interleaved(functions, rounds, warm_up).items()}


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 5) -> dict[str, list[float]]:
    """Call every function once a round; return each one's milliseconds of every round.

    Interleaving exposes all of them to the same disturbances, so that ratios hold where absolute times drift.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + warm_up):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
    return times
