"""Where a part is on a small picture and how it is turned, in whole numbers: the same on every processor.

The rule is stated step by step in docs/preprocess.md; `edgead.runtime.imaging.alignment` says what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.imaging.otsu import otsu
from edgead.runtime.imaging.preprocess import resize

SMALL_SIDE = 96  # pixels of the small picture's longer side
TURN = 1024  # angles are counted in 1/1024 of a turn, clockwise on the screen
UNIT = 16  # positions on the small picture are counted in 1/16 of a pixel
FULL = 1000  # overlaps are counted in 1/1000
SINE_BITS = 14

_COARSE = 64  # angles that are tried first
_CANDIDATES = 4
# Steps of the refinement, angle in 1/TURN and position in 1/UNIT, and about how many template pixels they look at. The
# first ones reach far: a part that lacks a third has its centre of mass elsewhere.
_FAR, _FEW_POINTS = ((16, 64), (16, 48), (8, 32)), 200
_NEAR, _POINTS = ((8, 16), (4, 8), (2, 4), (1, 2)), 600
_ALIKE = 32  # poses whose overlaps differ by less than 1/32 are told apart by grey values
_PI = 3141592653589793238462643383279502884197  # times 10**39

_THREE = np.array([0, -1, 1])

_Place = tuple[int, int, int]  # x, y and angle of a pose


class Pose(NamedTuple):
    """Where the part is.

    Attributes:
        x, y: the template's centre on the small picture, in 1/`UNIT` of a pixel from its left upper corner.
        angle: by how much the part is turned from the template, in 1/`TURN`, clockwise on the screen.
        overlap: of part picture and template, in 1/`FULL` of what either covers.
    """

    x: int
    y: int
    angle: int
    overlap: int


class Search:
    """Looks for one template; arguments as in `edgead.runtime.imaging.alignment.Alignment`."""

    def __init__(self, template: NDArray[np.uint8], grey: NDArray[np.uint8], turns: bool) -> None:
        self._turns = turns
        self._weight = int(template.sum())
        self._all, self._some, self._few = (
            _Points.of(slice(None, None, max(1, np.count_nonzero(template) // most)), template, grey)
            for most in (template.size, _POINTS, _FEW_POINTS)
        )

    def find(self, part: NDArray[np.uint8], grey: NDArray[np.uint8]) -> Pose:
        """Return the best pose of the template on a part picture ``(h, w)``; ``grey`` are the grey values there."""
        total = int(part.sum())
        height, width = part.shape
        if not total:
            return Pose(width * UNIT // 2, height * UNIT // 2, 0, 0)
        field = _Field.of(part)
        starts = self._coarse(field, centroid(part, total))
        tries = [self._refine(self._few, field, place, _FAR) for place in starts]
        alike = [self._refine(self._some, field, place, _NEAR) for place in _alike(tries)]
        close = _alike(alike)
        chosen = close[0] if len(close) == 1 else min(close, key=lambda place: self._unlike(grey, place))
        x, y, angle = chosen
        common = int(self._all.overlap(field, np.array([angle]), x, y).max())
        either = total + self._weight - common
        return Pose(x, y, angle % TURN, (common * FULL + either // 2) // either)

    def _coarse(self, field: _Field, start: tuple[int, int]) -> list[_Place]:
        """Return the places to go on from, the centroid in the best angles that beat their neighbours, best first."""
        if not self._turns:
            return [(*start, 0)]
        angles = np.arange(_COARSE) * (TURN // _COARSE)
        overlap = self._few.overlap(field, angles, *start)[:, 0]
        peaks = np.flatnonzero((overlap >= np.roll(overlap, 1)) & (overlap > np.roll(overlap, -1)))
        if not len(peaks):  # all the same
            peaks = np.array([0])
        order = peaks[np.argsort(-overlap[peaks], kind="stable")][:_CANDIDATES]
        return [(*start, int(angles[index])) for index in order]

    def _refine(
        self, points: _Points, field: _Field, place: _Place, steps: Sequence[tuple[int, int]]
    ) -> tuple[int, _Place]:
        """Return the best overlap and place after trying, for each step, the 27 places around the best so far."""
        best = -1
        for turn, shift in steps:
            angles = place[2] + turn * _THREE if self._turns else np.array([place[2]])
            overlap = points.overlap(field, angles, place[0], place[1], shift)
            which = int(overlap.argmax())  # the first of equals, which is the place itself
            best = int(overlap.flat[which])
            turned_to, (down, right) = int(angles[which // 9]), divmod(which % 9, 3)
            place = place[0] + shift * int(_THREE[right]), place[1] + shift * int(_THREE[down]), turned_to
        return best, place

    def _unlike(self, grey: NDArray[np.uint8], place: _Place) -> int:
        """Return how much the grey values differ from the template's where the part is, their means apart."""
        x, y = self._all.at(np.array([place[2]]))
        values = _Field.of(grey).read(*pixels(x + (place[0] << SINE_BITS), y + (place[1] << SINE_BITS)))[0]
        difference = values.astype(np.int64) - self._all.grey
        return int(np.abs(difference * len(difference) - difference.sum()).sum())


