"""The fast resize equals its numpy reference byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.preprocess import resize, resize_reference, self_check

side = st.integers(1, 330)
target = st.integers(1, 160)


@settings(max_examples=120, deadline=None)
@given(side, side, target, target, st.sampled_from(["rgb", "bgr", "gray"]), st.integers(0, 2**31), st.booleans())
def test_fast_path_equals_reference(rows, columns, height, width, layout, seed, saturated):
    shape = (rows, columns) if layout == "gray" else (rows, columns, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if saturated:
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    fast = resize(image, height, width, layout)
    assert fast.shape == (height, width, 3)
    assert np.array_equal(fast, resize_reference(image, height, width, layout))


@pytest.mark.parametrize("size", [(1024, 1280), (1080, 1920), (448, 448), (380, 550), (257, 511)])
def test_camera_sizes_equal_reference(size):
    image = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(resize(image, 256, 256), resize_reference(image, 256, 256))


def test_layouts_agree():
    rgb = np.random.default_rng(6).integers(0, 256, (130, 97, 3), dtype=np.uint8)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    assert np.array_equal(resize(rgb, 64, 64), resize(bgr, 64, 64, "bgr"))
    gray = rgb[:, :, 0]
    as_rgb = np.repeat(gray[:, :, None], 3, axis=2)
    assert np.array_equal(resize(gray, 64, 64, "gray"), resize(as_rgb, 64, 64))


def test_reduction_is_antialiased():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 64, 64).astype(int) - 128).max() <= 1


def test_non_contiguous_input_and_same_size():
    image = np.random.default_rng(7).integers(0, 256, (64, 128, 3), dtype=np.uint8)[:, ::2]
    assert np.array_equal(resize(image, 64, 64), image)


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        (np.zeros((4, 4, 3), np.float32), "rgb"),
        (np.zeros((4, 4), np.uint8), "rgb"),
        (np.zeros((4, 4, 4), np.uint8), "bgr"),
        (np.zeros((4, 4, 3), np.uint8), "gray"),
        (np.zeros((0, 4, 3), np.uint8), "rgb"),
    ],
)
def test_wrong_arrays_are_refused(image, layout):
    with pytest.raises(DataError, match="must be"):
        resize(image, 8, 8, layout)


def test_self_check_passes_here():
    self_check()
