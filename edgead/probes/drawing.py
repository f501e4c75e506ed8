"""Lines that bend, break and branch, drawn with soft edges; soft noise. Nothing here knows what is painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.probes.scene import Scene, Window

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line of changing width and density."""

    points: _Floats  # (P, 2) row and column in the image
    half_width: _Floats  # (P,) pixels
    ink: _Floats  # (P,) 0 to 1


def walk(place: _Floats, heading: float, length: float, bend: float, jitter: _Floats) -> _Floats:
    """Return points of a bent line of a length whose middle is at a place."""
    share = np.linspace(-0.5, 0.5, len(jitter))
    angles = heading + bend * share + jitter
    steps = length / len(jitter) * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return np.asarray(points - points[len(points) // 2] + place)


def jagged(place: _Floats, heading: float, length: float, rng: np.random.Generator, levels: int = 5) -> _Floats:
    """Return points of a line broken again and again beside the middle of each piece."""
    ahead = 0.5 * length * np.array([np.sin(heading), np.cos(heading)])
    points = np.stack([place - ahead, place + ahead])
    for level in range(levels):
        middles = (points[1:] + points[:-1]) / 2
        along = points[1:] - points[:-1]
        aside = np.stack([-along[:, 1], along[:, 0]], axis=1)
        middles += aside * rng.normal(0, 0.2 * 0.95**level, (len(aside), 1))
        woven = np.empty((len(points) + len(middles), 2))
        woven[0::2], woven[1::2] = points, middles
        points = woven
    return points


def wander(rng: np.random.Generator, count: int) -> _Floats:
    """Return a smooth random course of about unit deviation."""
    raw = np.convolve(rng.normal(0, 1, count + 4), np.array([1, 2, 3, 2, 1]) / 9, mode="valid")
    return np.asarray(np.clip(raw / 0.48, -2, 2))


def taper(count: int, share: float) -> _Floats:
    """Return 1 in the middle, falling to 0 at both ends over a share of the length."""
    ends = np.minimum(np.arange(count), np.arange(count)[::-1]) / max(1.0, share * (count - 1))
    return smooth_step(np.minimum(ends + 0.08, 1.0))


def smooth_step(values: _Floats) -> _Floats:
    clipped = np.clip(values, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped))


def cloud(window: Window, place: _Floats, radius: float, rng: np.random.Generator) -> _Floats:
    """Return soft noise in [-1, 1] with features down to a sixth of the radius, fixed to the place."""
    total = np.zeros(window.shape)
    rows, columns = window.grid()
    for cells, weight in ((4, 0.6), (8, 0.3), (16, 0.15)):
        values = rng.uniform(-1, 1, (cells + 4, cells + 4))
        # The lattice spans twice the radius to either side of the place, whatever the window was clipped to.
        down = np.clip((rows[:, 0] - place[0]) / (4 * radius) + 0.5, 0, 1) * cells + 1
        right = np.clip((columns[0] - place[1]) / (4 * radius) + 0.5, 0, 1) * cells + 1
        total += weight * _lattice(values, down, right)
    return np.clip(total, -1, 1)


def _lattice(values: _Floats, down: _Floats, right: _Floats) -> _Floats:
    above, before = np.floor(down).astype(np.intp), np.floor(right).astype(np.intp)
    lower, later = smooth_step(down - above)[:, None], smooth_step(right - before)[None, :]
    top = values[above][:, before] * (1 - later) + values[above][:, before + 1] * later
    bottom = values[above + 1][:, before] * (1 - later) + values[above + 1][:, before + 1] * later
    return np.asarray(top * (1 - lower) + bottom * lower)


def around(scene: Scene, points: _Floats, margin: float) -> Window:
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    top, left = (int(max(0, np.floor(value))) for value in low)
    bottom, right = min(scene.height, int(np.ceil(high[0])) + 1), min(scene.width, int(np.ceil(high[1])) + 1)
    return Window(top, left, max(bottom, top + 1), max(right, left + 1))


def draw(window: Window, strokes: Sequence[Stroke]) -> _Floats:
    """Return the coverage (0 to 1) of strokes, each piece computed only where it can be seen."""
    covered = np.zeros(window.shape)
    for stroke in strokes:
        for first in range(len(stroke.points) - 1):
            start, end = stroke.points[first], stroke.points[first + 1]
            reach = max(stroke.half_width[first], stroke.half_width[first + 1]) + 1
            top, left = (int(np.floor(value - reach)) for value in np.minimum(start, end))
            bottom, right = (int(np.ceil(value + reach)) + 1 for value in np.maximum(start, end))
            part = Window(
                max(top, window.top), max(left, window.left), min(bottom, window.bottom), min(right, window.right)
            )
            if part.top >= part.bottom or part.left >= part.right:
                continue
            rows, columns = part.grid()
            along = end - start
            share = (rows - start[0]) * along[0] + (columns - start[1]) * along[1]
            share = np.clip(share / max(float(along @ along), 1e-9), 0, 1)
            away = np.hypot(rows - start[0] - share * along[0], columns - start[1] - share * along[1])
            half = stroke.half_width[first] * (1 - share) + stroke.half_width[first + 1] * share
            ink = stroke.ink[first] * (1 - share) + stroke.ink[first + 1] * share
            # A line thinner than a pixel covers a share of it.
            alpha = ink * np.clip(half + 0.5 - away, 0, 1) * np.minimum(1, 2 * half)
            inner = (
                slice(part.top - window.top, part.bottom - window.top),
                slice(part.left - window.left, part.right - window.left),
            )
            covered[inner] = np.maximum(covered[inner], alpha)
    return covered
