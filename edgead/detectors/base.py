"""What a detector is, and how the closed-form ones are fitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from edgead.features.features import FeatureExtractor
from edgead.features.scoring import ScoringModule
from edgead.runtime.decision.baseline import map_level
from edgead.runtime.errors import DataError
from edgead.runtime.progress import Progress

FOLDS = 5
# Of features between the two passes of a fit; 200 images of the default backbone at 256 pixels.
_KEPT_BYTES = 192 << 20
_SCORING = "held-out scores"


class Settings(BaseModel):
    """Settings of a detector; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    smooth: bool = True


class TrainingImages(Protocol):
    """Normal images at network size, readable any number of times in the same order."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield ``(n, h, w, 3)`` uint8 RGB, n = size but for the last one."""

    def select(self, indices: Sequence[int]) -> TrainingImages:
        """Return some of the images, in the order of ``indices``."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted scoring module, and what models that never saw them gave for the normals.

    Attributes:
        module: fitted on all normals.
        normal_scores: ``(g,)``, one a group: the highest of its images; normal_levels: ``(g,)`` means of their maps.
        scored: ``(g,)`` indices of those images, ascending: all of them where each is a group of its own.
    """

    module: ScoringModule
    normal_scores: NDArray[np.float64]
    normal_levels: NDArray[np.float64]
    scored: NDArray[np.int64]


