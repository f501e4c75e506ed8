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

from edgead.export.graph import OUTPUTS, export_onnx
from edgead.export.lint import require_clean
from edgead.export.parity import Comparison
from edgead.export.torch_backend import TorchBackend
from edgead.export.weights import LARGE_BYTES, split_weights
from edgead.runtime.backends import REGISTRY, Backend, available
from edgead.runtime.bundle import Bundle, check_bundle_path, write_bundle
from edgead.runtime.decode import decode_image, find_images, read_image
from edgead.runtime.errors import BackendUnavailable, ConfigError, ParityError
from edgead.runtime.expected import EXPECTED_NAME, REFERENCES, pack_expected
from edgead.runtime.limits import Limits, Verdict
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
from edgead.runtime.routed import FUSED_OUTPUTS, ROUTER_OUTPUTS, RoutedBackend, head_file, open_model
from edgead.runtime.threshold import Threshold

SCHEMA = "edgead.export/1"
FP32_FILE = "model.fp32.onnx"
ROUTER_FILE = "router.fp32.onnx"
SHARED_BYTES = 16 << 10  # weights above are stored once where several graphs have them
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Routing:
    """What a routed model is made of.

    Attributes:
        router: ``images -> votes (N, K), similarity (N,)``, columns in the order of the categories' names.
        heads: category -> scoring module.
        thresholds, minimum_similarity: of each category.
    """

    router: nn.Module
    heads: Mapping[str, nn.Module]
    thresholds: Mapping[str, Threshold]
    minimum_similarity: Mapping[str, float]


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
        routing: of a routed model, whose ``module`` gives score, map, votes and similarity; None otherwise.
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
    routing: Routing | None = None

    def torch_backend(self) -> Backend:
        """Return the model itself as a backend, the reference of every comparison."""
        if self.routing is None:
            return TorchBackend(self.module)
        heads = {name: TorchBackend(head) for name, head in self.routing.heads.items()}
        return RoutedBackend(TorchBackend(self.routing.router), heads, self.routing.minimum_similarity)


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
    fused: bool = False,
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
        fused: write one graph that routes and scores, in place of a router and a head for each category; it computes
            the features once, and holds all heads in memory either way.
        progress: called with ``(stage, done, total)``.

    Raises:
        ParityError: a decision changed, or a score is NaN or infinite; nothing was written.
        ExportError, LintError: the module cannot be exported as it is.
        ConfigError, DataError, BundleError: wrong arguments, unreadable image, unwritable path.
    """
    check_bundle_path(out)
    if fused and model.routing is None:
        raise ConfigError(f"{model.name} has one head only and needs no single graph; leave --single-graph away")
    tell = progress or (lambda _stage, _done, _total: None)
    named = _load(model, images)
    main, files = _graphs(model, fused, tell)
    manifest = _manifest(model, main)
    with TemporaryDirectory(prefix="edgead-export-") as folder:
        for member, content in files.items():
            target = Path(folder, member)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        records, unavailable = _measure(model, manifest, Path(folder, main), named, tell)

    changed = {name: comparison for name, comparison in records.items() if comparison.changed or not comparison.finite}
    gated = {name: comparison for name, comparison in changed.items() if _gates(name)}
    parity = {
        name: comparison.record(
            drift_allowed=allow_drift and name in gated, note=None if _gates(name) else "reduced precision, not gated"
        )
        for name, comparison in records.items()
    }
    if gated and not allow_drift:
        failed = ExportReport(out, None, 0, {main: parity}, unavailable)
        raise ParityError(_complaint(gated), failed.to_dict())
    members: dict[str, bytes | Path] = {**files, **_reference_members(model)}
    write_bundle(out, manifest.model_copy(update={"parity": {main: parity}}), members)
    with Bundle.open(out) as bundle:
        return ExportReport(out, bundle.sha256, out.stat().st_size, {main: parity}, unavailable)


def _graphs(model: Exportable, fused: bool, tell: Progress) -> tuple[str, dict[str, bytes]]:
    """Return the name of the main graph file, and all graph and weight files."""
    routing = model.routing
    modules: dict[str, tuple[nn.Module, Sequence[str]]]
    if routing is None:
        modules = {FP32_FILE: (model.module, OUTPUTS)}
    elif fused:
        modules = {FP32_FILE: (model.module, FUSED_OUTPUTS)}
    else:
        modules = {ROUTER_FILE: (routing.router, ROUTER_OUTPUTS)}
        modules |= {head_file(name, "fp32"): (head, OUTPUTS) for name, head in routing.heads.items()}
    files: dict[str, bytes] = {}
    for done, (name, (module, outputs)) in enumerate(modules.items()):
        tell("graph", done, len(modules))
        graph = export_onnx(module, model.height, model.width, outputs)
        require_clean(graph, outputs)
        # Router and heads have one backbone, whose weights a low limit lets them share.
        data, weights = split_weights(graph, LARGE_BYTES if len(modules) == 1 else SHARED_BYTES)
        files |= {name: data, **weights}
    tell("graph", len(modules), len(modules))
    return next(iter(modules)), files


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
    model: Exportable,
    manifest: Manifest,
    file: Path,
    named: Sequence[tuple[str, NDArray[np.uint8]]],
    tell: Progress,
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Compare every installed runtime with torch, one image after the other through all of them."""
    unavailable = {name: "not installed" for name in REGISTRY if name not in available()}
    backends: dict[str, Backend] = {}
    limits = manifest.limits()
    try:
        for name in available():
            try:
                backends[name] = open_model(name, manifest, file, "fp32")
            except BackendUnavailable as error:
                unavailable[name] = str(error)
        if not backends:
            raise BackendUnavailable("no runtime to compare with is installed; run: pip install 'edgead[cpu]'")
        scale = max(model.threshold.value - float(np.median(model.normal_scores)), 0.0)
        comparisons = {name: Comparison(scale) for name in backends}
        trained = model.torch_backend()
        for done, (name, image) in enumerate(named, start=1):
            expected = _judge(trained, image, limits)
            for runtime, backend in backends.items():
                comparisons[runtime].add(name, expected, _judge(backend, image, limits))
            tell("parity", done, len(named))
    finally:
        for backend in backends.values():
            backend.close()
    return comparisons, unavailable


