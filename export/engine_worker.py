"""The process in which a vendor library describes itself or builds one engine, so that its crash is not ours.

Started by `edgead.export.isolation` as ``main(request file, answer file)``; it ends when its parent does.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from edgead.export.layer_precision import require_precision
from edgead.export.tensorrt_adapter import Request, build, compute_capabilities
from edgead.runtime.backends.tensorrt_library import Target, load_library
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError, EdgeadError, ParityError
from edgead.runtime.files import reason

# Errors that keep their kind, and with it the exit code, on the way to the parent.
KINDS: dict[str, type[EdgeadError]] = {
    error.__name__: error for error in (BackendError, BackendUnavailable, ConfigError, ParityError)
}


def main(request_file: str, answer_file: str) -> None:
    """Do what the request says, and answer in JSON: ``ok`` and either the outcome, or ``kind`` and ``error``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(request_file).read_text())
    try:
        answer = {"ok": True, **_ACTIONS[request["action"]](request)}
    except EdgeadError as error:
        kind = next(name for name, known in KINDS.items() if type(error) is known)
        answer = {"ok": False, "kind": kind, "error": str(error)}
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        answer = {"ok": False, "kind": "BackendError", "error": f"cannot write{where}: {reason(error)}"}
    except MemoryError:
        answer = {"ok": False, "kind": "BackendError", "error": "not enough memory to build the engine"}
    Path(answer_file).write_text(json.dumps(answer))


def _describe(request: dict[str, Any]) -> dict[str, Any]:
    target: Target = request["target"]
    library = load_library(target)
    return {"version": library.version, "compute_capabilities": sorted(compute_capabilities(library), key=float)}


def _build(request: dict[str, Any]) -> dict[str, Any]:
    target: Target = request["target"]
    library = load_library(target)
    wanted = Request(
        graph=Path(request["graph"]),
        compute_capability=request["compute_capability"],
        max_batch=request["max_batch"],
        workspace_bytes=request["workspace_bytes"],
        plugin=_path(request["plugin"]),
        dla=request["dla"],
        timing_file=_path(request["timing_file"]),
    )
    built = build(library, wanted)
    # The network's types bind the builder. The engine may hide its layers in one fused block; where it shows them, they
    # must say the same.
    shown = [layer for layer in built.engine_layers if layer.heavy and layer.precision != "unknown"]
    for layers in (built.layers, shown) if shown else (built.layers,):
        require_precision(wanted.graph.name, request["precision"], layers)
    with Path(request["engine"]).open("wb") as stream:
        stream.write(built.plan)
    return {
        "layers": [list(layer) for layer in (built.engine_layers if shown else built.layers)],
        "layers_from": "engine" if shown else "network",
        "parse_seconds": built.parse_seconds,
        "build_seconds": built.build_seconds,
        "warnings": list(built.warnings),
    }


_ACTIONS = {"describe": _describe, "build": _build}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _end_with_parent() -> None:
    # The parent holds the other end and never writes: what comes is its end, however it came about.
    # Read past Python's buffers, whose lock this thread would still hold when the interpreter ends.
    os.read(0, 1)
    os._exit(1)
