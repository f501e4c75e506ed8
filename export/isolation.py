"""Running a vendor library in a process of its own, with a time limit: its crash or hang becomes one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import IO, Any

from edgead.export.engine_worker import KINDS
from edgead.runtime.errors import BackendError
from edgead.runtime.scratch import private_directory

# With the parent's search path, so that the child finds what the parent found, whatever the working folder is.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgead.export.engine_worker import main; main(sys.argv[2], sys.argv[3])"
)
_TAIL_BYTES = 4096


def ask_library(request: dict[str, Any], *, doing: str, timeout_s: float) -> dict[str, Any]:
    """Send a request to a new worker process and return its answer.

    Args:
        request: see `edgead.export.engine_worker`.
        doing: what is done, for messages, such as ``building model.fp16.onnx``.
        timeout_s: after so many seconds the process is ended.

    Raises:
        EdgeadError: what the worker raised, of the same kind.
        BackendError: the process crashed, was killed, or ran out of time.
    """
    with private_directory() as folder:
        request_file, answer_file, noise_file = (folder / name for name in ("request", "answer", "noise"))
        request_file.write_text(json.dumps(request))
        with noise_file.open("w+b") as noise:
            command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(request_file), str(answer_file)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=noise, stderr=noise)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise BackendError(
                    f"{request['target']} was not done after {timeout_s:g} s of {doing} and was ended; "
                    "allow more with --timeout SECONDS"
                ) from None
            finally:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            if code != 0 or not answer_file.is_file():
                raise BackendError(f"{request['target']} {_how_it_ended(code)} while {doing}{_last_words(noise)}")
        answer: dict[str, Any] = json.loads(answer_file.read_text())
    if not answer.pop("ok"):
        raise KINDS[answer["kind"]](answer["error"])
    return answer


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
