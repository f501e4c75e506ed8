"""The pose of a part in a frame, found and undone with whole numbers: the same bytes on every processor.

Rule ``pose-overlap/1``, stated step by step in docs/preprocess.md:

1. The frame is resized to a *canvas* whose pixels are about as large as the network's, and that to a *small* picture.
2. How far each small pixel is from the background's colour (the median of the border), against Otsu's threshold, gives
   the *part picture*: 0 background, 255 part, soft edges between.
3. The pose is what makes it overlap most with the *template*, the mean part picture of the normals: 64 angles around
   the centroid, the best of them refined. Poses that overlap alike, such as the two of a rectangle, are told apart
   by the grey values.
4. The canvas is read bilinearly along the pose, with weights of 6 bits a direction, its border repeated outside.

How much of the two pictures overlaps, of what either covers, says whether the part was found at all: two parts, none,
or one that is cut off overlap little. No function of libm and no sum of floats has a part in it: the sines are
integers, and only Otsu's quotients are doubles, one operation after the other.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Layout, Placement
from edgead.runtime.imaging.pose import (
    FULL,
    SINE_BITS,
    SMALL_SIDE,
    TURN,
    UNIT,
    Pose,
    Search,
    part_picture,
    sines,
    small_size,
)
from edgead.runtime.imaging.preprocess import resize

# How a reason begins, so that an evaluation can tell a part that is not there from a failure.
NOT_FOUND = "part not found"
MOST_SIDE = 2 * SMALL_SIDE  # of a template

_BITS = 16  # positions on the canvas are counted in 1/65536 of a pixel
_WEIGHT_BITS = 6
_LANE = 21  # bits of a colour channel where three are computed at once


class Found(NamedTuple):
    """What was found on a frame: the part's pose, and the colour ``(3,)`` uint8 of what it lies on."""

    pose: Pose
    background: NDArray[np.uint8]


