"""Small procedural defects painted on good images: a label-free probe that a model still sees what it should.

Independent of any training-time synthesis. Used for the references of a bundle and for parity, never for a threshold.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

KINDS = ("scratch", "stain")


def plant(image: NDArray[np.uint8], kind: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one defect.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        kind: ``scratch`` (a thin bright or dark broken line) or ``stain`` (a soft discoloured blob).
        seed: chooses place, shape and contrast.

    Returns:
        The painted copy, and the mask ``(H, W)`` of what was changed.
    """
    rng = np.random.default_rng(seed)
    alpha = {"scratch": _scratch, "stain": _stain}[kind](image.shape[0], image.shape[1], rng)
    mean = float(image.mean())
    target = np.array([0.0, 0.0, 0.0]) if mean > 127 else np.array([255.0, 255.0, 255.0])
    if kind == "stain":
        target = target * 0.5 + rng.uniform(40, 215, 3) * 0.5
    mixed = image + alpha[:, :, None] * (target - image)
    painted = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return painted, (painted != image).any(axis=2)


def _scratch(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    length = 0.25 * min(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    points = [rng.uniform((0.35 * width, 0.35 * height), (0.65 * width, 0.65 * height))]
    for _ in range(3):
        angle += rng.normal(0, 0.35)
        points.append(points[-1] + length / 3 * np.array([np.cos(angle), np.sin(angle)]))
    ys, xs = np.mgrid[0:height, 0:width]
    distance = np.full((height, width), np.inf)
    for start, end in itertools.pairwise(points):
        along = end - start
        share = ((xs - start[0]) * along[0] + (ys - start[1]) * along[1]) / (along @ along)
        share = np.clip(share, 0, 1)
        distance = np.minimum(distance, np.hypot(xs - start[0] - share * along[0], ys - start[1] - share * along[1]))
    thickness = max(1.0, 0.008 * min(height, width))
    return 0.8 * np.clip(thickness + 0.5 - distance, 0, 1)


def _stain(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    center = rng.uniform((0.35 * width, 0.35 * height), (0.65 * width, 0.65 * height))
    radius = rng.uniform(0.05, 0.1) * min(height, width)
    ys, xs = np.mgrid[0:height, 0:width]
    theta = np.arctan2(ys - center[1], xs - center[0])
    wobble = 1 + 0.25 * np.sin(3 * theta + rng.uniform(0, 6)) + 0.15 * np.sin(5 * theta + rng.uniform(0, 6))
    distance = np.hypot(xs - center[0], ys - center[1]) / (radius * wobble)
    return np.asarray(0.7 * np.clip(1.5 - distance, 0, 1), np.float64)
