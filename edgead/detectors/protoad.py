"""ProtoAD: one minus the cosine to the nearest of a few prototypes of normal patches.

Huang, Kang, Wu, "A Prototype-Based Neural Network for Image Anomaly Detection and Localization" (ProtoAD), Neural
Processing Letters 2024, arXiv 2310.02576. Unit features, prototypes by clustering, the prototypes as a 1x1
convolution (here a matrix product). The paper clusters with FINCH (Sarfraz, Sharma, Stiefelhagen, "Efficient
Parameter-free Clustering Using First Neighbor Relations", CVPR 2019), which finds the number itself; for a device that
number is capped, and then spherical k-means makes the most of it.

The whitening before the unit length is ours. Features as they come lie along a few directions of large variance: these
fill the cosine, and what a defect changes in all others is lost. Chosen on planted defects of normals
(docs/decisions/npad-protoad.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.feature_statistics import ChannelStatistics, require_finite, whitening_axes
from edgead.detectors.gaussian import RIDGE
from edgead.detectors.sampling import PatchReservoir, kmeans
from edgead.features.features import FeatureExtractor
from edgead.runtime.progress import Progress

# Rows compared with all others at a time.
_CHUNK = 1024


class ProtoAD:
    """The detector; see the module's text."""

    name = "protoad"

    class Settings(base.Settings):
        """Settings of ProtoAD.

        Attributes:
            prototypes: K, of spherical k-means; None leaves the number to FINCH, which may find thousands.
            level: partition of FINCH, 0 the finest; the coarsest where there are fewer. Only without ``prototypes``.
            whiten: scale the principal axes of the features to about one variance before they get unit length.
            max_patches: patches kept for k-means, a seeded sample over all images above that.
            finch_patches: the same for FINCH, whose cost grows with the square.
        """

        prototypes: int | None = Field(default=384, ge=1, le=65_536)
        level: int = Field(default=0, ge=0)
        whiten: bool = True
        max_patches: int = Field(default=100_000, ge=1)
        finch_patches: int = Field(default=10_000, ge=2, le=100_000)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        return extractor

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> base.Collector:
        return _Prototypes(self.settings, images, extractor, seed)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        # Models of earlier versions have no whitening.
        whitening = torch.empty_like(tensors["whitening"]) if "whitening" in tensors else None
        return PrototypeHead(torch.empty_like(tensors["prototypes"]), whitening)

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        if "prototypes" in fixed or self.settings.prototypes is None:
            return [self.settings]
        patches = min(self.settings.max_patches, cells * images)
        counts = base.steps(self.settings.prototypes, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4), patches)
        return [self.settings.model_copy(update={"prototypes": count}) for count in counts]


class PrototypeHead(nn.Module):
    """``1 - max_k cos(f, c_k)``, 0 to 2, of features f whitened or as they come.

    Args:
        prototypes: ``(C, K)`` float32, unit columns.
        whitening: ``(C, C)`` float32; None for none.
    """

    prototypes: Tensor
    whitening: Tensor | None

    def __init__(self, prototypes: Tensor, whitening: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("whitening", whitening)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        height, width = features.shape[2], features.shape[3]
        rows = features.flatten(2).transpose(1, 2)
        if self.whitening is not None:
            rows = rows @ self.whitening
        cosines = unit(rows) @ self.prototypes
        return (1.0 - cosines.amax(2)).reshape(-1, height, width), None


class _Prototypes:
    """A sample of patches, the whitening of all of them, and the clusters of the sample.

    An image cannot be left out afterwards: clusters are means over many images, and without one of them they would not
    be these less its patches, but others. So each fold has clusters of its own.
    """

    def __init__(self, settings: ProtoAD.Settings, images: int, extractor: FeatureExtractor, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        capacity = settings.finch_patches if settings.prototypes is None else settings.max_patches
        cells = extractor.grid[0] * extractor.grid[1]
        self._sample = PatchReservoir(capacity, images, cells, extractor.channels, seed)
        self._channels = None
        self._folds = 0  # that have come
        if settings.whiten:
            self._channels = ChannelStatistics(min(base.FOLDS, images), extractor.channels)

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        self._folds = max(self._folds, int(folds.max()) + 1)
        rows = features.flatten(2).transpose(1, 2)
        self._sample.update(rows, folds)
        if self._channels is not None:
            self._channels.update(rows, folds)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        stage = "prototypes" if without is None else f"prototypes without fold {without + 1}"
        progress(stage, 0, 1)
        patches, whitening = self._sample.patches(() if without is None else (without,)), None
        if self._channels is not None:
            used = [fold for fold in range(self._folds) if fold != without]
            # About the mean, which is kept in the features: an angle seen from the middle of them all is blind to how
            # far away a feature lies, and features near it have any direction.
            whitening = whitening_axes(self._channels.moments(used)[1], RIDGE).float()
            patches = patches @ whitening
        patches = unit(patches)
        if self._settings.prototypes is None:
            partitions = finch(patches)
            prototypes = cluster_means(patches, partitions[min(self._settings.level, len(partitions) - 1)])
        else:
            # On unit vectors squared distance and cosine order alike; the centres then go back onto the sphere.
            prototypes = unit(kmeans(patches, self._settings.prototypes, self._seed))
        progress(stage, 1, 1)
        return PrototypeHead(prototypes.T.contiguous(), whitening).eval()


def unit(rows: Tensor) -> Tensor:
    """Return ``rows (..., C)`` at length one; zero stays zero."""
    return rows / torch.sqrt((rows * rows).sum(-1, keepdim=True)).clamp(min=1e-12)


def finch(points: Tensor) -> list[NDArray[np.int64]]:
    """Cluster unit vectors by first neighbours, from fine to coarse.

    Two points are linked where one is the other's nearest, or both have the same nearest; the connected components are
    the clusters. Their means are clustered in the same way until one is left; each level at least halves their number.

    Args:
        points: ``(n, C)`` float32, unit rows.

    Returns:
        Labels ``(n,)`` from 0, one array a level, finest first; at least one level.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    require_finite(points)
    levels: list[NDArray[np.int64]] = []
    labels = np.arange(len(points))
    current = points
    while len(current) > 1:
        neighbours = _first_neighbours(current)
        count = len(current)
        # Points that share a neighbour are linked through it, so the edges to the neighbours are all that is needed.
        edges = coo_matrix((np.ones(count, np.int8), (np.arange(count), neighbours)), shape=(count, count))
        _, merged = connected_components(edges, directed=False)
        labels = merged[labels].astype(np.int64)
        levels.append(labels)
        current = cluster_means(points, labels)
    return levels or [labels]


def cluster_means(points: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """Return the unit mean directions ``(K, C)`` of the clusters of ``points (n, C)``."""
    sums = torch.zeros(int(labels.max()) + 1, points.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(labels), points.double())
    return unit(sums).float()


def _first_neighbours(points: Tensor) -> NDArray[np.int64]:
    """Return the index ``(n,)`` of the row with the largest cosine to each row, itself excluded."""
    found = []
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        cosines = part @ points.T
        cosines[torch.arange(len(part)), torch.arange(start, start + len(part))] = -2.0
        found.append(cosines.argmax(1))
    result: NDArray[np.int64] = torch.cat(found).numpy()
    return result