class PartNotFound(DataError):  # noqa: N818 - it is a finding about the frame, as a reason of NOT_INSPECTED
    """The part is not in the frame, not alone, or not whole; the message is the reason that the result carries."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How frames are aligned.

    Attributes:
        frame_size: ``(width, height)`` of the frames, or of the region that is cut from them.
        canvas: ``(width, height)`` of the canvas in pixels.
        window: ``(x, y, width, height)`` of what the network sees in the template's pose, in canvas pixels; ``x, y``:
            its centre, from the template's.
        template: ``(n, n)`` uint8, the part picture that is looked for, its centre in the middle; n is even.
        grey: ``(n, n)`` uint8, the grey values of the part in that pose.
        judged: ``(n, n)`` uint8, above 127 what is judged: the part and what is near; farther away all is made plain.
        minimum: overlap below which the part counts as not found, in 1/`FULL`.
        turns: whether the angle is looked for; not where the part is round.

    Raises:
        ConfigError: sizes that do not belong together, or a template without a part.
    """

    frame_size: tuple[int, int]
    canvas: tuple[int, int]
    window: tuple[int, int, int, int]
    template: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    judged: NDArray[np.uint8]
    minimum: int
    turns: bool
    _kept: NDArray[np.bool_] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        side = self.template.shape[0]
        shapes = {self.template.shape, self.grey.shape, self.judged.shape}
        if shapes != {(side, side)} or side % 2 or side > MOST_SIDE:
            raise ConfigError(f"a template is square, of an even side of {MOST_SIDE} pixels at most; fit again")
        if not self.template.any():
            raise ConfigError("the template of the alignment shows no part; fit again")
        if min(self.canvas) < 1 or any(own > whole for own, whole in zip(self.canvas, self.frame_size, strict=True)):
            raise ConfigError(f"a canvas of {self.canvas} is no reduced frame of {self.frame_size}; fit again")
        x, y, width, height = self.window
        # Farther places would not fit into the 32 bits that they are computed in, and show nothing.
        if min(width, height) < 1 or max(2 * abs(x) + width, 2 * abs(y) + height) > 2 * max(self.canvas):
            raise ConfigError(f"a window of {self.window} does not lie about a canvas of {self.canvas}; fit again")
        if not 0 < self.minimum <= FULL:
            raise ConfigError(f"the least overlap lies between 1 and {FULL}, not {self.minimum}; fit again")

    @property
    def small(self) -> tuple[int, int]:
        """``(width, height)`` of the small picture."""
        return small_size(self.canvas)

    def to_canvas(self, image: NDArray[np.uint8], layout: Layout = "rgb") -> NDArray[np.uint8]:
        """Return a frame as the canvas ``(h, w, 3)`` uint8 RGB; raises `DataError` where it has another size."""
        width, height = self.frame_size
        if tuple(image.shape[:2]) != (height, width):
            raise DataError(
                f"the frame is {image.shape[1]}x{image.shape[0]}, but the model was aligned on frames of "
                f"{width}x{height}; set the camera to that size or fit the model anew"
            )
        return resize(image, self.canvas[1], self.canvas[0], layout)

    def find(self, canvas: NDArray[np.uint8]) -> Found:
        """Return what was found on a canvas, whatever its overlap."""
        part, grey, background, _ = part_picture(canvas, self.small)
        return Found(self.search.find(part, grey), background)

    def require(self, canvas: NDArray[np.uint8]) -> Found:
        """Return what was found on a canvas; raises `PartNotFound` where it overlaps too little."""
        found = self.find(canvas)
        pose = found.pose
        if pose.overlap < self.minimum:
            raise PartNotFound(
                f"{NOT_FOUND}: it overlaps by {pose.overlap / FULL:.3f} with what the normal parts look like, "
                f"needed are {self.minimum / FULL:.3f} (nothing there, several parts, or one that is cut off)"
            )
        return found

    def undo(self, canvas: NDArray[np.uint8], found: Found, height: int, width: int) -> NDArray[np.uint8]:
        """Return what the network sees: the window about the part, in the template's pose, the background plain.

        Returns:
            ``(height, width, 3)`` uint8 RGB.
        """
        where = self.rows_and_columns(found.pose, height, width)
        return warp(canvas, where, self.plain(height, width), found.background)

    def rows_and_columns(self, pose: Pose, height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return where on the canvas each pixel of the network lies: x and y ``(height, width)`` in 1/65536 pixel."""
        right, down = self._offsets(height, width)
        at_x, at_y = self.center(pose)
        sine, cosine = int(sines()[pose.angle % TURN]), int(sines()[(pose.angle + TURN // 4) % TURN])
        # The products need 64 bits, their sums 32: what is done for each pixel is done on half the bytes.
        to_x = (at_x + ((cosine * right) >> SINE_BITS)).astype(np.int32), ((sine * down) >> SINE_BITS).astype(np.int32)
        to_y = (at_y + ((sine * right) >> SINE_BITS)).astype(np.int32), ((cosine * down) >> SINE_BITS).astype(np.int32)
        return to_x[0][None, :] - to_x[1][:, None], to_y[0][None, :] + to_y[1][:, None]

    def _offsets(self, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how far columns and rows of the network lie from the template's centre, in 1/65536 canvas pixel."""
        middle_x, middle_y, over_x, over_y = self.window
        # 64 bits by name: numpy's own choice is 32 on some systems.
        right = ((2 * np.arange(width, dtype=np.int64) + 1 - width) * (over_x << (_BITS - 1))) // width + (
            middle_x << _BITS
        )
        down = ((2 * np.arange(height, dtype=np.int64) + 1 - height) * (over_y << (_BITS - 1))) // height + (
            middle_y << _BITS
        )
        return right, down

    def plain(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return the network's pixels ``(height, width)`` that are too far from the part to be judged.

        Kept, because it is the same for every frame.
        """
        if self._kept is None or self._kept.shape != (height, width):
            side = len(self.judged)
            right, down = self._offsets(height, width)
            columns, rows = (
                (at * small // canvas >> _BITS) + side // 2
                for at, small, canvas in zip((right, down), self.small, self.canvas, strict=True)
            )
            inside_x, inside_y = (columns >= 0) & (columns < side), (rows >= 0) & (rows < side)
            near = self.judged[np.clip(rows, 0, side - 1)[:, None], np.clip(columns, 0, side - 1)] > 127
            object.__setattr__(self, "_kept", ~(near & inside_x & inside_y[:, None]))
        assert self._kept is not None
        return self._kept

    def center(self, pose: Pose) -> tuple[int, int]:
        """Return the template's centre on the canvas, x and y in 1/65536 pixel."""
        (wide, high), (small_wide, small_high) = self.canvas, self.small
        scale = (1 << _BITS) // UNIT
        return pose.x * wide * scale // small_wide, pose.y * high * scale // small_high

    def place(self, pose: Pose) -> Placement:
        """Return where points of the frame lie in the window, for drawing."""
        middle_x, middle_y, over_x, over_y = self.window
        at_x, at_y = (value / (1 << _BITS) for value in self.center(pose))
        one = 1 << SINE_BITS
        sine, cosine = int(sines()[pose.angle % TURN]) / one, int(sines()[(pose.angle + TURN // 4) % TURN]) / one
        wide, high = self.canvas
        return (
            cosine * wide / over_x,
            sine * high / over_x,
            0.5 - (cosine * at_x + sine * at_y + middle_x) / over_x,
            -sine * wide / over_y,
            cosine * high / over_y,
            0.5 - (-sine * at_x + cosine * at_y + middle_y) / over_y,
        )

    def same(self, other: Alignment | None) -> bool:
        """Whether another alignment gives the same pictures."""
        if other is None:
            return False
        mine = (self.frame_size, self.canvas, self.window, self.minimum, self.turns)
        if mine != (other.frame_size, other.canvas, other.window, other.minimum, other.turns):
            return False
        return all(map(np.array_equal, self.pictures, other.pictures))

    @property
    def pictures(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Template, grey values, and what is judged."""
        return self.template, self.grey, self.judged

    @cached_property
    def search(self) -> Search:
        """What looks for the template."""
        return Search(self.template, self.grey, self.turns)


def warp(
    canvas: NDArray[np.uint8],
    where: tuple[NDArray[np.int32], NDArray[np.int32]],
    plain: NDArray[np.bool_],
    colour: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Return a canvas read bilinearly.

    Args:
        canvas: ``(H, W, 3)`` uint8.
        where: x and y ``(h, w)`` in 1/65536 pixel from the left upper corner; outside the border is repeated.
        plain: ``(h, w)``, what gets the colour ``(3,)`` uint8 instead.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    height, width = canvas.shape[:2]
    # All three channels in one number: a read and a multiplication do for them together.
    lanes = np.empty((height + 1, width + 1), np.uint64)
    lanes[:height, :width] = _packed(canvas)
    lanes[:height, width] = lanes[:height, width - 1]
    lanes[height] = lanes[height - 1]
    half, step = 1 << (_BITS - 1), _BITS - _WEIGHT_BITS
    x = np.minimum(np.maximum(where[0] - half, 0), (width - 1) << _BITS)
    y = np.minimum(np.maximum(where[1] - half, 0), (height - 1) << _BITS)
    right = ((x >> step) & ((1 << _WEIGHT_BITS) - 1)).astype(np.uint64)
    down = ((y >> step) & ((1 << _WEIGHT_BITS) - 1)).astype(np.uint64)
    at = (y >> _BITS) * (width + 1) + (x >> _BITS)
    one = np.uint64(1 << _WEIGHT_BITS)
    flat, left, up = lanes.ravel(), one - right, one - down
    total = (flat.take(at) * left + flat.take(at + 1) * right) * up
    at += width + 1
    total += (flat.take(at) * left + flat.take(at + 1) * right) * down
    rounding = 1 << (2 * _WEIGHT_BITS - 1)
    total += np.uint64(rounding | rounding << _LANE | rounding << 2 * _LANE)
    np.copyto(total, _packed(colour) << np.uint64(2 * _WEIGHT_BITS), where=plain)
    result = np.empty((*at.shape, 3), np.uint8)
    for channel in range(3):
        result[:, :, channel] = total >> np.uint64(channel * _LANE + 2 * _WEIGHT_BITS)
    return result


def _packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return three channels as one number, the last axis gone."""
    lanes: NDArray[np.uint64] = pixels[..., 2].astype(np.uint64) << np.uint64(2 * _LANE)
    lanes |= pixels[..., 1].astype(np.uint64) << np.uint64(_LANE)
    lanes |= pixels[..., 0]
    return lanes


def encode_template(align: Alignment) -> bytes:
    """Return the PNG that `decode_template` reads."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(align.pictures)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_template(png: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return `Alignment.pictures`, ``(n, n)`` uint8 each; nothing large is decoded.

    Raises:
        DataError: it is no image, or none of this form; ``name`` is for the message.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            (side, rows), mode = opened.size, opened.mode
            pixels = np.asarray(opened) if mode == "L" and rows == 3 * side and side <= MOST_SIDE else None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … for damaged files
        raise DataError(f"{name} is not a readable image") from error
    if pixels is None:
        raise DataError(f"{name} is {side}x{rows} '{mode}'; a template is grey, three times as high as wide")
    return pixels[:side], pixels[side : 2 * side], pixels[2 * side :]
