"""Forged defects: what they change, where, how large, and that a generator decides all of it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

from edgead.data import load_images, open_category
from edgead.runtime.errors import ConfigError, DataError
from edgead.synthesis import (
    CutPasteForger,
    FolderTextures,
    MixForger,
    ProceduralTextures,
    SalientForger,
    ShapeForger,
    is_grey,
    open_textures,
)
from edgead.synthesis.augment import _CHANGES, augment, grid_shuffle, jitter
from edgead.synthesis.forger import blend, drop_small, visible
from edgead.synthesis.perlin import _PERIOD, perlin, perlin_mask, random_perlin
from edgead.synthesis.saliency import object_saliency, otsu_threshold, salient_region, spectral_residual
from edgead.synthesis.salient import salient_mask
from edgead.synthesis.shapes import object_box
from edgead.synthesis.sheet import KINDS, check_kinds, contact_sheet, make_forgers
from edgead.synthesis.tiles import disturb_tiles

SIDE = 96


@pytest.fixture(scope="module")
def plates(made_images: Path) -> Any:
    samples = open_category(made_images / "plate", train_only=True).train[:6]
    return np.stack(list(load_images(samples, SIDE, SIDE)))


@pytest.fixture(scope="module")
def tiles(made_images: Path) -> Any:
    samples = open_category(made_images / "cell", train_only=True).train[:6]
    return np.stack(list(load_images(samples, SIDE, SIDE)))


@pytest.fixture(scope="module")
def textures() -> ProceduralTextures:
    return ProceduralTextures(SIDE, SIDE, bank=10)


# Noise


def slow_perlin(height: int, width: int, rng: np.random.Generator, cells: tuple[float, float], angle: float) -> Any:
    """The definition, pixel by pixel in float64."""
    turns = rng.uniform(0.0, 2.0 * math.pi, (_PERIOD, _PERIOD))
    offset = rng.uniform(0, _PERIOD, 2)
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            v, u = (row + 0.5) / height - 0.5, (column + 0.5) / width - 0.5
            y = (math.cos(angle) * v - math.sin(angle) * u) * cells[0] + offset[0]
            x = (math.sin(angle) * v + math.cos(angle) * u) * cells[1] + offset[1]
            top, left = math.floor(y), math.floor(x)
            total = 0.0
            for down in (0, 1):
                for right in (0, 1):
                    turn = turns[(top + down) % _PERIOD, (left + right) % _PERIOD]
                    dy, dx = y - top - down, x - left - right
                    weight = 1.0
                    for t in (abs(dy), abs(dx)):
                        weight *= 1.0 - (6 * t**5 - 15 * t**4 + 10 * t**3)
                    total += weight * (math.cos(turn) * dy + math.sin(turn) * dx)
            result[row, column] = math.sqrt(2.0) * total
    return result


def test_noise_is_what_the_definition_says() -> None:
    for seed, cells, angle in ((0, (4.0, 4.0), 0.0), (1, (1.0, 8.0), 0.7), (2, (32.0, 2.0), -1.3)):
        fast = perlin(12, 17, np.random.default_rng(seed), cells, angle)
        slow = slow_perlin(12, 17, np.random.default_rng(seed), cells, angle)
        np.testing.assert_allclose(fast, slow, atol=2e-5)


def test_noise_is_bounded_and_centred_and_masks_keep_to_their_least_part() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([random_perlin(64, 64, rng, (2, 4)) for _ in range(50)])
    assert np.abs(fields).max() <= 1.001
    assert abs(fields.mean()) < 0.02
    for _ in range(20):
        mask = perlin_mask(64, 64, rng, (0, 3), 0.4, least=12.0)
        assert mask.any()
        assert np.array_equal(mask, drop_small(mask, 12.0))


# Saliency


def test_otsus_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.2, 0.05, 700), rng.normal(0.7, 0.1, 300)])

    def within(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return float(len(low) * low.var() + len(high) * high.var())

    best = min(within(threshold) for threshold in np.linspace(values.min() + 1e-3, values.max() - 1e-3, 500))
    assert within(otsu_threshold(values)) <= 1.01 * best
    assert 0.35 < otsu_threshold(values) < 0.55
    assert otsu_threshold(np.full(5, 2.0)) == 2.0


def test_the_spectral_residual_finds_what_stands_out() -> None:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    image = np.repeat((128 + 40 * np.sin(columns / 3.0))[:, :, None], 3, 2).astype(np.uint8)
    image[60:72, 20:32] = rows[60:72, 20:32, None] * 3
    saliency = spectral_residual(image)
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    assert np.hypot(peak[0] - 66, peak[1] - 26) < 16
    assert (saliency.min(), saliency.max()) == pytest.approx((0.0, 1.0), abs=0.05)
    assert spectral_residual(np.full((64, 64, 3), 9, np.uint8)).min() == 1.0


def test_a_part_before_a_wall_is_salient_and_a_surface_is_all_over(plates: Any, tiles: Any) -> None:
    for plate in plates:
        region = salient_region(object_saliency(plate))
        blue = (plate[:, :, 2].astype(int) - plate[:, :, 0]) > 60
        assert (region & blue).sum() > 0.85 * blue.sum()
        assert (region & ~blue).sum() < 0.12 * (~blue).sum()
    for tile in tiles:
        assert salient_region(object_saliency(tile)).all()


# Forgers


def forgers(pool: Any, textures: Any) -> dict[str, Any]:
    return {
        "structural": MixForger(pool, textures, mode="structural"),
        "texture": MixForger(pool, textures, mode="texture"),
        "mix": MixForger(pool, textures, least_change=8),
        "salient": SalientForger(pool, textures),
        "shapes": ShapeForger(pool),
        "patches": ShapeForger(pool, small=1.0),
        "paste": CutPasteForger(pool, "paste"),
        "scar": CutPasteForger(pool, "scar"),
    }


NAMES = tuple(forgers(np.zeros((2, SIDE, SIDE, 3), np.uint8), None))


@pytest.mark.parametrize("name", NAMES)
def test_a_forgery_changes_its_mask_only_and_the_generator_decides_it(name: str, plates: Any, textures: Any) -> None:
    before = plates.copy()
    forger = forgers(plates, textures)[name]
    found = 0
    for seed in range(30):
        index = seed % len(plates)
        image, mask = forger(index, np.random.default_rng(seed))
        again, same = forger(index, np.random.default_rng(seed))
        assert np.array_equal(image, again)
        assert np.array_equal(mask, same)
        assert (image.dtype, image.shape, mask.dtype, mask.shape) == (np.uint8, (SIDE, SIDE, 3), bool, (SIDE, SIDE))
        if name not in ("mix", "salient"):  # whose masks omit what hardly changed
            assert np.array_equal(image[~mask], plates[index][~mask])
        found += bool(mask.any() and not np.array_equal(image, plates[index]))
    assert found >= 24
    assert np.array_equal(plates, before)
    other, _ = forger(0, np.random.default_rng(100))
    assert not np.array_equal(other, forger(0, np.random.default_rng(101))[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_grey_camera_took_stays_grey(name: str, tiles: Any) -> None:
    forger = forgers(tiles, open_textures(None, SIDE, SIDE, grey=True))[name]
    assert all(is_grey(forger(seed % len(tiles), np.random.default_rng(seed))[0]) for seed in range(20))


@pytest.mark.parametrize("kind", ["mix", "shapes", "paste"])
def test_masks_leave_out_what_hardly_changed(kind: str, plates: Any, textures: Any) -> None:
    # A plate's background that is filled with background is no defect.
    make: Any = {"mix": partial(MixForger, plates, textures), "shapes": partial(ShapeForger, plates)}
    make = make.get(kind, partial(CutPasteForger, plates, "paste"))
    strict, loose = make(least_change=8), make()
    differ = 0
    for seed in range(30):
        image, mask = strict(0, np.random.default_rng(seed))
        _, whole = loose(0, np.random.default_rng(seed))
        assert not (mask & ~whole).any()
        differ += mask.sum() < whole.sum()
        moved = np.abs(image.astype(int) - plates[0]).max(axis=2) >= 8
        assert mask[moved].all()
    assert differ > 5
    assert not visible(plates[0], plates[0], np.ones((SIDE, SIDE), bool), 8).any()


def test_salient_masks_lie_on_the_part_and_are_irregular(plates: Any) -> None:
    saliency = object_saliency(plates[0])
    region = salient_region(saliency)
    shares = []
    for seed in range(40):
        mask = salient_mask(saliency, region, np.random.default_rng(seed))
        assert not (mask & ~region).any()
        shares.append(mask.sum() / region.sum())
    assert 0 < min(shares) < 0.05
    assert 0.15 < max(shares) <= 0.31


def test_cut_pastes_have_the_sizes_of_the_paper(plates: Any) -> None:
    for seed in range(40):
        _, mask = CutPasteForger(plates, "paste")(0, np.random.default_rng(seed))
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        assert 0.015 < mask.mean() < 0.16
        _, scar = CutPasteForger(plates, "scar")(0, np.random.default_rng(seed))
        assert 4 <= scar.sum() <= 1.6 * (16 * SIDE / 256) * (25 * SIDE / 256) + 8


def test_shapes_lie_on_the_largest_object_mostly(plates: Any) -> None:
    box = object_box(plates[0])
    blue = np.argwhere((plates[0][:, :, 2].astype(int) - plates[0][:, :, 0]) > 60)
    assert np.abs(np.array(box) - [*blue.min(0), *(blue.max(0) + 1)]).max() <= 6
    forger = ShapeForger(plates)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[box[0] : box[2], box[1] : box[3]] = True
    hits = [bool((forger(0, np.random.default_rng(seed))[1] & inside).any()) for seed in range(40)]
    assert sum(hits) > 34


def test_small_patches_are_one_to_a_hundred_of_few_pixels(plates: Any) -> None:
    forger = ShapeForger(plates, small=1.0)
    counts = []
    for seed in range(40):
        labels, count = ndimage.label(forger(0, np.random.default_rng(seed))[1])
        counts.append(count)
        if count == 1:
            rows, columns = ndimage.find_objects(labels)[0]
            assert max(rows.stop - rows.start, columns.stop - columns.start) <= 16 * SIDE / 256
    assert 1 in counts
    assert max(counts) > 15


def test_tiles_are_shuffled_or_blanked_by_halves(plates: Any) -> None:
    seen = set()
    for seed in range(20):
        disturbed = disturb_tiles(plates[0], np.random.default_rng(seed))
        changed = (disturbed != plates[0]).any(axis=2).reshape(8, 12, 8, 12).any(axis=(1, 3))
        assert changed.sum() <= 32
        blank = bool((disturbed == 0).all(axis=2).reshape(8, 12, 8, 12).all(axis=(1, 3)).sum() >= 30)
        seen.add(blank)
        assert changed.sum() > 20
    assert seen == {True, False}


def test_blending_keeps_the_share_it_says() -> None:
    image, source = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 200, np.uint8)
    mask = np.array([[True, False], [False, False]])
    assert blend(image, source, mask, 0.75)[:, :, 0].tolist() == [[125, 100], [100, 100]]


# Textures and changes


@pytest.mark.parametrize("change", _CHANGES)
def test_every_change_gives_an_image_of_the_same_kind(change: Any, plates: Any) -> None:
    moved = 0
    for seed in range(6):
        result = change(plates[0], np.random.default_rng(seed))
        assert (result.dtype, result.shape) == (np.uint8, plates[0].shape)
        moved += not np.array_equal(result, plates[0])
    assert moved >= 4


def test_shuffling_tiles_keeps_every_pixel_and_jitter_is_slight(plates: Any) -> None:
    shuffled = grid_shuffle(plates[0], np.random.default_rng(0), 4, 8)
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(plates[0], axis=None))
    assert not np.array_equal(shuffled, plates[0])
    difference = jitter(plates[0], np.random.default_rng(0)).astype(int) - plates[0]
    assert 0 < np.abs(difference).max() < 50


def test_textures_come_from_the_folder_that_is_given(tmp_path: Path) -> None:
    Picture.fromarray(np.full((40, 50, 3), (200, 10, 10), np.uint8)).save(tmp_path / "red.png")
    drawn = FolderTextures(tmp_path, 32, 48)(np.random.default_rng(0))
    assert drawn.shape == (32, 48, 3)
    assert np.ptp(drawn.reshape(-1, 3), axis=0).max() <= 2  # a plain image stays plain, whatever its colour becomes
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "no folder of textures"), (tmp_path / "empty", "holds no image")):
        with pytest.raises(DataError, match=words):
            open_textures(str(folder), 32, 32)


def test_made_up_textures_differ_and_have_structure() -> None:
    source = ProceduralTextures(64, 64, bank=10)
    drawn = [source(np.random.default_rng(seed)) for seed in range(12)]
    assert all(texture.std() > 3 for texture in drawn)
    assert len({texture.tobytes() for texture in drawn}) == 12
    assert augment(drawn[0], np.random.default_rng(1)).shape == (64, 64, 3)


# The contact sheet


def test_the_sheet_shows_every_kind_on_every_image(plates: Any) -> None:
    made = make_forgers(plates[:2])
    assert tuple(made) == KINDS
    sheet = contact_sheet(made, range(2), 0)
    assert sheet.shape[1] == 4 * SIDE + 3 * 4
    assert sheet.shape[0] == len(KINDS) * (SIDE + 18)
    assert np.array_equal(sheet, contact_sheet(make_forgers(plates[:2]), range(2), 0))


def test_synth_writes_a_sheet_and_refuses_in_one_line(edgead: Any, made_images: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    outcome = edgead("synth", made_images / "figure", "-o", sheet, "--kinds", "scar,sgsf salient", "-n", "2", "--json")
    assert outcome.code == 0
    assert outcome.json["kinds"] == ["scar", "sgsf salient"]
    with Picture.open(sheet) as opened:
        assert opened.size == (4 * 128 + 3 * 4, 2 * (128 + 18))
    for arguments, words in (
        (("-o", tmp_path / "s.jpg"), "the sheet is a PNG"),
        (("-o", sheet, "--kinds", "scars"), "Did you mean 'scar'"),
        (("-o", sheet, "--textures", tmp_path / "none"), "no folder of textures"),
    ):
        refused = edgead("synth", made_images / "figure", *arguments)
        assert refused.code == 2
        assert words in refused.error


def test_a_pool_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        CutPasteForger(np.zeros((1, 8, 8, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no forgery"):
        check_kinds(["paste"])
