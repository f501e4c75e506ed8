"""A model repository for the Triton Inference Server: what its files say, and that its graphs score."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgead.export.exportable import Exportable, Routing
from edgead.export.exporting import export_graphs
from edgead.runtime.backends import open_backend
from edgead.runtime.errors import ConfigError

CONFIG = """\
name: "small"
backend: "onnxruntime"
max_batch_size: 16
input [ { name: "images" data_type: TYPE_UINT8 dims: [ 64, 64, 3 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }, \
{ name: "map" data_type: TYPE_FP32 dims: [ 16, 16 ] } ]
instance_group [ { kind: KIND_AUTO } ]
dynamic_batching { }
"""


def test_a_repository_holds_a_configuration_and_a_graph_with_its_weights(
    exportable: Exportable, tmp_path: Path
) -> None:
    report = export_graphs(exportable, tmp_path / "repository", precisions=["fp16"], triton=True)
    files = sorted(str(path.relative_to(report.path)) for path in report.path.rglob("*") if path.is_file())
    names = [f"{name}/{part}" for name in ("small", "small-fp16") for part in ("1/model.onnx", "config.pbtxt")]
    assert files == sorted(["README.md", *names])
    config = (report.path / "small" / "config.pbtxt").read_text()
    assert config.startswith(CONFIG)
    value = re.search(r'key: "threshold" value { string_value: "([^"]+)" }', config)
    assert value is not None
    assert float(value[1]) == exportable.threshold.value
    assert config.count("{") == config.count("}")
    assert "KIND_GPU" in (report.path / "small-fp16" / "config.pbtxt").read_text()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = open_backend("onnxruntime", report.path / "small" / "1" / "model.onnx").run(images)
    expected = exportable.torch_backend().run(images)
    assert np.abs(found.score - expected.score).max() < 1e-4
    assert repr(exportable.threshold.value) in (report.path / "README.md").read_text()


def test_what_a_server_cannot_take_is_refused(exportable: Exportable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain model name, not 'a plate'"):
        export_graphs(replace(exportable, name="a plate"), tmp_path / "a", triton=True)
    routed = replace(exportable, routing=Routing(exportable.module, {}, {}, {}))
    with pytest.raises(ConfigError, match="give --single-graph"):
        export_graphs(routed, tmp_path / "b", triton=True)
    assert not list(tmp_path.iterdir())
