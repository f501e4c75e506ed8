"""From a scoring module to a bundle that proves itself: graph, lint, weights, references, parity, one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgead.export.graph import export_onnx
from edgead.export.lint import require_clean
from edgead.export.parity import Comparison
from edgead.export.torch_backend import TorchBackend
from edgead.export.weights import split_weights
from edgead.runtime.backends import REGISTRY, Backend, available, open_backend
from edgead.runtime.bundle import Bundle, check_bundle_path, write_bundle
from edgead.runtime.decode import decode_image, find_images, read_image
from edgead.runtime.errors import BackendUnavailable, ConfigError, ParityError
from edgead.runtime.expected import EXPECTED_NAME, REFERENCES, pack_expected
from edgead.runtime.manifest import (
    CategorySection,
    DetectorSection,
    InputSection,
    Manifest,
    MapSection,
    ParityRecord,
    PrecisionSection,
    ThresholdSection,
)
from edgead.runtime.preprocess import RESIZE_RULE, resize
from edgead.runtime.threshold import Threshold

SCHEMA = "edgead.export/1"
FP32_FILE = "model.fp32.onnx"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Exportable:
    """What the export layer needs of a model, whatever trained it.

    Attributes:
        name: name of the bundle.
        module: scoring module, see `edgead.export.graph.export_onnx`.
        height, width: network size in pixels; grid: ``(gh, gw)`` cells of the map.
        threshold: of the FP32 scores, with its meaning.
        normal_scores: raw scores of held-out normals; their median gives the scale of score differences.
        detector, settings, categories (name -> training images), provenance: recorded as they are.
        references: ``(name, PNG bytes)``, real images at native size.
    """

    name: str
    module: nn.Module
    height: int
    width: int
    grid: tuple[int, int]
    threshold: Threshold
    normal_scores: Sequence[float]
    detector: str
    settings: Mapping[str, Any]
    categories: Mapping[str, int]
    references: Sequence[tuple[str, bytes]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how it compares; ``parity`` maps graph file -> runtime -> record.

    ``sha256`` is None where nothing was written.
    """

    path: Path
    sha256: str | None
    size: int
    parity: Mapping[str, Mapping[str, ParityRecord]]
    unavailable: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """True where no gated runtime changed a decision."""
        return all(
            not (record.flips or record.borderline) or not _gates(runtime)
            for records in self.parity.values()
            for runtime, record in records.items()
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bundle": str(self.path),
            "model_sha256": self.sha256,
            "bytes": self.size,
            "passed": self.passed,
            "parity": {
                file: {runtime: record.model_dump(mode="json") for runtime, record in records.items()}
                for file, records in self.parity.items()
            },
            "unavailable": dict(self.unavailable),
        }


