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

# A few images that are like no others, such as a black one, are no category; each goes to the group nearest to it.
_STRAYS = 2
_STRAY_SHARE = 0.05  # of the images of a group, were all groups alike
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
    """Group images by average linkage of their descriptors; a few strays do not make a group.

    Args:
        descriptors: ``(n, D)`` unit rows.
        count: number of groups; None takes the one with the best mean silhouette, or one group where none is good.
        most: largest number tried where ``count`` is None.

    Raises:
        DataError: the images do not fall into so many groups.
    """
    from sklearn.metrics import silhouette_score

    cuts = _cuts(descriptors)
    if count is not None:
        given = _split(cuts, descriptors, count)
        if given is None:
            raise DataError(f"{len(descriptors)} images do not fall into {count} categories; give a smaller number")
        return Grouping(given, {})
    silhouettes: dict[int, float] = {}
    best = np.zeros(len(descriptors), np.int64)
    for groups in range(2, most + 1):
        labels = _split(cuts, descriptors, groups)
        if labels is None:
            break
        silhouettes[groups] = float(silhouette_score(descriptors, labels))
        if silhouettes[groups] >= max(_ONE_CATEGORY, max(silhouettes.values())):
            best = labels
    return Grouping(best, silhouettes)


def _cuts(descriptors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the groups ``(n, n)`` of every cut of the linkage tree, in column k - 1 those of k groups."""
    from scipy.cluster.hierarchy import cut_tree, linkage

    if len(descriptors) == 1:
        return np.zeros((1, 1), np.int64)
    tree = linkage(descriptors.astype(np.float64), "average")
    return np.asarray(cut_tree(tree)[:, ::-1], np.int64)


def _split(cuts: NDArray[np.int64], descriptors: NDArray[np.float32], groups: int) -> NDArray[np.int64] | None:
    """Return labels of the first cut that has so many groups beside strays, None where there is none."""
    most = max(_STRAYS, int(_STRAY_SHARE * len(descriptors) / groups)) if groups > 1 else 0
    for labels in cuts.T[groups - 1 :]:
        sizes = np.bincount(labels)
        large = np.flatnonzero(sizes > most)
        if len(large) == groups:
            centers = np.stack([descriptors[labels == group].mean(0) for group in large])
            nearest = large[(descriptors @ centers.T).argmax(1)]
            kept = np.where(sizes[labels] > most, labels, nearest)
            return np.asarray(np.searchsorted(large, kept), np.int64)
    return None


def make_anchors(patches: Sequence[Tensor], per_category: int, seed: int) -> Tensor:
    """Return ``(K, A, C)`` unit anchors: the k-means centres of the unit patches ``(m, C)`` of each category.

    A category with fewer patches than anchors repeats some, so that all have the same number.
    """
    found = []
    for rows in patches:
        centers = unit(kmeans(unit(rows), per_category, seed))
        found.append(centers[torch.arange(per_category) % len(centers)])
    return torch.stack(found)
