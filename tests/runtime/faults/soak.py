"""A camera loop over some URLs for some seconds, in a process of its own, so that nothing else moves its memory.

    python -m tests.runtime.faults.soak SECONDS SURVEY_S URL…

Prints one JSON object: ledger by source, reconnects, latency, and a survey of threads, open files and resident memory.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path

from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import Brightness, Runner, inspector
from tests.waiting import wait_for


def survey() -> tuple[int, int, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), pages * resource.getpagesize() / 1e6


def main() -> None:
    seconds, survey_s, urls = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    judge = inspector(Brightness(delay=0.004))
    judge.set_threshold(1e9)
    stream = Stream(judge, urls)
    runner = Runner(stream)
    # Both cameras are there, and what is made with the first images is made.
    wait_for(lambda: min(source.frames.inspected for source in stream.summary.sources.values()) > 60)
    samples = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(survey_s)
        runner.results.clear()
        samples.append(survey())
    runner.end()
    summary = stream.summary
    assert summary.latency is not None
    print(
        json.dumps(
            {
                "error": None if runner.error is None else str(runner.error),
                "frames": summary.frames.to_dict(),
                "captured": [source.frames.captured for source in summary.sources.values()],
                "reconnects": [source.health.reconnects for source in summary.sources.values()],
                "latency_ms": summary.latency.to_dict(),
                "samples": samples,
            }
        )
    )


if __name__ == "__main__":
    main()
