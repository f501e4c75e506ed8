"""What defects at hand teach a closed-form detector: a term that raises the map where patches look like them.

A logistic regression tells the patches of the defective images that the detector finds worst from the worst ones, and
some others, of normal images (multiple-instance learning: of a defective image it is only known that it has a defect).
How strongly it counts is chosen by cross-validation over defects and normals, and it counts nothing where it does not
help, or where defects of a kind that it has not seen would be found worse. All scores that come out are of images that
neither detector nor term has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.detectors.base import Fit, Passes, assign_folds, one_a_group
from edgead.features.scoring import DefectTerm, ScoringModule
from edgead.metrics.metrics import image_auroc
from edgead.model.card_sections import LearnedDefectsCard
from edgead.runtime.decision.baseline import map_level

# Chosen on draws of 5 to 20 defects from one half of the test images of tile, screw and solar cells: beyond .2 some
# draws made what was not drawn worse, by up to .03 AUROC.
STRENGTHS = (0.0, 0.1, 0.2)
ONE_KIND = 0.1  # where defects of no other kind say what it would cost them
LEAST = 5  # defective images; fewer cannot show that a term helps
_WORST_DEFECTIVE, _WORST_NORMAL, _OTHERS = 4, 16, 8  # patches of an image
_RIDGE = 0.01  # inverse of the L2 penalty on the standardised features' weights
# What a term must gain, in standard errors, and what defects may lose, on average, to a term that has not seen their
# kind: of the AUROC, and of the logarithm of the share of normals that score as high.
_LEAST_GAIN, _MOST_LOSS, _MOST_LOG_LOSS = 1.0, 0.01, 0.2
_STAGE = "known defects"

Terms = Sequence[DefectTerm]


class HeldOutNormals:
    """Watches a fit: keeps what it needs to know of its held-out images, about 20 kB each at 256 pixels.

    Args:
        images: how many there are; tiles count.
        seed: of the sample of other patches.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.raw: list[Tensor] = [torch.empty(0)] * images
        self.weight: list[Tensor | None] = [None] * images
        self.patches: list[Tensor] = [torch.empty(0)] * images

    def __call__(self, rows: NDArray[np.int64], features: Tensor, raw: Tensor, weight: Tensor | None) -> None:
        for place, row in enumerate(rows.tolist()):
            self.raw[row] = raw[place].clone()
            self.weight[row] = None if weight is None else weight[place].clone()
            self.patches[row] = self._hard(features[place].flatten(1).T, raw[place].flatten())

    def _hard(self, patches: Tensor, distances: Tensor) -> Tensor:
        worst = distances.topk(min(_WORST_NORMAL, len(distances))).indices
        others = torch.from_numpy(self._rng.integers(0, len(distances), _OTHERS))
        return patches[torch.cat([worst, others])].clone()


@dataclass(frozen=True, slots=True)
class Taught:
    """A fit and what defects taught it.

    Attributes:
        fit: with the term in its module and scores, where it counts.
        defect_scores: ``(m,)`` of the defective images, by terms that have not seen them.
        card: what was tried and chosen.
    """

    fit: Fit
    defect_scores: NDArray[np.float64]
    card: LearnedDefectsCard


@dataclass(frozen=True, slots=True)
class DefectMaterial:
    """Normal and defective pictures, tile after tile, and the groups and kinds of the pictures.

    Attributes:
        normals, defects: passes over the images with the fitted module's extractor.
        held: what the fit showed of the normals.
        groups: ``(n,)`` of the normal pictures. kinds: of the defective ones.
        tiles: images a picture.
    """

    normals: Passes
    defects: Passes
    held: HeldOutNormals
    groups: NDArray[np.int64]
    kinds: Sequence[str]
    tiles: int
    seed: int


