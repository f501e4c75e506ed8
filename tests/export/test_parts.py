"""A graph in two parts with native code between them, against the whole graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgead.detectors.heads import (
    LocationGaussians,
    LowRankWhitening,
    MahalanobisHead,
    NearestNeighbourHead,
    NPadHead,
    TriangularWhitening,
    pack_triangles,
)
from edgead.export.engines.building import BuildOptions, build_engines
from edgead.export.engines.native import build_native
from edgead.export.exportable import Exportable, Routing
from edgead.export.exporting import export_bundle, export_graphs
from edgead.export.graph.native_split import split
from edgead.export.graph.tracing import export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.export.torch_backend import TorchBackend
from edgead.features.scoring import GaussianSmoothing
from edgead.runtime.backends import available
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache
from edgead.runtime.backends.native.knn import supported
from edgead.runtime.backends.native.library import load_library
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.layout import native_files
from edgead.runtime.bundle.native_description import parse_description
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.tuning.search_space import find_setups
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector

CELLS = 64
WIDE = 64  # channels, at which the factors of 64 locations are large enough
BACKENDS = [name for name in ("onnxruntime", "openvino") if name in available()]


class Scorer(nn.Module):
    """What a detector exports, with one convolution for a backbone."""

    def __init__(self, head: nn.Module, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 8, stride=8)
        self.head = head
        self.smoothing = GaussianSmoothing(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw, weight = self.head(self.conv(images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0))
        grid = self.smoothing(raw)
        score = grid.amax((1, 2))
        return (score if weight is None else score * weight), grid


def patchcore(rows: int = 1500, neighbours: int | None = None) -> Scorer:
    torch.manual_seed(1)
    indices = None if neighbours is None else torch.randint(rows, (rows, neighbours))
    return Scorer(NearestNeighbourHead(torch.randn(rows, 12), indices), 12)


def padim() -> Scorer:
    torch.manual_seed(1)
    factors = torch.tril(torch.randn(CELLS, WIDE, WIDE))
    return Scorer(MahalanobisHead(torch.randn(CELLS, WIDE), factors), WIDE)


def npad(
    form: TriangularWhitening | LowRankWhitening, *, rows: int | None, window: int = 1, channels: int = WIDE
) -> Scorer:
    torch.manual_seed(1)
    gaussians = LocationGaussians(torch.randn(CELLS, channels), form, window)
    centroids = None if rows is None else NearestNeighbourHead(torch.randn(rows, channels))
    zscore = None if rows is None else torch.rand(2, 2) + 0.5
    return Scorer(NPadHead(torch.randn(80, channels), gaussians, centroids, zscore=zscore), 80)


def triangles(channels: int = WIDE, dtype: torch.dtype = torch.float32) -> TriangularWhitening:
    torch.manual_seed(2)
    return TriangularWhitening(pack_triangles(torch.randn(CELLS, channels, channels)).to(dtype))


def low_rank() -> LowRankWhitening:
    torch.manual_seed(2)
    factors = torch.randn(CELLS, WIDE, WIDE) / WIDE
    return LowRankWhitening(factors, torch.full((CELLS,), 3.0))


SEARCH, GAUSSIANS = "native search", "native Gaussians"
# The large bank of the second one stays in its graph.
SCORERS: dict[str, tuple[Callable[[], Scorer], str]] = {
    "patchcore": (patchcore, SEARCH),
    "padim": (padim, GAUSSIANS),
    "npad": (lambda: npad(triangles(), rows=1500), GAUSSIANS),
    "npad, fp16": (lambda: npad(triangles(dtype=torch.float16), rows=20), GAUSSIANS),
    "npad, low rank": (lambda: npad(low_rank(), rows=None), GAUSSIANS),
}


def model(exportable: Exportable, module: nn.Module) -> Exportable:
    module = module.eval()
    images = np.stack([resize(decode_image(data, name), 64, 64) for name, data in exportable.references])
    scores = TorchBackend(module).run(images).score
    return replace(
        exportable, module=module, grid=(8, 8), threshold=calibrate(scores, 0.5), normal_scores=scores.tolist()
    )


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the compiled library."""
    cache = EngineCache(tmp_path_factory.mktemp("engines"))
    try:
        stored, _ = build_native(cache)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if not supported(load_library(stored.path)):
        pytest.skip("this processor has no native search")
    return cache.folder


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(lambda: npad(triangles(20), rows=500, channels=20), id="small"),
        pytest.param(lambda: patchcore(neighbours=3), id="re-weighted"),
        pytest.param(lambda: npad(triangles(), rows=20, window=3), id="window"),
    ],
)
def test_a_graph_that_is_not_worth_it_or_needs_more_than_distances_stays_whole(module: Callable[[], Scorer]) -> None:
    assert split(inline_nodes(export_onnx(module().eval(), 64, 64))) is None


