"""Categories of an unlabelled pool of images, and the anchors that tell them apart (DFC's CAC step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.detectors.protoad import unit
from edgead.detectors.sampling import kmeans
from edgead.runtime.errors import DataError

# A best silhouette below this says that no number of groups parts the images well, so they are taken for one category.
# One category alone gave .09 to .40 (two groups, four categories measured), four together .56.
_ONE_CATEGORY = 0.45


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a sample of images falls into categories.

    Attributes:
        labels: ``(n,)`` int64 from 0, the group of each image.
        silhouettes: number of groups -> mean silhouette, of every number that was tried; empty where it was given.
    """

    labels: NDArray[np.int64]
    silhouettes: dict[int, float]

    @property
    def count(self) -> int:
        return int(self.labels.max()) + 1


def group_images(descriptors: NDArray[np.float32], count: int | None, most: int) -> Grouping:
    """Group images by average linkage of their descriptors.

    Args:
        descriptors: ``(n, D)`` unit rows.
        count: number of groups; None takes the one with the best mean silhouette, or one group where none is good.
        most: largest number tried where ``count`` is None.

    Raises:
        DataError: fewer images than groups.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    n = len(descriptors)
    if count is not None and n < count:
        raise DataError(f"{n} images cannot show {count} categories")

    def split(groups: int) -> NDArray[np.int64]:
        if groups == 1:
            return np.zeros(n, np.int64)
        found = AgglomerativeClustering(groups, linkage="average").fit_predict(descriptors)
        return np.asarray(found, np.int64)

    if count is not None:
        return Grouping(split(count), {})
    silhouettes: dict[int, float] = {}
    best = split(1)
    for groups in range(2, min(most, n - 1) + 1):
        labels = split(groups)
        silhouettes[groups] = float(silhouette_score(descriptors, labels))
        if silhouettes[groups] >= max(_ONE_CATEGORY, max(silhouettes.values())):
            best = labels
    return Grouping(best, silhouettes)


def make_anchors(patches: Sequence[Tensor], per_category: int, seed: int) -> Tensor:
    """Return ``(K, A, C)`` unit anchors: the k-means centres of the unit patches ``(m, C)`` of each category.

    A category with fewer patches than anchors repeats some, so that all have the same number.
    """
    found = []
    for rows in patches:
        centers = unit(kmeans(unit(rows), per_category, seed))
        found.append(centers[torch.arange(per_category) % len(centers)])
    return torch.stack(found)
