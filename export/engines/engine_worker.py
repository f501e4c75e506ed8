"""The process in which a vendor library describes itself or builds one engine, so that its crash is not ours.

Started by `edgead.export.engines.isolation` as ``main(request file, answer file)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgead.export.engines.layer_precision import require_precision
from edgead.export.engines.tensorrt_adapter import Request, build, compute_capabilities
from edgead.runtime.backends.tensorrt_library import Target, load_library
from edgead.runtime.isolation import answer


def main(request_file: str, answer_file: str) -> None:
    """Do what the request says, see `edgead.runtime.isolation.answer`."""
    answer(request_file, answer_file, lambda request: _ACTIONS[request["action"]](request))


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
