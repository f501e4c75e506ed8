"""A look at a set of normal images before it is trained on: what the others do not explain, copies, odd ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.data import open_category
from edgead.evaluation.worst_images import jpeg, thumbnail
from edgead.fitting import fit
from edgead.fitting.config import FitConfig
from edgead.model.card_sections import AuditCard
from edgead.model.model import TrainedModel
from edgead.runtime.imaging.decode import ALL_BITS, read_image
from edgead.runtime.imaging.heatmap import overlay
from edgead.runtime.imaging.roi import Box
from edgead.runtime.progress import Progress, silent

_DETECTOR, _SETTINGS = "patchcore", {"bank_size": 2048}


@dataclass(frozen=True, slots=True)
class AuditedImage:
    """One image that a person should look at.

    Attributes:
        name: relative to the category's folder.
        score: by a model that did not see it; None of an image whose copy was scored.
        why: what is odd about it, empty where only its score is high.
        picture, heat_map: JPEG, at most 240 pixels a side. The heat map is of a model that saw none of these images.
    """

    name: str
    score: float | None
    why: str
    picture: bytes
    heat_map: bytes


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `audit` found.

    Attributes:
        name: of the category; images: how many normal images it has.
        threshold: that a PatchCore with default settings would have.
        card: all that was found, by name.
        shown: the odd images, and those with the highest scores.
    """

    name: str
    images: int
    threshold: float
    card: AuditCard
    shown: tuple[AuditedImage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.audit/1``), without pictures."""
        return {
            "schema": "edgead.audit/1",
            "category": self.name,
            "images": self.images,
            "threshold": self.threshold,
            "not_found": self.card.excluded,
            **self.card.model_dump(mode="json", exclude={"excluded"}),
        }


# More than six parameters: those of `FitConfig` that say what of an image is looked at.
def audit(
    folder: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    roi: Box | None = None,
    mask: Path | None = None,
    align: bool = False,
    bits: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> AuditReport:
    """Rank the normal images of a category by how little the others explain them, and find copies and odd ones.

    A PatchCore is fitted, and each image is scored by the others. Nothing is changed on the disk.

    Args:
        folder: as `edgead.fitting.fit` takes it.
        size: network size in pixels; None: the detector's own.
        roi, mask, align: what of an image is judged, see `FitConfig`; where the part to align is not found, an image is
            named and not scored.
        bits: of 16-bit files, see `FitConfig`.
        seed: decides every random choice.
        progress: called with ``(stage, done, total)``.

    Raises:
        ConfigError, DataError: as `edgead.fitting.fit`.

    Example:
        >>> audit("data/screw").card.copies
        (('train/good/053.png', 'train/good/173.png'),)
    """
    config = FitConfig(
        _DETECTOR,
        _SETTINGS,
        size=size,
        roi=roi,
        mask=mask,
        align=align,
        seed=seed,
        bits=bits,
        keep_stray=True,
        learn_defects=False,
    )
    category = open_category(Path(folder).expanduser(), train_only=True)
    files = {category.relative(one): one.path for one in category.train}
    with _unsaid():
        model = fit(folder, config, progress=progress)
        card = model.card.audit
        assert card is not None
        names = list(dict.fromkeys([*card.excluded, *card.stray, *card.odd, *card.unusual]))
        judged = [name for name in names if name not in card.excluded]
        without = _without([name for name in files if name not in card.excluded], judged, card)
        blind = fit(folder, config, exclude=without, progress=progress) if without else model
    shown = _show(blind, files, names, card, bits or ALL_BITS)
    return AuditReport(category.name, len(category.train), model.threshold.value, card, tuple(shown))


def _without(images: Sequence[str], wanted: Sequence[str], card: AuditCard) -> list[str]:
    """Return those of the wanted images without which enough parts are left to say what is normal."""
    part = {name: group[0] for group in card.copies for name in group}
    chosen: list[str] = []
    for name in wanted:
        left = {part.get(one, one) for one in images if one != name and one not in chosen}
        if len(left) < max(2, card.parts // 2):
            break
        chosen.append(name)
    return chosen


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep back what a fit warns of: the report says it."""
    log = logging.getLogger("edgead.fit")
    log.addFilter(_refuse)
    try:
        yield
    finally:
        log.removeFilter(_refuse)


def _refuse(_record: logging.LogRecord) -> bool:
    return False


def _show(
    blind: TrainedModel, files: dict[str, Path], names: Sequence[str], card: AuditCard, bits: int
) -> list[AuditedImage]:
    shown, odd = [], card.excluded | card.stray | card.odd
    with blind.inspector("audit") as inspector:
        for name in names:
            pixels = read_image(files[name], bits)
            small = thumbnail(pixels)
            result = inspector(pixels)
            shown.append(
                AuditedImage(
                    name,
                    card.unusual.get(name),
                    odd.get(name, ""),
                    jpeg(small),
                    jpeg(overlay(small, result)),
                )
            )
    return shown
