"""A second bundle that judges the same frames after the decision is out, and changes nothing: a canary."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgead.runtime.decision.threshold import share_interval
from edgead.runtime.errors import BackendError, BackendUnavailable, BundleError, ConfigError, EdgeadError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.sinks import Sink

CONFIDENCE = 0.95
_LISTED = 1000
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgead.runtime.inspection.shadow_worker import main; main()"
)
_KINDS: dict[str, type[EdgeadError]] = {
    error.__name__: error for error in (BundleError, ConfigError, BackendUnavailable, BackendError)
}
_END_S = 5.0


@dataclass(slots=True)
class ShadowReport:
    """What a shadow bundle decided beside the one that decides.

    Attributes:
        bundle, sha256: of the shadow; decided_by: digests of the bundles that decided.
        judged: parts that both judged; missed: parts that the shadow had no time for.
        both_rejected, both_passed: where they agree.
        only_shadow_rejected, only_shadow_passed: where they do not.
        failed: parts that the shadow gave no decision on (`NOT_INSPECTED`), which count as rejected by it.
        differences: the first 1,000 of them.
    """

    bundle: str
    sha256: str
    decided_by: list[str] = field(default_factory=list)
    judged: int = 0
    missed: int = 0
    both_rejected: int = 0
    both_passed: int = 0
    only_shadow_rejected: int = 0
    only_shadow_passed: int = 0
    failed: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def different(self) -> int:
        """Parts that one of them rejects and the other passes."""
        return self.only_shadow_rejected + self.only_shadow_passed

    def count(self, rejected: bool, shadow: Decision) -> bool:
        """Count a part by whether it was rejected and what the shadow says; returns whether they agree.

        Only `OK` passes a part: where the shadow gives no decision it would have been rejected.
        """
        shadow_rejects = shadow is not Decision.OK
        self.judged += 1
        self.failed += shadow is Decision.NOT_INSPECTED
        self.both_rejected += rejected and shadow_rejects
        self.both_passed += not rejected and not shadow_rejects
        self.only_shadow_passed += rejected and not shadow_rejects
        self.only_shadow_rejected += shadow_rejects and not rejected
        return rejected == shadow_rejects

    def claims(self) -> list[str]:
        """Return what is known of the shadow with 95 % confidence, a sentence each, to be taken each by itself."""
        if not self.judged:
            return ["no part was judged by both bundles, so nothing is known of the shadow"]
        rejected = self.both_rejected + self.only_shadow_passed
        passed = self.judged - rejected
        says = [_claim(self.different, self.judged, "parts", "are decided otherwise by the shadow")]
        if rejected:
            says.append(
                _claim(self.only_shadow_passed, rejected, "parts that are rejected now", "are passed by the shadow")
            )
        else:
            says.append("no part was rejected, so nothing is known of the rejects that the shadow would lose")
        if passed:
            says.append(
                _claim(self.only_shadow_rejected, passed, "parts that are passed now", "are rejected by the shadow")
            )
        return says

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.shadow/1``."""
        bounds = {
            "different": _upper(self.different, self.judged),
            "lost_rejects": _upper(self.only_shadow_passed, self.both_rejected + self.only_shadow_passed),
            "new_rejects": _upper(
                self.only_shadow_rejected, self.judged - self.both_rejected - self.only_shadow_passed
            ),
        }
        said = {"confidence": CONFIDENCE, "upper": bounds, "claims": self.claims(), "different": self.different}
        return {"schema": "edgead.shadow/1", **asdict(self), **said}


class ShadowSink(Sink):
    """Has each judged frame judged by a second bundle too, in a process of its own with the lowest priority.

    It gets what the sinks get, behind the same bounded queue, after the decision is out; what it has no time for is
    missed and counted. A shadow that crashes or hangs costs the run nothing: what is left of the frames is missed.

    Args:
        bundle: a ``.edgead`` file; it may take another size than the one that decides, which judges the same frames.
        config: how it is opened.
        bits: of the inspector that decides: frames of 16-bit files are made with these.

    Raises:
        BundleError, ConfigError, BackendError: it cannot be opened, as `Inspector.open`; or its bits are others.
    """

    keeps_frames = True
    takes_results_alone = False

    def __init__(self, bundle: Path, config: RunConfig, bits: int) -> None:
        self.name = f"shadow {bundle}"
        self.on_difference: Callable[[str, Mapping[str, Any]], None] | None = None
        self._lock = threading.Lock()
        arguments = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            profile = None if config.profile is None else str(config.profile)
            begun = self._ask({"bundle": str(bundle), "config": {**asdict(config), "profile": profile}})
            if "error" in begun:
                raise _KINDS.get(begun["kind"], BackendError)(f"the shadow: {begun['error']}")
            if begun["bits"] != bits:
                raise ConfigError(f"{bundle} takes {begun['bits']} bits of 16-bit image files, the other bundle {bits}")
        except BaseException:
            self._end()
            raise
        self.report = ShadowReport(str(bundle), begun["sha256"])
        self.why: str = begun["why"]

    def accepts(self, result: Result, frame: Frame | None) -> bool:
        # What nobody judged says nothing of either bundle.
        return result.bundle is not None and frame is not None and result.decision is not Decision.NOT_INSPECTED

    def write(self, result: Result, frame: Frame | None) -> None:
        assert frame is not None
        pixels = np.ascontiguousarray(frame.image)
        head = {"bytes": pixels.nbytes, "shape": pixels.shape, "layout": frame.layout}
        try:
            said = self._ask(head, pixels)
        except BackendError:
            self.report.missed += 1
            raise
        report, decided = self.report, result.decision is not Decision.OK
        if result.bundle is not None and result.bundle not in report.decided_by:
            report.decided_by.append(result.bundle)
        if report.count(decided, Decision(said["decision"])):
            return
        own = result.to_dict()
        place = {name: own[name] for name in ("source_id", "frame_index", "name", "part_id")}
        ours = {name: own[name] for name in ("decision", "score", "threshold", "category")}
        difference = {**place, "decided": ours, "shadow": said}
        if len(report.differences) < _LISTED:
            report.differences.append(difference)
        if self.on_difference is not None:
            self.on_difference("shadow differs", {**difference, "shadow_bundle": report.sha256})

    def missed(self, count: int) -> None:
        self.report.missed += count

    def close(self) -> None:
        self._end()

    def _ask(self, head: Mapping[str, Any], pixels: Any = None) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(head).encode() + b"\n")
            if pixels is not None:
                process.stdin.write(pixels.data)
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError) as error:
            raise BackendError("the shadow's process has ended") from error
        if not line:
            raise BackendError(f"the shadow's process has ended (code {process.poll()})")
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        with self._lock:
            process = self._process
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    try:
                        stream.close()
                    except OSError:  # what was not sent yet goes nowhere
                        pass
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _upper(count: int, n: int) -> float:
    """Return the exact one-sided upper limit of a share (Clopper and Pearson 1934); 1 where nothing was seen."""
    return share_interval(count, n, 2 * CONFIDENCE - 1)[1] if n else 1.0


def _claim(count: int, n: int, of: str, what: str) -> str:
    return (
        f"{count} of {n} {of} {what}; with {CONFIDENCE:.0%} confidence at most {_upper(count, n):.2%} of such {of} are"
    )
