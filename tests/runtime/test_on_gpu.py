"""What only a GPU can show; never run so far. Where there is one: `pytest -m gpu tests/runtime/test_on_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgead.export.engines.building import build_engines
from edgead.runtime.backends import available
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache
from edgead.runtime.device.check import check_bundle
from edgead.runtime.inspection.inspector import Inspector

pytestmark = pytest.mark.gpu


def require(name: str) -> None:
    if name not in available():
        pytest.skip(f"{name} cannot run here; see: edgead doctor")


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_decides_as_torch_did(
    name: str, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(name)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "engines"))
    path = make_bundle()
    (row,) = build_engines(path, target=name, cache=EngineCache()).engines
    assert {layer.precision for layer in row.layers if layer.heavy} == {"fp32"}
    report = check_bundle(path, backend=name)
    assert report.passed, report.problems
    with Inspector.open(path, backend=name) as inspector:
        image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        scores = {inspector(image).score for _ in range(20)}
    assert len(scores) == 1  # the recorded graph gives the same each time


def test_onnxruntime_runs_the_whole_graph_on_the_gpu(make_bundle: Callable[..., Path]) -> None:
    require("onnxruntime-cuda")
    report = check_bundle(make_bundle(), backend="onnxruntime-cuda")
    assert report.passed, report.problems
    assert report.backend.provider == "CUDAExecutionProvider"
