"""Which recorded parts a person looks at next, and what the looks say of the escapes: rejects, near-misses, a sample.

The sample is the passed parts in an order that chance alone decides (a hash of the journal's id and the row), reviewed
from its beginning. What a person said of the parts up to the first one not reviewed yet is therefore a random sample of
all passed parts, whatever else was reviewed, and in whichever queue: so the share of escapes is estimated without bias.
That near-misses which were labelled before make the reviewed beginning longer adds none: to stop before the first part
of the other kind, and to leave that one out, is inverse sampling (Haldane 1945), whose share is right on average.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgead.runtime.decision.false_alarm_watch import FalseAlarmWatch, PromiseState
from edgead.runtime.decision.threshold import Threshold, share_interval
from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.runtime.journal.schema import image_path

QUEUES = ("rejected", "near", "sample")
_KEPT = 2000  # of the sample's order and of the near-misses; more than people review in weeks
_TENTH = 2.0**64 / 10  # of the chances
# Of four parts shown, two are rejects: those cost the line money now.
_TURN = ("rejected", "sample", "rejected", "near")


@dataclass(frozen=True, slots=True)
class Escapes:
    """What one reviewer's labels say of passed parts.

    Attributes:
        reviewed: parts of the random order that were labelled, from its beginning without a gap.
        defects, unsure: of these.
        passed: all passed parts with a stored image.
        low, high: exact 95 % interval of the share of defects (Clopper and Pearson 1934); unsure ones count as good in
            ``low`` and as defects in ``high``. None where nothing was reviewed.
    """

    reviewed: int
    defects: int
    unsure: int
    passed: int
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        names = ("reviewed", "defects", "unsure", "passed", "low", "high")
        return {**{name: getattr(self, name) for name in names}, "said": self.explain()}

    def explain(self) -> str:
        """Return a sentence for people."""
        if self.low is None or self.high is None:
            return "no part of the random sample was reviewed yet, so nothing is known of escapes"
        of = f"{self.defects} defects" + (f" and {self.unsure} unsure ones" if self.unsure else "")
        return (
            f"{of} among {self.reviewed} passed parts chosen by chance; with 95 % confidence {self.low:.2%} to "
            f"{self.high:.2%} of the {self.passed} passed parts with an image are defects"
        )


class ReviewQueue:
    """The parts of a journal in the order of review; reads on as the journal grows. Not thread-safe.

    Args:
        reader: of the journal; parts whose image is not there are left out, since nobody could look at them.
    """

    def __init__(self, reader: JournalReader) -> None:
        self._reader = reader
        self._salt = reader.journal_id.encode()
        self._after = self._gone = self._passed = 0
        self._order: list[tuple[int, int]] = []  # (-chance, seq): the `_KEPT` first of the random order, as a heap
        self._near: list[tuple[float, int]] = []  # (score - threshold, seq): the `_KEPT` nearest, as a heap
        self._rejected: list[int] = []
        self._tested: list[int] = []  # rows of a random `_TENTH` of all parts, by which the promise is tested

    def next(self, who: str, queue: str | None = None, skip: Collection[int] = ()) -> Row | None:
        """Return the part that a person looks at next, None where all of a queue were labelled by that person.

        Args:
            who: the reviewer; labels of others change nothing here.
            queue: one of `QUEUES`; None: all in turn.
            skip: rows that are passed over for now.

        Raises:
            ConfigError: there is no such queue.
        """
        if queue is not None and queue not in QUEUES:
            raise ConfigError(f"unknown queue '{queue[:80]}'.{suggest(queue[:80], QUEUES)}")
        self._read_on()
        done = self._labelled(who)
        waiting = {name: [seq for seq in self._of(name) if seq not in done] for name in QUEUES}
        turn = (
            [queue] if queue is not None else [_TURN[(len(done) + place) % len(_TURN)] for place in range(len(_TURN))]
        )
        for name in turn:
            for seq in waiting[name]:
                if seq not in skip and image_path(self._reader.folder, seq).is_file():
                    return self._reader.part(seq)
        return None

    def left(self, who: str) -> dict[str, int]:
        """Return how many parts of each queue a person has not labelled yet."""
        self._read_on()
        done = self._labelled(who)
        return {name: sum(seq not in done for seq in self._of(name)) for name in QUEUES}

    def escapes(self, who: str) -> Escapes:
        """Return what a person's labels say of the passed parts."""
        self._read_on()
        said = self._said(who)
        labels = []
        for seq in self._of("sample"):
            if seq in said:
                labels.append(said[seq])
            elif image_path(self._reader.folder, seq).is_file():
                break  # an image that was lost can be reviewed by nobody, whatever it showed
        n, defects, unsure = len(labels), labels.count("defect"), labels.count("unsure")
        low = share_interval(defects, n)[0] if n else None
        high = share_interval(defects + unsure, n)[1] if n else None
        return Escapes(n, defects, unsure, self._passed, low, high)

    def promise(self, who: str, promised: Threshold) -> PromiseState | None:
        """Return what parts that a person called good say of the promised false-alarm rate; None without a promise.

        Rejects that people look at first are no fair test. Counted are parts of a random tenth of all (rejects as
        likely as passed parts, of which not all images may be kept), in the order in which they were judged, up to the
        first one that this person has not labelled: later looks only add to what was counted, and all is one test.
        """
        if not promised.n_normals or not 0.0 < promised.high < 1.0:
            return None
        self._read_on()
        said, watch = self._said(who), FalseAlarmWatch(promised.high)
        for seq in sorted(self._tested):
            if seq not in said:
                break
            row = self._reader.part(seq)
            if said[seq] == "good" and row.body.get("threshold") == promised.value:
                watch.observe(rejected=row.decision == "ANOMALY")
        return watch.state

    def _of(self, queue: str) -> list[int]:
        if queue == "rejected":
            return self._rejected[::-1]
        if queue == "near":
            return [seq for _, seq in sorted(self._near, reverse=True)]
        return [seq for _, seq in sorted(self._order, reverse=True)]

    def _said(self, who: str) -> dict[int, str]:
        """Return the last word of a person on each part."""
        mine = (row for row in self._reader.labels() if row.body["who"] == who)
        return {row.ref: str(row.body["label"]) for row in mine if row.ref is not None}

    def _labelled(self, who: str) -> set[int]:
        return set(self._said(who))

    def _read_on(self) -> None:
        gone = self._reader.images_removed_through()
        if self._gone != gone:
            # Also the labelled ones of them, whose image is still there: a sample of what people chose is biased. Begun
            # anew, because parts that came after the first `_KEPT` were forgotten.
            self._gone, self._after, self._passed = gone, gone, 0
            self._order, self._near, self._rejected, self._tested = [], [], [], []
        kept = None
        for row in self._reader.parts(after=self._after):
            self._after = row.seq
            if row.image is None:
                continue
            digest = hashlib.sha256(self._salt + row.seq.to_bytes(8, "big")).digest()
            chance, second = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8))
            if row.decision != "OK":
                self._rejected.append(row.seq)
                if kept is None:
                    kept = _KeptShares(self._reader)
                if row.decision == "ANOMALY" and chance < _TENTH and second < kept.of(row.seq) * 2.0**64:
                    self._tested.append(row.seq)
                continue
            self._passed += 1
            if chance < _TENTH:
                self._tested.append(row.seq)
            _keep(self._order, (-chance, row.seq))
            threshold = row.body.get("threshold")
            if row.score is not None and threshold is not None:
                _keep(self._near, (row.score - threshold, row.seq))


class _KeptShares:
    """Of which share of passed parts the images were kept, by row."""

    def __init__(self, reader: JournalReader) -> None:
        told = [(row.seq, row.body) for row in reader.rows("bundle") if "images" in row.body]
        self._seqs = [seq for seq, _ in told]
        self._shares = [1.0 if body["images"] == "all" else float(body.get("sample") or 0.0) for _, body in told]

    def of(self, seq: int) -> float:
        at = bisect_right(self._seqs, seq) - 1
        return self._shares[at] if at >= 0 else 1.0


def _keep(heap: list[tuple[Any, int]], item: tuple[Any, int]) -> None:
    if len(heap) < _KEPT:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
