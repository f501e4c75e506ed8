"""DFC: classify an unlabelled part first, then detect with the head of its category.

After "DFC" (Knowledge-Based Systems 311, 2025, 113134), of which the abstract gives the idea: category anchors from the
features of a small training subset (CAC), votes of local features for a category (CIM), local features routed to heads
that are trained separately (LFR). No code was found; grouping, anchors, the rule for unknown parts and all figures are
our reconstruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from edgead.detectors import base
from edgead.detectors.anchors import Grouping, group_images, make_anchors
from edgead.detectors.feature_statistics import require_finite
from edgead.detectors.routing import CategoryModule, RoutedModule, Router
from edgead.features.features import FeatureExtractor
from edgead.features.scoring import ScoringModule
from edgead.runtime.bundle.layout import fold_name
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import Progress

_PATCHES_AN_IMAGE = 128  # local features kept of each sampled image for the anchors
_UNKNOWN_QUANTILE = 0.005
_ROUNDING = 1e-5  # similarities of one image on two runtimes differ by less
_LEAST_IMAGES = 2 * base.FOLDS  # of a category, so that every fold of a head has two


@dataclass(frozen=True, slots=True)
class CategoryFit:
    """What was learned of one category.

    Attributes:
        images: indices of its training images in the pool.
        minimum_similarity: below it an image is not taken for a part of this category.
        sources: where its training images came from, folder name -> count.
    """

    name: str
    images: tuple[int, ...]
    minimum_similarity: float
    sources: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PooledFit:
    """A fitted model of several categories.

    Attributes:
        module: routes and scores.
        normal_scores: ``(n,)`` of the pool's images by models that never saw them, in deviations of their category.
        normal_levels: ``(n,)`` means of their anomaly maps, likewise.
        categories: in the order of the router's columns, which is that of their names.
        silhouettes: number of categories -> mean silhouette, where the number was looked for.
        purity: share of the images that lie in a category together with most of their folder's.
    """

    module: RoutedModule
    normal_scores: NDArray[np.float64]
    normal_levels: NDArray[np.float64]
    categories: tuple[CategoryFit, ...]
    silhouettes: Mapping[int, float]
    purity: float


class Dfc:
    """The detector; see the module's text. It takes several categories at once, and fits one model of all of them."""

    name = "dfc"
    pools_categories = True

    class Settings(BaseModel):
        """Settings of DFC; an unknown key is an error.

        Attributes:
            head: detector of each category, any that takes a single one.
            head_settings: of that detector, given as ``head.KEY``.
            categories: how many there are; None finds the number.
            most_categories: the largest number that is tried where it is not given.
            anchors: unit patches kept of each category to vote for it.
            sample_images: images whose descriptors are grouped, a seeded sample above that.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

        head: str = "patchcore"
        head_settings: dict[str, Any] = Field(default_factory=dict)
        categories: int | None = Field(default=None, ge=1, le=100)
        most_categories: int = Field(default=12, ge=2, le=100)
        anchors: int = Field(default=32, ge=1, le=1024)
        sample_images: int = Field(default=512, ge=10)

        @model_validator(mode="before")
        @classmethod
        def _gather(cls, values: Any) -> Any:
            """Take ``head.KEY`` for ``head_settings[KEY]``."""
            if not isinstance(values, dict):
                return values
            own = {key.removeprefix("head."): value for key, value in values.items() if key.startswith("head.")}
            rest = {key: value for key, value in values.items() if not key.startswith("head.")}
            given = rest.get("head_settings", {})
            if own and isinstance(given, dict):
                rest["head_settings"] = {**given, **own}
            return rest

    def __init__(self, settings: Settings | None = None) -> None:
        from edgead.detectors import create_detector, learns, pools_categories

        settings = settings or self.Settings()
        if pools_categories(settings.head):
            raise ConfigError(f"the head of detector 'dfc' is a detector of one category, not '{settings.head}'")
        if learns(settings.head):
            raise ConfigError(
                f"the head of detector 'dfc' is a closed-form detector, and '{settings.head}' trains a network; "
                "fit one model for each category"
            )
        self._given = dict(settings.head_settings)
        self._head = create_detector(settings.head, settings.head_settings)
        # All of them, so that a model says what its heads were fitted with, whatever later defaults are.
        self.settings = settings.model_copy(update={"head_settings": self._head.settings.model_dump()})

    def ladder(self, channels: int, cells: int, images: int, fixed: Collection[str]) -> Sequence[Settings]:
        """Return the ladder of the head; what was given of the head's settings keeps its value."""
        del fixed  # the head's own are those of its settings that were given
        given = self._given
        # The smallest category sets what a head can be filled with, and how many there are is not known yet.
        share = images // (self.settings.categories or self.settings.most_categories)
        rungs = self._head.ladder(channels, cells, max(_LEAST_IMAGES, share), given)
        first, *others = [rung.model_dump() for rung in rungs]
        varied = [name for name in first if any(other[name] != first[name] for other in others)]
        return [
            self.settings.model_copy(
                update={"head_settings": {**given, **{name: getattr(rung, name) for name in varied}}}
            )
            for rung in rungs
        ]

    @torch.inference_mode()
    def fit(
        self,
        images: base.TrainingImages,
        sources: Sequence[str],
        extractor: FeatureExtractor,
        *,
        seed: int,
        progress: Progress,
        batch: int = 8,
    ) -> PooledFit:
        """Fit on a pool of normal images of several categories.

        Args:
            images: the pool; nobody says which image shows what.
            sources: name of the folder of each image. They name the categories that were found, and nothing else.
            extractor, seed, progress, batch: as in `fit_closed_form`.

        Raises:
            DataError: a category has too few images, or features are not finite.
        """
        needed = (self.settings.categories or 1) * _LEAST_IMAGES
        if len(images) < needed:
            raise DataError(f"{len(images)} good images are too few, {needed} are needed, {_LEAST_IMAGES} a category")
        passes = base.Passes(images, extractor, batch, progress)
        pool = _sample(passes, self.settings, seed)
        grouping = group_images(pool.descriptors, self.settings.categories, self.settings.most_categories)
        anchors, held_out = _anchors(pool, grouping, self.settings.anchors, seed)
        routed = _route(passes, anchors, held_out, pool.folds)
        members = [np.flatnonzero(routed.labels == k) for k in range(grouping.count)]
        names = _names(members, sources)
        _require_enough(members, names, len(images))
        order = sorted(range(grouping.count), key=names.__getitem__)
        scores, levels = np.empty(len(images), np.float64), np.empty(len(images), np.float64)
        heads, categories = [], []
        for k in order:
            rows, name = members[k].tolist(), names[k]
            fitted = base.fit_closed_form(
                self._head,
                images.select(rows),
                extractor,
                seed=seed,
                progress=_prefixed(progress, name),
                batch=batch,
            )
            mean, deviation = float(fitted.normal_scores.mean()), float(fitted.normal_scores.std())
            deviation = max(deviation, 1e-6, 1e-3 * abs(mean))
            scores[rows] = (fitted.normal_scores - mean) / deviation
            levels[rows] = (fitted.normal_levels - mean) / deviation
            heads.append(CategoryModule(fitted.module, mean, deviation))
            categories.append(CategoryFit(name, tuple(rows), routed.minimum(k), Counter(sources[row] for row in rows)))
        module = RoutedModule(Router(extractor, anchors[order]), heads).eval()
        largest = sum(max(category.sources.values()) for category in categories)
        return PooledFit(
            module.requires_grad_(False),
            scores,
            levels,
            tuple(categories),
            grouping.silhouettes,
            largest / len(images),
        )

    def empty(self, extractor: FeatureExtractor, tensors: Mapping[str, Tensor], seed: int) -> RoutedModule:
        """Return a module with the shapes of saved ``tensors``, ready for `RoutedModule.load_tensors`."""
        anchors = torch.empty_like(tensors["router.anchors"])
        heads = []
        for number in range(len(anchors)):
            start = f"heads.{number}.module.head."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            module = ScoringModule(
                self._head.extractor(extractor, seed),
                self._head.empty_head(own),
                smooth=bool(self._head.settings.smooth),
            )
            heads.append(CategoryModule(module))
        return RoutedModule(Router(extractor, anchors), heads)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Descriptors ``(m, D)`` and patches ``(m, p, C)`` of the sampled images, their indices, and every image's fold."""

    indices: NDArray[np.int64]
    descriptors: NDArray[np.float32]
    patches: Tensor
    folds: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Routed:
    """Category ``(n,)`` of every image and its similarity ``(n, K)``, with the anchors of a fold that it is not in."""

    labels: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def minimum(self, category: int) -> float:
        """Return the similarity that separates parts of a category from everything else.

        It lies midway between the least similar held-out parts (their .5 % quantile) and the most similar image of any
        other category, which stands for parts never seen. The quantile alone (methods section 5) would call most
        defective parts unknown: they are less similar than any good one, and far more than a part of another kind.
        """
        own = self.similarity[self.labels == category, category]
        others = self.similarity[self.labels != category, category]
        least = float(np.quantile(own, _UNKNOWN_QUANTILE))
        # Of a single category nobody knows how near others come; as far again as the good parts spread is left to it.
        foreign = float(others.max()) if len(others) else least - 2.0 * (float(np.median(own)) - least)
        return float(np.clip(min(least, (least + foreign) / 2.0) - _ROUNDING, -1.0, 1.0))


