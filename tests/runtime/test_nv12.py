"""NV12 to RGB: the definition of the standards within a rounding, and the same bytes everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.nv12 import Standard, nv12_to_rgb

# Shares of red and blue in luma, from ITU-R BT.601 and BT.709.
SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def every_triple() -> tuple[np.ndarray, np.ndarray]:
    """A frame in which each of some 250 000 combinations of Y, U and V is a pixel."""
    values = np.array([*range(0, 256, 4), 255], np.uint8)
    y, u, v = (axis.ravel() for axis in np.meshgrid(values, values, values, indexing="ij"))
    luma = np.repeat(y[None], 2, axis=0).repeat(2, axis=1)
    return luma, np.stack([u, v], axis=1)[None]


@pytest.mark.parametrize("standard", ["bt601", "bt709"])
def test_it_is_the_standards_definition_within_half_a_step(standard: Standard) -> None:
    luma, chroma = every_triple()
    found = nv12_to_rgb(luma, chroma, standard)[0, ::2].astype(np.float64)
    red, blue = SHARES[standard]
    y = (luma[0, ::2].astype(np.float64) - 16) / 219
    u, v = (chroma[0].T.astype(np.float64) - 128) / 224
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    expected = np.clip(255 * np.stack([r, g, b], axis=1), 0, 255)
    assert np.abs(found - expected).max() < 0.51


def test_four_pixels_share_a_pair_and_odd_sizes_are_cut() -> None:
    random = np.random.default_rng(0)
    luma, chroma = np.full((5, 7), 120, np.uint8), random.integers(0, 256, (3, 4, 2), np.uint8)
    found = nv12_to_rgb(luma, chroma)
    assert found.shape == (5, 7, 3)
    assert found.dtype == np.uint8
    whole = nv12_to_rgb(np.full((6, 8), 120, np.uint8), chroma)
    assert np.array_equal(found, whole[:5, :7])
    assert np.array_equal(whole[::2, ::2], whole[1::2, 1::2])
    assert np.array_equal(whole[::2, ::2], whole[::2, 1::2])


def test_black_white_and_beyond() -> None:
    neutral = np.full((1, 2, 2), 128, np.uint8)
    found = nv12_to_rgb(np.array([[16, 235, 0, 255]], np.uint8), neutral)
    assert found[0, :, 0].tolist() == [0, 255, 0, 255]
    assert (found == found[:, :, :1]).all()


@pytest.mark.parametrize(
    ("luma", "chroma"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8)),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 3, 2), np.uint8)),
        (np.zeros((4, 4), np.uint16), np.zeros((2, 2, 2), np.uint8)),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 2, 2), np.uint8)),
        (np.zeros((4, 4, 1), np.uint8), np.zeros((2, 2, 2), np.uint8)),
    ],
)
def test_wrong_frames_are_refused(luma: np.ndarray, chroma: np.ndarray) -> None:
    with pytest.raises(DataError, match="an NV12 frame is"):
        nv12_to_rgb(luma, chroma)


def test_an_unknown_standard_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown colour standard 'bt606'\. Did you mean 'bt601'\?"):
        nv12_to_rgb(np.zeros((2, 2), np.uint8), np.zeros((1, 1, 2), np.uint8), "bt606")  # type: ignore[arg-type]
