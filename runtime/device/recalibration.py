"""``edgead calibrate``: the thresholds of a bundle, made again from good parts before the camera that will judge.

Training images and camera differ in lens, light and noise, and each of them shifts the scores of good parts. The model
stays as it is; only where good ends is measured again, by the rule of `edgead.runtime.decision.threshold`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import NormalsSection
from edgead.runtime.bundle.reference_names import ReferenceName
from edgead.runtime.bundle.references import expected_inferences
from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.decision.threshold import Threshold, calibrate, normals_needed
from edgead.runtime.device.calibration_images import Taken, collect
from edgead.runtime.device.recalibrated_manifest import PROVENANCE_KEY, Recalibration, recalibrated_manifest
from edgead.runtime.device.recalibration_report import CalibrationReport
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.imaging.listing import require_normals
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.progress import StepProgress
from edgead.runtime.sources import Source, open_source, parse_address
from edgead.runtime.sources.folder import FolderSource

_NAMED = 3  # stray images in one line


# More than six parameters: the options of ``edgead calibrate``, which scripts pass by name.
def calibrate_bundle(
    path: str | Path,
    source: str | Path | Source,
    out: str | Path,
    *,
    n: int | None = None,
    false_alarm_rate: float | None = None,
    min_interval_s: float = 0.0,
    backend: str = "auto",
    threads: int | None = None,
    progress: StepProgress | None = None,
) -> CalibrationReport:
    """Write a copy of a bundle with thresholds from the good parts that a source shows.

    Model and references are copied as they are, and so is the parity evidence, but for that of reduced precisions,
    which holds for the old threshold only. The old thresholds go into the manifest's provenance,
    key ``calibrations``, one entry a calibration.

    Args:
        path: the bundle.
        source: a URI, or an open source, which is closed; it must show good parts only.
        out: where the new bundle goes, possibly ``path``; written whole or not at all.
        n: images to take; None takes all of a folder or video, and of a camera as many as the target needs.
        false_alarm_rate: share of good parts that may be rejected; None keeps the bundle's.
        min_interval_s: least time between two images of a camera, so that they show different parts.
        backend: registry name or ``auto``, in full precision.
        threads: CPU threads; None leaves the choice to the backend.
        progress: called with (done, wanted); wanted is 0 where nobody knows.

    Raises:
        ConfigError, SourceError, BackendUnavailable: wrong arguments, no source, no backend.
        BundleError: the bundle is damaged or changed meanwhile, or the disk is full; ``out`` stays as it was.
        DataError: fewer than 2 images, an image file that cannot be read, or a camera that shows no known category.
        BackendError: an image was not inspected, so that its score is missing.
    """
    _check_numbers(n, min_interval_s, backend)
    with Bundle.open(path) as bundle:
        manifest, sha256 = bundle.manifest, bundle.sha256
        probes = _probe_scores(bundle)
    precisions = sorted(manifest.precisions, key=lambda key: (key != "fp32", key))
    old = {key: threshold for precision in precisions for key, threshold in _thresholds(manifest, precision).items()}
    targets = _targets(old, false_alarm_rate)
    with ExitStack() as stack:
        inspectors = {
            key: stack.enter_context(Inspector.open(path, backend=backend, precision=key, threads=threads))
            for key in precisions
        }
        opened = _open(source, manifest.input.bits) if isinstance(source, str | Path) else source
        stack.callback(opened.close)
        wanted = n
        if n is None and opened.live:
            wanted = max(100, *(normals_needed(target) for target in targets.values()))
        info = next(iter(inspectors.values())).describe().to_dict()
        expected = _expected(wanted, opened)
        step = None if progress is None else lambda done, _wanted: progress(done, expected)
        taken = collect(opened, inspectors, wanted, min_interval_s, step)
    scores = {key: values for key, values in taken.scores().items() if len(values) > 1}
    _require_scores(scores, taken, opened.source_id, routed=manifest.graph == "routed")
    _require_unseen(taken, manifest, opened.source_id)
    new = {key: calibrate(values, targets[key]) for key, values in scores.items()}
    with Bundle.open(path) as bundle:
        if bundle.sha256 != sha256:
            raise BundleError(f"{path} was changed while it was calibrated; run it again")
    found = Recalibration(old, new, scores, _normals(taken, manifest), opened.source_id, taken.images, info)
    replace_manifest(path, out, recalibrated_manifest(manifest, found))
    return CalibrationReport(
        bundle=str(path),
        out=str(out),
        source=opened.source_id,
        backend=info,
        images=taken.images,
        unreadable=taken.unreadable,
        unknown=taken.unknown,
        stray=taken.stray,
        old={key: old[key] for key in new},
        new=new,
        rejected_before={key: sum(s > old[key].value for s in values) for key, values in scores.items()},
        warnings=(
            *_about_thresholds(old, new, taken, probes, routed=manifest.graph == "routed"),
            *_about_source(taken, opened.source_id, wanted, routed=manifest.graph == "routed"),
            *_about_images(taken, manifest),
        ),
    )


def _check_numbers(n: int | None, min_interval_s: float, backend: str) -> None:
    if n is not None and n < 2:
        raise ConfigError(f"a threshold needs at least 2 images, got -n {n}")
    if not min_interval_s >= 0:
        raise ConfigError(f"the interval must be 0 s or more, got {min_interval_s}")
    if backend.endswith("-bf16"):
        raise ConfigError(
            f"'{backend}' computes other scores than the thresholds are for; calibrate on another backend"
        )


def _targets(old: Mapping[str, Threshold], asked: float | None) -> dict[str, float]:
    targets = {key: one.target_false_alarm_rate if asked is None else asked for key, one in old.items()}
    for target in targets.values():
        if not 0.0 < target < 1.0:
            raise ConfigError(f"the target false-alarm rate must lie between 0 and 1, got {target}")
    return targets


def _expected(wanted: int | None, source: Source) -> int:
    """Return how many images will be judged; 0 where nobody knows, as with a video."""
    found = len(source.paths) if isinstance(source, FolderSource) else wanted or 0
    return found if wanted is None else min(wanted, found)


def _require_scores(scores: Mapping[str, Sequence[float]], taken: Taken, source: str, *, routed: bool) -> None:
    if scores:
        return
    what = "of no known category" if routed else "on which the part was not found"
    seen = f"{taken.images} images" + (f" and {taken.unknown} {what}" if taken.unknown else "")
    needed = "2 of a category" if routed else "2"
    raise DataError(f"{source} showed {seen}; a threshold needs {needed} at least, 100 or more are advised")


def _about_thresholds(
    old: Mapping[str, Threshold],
    new: Mapping[str, Threshold],
    taken: Taken,
    probes: Mapping[str, Mapping[str, float]],
    *,
    routed: bool,
) -> Iterator[str]:
    """Yield what is doubtful about the new thresholds, and which ones stay as they were."""
    scores = taken.scores()
    for key, threshold in new.items():
        precision, _, category = key.partition("/")
        if precision == "fp32":  # the others' scores differ from those that the probes got
            for doubt in _doubts(old[key], threshold, scores[key], probes.get(category, {})):
                yield f"{category}: {doubt}" if routed else doubt
    for key in old:
        if key not in new:
            yield f"{key} keeps its threshold; the source showed it {'once' if key in scores else 'not at all'}"


def _about_source(taken: Taken, source: str, wanted: int | None, *, routed: bool) -> Iterator[str]:
    if taken.unknown:
        what = "showed no known category" if routed else "did not show the part"
        yield f"{taken.unknown} frames of {source} {what} and were omitted"
    seen = taken.images + len(taken.stray)
    if wanted is not None and seen < wanted:
        yield f"{source} ended after {seen} of {wanted} images"
    if taken.unreadable:
        yield f"{taken.unreadable} frames of {source} could not be read and were omitted"


def _require_unseen(taken: Taken, manifest: Manifest, source: str) -> None:
    known = sorted({name for normals in manifest.normals().values() for name in taken.fitted_on(normals)})
    # A bundle that was calibrated describes another camera's images; those that it was fitted on it knows still.
    calibrated = PROVENANCE_KEY in manifest.provenance
    if known or (not calibrated and any(taken.repeats(normals) for normals in manifest.normals().values())):
        shown = f" ({len(known)} of {taken.images}: {', '.join(known[:_NAMED])}{' …' if known[_NAMED:] else ''})"
        raise DataError(
            f"images that the model was fitted on are among those of {source}{shown if known else ''}; their scores "
            "are lower than those of new parts, and the threshold would be too low; show parts that the model has not "
            "seen (for another threshold from the same images: edgead fit --false-alarm-rate)"
        )


def _about_images(taken: Taken, manifest: Manifest) -> Iterator[str]:
    if taken.stray:
        shown = "; ".join(f"{name} ({why})" for name, why in [*taken.stray.items()][:_NAMED])
        more = f"; and {len(taken.stray) - _NAMED} more" if len(taken.stray) > _NAMED else ""
        yield f"stray images are left out of the threshold: {shown}{more}; look at them, and take away what is no part"
    # Scores of one category alone: those of several are deviations around zero.
    if manifest.graph == "single" and any(map(taken.scores_like_known, manifest.normals().values())):
        yield (
            "most scores are far below those of unseen parts, as if the model had been fitted on these images; the "
            "threshold would then be too low; show parts that the model has not seen"
        )


def _thresholds(manifest: Manifest, precision: str) -> dict[str, Threshold]:
    promised = manifest.promised(precision)
    return {precision if name is None else f"{precision}/{name}": one for name, one in promised.items()}


def _open(source: str | Path, bits: int) -> Source:
    address = parse_address(str(source))
    if address.scheme == "folder" and Path(address.location).is_dir():
        require_normals(Path(address.location))
    return open_source(source, bits=bits)


def _normals(taken: Taken, manifest: Manifest) -> dict[str, NormalsSection]:
    """Return what the good parts look like to this camera; the drift watch compares with it from now on."""
    found = {}
    for category, normals in taken.normals().items():
        names = [category] if manifest.graph == "routed" else list(manifest.categories)
        found.update(dict.fromkeys(names, NormalsSection.from_normals(normals)))
    return found


def _probe_scores(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Return what the torch model gave on the references that carry a planted defect, by category ("" where single)."""
    found: dict[str, dict[str, float]] = {}
    if bundle.references():
        for name, one in expected_inferences(bundle.expected()).items():
            if ReferenceName.parse(name).kind == "planted":
                category = "" if one.category is None else one.category[0]
                found.setdefault(category or "", {})[name] = float(one.score[0])
    return found


def _doubts(old: Threshold, new: Threshold, scores: Sequence[float], probes: Mapping[str, float]) -> list[str]:
    found = []
    if not new.supported:
        found.append(new.explain())
    before = sum(score <= old.value for score in probes.values())
    now = sum(score <= new.value for score in probes.values())
    if now > before:
        most = "most: " if now * 2 > len(probes) else ""
        found.append(
            f"{most}{now} of {len(probes)} planted defects of the bundle would now pass as OK ({before} before); "
            "were all parts good, and does the camera see them as in the images that the model was trained on?"
        )
    rejected = sum(score > old.value for score in scores)
    if rejected * 2 > len(scores):
        found.append(
            f"the threshold so far rejected {rejected} of these {len(scores)} parts; look whether they are good ones, "
            "and of this product, before you use the new one"
        )
    repeated = len(scores) - len(set(scores))
    if repeated:
        found.append(
            f"{repeated} of {len(scores)} images have exactly the score of another; "
            "show each part once, or the threshold is less certain than it claims"
        )
    return found