def _sample(passes: base.Passes, settings: Dfc.Settings, seed: int) -> _Pool:
    total, extractor = len(passes.images), passes.extractor
    random = np.random.default_rng(seed)
    indices = np.sort(random.choice(total, min(total, settings.sample_images), replace=False))
    cells = extractor.grid[0] * extractor.grid[1]
    deepest = extractor.backbone.channels[-1]
    descriptors, patches = [], []
    chosen_images = passes.images.select(indices.tolist())
    for _, features in replace(passes, images=chosen_images).features("categories"):
        mean = features[:, -deepest:].mean((2, 3)).numpy()
        descriptors.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
        for image in features.flatten(2).transpose(1, 2):
            chosen = random.choice(cells, min(cells, _PATCHES_AN_IMAGE), replace=False)
            patches.append(image[torch.from_numpy(chosen)])
    rows = np.concatenate(descriptors)
    require_finite(torch.from_numpy(rows))
    return _Pool(indices, rows, torch.stack(patches), base.assign_folds(total, seed))


def _anchors(pool: _Pool, grouping: Grouping, size: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return the anchors ``(K, A, C)`` of all sampled images, and those made without each fold."""

    def make(fold: int | None) -> Tensor:
        parts = []
        for category in range(grouping.count):
            own = grouping.labels == category
            kept = own & (pool.folds[pool.indices] != fold) if fold is not None else own
            # A category whose few samples are all in one fold has no other.
            parts.append(pool.patches[torch.from_numpy(np.flatnonzero(kept if kept.any() else own))].flatten(0, 1))
        return make_anchors(parts, size, seed)

    return make(None), [make(fold) for fold in range(int(pool.folds.max()) + 1)]


def _route(passes: base.Passes, anchors: Tensor, held_out: Sequence[Tensor], folds: NDArray[np.int64]) -> _Routed:
    images, extractor = passes.images, passes.extractor
    router, routers = Router(extractor, anchors), [Router(extractor, one) for one in held_out]
    labels = np.empty(len(images), np.int64)
    similarity = np.empty((len(images), len(anchors)), np.float64)
    for first, features in passes.features("routing"):
        labels[first : first + len(features)] = router.route(features)[0].argmax(1).numpy()
        for row in range(len(features)):
            nearest = routers[folds[first + row]].nearest(features[row : row + 1])
            similarity[first + row] = nearest.mean(1)[0].double().numpy()
    return _Routed(labels, similarity)


def _names(members: Sequence[NDArray[np.int64]], sources: Sequence[str]) -> list[str]:
    """Name each category after the folder that most of its images came from; numbers tell equal names apart."""
    if len(set(sources)) == 1 and len(members) > 1:
        return [f"category-{number}" for number in range(1, len(members) + 1)]
    names: list[str] = []
    # A folder may be called like a numbered one, and names become files, which some systems tell apart less strictly.
    taken = {fold_name(source) for source in sources}
    for number, rows in enumerate(members, start=1):
        name = Counter(sources[row] for row in rows).most_common(1)[0][0] if len(rows) else f"category-{number}"
        if name in names:
            name = next(new for n in count(2) if fold_name(new := f"{name}-{n}") not in taken)
            taken.add(fold_name(name))
        names.append(name)
    return names


def _require_enough(members: Sequence[NDArray[np.int64]], names: Sequence[str], total: int) -> None:
    for name, rows in zip(names, members, strict=True):
        if len(rows) < _LEAST_IMAGES:
            raise DataError(
                f"category '{name}' of {len(members)} has {len(rows)} of the {total} images and needs {_LEAST_IMAGES}; "
                "add images like them, take them out, or give another number with --set categories=N"
            )


def _prefixed(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