def test_other_products_with_a_constant_are_no_search(exportable: Exportable) -> None:
    assert split(inline_nodes(export_onnx(exportable.module, 64, 64))) is None


def check_parts(bundle: Path, native: str) -> None:
    """Two valid graphs that fit together, without what native code has for itself."""
    with Bundle.open(bundle) as opened, opened.model_files("fp32") as file:
        queries, score, described = (file.with_name(name) for name in native_files(file.name))
        description = parse_description(described.read_bytes(), described.name)
        assert description.kind == ("search" if native == SEARCH else "gaussians")
        largest = max(np.prod(constant.shape) for constant in description.constants.values())
        for part, inputs, outputs in (
            (onnx.load(str(queries)), ["images"], ["queries", *description.carried]),
            (onnx.load(str(score)), ["distances", *description.carried], ["score", "map"]),
        ):
            onnx.checker.check_model(part, full_check=True)
            assert [value.name for value in part.graph.input] == inputs
            assert [value.name for value in part.graph.output] == outputs
            assert all(np.prod(tensor.dims) < largest for tensor in part.graph.initializer)


def scores(
    bundle: Path, images: Sequence[np.ndarray], backend: str, precision: str = "fp32"
) -> tuple[list[float], str]:
    """Return the scores of one image after the other, equal to those of all at once, and what ran."""
    with Inspector.open(bundle, backend=backend, threads=2, precision=precision) as inspector:
        frames = [Frame(image, index, 0, "test") for index, image in enumerate(images)]
        found = [result.score for result in inspector.inspect_batch(frames)]
        assert found == pytest.approx([inspector(image).score for image in images], rel=1e-5)
        return found, inspector.describe().provider


