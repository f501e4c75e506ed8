"""N-pad: Gaussians of neighbourhoods and centroids of all patches, fused.

After "N-pad: Neighboring Pixel-based Industrial Anomaly Detection", arXiv 2210.08768, CVPR Workshops 2023. The paper's
abstract gives the idea: the distribution of a location is estimated from its neighbours as well, and the Mahalanobis
distance to it is combined with the Euclidean distance to centroids of clustered normal features. No code was found, so
window, reduction, number of centroids and fusion are our reconstruction, and so is everything about the scores' scale.

The defaults were chosen on planted defects of normals of four categories, judged by models without these images,
as they are and moved by a few pixels; no test image had a part in it (docs/decisions/npad-protoad.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.feature_statistics import (
    ChannelStatistics,
    LocationStatistics,
    principal_axes,
    random_orthonormal,
    whiten,
    whiten_low_rank,
    whitening_axes,
)
from edgead.detectors.heads import (
    LocationGaussians,
    LowRankWhitening,
    NearestNeighbourHead,
    NPadHead,
    TriangularWhitening,
    pack_triangles,
)
from edgead.detectors.sampling import MapReservoir, PatchReservoir, kmeans
from edgead.features.features import FeatureExtractor
from edgead.runtime.errors import ConfigError
from edgead.runtime.progress import Progress, silent

# Up to this many channels the outer products are float64; above, float32 bounds the memory and is exact enough.
_EXACT_CHANNELS = 100

# Of the mean variance, added in every direction before whitening. On planted defects as good as .05 or better, and on
# textured parts no worse than features as they come.
_FLOOR = 1.0

# Of a budget, cheap to expensive: dimensions, rank and centroids as shares of the settings', storage; None keeps it.
_LADDER: tuple[tuple[float, float, Literal["fp16"] | None, float], ...] = (
    (1 / 4, 1 / 4, "fp16", 1 / 4),
    (1 / 2, 1 / 2, "fp16", 1 / 2),
    (1, 1 / 2, "fp16", 1 / 2),
    (1, 1, "fp16", 1),
    (1, 1, None, 1),
    (3 / 2, 3 / 2, None, 1),
    (2, 2, None, 4),
)


class NPad:
    """The detector; see the module's text."""

    name = "npad"

    class Settings(base.Settings):
        """Settings of N-pad.

        Attributes:
            dimensions: d, to which the features are reduced; all where the backbone has no more. Defects show where
                normal features hardly vary, which a reduction to the leading axes omits.
            projection: ``whitened`` is a PCA whose axes are scaled to a variance of at most one over all patches, so
                that no few directions make up the distance to a centroid; ``pca`` as it is, ``random`` (seeded,
                orthonormal) or ``select`` (PaDiM's seeded choice of channels).
            max_channels: channels in which a PCA gathers its statistics, whose memory grows with the square of them; a
                backbone with more is first projected at random.
            window: side p of the neighbourhood whose features make a location's Gaussian, odd; 1 is PaDiM.
            evaluation_window: side q, odd; a feature is judged by the nearest Gaussian of the q x q locations around.
            regularisation: added to the diagonal of each covariance. Whitened features have variances of at most one.
            storage: precision in which the Gaussians are stored; they are computed with in float32.
            rank: eigenpairs kept of each covariance, see `LowRankWhitening`; None keeps it whole, which costs the
                square of the dimensions a location.
            centroids: K, of mini-batch k-means.
            max_patches: patches kept for k-means, a seeded sample over all images above that.
            fusion: ``zscore`` adds both distances, each in standard deviations of its distribution over held-out
                normals; ``product`` multiplies them; ``mahalanobis`` and ``centroid`` use one alone.
            centroid_weight: of the distance to the centroids in the sum of ``zscore``; that of the other is 1.
        """

        dimensions: int = Field(default=160, ge=1, le=4096)
        projection: Literal["whitened", "pca", "random", "select"] = "whitened"
        max_channels: int = Field(default=160, ge=1, le=4096)
        window: int = Field(default=3, ge=1, le=15)
        evaluation_window: int = Field(default=1, ge=1, le=7)
        regularisation: float = Field(default=0.1, gt=0.0)
        storage: Literal["fp32", "fp16"] = "fp32"
        rank: int | None = Field(default=32, ge=1)
        centroids: int = Field(default=256, ge=1, le=65_536)
        max_patches: int = Field(default=100_000, ge=1)
        fusion: Literal["zscore", "product", "mahalanobis", "centroid"] = "zscore"
        centroid_weight: float = Field(default=0.1, gt=0.0)

        @field_validator("window", "evaluation_window")
        @classmethod
        def _odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError("a window has a middle; give an odd number")
            return value

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        if self.settings.projection != "select" or self.settings.dimensions >= extractor.channels:
            return extractor
        kept = np.random.default_rng(seed).choice(extractor.channels, self.settings.dimensions, replace=False)
        return extractor.select(np.sort(kept))

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> base.Collector:
        return _Neighbourhoods(self.settings, images, extractor, seed)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        def like(name: str) -> Tensor | None:
            return torch.empty_like(tensors[name]) if name in tensors else None

        gaussians = centroids = None
        mean, packed, bank = like("gaussians.mean"), like("gaussians.form.packed"), like("centroids.bank")
        if mean is not None:
            form = (
                LowRankWhitening(
                    torch.empty_like(tensors["gaussians.form.factors"]),
                    torch.empty_like(tensors["gaussians.form.precision"]),
                )
                if packed is None
                else TriangularWhitening(packed)
            )
            gaussians = LocationGaussians(mean, form, self.settings.evaluation_window)
        if bank is not None:
            centroids = NearestNeighbourHead(bank)
        return NPadHead(like("projection"), gaussians, centroids, zscore=like("zscore"))

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        """Vary dimensions, rank, storage and centroids together, see `_LADDER`."""
        now = self.settings
        size, patches = min(now.dimensions, channels), min(now.max_patches, cells * images)
        rank = min(now.rank or size, size)
        rungs: list[NPad.Settings] = []
        for dimensions, share, storage, centroids in _LADDER:
            d = max(1, min(channels, round(size * dimensions)))
            values = {
                "dimensions": d,
                "rank": now.rank if share == 1 else max(1, round(rank * share)),
                "storage": storage or now.storage,
                "centroids": base.steps(now.centroids, [centroids], patches)[0],
            }
            rung = now.model_copy(update={name: value for name, value in values.items() if name not in fixed})
            if rung not in rungs:
                rungs.append(rung)
        return rungs


