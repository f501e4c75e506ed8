"""Writes a journal until somebody kills it: ``python -m tests.runtime.journal_writer DIR KILLS SEED COMMIT_S LIFE_S``.

One process that imported everything forks a writer for each kill, waits for a random time, sends SIGKILL, and prints a
JSON line: the last row the writer said it had added, and when it was killed. The forked writer opens everything itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.journal.rows import part_row
from edgead.runtime.journal.writer import Journal, now_ms


def write(folder: Path, first: int, pipe: int, commit_s: float) -> None:
    """Write rows, every third with an image, and say of each that it was added; of every 25th, that it is safe."""
    pixels = np.random.default_rng(first).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    with Journal(folder, commit_s=commit_s) as journal:
        setup = journal.setup({"bundle": None, "model": "made"})
        number = first
        while True:
            frame = Frame(pixels ^ (number & 255), number, 0, "line", part_id=f"P{number}")
            result = Result(number * 0.1, 1.0, Decision.OK, number, 0, "line", part_id=frame.part_id)
            row = part_row(result, frame, setup, now_ms(), keep=number % 3 == 0)
            if commit_s < 0.5 and number % 25 == 0:  # such a row is committed at once, with all before it
                journal.add_and_wait(row)
                said = "safe"
            else:
                journal.add(row)
                said = "added"
            os.write(pipe, f"{said} {number} {time.monotonic()}\n".encode())
            number += 1
            time.sleep(0.0005)


def kill_writers(folder: Path, kills: int, seed: int, commit_s: float, life_s: float) -> None:
    """Fork and kill writers, one after the other."""
    chance, first = random.Random(seed), 0
    for _ in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write(folder, first, writing, commit_s)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            begun = pipe.readline()  # what is killed before it writes has written nothing
            time.sleep(chance.random() * life_s)
            killed = time.monotonic()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = [line.split() for line in (begun + pipe.read()).split(b"\n")[:-1]]
        added = {int(number): float(at) for _, number, at in said}
        safe = [int(number) for what, number, _ in said if what == b"safe"]
        last = max(added, default=first)
        print(json.dumps({"first": first, "last": last, "safe": max(safe, default=first - 1), "killed": killed,
                          "added": added if commit_s >= 0.5 else {}}), flush=True)  # fmt: skip
        # One more may have been added than was said.
        first = last + 2


if __name__ == "__main__":
    kill_writers(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
