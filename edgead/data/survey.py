"""What the training images look like before anything is fitted: copies of each other, and images unlike the rest.

*Copies.* Of each image the fine detail is taken, grey minus its 3x3 mean, brought to one length, and the mean of all
images subtracted: what is left is this part's texture and this shot's noise. In copies (also brightened, or compressed
again) it agrees, in shots of different parts it does not. Measured at 256 pixels, the highest correlation between two
training images: toy .15, metal plate .19, tile .68, solar cells .86, screw .62 (and one pair of .93, the same screw at
another exposure). Copies: equal 1, brightened .95 to 1, JPEG at quality 90 .87 to .98 (solar cells .66 to .96), at 75
.68 to .97 (.55 to .94). So noisy images that were compressed again are found in part only, and a copy that was moved is
not. A median in place of the mean would lose the copies where most images are copies of one.

*Images unlike the rest.* Brightness and focus (see `picture_signals`) far outside of what the others have, images on
which there is nothing to see, as the first frame of many cameras, and sizes that few images have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.decision.baseline import picture_signals
from edgead.runtime.decision.stray import SHOWS_NOTHING, contrast, empty_images

# Correlation of details above which two images are copies, and how many pixels it is taken from.
_SAME = 0.88
_PIXELS = 8192
# Robust standard deviations from the median, and the least that counts as one: 1 grey level, 5 % of the focus.
_FAR = 8.0
_LEAST_BRIGHTNESS, _LEAST_FOCUS = 1.0, 0.05
_FEW = 0.1  # share of the images below which a size is odd
_ROWS = 512  # images compared at a time


@dataclass(frozen=True, slots=True)
class Odd:
    """An image unlike the others.

    Attributes:
        index: of the image.
        why: one clause, such as ``its brightness is 3, of the others 98 to 120``.
        stray: it shows no part, so that nothing should be learned from it.
    """

    index: int
    why: str
    stray: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look at all training images found.

    Attributes:
        groups: ``(n,)`` group number of each image, from 0 in the order of the first members; copies share one.
        odd: images unlike the others, one reason each, by index.
    """

    groups: NDArray[np.int64]
    odd: tuple[Odd, ...]

    @property
    def copies(self) -> list[list[int]]:
        """The indices of each group of several images."""
        members: dict[int, list[int]] = {}
        for index, group in enumerate(self.groups.tolist()):
            members.setdefault(group, []).append(index)
        return [group for group in members.values() if len(group) > 1]

    @property
    def parts(self) -> int:
        """How many images there are without their copies."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0


def survey(images: Iterable[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]) -> Survey:
    """Look at every image once.

    Args:
        images: ``(h, w, 3)`` uint8 at network size, all of one size.
        sizes: native ``(height, width)`` of each.
    """
    details: list[NDArray[np.float32]] = []
    signals: list[Mapping[str, float]] = []
    contrasts: list[float] = []
    for image in images:
        details.append(fine_detail(image))
        signals.append(picture_signals(image))
        contrasts.append(contrast(image))
    empty = [Odd(index, SHOWS_NOTHING, stray=True) for index in empty_images(np.array(contrasts))]
    odd = [*_odd_sizes(sizes), *empty]
    for name, least in (("brightness", _LEAST_BRIGHTNESS), ("focus", None)):
        odd += _odd_values(name, np.array([one[name] for one in signals]), least)
    first = {one.index: one for one in reversed(odd)}
    return Survey(group_copies(np.stack(details)), tuple(first[index] for index in sorted(first)))


def fine_detail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the grey value minus the mean of its 3x3 neighbourhood at up to `_PIXELS` places of an ``(h, w, 3)``."""
    grey = image.astype(np.float32).mean(axis=2)
    padded = np.pad(grey, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9)
    detail: NDArray[np.float32] = (grey - around).ravel()
    if detail.size <= _PIXELS:
        return detail
    # The same places in every image.
    places = np.sort(np.random.default_rng(0).choice(detail.size, _PIXELS, replace=False))
    return detail[places]


def group_copies(details: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the group ``(n,)`` of each image by its details ``(n, k)``; images with equal details are copies too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(details)
    # Of one length each before the mean is taken: one sharp stray image would be most of it, and make all others alike.
    scaled = details / np.maximum(np.linalg.norm(details, axis=1, keepdims=True), 1e-6)
    own = scaled - scaled.mean(axis=0)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)
    first: list[NDArray[np.int64]] = []
    second: list[NDArray[np.int64]] = []
    for start in range(0, count, _ROWS):
        row, column = np.nonzero(own[start : start + _ROWS] @ own.T > _SAME)
        first.append(row + start)
        second.append(column)
    # Where all images are copies of one, nothing is left of them above.
    equal = np.unique(details, axis=0, return_inverse=True)[1].ravel()
    representative = {int(value): index for index, value in reversed(list(enumerate(equal)))}
    first.append(np.arange(count))
    second.append(np.array([representative[int(value)] for value in equal]))
    rows, columns = np.concatenate(first), np.concatenate(second)
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], np.int64)


def _odd_sizes(sizes: Sequence[tuple[int, int]]) -> Iterable[Odd]:
    counts = Counter(sizes)
    (usual, most), *_ = counts.most_common(1)
    if 2 * most < len(sizes):
        return  # sizes differ here
    for index, size in enumerate(sizes):
        if size != usual and counts[size] <= _FEW * len(sizes):
            yield Odd(index, f"it has {size[1]}x{size[0]} pixels, most have {usual[1]}x{usual[0]}")


def _odd_values(name: str, values: NDArray[np.float64], least: float | None) -> Iterable[Odd]:
    middle = float(np.median(values))
    floor = _LEAST_FOCUS * middle if least is None else least
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), floor, 1e-9)
    far = np.abs(values - middle) > _FAR * spread
    others = values[~far]
    for index in np.flatnonzero(far).tolist():
        yield Odd(index, f"its {name} is {values[index]:.3g}, of the others {others.min():.3g} to {others.max():.3g}")
