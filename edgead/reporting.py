"""What a report of one model on one category is made of: evaluation, pictures of telling images, parity, latency."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.data import Category, Sample, load_mask, open_category
from edgead.evaluation.decisions import ImageScore
from edgead.evaluation.evaluation import CategoryReport, evaluate
from edgead.evaluation.worst_images import Worst, jpeg, thumbnail, worst_images
from edgead.opening import open_inspector
from edgead.runtime.backends import BackendInfo
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.device.bench import bench
from edgead.runtime.device.bench_report import BenchReport
from edgead.runtime.errors import BackendError, BundleError, ConfigError
from edgead.runtime.frame import Decision, Frame
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.heatmap import outline, overlay
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import Progress

SCHEMA = "edgead.report/1"
_MASK_COLOUR = (0, 214, 255)

# Heading -> how many images at most; 24 in all. The order is that of the page.
ESCAPES, FALSE_ALARMS = "Worst escapes", "Worst false alarms"
CAUGHT, NEAR, TYPICAL, LEFT_OUT = (
    "Hardest defects caught",
    "Good, nearest to the threshold",
    "Typical good",
    "Not inspected",
)
_PLACES = {ESCAPES: 6, FALSE_ALARMS: 6, CAUGHT: 4, NEAR: 3, TYPICAL: 3, LEFT_OUT: 2}


@dataclass(frozen=True, slots=True)
class Picture:
    """A test image in the gallery: the image with the outline of its mask, and with its heat map, both as JPEG."""

    group: str
    image: ImageScore
    photo: bytes
    heat_map: bytes
    has_mask: bool


@dataclass(frozen=True, slots=True)
class About:
    """Where the model came from.

    Attributes:
        kind: ``bundle`` or ``model directory``.
        sha256: of a bundle's manifest, which holds the digest of every member; None for a model directory.
        parity: graph file -> runtime -> record; None for a model directory.
    """

    kind: str
    name: str
    sha256: str | None
    detector: str
    settings: dict[str, Any]
    height: int
    width: int
    categories: dict[str, int]
    threshold: Threshold
    parity: dict[str, dict[str, ParityRecord]] | None
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    Attributes:
        worst: what each reduced precision of a bundle moved most.
        latency: None for a model directory, where it was not wanted, or where it failed, as ``latency_missing`` says.
    """

    about: About
    backend: BackendInfo
    evaluation: CategoryReport
    pictures: tuple[Picture, ...]
    worst: tuple[Worst, ...]
    latency: BenchReport | None
    latency_missing: str | None
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form without pictures, schema ``edgead.report/1``."""
        about, parity = self.about, self.about.parity
        return {
            "schema": SCHEMA,
            "model": {
                "kind": about.kind,
                "name": about.name,
                "sha256": about.sha256,
                "detector": about.detector,
                "settings": about.settings,
                "size": {"height": about.height, "width": about.width},
                "categories": about.categories,
                "threshold": {**about.threshold.to_dict(), "meaning": about.threshold.explain()},
                "provenance": about.provenance,
            },
            "category": self.evaluation.name,
            **self.evaluation.to_dict(images=True),
            "backend": self.backend.to_dict(),
            "parity": None
            if parity is None
            else {
                file: {runtime: record.model_dump(mode="json") for runtime, record in records.items()}
                for file, records in parity.items()
            },
            # Without the path of the bundle, which is a folder of this machine.
            "latency": None if self.latency is None else {**self.latency.to_dict(), "bundle": about.name},
            "latency_missing": self.latency_missing,
            "machine": self.machine,
        }


def make_report(
    model: Path,
    category: Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    frames: int = 100,
    progress: Progress,
) -> Report:
    """Evaluate a model on a category, choose telling images, and time the model where it is a bundle.

    Args:
        model: a model directory or a bundle.
        category: a folder or list with good and defective test images.
        backend, threads: what runs the network for the evaluation, as in `open_inspector`.
        frames: counted frames of the latency on each runtime; 0 measures none.
        progress: called with ``(stage, done, total)``.

    Raises:
        EdgeadError: what is wrong with model, category or backend, in one line.
    """
    opened = open_category(category, need_test=True)
    about = _about(model, opened.name)
    with open_inspector(model, backend=backend, threads=threads) as inspector:
        found = evaluate(inspector, opened, progress=lambda done, total: progress("evaluation", done, total))
        chosen = choose_images(found.images)
        pictures = []
        for done, (group, index) in enumerate(chosen, start=1):
            pictures.append(_picture(inspector, opened, opened.test[index], found.images[index], group))
            progress("gallery", done, len(chosen))
        info = inspector.describe()
    worst = worst_images(model, [sample.path for sample in opened.test]) if about.kind == "bundle" else ()
    latency = missing = None
    if about.kind == "bundle" and frames:
        latency, missing = _latency(model, frames, progress)
    return Report(
        about=about,
        backend=info,
        evaluation=found,
        pictures=tuple(pictures),
        worst=worst,
        latency=latency,
        latency_missing=missing,
        machine=describe_machine(),
    )


def choose_images(images: Sequence[ImageScore]) -> list[tuple[str, int]]:
    """Return ``(heading, index)`` of the images that tell most: what went wrong, what nearly did, and what is usual."""

    def members(decision: Decision, anomalous: bool) -> list[int]:
        found = [i for i, image in enumerate(images) if image.decision is decision and image.anomalous is anomalous]
        return sorted(found, key=lambda index: images[index].score)

    passed = members(Decision.OK, False)
    middle = len(passed) // 2
    usual = sorted(passed, key=lambda index: abs(passed.index(index) - middle))
    near = passed[::-1][: _PLACES[NEAR]]
    groups = {
        ESCAPES: members(Decision.OK, True),
        FALSE_ALARMS: members(Decision.ANOMALY, False)[::-1],
        CAUGHT: members(Decision.ANOMALY, True),
        NEAR: near,
        TYPICAL: [index for index in usual if index not in near],
        LEFT_OUT: [i for i, image in enumerate(images) if image.decision is Decision.NOT_INSPECTED],
    }
    return [(name, index) for name, found in groups.items() for index in found[: _PLACES[name]]]


def _picture(inspector: Inspector, category: Category, sample: Sample, image: ImageScore, group: str) -> Picture:
    pixels = read_image(sample.path, inspector.bits)
    result = inspector(Frame(pixels, 0, time.monotonic_ns(), image.path))
    rows, columns = pixels.shape[:2]
    small = thumbnail(pixels)
    height, width = small.shape[:2]
    photo = small.copy()
    has_mask = category.has_masks and bool(sample.masks)
    if has_mask:
        photo[outline(load_mask(sample, (rows, columns), height, width), 1)] = _MASK_COLOUR
    return Picture(group, image, jpeg(photo), jpeg(overlay(small, result)), has_mask)


def _latency(model: Path, frames: int, progress: Progress) -> tuple[BenchReport | None, str | None]:
    try:
        return bench(model, frames=frames, progress=lambda done, total: progress("latency", done, total)), None
    except (BackendError, BundleError, ConfigError) as error:
        return None, str(error).replace(str(model), model.name)


def _about(model: Path, category: str) -> About:
    if model.is_dir():
        from edgead.model.model_card import read_card

        card = read_card(model)
        routed = card.routing.categories.get(category) if card.routing else None
        return About(
            kind="model directory",
            name=model.name,
            sha256=None,
            detector=card.detector,
            settings=card.settings,
            height=card.height,
            width=card.width,
            categories=card.categories,
            threshold=(routed.threshold if routed else card.threshold).to_threshold(),
            parity=None,
            provenance=card.provenance(),
        )
    with Bundle.open(model) as bundle:
        manifest = bundle.manifest
        own = manifest.categories.get(category)
        plain = manifest.precisions.get("fp32")
        threshold = (own.threshold if own else None) or (plain.threshold if plain else None) or manifest.threshold
        return About(
            kind="bundle",
            name=model.name,
            sha256=bundle.sha256,
            detector=manifest.detector.name,
            settings=dict(manifest.detector.settings),
            height=manifest.input.height,
            width=manifest.input.width,
            categories={name: section.n_train for name, section in manifest.categories.items()},
            threshold=threshold.to_threshold(),
            parity={file: dict(records) for file, records in manifest.parity.items()},
            provenance=dict(manifest.provenance),
        )
