"""``edgead check``: the proof, on the device itself, that a bundle decides there as it did where it was validated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo, Inference, choose
from edgead.runtime.bundle import Bundle
from edgead.runtime.decode import decode_image, find_images, read_image
from edgead.runtime.errors import BackendError, BundleError, DataError
from edgead.runtime.expected import expected_inferences
from edgead.runtime.frame import Decision
from edgead.runtime.limits import Limits
from edgead.runtime.opening import settle_opening
from edgead.runtime.preprocess import self_check
from edgead.runtime.region import Region, prepare
from edgead.runtime.routed import open_model
from edgead.runtime.tiling import Tiles

# How far a score may lie from the torch model's, as a share of the *margin*: threshold minus the median score of the
# references that torch calls OK, which is the way a good part has to go to become a false alarm. A share of the score
# would mean something else for each detector (distances, log-likelihoods, probabilities). Measured
# on bundles of PatchCore and PaDiM: FP32 in ONNX Runtime and OpenVINO stays below 1e-6 of the margin, bfloat16 moves
# scores by 0.02 to 0.18 of it. 1e-3 lies between, and is far below what calibration itself is sure of.
FP32_TOLERANCE = 1e-3
# Asked for by name, a reduced precision may differ as much as `edgead export` allows it by default (--max-drop).
REDUCED_TOLERANCE = 0.05
# Rounding grows with the number itself, so a score far above the threshold gets a share of its own size on top.
ROUNDING = 1e-5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """One reference image: what torch gave, what this device gives, and how far they may differ (raw score units)."""

    name: str
    expected_score: float
    score: float
    tolerance: float
    map_difference: float
    expected_decision: Decision
    decision: Decision
    expected_category: str | None = None
    category: str | None = None

    @property
    def score_difference(self) -> float:
        """Absolute difference, NaN where this device gave no finite score."""
        return abs(self.score - self.expected_score)

    @property
    def excess(self) -> float:
        """The difference in units of what is allowed; above 1 it is too far, infinite where it is not a number."""
        return self.score_difference / self.tolerance if math.isfinite(self.score_difference) else math.inf


@dataclass(frozen=True, slots=True)
class ImagesCheck:
    """The extra images: how many were judged how, which gave no finite score, which could not be read (and why)."""

    decisions: dict[str, int]
    not_finite: tuple[str, ...]
    unreadable: dict[str, str]


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
    *,
    backend: str = "auto",
    images: Sequence[Path] = (),
    precision: str | None = None,
    threads: int | None = None,
    profile: str | Path | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Verify a bundle and replay its reference images on this device.

    Passes iff the resize of this machine is exact, every score and map is finite, no reference is decided otherwise
    than by the torch model, and no score differs by more than `FP32_TOLERANCE` of the margin (in a reduced precision
    `REDUCED_TOLERANCE`, or what the export allowed it where that is more).

    Args:
        path: a ``.edgead`` file.
        backend: registry name or ``auto``.
        images: more images, or folders that are searched for them; they are judged and must give finite scores.
            A file that is no readable image is reported, counts as `NOT_INSPECTED`, and does not fail the check.
        precision: a key of the manifest's ``precisions``; None means ``fp32``.
        threads: CPU threads; None leaves the choice to the backend.
        profile: as `Inspector.open`; what is checked is then what ``edgead run`` would use.
        progress: called with (done, total) after each image.

    Raises:
        BundleError: damaged, unsafe, or without references, so that nothing can be proved.
        BackendUnavailable, BackendError: the backend is missing or cannot run the graph.
        ConfigError: unknown backend or precision.
        DataError: ``images`` names something that is not there, or holds no image.
    """
    chosen = choose(backend)
    files = list(find_images(images))
    with Bundle.open(path) as bundle:
        opening = settle_opening(bundle, chosen, backend=backend, precision=precision, threads=threads, profile=profile)
        manifest, key = bundle.manifest, opening.precision
        limits = manifest.limits(key)
        total = len(bundle.references()) + len(files)
        step = iter(range(1, total + 1))

        def done() -> None:
            if progress is not None:
                progress(next(step), total)

        with bundle.model_files(key, native_code=opening.native_code) as model:
            network = open_model(opening.backend, manifest, model, key, threads=opening.threads, bundle=bundle.path)
            try:
                info = network.describe()
                replayed = replay(network, bundle, key, done)
                judged = _judge(network, files, _Input.of(bundle), limits, done) if files else None
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


def replay(
    network: Backend, bundle: Bundle, precision: str, done: Callable[[], None] = lambda: None
) -> list[ReferenceCheck]:
    """Run the references of a bundle through an open network and compare them with what the torch model gave.

    Raises:
        BundleError: the bundle has none, so that nothing can be proved.
        BackendError: the network fails, or is of another kind.
    """
    manifest, references = bundle.manifest, _references(bundle)
    reduced = precision != "fp32" or network.describe().precision != "fp32"
    allowed = manifest.precisions[precision].max_drop or 0.0
    share = max(REDUCED_TOLERANCE, allowed) if reduced else FP32_TOLERANCE
    limits = manifest.limits(), manifest.limits(precision)
    network_input = _Input.of(bundle)
    found = []
    for reference in references:
        margin = share * _margin(reference, references, limits[0])
        found.append(_replay(network, reference, network_input, margin, limits))
        done()
    return found


