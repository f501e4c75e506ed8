"""The gate: what was right must not become wrong. Old and new bundle judge every labelled part, and are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgead.data import Sample
from edgead.evaluation.worst_images import jpeg, thumbnail
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.imaging.decode import decode_image, read_image
from edgead.runtime.imaging.heatmap import overlay
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.runtime.progress import Progress
from edgead.teaching.lessons import Lessons, part_name

_SHOWN = 40  # parts with pictures on the page


@dataclass(frozen=True, slots=True)
class Judged:
    """One part as both bundles judge it.

    Attributes:
        name: of the part or image; seq: its row, 0 of an image.
        label: ``good``, ``defect``, ``disputed`` (somebody calls it a defect), or None where nobody said.
        kind: of defect, where it was said; recorded: what was decided at the line.
        old, new: decisions; scores: of both, as shares of their thresholds.
        problem: why it stands in the way; None where it does not.
        waived: by what reason it does not count though there is a problem.
        picture, before, after: JPEG of the part and of both heat maps; empty where it is not shown.
    """

    name: str
    seq: int
    label: str | None
    kind: str | None
    old: Decision
    new: Decision
    scores: tuple[float, float]
    recorded: str | None = None
    problem: str | None = None
    waived: str | None = None
    picture: bytes = b""
    before: bytes = b""
    after: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without pictures."""
        scores = [round(score, 6) if np.isfinite(score) else None for score in self.scores]
        return {
            "part": self.name,
            "row": self.seq,
            "label": self.label,
            "kind": self.kind,
            "recorded": self.recorded,
            "old": self.old.value,
            "new": self.new.value,
            "score_shares": scores,
            "problem": self.problem,
            "waived": self.waived,
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found.

    Attributes:
        labelled: every labelled part with its image, and the defects and taught images beside the training images.
        sampled: unlabelled parts drawn at random; changed: those of them, and references of the old bundle, that are
            decided otherwise.
        of_unlabelled: parts that the sample was drawn from.
        lost: of the sample, those whose image was removed meanwhile.
    """

    labelled: tuple[Judged, ...]
    sampled: int
    changed: tuple[Judged, ...]
    of_unlabelled: int
    lost: int = 0

    @property
    def problems(self) -> tuple[Judged, ...]:
        """What stands in the way and is not waived."""
        return tuple(one for one in self.labelled if one.problem is not None and one.waived is None)

    @property
    def passed(self) -> bool:
        """Whether the new bundle may take over."""
        return not self.problems

    def count(self, label: str, decision: Decision, *, new: bool) -> int:
        """Return how many labelled parts a bundle decides so."""
        return sum(one.label == label and (one.new if new else one.old) is decision for one in self.labelled)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without pictures."""
        named = {"good": "false_alarms", "defect": "escapes"}
        wrong = {"good": Decision.ANOMALY, "defect": Decision.OK}
        figures = {
            name: {
                "parts": sum(one.label == label for one in self.labelled),
                "old": self.count(label, wrong[label], new=False),
                "new": self.count(label, wrong[label], new=True),
            }
            for label, name in named.items()
        }
        return {
            "passed": self.passed,
            **figures,
            "labelled": [one.to_dict() for one in self.labelled],
            "unlabelled": {
                "parts": self.of_unlabelled,
                "sampled": self.sampled,
                "removed_meanwhile": self.lost,
                "changed": [one.to_dict() for one in self.changed],
            },
        }


class Proof:
    """Judges parts with both bundles.

    A defect that was caught, at the line or by the old bundle, and now passes, a good part that is rejected now, and a
    part that is no longer inspected stand in the way, unless waived.

    Args:
        old, new: open inspectors.
        record: where the pixels are.
        waivers: row -> why its problem does not count; see `resolve_waivers`.
        progress: called with ``(stage, done, total)``.
    """

    def __init__(
        self, old: Inspector, new: Inspector, record: JournalReader, waivers: Mapping[int, str], progress: Progress
    ) -> None:
        self._both, self._record, self._waivers, self._progress = (old, new), record, waivers, progress
        self._pictures = 0

    def prove(
        self, lessons: Lessons, images: Sequence[Sample], references: Bundle, sample: Sequence[Row]
    ) -> GateReport:
        """Judge every labelled part, every image of ``images``, the references, and a sample of unlabelled parts.

        Args:
            images: defects at hand, and what earlier lessons taught; those of this lesson are parts.
            references: the old bundle, whose references are compared, and are nothing to refuse by: they are planted.
        """
        words = {
            one.row.seq: ("defect" if one.defective else "good", one.kind) for one in lessons.good + lessons.defective
        }
        rows = lessons.labelled()
        total, labelled = len(rows) + len(images) + len(sample), list[Judged]()
        for number, row in enumerate(rows):
            self._progress("gate", number, total)
            label, kind = words.get(row.seq, ("disputed", None))
            labelled.append(self._judged(part_name(row), self._record.frame(row), row, label, kind))
        for number, image in enumerate(images, len(rows)):
            self._progress("gate", number, total)
            label, kind = ("defect", image.label) if image.anomalous else ("good", None)
            labelled.append(self._judged(f"image {image.path.name}", _image_frame(image), None, label, kind))
        changed, lost = self._references(references), 0
        for number, row in enumerate(sample, len(rows) + len(images)):
            self._progress("gate", number, total)
            try:
                frame = self._record.frame(row)
            except DataError:
                lost += 1  # the record keeps within its limits while this goes on
                continue
            one = self._judged(part_name(row), frame, row, None, None)
            changed += [one] if one.old is not one.new else []
        self._progress("gate", total, total)
        return GateReport(tuple(labelled), len(sample) - lost, tuple(changed), len(lessons.unlabelled), lost)

    def _references(self, bundle: Bundle) -> list[Judged]:
        found = [
            self._judged(f"reference {name}", _png_frame(data, name), None, None, None)
            for name, data in bundle.references()
        ]
        return [one for one in found if one.old is not one.new]

    def _judged(self, name: str, frame: Frame, row: Row | None, label: str | None, kind: str | None) -> Judged:
        old, new = (inspect(frame) for inspect in self._both)
        recorded = None if row is None else row.decision
        seq = 0 if row is None else row.seq
        shares = (_share(old), _share(new))
        one = Judged(name, seq, label, kind, old.decision, new.decision, shares, recorded)
        problem = _problem(one)
        if (problem or (label is None and one.old is not one.new)) and self._pictures < _SHOWN:
            self._pictures += 1
            one = _with_pictures(one, frame, (old, new))
        return replace(one, problem=problem, waived=None if problem is None else self._waivers.get(seq))


def draw(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """Return at most so many rows, drawn at random by the seed, in their order."""
    if len(rows) <= most:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return [rows[index] for index in sorted(chosen.tolist())]


def resolve_waivers(waivers: Mapping[str, str], lessons: Lessons) -> dict[int, str]:
    """Return row -> why, of waivers by ``row:5``, ``part:4711``, or a name that is one of the two only.

    Raises:
        ConfigError: no labelled part is called so, which would waive nothing in silence, or several are.
    """
    found = {}
    for name, why in waivers.items():
        kind, separator, rest = name.partition(":")
        rows = [
            row
            for row in lessons.labelled()
            if (separator and kind == "row" and rest == str(row.seq))
            or (separator and kind == "part" and rest == row.part)
            or name in (str(row.seq), row.part)
        ]
        if not rows:
            raise ConfigError(f"--waive {name}: no labelled part of the record is called so; give row:N or part:ID")
        if len(rows) > 1:
            raise ConfigError(
                f"--waive {name} fits {len(rows)} labelled parts, rows {', '.join(str(row.seq) for row in rows[:5])}; "
                "name one: row:N"
            )
        found[rows[0].seq] = why
    return found


def _image_frame(sample: Sample) -> Frame:
    return Frame(read_image(sample.path, sample.bits), 0, 0, "training images", name=sample.path.name)


def _png_frame(data: bytes, name: str) -> Frame:
    return Frame(decode_image(data, name), 0, 0, "references", name=name)


def _problem(one: Judged) -> str | None:
    if one.new is Decision.NOT_INSPECTED and one.old is not Decision.NOT_INSPECTED:
        return "it is no longer inspected"
    # What the line did counts, by whatever threshold it did it: only OK lets a part pass.
    caught = one.old is not Decision.OK or (one.recorded is not None and one.recorded != Decision.OK.value)
    if one.label in ("defect", "disputed") and caught and one.new is Decision.OK:
        called = "a defect that" if one.label == "defect" else "what somebody calls a defect"
        return f"{called} was caught now passes"
    if one.label == "good" and one.new is Decision.ANOMALY:
        return (
            "a good part that passed is now rejected" if one.old is Decision.OK else "a good part is rejected as before"
        )
    return None


def _share(result: Result) -> float:
    return result.score / result.threshold if result.threshold else float("nan")


def _with_pictures(one: Judged, frame: Frame, results: tuple[Result, Result]) -> Judged:
    picture = frame.to_rgb()
    before, after = (jpeg(thumbnail(picture if result.map is None else overlay(picture, result))) for result in results)
    return replace(one, picture=jpeg(thumbnail(picture)), before=before, after=after)
