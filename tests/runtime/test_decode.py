"""Decoding rules: 16-bit, alpha, grey, palette, EXIF rotation, damaged files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.decode import decode_image, read_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_rgb_png_is_lossless():
    assert np.array_equal(decode_image(encode(Image.fromarray(RGB)), "a.png"), RGB)


def test_grey_becomes_three_equal_channels():
    decoded = decode_image(encode(Image.fromarray(RGB[:, :, 0])), "grey.png")
    assert np.array_equal(decoded, np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_is_shifted_not_clipped(kind):
    wide = (np.arange(240, dtype=np.uint16).reshape(12, 20) * 273).astype(np.uint16)
    decoded = decode_image(encode(Image.fromarray(wide), kind), "wide")
    assert np.array_equal(decoded[:, :, 0], (wide >> 8).astype(np.uint8))


def test_alpha_is_dropped_not_composited():
    rgba = np.dstack([RGB, np.zeros((12, 20), np.uint8)])
    assert np.array_equal(decode_image(encode(Image.fromarray(rgba)), "rgba.png"), RGB)


def test_palette_keeps_its_colours():
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode_image(encode(palette), "p.png"), np.asarray(palette.convert("RGB")))


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(Image.fromarray(RGB), exif=exif), "rotated.png")
    assert np.array_equal(decoded, np.rot90(RGB, -1))


def test_floats_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        decode_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "f.tif")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_files_are_refused_at_every_length(kind):
    data = encode(Image.fromarray(RGB), kind)
    for length in range(0, len(data) - 16, 7):
        with pytest.raises(DataError, match=r"x\.img"):
            decode_image(data[:length], "x.img")


def test_missing_empty_and_text_files(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_image(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="0 bytes"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="not a readable image"):
        read_image(tmp_path / "text.png")
