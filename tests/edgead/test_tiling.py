"""Tiles: where they are cut, that seams hide nothing, and the way from fit to the line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgead.cli import run
from edgead.model.model import load_model
from edgead.model.model_card import read_card
from edgead.opening import open_inspector
from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.tiled_backend import TiledBackend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BackendError, ConfigError, DataError
from edgead.runtime.frame import Decision, Inference
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.imaging.roi import Box, Region, prepare
from edgead.runtime.imaging.tiling import Tiles, parse_tiles
from edgead.runtime.inspection.inspector import Inspector

CELL = 4  # pixels of a tile's input a cell


class Brightest:
    """The map: the brightest pixel of each cell; the score: the brightest cell."""

    def __init__(self):
        self.shapes = []

    def run(self, images):
        self.shapes.append(images.shape)
        number, height, width, _ = images.shape
        cells = images[..., 0].reshape(number, height // CELL, CELL, width // CELL, CELL)
        grid = cells.max(axis=(2, 4)).astype(np.float32)
        return Inference(grid.max(axis=(1, 2)), grid)

    def describe(self):
        return BackendInfo("brightest", "numpy", "fp32", "cpu", 1, "1")

    def close(self):
        pass


def inspector(tiles, region=None, threshold=100.0, backend=None):
    judged = TiledBackend(backend or Brightest(), tiles)
    height, width = tiles.grid[0] * CELL, tiles.grid[1] * CELL
    return Inspector(judged, height=height, width=width, threshold=threshold, region=region, tiles=tiles)


def test_a_picture_of_the_natural_size_is_judged_pixel_by_pixel():
    tiles = Tiles(2, 3, 2, (8, 10))
    assert tiles.whole_grid == (14, 26)
    picture = np.random.default_rng(0).integers(0, 256, (14 * CELL, 26 * CELL, 3), dtype=np.uint8)
    result = inspector(tiles)(picture)
    whole = Brightest().run(picture[None])
    assert np.array_equal(result.map, whole.map[0])
    assert result.score == whole.score[0]


@pytest.mark.parametrize("grid", [(8, 10), (9, 9)])
@pytest.mark.parametrize(("rows", "columns", "overlap"), [(2, 2, 1), (1, 4, 3), (3, 2, 2)])
@pytest.mark.parametrize("size", [(120, 203), (77, 140)])
def test_no_seam_hides_a_spot_and_the_map_has_it_where_it_is(grid, rows, columns, overlap, size):
    """Bright spots as wide as the overlap, over all of the picture: each lies wholly in a tile, and is found."""
    tiles = Tiles(rows, columns, overlap, grid)
    height, width = size
    cells_y, cells_x = tiles.whole_grid
    spot_y, spot_x = max(1, height * overlap // cells_y), max(1, width * overlap // cells_x)
    edges_y = tiles._edges(rows, grid[0], height)
    edges_x = tiles._edges(columns, grid[1], width)
    assert edges_y[0][0] == edges_x[0][0] == 0
    assert (edges_y[-1][1], edges_x[-1][1]) == (height, width)
    for top in range(height - spot_y + 1):
        assert any(first <= top and top + spot_y <= last for first, last in edges_y)
    for left in range(width - spot_x + 1):
        assert any(first <= left and left + spot_x <= last for first, last in edges_x)
    judge = inspector(tiles, threshold=60.0)
    for top in range(0, height - spot_y + 1, 5):
        for left in range(0, width - spot_x + 1, 7):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[top : top + spot_y, left : left + spot_x] = 255
            result = judge(picture)
            assert result.decision is Decision.ANOMALY
            found = np.argwhere(result.map == result.map.max())
            y, x = (found.mean(axis=0) + 0.5) * (height / cells_y, width / cells_x)
            assert abs(y - top - spot_y / 2) <= height / cells_y + 1
            assert abs(x - left - spot_x / 2) <= width / cells_x + 1


def test_nan_and_grey_frames_and_batches():
    tiles = Tiles(2, 2, 1, (8, 8))

    class Broken(Brightest):
        def run(self, images):
            found = super().run(images)
            found.score[-1] = np.nan
            return found

    picture = np.zeros((80, 80, 3), np.uint8)
    assert inspector(tiles, backend=Broken())(picture).decision is Decision.NOT_INSPECTED
    grey = np.random.default_rng(0).integers(0, 256, (80, 90), dtype=np.uint8)
    assert inspector(tiles)(grey).score == inspector(tiles)(np.repeat(grey[:, :, None], 3, axis=2)).score
    backend = Brightest()
    from edgead.runtime.frame import Frame

    frames = [Frame(np.full((80, 80, 3), 10 * n, np.uint8), n, 0, "s") for n in range(3)]
    results = inspector(tiles, backend=backend).inspect_batch(frames)
    assert [result.score for result in results] == [0, 10, 20]
    assert backend.shapes == [(12, 32, 32, 3)]


def test_tiles_of_a_region_are_those_of_its_cut_picture():
    region = Region((200, 150), Box(20, 10, 120, 90), np.arange(90 * 120).reshape(90, 120) % 7 == 0)
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    tiles = Tiles(2, 2, 2, (8, 8))
    stacked = prepare(picture, 32, 32, region=region, tiles=tiles)
    part = region.cut(picture)
    edges_y, edges_x = tiles._edges(2, 8, 90), tiles._edges(2, 8, 120)
    expected = [resize(part[t:b, left:right], 32, 32) for t, b in edges_y for left, right in edges_x]
    assert np.array_equal(stacked, np.concatenate(expected))


@pytest.mark.parametrize("numbers", [(1, 1, 1), (0, 2, 1), (9, 8, 1), (2, 2, 0), (2, 2, 4)])
def test_tiles_that_cannot_be_are_refused(numbers):
    with pytest.raises(ConfigError, match="tiles"):
        Tiles(*numbers, (8, 8))


def test_more_that_is_refused():
    for text in ("2", "x", "2x", "-1x2", "2x3x4", "200x2"):
        with pytest.raises(ConfigError, match="--tiles takes ROWSxCOLUMNS"):
            parse_tiles(text)
    tiles = Tiles(2, 2, 1, (8, 8))
    with pytest.raises(DataError, match="too small for 2x2 tiles; it needs 15x15 pixels"):
        inspector(tiles)(np.zeros((14, 100, 3), np.uint8))
    with pytest.raises(BackendError, match="pictures of 4 tiles"):
        TiledBackend(Brightest(), tiles).run(np.zeros((1, 30, 32, 3), np.uint8))


# From fit to the line


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Large pictures of a regular pattern, some of the tested ones with a spot of few pixels."""
    root = tmp_path_factory.mktemp("data") / "large"
    random = np.random.default_rng(0)
    tile = random.integers(90, 166, (16, 16, 3))
    for split, count in (("train/good", 6), ("test/good", 3), ("test/spot", 3)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            pixels = np.tile(tile, (8, 12, 1)) + random.integers(-6, 7, (128, 192, 3))
            if split == "test/spot":
                y, x = random.integers(4, 116), random.integers(4, 180)
                pixels[y : y + 6, x : x + 6] = (250, 20, 20)
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{index:03d}.png")
    return root


@pytest.fixture(scope="module")
def tiled(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled")
    model, bundle = str(folder / "model"), str(folder / "tiled.edgead")
    common = ["--detector", "patchcore", "--set", "bank_size=256", "--size", "64"]
    assert run(["fit", str(large), *common, "--tiles", "2x3", "--tile-overlap", "2", "-o", model]) == 0
    assert run(["export", model, "-o", bundle]) == 0
    return folder / "model", folder / "tiled.edgead"


def test_model_and_bundle_judge_the_same_tiles_alike(tiled, large):
    model, bundle = tiled
    tiles = load_model(model).tiles
    assert (tiles.rows, tiles.columns, tiles.overlap) == (2, 3, 2)
    with Bundle.open(bundle) as opened:
        assert opened.manifest.tiles() == tiles
    with open_inspector(model) as torch, Inspector.open(bundle, backend="onnxruntime") as onnx:
        for path in sorted((large / "test").rglob("*.png")):
            picture = read_image(path)
            a, b = torch(picture), onnx(picture)
            assert a.score == pytest.approx(b.score, rel=1e-4)
            assert a.decision is b.decision
            assert b.map.shape == tiles.whole_grid
            if path.parent.name == "spot":
                assert b.decision is Decision.ANOMALY
                spot = (picture[..., 0] > 230) & (picture[..., 1] < 50)
                cell = np.unravel_index(b.map.argmax(), b.map.shape)
                peak = (np.array(cell) + 0.5) * picture.shape[:2] / b.map.shape
                assert np.abs(np.argwhere(spot).mean(axis=0) - peak).max() < 20


def test_the_threshold_counts_pictures_and_not_tiles(tiled):
    card = read_card(tiled[0])
    assert len(card.normal_scores) == card.threshold.n_normals == 6


def test_tiles_of_a_picture_are_held_out_together():
    """Each score is that of the model that saw no tile of the picture: the distance to the nearest other picture."""
    import torch
    from torch import nn

    from edgead.detectors.base import fit_closed_form

    values = np.repeat(np.array([0, 10, 21, 33, 46], np.uint8), 3)  # three tiles a picture, all alike

    class Images:
        def __len__(self):
            return len(values)

        def batches(self, size):
            pixels = np.repeat(values, 64 * 64 * 3).reshape(-1, 64, 64, 3)
            for start in range(0, len(pixels), size):
                yield pixels[start : start + size]

    class Extractor(nn.Module):
        grid, channels = (1, 1), 1

        def forward(self, images):
            return images.float().mean(dim=(1, 2, 3))[:, None, None, None]

    class Head(nn.Module):
        def __init__(self, seen):
            super().__init__()
            self.register_buffer("seen", seen)

        def forward(self, features):
            return (features - self.seen).abs().amin(dim=1), None

    class Nearest:
        settings = type("Settings", (), {"smooth": False})()

        def extractor(self, extractor, seed):  # noqa: ARG002
            return extractor

        def collector(self, *_, **__):
            found = []

            class Collector:
                def update(self, features, folds):
                    found.append((features.clone(), folds.copy()))

                def head(self, fold, progress):  # noqa: ARG002
                    kept = [f[torch.from_numpy(folds != fold)] if fold is not None else f for f, folds in found]
                    return Head(torch.cat(kept).reshape(1, -1, 1, 1))

            return Collector()

    fitted = fit_closed_form(Nearest(), Images(), Extractor(), seed=0, progress=lambda *_: None, tiles=3)
    assert fitted.normal_scores.tolist() == [10, 10, 11, 12, 13]


def test_commands_work_on_tiles(edgead, tiled, large, tmp_path):
    model, bundle = tiled
    assert edgead("check", bundle, "--json").json["passed"] is True
    evaluated = edgead("eval", bundle, large, "--json")
    assert evaluated.code == 0, evaluated.err
    ran = edgead("run", bundle, "--source", large / "test", "--batch", "2", "--json").json
    assert ran["frames"]["inspected"] == 6
    assert ran["decisions"]["ANOMALY"] >= 3
    benched = edgead("bench", bundle, "--backend", "onnxruntime", "--frames", "3", "--frame-size", "320x256", "--json")
    assert benched.code == 0, benched.err
    for arguments, message in (
        (("--int8",), "fp32 only so far"),
        (("--onnx-only",), "a plain graph cannot say"),
    ):
        done = edgead("export", model, *arguments, "-o", tmp_path / ("x" if "only" in arguments[0] else "x.edgead"))
        assert done.code == 2
        assert message in done.error
    done = edgead("fit", large, "--detector", "dfc", "--tiles", "2x2", "-o", tmp_path / "m")
    assert done.code == 2
    assert "judges whole images" in done.error
    with Inspector.open(bundle, backend="onnxruntime") as judge:
        judge.swap(bundle)
