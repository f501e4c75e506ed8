"""Good images that a model has not seen, and what good images score: chosen without a test image or label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgead.data import Category, Sample
from edgead.runtime.errors import DataError

UNSEEN = "training images, scored as unseen ones"
HELD_OUT = "training images that were held out"
VALIDATION = "validation images"
PHOTOS = "normal images"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a model says of the images it was fitted on.

    Attributes:
        name: of the model, for messages.
        fingerprints: of every category it was fitted on, see `Category.fingerprint`; None where it does not say.
        normal_scores: one score a training image by a model that never saw it, in the order of ``category.train``;
            None where there are none, or where several categories share them.
        held_out: of a learned detector, the indices of ``category.train`` that it was not trained on;
            ``normal_scores`` are then theirs.
        scored: where near-duplicates count once, the indices that ``normal_scores`` are of; None: all.
    """

    name: str
    fingerprints: frozenset[str] | None
    normal_scores: tuple[float, ...] | None = None
    held_out: tuple[int, ...] | None = None
    scored: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Normals:
    """Good images to plant probes on, and what good images score.

    Attributes:
        samples: what is planted on.
        scores: of good images by models that had not seen them; None: the inspector is to judge ``samples``.
        source: `UNSEEN`, `HELD_OUT`, `VALIDATION` or `PHOTOS`.
    """

    category: Category
    samples: tuple[Sample, ...]
    scores: tuple[float, ...] | None
    source: str


def read_training_record(path: str | Path) -> TrainingRecord:
    """Read from a model directory or a bundle what it was fitted on.

    Raises:
        BundleError: damaged, or from another version.
    """
    path = Path(path)
    if path.is_dir():
        from edgead.model.model_card import read_card

        card = read_card(path)
        # The scores of several categories lie in one list, of which nothing says whose they are.
        scores = tuple(card.normal_scores) if len(card.categories) == 1 else None
        held_out = None if card.training is None else card.training.held_out
        return TrainingRecord(str(path), frozenset(card.fingerprint.values()), scores, held_out, card.scored)
    from edgead.runtime.bundle.bundle import Bundle

    with Bundle.open(path) as bundle:
        found = bundle.manifest.provenance.get("data_fingerprint")
    known = frozenset(map(str, found.values())) if isinstance(found, Mapping) and found else None
    return TrainingRecord(str(path), known)


def find_normals(category: Category, trained: TrainingRecord) -> Normals:
    """Choose the good images for the probes of a category, none of them a test image.

    Where the category is what the model was fitted on and the model has a score of each image as if it had not seen
    it, probes are planted on the training images, and compared with those scores. That is fair enough: the planted
    place is new to the model, and all the rest of the image it has seen, so the probe image scores lower, if anything,
    than it would on a new image; the good ones were scored by models that had seen less. The figures err on the low
    side. A learned detector held some of its training images out, and those are taken. Otherwise the category's
    validation images, or a folder (or list) of normal images that is not what the model was fitted on.

    A folder is recognised by its fingerprint, whatever its place. A selection or copy of training images under other
    names cannot be told from new images: nothing but a digest of the whole is known.

    Raises:
        DataError: only images that the model was trained on, or nobody can tell.
    """
    seen = trained.fingerprints is not None and any(
        one.fingerprint("train") in trained.fingerprints for one in _placings(category)
    )
    if seen and trained.normal_scores is not None and trained.held_out is not None:
        if max(trained.held_out, default=-1) < len(category.train):
            samples = tuple(category.train[index] for index in trained.held_out)
            return Normals(category, samples, trained.normal_scores, HELD_OUT)
    elif seen and trained.normal_scores is not None:
        scored = range(len(category.train)) if trained.scored is None else trained.scored
        if len(trained.normal_scores) == len(scored) and max(scored, default=-1) < len(category.train):
            samples = tuple(category.train[index] for index in scored)
            return Normals(category, samples, trained.normal_scores, UNSEEN)
    if len(category.validation) >= 2:
        return Normals(category, category.validation, None, VALIDATION)
    need = "give a folder of normal images that it has not seen"
    if seen:
        raise DataError(
            f"{trained.name} was trained on the good images of {category.root}, and probes need others: {need}, "
            "or probe the model directory of that one category, which has scores for them"
        )
    if category.layout == "mvtec":
        raise DataError(
            f"{category.root} has no validation/good, and its train/good is not known to be new to {trained.name}; "
            f"{need}"
        )
    return Normals(category, category.train, None, PHOTOS)


def _placings(category: Category) -> Iterator[Category]:
    """Yield the category as seen from its folder and from the two above: ``plate/train/good`` is ``plate``, too."""
    root = category.root.resolve()
    yield category
    if category.layout == "folder":
        samples = tuple(replace(one, path=root / one.path.relative_to(category.root)) for one in category.train)
        for above in (root.parent, root.parent.parent):
            yield replace(category, root=above, train=samples)
