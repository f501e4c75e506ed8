"""Two programs that answer in turn: requests and replies as lines of JSON over pipes.

The worker's side runs in an environment that has no edgead, so this file imports nothing of it, and the
libraries that both environments have only where they are used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_REPLY = "reply "


class WorkerError(RuntimeError):
    """A worker could not do what was asked, or is gone."""


class Worker:
    """A program that answers one request at a time; what it prints goes to a log file.

    Args:
        command: program and arguments.
        log: file for its messages; added to.
        environment: variables beside those of this process.
        folder: working directory, for libraries that write beside where they run.
    """

    def __init__(
        self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, folder: Path
    ) -> None:
        self._log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                text=True,
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Return what the worker answers to a request; raises `WorkerError` where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            while line and not line.startswith(_REPLY):
                line = self._process.stdout.readline()  # a library's words on import, before `serve` takes over
        except OSError as error:
            raise WorkerError(f"the worker is gone ({error}); see {self._log}") from error
        if not line:
            raise WorkerError(f"the worker ended with code {self._process.wait()}; see {self._log}")
        reply = json.loads(line.removeprefix(_REPLY))
        if "error" in reply:
            raise WorkerError(f"{do}: {reply['error']}; see {self._log}")
        return reply["result"]

    def close(self) -> None:
        """End the worker by closing its input; one that does not end is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(actions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests on stdin until it closes; libraries that print go to stderr instead of into the replies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": actions[request.pop("do")](**request)}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the asker's to judge
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(_REPLY + json.dumps(reply) + "\n")
        replies.flush()


def as_frame(path: str, frame: Sequence[int]) -> Any:
    """Return an image file as a camera of this ``(width, height)`` would give it, ``(H, W, 3)`` uint8 RGB."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((frame[0], frame[1]), Image.Resampling.BILINEAR))
