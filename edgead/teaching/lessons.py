"""What people said of recorded parts, and what follows where they disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row


@dataclass(frozen=True, slots=True)
class Lesson:
    """One recorded part that people agree on, with its image.

    Attributes:
        row: of the part in the record.
        defective: what they say it is; ``kind`` of defect, where they said it.
        people: who said so.
    """

    row: Row
    defective: bool
    kind: str | None
    people: tuple[str, ...]

    @property
    def name(self) -> str:
        """What people call the part."""
        return part_name(self.row)


@dataclass(frozen=True, slots=True)
class Lessons:
    """All that the labels of a record give.

    Attributes:
        good, defective: parts to learn from and to prove by, in the order in which they were judged.
        disputed: parts of which people say different things, or that somebody was unsure of; they teach nothing.
        without_image: parts that are labelled, but whose pixels the record did not keep, or no longer.
        unlabelled: parts with an image of which nobody said anything.
    """

    good: tuple[Lesson, ...]
    defective: tuple[Lesson, ...]
    disputed: tuple[str, ...]
    without_image: tuple[str, ...]
    unlabelled: tuple[Row, ...]


def part_name(row: Row) -> str:
    """Return what people call a part: its id, else the number of its row."""
    return f"row {row.seq}" if row.part is None else f"part {row.part}"


def read_lessons(record: JournalReader) -> Lessons:
    """Return what the labels of a record say; of each person the last word on a part counts."""
    said: dict[int, dict[str, Row]] = {}
    for label in record.labels():
        if label.ref is not None:
            said.setdefault(label.ref, {})[str(label.body["who"])] = label
    good: list[Lesson] = []
    defective: list[Lesson] = []
    disputed, without_image, unlabelled = [], [], []
    for row in record.parts():
        words = said.get(row.seq)
        kept = row.image is not None and not record.image_removed(row)
        if words is None:
            if kept:
                unlabelled.append(row)
            continue
        agreed = _agreed(words.values())
        if agreed is None:
            disputed.append(part_name(row))
        elif not kept:
            without_image.append(part_name(row))
        else:
            lesson = Lesson(row, agreed == "defect", _kind(words.values()), tuple(sorted(words)))
            (defective if lesson.defective else good).append(lesson)
    return Lessons(tuple(good), tuple(defective), tuple(disputed), tuple(without_image), tuple(unlabelled))


def _agreed(labels: Iterable[Row]) -> str | None:
    """Return what all say, None where they differ or somebody is unsure."""
    words = {str(label.body["label"]) for label in labels}
    return words.pop() if len(words) == 1 and words <= {"good", "defect"} else None


def _kind(labels: Iterable[Row]) -> str | None:
    """Return the kind of defect that most people named, the last one named of several."""
    named: Sequence[str] = [str(label.body["defect"]) for label in labels if label.body.get("defect")]
    return max(reversed(named), key=named.count) if named else None
