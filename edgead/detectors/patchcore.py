"""PatchCore: distance of each patch to its nearest neighbour in a memory bank of normal patches.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022. Patches are compared by Euclidean
distance; the bank is a greedy k-centre coreset of a fixed number of rows, so cost on the device does not grow with the
training set.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.coreset import Progress, greedy_coreset
from edgead.detectors import base
from edgead.features import FeatureExtractor


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
        return _PatchReservoir(self.settings, images, extractor, seed)

    def empty_head(self, tensors: dict[str, Tensor]) -> nn.Module:
        neighbours = tensors.get("neighbours")
        return NearestNeighbourHead(
            torch.empty_like(tensors["bank"]), None if neighbours is None else torch.empty_like(neighbours)
        )


class NearestNeighbourHead(nn.Module):
    """Distance to the nearest row of ``bank (M, C)``, in units of the features.

    ``min |q - m|^2 = |q|^2 + min(|m|^2 - 2 q m)``: one matrix product over the bank, whose constant factor and norm are
    stored in it. Queries and bank are centred on the bank's mean, which keeps the difference of squares accurate.

    Args:
        bank: ``(M, C)`` float32 rows.
        neighbours: ``(M, b)`` int64, each row's nearest bank rows (itself first); None without re-weighting.
    """

    bank: Tensor
    center: Tensor
    keys: Tensor
    neighbours: Tensor | None

    def __init__(self, bank: Tensor, neighbours: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("center", bank.mean(0))
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("keys", self._keys(), persistent=False)
        # A saved bank arrives through load_state_dict; what is computed from it must follow.
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Recompute what is derived from the bank."""
        self.keys = self._keys()

    def _keys(self) -> Tensor:
        rows = self.bank.double() - self.center.double()
        return torch.cat([-2.0 * rows, rows.square().sum(1, keepdim=True)], dim=1).T.float().contiguous()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        height, width = features.shape[2], features.shape[3]
        queries = features.flatten(2).transpose(1, 2) - self.center
        squared = F.pad(queries, (0, 1), value=1.0) @ self.keys
        norm = (queries * queries).sum(2)
        distances = torch.sqrt(torch.clamp(norm + squared.amin(2), min=0.0))
        weight = None if self.neighbours is None else self._weight(queries, squared, distances)
        return distances.reshape(-1, height, width), weight

    def _weight(self, queries: Tensor, squared: Tensor, distances: Tensor) -> Tensor:
        """Equation 7: one minus the softmax of the worst patch's distance among its neighbour's neighbourhood."""
        worst = distances.argmax(1)
        row = squared.argmin(2).gather(1, worst[:, None])[:, 0]
        patch = queries.gather(1, worst[:, None, None].expand(-1, 1, queries.shape[2]))
        assert self.neighbours is not None
        around = (self.bank - self.center)[self.neighbours[row]]
        difference = patch - around
        spread = torch.sqrt((difference * difference).sum(2))
        return 1.0 - torch.softmax(spread, dim=1)[:, 0]


class _PatchReservoir:
    """A seeded sample of patches over all images, each with the fold of its image."""

    def __init__(self, settings: PatchCore.Settings, images: int, extractor: FeatureExtractor, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._cells = extractor.grid[0] * extractor.grid[1]
        total = images * self._cells
        keep = min(settings.max_patches, total)
        # Sampled before the pass, in image order: one draw, bounded memory, and the same patches for the same seed.
        generator = np.random.default_rng(seed)
        self._kept = np.sort(generator.choice(total, keep, replace=False)) if keep < total else np.arange(total)
        self._patches = torch.empty(keep, extractor.channels)
        self._folds = np.empty(keep, np.int64)
        self._seen = 0
        self._filled = 0

    def update(self, features: Tensor, folds: NDArray[np.int64]) -> None:
        patches = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
        start = self._seen * self._cells
        low, high = np.searchsorted(self._kept, [start, start + len(patches)])
        local = self._kept[low:high] - start
        end = self._filled + len(local)
        self._patches[self._filled : end] = patches[torch.from_numpy(local)]
        self._folds[self._filled : end] = folds[local // self._cells]
        self._filled = end
        self._seen += len(features)

    def head(self, without: int | None, progress: Progress) -> nn.Module:
        patches = self._patches
        stage = "coreset"
        if without is not None:
            patches = patches[torch.from_numpy(np.flatnonzero(self._folds != without))]
            stage = f"coreset without fold {without + 1}"
        selected = greedy_coreset(
            patches,
            self._settings.bank_size,
            seed=self._seed,
            projection=self._settings.projection,
            progress=progress,
            stage=stage,
        )
        bank = patches[selected]
        neighbours = None
        if self._settings.reweight:
            count = min(self._settings.neighbours, len(bank))
            rows = [torch.cdist(part, bank).topk(count, largest=False).indices for part in torch.split(bank, 2048)]
            neighbours = torch.cat(rows)
        return NearestNeighbourHead(bank, neighbours).eval()
