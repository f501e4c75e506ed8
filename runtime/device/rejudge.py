"""Parts of a record judged again from their stored pixels: by the bundle that judged them, or by another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgead.runtime.errors import DataError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.inspection.shadow import ShadowReport
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row, finite, map_digest


@dataclass(frozen=True, slots=True)
class Rejudged:
    """One part that comes out otherwise.

    Attributes:
        row: what was decided.
        result: what is decided now.
        labels: what people said of it, the last word of each.
    """

    row: Row
    result: Result
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        was = {name: self.row.body.get(name) for name in ("threshold", "category", "reason")}
        now = self.result.to_dict()
        return {
            "row": self.row.seq,
            "part": self.row.part,
            "was": {"decision": self.row.decision, "score": self.row.score, **was},
            "now": {name: now[name] for name in ("decision", "score", "threshold", "category", "reason")},
            "labels": list(self.labels),
        }


@dataclass(slots=True)
class ReplayReport:
    """What came of it.

    Attributes:
        folder, bundle: of the record; the other bundle, None: each part by the one that judged it.
        backends: what ran, one line each.
        parts: that were meant; judged: that could be judged again.
        not_judged: that no bundle had judged (a frame that was too late, unreadable, or paused); without_image: whose
            image was not kept, or removed by the record's limits.
        changed: decisions that come out otherwise; by the same bundle ``inexact`` are those whose decision is the same
            and whose score or map is not, to the bit.
        max_score_difference: the largest one, raw score units.
        problems: images and rows that cannot be used, a line each.
        compared: of another bundle: who rejects what, and what is known of it with confidence.
        labelled: of labelled parts: how many of each label are rejected, then and now.
    """

    folder: str
    bundle: str | None
    backends: list[str] = field(default_factory=list)
    parts: int = 0
    judged: int = 0
    not_judged: int = 0
    without_image: int = 0
    changed: list[Rejudged] = field(default_factory=list)
    inexact: list[Rejudged] = field(default_factory=list)
    max_score_difference: float = 0.0
    problems: list[str] = field(default_factory=list)
    compared: ShadowReport | None = None
    labelled: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every part that was judged again is decided as it was: by the same bundle, to the bit."""
        return not (self.changed or self.inexact or self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.replay/1``."""
        names = (
            "folder",
            "bundle",
            "backends",
            "parts",
            "judged",
            "not_judged",
            "without_image",
            "problems",
            "labelled",
        )
        return {
            "schema": "edgead.replay/1",
            **{name: getattr(self, name) for name in names},
            "problems": self.problems,
            "same": self.same,
            "max_score_difference": self.max_score_difference,
            "changed": [one.to_dict() for one in self.changed],
            "inexact": [one.row.seq for one in self.inexact],
            "compared": None if self.compared is None else self.compared.to_dict(),
        }


class Replay:
    """Judges parts of a record again; use as a context manager.

    Args:
        reader: of the record.
        bundle: another bundle, with its own thresholds; None: each part by the kept bundle that judged it, opened as it
            was (backend, precision, threads), with the threshold that held then.
        config: how to open it, in place of that; None: as it was, or the defaults of `RunConfig`.
        on_change: called with each part whose decision is another one, and with its picture.

    Example:
        >>> with JournalReader("line3") as reader, Replay(reader) as replay:
        ...     replay.judge(reader.parts(part="4711"))
        ...     print(replay.report.same)
    """

    def __init__(
        self,
        reader: JournalReader,
        bundle: Path | None = None,
        config: RunConfig | None = None,
        on_change: Callable[[Rejudged, Frame], None] | None = None,
    ) -> None:
        self._reader, self._bundle, self._config, self._on_change = reader, bundle, config, on_change
        self._open: tuple[str | None, Inspector] | None = None
        self.report = ReplayReport(str(reader.folder), None if bundle is None else str(bundle))
        if bundle is not None:
            inspector = self._inspector(None, bundle, config or RunConfig())
            sha256 = inspector.bundle[1] if inspector.bundle is not None else ""
            self.report.compared = ShadowReport(str(bundle), sha256)

    def judge(self, parts: Iterable[Row], done: Callable[[int], None] = lambda _: None) -> None:
        """Judge parts again, and count what comes of it in ``report``; ``done`` is called with how many are through.

        Raises:
            DataError: the bundle that judged is not kept.
            BundleError, BackendUnavailable, ConfigError: a bundle cannot be opened here as it was; the message names
                what is missing.
        """
        for row in parts:
            self.report.parts += 1
            self._part(row)
            done(self.report.parts)

    def _part(self, row: Row) -> None:
        report = self.report
        if "setup" not in row.body:
            report.not_judged += 1
            return
        if row.image is None or self._reader.image_removed(row):
            report.without_image += 1
            return
        try:
            frame = self._reader.frame(row)
        except (DataError, KeyError) as error:
            report.problems.append(str(error) if isinstance(error, DataError) else f"row {row.seq} is damaged")
            return
        result = self._again(row, frame)
        report.judged += 1
        labels = self._labels(row, result)
        one = Rejudged(row, result, labels)
        if row.score is not None and math.isfinite(result.score):
            report.max_score_difference = max(report.max_score_difference, abs(result.score - row.score))
        if row.decision != result.decision.value or row.body.get("category") != result.category:
            report.changed.append(one)
            if self._on_change is not None:
                self._on_change(one, frame)
        elif report.compared is None and not _exact(row, result):
            report.inexact.append(one)

    def _again(self, row: Row, frame: Frame) -> Result:
        if self._bundle is not None:
            assert self._open is not None
            result = self._open[1](frame)
            self._compare(row, result)
            return result
        setup = self._reader.setup(row)
        name = str(row.body["setup"])
        if self._open is None or self._open[0] != name:
            config = self._config
            if config is None:
                if "opened" not in setup:
                    raise DataError(f"row {row.seq} does not say how its bundle was opened; choose one with --backend")
                config = RunConfig(**setup["opened"])
            self._inspector(name, self._reader.bundle(str(setup["bundle"])), config)
        assert self._open is not None
        inspector = self._open[1]
        threshold, category = row.body.get("threshold"), row.body.get("category")
        limits = inspector.limits
        known = limits.categories.get(category) if category is not None else limits.value
        if threshold is not None and known is not None and known != threshold:
            inspector.set_threshold(threshold, category)  # somebody had changed it on the live page
        return inspector(frame)

    def _compare(self, row: Row, result: Result) -> None:
        compared = self.report.compared
        assert compared is not None
        if row.decision == Decision.NOT_INSPECTED.value:
            return
        compared.count(row.decision != Decision.OK.value, result.decision)

    def _labels(self, row: Row, result: Result) -> tuple[str, ...]:
        last = {str(label.body["who"]): str(label.body["label"]) for label in self._reader.labels(row.seq)}
        for label in set(last.values()):
            counts = self.report.labelled.setdefault(label, {"parts": 0, "rejected": 0, "rejected_now": 0})
            counts["parts"] += 1
            counts["rejected"] += row.decision != Decision.OK.value
            counts["rejected_now"] += result.decision is not Decision.OK
        return tuple(f"{who}: {label}" for who, label in sorted(last.items()))

    def _inspector(self, name: str | None, path: Path, config: RunConfig) -> Inspector:
        self.close()
        inspector = Inspector.open(path, config)
        self._open = name, inspector
        info = inspector.describe()
        ran = f"{info.name} {info.version} ({info.provider}, {info.precision}, {info.threads} threads)"
        self.report.backends.append(f"{inspector.name} on {ran}")
        return inspector

    def close(self) -> None:
        """Release the bundle that is open; calling it twice is allowed."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exact(row: Row, result: Result) -> bool:
    """Whether score, reason and map are the same to the bit; what no map was kept of has none to compare."""
    if finite(result.score) != row.score or row.body.get("reason") != result.reason:
        return False
    kept = row.body.get("map")
    return kept is None or (result.map is not None and map_digest(result.map) == kept)
