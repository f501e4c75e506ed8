"""A made camera: textured parts moving over a belt, some with a planted defect. Needs numpy only."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Address, Clock, Source

DEFECTS = ("scratch", "spot", "chip", "stain")

_STEP = 7  # pixels the belt moves from frame to frame


class SyntheticSource(Source):
    """Delivers made frames in real time, like a camera that is triggered once a part.

    Parameters: ``width`` and ``height`` in pixels (640x480), ``fps`` (30), ``frames`` (0: without end), ``seed`` (0),
    ``defects``: the share of frames with a planted defect, 0 to 1 (0.1). The pixels of a frame depend on its index and
    these parameters alone (but for ``fps`` and ``frames``). A frame that is not taken in time delays the next ones, as
    with a camera without a buffer.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        parameters = address.parameters
        self.source_id = address.source_id
        self.live = True
        self.delivery = address.delivery
        self.width = parameters.integer("width", 640, 32, 8192)
        self.height = parameters.integer("height", 480, 32, 8192)
        self.fps = parameters.number("fps", 30.0, 0.01, 10_000.0)
        self.total = parameters.integer("frames", 0, 0, 10**12)
        self.seed = parameters.integer("seed", 0, 0, 2**32 - 1)
        self.rate = parameters.number("defects", 0.1, 0.0, 1.0)
        self._clock = clock
        self._closed = threading.Event()
        self._belt, self._part, self._shape = self._draw_scene()

    def frames(self) -> Iterator[Frame | BadFrame]:
        due = time.monotonic()
        for index in range(self.total) if self.total else itertools.count():
            image = self.render(index)
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return
            yield Frame(image, index, self._clock(), self.source_id)
            due = max(due + 1.0 / self.fps, time.monotonic())

    def close(self) -> None:
        self._closed.set()

    def defect_at(self, index: int) -> str | None:
        """Return the kind of defect planted in a frame, one of `DEFECTS`, or None: the ground truth."""
        return self._draw_defect(np.random.default_rng((self.seed, index)))

    def render(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of one frame, ``(height, width, 3)`` uint8 RGB."""
        rng = np.random.default_rng((self.seed, index))
        kind = self._draw_defect(rng)
        offset = (index * _STEP) % self.width
        image: NDArray[np.uint8] = self._belt[:, offset : offset + self.width].copy()
        rows, columns = self._shape.shape
        room = (self.height - rows) // 2
        top = room + int(rng.integers(-(room // 4), room // 4 + 1))
        part, shape = self._part + rng.integers(-4, 5), self._shape
        # Last, so that the rest of the frame is the same with and without it.
        if kind is not None:
            part, shape = _plant(kind, part, shape, rng)
        margin = self.width // 16
        room_x = self.width - columns - 2 * margin
        # The part swings to and fro, so that it is always wholly in view.
        phase = (index * _STEP) % (2 * room_x)
        left = margin + (phase if phase < room_x else 2 * room_x - phase)
        window = image[top : top + rows, left : left + columns]
        np.copyto(window, np.clip(part, 0, 255).astype(np.uint8), where=shape[:, :, None])
        return image

    def _draw_defect(self, rng: np.random.Generator) -> str | None:
        chance, kind = rng.random(), int(rng.integers(len(DEFECTS)))
        return DEFECTS[kind] if chance < self.rate else None

    def _draw_scene(self) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.bool_]]:
        """Return the belt (twice the width, so that it scrolls round), the part and its outline."""
        rng = np.random.default_rng(self.seed)
        belt = 52 + rng.normal(0, 5, (self.height, self.width)) + 4 * np.sin(np.arange(self.width) * 2 * np.pi / 16)
        belt = np.repeat(np.clip(belt, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        rows, columns = self.height * 5 // 8, self.width // 2
        # Brushed metal: noise that runs along the rows.
        grain = rng.normal(0, 1, (rows, columns + 32)).cumsum(axis=1)
        grain = (grain[:, 32:] - grain[:, :-32]) / np.sqrt(32)
        part = np.rint(150 + 9 * grain[:, :, None] + np.array([0, 2, 6])).astype(np.int16)
        y, x = np.mgrid[0:rows, 0:columns]
        radius = min(rows, columns) / 6
        beyond_y = np.maximum(np.abs(y - (rows - 1) / 2) - (rows / 2 - radius), 0)
        beyond_x = np.maximum(np.abs(x - (columns - 1) / 2) - (columns / 2 - radius), 0)
        shape = beyond_y**2 + beyond_x**2 <= radius**2
        for share in (0.22, 0.78):  # two drilled holes
            shape &= (y - rows / 2) ** 2 + (x - columns * share) ** 2 > (radius / 2) ** 2
        return np.concatenate([belt, belt], axis=1), part, shape


def _plant(
    kind: str, part: NDArray[np.int16], shape: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    rows, columns = shape.shape
    y, x = np.mgrid[0:rows, 0:columns]
    size = min(rows, columns)
    center_y, center_x = rng.uniform(0.35, 0.65) * rows, rng.uniform(0.35, 0.65) * columns
    part, shape = part.copy(), shape.copy()
    if kind == "scratch":
        angle, half = rng.uniform(0, np.pi), rng.uniform(0.15, 0.3) * size
        along = (x - center_x) * np.cos(angle) + (y - center_y) * np.sin(angle)
        across = (y - center_y) * np.cos(angle) - (x - center_x) * np.sin(angle)
        part[(np.abs(along) < half) & (np.abs(across) < max(1.0, size / 150))] += 75
    elif kind == "spot":
        part[(y - center_y) ** 2 + (x - center_x) ** 2 < (rng.uniform(0.03, 0.06) * size) ** 2] -= 90
    elif kind == "chip":
        side = rows if rng.random() < 0.5 else 0
        shape &= (y - side) ** 2 + (x - center_x) ** 2 > (rng.uniform(0.08, 0.15) * size) ** 2
    else:
        distance = ((y - center_y) ** 2 + (x - center_x) ** 2) / (rng.uniform(0.08, 0.14) * size) ** 2
        tint = np.exp(-distance)[:, :, None] * np.array([30, -10, -55])
        part += tint.astype(np.int16)
    return part, shape