@torch.inference_mode()
def teach(fit: Fit, material: DefectMaterial) -> Taught:
    """Learn a term from defects, and put it into the fit's module where it earns its weight."""
    judged = HeldOutNormals(len(material.defects.images), material.seed)
    bags = _judge_defects(fit.module, material, judged)
    folds = assign_folds(len(material.groups), material.seed, groups=material.groups)
    defect_folds = _spread(material.kinds, int(folds.max()) + 1, material.seed)
    train = partial(_train, material, bags, folds, defect_folds)
    enough = len(material.kinds) >= LEAST
    kinds = sorted(set(material.kinds)) if enough and len(set(material.kinds)) > 1 else []
    sets = [[train(fold, kind) for fold in range(int(folds.max()) + 1)] for kind in [None, *kinds]] if enough else []
    normal = _scores(
        fit.module, material.normals, material.held, material.tiles, [[one[f] for one in sets] for f in folds]
    )
    own = [
        [sets[0][fold], sets[1 + kinds.index(kind)][fold]] if kinds else [one[fold] for one in sets]
        for fold, kind in zip(defect_folds, material.kinds, strict=True)
    ]
    found = _scores(fit.module, material.defects, judged, material.tiles, own)
    if not enough:
        return Taught(fit, found[:, 0, 0, 0], _card_of_few(len(material.kinds)))
    chosen, card = _choose(normal[..., 0], found[..., 0], material.kinds, kinds)
    if not chosen:
        return Taught(fit, found[:, 0, 0, 0], card)
    final = _train(material, bags, folds, defect_folds, None, None)
    term = DefectTerm(final.weight, final.bias, torch.tensor(STRENGTHS[chosen]))
    smooth = not isinstance(fit.module.smoothing, nn.Identity)
    module = ScoringModule(fit.module.extractor, fit.module.head, smooth=smooth, defects=term)
    module = module.eval().requires_grad_(False)
    scores, levels = normal[:, 0, chosen].T
    return Taught(one_a_group(module, scores, levels, material.groups), found[:, 0, chosen, 0], card)


def _judge_defects(module: ScoringModule, material: DefectMaterial, judged: HeldOutNormals) -> list[Tensor]:
    """Return of each defective picture its worst patches ``(k, C)``, and fill in what its images got."""
    worst: list[tuple[Tensor, Tensor]] = []
    for first, features in material.defects.features(_STAGE):
        raw, weight = module.head(features)
        judged(np.arange(first, first + len(features)), features, raw, weight)
        for patches, distances in zip(features, raw, strict=True):
            top = distances.flatten().topk(min(_WORST_DEFECTIVE, distances.numel()))
            worst.append((top.values, patches.flatten(1).T[top.indices]))
    bags = []
    for start in range(0, len(worst), material.tiles):
        values = torch.cat([one for one, _ in worst[start : start + material.tiles]])
        patches = torch.cat([one for _, one in worst[start : start + material.tiles]])
        bags.append(patches[values.topk(min(_WORST_DEFECTIVE, len(values))).indices].clone())
    return bags


