"""FRE: what a linear subspace of normal features cannot reproduce.

Ndiour, Ahuja, Genc, Tickoo, "FRE: A Fast Method For Anomaly Detection And Segmentation", BMVC 2023, arXiv 2211.12650.
One pooled layer of an image is flattened, and its principal components over the images are taken (``variant=global``).
The default, ``variant=local``, is its edge form and our reading of it: one principal subspace over channels, used at
every location about that location's own mean, so that the model is a 1x1 linear map of some kilobytes and one map of
means.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.feature_statistics import ChannelStatistics, principal_axes
from edgead.detectors.sampling import PatchReservoir
from edgead.features.features import FeatureExtractor, resize_map
from edgead.runtime.errors import ConfigError
from edgead.runtime.progress import Progress

_PAPER_COMPONENTS = 220  # of the global variant


class Fre:
    """The detector; see the module's text."""

    name = "fre"

    class Settings(base.Settings):
        """Settings of FRE.

        Attributes:
            variant: ``local`` or ``global``, see the module's text.
            components: dimensions of the subspace; None takes ``variance`` (local) or the paper's 220 (global). Always
                fewer than the features have, and for global fewer than there are images.
            variance: share of the variance that the local subspace keeps where ``components`` is None.
            layer: tap that the global variant flattens; negative counts from the coarsest.
            pool: cells of the detector's grid, a side, that the global variant averages to one.
            max_images: images kept by the global variant, a seeded sample above that; bounds its memory.
        """

        variant: Literal["local", "global"] = "local"
        components: int | None = Field(default=None, ge=1)
        variance: float = Field(default=0.95, gt=0.0, lt=1.0)
        layer: int = -1
        pool: int = Field(default=4, ge=1)
        max_images: int = Field(default=2000, ge=2)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        if self.settings.variant == "local":
            return extractor
        return PooledLayer(extractor, self.settings.layer, self.settings.pool).eval()

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> base.Collector:
        if self.settings.variant == "local":
            return _LocalSubspace(self.settings, images, extractor)
        return _GlobalSubspace(self.settings, images, extractor, seed)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        kept, rest = (torch.empty_like(tensors[name]) if name in tensors else None for name in ("kept", "rest"))
        mean = torch.empty_like(tensors["mean"])
        return ResidualHead(mean, kept=kept, rest=rest)

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        """Vary the subspace; where the user names its components or its variance, there is nothing to vary."""
        if "components" in fixed or ("variance" in fixed and self.settings.variant == "local"):
            return [self.settings]
        if self.settings.variant == "global":
            most = max(1, min(images, self.settings.max_images) - 1)
            counts = base.steps(self.settings.components or _PAPER_COMPONENTS, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), most)
            return [self.settings.model_copy(update={"components": count}) for count in counts]
        # Few components cost two thin products, many one product with a thin complement: cost hardly moves with them.
        shares = sorted({0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, self.settings.variance})
        return [self.settings.model_copy(update={"variance": share}) for share in shares]


