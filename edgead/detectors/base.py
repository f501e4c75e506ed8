"""What a detector is, and how the closed-form ones are fitted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from edgead.features.features import FeatureExtractor
from edgead.features.scoring import ScoringModule
from edgead.runtime.decision.baseline import map_level
from edgead.runtime.progress import Progress

FOLDS = 5
# Of features between the two passes of a fit; 200 images of the default backbone at 256 pixels.
_KEPT_BYTES = 192 << 20


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
        normal_scores: ``(n,)``; normal_levels: ``(n,)`` means of the anomaly maps.
    """

    module: ScoringModule
    normal_scores: NDArray[np.float64]
    normal_levels: NDArray[np.float64]


class Collector(Protocol):
    """Gathers what a closed-form head needs in one pass over the features, separately for each fold."""

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``features (n, C, gh, gw)`` float32 of n images and the fold ``(n,)`` each belongs to."""

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        """Return the head fitted on every image, or on all but those of one fold."""


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


def assign_folds(count: int, seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """Return the fold ``(count,)`` of each image: balanced, shuffled, at most one image a fold fewer than others."""
    order = np.random.default_rng(seed).permutation(count)
    result = np.empty(count, np.int64)
    result[order] = np.arange(count) % min(folds, count)
    return result


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


# More than six parameters: what every fit takes, and two that are rarely given.
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
) -> Fit:
    """Fit on all normals and score each of them out of fold (design section 7).

    Features of few images are kept between fitting and scoring; of more they are computed twice, so that memory does
    not grow with the image count.
    Where so many ``tiles`` after each other make one picture, they are held out together, since they overlap, and the
    score of the picture is the highest of theirs.
    """
    count = len(images)
    folds = np.repeat(assign_folds(count // tiles, seed), tiles)
    extractor = detector.extractor(extractor, seed)
    size = count * extractor.channels * extractor.grid[0] * extractor.grid[1] * 4
    kept: list[tuple[int, Tensor]] | None = [] if size <= _KEPT_BYTES else None
    passes = Passes(images, extractor, batch, progress)
    collector = _collect(detector, passes, folds, seed, kept)
    smooth = bool(detector.settings.smooth)
    held_out = [
        ScoringModule(extractor, collector.head(fold, progress), smooth=smooth).eval()
        for fold in range(folds.max() + 1)
    ]
    scores, levels = np.empty(count, np.float64), np.empty(count, np.float64)
    for first, features in _again(kept, passes, "out-of-fold scores"):
        members = folds[first : first + len(features)]
        for fold in np.unique(members):
            rows = np.flatnonzero(members == fold)
            score, maps = held_out[fold].score_features(features[torch.from_numpy(rows)])
            scores[first + rows] = score.double().numpy()
            levels[first + rows] = [map_level(grid) for grid in maps.numpy()]
    del held_out
    module = ScoringModule(extractor, collector.head(None, progress), smooth=smooth).eval()
    if tiles > 1:
        scores, levels = scores.reshape(-1, tiles).max(axis=1), levels.reshape(-1, tiles).mean(axis=1)
    return Fit(module.requires_grad_(False), scores, levels)


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


def _again(kept: list[tuple[int, Tensor]] | None, passes: Passes, stage: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the features of another pass, from what was kept of the first where there is some."""
    if kept is None:
        yield from passes.features(stage)
        return
    for first, features in kept:
        yield first, features
        passes.progress(stage, first + len(features), len(passes.images))
