"""A frame as the network gets it: not one byte differs from Python's, whatever the frame is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.nv12 import nv12_to_rgb
from edgead.runtime.imaging.preprocess import resize_reference
from edgead.runtime.imaging.roi import Box
from edgead.runtime.inspection.inspector import Inspector
from tests.parts import align_to, draw_part
from tests.runtime.capi.bundles import write
from tests.runtime.capi.wrapper import CError, CInspector, Library, frame_of, nv12_frame

SIZES = [(8, 8), (32, 32), (64, 48), (100, 61), (224, 224), (256, 320)]
# Sides that divide the network's evenly, that hardly do, that are enlarged, and odd ones.
FRAMES = [(1, 1), (7, 300), (31, 45), (64, 96), (97, 131), (256, 256), (480, 640), (513, 771), (720, 1281)]
Both = tuple[CInspector, Inspector]


@pytest.fixture
def opened(capi: Library, tmp_path: Path) -> Iterator[Callable[..., Both]]:
    """A factory: a bundle of `write`, opened by both."""
    made: list[Any] = []

    def make(height: int, width: int, **changes: Any) -> Both:
        path = write(tmp_path / f"{len(made)}.edgead", height, width, **changes)
        made.extend((capi.open(path, threads=1), Inspector.open(path, backend="onnxruntime", threads=1)))
        return made[-2], made[-1]

    yield make
    for one in made:
        one.close()


def pictures(height: int, width: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Noise, and edges of full contrast, whose sums round most visibly."""
    generator = np.random.default_rng(seed)
    yield generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    yield (generator.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_layout_is_resized_alike(opened: Callable[..., Both], height: int, width: int) -> None:
    c, python = opened(height, width)
    for seed, (rows, columns) in enumerate(FRAMES):
        for picture in pictures(rows, columns, seed):
            grey = np.ascontiguousarray(picture[:, :, 0])
            for image, layout in ((picture, "rgb"), (picture, "bgr"), (grey, "gray")):
                expected = python.view.prepare(image, layout)  # type: ignore[arg-type]
                np.testing.assert_array_equal(c.prepare(frame_of(image, layout)), expected)


def test_it_is_the_rule_that_python_states_in_plain_numpy(opened: Callable[..., Both]) -> None:
    c, _ = opened(36, 52)
    for rows, columns in ((70, 53), (144, 208), (20, 700)):
        for picture in pictures(rows, columns):
            np.testing.assert_array_equal(c.prepare(frame_of(picture)), resize_reference(picture, 36, 52))


def test_rows_may_lie_apart(opened: Callable[..., Both]) -> None:
    c, python = opened(32, 40)
    (wide, _) = pictures(120, 200)
    cut = wide[5:101, 7:160]
    np.testing.assert_array_equal(c.prepare(frame_of(cut)), python.view.prepare(cut))
    grey = np.ascontiguousarray(wide[:, :, 1])[3:70, 11:150]
    np.testing.assert_array_equal(c.prepare(frame_of(grey, "gray")), python.view.prepare(grey, "gray"))


@pytest.mark.parametrize("standard", ["bt601", "bt709"])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (31, 45), (96, 128), (270, 481)])
def test_nv12_is_converted_alike(opened: Callable[..., Both], standard: Any, rows: int, columns: int) -> None:
    generator = np.random.default_rng(rows)
    luma = generator.integers(0, 256, (rows, columns + 3), dtype=np.uint8)[:, :columns]
    pairs = generator.integers(0, 256, ((rows + 1) // 2, (columns + 1) // 2 + 2, 2), dtype=np.uint8)
    chroma = pairs[:, : (columns + 1) // 2]
    frame = nv12_frame(luma, chroma, standard)
    rgb = nv12_to_rgb(luma, chroma, standard)
    c, python = opened(32, 40)
    np.testing.assert_array_equal(c.prepare(frame), python.view.prepare(rgb))
    if min(rows, columns) >= 31:
        # At odd places, where a pair of colours is halved.
        c, python = opened(24, 20, frame_size=(columns, rows), box=Box(5, 3, columns - 9, rows - 8))
        np.testing.assert_array_equal(c.prepare(frame), python.view.prepare(rgb))


def test_a_region_is_cut_and_what_is_ignored_painted(opened: Callable[..., Both]) -> None:
    mask = np.zeros((90, 140), np.uint8)
    mask[30:50, 60:100], mask[::7, ::5] = 255, 128
    for box, ignored in ((Box(11, 7, 101, 71), None), (Box(11, 7, 101, 71), mask), (None, mask)):
        c, python = opened(32, 48, frame_size=(140, 90), box=box, mask=ignored)
        for picture in pictures(90, 140):
            grey = np.ascontiguousarray(picture[:, :, 2])
            for image, layout in ((picture, "rgb"), (picture, "bgr"), (grey, "gray")):
                expected = python.view.prepare(image, layout)  # type: ignore[arg-type]
                np.testing.assert_array_equal(c.prepare(frame_of(image, layout)), expected)
        shape = c.shape()
        assert (shape.frame_width, shape.frame_height) == (140, 90)
        with pytest.raises(CError, match="FRAME_SIZE: the frame is 139x90, but the model's region"):
            c.prepare(frame_of(np.zeros((90, 139, 3), np.uint8)))


@pytest.mark.parametrize("tiles", [(1, 2, 1), (2, 3, 2), (4, 4, 3)])
def test_tiles_are_cut_at_the_same_pixels(opened: Callable[..., Both], tiles: tuple[int, int, int]) -> None:
    mask = np.zeros((211, 307), np.uint8)
    mask[100:120] = 255
    for region in ({}, {"frame_size": (307, 211), "box": Box(3, 9, 290, 199), "mask": mask}):
        c, python = opened(32, 48, tiles=tiles, **region)
        assert python.tiles is not None
        shape = c.shape()
        assert (shape.map_height, shape.map_width) == python.tiles.whole_grid
        assert shape.height == 32 * tiles[0] * tiles[1]
        for picture in pictures(211, 307):
            np.testing.assert_array_equal(c.prepare(frame_of(picture)), python.view.prepare(picture))
            result, expected = c.inspect(frame_of(picture)), python(picture)
            assert (result.score, result.decision) == (expected.score, expected.decision)
            np.testing.assert_array_equal(result.map, expected.map)
    c, _ = opened(32, 48, tiles=tiles)
    with pytest.raises(CError, match="FRAME_SIZE: a picture of 9x9 is too small for"):
        c.prepare(frame_of(np.zeros((9, 9, 3), np.uint8)))


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("shape", ["bolt", "bar", "disc"])
def test_an_aligned_part_is_found_and_turned_alike(opened: Callable[..., Both], shape: str, turns: bool) -> None:
    size = (200, 160)
    align = align_to(draw_part(size, (100, 80), shape=shape), turns=turns)
    c, python = opened(64, 80, align=align)
    found = 0
    for index in range(24):
        picture = draw_part(size, (70 + 3 * index, 60 + 2 * index), 43 * index, shape=shape)
        if index % 8 == 7:  # two of them, or none
            two = draw_part(size, (30, 40), shape=shape, picture=picture)
            picture = two if index % 16 == 7 else np.full_like(picture, 180)
        frame, reason = frame_of(picture), None
        try:
            expected = python.view.prepare(picture)
        except PartNotFound as error:
            reason = str(error)
        if reason is not None:
            with pytest.raises(CError) as caught:
                c.prepare(frame)
            assert (caught.value.status, caught.value.message) == ("NO_VALUE", reason)
            result = c.inspect(frame)
            assert (result.decision, result.reason, result.map) == ("NOT_INSPECTED", reason, None)
            assert np.isnan(result.score)
            continue
        found += 1
        np.testing.assert_array_equal(c.prepare(frame), expected)
        swapped = np.ascontiguousarray(picture[:, :, ::-1])
        np.testing.assert_array_equal(c.prepare(frame_of(swapped, "bgr")), expected)
    assert 0 < found < 24


@pytest.mark.parametrize("category", ["plate", "cell", "figure", "broken"])
def test_real_images_are_prepared_alike(opened: Callable[..., Both], made_images: Path, category: str) -> None:
    both = [opened(256, 256), opened(96, 128), opened(224, 224, tiles=(2, 2, 4))]
    files = sorted((made_images / category / "test").rglob("*.*"))
    assert len(files) > 20
    for file in files:
        picture = read_image(file)
        for c, python in both:
            np.testing.assert_array_equal(c.prepare(frame_of(picture)), python.view.prepare(picture))


def test_a_difference_would_be_seen(opened: Callable[..., Both]) -> None:
    c, python = opened(32, 32)
    (picture, _) = pictures(64, 64)
    expected = python.view.prepare(picture).copy()
    picture[10, 10, 1] ^= 0x80
    assert (c.prepare(frame_of(picture)) != expected).sum() == 1