class PooledLayer(FeatureExtractor):
    """``images (N, h, w, 3)`` uint8 to one tap, resized to the detector's grid and averaged over ``pool x pool`` cells.

    Raises:
        ConfigError: no such tap, or fewer than 2 x 2 cells would remain.
    """

    def __init__(self, extractor: FeatureExtractor, layer: int, pool: int) -> None:
        taps = len(extractor.backbone.channels)
        if not -taps <= layer < taps:
            raise ConfigError(f"setting 'layer' of detector 'fre': the backbone has {taps} taps, 0 to {taps - 1}")
        grid = (extractor.grid[0] // pool, extractor.grid[1] // pool)
        if min(grid) < 2:
            most = min(extractor.grid) // 2
            raise ConfigError(f"setting 'pool' of detector 'fre' must be at most {most} at this size, got {pool}")
        super().__init__(extractor.backbone, grid)
        self.channels = extractor.backbone.channels[layer]
        self.layer = layer
        self.pool = pool
        self.fine = extractor.grid

    def from_taps(self, taps: Sequence[Tensor]) -> Tensor:
        tap = resize_map(taps[self.layer], self.fine)
        return F.avg_pool2d(tap, self.pool)


class ResidualHead(nn.Module):
    """Squared length, over channels, of what lies outside a subspace about a mean.

    Args:
        mean: ``(P, C)`` float32 for a subspace of the channels at each location, ``(1, P * C)`` for one of whole images
            (channels first).
        kept: ``(F, h)`` orthonormal columns of the subspace, F = C or P * C: the residual is ``x - (x U) U^T``.
        rest: ``(F, F - h)`` orthonormal columns of its complement: the residual's length is that of ``x R``. One of the
            two is given; for channels the complement costs less as soon as h > C / 3.
    """

    mean: Tensor
    kept: Tensor | None
    rest: Tensor | None

    def __init__(self, mean: Tensor, *, kept: Tensor | None = None, rest: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("kept", kept)
        self.register_buffer("rest", rest)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        channels, height, width = features.shape[1:]
        if len(self.mean) == 1 < height * width:
            residual = self._residual(features.flatten(1) - self.mean)
            return residual.square().reshape(-1, channels, height, width).sum(1), None
        residual = self._residual(features.flatten(2).transpose(1, 2) - self.mean)
        return residual.square().sum(2).reshape(-1, height, width), None

    def _residual(self, deviation: Tensor) -> Tensor:
        if self.rest is not None:
            return deviation @ self.rest
        assert self.kept is not None
        return deviation - (deviation @ self.kept) @ self.kept.T


class _LocalSubspace:
    """Means at each location and the covariance about them, pooled over all locations.

    An image could be left out of them exactly, but as all its locations leave the pooled covariance, each image would
    take an eigendecomposition of its own, where a fold takes one for a fifth of them.
    """

    def __init__(self, settings: Fre.Settings, images: int, extractor: FeatureExtractor) -> None:
        self._settings = settings
        self._folds = min(base.FOLDS, images)
        cells = extractor.grid[0] * extractor.grid[1]
        self._channels = ChannelStatistics(self._folds, extractor.channels)
        self._count = torch.zeros(self._folds, dtype=torch.float64)
        self._sum = torch.zeros(self._folds, cells, extractor.channels, dtype=torch.float64)

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        rows = features.flatten(2).transpose(1, 2)
        self._channels.update(rows, folds)
        for fold in np.unique(folds):
            members = rows[torch.from_numpy(np.flatnonzero(folds == fold))].double()
            self._count[fold] += len(members)
            self._sum[fold] += members.sum(0)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        stage = "subspace" if without is None else f"subspace without fold {without + 1}"
        progress(stage, 0, 1)
        used = [fold for fold in range(self._folds) if fold != without]
        count = float(self._count[used].sum())
        mean = self._sum[used].sum(0) / count
        center, covariance = self._channels.moments(used)
        # The scatter within locations is what the total leaves after that between them.
        patches = count * len(mean)
        within = (patches - 1.0) * covariance - count * (mean - center).T @ (mean - center)
        variances, axes = principal_axes(within)
        kept = self._components(variances)
        # Few components: two thin products. Many: one product with the complement.
        complement = 3 * kept > len(variances)
        basis = (axes[:, kept:] if complement else axes[:, :kept]).float().contiguous()
        progress(stage, 1, 1)
        return ResidualHead(mean.float(), **{"rest" if complement else "kept": basis}).eval()

    def _components(self, variances: Tensor) -> int:
        wanted = self._settings.components
        if wanted is None:
            share = torch.cumsum(variances, 0) / variances.sum().clamp(min=1e-30)
            wanted = int(torch.searchsorted(share, self._settings.variance)) + 1
        return min(wanted, len(variances) - 1)


class _GlobalSubspace:
    """The features of every image, up to a limit, and their principal components by the Gram matrix of the images.

    As for the local subspace, leaving single images out would take an eigendecomposition each.
    """

    def __init__(self, settings: Fre.Settings, images: int, extractor: FeatureExtractor, seed: int) -> None:
        self._settings = settings
        size = extractor.channels * extractor.grid[0] * extractor.grid[1]
        self._sample = PatchReservoir(settings.max_images, images, 1, size, seed)

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        self._sample.update(features.flatten(1)[:, None], folds)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        stage = "subspace" if without is None else f"subspace without fold {without + 1}"
        progress(stage, 0, 1)
        images = self._sample.patches(() if without is None else (without,))
        mean = images.mean(0, dtype=torch.float64).float()
        deviation = images - mean
        # Images are few and features many: the small Gram matrix has the same non-zero spectrum as the covariance.
        variances, weights = principal_axes((deviation @ deviation.T).double())
        wanted = self._settings.components or _PAPER_COMPONENTS
        # A direction without variance is rounding; one less than the images is the most that can have any.
        present = int((variances > 1e-6 * variances[0]).sum())
        kept = max(1, min(wanted, present, len(images) - 1, deviation.shape[1] - 1))
        basis = torch.linalg.qr(deviation.T.double() @ weights[:, :kept])[0]
        progress(stage, 1, 1)
        return ResidualHead(mean[None], kept=basis.float().contiguous()).eval()
