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

_BLOCK = 64  # locations whose scatters are held at a time


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
        return _Gaussians(self.settings, extractor)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        return MahalanobisHead(torch.empty_like(tensors["mean"]), torch.empty_like(tensors["whitening"]))

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        if "dimensions" in fixed:
            return [self.settings]
        counts = base.steps(self.settings.dimensions, (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2), channels)
        return [self.settings.model_copy(update={"dimensions": count}) for count in counts]


class _Gaussians:
    """The statistics of every location and the Gaussians made from them."""

    def __init__(self, settings: Padim.Settings, extractor: FeatureExtractor) -> None:
        self._settings = settings
        self._cells = extractor.grid[0] * extractor.grid[1]
        self._dimensions = extractor.channels
        # In float64, because leaving an image out takes differences of nearly equal numbers.
        self._statistics = LocationStatistics(1, self._cells, self._dimensions, torch.float64)

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        self._statistics.update(features.flatten(2).transpose(1, 2), np.zeros_like(folds))

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        assert without is None  # no fold is ever held out, since any image can be left out afterwards
        mean = torch.empty(self._cells, self._dimensions)
        whitening = torch.empty(self._cells, self._dimensions, self._dimensions)
        ridge = self._settings.regularisation * torch.eye(self._dimensions, dtype=torch.float64)
        for part, center, covariance in self._statistics.location_gaussians([0]):
            mean[part] = center.float()
            whitening[part] = whiten(covariance + ridge)[0].float()
            progress("covariances", part.stop, self._cells)
        return MahalanobisHead(mean, whitening).eval()

    def leave_out(self, head: nn.Module, groups: NDArray[np.int64], progress: Progress) -> base.LeftOut:
        return _Downdated(self._statistics, self._settings.regularisation, progress)


class _Downdated:
    """Mahalanobis distances of training images to the Gaussians that would have been fitted without their group.

    Let n images have the mean mu and the scatter S at a location, and let g of them leave, whose deviations d_i from mu
    are the rows of D. With k = n - g and M = I + 11'/k the rows of M D are their deviations from the mean of the
    others, whose scatter is S - D' M D. With A = S / (k - 1) + ridge, K = M / (k - 1) = L L' and H = L' D A^-1 D' L,
    the matrix inversion lemma gives the squared distances as the diagonal of (k - 1)^2 L H (I - H)^-1 L': exact, and
    one factorisation for all groups of a size. For one image it is (n / (n - 1))^2 q / (1 - c q) with q = d' A^-1 d and
    c = n / ((n - 1)(n - 2)).
    """

    def __init__(self, statistics: LocationStatistics, ridge: float, progress: Progress) -> None:
        self._statistics, self._ridge, self._progress = statistics, ridge, progress
        self._count, mean, origin = statistics.means([0])
        self._center = mean
        self._mean = mean + origin
        self._size = 0
        self._whitening = mean.new_empty(0)

    def __call__(self, features: Tensor, groups: NDArray[np.int64]) -> tuple[Tensor, None]:
        size = int(np.count_nonzero(groups == groups[0]))
        others = self._count - size
        degrees = max(others - 1.0, 1.0)
        if size != self._size:
            self._factorise(size, degrees)
        deviation = features.flatten(2).permute(2, 1, 0).double() - self._mean[:, :, None]
        white = (self._whitening @ deviation).transpose(1, 2)
        white = white.reshape(len(white), -1, size, white.shape[2])
        moved = torch.eye(size, dtype=torch.float64) + 1.0 / others
        lower = torch.linalg.cholesky(moved / degrees)
        shares, axes = torch.linalg.eigh(lower.T @ (white @ white.transpose(2, 3)) @ lower)
        # Of the scatter along an axis that leaves with the group; less than all of it, but for rounding.
        shares = shares.clamp(0.0, 1.0 - 1e-12)
        squared = ((lower @ axes).square() * (shares / (1.0 - shares))[:, :, None]).sum(3)
        distances = degrees * torch.sqrt(squared.flatten(1))
        return distances.T.float().reshape(-1, *features.shape[2:]), None

    def _factorise(self, size: int, degrees: float) -> None:
        cells, dimensions = self._mean.shape
        if not self._size:
            self._whitening = self._mean.new_empty(cells, dimensions, dimensions)
        self._size = size
        ridge = self._ridge * torch.eye(dimensions, dtype=torch.float64)
        stage = "covariances without an image" if size == 1 else f"covariances without {size} images"
        for start in range(0, cells, _BLOCK):
            part = slice(start, min(start + _BLOCK, cells))
            scatter = self._statistics.scatter([0], part, self._count, self._center)
            self._whitening[part] = whiten(scatter / degrees + ridge)[0]
            self._progress(stage, part.stop, cells)
