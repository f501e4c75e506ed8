"""What people said of recorded parts, and what follows where they disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row


class Judges(Protocol):
    """Knows which rows were judged by the model that is taught, or by one that it comes from."""

    def judged(self, row: Row) -> bool:
        """Whether it judged this part."""


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
        suspected: of these, with their image, those that somebody calls a defect.
        without_image: parts that are labelled, but whose pixels the record did not keep, or no longer.
        foreign: labelled parts that another model judged; they teach nothing.
        unlabelled: parts with an image of which nobody said anything.
        head: number and hash of the record's last row when this was read.
    """

    good: tuple[Lesson, ...]
    defective: tuple[Lesson, ...]
    disputed: tuple[Row, ...]
    suspected: tuple[Row, ...]
    without_image: tuple[Row, ...]
    foreign: tuple[Row, ...]
    unlabelled: tuple[Row, ...]
    head: tuple[int, str]

    def labelled(self) -> list[Row]:
        """Return the rows of the parts that the gate judges."""
        return [*(lesson.row for lesson in (*self.good, *self.defective)), *self.suspected]


def part_name(row: Row) -> str:
    """Return what people call a part: its id, else the number of its row."""
    return f"row {row.seq}" if row.part is None else f"part {row.part}"


def read_lessons(record: JournalReader, judges: Judges) -> Lessons:
    """Return what the labels of a record say; of each person the last word on a part counts.

    Args:
        record: open.
        judges: whose parts are meant; a record may hold those of several models.
    """
    head = record.head()
    said: dict[int, dict[str, Row]] = {}
    for label in record.labels():
        if label.ref is not None:
            said.setdefault(label.ref, {})[str(label.body["who"])] = label
    lessons: list[Lesson] = []
    disputed, suspected, without_image, foreign, unlabelled = (list[Row]() for _ in range(5))
    for row in record.parts():
        words = said.get(row.seq)
        kept = row.image is not None and not record.image_removed(row)
        if not judges.judged(row):
            foreign += [row] if words else []
        elif words is None:
            unlabelled += [row] if kept else []
        elif (agreed := _agreed(words.values())) is None:
            disputed.append(row)
            suspected += [row] if kept and any(one.body["label"] == "defect" for one in words.values()) else []
        elif not kept:
            without_image.append(row)
        else:
            lessons.append(Lesson(row, agreed == "defect", _kind(words.values()), tuple(sorted(words))))
    good, defective = (tuple(one for one in lessons if one.defective is wanted) for wanted in (False, True))
    return Lessons(
        good,
        defective,
        tuple(disputed),
        tuple(suspected),
        tuple(without_image),
        tuple(foreign),
        tuple(unlabelled),
        head,
    )


def _agreed(labels: Iterable[Row]) -> str | None:
    """Return what all say, None where they differ or somebody is unsure."""
    words = {str(label.body["label"]) for label in labels}
    return words.pop() if len(words) == 1 and words <= {"good", "defect"} else None


def _kind(labels: Iterable[Row]) -> str | None:
    """Return the kind of defect that most people named, the last one named of several."""
    named: Sequence[str] = [str(label.body["defect"]) for label in labels if label.body.get("defect")]
    return max(reversed(named), key=named.count) if named else None
