"""The one place where image files become pixels.

Libraries differ in what they do with 16-bit files, alpha and EXIF rotation, and such a difference between
training and the line changes decisions. So training, evaluation, checks and folder sources all decode here.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.listing import IMAGE_SUFFIXES, list_images, require_normals

if TYPE_CHECKING:
    from PIL import Image

ALL_BITS = 16  # of a 16-bit file's values, where nobody says that fewer carry the picture
FEWEST_BITS = 8
# An array does not say how many bits of it carry the picture, so the caller has to.
WIDE_HINT = "; shift its values as those of the training images: (image >> (bits - 8)).astype(np.uint8), 4 for 12 bits"

# How Pillow takes an 8-bit channel from 16 bits: the byte that it keeps -> the one that it leaves out.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class WideFiles(NamedTuple):
    """How many files have 16 bits a channel, and the largest value in them."""

    files: int
    largest: int


def require_bits(bits: object) -> int:
    """Return how many bits of a 16-bit file's values carry the picture; `ConfigError` where that is not 8 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not FEWEST_BITS <= bits <= ALL_BITS:
        raise ConfigError(f"--bits is a whole number from {FEWEST_BITS} to {ALL_BITS}, got {bits}")
    return bits


def find_images(paths: Sequence[str | Path], *, normals: bool = False) -> list[Path]:
    """Return the image files among and below ``paths``, each folder's sorted by relative path; masks are omitted.

    Args:
        paths: files and folders.
        normals: they must show normal parts only; the folder of a category is refused.

    Raises:
        DataError: a path does not exist, a folder holds no image, or is a category.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise DataError(f"{path} does not exist; check the path")
        if normals:
            require_normals(path)
        inside = list_images(path).paths
        if not inside:
            raise DataError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found.extend(inside)
    return found


def read_image(path: str | Path, bits: int = ALL_BITS) -> NDArray[np.uint8]:
    """Read one image file.

    Args:
        path: the file. ``~`` is the home folder.
        bits: how many bits of a 16-bit file's values carry the picture, 8 to 16: a camera of 12 bits leaves the upper
            4 empty. Files of 8 bits a channel are read as they are.

    Returns:
        ``(H, W, 3)`` uint8 RGB, C-contiguous: EXIF rotation applied, 16-bit values shifted right by ``bits - 8``,
        alpha dropped (not composited), grey repeated to three channels.

    Raises:
        DataError: the file is missing, empty, truncated or no image, or holds several pictures, values of more than
            ``bits`` bits or of 32 bits.
        ConfigError: ``bits`` is out of range.
    """
    path = Path(path).expanduser()
    return decode_image(_content(path), str(path), bits)


def decode_image(data: bytes, name: str, bits: int = ALL_BITS) -> NDArray[np.uint8]:
    """Decode an image file held in memory; ``name`` is used in messages. Same rules as `read_image`."""
    require_bits(bits)
    image, deep = _open(data, name)
    if image.mode.startswith("I") or (deep is not None and bits < ALL_BITS):
        values = _values(data, name, image, deep)
        largest = int(values.max(initial=0))
        if largest >> bits:
            raise DataError(
                f"{name} holds values up to {largest}, and the model takes {bits} bits (up to {(1 << bits) - 1}); "
                f"set the camera as for the training images, or fit with --bits {largest.bit_length()}"
            )
        narrow = (values >> (bits - FEWEST_BITS)).astype(np.uint8)
        return np.repeat(narrow[:, :, None], 3, axis=2) if narrow.ndim == 2 else narrow
    return _to_rgb(image, name)


def look_at_bits(paths: Iterable[Path], enough: int = 1 << ALL_BITS) -> WideFiles:
    """Count the files with 16 bits a channel, and find the largest value in them.

    Only headers are read of the others, and one file is in memory at a time. A file that cannot be read is left to who
    needs its picture.

    Args:
        enough: ends early where a value is that large; the count is then of the files up to there.
    """
    from PIL import Image

    count = largest = 0
    for path in paths:
        try:
            with Image.open(path) as opened:
                if not opened.mode.startswith("I") and _deep_mode(opened) is None:
                    continue
            data, name = _content(path), str(path)
            found = int(_values(data, name, *_open(data, name)).max(initial=0))
        except Exception:  # noqa: BLE001 - decoders raise what they like for damaged files
            continue
        count, largest = count + 1, max(largest, found)
        if largest >= enough:
            break
    return WideFiles(count, largest)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _open(data: bytes, name: str, raw_mode: str | None = None) -> tuple[Image.Image, str | None]:
    """Return the upright image, and the raw mode of a colour file of 16 bits a channel (None: it is none).

    Args:
        raw_mode: instead of the file's own.
    """
    from PIL import Image, ImageOps

    if not data:
        raise DataError(f"{name} is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            deep = _deep_mode(opened)
            pages = _pictures(opened)
            # 32 bits do not say which of them carry the picture.
            whole = opened.mode == "I" and opened.format == "TIFF" and 32 in opened.tag_v2.get(258, ())
            if raw_mode is not None:
                opened.tile = [_with_mode(tile, raw_mode) for tile in opened.tile]
            opened.load()
            upright = ImageOps.exif_transpose(opened) or opened
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise DataError(
            f"{name} has more pixels than the {most} million that are read ({_reason(error)}); cut it into parts"
        ) from error
    except Exception as error:
        raise DataError(f"{name} is not a readable image ({_reason(error)}); replace or remove it") from error
    if whole:
        raise DataError(f"{name} holds 32-bit values; save it with 8 or 16 bits a channel")
    if pages > 1:
        raise DataError(f"{name} holds {pages} pictures, of which one alone would be judged; save each as a file")
    return upright, deep


def _pictures(opened: Any) -> int:
    """Return how many pictures of its own a file holds; a smaller copy of the first, such as a thumbnail, is none."""
    count = int(getattr(opened, "n_frames", 1))
    if opened.format == "MPO":
        return 1  # a phone's JPEG with a preview or a depth map behind it
    if count == 1 or opened.format != "TIFF":
        return count
    first, own = opened.tell(), 0
    for page in range(count):
        opened.seek(page)
        # NewSubfileType: 1 is a reduced copy, 4 a mask.
        own += not int(opened.tag_v2.get(254, 0)) & 5
    opened.seek(first)
    return max(1, own)


def _deep_mode(opened: Any) -> str | None:
    """Return how Pillow reads a colour file of 16 bits a channel, keeping the upper 8, such as ``RGB;16B``."""
    tiles = getattr(opened, "tile", None)
    if not tiles or opened.mode.startswith("I"):
        return None
    arguments = tiles[0][3]
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) and ";16" in mode else None


def _with_mode(tile: Any, raw_mode: str) -> Any:
    codec, extents, offset, arguments = tile
    arguments = (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
    # Pillow 10 has plain tuples here, later versions a class.
    made = codec, extents, offset, arguments
    return made if type(tile) is tuple else type(tile)(*made)


def _values(data: bytes, name: str, image: Image.Image, deep: str | None) -> NDArray[np.int64]:
    """Return the values of a file with 16 bits a channel, ``(H, W)`` or ``(H, W, 3)``.

    Args:
        image, deep: what `_open` returned. Pillow keeps the upper byte of a colour; the other one is read anew.
    """
    if deep is None:
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise DataError(f"{name} holds 32-bit values; save it with 8 or 16 bits a channel")
        return wide
    kind, _, order = deep.partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_BYTE:
        raise DataError(
            f"{name} is a 16-bit file of the kind '{deep}'; save it as grey or RGB, or with 8 bits a channel"
        )
    lower, _ = _open(data, name, f"{kind};16{_OTHER_BYTE[order]}")
    upper, below = (np.asarray(one).astype(np.int64)[:, :, :3] for one in (image, lower))
    return (upper << 8) | below


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point values; save it with 8 or 16 bits a channel")
    if image.mode in ("P", "PA"):
        # A palette with transparency converts through RGBA, so that the colours survive and only alpha goes.
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "no known image format" if text.startswith("cannot identify image file") else text
