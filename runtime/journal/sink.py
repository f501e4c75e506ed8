"""The record as a sink: each result becomes a row, and what is done to the line another one."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.journal.bundles import keep_bundle
from edgead.runtime.journal.retention import Limits
from edgead.runtime.journal.rows import NewRow, part_row
from edgead.runtime.journal.writer import Journal, now_ms
from edgead.runtime.machine import describe_machine
from edgead.runtime.sinks import Sink, selects
from edgead.runtime.sinks.result_json import finite
from edgead.runtime.uri import Parameters, split_query
from edgead.runtime.version import __version__

_PARAMETERS = ("images", "sample", "max_size", "max_age", "key")
# What the stream says of the inspector, and the kind of row it becomes; all else is a note.
_KINDS = {"reload": "action", "reloaded": "bundle", "not reloaded": "action"}

_log = logging.getLogger("edgead.journal")


class OpenedWith(Protocol):
    """What the record needs to know of how a bundle was opened: a `RunConfig` is one."""

    @property
    def precision(self) -> str | None: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def batch(self) -> int: ...

    @property
    def native_code(self) -> bool: ...

    @property
    def backend(self) -> str: ...


class Judging(Protocol):
    """What the record needs of an `edgead.runtime.Inspector`."""

    why: str

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> tuple[Path, str] | None: ...

    @property
    def serving(self) -> tuple[str, OpenedWith, BackendInfo] | None: ...


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What ``--record`` was given: ``DIR?images=rejected&sample=0.05&max_size=20GB&max_age=90d&key=FILE``.

    Attributes:
        folder: where the journal lies.
        images: whose images are kept: of ``all`` parts, of those ``rejected`` (not `OK`), or of ``none``.
        sample: besides these, the share of the other parts whose images are kept, chosen by chance.
        limits: what is removed.
        key: of the signature.
    """

    folder: str | Path
    images: str = "all"
    sample: float = 0.0
    limits: Limits | None = None
    key: Path | None = None

    @classmethod
    def parse(cls, text: str) -> RecordOptions:
        """Read what the command line was given.

        Raises:
            ConfigError: no folder, an unknown parameter, or a value out of range.
        """
        location, pieces = split_query(text)
        if not location:
            raise ConfigError("--record needs a folder, such as --record 'line3?images=rejected&max_size=20GB'")
        given = Parameters.parse(f"--record {location}", pieces, _PARAMETERS)
        key = given.values.get("key")
        return cls(
            Path(location).expanduser(),
            given.choice("images", "all", ("all", "rejected", "none")),
            given.number("sample", 0.0, 0.0, 1.0),
            Limits(given.size("max_size"), given.seconds("max_age")),
            None if key is None else Path(key).expanduser(),
        )


class RecordSink(Sink):
    """Writes a row for each result into a journal, with its image where that is asked for.

    A result is never held up by its image: where images come faster than they are compressed and stored, rows are
    written without (``no_image`` says why). Results that found no room at all are counted by a row of kind ``gap``.

    Args:
        options: see `RecordOptions`.
        inspector: what judges; its bundle is copied into the folder before the first frame, and after each swap.

    Raises:
        ConfigError: another writer has the journal, it is of another version, or the folder cannot be written.
        DataError: the bundle cannot be kept.

    Example:
        >>> record = RecordSink(RecordOptions("line3", images="rejected"), inspector)
        >>> inspector.stream("0", sinks=[record, "results.jsonl"]).run()
    """

    keeps_frames = True
    takes_results_alone = True

    def __init__(self, options: RecordOptions, inspector: Judging) -> None:
        self.name = f"record {options.folder}"
        self._options, self._inspector = options, inspector
        self._folder = Path(options.folder)
        self._chance = random.Random()
        self._lock = threading.Lock()
        self._setups: dict[str | None, str] = {}
        self.journal = Journal(self._folder, limits=options.limits, key=options.key)
        try:
            serving = inspector.bundle
            if serving is not None:
                keep_bundle(self._folder, *serving)
            self._tell(
                "bundle",
                "started",
                {
                    "model": inspector.name,
                    "sha256": None if serving is None else serving[1],
                    "setup": self._setup(None if serving is None else serving[1]),
                    "images": options.images,
                    "sample": options.sample,
                },
            )
        except BaseException:
            self.journal.close()
            raise

    def write(self, result: Result, frame: Frame | None) -> None:
        wanted = selects("rejected" if self._options.images == "rejected" else "all", result.decision)
        wanted = wanted and self._options.images != "none"
        if not wanted and self._options.sample:
            wanted = self._chance.random() < self._options.sample
        setup = None if result.bundle is None else self._setup(result.bundle)
        why = None
        if wanted and frame is None:
            unreadable = result.decision is Decision.NOT_INSPECTED and result.bundle is None
            why = "there was no picture" if unreadable else "too many waited to be stored"
        self.journal.add(part_row(result, frame, setup, now_ms(), keep=wanted, no_image=why))

    def missed(self, count: int) -> None:
        self.journal.lose(count)

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        kind, said = _KINDS.get(event, "note"), dict(fields)
        if event == "reloaded":
            path, sha256 = Path(said["bundle"]), str(said["sha256"])
            try:
                keep_bundle(self._folder, path, sha256)
            except EdgeadError as error:
                # The line goes on, and the row says that these decisions cannot be made again.
                _log.error("%s", error)
                said["not_kept"] = str(error)
            with self._lock:
                self._setups.pop(sha256, None)
            said["setup"] = self._setup(sha256)
        self._tell(kind, event, said)

    def add(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write down what a person did on the page, before it is done, as `AuditLog` does.

        Raises:
            DataError: it could not be written; then nothing may be done of what it says.
        """
        self._tell("action", event, fields)

    def shadow_differs(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write down that a shadow bundle decided otherwise; not waited for."""
        body = finite({"event": event, **fields})
        self.journal.add(NewRow("shadow", now_ms(), fields.get("part_id"), body=body))

    def close(self) -> None:
        self.journal.close()

    def _tell(self, kind: str, event: str, fields: Mapping[str, Any]) -> None:
        body = finite({"event": event, **fields})
        self.journal.add_and_wait(NewRow(kind, now_ms(), body=body))  # type: ignore[arg-type]

    def _setup(self, sha256: str | None) -> str:
        """Return the name of what judged a result: the bundle's digest, how it was opened, and where."""
        with self._lock:
            if sha256 not in self._setups:
                serving = self._inspector.serving
                setup: dict[str, Any] = {"bundle": sha256, "edgead": __version__, "machine": describe_machine()}
                # Swapped twice within a moment: then how the first one was opened is not known any more.
                if serving is not None and serving[0] == sha256:
                    _, config, info = serving
                    opened = {name: getattr(config, name) for name in _OPENED}
                    setup |= {"opened": opened, "backend": asdict(info), "why": self._inspector.why}
                setup["model"] = self._inspector.name
                self._setups[sha256] = self.journal.setup(setup)
            return self._setups[sha256]


_OPENED = ("backend", "precision", "threads", "batch", "native_code")
