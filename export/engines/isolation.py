"""Running a vendor library in a process of its own, with a time limit: its crash or hang becomes one line."""

from __future__ import annotations

from typing import Any

from edgead.runtime.isolation import ask

_WORKER = "edgead.export.engines.engine_worker"


def ask_library(request: dict[str, Any], *, doing: str, timeout_s: float) -> dict[str, Any]:
    """Send a request to a new worker process and return its answer.

    Args:
        request: see `edgead.export.engines.engine_worker`.
        doing: what is done, for messages, such as ``building model.fp16.onnx``.
        timeout_s: after so many seconds the process is ended.

    Raises:
        EdgeadError: as `edgead.runtime.isolation.ask`.
    """
    more_time = "allow more with --timeout SECONDS"
    return ask(_WORKER, request, who=request["target"], doing=doing, timeout_s=timeout_s, more_time=more_time)
