"""A part drawn with whole numbers alone, so that its pictures are the same to the bit on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.imaging.alignment import Alignment
from edgead.runtime.imaging.pose import SINE_BITS, TURN, UNIT, Pose, centroid, part_picture, sines, small_size, turned
from edgead.runtime.imaging.preprocess import resize

PART, DARK, GROUND = (70, 90, 60), (30, 40, 50), (190, 186, 180)


def draw_part(
    size: tuple[int, int],
    at: tuple[int, int],
    angle: int = 0,
    *,
    scale: int = 1,
    colours: tuple[tuple[int, int, int], ...] = (PART, DARK, GROUND),
    shape: str = "bolt",
    picture: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return a picture ``(H, W, 3)`` of a bolt: a shaft of 60 x 12 pixels with a head of 12 x 32 at its left end.

    Args:
        size: ``(width, height)``; at: the middle of the part, x and y; angle: in 1/1024 of a turn, clockwise.
        shape: ``bolt``, ``bar`` (72 x 20, its left end dark) or ``disc`` (of 44).
        picture: drawn onto, instead of a plain ground with a slight grain.
    """
    width, height = size
    if picture is None:
        y, x = np.mgrid[:height, :width]
        grain = ((x * 7919 + y * 104729 + (x * y) % 31 * 613) % 7)[..., None]
        picture = (np.array(colours[2]) - 3 + grain).astype(np.uint8)
    sine, cosine = int(sines()[angle % TURN]), int(sines()[(angle + TURN // 4) % TURN])
    inside, dark = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    for part in range(16):  # points of a pixel, so that edges are soft
        y, x = np.mgrid[:height, :width] * 8 + np.array([part // 4 * 2 + 1, part % 4 * 2 + 1])[:, None, None]
        right, down = x - 8 * at[0], y - 8 * at[1]
        u = (cosine * right + sine * down) // (scale << SINE_BITS)  # in 1/8 pixel
        v = (cosine * down - sine * right) // (scale << SINE_BITS)
        if shape == "disc":
            hit = u * u + v * v < (8 * 22) ** 2
            low = np.zeros_like(hit)
        elif shape == "bar":
            hit = (abs(u) < 8 * 36) & (abs(v) < 8 * 10)
            low = hit & (u < -8 * 18)
        else:
            head = (u >= -8 * 36) & (u < -8 * 24) & (abs(v) < 8 * 16)
            hit = head | ((u >= -8 * 24) & (u < 8 * 36) & (abs(v) < 8 * 6))
            low = head & (abs(v) < 8 * 4)
        inside += hit
        dark += low
    inside, dark = inside[..., None], dark[..., None]
    mixed = (16 - inside) * picture + (inside - dark) * np.array(colours[0]) + dark * np.array(colours[1])
    return ((mixed + 8) // 16).astype(np.uint8)


def align_to(picture: NDArray[np.uint8], *, minimum: int = 600, turns: bool = True) -> Alignment:
    """Return what aligns frames to one picture: the canvas and the window are the frame itself."""
    height, width = picture.shape[:2]
    small = part_picture(resize(picture, height, width), small_size((width, height)))
    x, y = centroid(small.part, int(small.part.sum()))
    pose, side = Pose(x, y, 0, 1000), 96
    everything = np.full((side, side), 255, np.uint8)
    middle = (
        round(width / 2 - x * width / (UNIT * small.part.shape[1])),
        round(height / 2 - y * height / (UNIT * small.part.shape[0])),
    )
    return Alignment(
        (width, height),
        (width, height),
        (*middle, width, height),
        turned(small.part, pose, side),
        turned(small.grey, pose, side),
        everything,
        minimum,
        turns,
    )


def digests() -> list[object]:
    """Return what every processor gives: digests of a frame, a template and the aligned bytes; pose and background."""
    align = align_to(draw_part((128, 112), (64, 56)))
    frame = draw_part((320, 256), (150, 140), 387, scale=2)
    large = replace(align, frame_size=(320, 256), canvas=(160, 128), window=(3, -2, 140, 150))
    canvas = large.to_canvas(frame)
    found = large.require(canvas)
    pictures = frame, np.concatenate(align.pictures), large.undo(canvas, found, 96, 128)
    short = [hashlib.sha256(picture.tobytes()).hexdigest()[:16] for picture in pictures]
    return [*short, *found.pose, *found.background.tolist()]