class _Input(NamedTuple):
    """How pictures become the network's input."""

    height: int
    width: int
    region: Region | None
    tiles: Tiles | None

    @classmethod
    def of(cls, bundle: Bundle) -> _Input:
        manifest = bundle.manifest
        return cls(manifest.input.height, manifest.input.width, bundle.region(), manifest.tiles())

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return prepare(image, self.height, self.width, region=self.region, tiles=self.tiles)[None]


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str
    png: bytes
    expected: Inference  # of this one image


def _references(bundle: Bundle) -> list[_Reference]:
    images = dict(bundle.references())
    if not images:
        raise BundleError(f"{bundle.path} holds no reference images, so nothing can be proved; export it again")
    expected = bundle.expected()
    if sorted(expected["names"].tolist()) != sorted(images):
        raise BundleError(f"{bundle.path}: reference images and expected results differ in name; export it again")
    if (bundle.manifest.graph == "routed") != ("category" in expected):
        raise BundleError(f"{bundle.path}: the expected results are of another kind of graph; export it again")
    found = [_Reference(name, images[name], one) for name, one in expected_inferences(expected).items()]
    return sorted(found, key=lambda reference: reference.name)


def _margin(reference: _Reference, references: Sequence[_Reference], limits: Limits) -> float:
    """Return the way from the median good reference of the same category to the threshold."""
    own = limits.judge(reference.expected, 0)
    verdicts = [limits.judge(other.expected, 0) for other in references]
    scores = [verdict.score for verdict in verdicts if verdict.category == own.category]
    # Without a reference that torch calls OK, the distance of the median defect is the best scale there is.
    good = [score for score in scores if score <= own.threshold] or scores
    return abs(own.threshold - statistics.median(good))


def _replay(
    network: Backend, reference: _Reference, make: _Input, margin: float, limits: tuple[Limits, Limits]
) -> ReferenceCheck:
    found = network.run(make(decode_image(reference.png, reference.name)))
    if found.map.shape != reference.expected.map.shape:
        shapes = f"{found.map.shape[1:]} cells, expected are {reference.expected.map.shape[1:]}"
        raise BackendError(f"the network gives a map of {shapes}")
    expected, verdict = limits[0].judge(reference.expected, 0), limits[1].judge(found, 0)
    return ReferenceCheck(
        name=reference.name,
        expected_score=expected.score,
        score=verdict.score,
        tolerance=margin + ROUNDING * abs(expected.score) + 1e-12,
        map_difference=float(np.abs(found.map.astype(np.float64) - reference.expected.map).max()),
        expected_decision=expected.decision,
        decision=verdict.decision,
        expected_category=expected.category,
        category=verdict.category,
    )


def _judge(
    network: Backend, files: Sequence[Path], make: _Input, limits: Limits, done: Callable[[], None]
) -> ImagesCheck:
    decisions = dict.fromkeys((decision.value for decision in Decision), 0)
    not_finite: list[str] = []
    unreadable: dict[str, str] = {}
    for file in files:
        try:
            found = network.run(make(read_image(file)))
        except DataError as error:
            unreadable[str(file)] = str(error)
            decisions[Decision.NOT_INSPECTED.value] += 1
        else:
            verdict = limits.judge(found, 0)
            decisions[verdict.decision.value] += 1
            if not (math.isfinite(verdict.score) and np.isfinite(found.map).all()):
                not_finite.append(str(file))
        done()
    return ImagesCheck(decisions, tuple(not_finite), unreadable)


def problems(references: Sequence[ReferenceCheck], images: ImagesCheck | None = None) -> Iterator[str]:
    """Yield one line for each thing that fails a check on this device."""
    try:
        self_check()
    except BackendError as error:
        yield str(error)
    for reference in references:
        if not (math.isfinite(reference.score) and math.isfinite(reference.map_difference)):
            yield f"{reference.name}: the score or map is not finite on this device"
        elif reference.decision is not reference.expected_decision:
            yield f"{reference.name}: {reference.expected_decision} became {reference.decision}"
        elif reference.category != reference.expected_category:
            yield f"{reference.name}: {reference.expected_category} was taken for {reference.category}"
        elif reference.excess > 1:
            yield (
                f"{reference.name}: the score differs by {reference.score_difference:.3g}, "
                f"allowed are {reference.tolerance:.3g}"
            )
    for name in images.not_finite if images else ():
        yield f"{name}: the score or map is not finite on this device"


def _largest(values: Sequence[float]) -> float:
    return max(value if math.isfinite(value) else math.inf for value in values)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
