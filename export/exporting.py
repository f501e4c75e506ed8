"""From a scoring module to a bundle that proves itself: graphs, precisions, lint, weights, parity, one file."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgead.export.exportable import Exportable
from edgead.export.graph.tracing import export_onnx
from edgead.export.members import make_manifest, reference_members
from edgead.export.model_repository import triton_files
from edgead.export.parity.gate import DEFAULT_MAX_DROP, ExportReport, Settings, prove
from edgead.export.precision.graph_files import Trace, fp32_graphs, split_files, write_files
from edgead.export.precision.qdq import TRT
from edgead.export.precision.variants import FP32, check_precisions
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.writing import check_bundle_path, write_bundle
from edgead.runtime.errors import ConfigError, ExportError
from edgead.runtime.files import reason

Progress = Callable[[str, int, int], None]


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
    settings = Settings(check_precisions(precisions), images, calibration, max_drop, allow_drift, fused, plain, cache)
    made, manifest, report = prove(model, out, settings, progress or silent)
    write_bundle(out, manifest, {**split_files(made), **reference_members(model)})
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
    settings = Settings(check_precisions(precisions), images, calibration, max_drop, allow_drift, fused, plain, cache)
    if triton and model.routing is not None and not fused:
        raise ConfigError(f"{model.name} is a router and heads, which Triton does not join; give --single-graph")
    made, manifest, report = prove(model, folder, settings, progress or silent)
    if triton:
        files = triton_files(manifest, {one.precision: one.models[one.main] for one in made if one.precision != TRT})
    else:
        files = split_files(made, parts=False)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_files(files, temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {reason(error)}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(report, size=sum(map(len, files.values())))


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


def write_draft(model: Exportable, out: Path, trace: Trace = export_onnx) -> int:
    """Write the FP32 bundle that `export_bundle` would, but unproved, to measure size and speed; return its bytes.

    Nothing is compared, and the manifest has no parity record: not for a line.

    Args:
        model, out: as in `export_bundle`, and so are the errors.
        trace: gives the graph of a module as `export_onnx` does.
    """
    check_bundle_path(out)
    made = fp32_graphs(model, False, silent, trace)
    write_bundle(out, make_manifest(model, made.section), {**split_files([made]), **reference_members(model)})
    return out.stat().st_size
