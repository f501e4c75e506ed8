"""A graph with a memory bank in two parts with the native search between them, against the whole graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgead.detectors.heads import NearestNeighbourHead
from edgead.export.building import BuildOptions, build_engines
from edgead.export.exportable import Exportable
from edgead.export.exporting import export_bundle, export_graphs
from edgead.export.graph import export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.export.search import split_at_search
from edgead.runtime.backends import available
from edgead.runtime.bundle import Bundle, write_bundle
from edgead.runtime.engine_cache import CACHE_VARIABLE, EngineCache
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError
from edgead.runtime.frame import Frame
from edgead.runtime.inspector import Inspector
from edgead.runtime.preprocess import resize
from edgead.runtime.search import search_files
from edgead.runtime.threshold import calibrate
from edgead.runtime.tuning.setups import find_setups
from edgead.scoring import GaussianSmoothing


class Scorer(nn.Module):
    """What PatchCore exports, with one convolution for a backbone."""

    def __init__(self, rows: int, *, neighbours: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 8, stride=8)
        indices = None if neighbours is None else torch.randint(rows, (rows, neighbours))
        self.head = NearestNeighbourHead(torch.randn(rows, 12), indices)
        self.smoothing = GaussianSmoothing(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw, weight = self.head(self.conv(images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0))
        grid = self.smoothing(raw)
        score = grid.amax((1, 2))
        return (score if weight is None else score * weight), grid


@pytest.fixture
def banked(exportable: Exportable) -> Exportable:
    from dataclasses import replace

    from edgead.export.torch_backend import TorchBackend
    from edgead.runtime.decode import decode_image

    module = Scorer(1500).eval()
    images = np.stack([resize(decode_image(data, name), 64, 64) for name, data in exportable.references])
    scores = TorchBackend(module).run(images).score
    return replace(
        exportable, module=module, grid=(8, 8), threshold=calibrate(scores, 0.5), normal_scores=scores.tolist()
    )


@pytest.mark.parametrize(("rows", "neighbours"), [(500, None), (1500, 3)], ids=["small bank", "re-weighted"])
def test_a_graph_that_is_not_worth_it_or_needs_more_than_distances_stays_whole(rows: int, neighbours: int) -> None:
    assert split_at_search(inline_nodes(export_onnx(Scorer(rows, neighbours=neighbours).eval(), 64, 64))) is None


def test_other_products_with_a_constant_are_no_search(exportable: Exportable) -> None:
    assert split_at_search(inline_nodes(export_onnx(exportable.module, 64, 64))) is None


def test_the_parts_are_valid_and_end_where_the_search_begins() -> None:
    parts = split_at_search(inline_nodes(export_onnx(Scorer(1500).eval(), 64, 64)))
    assert parts is not None
    assert json.loads(parts[2])["shape"] == [13, 1500]
    for part, inputs, outputs in (
        (parts[0], ["images"], ["queries"]),
        (parts[1], ["distances"], ["score", "map"]),
    ):
        onnx.checker.check_model(part, full_check=True)
        assert [value.name for value in part.graph.input] == inputs
        assert [value.name for value in part.graph.output] == outputs
        assert "MatMul" not in {node.op_type for node in part.graph.node}


def scores(bundle: Path, images: Sequence[np.ndarray], backend: str) -> tuple[list[float], bool]:
    with Inspector.open(bundle, backend=backend, threads=2) as inspector:
        frames = [Frame(image, index, 0, "test") for index, image in enumerate(images)]
        found = [result.score for result in inspector.inspect_batch(frames)]
        assert found == pytest.approx([inspector(image).score for image in images], rel=1e-5)
        return found, "native search" in inspector.describe().provider


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_searches_natively_once_the_library_is_built(
    backend: str, banked: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend not in available():
        pytest.skip(f"the library of {backend} is not installed")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "engines"))
    bundle = tmp_path / "small.edgead"
    assert export_bundle(banked, bundle).passed
    with Bundle.open(bundle) as opened:
        assert set(search_files("fp32")) <= set(opened.manifest.members)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 90, 70, 3), dtype=np.uint8))
    whole, native = scores(bundle, images, backend)
    assert not native
    try:
        report = build_engines(bundle, target="cpu")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert [row.reused for row in report.engines] == [False]
    searched, native = scores(bundle, images, backend)
    assert native
    np.testing.assert_allclose(searched, whole, rtol=1e-5)
    assert export_bundle(banked, bundle).passed  # the proof of parity is then that of the native search
    with Inspector.open(bundle, backend=backend, threads=2, native_search=False) as inspector:
        assert "native search" not in inspector.describe().provider
        assert [inspector(image).score for image in images] == pytest.approx(whole, rel=1e-5)
    with Bundle.open(bundle) as opened:
        offered = {one.choice.native_search for one in find_setups(opened, backends=[backend], threads=[2])}
    assert offered == {"used", "left out"}
    again = build_engines(bundle, target="cpu", options=BuildOptions())
    assert [row.reused for row in again.engines] == [True]
    assert again.to_dict()["target"] == "cpu"
    bank = json.dumps({"keys": "weights/missing.bin", "shape": [13, 1500]}).encode()
    with Bundle.open(bundle) as opened:
        members = {name: opened.read(name) for name in opened.manifest.members}
        write_bundle(tmp_path / "odd.edgead", opened.manifest, members | {search_files("fp32")[2]: bank})
    with pytest.raises(BackendError, match="names no fitting bank"):
        Inspector.open(tmp_path / "odd.edgead", backend=backend)


def test_there_is_nothing_to_build_for_a_bundle_without_a_bank(exportable: Exportable, tmp_path: Path) -> None:
    bundle = tmp_path / "small.edgead"
    export_bundle(exportable, bundle)
    with pytest.raises(ConfigError, match="has no memory bank"):
        build_engines(bundle, target="cpu", cache=EngineCache(tmp_path / "engines"))


def test_plain_graph_files_come_whole_only(banked: Exportable, tmp_path: Path) -> None:
    export_graphs(banked, tmp_path / "graphs")
    assert [file.name for file in (tmp_path / "graphs").glob("*.onnx")] == ["model.fp32.onnx"]
