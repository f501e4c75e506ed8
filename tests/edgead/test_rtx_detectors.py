"""Every detector's graphs are real TensorRT-RTX engines for two GPUs, built on this machine without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgead.detectors import REGISTRY, pools_categories
from edgead.export.engines.building import BuildOptions, build_engines
from edgead.export.exporting import export_bundle
from edgead.fitting import fit
from edgead.runtime.backends.engine_cache import EngineCache

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rtx")]

SMALL = {
    "patchcore": {"bank_size": "256"},
    "slsg": {"steps": "4", "pretraining_steps": "1"},
    "sgsf": {"steps": "4"},
}


@pytest.mark.parametrize("name", REGISTRY)
def test_rtx_builds_the_graphs_of_every_detector(name: str, made_images: Path, tmp_path: Path) -> None:
    folders = [made_images / "plate", *([made_images / "figure"] if pools_categories(name) else [])]
    model = fit(folders, detector=name, settings=SMALL.get(name, {}), size=96)
    path = tmp_path / "part.edgead"
    export_bundle(model.exportable("part"), path)
    report = build_engines(
        path,
        target="tensorrt-rtx",
        cache=EngineCache(tmp_path / "engines"),
        options=BuildOptions(compute_capabilities=["8.6", "8.9"]),
    )
    graphs = {row.graph for row in report.engines}
    assert len(report.engines) == 2 * len(graphs)
    assert len(graphs) == (1 + len(folders) if len(folders) > 1 else 1)
    for row in report.engines:
        assert row.stored.size > 1_000_000
        assert {layer.precision for layer in row.layers if layer.heavy} == {"fp32"}
