"""The parts of a study: folders of known condition, a folder a part in each, one image a capture."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.listing import GOOD_FOLDERS, list_images
from edgead.runtime.inspection.inspector import Inspector

APPRAISERS = "appraisers.csv"
_COLUMNS = ["part", "appraiser", "trial", "decision"]
_DECISIONS = {"ok": False, "good": False, "pass": False, "ng": True, "defect": True, "reject": True}


@dataclass(frozen=True, slots=True)
class StudyPart:
    """One part whose condition is known.

    Attributes:
        name: such as ``scratch/part07``, relative to the study's folder.
        defective: what it is; kind: of defect, ``good`` otherwise.
        captures: image files, one a trial.
    """

    name: str
    defective: bool
    kind: str
    captures: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class StudyParts:
    """All parts of a study.

    Attributes:
        parts: sorted by name.
        people: appraiser -> part -> rejected or not in each trial.
    """

    parts: tuple[StudyPart, ...]
    people: Mapping[str, Mapping[str, tuple[bool, ...]]] = field(default_factory=dict)


def read_parts(folder: Path) -> StudyParts:
    """Read the folder of a study.

    ``good/PART/*.png`` and ``KIND/PART/*.png`` hold the captures of each part; an image right in ``good`` or ``KIND``
    is a part that was captured once. ``appraisers.csv`` (``part,appraiser,trial,decision``), where it is there, has
    what people decided of the same parts.

    Raises:
        DataError: no good or no defective part, no such folder, or a line of the list that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; a study has good/PART/*.png and KIND/PART/*.png")
    found: dict[str, StudyPart] = {}
    for condition in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        defective = condition.name.lower() not in GOOD_FOLDERS
        kind = condition.name if defective else "good"
        captures: dict[str, list[Path]] = {}
        for path in list_images(condition).paths:
            inner = path.relative_to(condition)
            part = inner.parts[0] if len(inner.parts) > 1 else inner.stem
            captures.setdefault(f"{condition.name}/{part}", []).append(path)
        found |= {name: StudyPart(name, defective, kind, tuple(sorted(files))) for name, files in captures.items()}
    for defective, what in ((False, "good part in good/"), (True, "defective part in a folder of its kind")):
        if not any(part.defective is defective for part in found.values()):
            raise DataError(f"{folder} has no {what}; a study needs both: good/PART/*.png and KIND/PART/*.png")
    listed = folder / APPRAISERS
    people = _read_people(listed, found) if listed.is_file() else {}
    return StudyParts(tuple(found[name] for name in sorted(found)), people)


def _read_people(path: Path, parts: Mapping[str, StudyPart]) -> dict[str, dict[str, tuple[bool, ...]]]:
    told: dict[str, dict[str, dict[str, bool]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if sorted(reader.fieldnames or ()) != sorted(_COLUMNS):
                raise DataError(f"{path}: the header must be {','.join(_COLUMNS)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                part, who, trial, word = ((row[name] or "").strip() for name in _COLUMNS)
                if part not in parts:
                    raise DataError(f"{where}: '{part}' is no part of the study, such as {next(iter(parts))}")
                if word.lower() not in _DECISIONS:
                    raise DataError(f"{where}: the decision '{word}' is none of OK and NG")
                trials = told.setdefault(who, {}).setdefault(part, {})
                if trial in trials:
                    raise DataError(f"{where}: {who}, {part}, trial {trial} is there twice; remove one")
                trials[trial] = _DECISIONS[word.lower()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV list in UTF-8 ({error}); save it again") from error
    return {
        who: {part: tuple(trials[key] for key in sorted(trials)) for part, trials in by_part.items()}
        for who, by_part in told.items()
    }


def require_new(inspect: Inspector, image: NDArray[np.uint8], path: Path) -> None:
    """Refuse an image that the model was fitted on: what it knows says nothing of parts that it does not."""
    try:
        picture = inspect.view.prepare(image)
    except PartNotFound:
        return
    if any(one.knows(picture) for one in inspect.normals.values()):
        raise DataError(
            f"the model was fitted on {path}, so that a study of it proves nothing; take parts that it has not seen"
        )