def _judge(backend: Backend, image: NDArray[np.uint8], limits: Limits) -> tuple[Verdict, NDArray[np.float32]]:
    found = backend.run(image[None])
    return limits.judge(found, 0), found.map[0].copy()


def _complaint(gated: Mapping[str, Comparison]) -> str:
    name, comparison = next(iter(gated.items()))
    if not comparison.finite:
        return f"{name} gives scores that are not finite; nothing was written"
    changed = comparison.changed
    reference, candidate = comparison.reference[changed[0]], comparison.candidate[changed[0]]
    return (
        f"{len(changed)} of {len(comparison.names)} decisions change on {name}, first "
        f"{comparison.names[changed[0]]} ({_describe(reference)} became {_describe(candidate)}); "
        "nothing was written (--allow-drift overrides)"
    )


def _describe(verdict: Verdict) -> str:
    category = f" as {verdict.category}" if verdict.category else ""
    return f"{verdict.decision}{category} with score {verdict.score:.6g} at threshold {verdict.threshold:.6g}"


def _reference_members(model: Exportable) -> dict[str, bytes]:
    backend = model.torch_backend()
    size = (model.height, model.width)
    names = sorted(name for name, _ in model.references)
    images = dict(model.references)
    results = [backend.run(resize(decode_image(images[name], name), *size)[None]) for name in names]
    members = {f"{REFERENCES}{name}": images[name] for name in names}
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


def _manifest(model: Exportable, main: str) -> Manifest:
    """Return the manifest without members and parity."""
    routing = model.routing
    categories = {
        name: CategorySection(n_train=count)
        if routing is None
        else CategorySection(
            n_train=count,
            threshold=ThresholdSection.from_threshold(routing.thresholds[name]),
            minimum_similarity=routing.minimum_similarity[name],
        )
        for name, count in model.categories.items()
    }
    return Manifest(
        name=model.name,
        graph="single" if routing is None else "routed",
        detector=DetectorSection(name=model.detector, settings=dict(model.settings)),
        input=InputSection(height=model.height, width=model.width, resize=RESIZE_RULE),
        map=MapSection(height=model.grid[0], width=model.grid[1]),
        threshold=ThresholdSection.from_threshold(model.threshold),
        categories=categories,
        precisions={"fp32": PrecisionSection(file=main, runtimes=tuple(REGISTRY))},
        provenance=dict(model.provenance),
    )
