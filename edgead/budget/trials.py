"""What a rung of a ladder is measured with: some images to fit on, others to judge, features that are computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.detectors import pools_categories
from edgead.detectors.base import TrainingImages, fit_module
from edgead.detectors.routing import RoutedModule
from edgead.export.exportable import Exportable, Routing
from edgead.features.features import FeatureExtractor
from edgead.features.folding import Backbone
from edgead.features.scoring import ScoringModule
from edgead.probes import KINDS, plant
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.errors import DataError
from edgead.runtime.progress import Progress

# Of the painted defects. Where all are found, or none, rungs do not differ: PatchCore's AUROC at 256 pixels on metal
# plate and magnetic tile is .50 to .62 for structural kinds at 0.35, and .72 to .99 at 1 (10 images a kind).
STRENGTH = 0.8

_FITTED = 120  # images at most that a rung is fitted on, ...
_FITTED_A_SOURCE = 24  # ... but so many of each folder where a detector pools them
_HELD_OUT = 30
_LEAST_HELD_OUT = 3
_LEAST_IMAGES = 8
_MEMORY = 1 << 30  # bytes of backbone features kept; where images have many, fewer of them are used


@dataclass(frozen=True, slots=True)
class Trials:
    """Images that rungs are fitted on, and others that they judge, as they are and painted; every rung has the same.

    Attributes:
        normals: ``(n, h, w, 3)`` uint8, held out.
        painted: ``(m, h, w, 3)`` uint8, copies of them with one defect each.
        owners: ``(m,)`` the image that each is a copy of.
    """

    normals: NDArray[np.uint8]
    painted: NDArray[np.uint8]
    owners: NDArray[np.int64]
    _good: _Held
    _sources: Sequence[str]
    _extractor: FeatureExtractor

    @classmethod
    def of(
        cls,
        detector: Any,
        images: TrainingImages,
        sources: Sequence[str],
        extractor: FeatureExtractor,
        seed: int,
        progress: Progress,
    ) -> Trials:
        """Choose the images of a detector's trials and paint the defects; raises `DataError` where that cannot be."""
        pooled = pools_categories(detector.name)
        fitted, held_out = _split(sources, _room(images, extractor), pooled=pooled, seed=seed)
        normals = _Held.of(images, held_out).pixels
        painted, owners = _paint(normals, seed, progress)
        shared = _Remembered(extractor.backbone)
        remembered = FeatureExtractor(shared, extractor.grid, pooled=extractor.pooled).eval()
        return cls(normals, painted, owners, _Held.of(images, fitted), [sources[index] for index in fitted], remembered)

    @property
    def fitted(self) -> int:
        """Number of images that a rung is fitted on."""
        return len(self._good)

    @property
    def size(self) -> tuple[int, int]:
        """Network size ``(height, width)`` in pixels."""
        return self.normals.shape[1], self.normals.shape[2]

    def fit(self, detector: Any, references: Sequence[tuple[str, bytes]], seed: int, progress: Progress) -> Exportable:
        """Fit a rung. Its bundle is measured and thrown away, so its threshold, which is made up, decides nothing."""
        made_up = calibrate([0.0, 1.0])
        module: ScoringModule | RoutedModule
        routing = None
        counts = {"all": self.fitted}
        if pools_categories(detector.name):
            found = detector.fit(self._good, self._sources, self._extractor, seed=seed, progress=progress)
            routed: RoutedModule = found.module
            module = routed
            counts = {one.name: len(one.images) for one in found.categories}
            routing = Routing(
                router=routed.router,
                heads=dict(zip(counts, routed.heads, strict=True)),
                thresholds=dict.fromkeys(counts, made_up),
                minimum_similarity={one.name: one.minimum_similarity for one in found.categories},
            )
        else:
            module = fit_module(detector, self._good, self._extractor, seed=seed, progress=progress)
        return Exportable(
            name="rung",
            module=module,
            height=self.size[0],
            width=self.size[1],
            grid=module.extractor.grid,
            threshold=made_up,
            normal_scores=(0.0, 1.0),
            detector=detector.name,
            settings=detector.settings.model_dump(),
            categories=counts,
            references=references,
            provenance={},
            routing=routing,
        )

    def rank(self, model: Exportable) -> Ranking:
        """Return how a fitted rung judges the held-out images."""
        backend = model.torch_backend()
        scores = [np.asarray(backend.run(images).score, np.float64) for images in (self.normals, self.painted)]
        return Ranking.of(scores[0], scores[1], self.owners)


