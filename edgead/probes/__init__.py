"""Procedural defects painted on good images: a label-free probe that a model still sees what it should.

Independent of every training-time synthesis, and made of nothing but the image itself and a seed. Used for the
references of a bundle, for parity and for ``edgead eval --probe``; never for a threshold.

- structural: ``scratch`` (thin broken line, one flank in shade), ``stain`` (soft discoloured blob with a rim), ``dent``
  (smooth hollow lit from one side), ``crack`` (thin dark branching line);
- logical: a ``missing``, ``duplicated``, ``moved`` or ``swapped`` part, where a part is what `edgead.probes.parts`
  finds in the image without any model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgead.probes import logical, structural
from edgead.probes.scene import Scene, read_scene
from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.imaging.roi import Region

__all__ = ["KINDS", "LOGICAL", "STRENGTHS", "STRUCTURAL", "Scene", "plant", "plant_in_region", "read_scene"]

_Paint = Callable[[NDArray[np.uint8], Scene, np.random.Generator, float], NDArray[np.uint8]]

_STRUCTURAL: dict[str, _Paint] = {
    "scratch": structural.scratch,
    "stain": structural.stain,
    "dent": structural.dent,
    "crack": structural.crack,
}
_LOGICAL: dict[str, _Paint] = {
    "missing": logical.missing,
    "duplicated": logical.duplicated,
    "moved": logical.moved,
    "swapped": logical.swapped,
}
STRUCTURAL = tuple(_STRUCTURAL)
LOGICAL = tuple(_LOGICAL)
KINDS = STRUCTURAL + LOGICAL

SMALLEST_SIDE = 32  # pixels; below, a defect is a handful of pixels and a part cannot be told from noise
STRENGTHS = (0.05, 4.0)
_ATTEMPTS = 8


def plant(
    image: NDArray[np.uint8], kind: str, seed: int, strength: float = 1.0, scene: Scene | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one defect on a copy of an image.

    The same image, kind, seed and strength give the same defect; no state is shared between calls. A defect lies on
    the part where the image shows one on a background, else anywhere.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, both sides at least 32 pixels; it is not changed.
        kind: one of `KINDS`.
        seed: 0 or more; chooses place, shape and tone.
        strength: visibility from 0.05 to 4. 1 is what an inspector sees at a glance, 0.4 what needs a second look.
            Scales contrast and size of structural kinds; of logical ones how much of a part is concerned and how far
            it moves, up to the whole part at 1.

        scene: `read_scene` of the same image, where several probes go onto one; None: it is read here.

    Returns:
        The painted copy, and the mask ``(H, W)`` of exactly the pixels that differ, never empty.

    Raises:
        ConfigError: an unknown kind, a negative seed, a strength out of range.
        DataError: another shape or dtype, an image too small, or, for a logical kind, one without any part or texture.
    """
    paint = (_STRUCTURAL | _LOGICAL).get(kind)
    if paint is None:
        raise ConfigError(f"there is no probe '{kind}'.{suggest(kind, KINDS)}")
    if seed < 0:
        raise ConfigError(f"the seed of a probe must be 0 or more, got {seed}")
    if not (math.isfinite(strength) and STRENGTHS[0] <= strength <= STRENGTHS[1]):
        raise ConfigError(f"the strength of a probe lies between {STRENGTHS[0]} and {STRENGTHS[1]}, got {strength}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"a probe needs an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    if min(image.shape[:2]) < SMALLEST_SIDE:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(
            f"defects can be planted from {SMALLEST_SIDE} pixels a side on, this image or region has {size}; "
            "scale the images up, or put narrow strips below each other"
        )
    scene = scene or read_scene(image)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng((zlib.crc32(kind.encode()), seed, attempt))
        painted = paint(image, scene, rng, strength)
        mask = (painted != image).any(axis=2)
        if mask.any():
            return painted, mask
    raise DataError(f"a '{kind}' changes nothing in this image, which is too uniform for it; leave the kind out")


def plant_in_region(
    image: NDArray[np.uint8],
    region: Region | None,
    kind: str,
    seed: int,
    strength: float = 1.0,
    scene: Scene | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one defect on the part of an image that a model judges; arguments and errors as `plant`.

    Args:
        region: the part; None: all of the image.
        scene: of ``region.cut(image)``.

    Returns:
        The painted copy of the whole image, and the mask of the region ``(box.height, box.width)``.
    """
    if region is None:
        return plant(image, kind, seed, strength, scene)
    part = region.cut(image)
    painted, mask = plant(np.ascontiguousarray(part), kind, seed, strength, scene)
    if region.ignore is not None:
        mask = mask & ~region.ignore
        if not mask.any():
            raise DataError(f"this '{kind}' lies wholly in what the region ignores; another seed may not")
    whole = image.copy()
    x, y, width, height = region.box
    whole[y : y + height, x : x + width][mask] = painted[mask]
    return whole, mask
