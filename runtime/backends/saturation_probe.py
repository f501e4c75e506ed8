"""Does a backend add byte products up without an error on this processor? Asked of the backend itself, not of a list.

Graphs of this version for CPUs cannot saturate (`saturation_free` in the manifest). Those of earlier ones can, on
processors without dot products of bytes; there they would give other scores than where they were validated.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgead.runtime.backends import open_backend
from edgead.runtime.errors import BackendUnavailable

if TYPE_CHECKING:
    from edgead.runtime.bundle.manifest import Manifest

# Made by `edgead.export.graph.saturation.probe_graph`: its score is PROBE_SCORE for white pixels where sums are exact.
PROBE = Path(__file__).with_name("saturation_probe.onnx")
PROBE_SIDE, PROBE_SCORE = 4, 200.0
_CPU_BACKENDS = ("onnxruntime", "openvino")


@cache
def saturates(backend: str) -> bool:
    """Return whether a backend's byte products saturate on this processor; raises as `open_backend`."""
    opened = open_backend(backend, PROBE, threads=1)
    try:
        score = float(opened.run(np.full((1, PROBE_SIDE, PROBE_SIDE, 3), 255, np.uint8)).score[0])
    finally:
        opened.close()
    return abs(score - PROBE_SCORE) > 1.0


def require_exact_sums(manifest: Manifest, precision: str, backend: str) -> None:
    """Refuse an INT8 graph of an earlier version, or one for TensorRT, where this processor would change its scores.

    Raises:
        BackendUnavailable: its sums may saturate, and on this backend they do here.
    """
    section = manifest.precisions.get(precision)
    if section is None or not precision.startswith("int8") or backend not in _CPU_BACKENDS:
        return
    if section.saturation_free or not saturates(backend):
        return
    other = "int8-cpu" if precision != "int8-cpu" and "int8-cpu" in manifest.precisions else "fp32"
    why = "was exported by an earlier version" if precision == "int8-cpu" else "is meant for TensorRT"
    raise BackendUnavailable(
        f"{precision} of {manifest.name} {why}, and its sums saturate on this processor (it has no VNNI), which "
        f"changes scores; use --precision {other}, or export it again"
    )
