"""Plants procedural defects on good images that a model was not trained on, and reports how well it sees them.

A sanity probe, not a substitute for real defects: a model that fails it is broken or blind to that kind; one that
passes has shown no more than that. No test image is opened and no label of one is used.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.data import prefetch
from edgead.evaluation.evaluation import Inspecting, map_on_frame
from edgead.evaluation.validation_normals import Normals
from edgead.metrics.metrics import BOOTSTRAP, Metric, image_auroc
from edgead.metrics.pixels import count_pixels, pixel_auroc
from edgead.probes import KINDS, plant_in_region, read_scene
from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.frame import Decision, Frame
from edgead.runtime.imaging.decode import read_image

SCHEMA = "edgead.probe/1"
PER_KIND = 50


@dataclass(frozen=True, slots=True)
class KindReport:
    """How one kind of probe (or ``all`` together) was seen.

    Attributes:
        n: probes that were judged; ``caught`` of them lay above the threshold.
        raised: probes that scored above the same image without the probe; a tie, or such an image without a score,
            counts half, so that a model that sees nothing raises half of them.
        not_inspected: probes that a router or a fault left without a score; they never pass the line.
        skipped: probes that could not be planted, such as a missing part where there is none.
        image_auroc: probes against good images; the interval takes them as drawn apart from each other, though a
            probe shares its image with a good one. None where n is 0.
        pixel_auroc: of the anomaly map against the mask, over the pixels of the probe images; None without any.
    """

    kind: str
    n: int
    caught: int
    raised: float
    not_inspected: int
    skipped: int
    image_auroc: Metric | None
    pixel_auroc: Metric | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "image_auroc": None if self.image_auroc is None else self.image_auroc.to_dict(),
            "pixel_auroc": None if self.pixel_auroc is None else self.pixel_auroc.to_dict(),
            "caught": self.caught,
            "share_caught": self.caught / self.n if self.n else None,
            "raised": self.raised,
            "share_raised": self.raised / self.n if self.n else None,
            "n": self.n,
            "not_inspected": self.not_inspected,
            "skipped": self.skipped,
        }


@dataclass(frozen=True, slots=True)
class CategoryProbe:
    """The probes of one category: ``kinds`` in the order asked for, and ``overall`` of all of them.

    ``n_normals`` good images with a score, ``false_alarms`` of them above the threshold; ``source`` as in `Normals`.
    """

    name: str
    source: str
    n_normals: int
    false_alarms: int
    kinds: tuple[KindReport, ...]
    overall: KindReport

    def to_dict(self) -> dict[str, Any]:
        return {
            "normals": {"source": self.source, "n": self.n_normals, "false_alarms": self.false_alarms},
            "kinds": {report.kind: report.to_dict() for report in self.kinds},
            "all": self.overall.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The probes of one or more categories on one backend; raises `DataError` where two share a name."""

    categories: tuple[CategoryProbe, ...]
    backend: BackendInfo
    seed: int
    strength: float

    def __post_init__(self) -> None:
        names = [report.name for report in self.categories]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"two categories are called '{name}'; probe them one at a time or rename a folder")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.probe/1``."""
        return {
            "schema": SCHEMA,
            "categories": {report.name: report.to_dict() for report in self.categories},
            "seed": self.seed,
            "strength": self.strength,
            "backend": self.backend.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What is planted.

    Attributes:
        kinds: of `edgead.probes.KINDS`, each once.
        per_kind: probes of each kind, at least 1; several on an image, of different seeds, where images are fewer.
        seed: of places, shapes, and of what goes where.
        strength: see `edgead.probes.plant`.
        bootstrap: resamples of the intervals, see `edgead.metrics.metrics`.
    """

    kinds: Sequence[str] = KINDS
    per_kind: int = PER_KIND
    seed: int = 0
    strength: float = 1.0
    bootstrap: int = BOOTSTRAP


