"""From a scoring module to a bundle that proves itself: graphs, precisions, lint, weights, parity, one file."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgead.export.exportable import Exportable
from edgead.export.graph import OUTPUTS, export_onnx
from edgead.export.int8 import CPU, TRT
from edgead.export.int8_search import Int8Choice
from edgead.export.lint import require_clean
from edgead.export.measuring import Measurement, complaint, fails, measure, note
from edgead.export.model_repository import triton_files
from edgead.export.ops.nodes import inline_nodes, scoring_nodes
from edgead.export.parts import split
from edgead.export.precisions import (
    FP32,
    GraphFiles,
    PrecisionMaker,
    Samples,
    check_precisions,
    round_network,
)
from edgead.export.rounding import Rounded
from edgead.export.weights import LARGE_BYTES, split_weights
from edgead.runtime.backends import REGISTRY
from edgead.runtime.bundle import Bundle, check_bundle_path, write_bundle
from edgead.runtime.decode import decode_image, find_images, read_image
from edgead.runtime.errors import ConfigError, ExportError, ParityError
from edgead.runtime.expected import EXPECTED_NAME, REFERENCES, pack_expected
from edgead.runtime.files import reason
from edgead.runtime.manifest import (
    MASK_NAME,
    CategorySection,
    DetectorSection,
    InputSection,
    Manifest,
    MapSection,
    NormalsSection,
    ParityRecord,
    PrecisionSection,
    RegionSection,
    ThresholdSection,
    TilesSection,
)
from edgead.runtime.native import native_files
from edgead.runtime.preprocess import RESIZE_RULE, resize
from edgead.runtime.region import encode_mask
from edgead.runtime.routed import FUSED_OUTPUTS, ROUTER_OUTPUTS, head_file

SCHEMA = "edgead.export/1"
FP32_FILE = "model.fp32.onnx"
ROUTER_FILE = "router.fp32.onnx"
SHARED_BYTES = 16 << 10  # weights above are stored once where several graphs have them
DEFAULT_MAX_DROP = 0.05
_STRICTER = 4  # times that INT8 aims at a lower score error where the images at hand need it
_MOST_CALIBRATION = 64  # images; more say little about ranges and cost seconds each
Progress = Callable[[str, int, int], None]
Trace = Callable[[nn.Module, int, int, Sequence[str]], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how it compares.

    Attributes:
        sha256: of the bundle's manifest; None where no bundle was written.
        parity: graph file -> runtime -> record.
        failed: ``(graph file, runtime)`` that did not keep to what its precision promises.
        precisions: precision -> how it was made, ready for JSON.
    """

    path: Path
    sha256: str | None
    size: int
    parity: Mapping[str, Mapping[str, ParityRecord]]
    unavailable: Mapping[str, str]
    failed: Sequence[tuple[str, str]] = ()
    precisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True where every graph file kept to what its precision promises, on every runtime that counts."""
        return not self.failed

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
            "precisions": {name: dict(one) for name, one in self.precisions.items()},
            "failed": [list(pair) for pair in self.failed],
            "unavailable": dict(self.unavailable),
        }


def export_bundle(
    model: Exportable,
    out: Path,
    *,
    precisions: Sequence[str] = (FP32,),
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
    max_drop: float = DEFAULT_MAX_DROP,
    allow_drift: bool = False,
    fused: bool = False,
    plain: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model to one bundle and prove on real images that it decides the same.

    Every runtime that is installed here judges every image from the file on: decode, resize, network, decision. In
    FP32 not one decision may change. ``openvino-bf16`` is measured and recorded, and only usable where it changed none.
    FP16 is judged as a device would compute it (`SimulatedFp16`): no flip, no NaN, no Inf. INT8 may move scores by
    ``max_drop``.

    Args:
        model: see `Exportable`.
        out: a path ending in ``.edgead``; replaced at the end or left as it was.
        precisions: of ``fp32`` (always there), ``fp16``, ``int8-trt``, ``int8-cpu``.
        images: files or folders; none means the model's own references.
        calibration: files or folders of good images that set the ranges of INT8; none means the model's own.
        max_drop: 99th percentile of the score differences of INT8 over the way from the median normal score to the
            threshold; convolutions stay in FP32, the most sensitive first, until it holds.
        allow_drift: write the bundle although a decision changed, and say so in its manifest.
        fused: write one graph that routes and scores, in place of a router and a head for each category; it computes
            the features once, and holds all heads in memory either way.
        plain: write plain operators only; else the files for TensorRT have nodes of the domain ``edgead``, with plain
            operators as their bodies.
        cache: folder that keeps calibrated ranges; None keeps none.
        progress: called with ``(stage, done, total)``.

    Raises:
        ParityError: a decision changed, INT8 moved scores too far, or a score is NaN or infinite; nothing was written.
        ExportError, LintError: the module cannot be exported as it is, or has nothing to convert.
        ConfigError, DataError, BundleError: wrong arguments, unreadable image, unwritable path.
    """
    check_bundle_path(out)
    settings = _Settings(check_precisions(precisions), images, calibration, max_drop, allow_drift, fused, plain, cache)
    made, manifest, report = _export(model, out, settings, progress or _silent)
    write_bundle(out, manifest, {**_split(made), **_reference_members(model)})
    with Bundle.open(out) as bundle:
        return replace(report, sha256=bundle.sha256, size=out.stat().st_size)


