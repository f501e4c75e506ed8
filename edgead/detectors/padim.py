"""PaDiM: a Gaussian for each location, scored by its Mahalanobis distance.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework", ICPR 2021. A seeded random selection of d channels
(the paper's reduction) is taken at the taps, before they are pooled and resized. Pooling over 3x3 cells is ours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.coreset import Progress
from edgead.detectors import base
from edgead.features import FeatureExtractor


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
        return _LocationStatistics(self.settings, images, extractor)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        return MahalanobisHead(torch.empty_like(tensors["mean"]), torch.empty_like(tensors["whitening"]))


class MahalanobisHead(nn.Module):
    """``|W_p (f_p - mu_p)|`` for each location p, with ``W^T W`` the inverse covariance.

    Args:
        mean: ``(P, d)`` float32.
        whitening: ``(P, d, d)`` float32, lower triangular.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        height, width = features.shape[2], features.shape[3]
        # Locations lead, so that one read of the factors serves the whole batch.
        deviation = features.flatten(2).permute(2, 1, 0) - self.mean[:, :, None]
        whitened = torch.matmul(self.whitening, deviation)
        distances = torch.sqrt((whitened * whitened).sum(1))
        return distances.T.reshape(-1, height, width), None


class _LocationStatistics:
    """Counts, sums and outer products a fold, about the first batch's mean so that their difference stays accurate."""

    def __init__(self, settings: Padim.Settings, images: int, extractor: FeatureExtractor) -> None:
        self._settings = settings
        cells = extractor.grid[0] * extractor.grid[1]
        folds = min(base.FOLDS, images)
        self._count = torch.zeros(folds, dtype=torch.float64)
        self._sum = torch.zeros(folds, cells, extractor.channels, dtype=torch.float64)
        self._outer = torch.zeros(folds, cells, extractor.channels, extractor.channels)
        self._origin: Tensor | None = None

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        located = features.flatten(2).permute(2, 0, 1)  # (P, n, d)
        if self._origin is None:
            self._origin = located.mean(1, keepdim=True)
        located = located - self._origin
        for fold in np.unique(folds):
            rows = located[:, torch.from_numpy(np.flatnonzero(folds == fold))]
            self._count[fold] += rows.shape[1]
            self._sum[fold] += rows.double().sum(1)
            self._outer[fold].baddbmm_(rows.transpose(1, 2), rows)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        assert self._origin is not None
        used = [fold for fold in range(len(self._count)) if fold != without]
        count = float(self._count[used].sum())
        mean = self._sum[used].sum(0) / count
        whitening = torch.empty_like(self._outer[0])
        dimensions = mean.shape[1]
        ridge = self._settings.regularisation * torch.eye(dimensions, dtype=torch.float64)
        stage = "covariances" if without is None else f"covariances without fold {without + 1}"
        # Location by location, so that the float64 copy stays small.
        for start in range(0, len(mean), 64):
            part = slice(start, min(start + 64, len(mean)))
            outer = torch.zeros(part.stop - part.start, dimensions, dimensions, dtype=torch.float64)
            for fold in used:
                outer += self._outer[fold, part].double()
            center = mean[part, :, None]
            covariance = (outer - count * center * center.transpose(1, 2)) / max(count - 1.0, 1.0) + ridge
            factor = torch.linalg.cholesky(covariance)
            identity = torch.eye(dimensions, dtype=torch.float64).expand_as(factor)
            whitening[part] = torch.linalg.solve_triangular(factor, identity, upper=False).float()
            progress(stage, part.stop, len(mean))
        return MahalanobisHead((mean + self._origin[:, 0].double()).float(), whitening).eval()
