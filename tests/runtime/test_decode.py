"""Decoding rules: 16-bit, alpha, grey, palette, EXIF rotation, damaged files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import decode_image, look_at_bits, read_image

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


def test_a_file_of_several_pictures_is_refused_and_a_preview_behind_one_is_none():
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for kind in ("TIFF", "WEBP"):
        with pytest.raises(DataError, match="holds 2 pictures, of which one alone would be judged"):
            decode_image(encode(pages[0], kind, save_all=True, append_images=pages[1:]), "pages")
    copies = {"save_all": True, "append_images": [pages[1].resize((10, 6))], "tiffinfo": {254: 1}}  # reduced copies
    assert np.array_equal(decode_image(encode(pages[0], "TIFF", **copies), "a.tif"), RGB)
    phone = decode_image(encode(pages[0], "MPO", save_all=True, append_images=[pages[1]]), "phone.jpg")
    assert np.abs(phone.astype(int).mean(axis=(0, 1)) - RGB.mean(axis=(0, 1))).max() < 12


@pytest.mark.parametrize("largest", [100, 40_000, 100_000])
def test_32_bit_files_are_refused_whatever_they_hold(largest):
    values = np.linspace(0, largest, 80).astype(np.int32).reshape(8, 10)
    with pytest.raises(DataError, match="holds 32-bit values; save it with 8 or 16 bits a channel"):
        decode_image(encode(Image.fromarray(values), "TIFF"), "wide.tif")


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


# 16-bit files in which fewer bits carry the picture


def colour_png(values: np.ndarray) -> bytes:
    """Return ``(H, W, 3)`` uint16 as a PNG of 16 bits a channel, which Pillow reads but does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colour_tiff(values: np.ndarray, order: str) -> bytes:
    """Return ``(H, W, 3)`` uint16 as a TIFF of 16 bits a channel; ``order``: ``<`` or ``>``."""
    height, width = values.shape[:2]
    data = values.astype(f"{order}u2").tobytes()
    start = 8 + 2 + 10 * 12 + 4
    tags = [(256, width), (257, height), (258, start), (259, 1), (262, 2), (273, start + 6), (277, 3), (278, height)]
    tags += [(279, len(data)), (284, 1)]
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, 3, value) if tag == 258 else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + struct.pack(f"{order}IHHH", 0, 16, 16, 16) + data


def of_bits(bits: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(bits).integers(0, 1 << bits, shape).astype(np.uint16)
    values.flat[0] = (1 << bits) - 1
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_bits_that_carry_the_picture_are_kept(kind, bits):
    values = of_bits(bits, 12, 20)
    decoded = decode_image(encode(Image.fromarray(values), kind), "wide", bits)
    assert np.array_equal(decoded, np.repeat((values >> (bits - 8)).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["", "<", ">"])
def test_the_bits_of_colour_files_are_kept_too(order, bits):
    values = of_bits(bits, 12, 20, 3)
    data = colour_tiff(values, order) if order else colour_png(values)
    assert np.array_equal(decode_image(data, "wide", bits), values >> (bits - 8))


def test_eight_bit_files_are_read_as_they_are_whatever_the_bits():
    assert np.array_equal(decode_image(encode(Image.fromarray(RGB)), "a.png", 12), RGB)


@pytest.mark.parametrize("encoded", [lambda v: encode(Image.fromarray(v[:, :, 0])), colour_png])
def test_a_value_of_more_bits_is_refused_neither_clipped_nor_wrapped(encoded):
    values = np.zeros((4, 5, 3), np.uint16)
    values[2, 3] = 5000
    with pytest.raises(DataError, match=r"part\.png holds values up to 5000, and the model takes 12 bits") as caught:
        decode_image(encoded(values), "part.png", 12)
    assert "--bits 13" in str(caught.value)
    assert decode_image(encoded(values), "part.png", 13).max() == 5000 >> 5


@pytest.mark.parametrize("bits", [7, 17, 12.0, True, None])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ConfigError, match="a whole number from 8 to 16"):
        decode_image(encode(Image.fromarray(RGB)), "a.png", bits)


def test_wide_files_are_counted_with_their_largest_value(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "0.png")
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "1.tif")
    (tmp_path / "2.png").write_bytes(colour_png(np.full((4, 4, 3), 4095, np.uint16)))
    (tmp_path / "3.png").write_bytes(encode(Image.fromarray(of_bits(12, 9, 9)))[:40])  # broken
    Image.fromarray(np.full((4, 4), 800, np.uint16)).save(tmp_path / "4.png")
    files = sorted(tmp_path.iterdir())
    assert look_at_bits(files) == (3, 4095)
    assert look_at_bits(files, enough=500) == (1, 900)
    assert look_at_bits(files[:1]) == (0, 0)