@pytest.fixture
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, 90, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", SCORERS)
def test_backends_use_native_code_once_it_is_built(
    name: str,
    exportable: Exportable,
    images: list[np.ndarray],
    engines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, native = SCORERS[name]
    bundle = tmp_path / "small.edgead"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    assert export_bundle(model(exportable, make()), bundle).passed
    check_parts(bundle, native)
    whole = {backend: scores(bundle, images, backend) for backend in BACKENDS}
    monkeypatch.setenv(CACHE_VARIABLE, str(engines))
    for backend, (expected, provider) in whole.items():
        assert "native" not in provider
        found, provider = scores(bundle, images, backend)
        assert f"with {native} (" in provider
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert check_bundle(bundle, backend=backend).passed
        with Inspector.open(bundle, backend=backend, threads=2, native_code=False) as inspector:
            assert "native" not in inspector.describe().provider
            assert [inspector(image).score for image in images] == pytest.approx(expected, rel=1e-5)
    with Bundle.open(bundle) as opened:  # what `edgead tune` tries
        offered = {one.choice.native_code for one in find_setups(opened, backends=[BACKENDS[0]], threads=[2])}
    assert offered == {"used", "omitted"}


def test_a_check_sees_what_native_code_gets_wrong(
    exportable: Exportable, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    bundle, wrong = tmp_path / "small.edgead", tmp_path / "wrong.edgead"
    export_bundle(model(exportable, padim()), bundle)
    described = native_files("model.fp32.onnx")[2]
    with Bundle.open(bundle) as opened:
        members = {name: opened.read(name) for name in opened.manifest.members}
        description = json.loads(members[described])
        factors = np.frombuffer(members[description["constants"]["factors"]["file"]], "<f4")
        # All graphs stay as they are; only native code reads the constant under another name.
        other = f"weights/{'0' * 64}.bin"
        description["constants"]["factors"]["file"] = other
        changed = {described: json.dumps(description).encode(), other: (1.5 * factors).tobytes()}
        write_bundle(wrong, opened.manifest, members | changed)
    assert check_bundle(wrong, backend=BACKENDS[0]).passed
    monkeypatch.setenv(CACHE_VARIABLE, str(engines))
    assert check_bundle(bundle, backend=BACKENDS[0]).passed
    assert not check_bundle(wrong, backend=BACKENDS[0]).passed


def test_int8_holds_factors_in_16_bits(
    exportable: Exportable, images: list[np.ndarray], engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    bundle = tmp_path / "small.edgead"
    calibration = [(f"good-{name}", data) for name, data in exportable.references]
    quantised = replace(model(exportable, padim()), calibration=calibration)
    export_bundle(quantised, bundle, precisions=("fp32", "int8-cpu"), max_drop=0.5)
    whole = scores(bundle, images, BACKENDS[0], "int8-cpu")[0]
    monkeypatch.setenv(CACHE_VARIABLE, str(engines))
    for backend in BACKENDS:
        found, provider = scores(bundle, images, backend, "int8-cpu")
        assert provider.endswith(", 16-bit factors)")
        assert "16-bit" not in scores(bundle, images, backend)[1]
        assert check_bundle(bundle, backend=backend, precision="int8-cpu").passed
        if backend == BACKENDS[0]:
            np.testing.assert_allclose(found, whole, rtol=1e-4)


class ColourRouter(nn.Module):
    """Votes for green or red, of whichever an image has more."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        level = images.to(torch.float32).permute(0, 3, 1, 2).mean((2, 3))
        votes = torch.stack([level[:, 1], level[:, 0]], dim=1)
        return votes, level.sum(1)


def test_heads_of_a_routed_bundle_use_native_code(
    exportable: Exportable, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    heads = {"green": patchcore().eval(), "red": padim().eval()}
    thresholds = {name: model(exportable, head).threshold for name, head in heads.items()}
    routing = Routing(ColourRouter().eval(), heads, thresholds, dict.fromkeys(heads, 0.0))
    routed = replace(exportable, grid=(8, 8), routing=routing, categories=dict.fromkeys(heads, 6))
    bundle = tmp_path / "routed.edgead"
    assert export_bundle(routed, bundle).passed
    green, red = (np.full((64, 64, 3), colour, np.uint8) for colour in ((40, 90, 0), (90, 40, 0)))
    whole = {backend: scores(bundle, [green, red], backend) for backend in BACKENDS}
    assert build_engines(bundle, target="cpu", cache=EngineCache(engines)).engines[0].reused
    monkeypatch.setenv(CACHE_VARIABLE, str(engines))
    for backend, (expected, provider) in whole.items():
        assert "native" not in provider
        found, provider = scores(bundle, [green, red], backend)
        assert SEARCH in provider
        assert GAUSSIANS in provider
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("engines")
def test_a_bundle_is_built_for_once_and_its_constants_must_fit(
    exportable: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "engines"))
    bundle = tmp_path / "small.edgead"
    assert export_bundle(model(exportable, patchcore()), bundle).passed
    assert [row.reused for row in build_engines(bundle, target="cpu").engines] == [False]
    again = build_engines(bundle, target="cpu", options=BuildOptions())
    assert [row.reused for row in again.engines] == [True]
    assert again.to_dict()["target"] == "cpu"
    described = native_files("model.fp32.onnx")[2]
    with Bundle.open(bundle) as opened:
        members = {name: opened.read(name) for name in opened.manifest.members}
        description = json.loads(members[described])
        keys = description["constants"]["keys"]
        for change in ({"shape": [12, 1500]}, {"shape": [13, 1501]}, {"file": f"weights/{'1' * 64}.bin"}):
            odd = description | {"constants": {"keys": keys | change}}
            write_bundle(tmp_path / "odd.edgead", opened.manifest, members | {described: json.dumps(odd).encode()})
            with pytest.raises(BackendError, match="names no fitting constants for native search"):
                Inspector.open(tmp_path / "odd.edgead", backend=BACKENDS[0])


def test_there_is_nothing_to_build_for_a_bundle_without_a_bank(exportable: Exportable, tmp_path: Path) -> None:
    bundle = tmp_path / "small.edgead"
    export_bundle(exportable, bundle)
    with pytest.raises(ConfigError, match="no large memory bank and no large Gaussians"):
        build_engines(bundle, target="cpu", cache=EngineCache(tmp_path / "engines"))


def test_plain_graph_files_come_whole_only(exportable: Exportable, tmp_path: Path) -> None:
    export_graphs(model(exportable, patchcore()), tmp_path / "graphs")
    assert [file.name for file in (tmp_path / "graphs").glob("*.onnx")] == ["model.fp32.onnx"]
