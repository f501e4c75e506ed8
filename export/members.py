"""What a bundle carries beside its graphs: its manifest, and references with what the model makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgead.export.exportable import Exportable
from edgead.export.options import FP32
from edgead.runtime.bundle.align_section import AlignSection
from edgead.runtime.bundle.layout import MASK_NAME, TEMPLATE_NAME
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import (
    CategorySection,
    DetectorSection,
    InputSection,
    MapSection,
    NormalsSection,
    PrecisionSection,
    RegionSection,
    ThresholdSection,
    TilesSection,
)
from edgead.runtime.bundle.references import EXPECTED_NAME, REFERENCES, pack_expected
from edgead.runtime.decision.conformal import PROVENANCE_KEY, kept_scores
from edgead.runtime.imaging.alignment import encode_template
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import RESIZE_RULE
from edgead.runtime.imaging.roi import encode_mask


def make_manifest(model: Exportable, section: PrecisionSection) -> Manifest:
    """Return the manifest without members and parity."""
    routing = model.routing
    categories = {
        name: CategorySection(
            n_train=count,
            normals=NormalsSection.from_normals(model.normals[name]) if name in model.normals else None,
            threshold=ThresholdSection.from_threshold(routing.thresholds[name]) if routing is not None else None,
            minimum_similarity=routing.minimum_similarity[name] if routing is not None else None,
        )
        for name, count in model.categories.items()
    }
    return Manifest(
        name=model.name,
        graph="single" if routing is None else "routed",
        detector=DetectorSection(name=model.detector, settings=dict(model.settings)),
        input=InputSection(
            height=model.height,
            width=model.width,
            resize=RESIZE_RULE,
            region=None if model.region is None else RegionSection.from_region(model.region),
            tiles=None
            if model.tiles is None
            else TilesSection(rows=model.tiles.rows, columns=model.tiles.columns, overlap=model.tiles.overlap),
            align=None if model.align is None else AlignSection.from_alignment(model.align),
            bits=model.bits,
        ),
        map=MapSection(height=model.grid[0], width=model.grid[1]),
        threshold=ThresholdSection.from_threshold(model.threshold),
        categories=categories,
        precisions={FP32: section},
        provenance=dict(model.provenance) | _held_out(model),
    )


def _held_out(model: Exportable) -> dict[str, Any]:
    """Return the scores that say how unusual a part is; those of several categories are no scores of one."""
    if model.routing is not None or not len(model.normal_scores):
        return {}
    return {PROVENANCE_KEY: {FP32: kept_scores(model.normal_scores)}}


def reference_members(model: Exportable) -> dict[str, bytes]:
    """Return the references as PNG, what the model in torch makes of them, its mask and its template."""
    backend = model.torch_backend()
    names = sorted(name for name, _ in model.references)
    images = dict(model.references)
    results = [backend.run(model.prepare(decode_image(images[name], name))[None]) for name in names]
    members = {f"{REFERENCES}{name}": images[name] for name in names}
    mask = None if model.region is None else encode_mask(model.region)
    if mask is not None:
        members[MASK_NAME] = mask
    if model.align is not None:
        members[TEMPLATE_NAME] = encode_template(model.align)
    category = known = None
    if model.routing is not None:
        category = [str(one.category[0]) for one in results if one.category is not None]
        known = [one.reason is None or one.reason[0] is None for one in results]
    members[EXPECTED_NAME] = pack_expected(
        names,
        np.concatenate([one.score for one in results]),
        np.concatenate([one.map for one in results]),
        category=category,
        known=known,
    )
    return members