def export_graphs(
    model: Exportable,
    folder: Path,
    *,
    precisions: Sequence[str] = (FP32,),
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
    max_drop: float = DEFAULT_MAX_DROP,
    allow_drift: bool = False,
    fused: bool = False,
    plain: bool = False,
    triton: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write plain graph files, with large weights in ``weights/`` beside them, for those who build their own engines.

    With ``triton`` it is a model repository for the Triton Inference Server, see `edgead.export.model_repository`.

    Arguments, proof and errors are those of `export_bundle`; ``folder`` must not exist or be empty. The files carry no
    threshold; the report does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another -o or remove it")
    if model.region is not None or model.tiles is not None:
        raise ConfigError(f"{model.name} judges a region or tiles, which a plain graph cannot say; export a bundle")
    settings = _Settings(check_precisions(precisions), images, calibration, max_drop, allow_drift, fused, plain, cache)
    if triton and model.routing is not None and not fused:
        raise ConfigError(f"{model.name} is a router and heads, which Triton does not join; give --single-graph")
    made, manifest, report = _export(model, folder, settings, progress or _silent)
    if triton:
        files = triton_files(manifest, {one.precision: one.models[one.main] for one in made if one.precision != TRT})
    else:
        files = _split(made, parts=False)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    try:
        _write(files, temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {reason(error)}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(report, size=sum(map(len, files.values())))


@dataclass(frozen=True, slots=True)
class _Settings:
    precisions: tuple[str, ...]
    images: Sequence[Path]
    calibration: Sequence[Path]
    max_drop: float
    allow_drift: bool
    fused: bool
    plain: bool
    cache: Path | None


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _export(
    model: Exportable, out: Path, settings: _Settings, tell: Progress
) -> tuple[list[GraphFiles], Manifest, ExportReport]:
    """Make and prove all graph files; returns them with manifest and report."""
    if settings.fused and model.routing is None:
        raise ConfigError(f"{model.name} has one head only and needs no single graph; leave --single-graph away")
    if not settings.max_drop > 0:
        raise ConfigError(f"--max-drop must be above 0, got {settings.max_drop}")
    if model.tiles is not None and len(settings.precisions) > 1:
        raise ConfigError(f"{model.name} judges tiles, which is done in fp32 only so far; leave --fp16 and --int8 away")
    named = _load(model, settings.images)
    samples = _samples(model, settings) if len(settings.precisions) > 1 else None
    made = [_fp32(model, settings.fused, tell)]
    manifest = _manifest(model, made[0].section)
    maker = None
    if samples is not None:
        rounded: Mapping[str, Rounded] = {}
        if {TRT, CPU} & set(settings.precisions):
            tell("int8: weights", 0, 1)
            rounded = round_network(made[0], samples)
            tell("int8: weights", 1, 1)
        drop, cache, plain = settings.max_drop, settings.cache, settings.plain
        maker = PrecisionMaker(model, manifest, made[0], samples, drop, cache, plain, rounded, tell)
        made += [maker.make(precision) for precision in settings.precisions[1:]]
    measured, unavailable = _measure(model, manifest, made, named, tell)
    for attempt in range(_STRICTER if maker is not None else 0):
        # Images at hand can tell more than those that layers were chosen by; then more layers stay in FP32.
        again: dict[str, Int8Choice] = {}
        for files in made:
            worst = max((m.comparison.drop for m in measured if m.precision == files.precision), default=0.0)
            choice = files.choice
            if choice is not None and settings.max_drop < worst < np.inf and choice.may_go_on(attempt):
                again[files.precision] = choice.stricter(settings.max_drop / worst)
        if not again:
            break
        assert maker is not None
        made = [
            maker.make(files.precision, again[files.precision]) if files.precision in again else files for files in made
        ]
        renewed, _ = _measure(model, manifest, made, named, tell, tuple(again))
        measured = [one for one in measured if one.precision not in again] + renewed
    manifest = manifest.model_copy(update={"precisions": {one.precision: one.section for one in made}})

    failed = [one for one in measured if fails(one, settings.max_drop)]
    parity: dict[str, dict[str, ParityRecord]] = {}
    for one in measured:
        graph = next(graph for graph in made if graph.precision == one.precision)
        parity.setdefault(graph.main, {})[one.runtime] = one.comparison.record(
            drift_allowed=settings.allow_drift and one in failed, note=note(one, graph.choice), half_margin=one.margin
        )
    pairs = [(manifest.precisions[one.precision].file, one.runtime) for one in failed]
    described = {one.precision: one.describe() for one in made}
    report = ExportReport(out, None, 0, parity, unavailable, pairs, described)
    if failed and not settings.allow_drift:
        raise ParityError(complaint(failed[0], settings.max_drop, made), report.to_dict())
    return made, manifest.model_copy(update={"parity": parity}), report


def _measure(
    model: Exportable,
    manifest: Manifest,
    made: Sequence[GraphFiles],
    named: Sequence[tuple[str, NDArray[np.uint8]]],
    tell: Progress,
    only: Sequence[str] = (),
) -> tuple[list[Measurement], dict[str, str]]:
    """Run the files as a bundle has them, see `measure`."""
    manifest = manifest.model_copy(update={"precisions": {one.precision: one.section for one in made}})
    with TemporaryDirectory(prefix="edgead-export-") as folder:
        whole, inlined = Path(folder, "whole"), Path(folder, "inlined")
        _write(_split(made), whole)
        if any(scoring_nodes(graph) for one in made for graph in one.models.values()):
            _write(_split([replace(one, models=_inline(one.models)) for one in made]), inlined)
        else:
            inlined = whole
        return measure(model, manifest, whole, inlined, named, tell, only)


def write_draft(model: Exportable, out: Path, trace: Trace = export_onnx) -> int:
    """Write the FP32 bundle that `export_bundle` would, but unproved, to measure size and speed; return its bytes.

    Nothing is compared, and the manifest has no parity record: not for a line.

    Args:
        model, out: as in `export_bundle`, and so are the errors.
        trace: gives the graph of a module as `export_onnx` does.
    """
    check_bundle_path(out)
    made = _fp32(model, False, _silent, trace)
    write_bundle(out, _manifest(model, made.section), {**_split([made]), **_reference_members(model)})
    return out.stat().st_size


def _fp32(model: Exportable, fused: bool, tell: Progress, trace: Trace = export_onnx) -> GraphFiles:
    """Return the FP32 graphs: one, or a router and a head for each category."""
    routing = model.routing
    modules: dict[str, tuple[nn.Module, Sequence[str]]]
    if routing is None:
        modules = {FP32_FILE: (model.module, OUTPUTS)}
    elif fused:
        modules = {FP32_FILE: (model.module, FUSED_OUTPUTS)}
    else:
        modules = {ROUTER_FILE: (routing.router, ROUTER_OUTPUTS)}
        modules |= {head_file(name, FP32): (head, OUTPUTS) for name, head in routing.heads.items()}
    traced = {}
    for done, (name, (module, outputs)) in enumerate(modules.items()):
        tell("graph", done, len(modules))
        traced[name] = trace(module, model.height, model.width, outputs)
        require_clean(traced[name], outputs)
    tell("graph", len(modules), len(modules))
    section = PrecisionSection(file=next(iter(traced)), runtimes=tuple(REGISTRY))
    named = {name: outputs for name, (_, outputs) in modules.items()}
    return GraphFiles(FP32, _inline(traced), named, section, traced=traced)


def _inline(models: Mapping[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    return {name: inline_nodes(graph) for name, graph in models.items()}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _split(made: Sequence[GraphFiles], *, parts: bool = True) -> dict[str, bytes]:
    """Return all graph files and, once each, the weights that several of them may share.

    With ``parts`` a graph that native code speeds up is there in two parts as well (`edgead.runtime.native`).
    """
    graphs = [pair for one in made for pair in one.models.items()]
    files: dict[str, bytes] = {}
    # Only backends for CPUs have native code, and they run no other precisions.
    for one in made if parts else ():
        for file in one.models if one.precision in (FP32, CPU) else ():
            bits: Literal[16, 32] = 16 if one.precision == CPU else 32
            found = split(one.models[file], bits) if tuple(one.outputs[file]) == OUTPUTS else None
            if found is not None:
                queries, score, described = native_files(file)
                graphs += [(queries, found.queries), (score, found.score)]
                files |= {described: found.description.model_dump_json().encode(), **found.weights}
    for name, graph in graphs:
        # Router and heads have one backbone, and precisions one bank: a low limit lets them share it.
        data, weights = split_weights(graph, LARGE_BYTES if len(graphs) == 1 else SHARED_BYTES)
        files |= {name: data, **weights}
    return files


def _load(model: Exportable, images: Sequence[Path]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return ``(name, (h, w, 3) uint8)`` at network size."""
    if not images:
        if not model.references:
            raise ConfigError("the model holds no reference images; give some with --images DIR")
        return [(name, model.prepare(decode_image(data, name))) for name, data in model.references]
    # Three components tell an image apart; the whole path would carry this machine's folders into the manifest.
    return [("/".join(path.parts[-3:]), model.prepare(read_image(path))) for path in find_images(images)]


def _samples(model: Exportable, settings: _Settings) -> Samples:
    """Return the images that ranges and thresholds of reduced precisions are made from, judged by the model itself."""
    size = (model.height, model.width)
    # They were cut and resized when the model was fitted.
    held = {name: resize(decode_image(data, name), *size) for name, data in model.calibration}
    if settings.calibration:
        paths = list(find_images(settings.calibration))
        step = -(-len(paths) // _MOST_CALIBRATION)
        good = [model.prepare(read_image(path)) for path in paths[::step]]
    else:
        good = [held[name] for name in held if name.startswith("good-")]
    others = [model.prepare(decode_image(data, name)) for name, data in model.references]
    others += [held[name] for name in held if not name.startswith("good-")]
    shape = (-1, *size, 3)
    backend, limits = model.torch_backend(), model.limits
    verdicts = [limits.judge(backend.run(image[None]), 0) for image in [*good, *others]]
    return Samples(
        np.array(good, np.uint8).reshape(shape),
        np.array(others, np.uint8).reshape(shape),
        verdicts,
        float(np.min(model.normal_scores)),
    )


def _reference_members(model: Exportable) -> dict[str, bytes]:
    backend = model.torch_backend()
    names = sorted(name for name, _ in model.references)
    images = dict(model.references)
    results = [backend.run(model.prepare(decode_image(images[name], name))[None]) for name in names]
    members = {f"{REFERENCES}{name}": images[name] for name in names}
    mask = None if model.region is None else encode_mask(model.region)
    if mask is not None:
        members[MASK_NAME] = mask
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


def _manifest(model: Exportable, section: PrecisionSection) -> Manifest:
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
        ),
        map=MapSection(height=model.grid[0], width=model.grid[1]),
        threshold=ThresholdSection.from_threshold(model.threshold),
        categories=categories,
        precisions={FP32: section},
        provenance=dict(model.provenance),
    )