def _spread(kinds: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each defective picture, with each kind spread over the folds."""
    order = np.random.default_rng(seed).permutation(len(kinds))
    by_kind = sorted(order.tolist(), key=lambda index: kinds[index])
    result = np.empty(len(kinds), np.int64)
    result[by_kind] = np.arange(len(kinds)) % folds
    return result


def _train(
    material: DefectMaterial,
    bags: Sequence[Tensor],
    folds: NDArray[np.int64],
    defect_folds: NDArray[np.int64],
    fold: int | None,
    kind: str | None,
) -> DefectTerm:
    """Return a term fitted on all pictures, or on those outside of a fold and of other kinds than ``kind``."""
    from sklearn.linear_model import LogisticRegression

    image_folds = np.repeat(folds, material.tiles)
    negative = torch.cat([one for one, f in zip(material.held.patches, image_folds, strict=True) if f != fold])
    positive = [
        bag
        for bag, f, own in zip(bags, defect_folds, material.kinds, strict=True)
        if f != fold and (kind is None or own != kind)
    ]
    if not positive:  # all defects of the other kinds are in this fold
        return DefectTerm(torch.zeros(negative.shape[1]), torch.tensor(-1e3), torch.tensor(1.0))
    mean, spread = negative.double().mean(0), negative.double().std(0).clamp(min=1e-6)
    rows = torch.cat([negative, *positive]).double()
    labels = np.r_[np.zeros(len(negative)), np.ones(len(rows) - len(negative))]
    model = LogisticRegression(C=_RIDGE, class_weight="balanced", solver="newton-cholesky", max_iter=200)
    model.fit(((rows - mean) / spread).numpy(), labels)
    weight = torch.from_numpy(model.coef_[0]) / spread
    bias = float(model.intercept_[0]) - float(weight @ mean)
    return DefectTerm(weight.float(), torch.tensor(bias, dtype=torch.float32), torch.tensor(1.0))


def _scores(
    module: ScoringModule, passes: Passes, judged: HeldOutNormals, tiles: int, terms: Sequence[Terms]
) -> NDArray[np.float64]:
    """Return score and level of each picture by each of its terms at each of `STRENGTHS`, ``(n, terms, strengths, 2)``.

    Args:
        terms: of each picture, as many for all; without any, what the detector alone gives stands there once.
    """
    result = np.empty((len(judged.raw), max(1, len(terms[0])), len(STRENGTHS), 2))
    for image, features in _one_by_one(passes, needed=bool(terms[0])):
        raw, weight = judged.raw[image][None], judged.weight[image]
        own = None if weight is None else weight[None]
        none = torch.zeros_like(raw)
        likenesses = [none] if features is None else [term(features) - 1.0 for term in terms[image // tiles]]
        for place, likeness in enumerate(likenesses):
            for number, strength in enumerate(STRENGTHS):
                score, grid = module.finish(raw * (1.0 + strength * likeness), own)
                result[image, place, number] = float(score[0]), map_level(grid[0].numpy())
    pictures = result.reshape(-1, tiles, *result.shape[1:])
    return np.stack([pictures[..., 0].max(axis=1), pictures[..., 1].mean(axis=1)], axis=-1)


def _one_by_one(passes: Passes, *, needed: bool) -> Iterator[tuple[int, Tensor | None]]:
    """Yield each image's features ``(1, C, gh, gw)``; None, and no work, where they are not ``needed``."""
    if not needed:
        yield from ((image, None) for image in range(len(passes.images)))
        return
    for first, features in passes.features(_STAGE):
        yield from ((first + place, one[None]) for place, one in enumerate(features))


def _choose(
    normal: NDArray[np.float64], found: NDArray[np.float64], own: Sequence[str], kinds: Sequence[str]
) -> tuple[int, LearnedDefectsCard]:
    """Return which of `STRENGTHS` is used, and what it rests on.

    A defect counts by the share of normals that score as high, on a logarithmic scale, on which one more escape at few
    false alarms weighs most. Of the strengths that gain, and under which defects judged without their kind lose next to
    nothing, the one with the largest gain is taken.

    Args:
        normal: ``(n, terms, strengths)`` scores. found: ``(m, terms, strengths)``; the second of two terms is without
            the defect's kind.
        own: kind of each of the m. kinds: those that were left out one by one.
    """
    numbers = range(len(STRENGTHS))
    gains = _gains(normal[:, 0], found[:, 0])
    average, error = gains.mean(axis=0), gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
    unseen = np.zeros_like(gains)
    left_out = {}
    for place, kind in enumerate(kinds, 1):
        rows = [index for index, one in enumerate(own) if one == kind]
        unseen[rows] = _gains(normal[:, place], found[rows, 1])
        left_out[kind] = [_auroc(normal[:, place, s], found[rows, 1, s]) for s in numbers]
    images = np.array([own.count(kind) for kind in kinds])
    lost = [sum(images * [one[0] - one[s] for one in left_out.values()]) / max(1, images.sum()) for s in numbers]
    auroc = [_auroc(normal[:, 0, s], found[:, 0, s]) for s in numbers]
    helps = [average[s] > _LEAST_GAIN * error[s] and auroc[s] >= auroc[0] for s in numbers]
    harmless = [lost[s] <= _MOST_LOSS and unseen[:, s].mean() >= -_MOST_LOG_LOSS for s in numbers]
    tried = [s for s in numbers[1:] if kinds or STRENGTHS[s] <= ONE_KIND]
    allowed = [s for s in tried if helps[s] and harmless[s]]
    chosen = max(allowed, key=lambda s: (average[s], -s), default=0)
    reason = None
    if not chosen:
        reason = "no gain of more than a standard error"
        if any(helps[s] for s in tried):
            reason = "defects of a kind left out would be found worse"
    card = LearnedDefectsCard(
        images=len(own),
        strength=STRENGTHS[chosen],
        auroc={str(strength): auroc[s] for s, strength in enumerate(STRENGTHS)},
        normal_share={
            str(strength): float(np.exp(np.log(_shares(normal[:, 0, s], found[:, 0, s])).mean()))
            for s, strength in enumerate(STRENGTHS)
        },
        left_out={kind: (one[0], one[chosen]) for kind, one in left_out.items()},
        reason=reason,
    )
    return chosen, card


def _gains(normal: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much the logarithm of the share of normals that score as high falls, ``(m, strengths)``."""
    ranks = np.log([_shares(normal[:, s], found[:, s]) for s in range(len(STRENGTHS))])
    gains: NDArray[np.float64] = (ranks[0] - ranks).T
    return gains


def _card_of_few(images: int) -> LearnedDefectsCard:
    reason = f"too few to show that it helps: {images} of the {LEAST} that are needed"
    return LearnedDefectsCard(images=images, strength=0.0, auroc={}, normal_share={}, left_out={}, reason=reason)


def _shares(normal: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of normals, one more counted, that score as high as each defect."""
    below = np.searchsorted(np.sort(normal), found, side="left")
    return np.asarray((1.0 + len(normal) - below) / (len(normal) + 1.0), np.float64)


def _auroc(normal: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    anomalous = np.r_[np.zeros(len(normal), bool), np.ones(len(found), bool)]
    return image_auroc(np.r_[normal, found], anomalous, bootstrap=0).value
