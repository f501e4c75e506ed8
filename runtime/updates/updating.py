"""A running line takes what a repository offers: tried in the shadow, taken, and returned where it fails."""

from __future__ import annotations

import json
import logging
import platform
import queue
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BackendError, ConfigError, DataError, EdgeadError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.inspection.exchange import exchange, previous_path
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.inspection.shadow import ShadowSink
from edgead.runtime.journal.bundles import keep_bundle
from edgead.runtime.journal.rows import NewRow
from edgead.runtime.journal.sink import RecordSink
from edgead.runtime.journal.writer import now_ms
from edgead.runtime.sinks import Sink
from edgead.runtime.updates.client import Release, UpdateClient
from edgead.runtime.updates.rollout import Rollout
from edgead.runtime.uri import Parameters, redact_uri, split_query

_PARAMETERS = ("root", "station", "every")
_DAY_S = 86400.0

_log = logging.getLogger("edgead.updates")


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What ``--updates`` was given: ``REPO?root=FILE&station=NAME&every=10min``.

    Attributes:
        place: folder or http(s) address; root: see `UpdateClient`.
        station: name that roll-outs are made by; every_s: seconds between two looks.
    """

    place: str
    station: str
    root: Path | None = None
    every_s: float = 600.0

    @classmethod
    def parse(cls, text: str) -> UpdateOptions:
        """Read what the command line was given; raises `ConfigError` where a parameter is unknown or wrong."""
        place, pieces = split_query(text)
        if not place:
            raise ConfigError("--updates needs a folder or an address, such as --updates 'https://host/repo?root=FILE'")
        given = Parameters.parse(f"--updates {redact_uri(place)}", pieces, _PARAMETERS)
        root = given.values.get("root")
        every = given.seconds("every") or 600.0
        if every > _DAY_S:
            raise ConfigError(f"{given.where}: every={given.values['every']} is longer than a day")
        station = given.values.get("station") or platform.node()
        if not station:
            raise ConfigError(f"{given.where}: this machine has no name; write station=NAME")
        return cls(place, station, None if root is None else Path(root).expanduser(), every)


class Updates(Sink):
    """Looks for updates in a thread of its own, and is a sink so that a new bundle can judge beside the old one first.

    Each release is tried once. Whatever is wrong with it or with the repository, the bundle that judges goes on. Every
    step is a row of kind ``takeover`` where there is a record, and a line of the log.

    Args:
        options: see `UpdateOptions`.
        inspector: opened from a bundle; what is offered under its file name takes its place.
        config: what it was opened with, for the shadow; record: where the steps are written down.

    Raises:
        ConfigError: as `UpdateClient`, or the inspector came from no bundle.
    """

    keeps_frames = True
    takes_results_alone = False

    def __init__(
        self, options: UpdateOptions, inspector: Inspector, config: RunConfig, record: RecordSink | None = None
    ) -> None:
        if inspector.bundle is None:
            raise ConfigError("updates need an inspector that was opened from a bundle")
        self.name = f"updates {redact_uri(options.place)}"
        self._options, self._inspector, self._config, self._record = options, inspector, config, record
        self._path = inspector.bundle[0]
        self._state = self._path.with_name(f"{self._path.stem}.updates")
        self._client = UpdateClient(options.place, self._path.name, self._state, options.root)
        self._done = _read_done(self._state / "done.json")
        self._said = ""
        self._trial: Rollout | None = None
        self._lock = threading.Lock()
        self._shadow: ShadowSink | None = None
        self._shadow_end = threading.Event()
        self._shadow_problem = ""
        self._wanted = 0
        self._closing = self._interrupted = False
        self._asked: queue.SimpleQueue[Literal["look", "return", "end"]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgead-updates", daemon=True)

    def start(self) -> None:
        """Begin to look, at once and then every so often."""
        self._asked.put("look")
        self._thread.start()

    def look(self) -> None:
        """Look soon, whatever the time."""
        self._asked.put("look")

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        shadow = self._shadow
        return shadow is not None and shadow.accepts(result, frame)

    def write(self, result: Result, frame: Frame | None) -> None:
        with self._lock:
            shadow = self._shadow
            if shadow is None or self._shadow_end.is_set():
                return
            try:
                shadow.write(result, frame)
            except BackendError as error:
                self._shadow_problem = str(error)
            if self._shadow_problem or shadow.report.judged >= self._wanted:
                self._shadow_end.set()

    def note(self, event: str, fields: Mapping[str, Any]) -> None:  # noqa: ARG002
        if event == "self-test failed":
            # No part is judged now, so a shadow would wait for ever, and what is to return would wait for it.
            self._interrupted = True
            self._shadow_end.set()
            self._asked.put("return")
        elif event == "self-test passed":
            self._trial = None

    def close(self) -> None:
        self._closing = True
        self._shadow_end.set()
        self._asked.put("end")
        if self._thread.is_alive():
            self._thread.join(10.0)

    def _run(self) -> None:
        while not self._closing:
            try:
                asked = self._asked.get(timeout=self._options.every_s)
            except queue.Empty:
                asked = "look"
            if asked == "end":
                return
            try:
                if asked == "return":
                    self._return("the self-test failed")
                else:
                    self._look()
            except Exception as error:  # noqa: BLE001 - the line goes on, and the next look may be better
                self._refuse(str(error) if isinstance(error, EdgeadError) else f"{type(error).__name__}: {error}", None)

    def _look(self) -> None:
        self._interrupted = False
        release = self._client.look()
        running = self._inspector.bundle
        if release is None or running is None or release.rollout.release <= self._done:
            return
        rollout = release.rollout
        if not rollout.is_for(self._options.station):
            return
        if rollout.bundle == running[1]:
            self._finish(rollout, "it judges already")
            return
        path = self._fetch(release)
        self._tell("update offered", rollout, {"old": running[1], "shadow_parts": rollout.shadow_parts})
        problem = self._try(path, rollout) if rollout.shadow_parts else ""
        if self._closing or self._interrupted:
            return  # and it is tried again at the next look
        if not problem:
            problem = self._take(path, rollout)
        if problem:
            self._refuse(problem, rollout)
            self._finish(rollout, problem)

    def _fetch(self, release: Release) -> Path:
        path = self._client.download(release)
        with Bundle.open(path) as bundle:
            if bundle.sha256 != release.rollout.bundle:
                raise DataError(f"{path} is another bundle than the one that was published")
        return path

    def _try(self, path: Path, rollout: Rollout) -> str:
        """Let it judge beside the one that decides; returns what is wrong, empty where nothing is."""
        try:
            shadow = ShadowSink(path, self._config, self._inspector.bits)
        except EdgeadError as error:
            return str(error)
        self._shadow_end.clear()
        self._shadow_problem, self._wanted = "", rollout.shadow_parts
        if self._record is not None:
            shadow.on_difference = self._record.shadow_differs
        if self._closing or self._interrupted:
            self._shadow_end.set()
        self._shadow = shadow
        self._shadow_end.wait()
        with self._lock:
            self._shadow = None
            shadow.close()
        report = shadow.report
        if self._closing or self._interrupted or self._shadow_problem:
            return self._shadow_problem
        said = {"judged": report.judged, "different": report.different}
        if report.different * 1_000_000 > rollout.max_different_ppm * report.judged:
            return f"in the shadow it decided {report.different} of {report.judged} parts otherwise"
        self._tell("update passed the shadow", rollout, said)
        return ""

    def _take(self, path: Path, rollout: Rollout) -> str:
        """Let it take over; returns why it does not judge, empty where it does."""
        if self._record is not None:
            keep_bundle(self._record.journal.folder, path, rollout.bundle)
        self._tell("update begins", rollout, {})
        try:
            exchange(self._inspector, path, self._path, rollout.bundle)
        except EdgeadError as error:
            return str(error)
        self._reloaded()
        self._trial = rollout
        problems = self._inspector.self_test()
        if problems:
            self._return(f"the self-test failed: {problems[0]}")
            return ""
        self._finish(rollout, "taken")
        self._said = ""
        self._tell("update taken", rollout, {})
        return ""

    def _return(self, why: str) -> None:
        """Let the bundle before the update judge again."""
        rollout, self._trial = self._trial, None
        running = self._inspector.bundle
        # Where a person let another one take over since, what lies beside it is not what was before the update.
        if rollout is None or running is None or running[1] != rollout.bundle:
            return
        # First: should this process end here, the update is not tried again.
        self._finish(rollout, why)
        back = self._state / "returned.edgead"
        try:
            shutil.copyfile(previous_path(self._path), back)
        except OSError as error:
            raise DataError(f"cannot return to {previous_path(self._path)}: {reason(error)}") from error
        exchange(self._inspector, back, self._path)
        self._reloaded()
        self._tell("update returned", rollout, {"reason": why})

    def _reloaded(self) -> None:
        bundle = self._inspector.bundle
        if self._record is not None and bundle is not None:
            said = {"model": self._inspector.name, "bundle": str(bundle[0]), "sha256": bundle[1]}
            self._record.note("reloaded", said)

    def _refuse(self, why: str, rollout: Rollout | None) -> None:
        if why != self._said:  # a server that is down is said once, not every ten minutes
            self._said = why
            self._tell("update refused", rollout, {"reason": why})

    def _finish(self, rollout: Rollout, outcome: str) -> None:
        self._done = rollout.release
        said = {"release": rollout.release, "bundle": rollout.bundle, "outcome": outcome}
        with atomic_write(self._state / "done.json", DataError) as stream:
            stream.write(json.dumps(said).encode() + b"\n")

    def _tell(self, event: str, rollout: Rollout | None, fields: Mapping[str, Any]) -> None:
        release = {} if rollout is None else {"release": rollout.release, "new": rollout.bundle}
        said = {"station": self._options.station, **release, **fields}
        text = ", ".join(f"{name} {value}" for name, value in said.items())
        _log.warning(f"{event}: %s", text)
        if self._record is not None:
            body = {"event": event, "who": self.name, **said}
            self._record.journal.add_and_wait(NewRow("takeover", now_ms(), body=body))


def _read_done(path: Path) -> int:
    """Return the number of the release that was tried last; 0 where none was."""
    try:
        found = json.loads(path.read_text())
        return int(found["release"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({reason(error)}); remove it, and the last release is tried again"
        ) from error