def export_bundle(
    model: Exportable,
    out: Path,
    *,
    images: Sequence[Path] = (),
    allow_drift: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model to one bundle and prove on real images that it decides the same.

    Every runtime that is installed here judges every image from the file on: decode, resize, network, decision. In
    FP32 not one decision may change. ``openvino-bf16`` is measured and recorded, and only usable where it changed none.

    Args:
        model: see `Exportable`.
        out: a path ending in ``.edgead``; replaced at the end or left as it was.
        images: files or folders; none means the model's own references.
        allow_drift: write the bundle although a decision changed, and say so in its manifest.
        progress: called with ``(stage, done, total)``.

    Raises:
        ParityError: a decision changed, or a score is NaN or infinite; nothing was written.
        ExportError, LintError: the module cannot be exported as it is.
        ConfigError, DataError, BundleError: wrong arguments, unreadable image, unwritable path.
    """
    check_bundle_path(out)
    tell = progress or (lambda _stage, _done, _total: None)
    named = _load(model, images)

    tell("graph", 0, 1)
    graph = export_onnx(model.module, model.height, model.width)
    require_clean(graph)
    data, weights = split_weights(graph)
    tell("graph", 1, 1)

    files: dict[str, bytes | Path] = {FP32_FILE: data, **weights}
    with TemporaryDirectory(prefix="edgead-export-") as folder:
        for member, content in (*weights.items(), (FP32_FILE, data)):
            target = Path(folder, member)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        records, unavailable = _measure(model, Path(folder, FP32_FILE), named, tell)

    changed = {name: comparison for name, comparison in records.items() if comparison.changed or not comparison.finite}
    gated = {name: comparison for name, comparison in changed.items() if _gates(name)}
    parity = {
        name: comparison.record(
            drift_allowed=allow_drift and name in gated, note=None if _gates(name) else "reduced precision, not gated"
        )
        for name, comparison in records.items()
    }
    if gated and not allow_drift:
        failed = ExportReport(out, None, 0, {FP32_FILE: parity}, unavailable)
        raise ParityError(_complaint(gated), failed.to_dict())
    files.update(_reference_members(model))
    write_bundle(out, _manifest(model, {FP32_FILE: parity}), files)
    with Bundle.open(out) as bundle:
        return ExportReport(out, bundle.sha256, out.stat().st_size, {FP32_FILE: parity}, unavailable)


def _gates(backend: str) -> bool:
    """A backend that computes in FP32 must not change any decision; a reduced one is recorded."""
    return not backend.endswith("-bf16")


def _load(model: Exportable, images: Sequence[Path]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return ``(name, (h, w, 3) uint8)`` at network size."""
    size = (model.height, model.width)
    if not images:
        if not model.references:
            raise ConfigError("the model holds no reference images; give some with --images DIR")
        return [(name, resize(decode_image(data, name), *size)) for name, data in model.references]
    # Three components tell an image apart; the whole path would carry this machine's folders into the manifest.
    return [("/".join(path.parts[-3:]), resize(read_image(path), *size)) for path in find_images(images)]


def _measure(
    model: Exportable, file: Path, named: Sequence[tuple[str, NDArray[np.uint8]]], tell: Progress
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Compare every installed runtime with torch, one image after the other through all of them."""
    unavailable = {name: "not installed" for name in REGISTRY if name not in available()}
    backends: dict[str, Backend] = {}
    try:
        for name in available():
            try:
                backends[name] = open_backend(name, file)
            except BackendUnavailable as error:
                unavailable[name] = str(error)
        if not backends:
            raise BackendUnavailable("no runtime to compare with is installed; run: pip install 'edgead[cpu]'")
        scale = max(model.threshold.value - float(np.median(model.normal_scores)), 0.0)
        value = model.threshold.value
        comparisons = {name: Comparison(value, value, scale) for name in backends}
        torch_backend = TorchBackend(model.module)
        for done, (name, image) in enumerate(named, start=1):
            expected = _score(torch_backend, image)
            for runtime, backend in backends.items():
                comparisons[runtime].add(name, expected, _score(backend, image))
            tell("parity", done, len(named))
    finally:
        for backend in backends.values():
            backend.close()
    return comparisons, unavailable


def _score(backend: Backend, image: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
    score, grid = backend.run(image[None])
    return float(score[0]), grid[0].copy()


def _complaint(gated: Mapping[str, Comparison]) -> str:
    name, comparison = next(iter(gated.items()))
    if not comparison.finite:
        return f"{name} gives scores that are not finite; nothing was written"
    changed = comparison.changed
    index = comparison.names.index(changed[0])
    return (
        f"{len(changed)} of {len(comparison.names)} decisions change on {name}, first {changed[0]} "
        f"(score {comparison.reference[index]:.6g} became {comparison.candidate[index]:.6g}, "
        f"threshold {comparison.reference_threshold:.6g}); nothing was written (--allow-drift overrides)"
    )


def _reference_members(model: Exportable) -> dict[str, bytes]:
    backend = TorchBackend(model.module)
    size = (model.height, model.width)
    names = sorted(name for name, _ in model.references)
    images = dict(model.references)
    results = [_score(backend, resize(decode_image(images[name], name), *size)) for name in names]
    members = {f"{REFERENCES}{name}": images[name] for name in names}
    scores = np.array([score for score, _ in results], np.float32)
    members[EXPECTED_NAME] = pack_expected(names, scores, np.stack([grid for _, grid in results]))
    return members


def _manifest(model: Exportable, parity: dict[str, dict[str, ParityRecord]]) -> Manifest:
    return Manifest(
        name=model.name,
        detector=DetectorSection(name=model.detector, settings=dict(model.settings)),
        input=InputSection(height=model.height, width=model.width, resize=RESIZE_RULE),
        map=MapSection(height=model.grid[0], width=model.grid[1]),
        threshold=ThresholdSection.from_threshold(model.threshold),
        categories={name: CategorySection(n_train=count) for name, count in model.categories.items()},
        precisions={"fp32": PrecisionSection(file=FP32_FILE, runtimes=tuple(REGISTRY))},
        parity=parity,
        provenance=dict(model.provenance),
    )
