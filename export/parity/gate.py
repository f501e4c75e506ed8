"""All graph files of a model: which images calibrate the precisions asked for, and which prove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.export.exportable import Exportable
from edgead.export.graph.partition import blocks
from edgead.export.members import make_manifest
from edgead.export.ops.nodes import scoring_nodes
from edgead.export.options import CPU, FP16, TRT, ExportOptions
from edgead.export.parity.measuring import measure
from edgead.export.parity.promise import FP16_DROP, Measurement, complaint, counts, fails, note
from edgead.export.precision.gptq import Rounded
from edgead.export.precision.graph_files import fp32_graphs, inline_all, split_files, write_files
from edgead.export.precision.variants import GraphFiles, PrecisionMaker, Samples, round_network
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.bundle.reference_names import ReferenceName
from edgead.runtime.errors import ConfigError, DataError, ParityError
from edgead.runtime.imaging.decode import decode_image, find_images, read_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.progress import Progress

SCHEMA = "edgead.export/1"
_STRICTER = 4  # times that more layers stay in FP32 where the images at hand need it
_MOST_CALIBRATION = 64  # images; more say little about ranges and cost seconds each


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


def prove(
    model: Exportable, out: Path, options: ExportOptions, tell: Progress
) -> tuple[list[GraphFiles], Manifest, ExportReport]:
    """Make and prove all graph files; returns them with manifest and report."""
    if options.fused and model.routing is None:
        raise ConfigError(f"{model.name} has one head only and needs no single graph; omit --single-graph")
    if model.tiles is not None and len(options.precisions) > 1:
        raise ConfigError(f"{model.name} judges tiles, which is done in fp32 only so far; omit --fp16 and --int8")
    named = _load(model, options.images)
    samples = _samples(model, options) if len(options.precisions) > 1 else None
    made = [fp32_graphs(model, options.fused, tell)]
    _require_convolutions(made[0], options)
    manifest = make_manifest(model, made[0].section)
    maker = None
    if samples is not None:
        rounded: Mapping[str, Mapping[str, Rounded]] = {}
        if {TRT, CPU} & set(options.precisions):
            tell("int8: weights", 0, 1)
            rounded = round_network(made[0], samples)
            tell("int8: weights", 1, 1)
        drop, cache, plain = options.max_drop, options.cache, options.plain
        maker = PrecisionMaker(model, manifest, made[0], samples, drop, cache, plain, rounded, tell)
        made += [maker.make(precision) for precision in options.precisions[1:]]
    measured, unavailable = _measure(model, manifest, made, named, tell)
    for attempt in range(_STRICTER if maker is not None else 0):
        # Images at hand can tell more than those that layers were chosen by; then more layers stay in FP32.
        again: dict[str, Callable[[], GraphFiles]] = {}
        for files in made:
            judged = [m for m in measured if m.precision == files.precision and counts(m)]
            worst = max((m.comparison.drop for m in judged), default=0.0)
            choice = files.choice
            assert maker is not None
            if files.precision == FP16 and FP16_DROP < worst < np.inf and files.leading < files.more_leading():
                again[FP16] = partial(maker.make, FP16, leading=files.more_leading())
            elif choice is not None and options.max_drop < worst < np.inf and choice.may_go_on(attempt):
                again[files.precision] = partial(maker.make, files.precision, choice.stricter(options.max_drop / worst))
        if not again:
            break
        made = [again[files.precision]() if files.precision in again else files for files in made]
        renewed, _ = _measure(model, manifest, made, named, tell, tuple(again))
        measured = [one for one in measured if one.precision not in again] + renewed
    manifest = manifest.model_copy(update={"precisions": {one.precision: one.section for one in made}})

    failed = [one for one in measured if fails(one, options.max_drop)]
    parity: dict[str, dict[str, ParityRecord]] = {}
    for one in measured:
        graph = next(graph for graph in made if graph.precision == one.precision)
        parity.setdefault(graph.main, {})[one.runtime] = one.comparison.record(
            drift_allowed=options.allow_drift and one in failed, note=note(one, graph), half_margin=one.margin
        )
    pairs = [(manifest.precisions[one.precision].file, one.runtime) for one in failed]
    described = {one.precision: one.describe() for one in made}
    report = ExportReport(out, None, 0, parity, unavailable, pairs, described)
    if failed and not options.allow_drift:
        raise ParityError(complaint(failed[0], options.max_drop, made), report.to_dict())
    return made, manifest.model_copy(update={"parity": parity}), report


def _require_convolutions(full: GraphFiles, options: ExportOptions) -> None:
    """Refuse INT8 where it would quantise nothing but the patch embedding of a vision transformer."""
    if {TRT, CPU} & set(options.precisions) and full.layers == 1 and blocks(full.models[full.main].graph):
        raise ConfigError(
            "--int8 quantises convolutions, and a vision transformer has one, its patch embedding, so that nothing "
            "would be gained; omit --int8 (--fp16 takes its blocks too)"
        )


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
        write_files(split_files(made), whole)
        if any(scoring_nodes(graph) for one in made for graph in one.models.values()):
            write_files(split_files([replace(one, models=inline_all(one.models)) for one in made]), inlined)
        else:
            inlined = whole
        return measure(model, manifest, whole, inlined, named, tell, only)


def _load(model: Exportable, images: Sequence[str | Path]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return ``(name, (h, w, 3) uint8)`` at network size."""
    if not images:
        if not model.references:
            raise ConfigError("the model holds no reference images; give some with --images DIR")
        return [(name, model.prepare(decode_image(data, name))) for name, data in model.references]
    # Three components tell an image apart; the whole path would carry this machine's folders into the manifest.
    return [("/".join(path.parts[-3:]), _prepare(model, path)) for path in find_images(images)]


def _prepare(model: Exportable, path: Path) -> NDArray[np.uint8]:
    """Return an image at network size; raises `DataError`, with the file's name, where the model does not take it."""
    image = read_image(path, model.bits)
    try:
        return model.prepare(image)
    except DataError as error:
        raise DataError(f"{path}: {error}; remove it, or give others") from error


def _samples(model: Exportable, options: ExportOptions) -> Samples:
    """Return the images that ranges and thresholds of reduced precisions are made from, judged by the model itself."""
    size = (model.height, model.width)
    # They were cut and resized when the model was fitted.
    held = {name: resize(decode_image(data, name), *size) for name, data in model.calibration}
    if options.calibration:
        paths = list(find_images(options.calibration, normals=True))
        step = -(-len(paths) // _MOST_CALIBRATION)
        good = [_prepare(model, path) for path in paths[::step]]
    else:
        good = [held[name] for name in held if ReferenceName.parse(name).kind == "normal"]
    others = [model.prepare(decode_image(data, name)) for name, data in model.references]
    others += [held[name] for name in held if ReferenceName.parse(name).kind != "normal"]
    shape = (-1, *size, 3)
    backend, limits = model.torch_backend(), model.limits
    verdicts = [limits.judge(backend.run(image[None]), 0) for image in [*good, *others]]
    return Samples(
        np.array(good, np.uint8).reshape(shape),
        np.array(others, np.uint8).reshape(shape),
        verdicts,
        float(np.min(model.normal_scores)),
    )