class _Neighbourhoods:
    """Statistics at each location, a sample of patches for k-means, and a few whole maps to judge for the z-scores.

    Everything is kept for each fold, so that every model comes from one pass: the PCA, the Gaussians and the centroids
    of a held-out fold never saw it, and neither did the distances that set its z-scores.

    An image cannot be left out afterwards, by algebra: it moves the PCA in which all else is computed, and centroids of
    k-means without it are others. So each fold has a model of its own.
    """

    def __init__(self, settings: NPad.Settings, images: int, extractor: FeatureExtractor, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._grid = extractor.grid
        self._folds = 0  # that have come
        most = min(base.FOLDS, images)
        cells = extractor.grid[0] * extractor.grid[1]
        width = extractor.channels
        if settings.projection == "random":
            width = min(width, settings.dimensions)
        elif settings.projection != "select":
            width = min(width, max(settings.dimensions, settings.max_channels))
        self._dimensions = min(settings.dimensions, width)
        first = width < extractor.channels
        self._first = random_orthonormal(extractor.channels, width, seed) if first else None
        gathers = self._dimensions < width or settings.projection == "whitened"
        self._channels = ChannelStatistics(most, width) if gathers else None
        self._locations = self._sample = self._maps = None
        if settings.fusion != "centroid":
            dtype = torch.float64 if width <= _EXACT_CHANNELS else torch.float32
            self._locations = LocationStatistics(most, cells, width, dtype)
        if settings.fusion != "mahalanobis":
            self._sample = PatchReservoir(settings.max_patches, images, cells, width, seed)
        if settings.fusion == "zscore":
            self._maps = MapReservoir(most, seed)
        self._held_out: dict[int, Tensor] = {}
        self._pairs: dict[tuple[int, int], Tensor] = {}

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        # Fewer than the images would fill, where tiles or near-duplicates share a fold.
        self._folds = max(self._folds, int(folds.max()) + 1)
        rows = features.flatten(2).transpose(1, 2)
        if self._first is not None:
            rows = rows @ self._first.float()
        for part in (self._channels, self._locations, self._sample, self._maps):
            if part is not None:
                part.update(rows, folds)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        model = self._model(() if without is None else (without,), progress)
        if without is not None and self._maps is not None:
            self._held_out[without] = self._judge(model, without)
        if self._maps is not None:
            model.zscore = self._zscore(without, progress)
        return self._with_projection(model).eval()

    def _zscore(self, without: int | None, progress: Progress) -> Tensor:
        """Return mean and deviation ``(2, 2)`` of both distances over normals that their model never saw.

        For the final model these are all folds, each judged without itself; for the model without fold k another
        fold, judged without both, so that fold k has no part in its own scale.
        """
        if without is not None and self._folds > 2:
            values = self._judged_without_both(without, progress)
        else:
            # With two folds nothing is left without both of them: then both models take the final one's scale.
            for fold in range(self._folds):
                if fold not in self._held_out:
                    self._held_out[fold] = self._judge(self._model((fold,), silent), fold)
            values = torch.cat([self._held_out[fold] for fold in range(self._folds)], dim=1)
        mean, deviation = values.mean(1), values.std(1)
        # A spread below a thousandth of the distance is rounding, as among copies of one image.
        deviation = torch.maximum(deviation, (1e-3 * mean).clamp(min=1e-6))
        weights = torch.tensor([1.0, self._settings.centroid_weight], dtype=torch.float64)
        return torch.stack([mean, deviation / weights], dim=1).float()

    def _judged_without_both(self, without: int, progress: Progress) -> Tensor:
        """Return both distances ``(2, n)`` of the fold that sets the scale of the model without a fold."""
        # Folds go in pairs, since one model without both serves either; the last of an odd number takes the first.
        other = without ^ 1 if without ^ 1 < self._folds else 0
        if (without, other) not in self._pairs:
            model = self._model((without, other), progress)
            self._pairs[without, other] = self._judge(model, other)
            self._pairs[other, without] = self._judge(model, without)
        return self._pairs[without, other]

    def _judge(self, model: NPadHead, fold: int) -> Tensor:
        """Return both distances ``(2, n)`` float64 of all cells of the kept maps of a fold."""
        assert self._maps is not None
        found = [torch.stack(model.distances(rows[None], self._grid)).flatten(1) for rows in self._maps.fold(fold)]
        return torch.cat(found, dim=1).double()

    def _with_projection(self, model: NPadHead) -> NPadHead:
        """Put the projection made before the statistics in front of the model's own."""
        if self._first is not None:
            own = model.projection
            model.projection = (self._first if own is None else self._first @ own.double()).float()
        return model

    def _model(self, without: Collection[int], progress: Progress) -> NPadHead:
        """Return the head for features as they were gathered, fitted on all folds but some; it has no z-scores yet."""
        used = [fold for fold in range(self._folds) if fold not in without]
        names = " and ".join(str(fold + 1) for fold in sorted(without))
        suffix = f" without fold{'s' if len(without) > 1 else ''} {names}" if without else ""
        basis = self._basis(used)
        gaussians = centroids = None
        condition = jitter = 0.0
        if self._locations is not None:
            gaussians, condition, jitter = self._gaussians(used, basis, f"covariances{suffix}", progress)
        if self._sample is not None:
            progress(f"centroids{suffix}", 0, 1)
            patches = self._sample.patches(without)
            if basis is not None:
                patches = patches @ basis.float()
            centroids = NearestNeighbourHead(kmeans(patches, self._settings.centroids, self._seed))
            progress(f"centroids{suffix}", 1, 1)
        projection = None if basis is None else basis.float().contiguous()
        return NPadHead(projection, gaussians, centroids, condition=condition, jitter=jitter)

    def _basis(self, used: list[int]) -> Tensor | None:
        """Return the principal axes ``(C, d)`` float64 in columns, scaled where they are to be whitened."""
        if self._channels is None:
            return None
        covariance = self._channels.moments(used)[1]
        whitened = self._settings.projection == "whitened"
        axes = whitening_axes(covariance, _FLOOR) if whitened else principal_axes(covariance)[1]
        return axes[:, : self._dimensions]

    def _gaussians(
        self, used: list[int], basis: Tensor | None, stage: str, progress: Progress
    ) -> tuple[LocationGaussians, float, float]:
        """Return the Gaussians with their largest condition number and jitter."""
        assert self._locations is not None
        settings, size = self._settings, self._dimensions
        cells = self._grid[0] * self._grid[1]
        dtype = torch.float16 if settings.storage == "fp16" else torch.float32
        rank = None if settings.rank is None or settings.rank >= size else settings.rank
        mean = torch.empty(cells, size)
        entries = (size * (size + 1) // 2,) if rank is None else (rank, size)
        stored = torch.empty(cells, *entries, dtype=dtype)
        precision = torch.empty(cells)
        ridge = settings.regularisation * torch.eye(size, dtype=torch.float64)
        final = len(used) == self._folds  # the condition number costs time, and of a held-out model nobody asks
        condition = jitter = 0.0
        for part, center, covariance in self._locations.window_gaussians(used, self._grid, settings.window, basis):
            mean[part] = center.float()
            covariance = covariance + ridge
            if rank is not None:
                factors, inverse = whiten_low_rank(covariance, rank, settings.regularisation)
                stored[part], precision[part] = factors.to(dtype), inverse.float()
            else:
                whitening, added = whiten(covariance)
                stored[part] = pack_triangles(whitening).to(dtype)
                jitter = max(jitter, added)
            if final:
                spectrum = torch.linalg.eigvalsh(covariance).clamp(min=settings.regularisation)
                condition = max(condition, float((spectrum[:, -1] / spectrum[:, 0]).max()))
            progress(stage, part.stop, cells)
        if not bool(torch.isfinite(stored).all()):
            raise ConfigError("storage=fp16 cannot hold these Gaussians; raise regularisation or leave storage out")
        form = LowRankWhitening(stored, precision) if rank is not None else TriangularWhitening(stored)
        return LocationGaussians(mean, form, settings.evaluation_window), condition, jitter
