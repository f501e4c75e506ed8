"""A bundle's references run through an open network, and compared with what the torch model gave on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgead.runtime.backends import Backend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.references import expected_inferences
from edgead.runtime.decision.verdict import Limits, score_margin
from edgead.runtime.errors import BackendError, BundleError
from edgead.runtime.frame import Decision, Inference
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import self_check
from edgead.runtime.imaging.view import View

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
    view = bundle.view()
    found = []
    for reference in references:
        margin = share * _margin(reference, references, limits[0])
        found.append(_replay(network, reference, view, margin, limits))
        done()
    return found


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
    """Return the score margin of the reference's category."""
    own = limits.judge(reference.expected, 0)
    verdicts = [limits.judge(other.expected, 0) for other in references]
    return score_margin([one for one in verdicts if one.category == own.category], own.threshold)


def _replay(
    network: Backend, reference: _Reference, view: View, margin: float, limits: tuple[Limits, Limits]
) -> ReferenceCheck:
    found = network.run(view.prepare(decode_image(reference.png, reference.name))[None])
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
