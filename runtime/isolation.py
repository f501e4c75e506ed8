"""Asking a process of its own, with a time limit: a vendor library that crashes or hangs becomes one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from edgead.runtime.errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    ConfigError,
    DataError,
    EdgeadError,
    ParityError,
)
from edgead.runtime.files import reason
from edgead.runtime.scratch import private_directory

# With the parent's search path, so that the child finds what the parent found, whatever the working folder is.
_PROGRAM = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main(sys.argv[3], sys.argv[4])"
)
_TAIL_BYTES = 4096
# Errors that keep their kind, and with it the exit code, on the way to the parent.
_KINDS: dict[str, type[EdgeadError]] = {
    error.__name__: error
    for error in (BackendUnavailable, BackendError, BundleError, ConfigError, DataError, ParityError, EdgeadError)
}


def ask(
    worker: str, request: Mapping[str, Any], *, who: str, doing: str, timeout_s: float, more_time: str
) -> dict[str, Any]:
    """Send a request to a new worker process and return its answer.

    Args:
        worker: module whose ``main(request file, answer file)`` hands them to `answer`.
        request: JSON values.
        who, doing: for messages, such as ``tensorrt`` and ``building model.fp16.onnx``.
        timeout_s: after so many seconds the process is ended.
        more_time: what a user does who wants to wait longer.

    Raises:
        EdgeadError: what the worker raised, of the same kind.
        BackendError: the process crashed, was killed, or ran out of time.
    """
    with private_directory() as folder:
        request_file, answer_file, noise_file = (folder / name for name in ("request", "answer", "noise"))
        request_file.write_text(json.dumps(request))
        with noise_file.open("w+b") as noise:
            arguments = [json.dumps(sys.path), worker, str(request_file), str(answer_file)]
            command = [sys.executable, "-c", _PROGRAM, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=noise, stderr=noise)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise BackendError(
                    f"{who} was not done after {timeout_s:g} s of {doing} and was ended; {more_time}"
                ) from None
            finally:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            if code != 0 or not answer_file.is_file():
                raise BackendError(f"{who} {_how_it_ended(code)} while {doing}{_last_words(noise)}")
        found: dict[str, Any] = json.loads(answer_file.read_text())
    if not found.pop("ok"):
        raise _KINDS[found["kind"]](found["error"])
    return found


def answer(request_file: str, answer_file: str, act: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do in a worker what the request says, and answer in JSON: ``ok`` and the outcome, or ``kind`` and ``error``.

    The process ends when its parent does.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(request_file).read_text())
    try:
        found = {"ok": True, **act(request)}
    except EdgeadError as error:
        kind = next(name for name, known in _KINDS.items() if isinstance(error, known))
        found = {"ok": False, "kind": kind, "error": str(error)}
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        found = {"ok": False, "kind": "BackendError", "error": f"cannot write{where}: {reason(error)}"}
    except MemoryError:
        found = {"ok": False, "kind": "BackendError", "error": "not enough memory"}
    Path(answer_file).write_text(json.dumps(found))


def _end_with_parent() -> None:
    # The parent holds the other end and never writes: what comes is its end, however it came about.
    # Read past Python's buffers, whose lock this thread would still hold when the interpreter ends.
    os.read(0, 1)
    os._exit(1)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"crashed ({name}){hint}"


def _last_words(noise: IO[bytes]) -> str:
    size = noise.seek(0, 2)
    noise.seek(max(0, size - _TAIL_BYTES))
    text = noise.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "no Python frame" not in line]
    return f": {' '.join(lines[-1].split())[:300]}" if lines else ""
