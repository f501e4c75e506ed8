"""What a fit learns of the part's pose: the template that it is found by, and the window that the network then sees.

No label and no defect is used. The template is the mean part picture of the normals, each in the pose that overlaps
most with the most typical of them; how well each overlaps with the mean of the *others* gives the least overlap of a
part that counts as found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.data import Category, Sample, prefetch
from edgead.fitting.audit import image_names
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.alignment import MOST_SIDE, Alignment
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.pose import (
    FULL,
    TURN,
    UNIT,
    Pose,
    Search,
    Small,
    centroid,
    part_picture,
    small_size,
    turned,
)
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.imaging.roi import Region

_FEWEST = 4  # normals
_CANDIDATES = 12  # normals one of which is the first template
_ROUNDS = 2
_LEAST = 24  # of 255: a mean part picture below it is dust of single images
# What overlaps by less than this share of the normals' median is not found, in the fit as on the line. Two parts in a
# frame overlap by at most 0.57 of what one does, and are refused; a part a third of which is missing is found still, so
# that the detector judges it: it is a defect, and no reason to look away.
_SHARE = 0.6
_CLEAR = 0.5  # a median overlap below it says that the normals share no shape
_BORDER = 0.35  # share of the border that a part which fills the frame covers, or more
_AREA = 0.7  # share of the frame; likewise
# A template that overlaps so much with itself in every angle has no axis. Discs reach 0.93 to 0.97 (pixels are square),
# a hexagon 0.87.
_ROUND = 0.91
_MARGIN = 1 / 12  # of the part's longer side, on all sides of it
_ANGLES = 64
# By so much all but a share of the aligned normals differ from the background where there is a part: grey levels,
# robust standard deviations, and of the part's own contrast, for it casts a shadow and shines on what it lies on.
_PALE, _FAR, _OF_PART, _MOSTLY = 8.0, 6.0, 0.15, 0.25
_SHOWN, _COMPARED = 0.5, 200  # share of the normals whose frames must reach a place; how many are compared
# A large frame is reduced to the canvas by a whole number that divides it, where canvas and network pixels then
# differ at most so much: 0.8 ms for 1280x1024 instead of 2.8.
_EVEN, _LARGE = 1.25, 1 << 19


@dataclass(frozen=True, slots=True)
class _Looks:
    """Of the normals ``(N, h, w)`` uint8 each: part pictures, grey values, distances from the background."""

    parts: NDArray[np.uint8]
    greys: NDArray[np.uint8]
    fars: NDArray[np.uint8]

    def some(self, chosen: NDArray[np.bool_]) -> _Looks:
        return _Looks(self.parts[chosen], self.greys[chosen], self.fars[chosen])


def learn_alignment(
    category: Category, region: Region | None, size: tuple[int, int]
) -> tuple[Alignment, dict[str, str]]:
    """Return how the part of a category is aligned, and the training images that do not show it: name -> why.

    Args:
        category: opened; its training images all have one size.
        region: the part of the images that is judged, without a mask; None: all of it.
        size: ``(height, width)`` of the network.

    Raises:
        ConfigError: the images show no part whose pose could be found: a texture, or one that fills the frame.
        DataError: an unreadable image, images of several sizes, or too few of them.
    """
    names = image_names([category])
    frame, looks = _read(category.train, region)
    omitted: dict[str, str] = {}
    kept = np.arange(len(looks.parts))
    while True:
        template, grey, turns, overlaps = _template(looks)
        median = float(np.median(overlaps))
        found = overlaps >= _SHARE * median
        if found.all() or found.sum() < _FEWEST:
            break
        # What is not found must not shape what the others are compared with.
        omitted |= {
            names[kept[index]]: f"the part to align overlaps by {overlaps[index] / FULL:.2f}, of the others "
            f"{float(np.median(overlaps[found])) / FULL:.2f}"
            for index in np.flatnonzero(~found)
        }
        kept, looks = kept[found], looks.some(found)
    covered = np.mean([_on_border(part) for part in looks.parts])
    area = float((looks.parts > 127).mean())
    if median < _CLEAR * FULL or covered > _BORDER or area > _AREA:
        raise ConfigError(
            "the images show no part whose pose can be found "
            f"(overlap {median / FULL:.2f}, on {covered:.0%} of the border, {area:.0%} of the image): --align is for "
            "parts before a plain background; omit it"
        )
    minimum = math.ceil(_SHARE * median)
    template, grey, belongs = _with_pale_parts(looks, template, grey, turns)
    canvas, window = _window(belongs | (template > 0), frame, size)
    return Alignment(frame, canvas, window, template, grey, _judged(template, belongs), minimum, turns), omitted


def _template(looks: _Looks) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bool, NDArray[np.int64]]:
    """Return the template with its grey values, whether it has an axis, and how much each normal overlaps with it."""
    template, grey = _first(looks)
    for _ in range(_ROUNDS):
        parts, greys = _aligned(looks, Search(template, grey, True), len(template))
        template, grey = _mean(parts, _LEAST), _mean(greys)
    turns = not _is_round(template, grey)
    return template, grey, turns, _left_out(looks, parts, grey, turns)


def _with_pale_parts(
    looks: _Looks, template: NDArray[np.uint8], grey: NDArray[np.uint8], turns: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the template and its grey values on a larger square where need be, and what belongs to the part.

    A part picture holds what stands out from the background by half of Otsu's threshold at least. An arm that is paler,
    or thinner than a small pixel, belongs to the part all the same: in most of the aligned normals it differs from the
    background. A shadow does not, it does not turn with the part.
    """
    search, side = Search(template, grey, turns), MOST_SIDE
    chosen = np.unique(np.linspace(0, len(looks.parts) - 1, _COMPARED).round().astype(int))
    poses = [search.find(looks.parts[index], looks.greys[index]) for index in chosen]
    fars = np.stack([turned(looks.fars[index], pose, side) for index, pose in zip(chosen, poses, strict=True)])
    full = np.full_like(looks.fars[0], 255)
    inside = np.stack([turned(full, pose, side) == 255 for pose in poses])
    # Where frames end, others say what is there.
    level = np.quantile(np.where(inside, fars, 255), _MOSTLY, axis=0)
    edge = (side - len(template)) // 2
    large, large_grey = np.pad(template, edge), np.pad(grey, edge, mode="edge")
    # Where few normals show anything, what they show is no rule.
    known = inside.mean(axis=0) > _SHOWN
    plain = level[known & (_near(large > 0) == 0)]
    belongs = large > 127
    if plain.size:
        usual = float(np.median(plain))
        spread = 1.4826 * float(np.median(np.abs(plain - usual)))
        own = _OF_PART * float(np.median(level[belongs])) if belongs.any() else 0.0
        belongs |= known & (level > usual + max(_PALE, _FAR * spread, own))
    rows, columns = np.nonzero(belongs | (large > 0))
    reach = math.ceil(max(np.abs(2 * rows + 1 - side).max(), np.abs(2 * columns + 1 - side).max()) / 2)
    cut = max(0, min(edge, side // 2 - reach))
    inner = slice(cut, side - cut)
    return large[inner, inner], large_grey[inner, inner], belongs[inner, inner]


def _read(samples: Sequence[Sample], region: Region | None) -> tuple[tuple[int, int], _Looks]:
    """Return width and height of the frames, and what the parts look like."""
    if len(samples) < _FEWEST:
        raise DataError(f"--align takes {_FEWEST} normal images at least, got {len(samples)}")

    def look(sample: Sample) -> tuple[tuple[int, int], Small]:
        image = read_image(sample.path, sample.bits)
        try:
            image = image if region is None else region.cut(image)
        except DataError as error:
            raise DataError(f"{sample.path}: {error}") from error
        height, width = image.shape[:2]
        small = small_size((width, height))
        # Twice as large first, as a canvas is larger than the small picture that is made of it.
        middle = resize(image, min(height, 2 * small[1]), min(width, 2 * small[0]))
        return (width, height), part_picture(middle, small)

    size, shown = None, []
    for sample, (found, one) in zip(samples, prefetch(look, samples), strict=True):
        size = size or found
        if found != size:
            raise DataError(
                f"{sample.path} is {found[0]}x{found[1]}, the images before it {size[0]}x{size[1]}; "
                "--align takes images of one size"
            )
        shown.append(one)
    assert size is not None
    return size, _Looks(*(np.stack([getattr(one, name) for one in shown]) for name in ("part", "grey", "far")))


def _first(looks: _Looks) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return part picture and grey values of the most typical normal, as a template: others overlap most with it."""
    step = max(1, len(looks.parts) // _CANDIDATES)
    chosen = range(0, len(looks.parts), step)[:_CANDIDATES]
    best, template = -1.0, None
    for index in chosen:
        if not looks.parts[index].any():
            continue
        one = _cut(looks.parts[index], looks.greys[index])
        search = Search(*one, True)
        median = float(np.median([search.find(looks.parts[i], looks.greys[i]).overlap for i in chosen if i != index]))
        if median > best:
            best, template = median, one
    if template is None:
        raise ConfigError("the images show nothing before a background, so there is no part to align; omit --align")
    return template


def _cut(part: NDArray[np.uint8], grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    x, y = centroid(part, int(part.sum()))
    rows, columns = np.nonzero(part)
    reach = float(np.hypot(rows + 0.5 - y / UNIT, columns + 0.5 - x / UNIT).max())
    side = min(2 * (math.ceil(reach) + 2), MOST_SIDE)
    pose = Pose(x, y, 0, FULL)
    return turned(part, pose, side), turned(grey, pose, side)


def _aligned(looks: _Looks, search: Search, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    poses = [search.find(part, grey) for part, grey in zip(looks.parts, looks.greys, strict=True)]
    parts = [turned(part, pose, side) for part, pose in zip(looks.parts, poses, strict=True)]
    greys = [turned(grey, pose, side) for grey, pose in zip(looks.greys, poses, strict=True)]
    return np.stack(parts), np.stack(greys)


def _mean(pictures: NDArray[np.uint8], least: int = 0) -> NDArray[np.uint8]:
    mean: NDArray[np.uint8] = np.rint(pictures.mean(axis=0)).astype(np.uint8)
    mean[mean < least] = 0
    return mean


def _left_out(looks: _Looks, parts: NDArray[np.uint8], grey: NDArray[np.uint8], turns: bool) -> NDArray[np.int64]:
    """Return for each normal its overlap with the mean of the others."""
    total, count = parts.sum(axis=0, dtype=np.int64), len(parts) - 1
    overlaps = []
    for index, own in enumerate(parts):
        others = np.rint((total - own) / count).astype(np.uint8)
        others[others < _LEAST] = 0
        pose = Search(others, grey, turns).find(looks.parts[index], looks.greys[index]) if others.any() else None
        overlaps.append(0 if pose is None else pose.overlap)
    return np.array(overlaps, np.int64)


def _is_round(template: NDArray[np.uint8], grey: NDArray[np.uint8]) -> bool:
    side = len(template)
    middle = side * UNIT // 2
    total = int(template.sum())
    search = Search(template, grey, False)
    for angle in range(TURN // _ANGLES, TURN, TURN // _ANGLES):
        again = turned(template, Pose(middle, middle, angle, FULL), side)
        if search.find(again, grey).overlap < _ROUND * FULL or abs(int(again.sum()) - total) > total // 16:
            return False
    return True


def _on_border(part: NDArray[np.uint8]) -> float:
    border = np.concatenate([part[0], part[-1], part[1:-1, 0], part[1:-1, -1]])
    return float((border > 127).mean())


def _judged(template: NDArray[np.uint8], belongs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return what is judged, 255: the part and a margin about what stands out, and a pixel about what is pale."""
    pale = np.pad(belongs, 1)
    around = [pale[y : y + len(belongs), x : x + len(belongs)] for y in range(3) for x in range(3)]
    judged = _near(template > 127)
    judged[np.logical_or.reduce(around)] = 255
    return judged


def _near(part: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return 255 on the part and within a margin about it, which is square."""
    rows, columns = np.nonzero(part)
    reach = math.ceil(_MARGIN * max(np.ptp(rows), np.ptp(columns))) if len(rows) else 0
    near = np.zeros(part.shape, np.uint8)
    for row, column in zip(rows, columns, strict=True):
        near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 255
    return near


def _window(
    part: NDArray[np.bool_], frame: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return canvas and window: the part with a margin, as large as the network's form allows."""
    height, width = size
    pixel = max(frame) / max(small_size(frame))  # frame pixels of a small one
    rows, columns = np.nonzero(part)
    half = len(part) / 2
    right, down = (columns + 0.5 - half) * pixel, (rows + 0.5 - half) * pixel
    box = right.min(), right.max(), down.min(), down.max()
    wide, high = box[1] - box[0], box[3] - box[2]
    margin = 2 * _MARGIN * max(wide, high) + pixel
    step = max((wide + margin) / width, (high + margin) / height)  # frame pixels of a network pixel
    # Never coarser than the frame as a whole would be.
    step = min(step, max(frame[0] / width, frame[1] / height))
    reduce = _reduction(frame, step)
    canvas = max(1, round(frame[0] / reduce)), max(1, round(frame[1] / reduce))
    scale, most = canvas[0] / frame[0], max(canvas)
    x, y = round((box[0] + box[1]) / 2 * scale), round((box[2] + box[3]) / 2 * scale)
    sides = (max(1, min(round(step * side * scale), 2 * (most - abs(at)))) for side, at in ((width, x), (height, y)))
    return canvas, (x, y, *sides)


def _reduction(frame: tuple[int, int], step: float) -> float:
    """Return how many frame pixels a canvas pixel has, 1 or more, for so many of a network pixel."""
    common = math.gcd(*frame)
    whole = [k for k in range(1, common + 1) if common % k == 0 and max(k / step, step / k) <= _EVEN]
    if whole and frame[0] * frame[1] >= _LARGE:
        return float(min(whole, key=lambda k: max(k / step, step / k)))
    return max(step, 1.0)
