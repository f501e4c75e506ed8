"""``edgead check``: the proof, on the device itself, that a bundle decides there as it did where it was validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgead.runtime.backends import Backend, BackendInfo, choose
from edgead.runtime.backends.routed_backend import open_model
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import DataError
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.replay import ImagesCheck, ReferenceCheck, problems, replay
from edgead.runtime.inspection.run_config import RunConfig, RunOptions
from edgead.runtime.progress import StepProgress

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of a check.

    ``problems`` holds one line each; without any, the check has passed. ``left_out`` says why a device profile that is
    there was not used.
    """

    bundle: str
    model_sha256: str
    precision: str
    backend: BackendInfo
    why: str
    threshold: float
    references: tuple[ReferenceCheck, ...]
    images: ImagesCheck | None
    problems: tuple[str, ...]
    left_out: str | None = None

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def worst(self) -> ReferenceCheck:
        """The reference that uses most of what is allowed."""
        return max(self.references, key=lambda reference: reference.excess)

    @property
    def max_score_difference(self) -> float:
        return _largest([reference.score_difference for reference in self.references])

    @property
    def max_map_difference(self) -> float:
        return _largest([reference.map_difference for reference in self.references])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.check/1``); a value that is not finite becomes null."""
        worst = self.worst
        changed = [
            r.name
            for r in self.references
            if r.decision is not r.expected_decision or r.category != r.expected_category
        ]
        return {
            "schema": "edgead.check/1",
            "passed": self.passed,
            "problems": list(self.problems),
            "bundle": self.bundle,
            "model_sha256": self.model_sha256,
            "precision": self.precision,
            "backend": {**self.backend.to_dict(), "why": self.why},
            "threshold": self.threshold,
            "references": {
                "images": len(self.references),
                "decision_changes": changed,
                "max_score_difference": _number(self.max_score_difference),
                "max_map_difference": _number(self.max_map_difference),
                "worst": {
                    "name": worst.name,
                    "expected_score": worst.expected_score,
                    "score": _number(worst.score),
                    "score_difference": _number(worst.score_difference),
                    "tolerance": worst.tolerance,
                },
            },
            "images": None
            if self.images is None
            else {
                "images": sum(self.images.decisions.values()),
                "decisions": self.images.decisions,
                "not_finite": list(self.images.not_finite),
                "unreadable": self.images.unreadable,
            },
        }


def check_bundle(
    path: str | Path,
    config: RunConfig | None = None,
    *,
    images: Sequence[str | Path] = (),
    progress: StepProgress | None = None,
    **options: Unpack[RunOptions],
) -> CheckReport:
    """Verify a bundle and replay its reference images on this device.

    Passes iff the resize of this machine is exact, every score and map is finite, no reference is decided otherwise
    than by the torch model, and no score differs by more than `FP32_TOLERANCE` of the margin (in a reduced precision
    `REDUCED_TOLERANCE`, or what the export allowed it where that is more).

    Args:
        path: a ``.edgead`` file.
        config: what is asked for; with a profile, what is checked is what ``edgead run`` would use.
        images: more images, or folders that are searched for them; they are judged and must give finite scores.
            A file that is no readable image is reported, counts as `NOT_INSPECTED`, and does not fail the check.
        progress: called with (done, total) after each image.
        options: fields of `RunConfig`, which count more than ``config``.

    Raises:
        BundleError: damaged, unsafe, or without references, so that nothing can be proved.
        BackendUnavailable, BackendError: the backend is missing or cannot run the graph.
        ConfigError: unknown backend or precision.
        DataError: ``images`` names something that is not there, holds no image, or none that can be judged.
    """
    config = replace(config or RunConfig(), **options)
    chosen = choose(config.backend)
    files = list(find_images(images))
    with Bundle.open(path) as bundle:
        opening = config.settle(bundle, chosen)
        manifest, key, settled = bundle.manifest, opening.precision, opening.config
        limits = manifest.limits(key)
        total = len(bundle.references()) + len(files)
        step = iter(range(1, total + 1))

        def done() -> None:
            if progress is not None:
                progress(next(step), total)

        with bundle.model_files(key, native_code=settled.native_code) as model:
            network = open_model(settled.backend, manifest, model, key, threads=settled.threads, bundle=bundle.path)
            try:
                # A runtime cannot tell what is in a graph; it only knows what it computes the rest in.
                info = network.describe()
                info = replace(info, precision="int8") if key.startswith("int8") else info
                replayed = replay(network, bundle, key, done)
                judged = (
                    _judge(network, files, _Reading(bundle.view(), bundle.manifest.input.bits), limits, done)
                    if files
                    else None
                )
            finally:
                network.close()
    return CheckReport(
        bundle=str(path),
        model_sha256=bundle.sha256,
        precision=key,
        backend=info,
        why=opening.why,
        left_out=opening.left_out,
        threshold=limits.value,
        references=tuple(replayed),
        images=judged,
        problems=tuple(problems(replayed, judged)),
    )


class _Reading(NamedTuple):
    view: View
    bits: int  # of 16-bit image files


def _judge(
    network: Backend, files: Sequence[Path], reading: _Reading, limits: Limits, done: Callable[[], None]
) -> ImagesCheck:
    decisions = dict.fromkeys((decision.value for decision in Decision), 0)
    not_finite: list[str] = []
    unreadable: dict[str, str] = {}
    for file in files:
        try:
            found = network.run(reading.view.prepare(read_image(file, reading.bits))[None])
        except DataError as error:
            unreadable[str(file)] = str(error)
            decisions[Decision.NOT_INSPECTED.value] += 1
        else:
            verdict = limits.judge(found, 0)
            decisions[verdict.decision.value] += 1
            if not (math.isfinite(verdict.score) and np.isfinite(found.map).all()):
                not_finite.append(str(file))
        done()
    if len(unreadable) == len(files):
        raise DataError(f"none of the {len(files)} images could be judged: {next(iter(unreadable.values()))}")
    return ImagesCheck(decisions, tuple(not_finite), unreadable)


def _largest(values: Sequence[float]) -> float:
    return max(value if math.isfinite(value) else math.inf for value in values)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
