"""The process in which a shadow bundle judges: frames come in on stdin, what it decides goes out on stdout.

Started by `edgead.runtime.inspection.shadow`. It has the lowest priority that the system knows, so that it takes only
what the bundle that decides leaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgead.runtime.errors import EdgeadError
from edgead.runtime.frame import Frame, Result
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig


def main() -> None:
    """Open the bundle that the first line names, say so or why not, then answer each frame with one line."""
    with suppress(OSError, AttributeError):
        os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the one who asked ends this one
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    asked = json.loads(requests.readline())
    try:
        inspector = Inspector.open(Path(asked["bundle"]), RunConfig(**asked["config"]))
    except EdgeadError as error:
        _say(answers, {"error": str(error), "kind": type(error).__name__})
        return
    with inspector:
        sha256 = inspector.bundle[1] if inspector.bundle is not None else ""
        _say(answers, {"name": inspector.name, "sha256": sha256, "bits": inspector.bits, "why": inspector.why})
        while head := requests.readline():
            said = json.loads(head)
            pixels = np.frombuffer(_exactly(requests, said.pop("bytes")), np.uint8).reshape(said.pop("shape"))
            _say(answers, _answer(inspector(Frame(pixels, 0, 0, "shadow", said["layout"]))))


def _end_with_parent(parent: int) -> None:
    # Also where this one hangs in a library: the end of stdin is seen between frames only.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _answer(result: Result) -> dict[str, object]:
    said = result.to_dict()
    return {name: said[name] for name in ("decision", "score", "threshold", "category", "reason")}


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:  # the one who asked is gone
        raise SystemExit
    return data


def _say(stream: BinaryIO, value: dict[str, object]) -> None:
    stream.write(json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main()
