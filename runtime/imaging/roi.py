"""The part of a frame that is judged: a rectangle, and areas in it that are ignored. One code for training and camera.

A region is drawn on frames of one size and refuses any other, since it would lie somewhere else there. Ignored pixels
are painted with one grey before anything is computed, so nothing in them can move a score, by not even one bit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Layout
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.imaging.tiling import Tiles

# Close to the mean of the images that backbones were trained on, so that a filled area looks like padding to them. The
# same in all channels: grey, BGR and RGB frames are filled alike.
FILL = 116
MIN_SIDE = 8


class Box(NamedTuple):
    """A rectangle in pixels of the frame."""

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


@dataclass(frozen=True, eq=False)
class Region:
    """Where frames are judged.

    Attributes:
        frame_size: ``(width, height)`` of the frames it was drawn on.
        box: the rectangle; it lies inside the frame.
        ignore: ``(box.height, box.width)`` bool, True where nothing is judged; None: everything is.

    Raises:
        ConfigError: the box does not lie in the frame, or is narrower than 8 pixels; the mask has another size, or
            leaves nothing to judge.
    """

    frame_size: tuple[int, int]
    box: Box
    ignore: NDArray[np.bool_] | None = field(default=None)

    def __post_init__(self) -> None:
        width, height = self.frame_size
        x, y, columns, rows = self.box
        if min(x, y) < 0 or min(columns, rows) < MIN_SIDE or x + columns > width or y + rows > height:
            raise ConfigError(
                f"the region {self.box} (x,y,width,height) does not lie in a frame of {width}x{height}; "
                f"its sides have {MIN_SIDE} pixels at least"
            )
        if self.ignore is not None:
            if self.ignore.shape != (rows, columns):
                shape = f"{self.ignore.shape[1]}x{self.ignore.shape[0]}"
                raise ConfigError(f"the mask of a region of {columns}x{rows} pixels has {shape}; draw it again")
            if self.ignore.all():
                raise ConfigError("the mask ignores the whole region; white is what is ignored, black what is judged")

    @property
    def area(self) -> tuple[float, float, float, float]:
        """The box as shares of the frame: left, top, width, height."""
        (width, height), (x, y, columns, rows) = self.frame_size, self.box
        return x / width, y / height, columns / width, rows / height

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the part of a frame that is judged, ignored pixels painted over.

        Args:
            image: ``(H, W, 3)`` or ``(H, W)`` uint8 of the region's frame size.

        Returns:
            ``(box.height, box.width, 3)`` or ``(box.height, box.width)`` uint8; a view of ``image`` without a mask.

        Raises:
            DataError: the frame has another size.
        """
        self.require_size(image.shape)
        x, y, width, height = self.box
        cropped = image[y : y + height, x : x + width]
        if self.ignore is None:
            return cropped
        keep, fill = self._planes if image.ndim == 2 else self._colour_planes
        painted: NDArray[np.uint8] = np.bitwise_and(cropped, keep)
        painted |= fill
        return painted

    def require_size(self, shape: tuple[int, ...]) -> None:
        """Raise `DataError` unless ``shape`` ``(H, W, …)`` is that of the frames the region was drawn on."""
        width, height = self.frame_size
        if tuple(shape[:2]) != (height, width):
            raise DataError(
                f"the frame is {shape[1]}x{shape[0]}, but the model's region was drawn on frames of {width}x{height}; "
                "set the camera to that size or fit the model anew"
            )

    @cached_property
    def _planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        assert self.ignore is not None
        return np.where(self.ignore, 0, 255).astype(np.uint8), np.where(self.ignore, FILL, 0).astype(np.uint8)

    @cached_property
    def _colour_planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        # Repeated once, because numpy is slow where the innermost axis has three entries.
        keep, fill = self._planes
        return np.repeat(keep[..., None], 3, axis=2), np.repeat(fill[..., None], 3, axis=2)

    def same(self, other: Region | None) -> bool:
        """Whether another region judges the same pixels."""
        if other is None or (self.frame_size, self.box) != (other.frame_size, other.box):
            return False
        if self.ignore is None or other.ignore is None:
            return self.ignore is other.ignore
        return bool(np.array_equal(self.ignore, other.ignore))


def prepare(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    layout: Layout = "rgb",
    region: Region | None = None,
    tiles: Tiles | None = None,
) -> NDArray[np.uint8]:
    """Return a frame as the network gets it: cut to its region, perhaps into tiles, and resized.

    Arguments and errors as `resize`, `Region.cut` and `Tiles.cut`; returns ``(height, width, 3)`` uint8 RGB, of tiles
    as many below each other.
    """
    part = image if region is None else region.cut(image)
    if tiles is None:
        return resize(part, height, width, layout)
    return tiles.cut(part, lambda tile: resize(tile, height, width, layout))


def parse_box(text: str) -> Box:
    """Return the box of ``x,y,width,height`` in pixels; raises `ConfigError`."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise ConfigError(f"--roi takes x,y,width,height in pixels, such as 200,100,640,480, not '{text}'")
    return Box(*map(int, parts))


def make_region(frame_size: tuple[int, int], box: Box | None, mask: NDArray[np.uint8] | None) -> Region | None:
    """Return the region of a box and a mask of the whole frame, None where neither is given.

    Args:
        frame_size: ``(width, height)`` of the frames.
        box: None: the whole frame.
        mask: ``(H, W)`` uint8 of the frame's size, ignored where it is above 127, as `decode_mask` returns it.

    Raises:
        ConfigError: as `Region`.
    """
    if box is None and mask is None:
        return None
    box = box or Box(0, 0, *frame_size)
    ignore = None
    if mask is not None:
        ignore = np.ascontiguousarray(mask[box.y : box.y + box.height, box.x : box.x + box.width] > 127)
        if not ignore.any():
            ignore = None
    return Region(frame_size, box, ignore)


def decode_mask(png: bytes, name: str, frame_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask of a frame as ``(H, W)`` uint8, ignored where it is above 127.

    Args:
        png: an image file; nothing of it is decoded where it has another size than the frame.
        name: for messages.
        frame_size: ``(width, height)``.

    Raises:
        ConfigError: the mask has another size.
        DataError: it is no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as opened:
            size = opened.size
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … for damaged files
        raise DataError(f"{name} is not a readable image; draw it again as PNG") from error
    if size != tuple(frame_size):
        raise ConfigError(
            f"the mask {name} is {size[0]}x{size[1]}, the frames are {frame_size[0]}x{frame_size[1]}; "
            "draw it on a frame"
        )
    return np.ascontiguousarray(decode_image(png, name).max(axis=2))


def encode_mask(region: Region) -> bytes | None:
    """Return the PNG that `decode_mask` reads, None where nothing is ignored."""
    from PIL import Image

    if region.ignore is None:
        return None
    width, height = region.frame_size
    x, y, columns, rows = region.box
    whole = np.zeros((height, width), np.uint8)
    whole[y : y + rows, x : x + columns] = np.where(region.ignore, 255, 0)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG")
    return buffer.getvalue()
