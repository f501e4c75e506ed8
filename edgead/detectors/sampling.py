"""A bounded sample of the patches of all images, and its summary by k-means."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.detectors.feature_statistics import require_finite

_KMEANS_BATCH = 1024
_KMEANS_EPOCHS = 10


class PatchReservoir:
    """A seeded sample of patches over all images, each with the fold of its image.

    Args:
        capacity: patches kept at most.
        images: images that will come.
        cells: P, patches of an image.
        channels: C.
        seed: chooses the patches.
    """

    def __init__(self, capacity: int, images: int, cells: int, channels: int, seed: int) -> None:
        self._cells = cells
        total = images * self._cells
        keep = min(capacity, total)
        # Sampled before the pass, in image order: one draw, bounded memory, and the same patches for the same seed.
        generator = np.random.default_rng(seed)
        self._kept = np.sort(generator.choice(total, keep, replace=False)) if keep < total else np.arange(total)
        self._patches = torch.empty(keep, channels)
        self._folds = np.empty(keep, np.int64)
        self._seen = 0
        self._filled = 0

    def update(self, rows: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``rows (n, P, C)`` of n images and the fold ``(n,)`` of each."""
        patches = rows.reshape(-1, rows.shape[2])
        start = self._seen * self._cells
        low, high = np.searchsorted(self._kept, [start, start + len(patches)])
        local = self._kept[low:high] - start
        end = self._filled + len(local)
        self._patches[self._filled : end] = patches[torch.from_numpy(local)]
        self._folds[self._filled : end] = folds[local // self._cells]
        self._filled = end
        self._seen += len(rows)

    @property
    def owners(self) -> NDArray[np.int64]:
        """Index ``(m,)`` of the image that each patch is of."""
        return np.asarray(self._kept // self._cells, np.int64)

    def patches(self, without: Collection[int] = ()) -> Tensor:
        """Return the patches ``(m, C)`` of every image, or of all but those of some folds."""
        if not without:
            return self._patches
        return self._patches[torch.from_numpy(np.flatnonzero(~np.isin(self._folds, list(without))))]


class MapReservoir:
    """A seeded sample of a few whole images' features of each fold (Vitter's algorithm R).

    Args:
        folds: number of folds.
        seed: chooses the images.
        capacity: images kept of each fold at most.
    """

    def __init__(self, folds: int, seed: int, capacity: int = 8) -> None:
        self._maps: list[list[Tensor]] = [[] for _ in range(folds)]
        self._seen = np.zeros(folds, np.int64)
        self._capacity = capacity
        self._random = np.random.default_rng(seed)

    def update(self, rows: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``rows (n, P, C)`` of n images and the fold ``(n,)`` of each."""
        for image, fold in zip(rows, folds, strict=True):
            kept = self._maps[fold]
            self._seen[fold] += 1
            place = int(self._random.integers(self._seen[fold]))
            if len(kept) < self._capacity:
                kept.append(image.clone())
            elif place < self._capacity:
                kept[place] = image.clone()

    def fold(self, fold: int) -> list[Tensor]:
        """Return the maps ``(P, C)`` kept of a fold."""
        return self._maps[fold]


def kmeans(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the centres ``(min(clusters, n), C)`` of mini-batch k-means; the points themselves where they are no more.

    Args:
        points: ``(n, C)`` float32.
        clusters: centres wanted.
        seed: of the initialisation (k-means++) and the batches.
    """
    require_finite(points)
    if len(points) <= clusters:
        return points.clone()
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    model = MiniBatchKMeans(
        clusters,
        random_state=seed,
        batch_size=_KMEANS_BATCH,
        max_iter=_KMEANS_EPOCHS,
        n_init=1,
        compute_labels=False,
    )
    # One thread: the batches are small, and on a busy machine OpenMP's threads wait for each other several times longer
    # than they compute. It also keeps a process that forks later free of a half-copied thread pool.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal points, such as a blank background, are no mistake
        model.fit(points.numpy())
    return torch.from_numpy(np.ascontiguousarray(model.cluster_centers_, dtype=np.float32))
