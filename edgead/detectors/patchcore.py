"""PatchCore: distance of each patch to its nearest neighbour in a memory bank of normal patches.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022. Patches are compared by Euclidean
distance; the bank is a greedy k-centre coreset of a fixed number of rows, so cost on the device does not grow with the
training set.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.heads import NearestNeighbourHead
from edgead.detectors.sampling import PatchReservoir
from edgead.features.coreset import greedy_coreset
from edgead.features.features import FeatureExtractor
from edgead.runtime.progress import Progress

# With fewer rows a group, what a group's own rows covered has no other row near, while a bank made without that group
# would have one: on real images the mean score rose by 2 to 10 % with 1 to 5 rows an image, by 1 to 4 % with 10 to 13.
_LEAST_ROWS = 16


class PatchCore:
    """The detector; see the module's text."""

    name = "patchcore"

    class Settings(base.Settings):
        """Settings of PatchCore.

        Attributes:
            bank_size: rows of the memory bank.
            max_patches: patches kept for the selection, a seeded sample over all images above that.
            projection: dimensions of a random projection for the selection; None selects by exact distances.
            reweight: weigh the image score by the neighbourhood of the nearest bank row (paper, equation 7).
            neighbours: bank rows in that neighbourhood.
        """

        bank_size: int = Field(default=4096, ge=1, le=1_000_000)
        max_patches: int = Field(default=200_000, ge=1)
        projection: int | None = Field(default=None, ge=1)
        reweight: bool = False
        neighbours: int = Field(default=9, ge=2, le=64)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def extractor(self, extractor: FeatureExtractor, seed: int) -> FeatureExtractor:
        return extractor

    def collector(self, images: int, extractor: FeatureExtractor, seed: int) -> base.Collector:
        return _Bank(self.settings, images, extractor, seed)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        neighbours = tensors.get("neighbours")
        return NearestNeighbourHead(
            torch.empty_like(tensors["bank"]), None if neighbours is None else torch.empty_like(neighbours)
        )

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[base.Settings]:
        if "bank_size" in fixed:
            return [self.settings]
        patches = min(self.settings.max_patches, cells * images)
        sizes = base.steps(self.settings.bank_size, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2), patches)
        return [self.settings.model_copy(update={"bank_size": size}) for size in sizes]


class _Bank:
    """A sample of patches and the coreset of it."""

    def __init__(self, settings: PatchCore.Settings, images: int, extractor: FeatureExtractor, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        cells = extractor.grid[0] * extractor.grid[1]
        self._sample = PatchReservoir(settings.max_patches, images, cells, extractor.channels, seed)
        self._owners = np.empty(0, np.int64)  # image of each row of the bank of all images

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        self._sample.update(features.flatten(2).transpose(1, 2), folds)

    def head(self, without: int | None, progress: Progress) -> NearestNeighbourHead:
        patches = self._sample.patches(() if without is None else (without,))
        selected = greedy_coreset(
            patches,
            self._settings.bank_size,
            seed=self._seed,
            projection=self._settings.projection,
            progress=progress,
            stage="coreset" if without is None else f"coreset without fold {without + 1}",
        )
        bank = patches[selected]
        neighbours = None
        if self._settings.reweight:
            count = min(self._settings.neighbours, len(bank))
            rows = [torch.cdist(part, bank).topk(count, largest=False).indices for part in torch.split(bank, 2048)]
            neighbours = torch.cat(rows)
        if without is None:
            self._owners = self._sample.owners[selected.numpy()]
        return NearestNeighbourHead(bank, neighbours).eval()

    # The bank is there already, so there is no work to tell of.
    def leave_out(self, head: nn.Module, groups: NDArray[np.int64], progress: Progress) -> base.LeftOut | None:
        assert isinstance(head, NearestNeighbourHead)
        owners = groups[self._owners]
        if len(owners) < _LEAST_ROWS * len(np.unique(groups)) or len(np.unique(owners)) < 2:
            return None
        return _OtherGroups(head, torch.from_numpy(owners), self._settings.neighbours)


class _OtherGroups:
    """Compares each training image with the bank rows of other groups: with what the bank is without its own.

    Against banks made anew without each image the largest scores, which make the threshold, are about the same; small
    ones are a little higher, see `_LEAST_ROWS`.

    Args:
        head: fitted on all images.
        owners: ``(M,)`` group of each bank row.
        neighbours: bank rows in the neighbourhood of the re-weighting.
    """

    def __init__(self, head: NearestNeighbourHead, owners: Tensor, neighbours: int) -> None:
        self.head = head
        self._owners = owners
        self._neighbours = neighbours

    def __call__(self, features: Tensor, groups: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        queries = features.flatten(2).transpose(1, 2) - self.head.center
        found = [self._judge(query, self._owners == int(group)) for query, group in zip(queries, groups, strict=True)]
        distances = torch.stack([one for one, _ in found])
        weights = [weight for _, weight in found if weight is not None]
        return distances.reshape(-1, *features.shape[2:]), torch.stack(weights) if weights else None

    def _judge(self, query: Tensor, own: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the distances ``(P,)`` of one image, and its weight: what the head computes, without its own rows."""
        head = self.head
        products = (F.pad(query, (0, 1), value=1.0) @ head.keys).masked_fill_(own, float("inf"))
        least, row = products.min(1)
        distances = torch.sqrt((query.square().sum(1) + least).clamp(min=0.0))
        if head.neighbours is None:
            return distances, None
        worst = int(distances.argmax())
        apart = (head.bank - head.bank[row[worst]]).square().sum(1).masked_fill(own, float("inf"))
        around = apart.topk(min(self._neighbours, int((~own).sum())), largest=False).indices
        spread = torch.sqrt((query[worst] - (head.bank[around] - head.center)).square().sum(1))
        return distances, 1.0 - torch.softmax(spread, dim=0)[0]