def _paint(normals: NDArray[np.uint8], seed: int, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Paint every kind of defect on each image that can show it; return the copies and the image of each."""
    painted, owners = [], []
    for index, image in enumerate(normals):
        progress("painted defects", index, len(normals))
        for number, kind in enumerate(KINDS):
            try:
                painted.append(plant(image, kind, seed + index * len(KINDS) + number, STRENGTH)[0])
            except DataError:
                continue  # the image shows no part, or is too uniform for this kind
            owners.append(index)
    if len(set(owners)) < 2:
        raise DataError(
            "no defects can be painted on these images, which are too uniform to choose settings by; "
            "omit --budget-mb and --budget-ms"
        )
    progress("painted defects", len(normals), len(normals))
    return np.stack(painted), np.array(owners)


def _split(sources: Sequence[str], room: int, *, pooled: bool, seed: int) -> tuple[list[int], list[int]]:
    """Return which images a rung is fitted on, and which others it judges; every folder gives its share of both.

    ``room``: images, painted ones too, whose features can be kept.
    """
    count = len(sources)
    if count < _LEAST_IMAGES:
        raise DataError(
            f"{count} good images are too few to choose settings by measurement, which takes {_LEAST_IMAGES}; "
            "add images, or omit --budget-mb and --budget-ms"
        )
    held_out = min(_HELD_OUT, max(_LEAST_HELD_OUT, count // 4))
    most = max(_FITTED, _FITTED_A_SOURCE * len(set(sources))) if pooled else _FITTED
    fitted = min(most, count - held_out)
    share = min(1.0, room / (fitted + held_out * (1 + len(KINDS))))
    fitted, held_out = max(_LEAST_HELD_OUT, int(fitted * share)), max(_LEAST_HELD_OUT, int(held_out * share))
    random = np.random.default_rng(seed)
    place = np.empty(count)
    for name in sorted(set(sources)):
        own = np.flatnonzero(np.array(sources) == name)
        place[random.permutation(own)] = (np.arange(len(own)) + 0.5) / len(own)
    order = np.argsort(place, kind="stable").tolist()
    return sorted(order[held_out : held_out + fitted]), sorted(order[:held_out])


def _room(images: TrainingImages, extractor: FeatureExtractor) -> int:
    first = next(images.select([0]).batches(1))
    with torch.inference_mode():
        taps = extractor.backbone(torch.from_numpy(first.copy()))
    return int(_MEMORY // (first.nbytes + sum(tap.nbytes for tap in taps)))


class _Held:
    """Images at network size in memory, ``(n, h, w, 3)`` uint8."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    @classmethod
    def of(cls, images: TrainingImages, indices: Sequence[int]) -> _Held:
        return cls(np.concatenate(list(images.select(indices).batches(8))))

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Sequence[int]) -> _Held:
        return _Held(self.pixels[list(indices)])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


class _Remembered(Backbone):
    """A backbone that computes an image once; asked again it gives the taps that it kept."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.body, backbone.mean.flatten().tolist(), backbone.channels)
        self._kept: dict[bytes, tuple[Tensor, ...]] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        keys = [hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest() for image in images]
        new = [row for row, key in enumerate(keys) if key not in self._kept]
        if new:
            for row, *taps in zip(new, *super().forward(images[new]), strict=True):
                self._kept[keys[row]] = tuple(taps)
        return tuple(torch.stack(taps) for taps in zip(*(self._kept[key] for key in keys), strict=True))