class Collector(Protocol):
    """Gathers what a closed-form head needs in one pass over the features, separately for each fold."""

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``features (n, C, gh, gw)`` float32 of n images and the fold ``(n,)`` each belongs to."""

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        """Return the head fitted on every image, or on all but those of one fold."""


# What a head would give for training images that had not been in its fit: ``features (n, C, gh, gw)`` and the group
# ``(n,)`` of each image, whole groups of one size after each other, to what a head returns.
LeftOut = Callable[[Tensor, NDArray[np.int64]], tuple[Tensor, Tensor | None]]


@runtime_checkable
class LeavesOut(Protocol):
    """A collector that knows, without fitting again, what its head would be without some images."""

    def leave_out(self, head: nn.Module, groups: NDArray[np.int64], progress: Progress) -> LeftOut | None:
        """Return how each training image would be judged had no image of its group been in the fit.

        Args:
            head: fitted on all images, by this collector.
            groups: ``(images,)`` group of each image, at least two groups.

        Returns:
            None where this cannot be said; then heads are fitted without each fold.
        """


# What a fit shows of the scoring of held-out images: their ``(n,)`` indices, ``features (n, C, gh, gw)``, and what a
# head that has not seen them gave, ``(n, gh, gw)`` and ``(n,)`` or None.
Watch = Callable[[NDArray[np.int64], Tensor, Tensor, Tensor | None], None]


class Detector(Protocol):
    """One detection method with its settings."""

    name: str
    settings: Any

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        """Adapt the plain extractor, e.g. to a selection of channels."""

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> Collector:
        """Return an empty collector."""

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        """Return a head with the shapes of saved ``tensors``, ready for `load_state_dict`."""

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[Settings]:
        """Return the settings that a budget chooses from, cheap to expensive, one at least.

        Args:
            channels, cells: C and P of the plain extractor's features.
            images: training images there are at least; a setting takes no value that they cannot fill, so that more
                images make no larger model.
            fixed: names of settings that keep their values.
        """


def steps(value: int, factors: Sequence[float], most: int) -> list[int]:
    """Return ``value`` times each factor, rounded, ascending, from 1 to ``most``, without repeats."""
    return sorted({max(1, min(most, round(value * factor))) for factor in factors})


def assign_folds(
    count: int, seed: int, folds: int = FOLDS, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the fold ``(count,)`` of each image: balanced, shuffled, at most one image a fold fewer than others.

    Images of one group ``(count,)``, from 0, share a fold; then folds differ by no more than the largest group.
    """
    sizes = np.ones(count, np.int64) if groups is None else np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled = np.zeros(min(folds, len(sizes)), np.int64)
    result = np.empty(len(sizes), np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        result[group] = filled.argmin()
        filled[result[group]] += sizes[group]
    return result if groups is None else result[groups]


@dataclass(frozen=True, slots=True)
class Passes:
    """What every pass over the features of some images needs; ``batch`` images are computed at once."""

    images: TrainingImages
    extractor: FeatureExtractor
    batch: int
    progress: Progress

    def features(self, stage: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first image of a batch and the batch's features ``(n, C, gh, gw)``."""
        done = 0
        for pixels in self.images.batches(self.batch):
            yield done, self.extractor(torch.from_numpy(np.ascontiguousarray(pixels)))
            done += len(pixels)
            self.progress(stage, done, len(self.images))


# More than six parameters: what every fit takes, and four that are rarely given.
@torch.inference_mode()
def fit_closed_form(
    detector: Detector,
    images: TrainingImages,
    extractor: FeatureExtractor,
    *,
    seed: int,
    progress: Progress,
    batch: int = 8,
    tiles: int = 1,
    groups: NDArray[np.int64] | None = None,
    watch: Watch | None = None,
) -> Fit:
    """Fit on all normals and score each of them by a model that has not seen it (design section 7).

    That is the model without the image alone where the detector's collector `LeavesOut`; else the model without a fold,
    which costs a fit a fold, and has seen a fifth less than the model that is kept.
    Features of few images are kept between fitting and scoring; of more they are computed twice, so that memory does
    not grow with the image count.
    Where so many ``tiles`` after each other make one picture, they are held out together, since they overlap, and the
    score of the picture is the highest of theirs.

    Args:
        groups: ``(pictures,)`` number of the group of each, as of near-duplicates; they are held out together, and give
            one score. None: each is a group of its own.
        watch: called with every image once, in any order.

    Raises:
        DataError: there are fewer than two groups.
    """
    pictures = len(images) // tiles
    groups = np.arange(pictures) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    if len(np.unique(groups)) < 2:
        raise DataError("a threshold needs at least 2 good images that are no near-duplicates; give more images")
    folds = np.repeat(assign_folds(pictures, seed, groups=groups), tiles)
    extractor = detector.extractor(extractor, seed)
    size = len(images) * extractor.channels * extractor.grid[0] * extractor.grid[1] * 4
    kept: list[tuple[int, Tensor]] | None = [] if size <= _KEPT_BYTES else None
    passes = Passes(images, extractor, batch, progress)
    collector = _collect(detector, passes, folds, seed, kept)
    members = np.repeat(groups, tiles)
    smooth = bool(detector.settings.smooth)
    head = left_out = None
    if isinstance(collector, LeavesOut):
        head = collector.head(None, progress)
        left_out = collector.leave_out(head, members, progress)
    if head is not None and left_out is not None:
        module = ScoringModule(extractor, head, smooth=smooth).eval()
        judged = _left_out_scores(left_out, module, passes, members, kept, watch)
    else:
        held_out = [
            ScoringModule(extractor, collector.head(fold, progress), smooth=smooth).eval()
            for fold in range(folds.max() + 1)
        ]
        judged = _out_of_fold_scores(held_out, passes, folds, kept, watch)
        del held_out
        module = ScoringModule(extractor, head or collector.head(None, progress), smooth=smooth).eval()
    scores, levels = judged.reshape(2, -1, tiles)
    return one_a_group(module.requires_grad_(False), scores.max(axis=1), levels.mean(axis=1), groups)


def one_a_group(
    module: ScoringModule, scores: NDArray[np.float64], levels: NDArray[np.float64], groups: NDArray[np.int64]
) -> Fit:
    """Keep of each group the image that scores highest: near-duplicates say the same once more."""
    order = np.lexsort((scores, groups))
    last = np.diff(groups[order], append=-1) != 0
    best = np.sort(order[last])
    return Fit(module, scores[best], levels[best], best)


def _left_out_scores(
    left_out: LeftOut,
    module: ScoringModule,
    passes: Passes,
    groups: NDArray[np.int64],
    kept: list[tuple[int, Tensor]] | None,
    watch: Watch | None,
) -> NDArray[np.float64]:
    """Return score and level ``(2, n)`` of every image, judged without the images of its group."""
    sizes = np.bincount(groups)[groups]
    # Stable, so that images keep their order as far as they can, and tiles of a picture lie together.
    order = np.lexsort((groups, sizes))
    result = np.empty((2, len(order)), np.float64)
    held: list[Tensor] = []
    for done, features in enumerate(_one_by_one(kept, passes, order), 1):
        held.append(features)
        rows = order[done - len(held) : done]
        following = order[done] if done < len(order) else None
        if following is not None and groups[following] == groups[rows[-1]]:
            continue
        if following is None or len(held) >= passes.batch or sizes[following] != sizes[rows[-1]]:
            stacked = torch.stack(held)
            raw, weight = left_out(stacked, groups[rows])
            if watch is not None:
                watch(rows, stacked, raw, weight)
            score, maps = module.finish(raw, weight)
            result[0, rows] = score.double().numpy()
            result[1, rows] = [map_level(grid) for grid in maps.numpy()]
            held = []
    return result


def _out_of_fold_scores(
    held_out: Sequence[ScoringModule],
    passes: Passes,
    folds: NDArray[np.int64],
    kept: list[tuple[int, Tensor]] | None,
    watch: Watch | None,
) -> NDArray[np.float64]:
    """Return score and level ``(2, n)`` of every image by the model without its fold."""
    result = np.empty((2, len(folds)), np.float64)
    for first, features in _again(kept, passes):
        members = folds[first : first + len(features)]
        for fold in np.unique(members):
            rows = np.flatnonzero(members == fold)
            own = features[torch.from_numpy(rows)]
            raw, weight = held_out[fold].head(own)
            if watch is not None:
                watch(first + rows, own, raw, weight)
            score, maps = held_out[fold].finish(raw, weight)
            result[0, first + rows] = score.double().numpy()
            result[1, first + rows] = [map_level(grid) for grid in maps.numpy()]
    return result


@torch.inference_mode()
def fit_module(
    detector: Detector,
    images: TrainingImages,
    extractor: FeatureExtractor,
    *,
    seed: int,
    progress: Progress,
    batch: int = 8,
) -> ScoringModule:
    """Fit on all normals as `fit_closed_form` does, without the held-out models and their scores."""
    extractor = detector.extractor(extractor, seed)
    folds = assign_folds(len(images), seed)
    collector = _collect(detector, Passes(images, extractor, batch, progress), folds, seed)
    module = ScoringModule(extractor, collector.head(None, progress), smooth=bool(detector.settings.smooth)).eval()
    return module.requires_grad_(False)


def _collect(
    detector: Detector,
    passes: Passes,
    folds: NDArray[np.int64],
    seed: int,
    kept: list[tuple[int, Tensor]] | None = None,
) -> Collector:
    collector = detector.collector(len(passes.images), passes.extractor, seed)
    for first, features in passes.features("features"):
        collector.update(features, folds[first : first + len(features)])
        if kept is not None:
            kept.append((first, features))
    return collector


def _again(kept: list[tuple[int, Tensor]] | None, passes: Passes) -> Iterator[tuple[int, Tensor]]:
    """Yield the features of another pass, from what was kept of the first where there is some."""
    if kept is None:
        yield from passes.features(_SCORING)
        return
    for first, features in kept:
        yield first, features
        passes.progress(_SCORING, first + len(features), len(passes.images))


def _one_by_one(kept: list[tuple[int, Tensor]] | None, passes: Passes, order: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the features ``(C, gh, gw)`` of each image in an order, from what was kept where there is some."""
    if kept is None:
        if not np.array_equal(order, np.arange(len(order))):
            passes = replace(passes, images=passes.images.select(order.tolist()))
        for _, features in passes.features(_SCORING):
            yield from features
        return
    maps = [one for _, features in kept for one in features]
    for done, index in enumerate(order, 1):
        yield maps[index]
        if done % passes.batch == 0 or done == len(order):
            passes.progress(_SCORING, done, len(order))