class _Points(NamedTuple):
    """Template pixels: twice their distance from the centre, part picture and grey value."""

    right: NDArray[np.int32]
    down: NDArray[np.int32]
    part: NDArray[np.uint8]
    grey: NDArray[np.int64]

    @classmethod
    def of(cls, picked: slice, template: NDArray[np.uint8], grey: NDArray[np.uint8]) -> _Points:
        """Return the pixels of a template that show the part, or of these what is picked."""
        rows, columns = (found[picked] for found in np.nonzero(template))
        side = len(template)
        right, down = ((2 * at + 1 - side).astype(np.int32) for at in (columns, rows))
        return cls(right, down, template[rows, columns], grey[rows, columns].astype(np.int64))

    def at(self, angles: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return where these lie about the centre: x and y ``(angles, points)`` in 2**-14 of 1/`UNIT` pixel."""
        table, half = sines(), np.int32(UNIT // 2)  # a half pixel
        sine, cosine = table[angles % TURN][:, None] * half, table[(angles + TURN // 4) % TURN][:, None] * half
        return cosine * self.right - sine * self.down, sine * self.right + cosine * self.down

    def overlap(self, field: _Field, angles: NDArray[np.int64], x: int, y: int, shift: int = 0) -> NDArray[np.int64]:
        """Return the sum over these pixels of the lesser of template and part picture.

        Returns:
            ``(angles, 1)`` at one place, or with a ``shift`` ``(angles, 9)`` at it and those around it.
        """
        moves = _THREE if shift else _THREE[:1]
        right, down = ((at + shift * moves).astype(np.int32) << SINE_BITS for at in (x, y))
        at_x, at_y = self.at(angles)
        columns, rows = pixels(at_x[:, None, :] + right[:, None], at_y[:, None, :] + down[:, None])
        read = field.read(columns[:, None, :, :], rows[:, :, None, :])
        total: NDArray[np.int64] = np.minimum(read, self.part).sum(axis=-1, dtype=np.int64)
        return total.reshape(len(angles), -1)


class _Field(NamedTuple):
    """A picture with a border of zeros, so that what lies outside reads as background."""

    flat: NDArray[np.uint8]
    width: int
    height: int

    @classmethod
    def of(cls, picture: NDArray[np.uint8]) -> _Field:
        height, width = picture.shape
        return cls(np.pad(picture, 1).ravel(), width + 2, height + 2)

    def read(self, x: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.uint8]:
        column = np.minimum(np.maximum(x + 1, 0), self.width - 1)
        row = np.minimum(np.maximum(y + 1, 0), self.height - 1) * self.width
        values: NDArray[np.uint8] = self.flat.take(row + column)
        return values


def _alike(tries: Sequence[tuple[int, _Place]]) -> list[_Place]:
    """Return the places whose overlap is about that of the best."""
    best = max(overlap for overlap, _ in tries)
    return [place for overlap, place in tries if overlap * _ALIKE >= best * (_ALIKE - 1)]


def pixels(x: NDArray[np.int32], y: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the pixels that places in 2**-14 of 1/`UNIT` pixel lie on."""
    shift = SINE_BITS + UNIT.bit_length() - 1
    return x >> shift, y >> shift


def turned(picture: NDArray[np.uint8], pose: Pose, side: int) -> NDArray[np.uint8]:
    """Return what of a small picture lies under a template of a pose: ``(side, side)`` uint8, 0 outside of it."""
    everything = np.ones((side, side), np.uint8)
    x, y = _Points.of(slice(None), everything, everything).at(np.array([pose.angle]))
    return _Field.of(picture).read(*pixels(x + (pose.x << SINE_BITS), y + (pose.y << SINE_BITS))).reshape(side, side)


def small_size(canvas: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of the small picture of a canvas: its longer side `SMALL_SIDE`, never enlarged."""
    longer = max(canvas)
    if longer <= SMALL_SIDE:
        return canvas
    width, height = (max(1, (2 * side * SMALL_SIDE + longer) // (2 * longer)) for side in canvas)
    return width, height


class Small(NamedTuple):
    """A small picture.

    Attributes:
        part: ``(h, w)`` uint8, what the part covers. grey: ``(h, w)`` uint8. background: ``(3,)`` uint8, its colour.
        far: ``(h, w)`` uint8, how far each pixel is from that colour.
    """

    part: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    background: NDArray[np.uint8]
    far: NDArray[np.uint8]


def part_picture(canvas: NDArray[np.uint8], small: tuple[int, int]) -> Small:
    """Return the part picture of a canvas, its grey values and the colour of the background.

    Args:
        canvas: ``(H, W, 3)`` uint8 RGB.
        small: ``(width, height)`` of the result.
    """
    picture = resize(canvas, small[1], small[0])
    border = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])
    background = np.sort(border, axis=0)[(len(border) - 1) // 2]
    # Planes, because numpy is slow where the innermost axis has three entries.
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    differences = (
        np.maximum(plane, own) - np.minimum(plane, own) for plane, own in zip(planes, background, strict=True)
    )
    far = reduce(np.maximum, differences)
    threshold = max(1, otsu(np.bincount(far.ravel(), minlength=256))[0])
    soft = (2 * np.arange(256) - threshold) * 255 // (2 * threshold)
    red, green, blue = planes.astype(np.uint16)
    grey = (red * np.uint16(77) + green * np.uint16(150) + blue * np.uint16(29) + np.uint16(128)) >> np.uint16(8)
    return Small(np.clip(soft, 0, 255).astype(np.uint8)[far], grey.astype(np.uint8), background, far)


@lru_cache(maxsize=1)
def sines() -> NDArray[np.int32]:
    """Return ``round(2**14 * sin)`` of `TURN` angles of a full turn, by whole numbers alone."""
    one = 10**39
    quarter = []
    for index in range(TURN // 4 + 1):
        angle = 2 * _PI * index // TURN
        term, total, power = angle, 0, 1
        while term:
            total += term
            term = -(abs(term) * angle // one * angle // one // ((power + 1) * (power + 2))) * (1 if term > 0 else -1)
            power += 2
        quarter.append((2 * total * (1 << SINE_BITS) + one) // (2 * one))
    half = quarter + quarter[-2:0:-1]
    return np.array(half + [-value for value in half], np.int32)


def centroid(part: NDArray[np.uint8], total: int) -> tuple[int, int]:
    """Return the centre of mass of a part picture in 1/UNIT pixel, rounded down."""
    values = part.astype(np.int64)
    height, width = part.shape
    x = int((values.sum(axis=0) * (2 * np.arange(width) + 1)).sum())
    y = int((values.sum(axis=1) * (2 * np.arange(height) + 1)).sum())
    return x * UNIT // (2 * total), y * UNIT // (2 * total)
