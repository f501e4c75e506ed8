"""The one place where image files become pixels.

Libraries differ in what they do with 16-bit files, alpha and EXIF rotation, and such a difference between
training and the line changes decisions. So training, evaluation, checks and folder sources all decode here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.listing import IMAGE_SUFFIXES, list_images, require_normals

if TYPE_CHECKING:
    from PIL import Image


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


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read one image file.

    Returns:
        ``(H, W, 3)`` uint8 RGB, C-contiguous: EXIF rotation applied, 16-bit values shifted right by 8,
        alpha dropped (not composited), grey repeated to three channels, first page of multi-page files.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file held in memory; ``name`` is used in messages. Same rules as `read_image`."""
    from PIL import Image, ImageOps

    if not data:
        raise DataError(f"{name} is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) or opened
            return _to_rgb(image, name)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise DataError(
            f"{name} has more pixels than the {most} million that are read ({_reason(error)}); cut it into parts"
        ) from error
    except Exception as error:
        raise DataError(f"{name} is not a readable image ({_reason(error)}); replace or remove it") from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise DataError(f"{name} holds 32-bit values; save it with 8 or 16 bits a channel")
        return np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
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
