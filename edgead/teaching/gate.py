"""The gate: what was right must not become wrong. Old and new bundle judge every labelled part, and are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgead.evaluation.worst_images import jpeg, thumbnail
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.imaging.heatmap import overlay
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.runtime.progress import Progress
from edgead.teaching.lessons import Lesson, Lessons, part_name

_SHOWN = 40  # parts with pictures on the page


@dataclass(frozen=True, slots=True)
class Judged:
    """One part as both bundles judge it.

    Attributes:
        name: of the part; label: ``good``, ``defect``, or None where nobody said.
        kind: of defect, where it was said.
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
        labelled: every labelled part with its image.
        sampled: unlabelled parts drawn at random; changed: those of them that are decided otherwise.
        of_unlabelled: parts that the sample was drawn from.
    """

    labelled: tuple[Judged, ...]
    sampled: int
    changed: tuple[Judged, ...]
    of_unlabelled: int

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
                "changed": [one.to_dict() for one in self.changed],
            },
        }


# More than six parameters: two bundles, what they judge, and how.
def prove(
    old: Inspector,
    new: Inspector,
    record: JournalReader,
    lessons: Lessons,
    sample: Sequence[Row],
    waivers: Mapping[str, str],
    progress: Progress,
) -> GateReport:
    """Judge every labelled part and a sample of the others with both bundles.

    A defect that was caught and now passes, a good part that is rejected now, and a part that is no longer inspected
    stand in the way, unless waived.

    Args:
        old, new: open inspectors.
        record: where the pixels are.
        lessons: what people said.
        sample: unlabelled parts.
        waivers: id or row of a part -> why it does not count.
        progress: called with ``(stage, done, total)``.
    """
    labelled: list[Judged] = []
    every = [*lessons.good, *lessons.defective]
    total = len(every) + len(sample)
    shown = 0
    for lesson in every:
        progress("gate", len(labelled), total)
        frame = record.frame(lesson.row)
        results = old(frame), new(frame)
        one = _judged(lesson, results, waivers)
        if one.problem is not None and shown < _SHOWN:
            one, shown = _with_pictures(one, frame, results), shown + 1
        labelled.append(one)
    changed: list[Judged] = []
    for number, row in enumerate(sample):
        progress("gate", len(every) + number, total)
        frame = record.frame(row)
        results = old(frame), new(frame)
        if results[0].decision is not results[1].decision:
            one = _compared(row, results)
            changed.append(_with_pictures(one, frame, results) if len(changed) < _SHOWN else one)
    progress("gate", total, total)
    return GateReport(tuple(labelled), len(sample), tuple(changed), len(lessons.unlabelled))


def draw(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """Return at most so many rows, drawn at random by the seed, in their order."""
    if len(rows) <= most:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return [rows[index] for index in sorted(chosen.tolist())]


def require_known(waivers: Iterable[str], lessons: Lessons) -> None:
    """Raise `ConfigError` where a waiver is for a part that nobody labelled: it would waive nothing, in silence."""
    known = {name for lesson in (*lessons.good, *lessons.defective) for name in _names(lesson)}
    for name in waivers:
        if name not in known:
            raise ConfigError(f"--waive {name}: no labelled part of the record is called so; give its id or its row")


def _names(lesson: Lesson) -> Iterator[str]:
    yield str(lesson.row.seq)
    if lesson.row.part is not None:
        yield lesson.row.part


def _judged(lesson: Lesson, results: tuple[Result, Result], waivers: Mapping[str, str]) -> Judged:
    one = _compared(lesson.row, results, "defect" if lesson.defective else "good", lesson.kind)
    problem = _problem(one)
    waived = None if problem is None else next((waivers[name] for name in _names(lesson) if name in waivers), None)
    return replace(one, problem=problem, waived=waived)


def _problem(one: Judged) -> str | None:
    if one.new is Decision.NOT_INSPECTED and one.old is not Decision.NOT_INSPECTED:
        return "it is no longer inspected"
    if one.label == "defect" and one.old is Decision.ANOMALY and one.new is Decision.OK:
        return "a defect that was caught now passes"
    if one.label == "good" and one.new is Decision.ANOMALY:
        return (
            "a good part that passed is now rejected" if one.old is Decision.OK else "a good part is rejected as before"
        )
    return None


def _compared(row: Row, results: tuple[Result, Result], label: str | None = None, kind: str | None = None) -> Judged:
    old, new = results
    return Judged(part_name(row), row.seq, label, kind, old.decision, new.decision, (_share(old), _share(new)))


def _share(result: Result) -> float:
    return result.score / result.threshold if result.threshold else float("nan")


def _with_pictures(one: Judged, frame: Frame, results: tuple[Result, Result]) -> Judged:
    picture = frame.to_rgb()
    before, after = (jpeg(thumbnail(picture if result.map is None else overlay(picture, result))) for result in results)
    return replace(one, picture=jpeg(thumbnail(picture)), before=before, after=after)
