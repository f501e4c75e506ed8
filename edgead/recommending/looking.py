"""What can be seen of a part before anything is fitted: part or texture, how it lies, its detail, its light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.data import Category, Sample, prefetch
from edgead.data.survey import Survey
from edgead.data.training_images import TrainingImages
from edgead.fitting.aligning import learn_alignment
from edgead.probes import SMALLEST_SIDE, read_scene
from edgead.runtime.decision.baseline import picture_signals
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.pose import TURN, UNIT
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.imaging.view import View
from edgead.runtime.progress import Progress, silent

# Images that are read at their own size: parts of one kind are alike, so that a few say what they look like.
_LOOKED_AT = 32
# Beyond either, nine in ten parts lying within it, the part is tried with --align too.
_TURNED_DEG, _MOVED = 3.0, 0.03


@dataclass(frozen=True, slots=True)
class Look:
    """What the normal images look like.

    Attributes:
        images: how many there are. parts: without copies of each other. odd: images unlike the others.
        width, height: of the usual image, in pixels; one_size: whether all that were looked at have it.
        texture: no part stands out from a background.
        turned_deg: nine in ten parts are turned by no more than this from the usual pose; None: there is no part whose
            pose could be found, and ``no_pose`` says why.
        moved: likewise, the distance of its middle from the usual place, as a share of the longer side.
        lost_detail: share of the grey values' variance that is gone at network size, the median.
        brightness: lowest and highest mean grey value, 0 to 255.
    """

    images: int
    parts: int
    odd: int
    width: int
    height: int
    one_size: bool
    texture: bool
    turned_deg: float | None
    moved: float | None
    no_pose: str | None
    lost_detail: float
    brightness: tuple[float, float]

    @property
    def lies_anyhow(self) -> bool:
        """Whether parts are turned or moved by so much that undoing it is worth a trial."""
        return self.turned_deg is not None and (self.turned_deg > _TURNED_DEG or (self.moved or 0.0) > _MOVED)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lies_anyhow": self.lies_anyhow}


def look_at(category: Category, size: tuple[int, int], progress: Progress = silent) -> tuple[Look, Survey]:
    """Look at the training images of a category, at all of them at network size and at some at their own.

    Args:
        size: ``(height, width)`` of the network.

    Raises:
        DataError: an unreadable image.
    """
    found = TrainingImages(category.train, View(*size)).survey([len(category.train)], progress)[0]
    stray = {one.index for one in found.odd if one.stray}
    usual = [sample for index, sample in enumerate(category.train) if index not in stray] or list(category.train)
    samples = [usual[index] for index in spread(len(usual), _LOOKED_AT)]
    seen = list(prefetch(lambda sample: _one(sample, size), samples))
    sizes = [one.size for one in seen]
    width, height = max(set(sizes), key=sizes.count)
    turned, moved, why = _pose(category, samples, size)
    light = [one.brightness for one in seen]
    return Look(
        images=len(category.train),
        parts=found.parts,
        odd=len(found.odd),
        width=width,
        height=height,
        one_size=len(set(sizes)) == 1,
        texture=2 * sum(one.texture for one in seen) > len(seen),
        turned_deg=turned,
        moved=moved,
        no_pose=why,
        lost_detail=round(float(np.median([one.lost_detail for one in seen])), 4),
        brightness=(round(min(light), 1), round(max(light), 1)),
    ), found


def spread(count: int, most: int) -> list[int]:
    """Return at most so many of ``count`` indices, evenly."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


class _Seen(NamedTuple):
    size: tuple[int, int]
    texture: bool
    lost_detail: float
    brightness: float


def _one(sample: Sample, size: tuple[int, int]) -> _Seen:
    image = read_image(sample.path, sample.bits)
    height, width = image.shape[:2]
    # What is smaller is refused by the planting of defects, with a message of its own.
    texture = min(height, width) < SMALLEST_SIDE or read_scene(image).is_texture
    signals = picture_signals(image)
    return _Seen((width, height), texture, _lost(image, size), signals["brightness"])


def _lost(image: NDArray[np.uint8], size: tuple[int, int]) -> float:
    height, width = image.shape[:2]
    if height <= size[0] and width <= size[1]:
        return 0.0
    again = resize(resize(image, min(height, size[0]), min(width, size[1])), height, width)
    own = image.mean(axis=2)
    variance = float(own.var())
    return float((own - again.mean(axis=2)).var()) / variance if variance else 0.0


def _pose(
    category: Category, samples: Sequence[Sample], size: tuple[int, int]
) -> tuple[float | None, float | None, str | None]:
    try:
        align, _ = learn_alignment(replace(category, train=tuple(samples)), None, size)
    except (ConfigError, DataError) as error:
        return None, None, str(error)
    angles, places = [], []
    for sample in samples:
        pose = align.find(align.to_canvas(read_image(sample.path, sample.bits))).pose
        if pose.overlap >= align.minimum:
            angles.append(2 * np.pi * pose.angle / TURN)
            places.append((pose.x / UNIT, pose.y / UNIT))
    if not places:
        return None, None, "the part is found in none of the images"
    # The usual angle is the one that the others are nearest to: a mean of angles would be nothing for a part that lies
    # in all of them.
    apart = np.abs((np.subtract.outer(angles, angles) + np.pi) % (2 * np.pi) - np.pi)
    turned = float(np.degrees(np.quantile(apart, 0.9, axis=0).min()))
    away = np.linalg.norm(np.array(places) - np.median(places, axis=0), axis=1)
    return round(turned, 1), round(float(np.quantile(away, 0.9)) / max(align.small), 4), None
