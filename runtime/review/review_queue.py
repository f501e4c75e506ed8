"""Which recorded parts people should look at, and what their labels say of escapes and of the promised rate."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgead.runtime.decision.false_alarm_watch import FalseAlarmWatch, PromiseState
from edgead.runtime.decision.threshold import Threshold, share_interval
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row

Kind = Literal["rejects", "near", "sample"]
KINDS: tuple[str, ...] = get_args(Kind)
WINDOW = 20_000  # rows that are looked at: the last ones
DEFAULT_SHARE = 0.05  # of the parts whose images are all kept
_NEAR = 50  # of the parts that passed, those with the highest scores


@dataclass(frozen=True, slots=True)
class Escapes:
    """What the random sample of passed parts says of all of them.

    Attributes:
        passed: parts that passed, in the window; sampled: of them, drawn without looking at anything.
        reviewed: of the sample, those that somebody called good or defect; defective: those called defect.
        low, high: exact 95 % interval of the share of passed parts that are defective.
    """

    passed: int
    sampled: int
    reviewed: int
    defective: int
    low: float
    high: float

    def explain(self) -> str:
        """Return one sentence for a person."""
        if not self.reviewed:
            return f"none of the {self.sampled} sampled parts that passed is reviewed: nothing is known of escapes"
        return (
            f"{self.defective} of {self.reviewed} reviewed sampled parts that passed are defective: "
            f"{self.low:.1%} to {self.high:.1%} of the {self.passed} that passed (95 % interval), "
            f"{self.low * self.passed:.0f} to {self.high * self.passed:.0f} parts"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "sampled": self.sampled,
            "reviewed": self.reviewed,
            "defective": self.defective,
            "low": self.low,
            "high": self.high,
            "text": self.explain(),
        }


@dataclass(frozen=True, slots=True)
class _Kept:
    """From a row on: of which parts images were kept, and by what share of the others."""

    seq: int
    images: str
    sample: float


class ReviewQueue:
    """The last rows of a record, as people are to look at them.

    A *sample* is drawn before anybody looks: of parts whose images are all kept by a coin that follows from the pixels,
    of others by the chance with which the record kept them. Rejects toss the same coin, so that the sample is one of
    all parts; those that are called good are a fair test of the false-alarm rate.

    Args:
        record: open.
        share: of the sample, where all images are kept.
        window: rows.
    """

    def __init__(self, record: JournalReader, *, share: float = DEFAULT_SHARE, window: int = WINDOW) -> None:
        head, _ = record.head()
        self._share = share
        self._kept = [
            _Kept(row.seq, str(row.body["images"]), float(row.body.get("sample") or 0.0))
            for row in record.rows("bundle")
            if "images" in row.body
        ]
        self.parts = list(record.parts(after=max(0, head - window)))
        known = {row.seq for row in self.parts}
        self._removed = {row.seq for row in self.parts if row.image is not None and record.image_removed(row)}
        self.said: dict[int, dict[str, Row]] = {}
        for label in record.labels():
            if label.ref in known:
                self.said.setdefault(label.ref, {})[str(label.body["who"])] = label

    def choose(self, kind: Kind, who: str, most: int) -> list[Row]:
        """Return parts that this person has said nothing of, with images, the newest first (the nearest of ``near``).

        What others said is not looked at: labels of two people are independent.
        """
        waiting = [row for row in self._shown() if who not in self.said.get(row.seq, {})]
        if kind == "rejects":
            found = [row for row in waiting if row.decision != "OK"]
        elif kind == "sample":
            found = [row for row in waiting if self._drawn(row)]
        else:
            passed = sorted((row for row in self._shown() if row.decision == "OK"), key=_nearness, reverse=True)
            near = {row.seq for row in passed[:_NEAR]}
            found = sorted((row for row in waiting if row.seq in near), key=_nearness)
        return found[::-1][:most]

    def mine(self, who: str) -> list[Row]:
        """Return the parts that this person labelled, the newest label first."""
        labelled = [(self.said[row.seq][who].seq, row) for row in self.parts if who in self.said.get(row.seq, {})]
        return [row for _, row in sorted(labelled, key=lambda one: one[0], reverse=True)]

    def escapes(self) -> Escapes:
        """Return what the sample says of the parts that passed."""
        passed = [row for row in self.parts if row.decision == "OK"]
        sampled = [row for row in self._shown() if row.decision == "OK" and self._drawn(row)]
        words = [word for row in sampled if (word := self._word(row)) is not None]
        defective = words.count("defect")
        low, high = share_interval(defective, len(words)) if words else (0.0, 1.0)
        return Escapes(len(passed), len(sampled), len(words), defective, low, high)

    def promise(self, promised: Threshold) -> PromiseState | None:
        """Return what sampled parts that were called good say of the promised rate; None where nothing is promised.

        They are taken in order up to the first that nobody has looked at, for rejects are often looked at first.
        """
        if not promised.n_normals or not 0.0 < promised.high < 1.0:
            return None
        watch = FalseAlarmWatch(promised.high)
        for row in self._shown():
            if not self._drawn(row) or row.decision == "NOT_INSPECTED":
                continue
            if row.seq not in self.said:
                break
            if self._word(row) == "good" and row.body.get("threshold") == promised.value:
                watch.observe(rejected=row.decision == "ANOMALY")
        return watch.state

    def kinds(self) -> list[str]:
        """Return the kinds of defect that people named, the most frequent first."""
        named = [
            str(label.body["defect"])
            for by_person in self.said.values()
            for label in by_person.values()
            if label.body.get("defect")
        ]
        return sorted(set(named), key=lambda kind: (-named.count(kind), kind))

    def _shown(self) -> Iterable[Row]:
        return (row for row in self.parts if row.image is not None and row.seq not in self._removed)

    def _word(self, row: Row) -> str | None:
        """Return what all say of a part, None where nobody does, they differ, or somebody is unsure."""
        words = {str(label.body["label"]) for label in self.said.get(row.seq, {}).values()}
        return words.pop() if len(words) == 1 and words <= {"good", "defect"} else None

    def _drawn(self, row: Row) -> bool:
        """Whether a part with an image is of the sample."""
        at = bisect_right([one.seq for one in self._kept], row.seq) - 1
        kept = self._kept[at] if at >= 0 else _Kept(0, "all", 0.0)
        if kept.images == "all":
            return _coin(row) < self._share
        # The record tossed the coin already for what passed; rejects are kept all, and toss it here.
        return row.decision == "OK" or _coin(row) < kept.sample


def _coin(row: Row) -> float:
    """Return a number in [0, 1) that follows from the pixels and the place of a part alone."""
    text = f"{row.seq} {row.body.get('pixels')}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / float(16**12)


def _nearness(row: Row) -> float:
    threshold = row.body.get("threshold")
    return row.score / threshold if row.score is not None and threshold else float("-inf")