def probe(
    inspector: Inspecting,
    normals: Normals,
    plan: ProbePlan | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CategoryProbe:
    """Plant probes on good images and judge them as the camera loop would.

    Each image is decoded by `read_image`, painted at its own size, wrapped in a `Frame` and given to the inspector. The
    images are dealt to the kinds in an order drawn by the seed, evenly. Masks are resized by nearest neighbour to
    network size for the pixel metric; a line that vanishes there counts for the image metric only.

    Args:
        inspector: opened; its thresholds say what is caught.
        normals: from `find_normals`.
        plan: what is planted; None: the defaults.
        progress: called with (images judged, images in all) after every one.

    Raises:
        ConfigError: an unknown or repeated kind, none at all, or ``per_kind`` below 1.
        DataError: an unreadable image, no good image with a score, or not one probe that could be planted and judged.
    """
    plan = plan or ProbePlan()
    outcomes = judge_probes(inspector, normals, plan, progress)
    judged = [one for one in outcomes if math.isfinite(one.score)]
    own = [one.score for one in judged if one.kind is None]
    scores = own if normals.scores is None else list(normals.scores)
    where = normals.category.name
    complaint = next((one.reason for one in outcomes if one.reason), "no reason given")
    if not scores:
        raise DataError(f"{where}: no good image got a score ({complaint}); probes need some to compare with")
    if not any(one.kind for one in judged):
        raise DataError(f"{where}: not one probe could be judged ({complaint}); choose other kinds or images")
    # Of a routed model each answer carries its category's threshold; a stray one does not matter to the median.
    threshold = float(np.median([one.threshold for one in judged]))

    def report(kind: str, included: Sequence[str]) -> KindReport:
        return _report(kind, [one for one in outcomes if one.kind in included], scores, plan)

    return CategoryProbe(
        name=where,
        source=normals.source,
        n_normals=len(scores),
        false_alarms=sum(score > threshold for score in scores),
        kinds=tuple(report(kind, (kind,)) for kind in plan.kinds),
        overall=report("all", plan.kinds),
    )


def judge_probes(
    inspector: Inspecting, normals: Normals, plan: ProbePlan, progress: Callable[[int, int], None] | None = None
) -> list[ProbeOutcome]:
    """Return what became of each image and of each probe on it, in order; arguments and errors as `probe`."""
    check_kinds(plan.kinds)
    if plan.per_kind < 1:
        raise ConfigError(f"there must be at least 1 probe of a kind, got {plan.per_kind}")
    return list(_judge(inspector, normals, _deal(len(normals.samples), plan), plan.strength, progress))


class ProbeOutcome(NamedTuple):
    """What became of one image: ``kind`` None without a probe, ``score`` NaN where it got none or was skipped."""

    kind: str | None
    score: float = math.nan
    own: float = math.nan  # of the same image without the probe
    threshold: float = 0.0
    caught: bool = False
    map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    skipped: bool = False
    reason: str | None = None
    image: int = -1  # index in the normals


def _judge(
    inspector: Inspecting,
    normals: Normals,
    jobs: Mapping[int, Sequence[tuple[str, int]]],
    strength: float,
    progress: Callable[[int, int], None] | None,
) -> Iterator[ProbeOutcome]:
    indices = [index for index in range(len(normals.samples)) if normals.scores is None or index in jobs]
    total = len(indices) + sum(map(len, jobs.values()))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def ask(
        pixels: NDArray[np.uint8],
        name: str,
        kind: str | None = None,
        mask: NDArray[np.bool_] | None = None,
        before: float = math.nan,
    ) -> ProbeOutcome:
        result = inspector(Frame(np.ascontiguousarray(pixels), done, time.monotonic_ns(), name))
        step()
        if result.decision is Decision.NOT_INSPECTED:
            return ProbeOutcome(kind, reason=f"{name}: {result.reason or 'not inspected'}")
        caught = result.decision is Decision.ANOMALY
        kept = None
        if mask is not None and result.map is not None and np.isfinite(result.map).all():
            kept = map_on_frame(result, inspector.height, inspector.width)
        return ProbeOutcome(kind, result.score, before, result.threshold, caught, kept, mask)

    # One thread decodes ahead of the network; more would hold more full-size images.
    files = [normals.samples[index].path for index in indices]
    with closing(prefetch(partial(read_image, bits=inspector.bits), files, workers=1)) as images:
        for index, image in zip(indices, images, strict=True):
            name = normals.category.relative(normals.samples[index])
            own = ask(image, name)
            yield own._replace(image=index)
            region = inspector.region
            judged = None if math.isnan(own.score) else inspector.view.judged(image)
            scene = read_scene(image if region is None else np.ascontiguousarray(region.cut(image)))
            for kind, probe_seed in jobs.get(index, ()):
                try:
                    painted, mask = plant_in_region(image, region, kind, probe_seed, strength, scene)
                    if judged is not None and not (mask := mask & judged).any():
                        raise DataError(f"this '{kind}' lies wholly where nothing is judged; another seed may not")
                except DataError as error:
                    step()
                    yield ProbeOutcome(kind, skipped=True, reason=f"{name}: {error}", image=index)
                    continue
                resized = _resized(mask, inspector.height, inspector.width)
                yield ask(painted, name, kind, resized, own.score)._replace(image=index)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `ConfigError` where a kind is unknown or named twice, or where there is none."""
    if not kinds:
        raise ConfigError(f"probes need at least one kind; known: {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"there is no probe '{kind}'.{suggest(kind, KINDS)}")
        if kinds.count(kind) > 1:
            raise ConfigError(f"the probe '{kind}' is asked for twice; name it once")


def _deal(images: int, plan: ProbePlan) -> dict[int, list[tuple[str, int]]]:
    """Return the probes of each image, as kind and seed; every image gets as many as any other, but for one."""
    if plan.seed < 0:
        raise ConfigError(f"the seed must be 0 or more, got {plan.seed}")
    order = np.random.default_rng(plan.seed).permutation(images)
    jobs: dict[int, list[tuple[str, int]]] = defaultdict(list)
    # Kind by kind through the order, so that the images of a kind differ as long as there are enough.
    for number in range(plan.per_kind * len(plan.kinds)):
        index = int(order[number % images])
        probe_seed = int(np.random.SeedSequence((plan.seed, number)).generate_state(1)[0])
        jobs[index].append((plan.kinds[number // plan.per_kind], probe_seed))
    return dict(jobs)


def _report(kind: str, outcomes: Sequence[ProbeOutcome], normal: Sequence[float], plan: ProbePlan) -> KindReport:
    judged = [one for one in outcomes if math.isfinite(one.score)]
    scores = [one.score for one in judged]
    found = [(one.map, one.mask) for one in judged if one.map is not None and one.mask is not None and one.mask.any()]
    by_image = by_pixel = None
    if scores:
        labels = [False] * len(normal) + [True] * len(scores)
        by_image = image_auroc([*normal, *scores], labels, bootstrap=plan.bootstrap, seed=plan.seed)
    if any(not mask.all() for _, mask in found):
        pixels = count_pixels([grid for grid, _ in found], [mask for _, mask in found])
        by_pixel = pixel_auroc(pixels, bootstrap=plan.bootstrap, seed=plan.seed)
    skipped = sum(one.skipped for one in outcomes)
    return KindReport(
        kind=kind,
        n=len(judged),
        caught=sum(one.caught for one in judged),
        raised=sum(0.5 if not abs(one.score - one.own) > 0 else float(one.score > one.own) for one in judged),
        not_inspected=len(outcomes) - len(judged) - skipped,
        skipped=skipped,
        image_auroc=by_image,
        pixel_auroc=by_pixel,
    )


def _resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Return a mask at network size by nearest neighbour, centres aligned, as `edgead.data.load_mask` does."""
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    return np.asarray(mask[rows[:, None], columns])
