"""PaDiM: a Gaussian for each location, scored by its Mahalanobis distance.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework", ICPR 2021. A seeded random selection of d channels
(the paper's reduction) is taken at the taps, before they are pooled and resized. Pooling over 3x3 cells is ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.feature_statistics import LocationStatistics, whiten
from edgead.detectors.heads import MahalanobisHead
from edgead.features.features import FeatureExtractor
from edgead.runtime.progress import Progress


class Padim:
    """The detector; see the module's text."""

    name = "padim"

    class Settings(base.Settings):
        """Settings of PaDiM.

        Attributes:
            dimensions: channels kept, at random; all where the backbone has no more.
            regularisation: added to the diagonal of each covariance.
        """

        dimensions: int = Field(default=100, ge=1, le=4096)
        regularisation: float = Field(default=0.01, gt=0.0)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        if self.settings.dimensions >= extractor.channels:
            return extractor
        kept = np.random.default_rng(seed).choice(extractor.channels, self.settings.dimensions, replace=False)
        return extractor.select(np.sort(kept))

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> base.Collector:
        return _Gaussians(self.settings, images, extractor)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        return MahalanobisHead(torch.empty_like(tensors["mean"]), torch.empty_like(tensors["whitening"]))

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        if "dimensions" in fixed:
            return [self.settings]
        counts = base.steps(self.settings.dimensions, (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2), channels)
        return [self.settings.model_copy(update={"dimensions": count}) for count in counts]


class _Gaussians:
    """The statistics of every location and the Gaussians made from them."""

    def __init__(self, settings: Padim.Settings, images: int, extractor: FeatureExtractor) -> None:
        self._settings = settings
        self._folds = min(base.FOLDS, images)
        self._cells = extractor.grid[0] * extractor.grid[1]
        self._dimensions = extractor.channels
        self._statistics = LocationStatistics(self._folds, self._cells, self._dimensions)

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        self._statistics.update(features.flatten(2).transpose(1, 2), folds)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        used = [fold for fold in range(self._folds) if fold != without]
        mean = torch.empty(self._cells, self._dimensions)
        whitening = torch.empty(self._cells, self._dimensions, self._dimensions)
        ridge = self._settings.regularisation * torch.eye(self._dimensions, dtype=torch.float64)
        stage = "covariances" if without is None else f"covariances without fold {without + 1}"
        for part, center, covariance in self._statistics.location_gaussians(used):
            mean[part] = center.float()
            whitening[part] = whiten(covariance + ridge)[0].float()
            progress(stage, part.stop, self._cells)
        return MahalanobisHead(mean, whitening).eval()
