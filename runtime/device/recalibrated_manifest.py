"""The manifest of a bundle whose thresholds come from a camera: the new ones in place, the old ones recorded."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import CategorySection, NormalsSection, PrecisionSection, ThresholdSection
from edgead.runtime.decision import conformal
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.uri import redact
from edgead.runtime.version import __version__

PROVENANCE_KEY = "calibrations"


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What the good parts that a source showed gave.

    Attributes:
        old, new: thresholds, by precision, or by ``precision/category`` where the bundle is routed.
        scores: of the parts, keyed likewise; normals: what good parts look like, by category.
        source_id, images, backend: where the parts came from, how many they were, and what judged them.
    """

    old: Mapping[str, Threshold]
    new: Mapping[str, Threshold]
    scores: Mapping[str, Sequence[float]]
    normals: Mapping[str, NormalsSection]
    source_id: str
    images: int
    backend: Mapping[str, Any]


def recalibrated_manifest(manifest: Manifest, found: Recalibration) -> Manifest:
    """Return the manifest with the new thresholds in place."""
    record = _record(found)
    earlier = manifest.provenance.get(PROVENANCE_KEY, [])
    sections = {key: ThresholdSection.from_threshold(threshold) for key, threshold in found.new.items()}
    # A reduced precision was let through because it changed no decision at the old threshold; that proves nothing now.
    parity = {
        file: {runtime: evidence for runtime, evidence in records.items() if not runtime.endswith("-bf16")}
        for file, records in manifest.parity.items()
    }
    return manifest.model_copy(
        update={
            "parity": parity,
            "threshold": sections.get("fp32", manifest.threshold),
            "precisions": _precisions(manifest, sections),
            "categories": _categories(manifest, sections, found.normals),
            "provenance": {
                **manifest.provenance,
                conformal.PROVENANCE_KEY: _held_out(manifest, found),
                PROVENANCE_KEY: [*(earlier if isinstance(earlier, list) else [earlier]), record],
            },
        }
    )


def _held_out(manifest: Manifest, found: Recalibration) -> dict[str, Any]:
    """Return the scores of the new parts beside those of categories that keep their threshold."""
    earlier = manifest.provenance.get(conformal.PROVENANCE_KEY)
    kept = dict(earlier) if isinstance(earlier, Mapping) else {}
    return kept | {key: conformal.kept_scores(found.scores[key]) for key in found.new}


def _record(found: Recalibration) -> dict[str, Any]:
    return {
        "time": datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc).isoformat(timespec="seconds"),
        "edgead": __version__,
        "source": redact(found.source_id),
        "images": found.images,
        "backend": dict(found.backend),
        "old": {key: threshold.to_dict() for key, threshold in found.old.items()},
    }


def _precisions(manifest: Manifest, sections: Mapping[str, ThresholdSection]) -> dict[str, PrecisionSection]:
    routed = manifest.graph == "routed"
    # The bundle's own thresholds are those of fp32, which therefore needs none beside them.
    precisions = dict(manifest.precisions)
    for key, entry in manifest.precisions.items():
        if key != "fp32":
            own = {name: sections.get(f"{key}/{name}") for name in manifest.categories}
            kept = entry.categories | {name: section for name, section in own.items() if section is not None}
            update = {"categories": kept} if routed else {"threshold": sections[key]}
            precisions[key] = entry.model_copy(update=update)
        elif not routed:
            precisions[key] = entry.model_copy(update={"threshold": None})
    return precisions


def _categories(
    manifest: Manifest, sections: Mapping[str, ThresholdSection], normals: Mapping[str, NormalsSection]
) -> dict[str, CategorySection]:
    routed = manifest.graph == "routed"
    return {
        name: entry.model_copy(
            update={
                "threshold": sections.get(f"fp32/{name}", entry.threshold) if routed else entry.threshold,
                "normals": normals.get(name, entry.normals),
            }
        )
        for name, entry in manifest.categories.items()
    }
