"""The export layer: scoring module -> ONNX -> lint -> bundle -> parity on real images.

Rooms: `graph`, `precision`, `parity`, `engines`, `ops`, `kernels`; docs/architecture.md is the plan. The names
below are loaded on first use, because `engines` runs on devices that have neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgead.export.exportable import Exportable
    from edgead.export.exporting import export_bundle, export_graphs
    from edgead.export.graph.tracing import export_onnx
    from edgead.export.options import ExportOptions
    from edgead.export.parity.gate import ExportReport

__all__ = ["ExportOptions", "ExportReport", "Exportable", "export_bundle", "export_graphs", "export_onnx"]

_LAZY = {
    "ExportOptions": "options",
    "ExportReport": "parity.gate",
    "Exportable": "exportable",
    "export_bundle": "exporting",
    "export_graphs": "exporting",
    "export_onnx": "graph.tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgead.export' has no attribute '{name}'")
    return getattr(import_module(f"edgead.export.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
