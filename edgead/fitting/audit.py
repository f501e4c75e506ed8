"""What a fit says of its own training images: copies, odd ones, and those that its threshold rests on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgead.data import Category
from edgead.data.survey import Survey
from edgead.model.card_sections import AuditCard
from edgead.runtime.decision.stray import stray_scores
from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.imaging.listing import explain_omitted

# The command line shows what this logger says as its own warnings.
_log = logging.getLogger("edgead.fit")

_UNUSUAL = 12  # images with the highest scores that are kept by name
_NAMED = 3  # in one line
AS_ASKED = "as asked for"  # why an image is excluded
_COPY = "a copy of "


def exclude_images(categories: Sequence[Category], names: Sequence[str]) -> list[Category]:
    """Return categories without some training images, named relative to a category's root or by the file name alone.

    Raises:
        ConfigError: a name that is none of the training images, or of several.
        DataError: fewer than 2 images of a category are left.
    """
    known = image_names(categories)
    gone: set[str] = set()
    for name in names:
        # A whole path is meant as such, though another one may end like it.
        found = [name] if name in known else [path for path in known if path.endswith(f"/{name}")]
        if not found:
            raise ConfigError(f"there is no training image {name} to exclude.{suggest(name, known)}")
        if len(found) > 1:
            raise ConfigError(f"{name} is the name of {len(found)} training images, such as {found[0]}; name it so")
        gone.add(found[0])
    left, first = [], 0
    for category in categories:
        own = known[first : first + len(category.train)]
        first += len(own)
        train = tuple(sample for path, sample in zip(own, category.train, strict=True) if path not in gone)
        if len(train) < 2:
            raise DataError(
                f"{category.root}: {len(category.train) - len(train)} of {len(category.train)} training images are "
                "stray ones, copies or excluded; fitting needs at least 2"
            )
        left.append(replace(category, train=train))
    return left


def image_names(categories: Sequence[Category]) -> list[str]:
    """Return the training images' paths relative to their category's root, of several below the category's name."""
    several = len(categories) > 1
    return [
        f"{category.name}/{category.relative(sample)}" if several else category.relative(sample)
        for category in categories
        for sample in category.train
    ]


def images_to_omit(names: Sequence[str], surveys: Sequence[Survey], *, stray: bool, copies: bool) -> dict[str, str]:
    """Return which images a fit omits by their looks alone: name -> why.

    Args:
        names, surveys: as of `make_audit`.
        stray: omit those that show nothing. copies: keep one image of each group of copies.
    """
    omitted: dict[str, str] = {}
    first = 0
    for look in surveys:
        if stray:
            omitted |= {names[first + one.index]: one.why for one in look.odd if one.stray}
        for group in look.copies if copies else ():
            kept, *others = (names[first + index] for index in group)
            omitted |= {name: f"{_COPY}{kept}" for name in others if name not in omitted}
        first += len(look.groups)
    return omitted


def make_audit(
    names: Sequence[str], surveys: Sequence[Survey], scored: Mapping[int, float], excluded: Mapping[str, str]
) -> AuditCard:
    """Put together what is known of the training images.

    Args:
        names: of all training images, category after category; surveys: of each category.
        scored: image index -> score by a model that did not see it; of copies, one.
        excluded: image -> why it was left out of the fit.
    """
    odd: dict[int, str] = {}
    stray: dict[int, str] = {}
    copies: list[tuple[str, ...]] = []
    first = 0
    for look in surveys:
        for one in look.odd:
            (stray if one.stray else odd)[first + one.index] = one.why
        copies += [tuple(names[first + index] for index in group) for group in look.copies]
        first += len(look.groups)
    indices = list(scored)
    values = np.array([scored[index] for index in indices])
    for position, why in stray_scores(values).items():
        stray.setdefault(indices[position], why)
    odd = {index: why for index, why in odd.items() if index not in stray}
    highest = np.argsort(-values, kind="stable")[:_UNUSUAL].tolist()
    return AuditCard(
        parts=sum(look.parts for look in surveys),
        copies=tuple(copies),
        stray={names[index]: stray[index] for index in sorted(stray)},
        odd={names[index]: odd[index] for index in sorted(odd)},
        unusual={names[indices[position]]: float(values[position]) for position in highest},
        excluded=dict(excluded),
    )


def warn_of_omitted(categories: Sequence[Category]) -> None:
    """Say what lies among the training images and is none by its name or place."""
    for category in categories:
        if category.omitted:
            _log.warning("%s: %s", category.root, explain_omitted(category.omitted))


def warn_of_images(card: AuditCard, images: int, threshold: float) -> None:
    """Say in a line each what a user should look at before the model is used."""
    copies = {name: why for name, why in card.excluded.items() if why.startswith(_COPY)}
    if copies:
        shown = "; ".join(f"{name} is {why}" for name, why in [*copies.items()][:_NAMED])
        _log.warning(
            "%d training images are omitted, for they are copies of others: %s%s; show more parts instead",
            len(copies),
            shown,
            " …" if len(copies) > _NAMED else "",
        )
    left_out = {name: why for name, why in card.excluded.items() if why != AS_ASKED and name not in copies}
    if left_out:
        shown = "; ".join(f"{name} ({why})" for name, why in left_out.items())
        _log.warning(
            "%d stray training images are omitted from the fit: %s; look at them ('edgead audit'), and move them away, "
            "or keep them with --keep-stray",
            len(left_out),
            shown,
        )
    if card.stray:
        shown = "; ".join(f"{name} ({why})" for name, why in [*card.stray.items()][:_NAMED])
        _log.warning("stray training images are in the model, and left out of the threshold: %s", shown)
    if card.copies:
        shown = "; ".join(" = ".join(group[:_NAMED]) for group in card.copies[:_NAMED])
        _log.warning(
            "%d training images show %d parts: %s%s are copies of each other and count once in the threshold; "
            "omit them, and show more parts",
            images,
            card.parts,
            shown,
            " …" if len(card.copies) > _NAMED else "",
        )
    if card.odd:
        shown = "; ".join(f"{name} ({why})" for name, why in [*card.odd.items()][:_NAMED])
        more = f"; and {len(card.odd) - _NAMED} more" if len(card.odd) > _NAMED else ""
        _log.warning(
            "%d training images look unlike the others: %s%s; look at them ('edgead audit'), and omit what is no good "
            "part with --exclude NAME",
            len(card.odd),
            shown,
            more,
        )
    above = [name for name, score in card.unusual.items() if score > threshold and name not in {*card.odd, *card.stray}]
    if above:
        _log.info(
            "the threshold lies below the scores of %s; look whether they show good parts ('edgead audit')",
            ", ".join(above[:_NAMED]) + (" …" if len(above) > _NAMED else ""),
        )
