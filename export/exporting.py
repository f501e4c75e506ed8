"""From a scoring module to a bundle that proves itself: graphs, precisions, lint, weights, parity, one file."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgead.export.exportable import Exportable
from edgead.export.graph.tracing import export_onnx
from edgead.export.members import make_manifest, reference_members
from edgead.export.model_repository import triton_files
from edgead.export.options import TRT, ExportKeywords, ExportOptions
from edgead.export.parity.gate import ExportReport, prove
from edgead.export.precision.graph_files import Trace, fp32_graphs, split_files, write_files
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.writing import check_bundle_path, write_bundle
from edgead.runtime.errors import ConfigError, ExportError
from edgead.runtime.files import reason
from edgead.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Unpack


def export_bundle(
    model: Exportable,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> ExportReport:
    """Export a model to one bundle and prove on real images that it decides the same.

    Every runtime that is installed here judges every image from the file on: decode, resize, network, decision. In
    FP32 not one decision may change. ``openvino-bf16`` is measured and recorded, and only usable where it changed none.
    FP16 is judged as a device would compute it (`SimulatedFp16`): no flip, no NaN, no Inf. INT8 may move scores by
    ``max_drop``.

    Args:
        model: see `Exportable`.
        out: a path ending in ``.edgead``; replaced at the end or left as it was. ``~`` is the home folder.
        options: what is asked for; None: the defaults of `ExportOptions`.
        progress: called with ``(stage, done, total)``.
        keywords: fields of `ExportOptions`, such as ``precisions=["fp16"]``, which count more than ``options``.

    Raises:
        ParityError: a decision changed, INT8 moved scores too far, or a score is NaN or infinite; nothing was written.
        ExportError, LintError: the module cannot be exported as it is, or has nothing to convert.
        ConfigError, DataError, BundleError: wrong arguments, unreadable image, unwritable path.
    """
    out = check_bundle_path(Path(out).expanduser())
    asked = replace(options or ExportOptions(), **keywords)
    made, manifest, report = prove(model, out, asked, progress or silent)
    write_bundle(out, manifest, {**split_files(made), **reference_members(model)})
    with Bundle.open(out, made_here=True) as bundle:
        return replace(report, sha256=bundle.sha256, size=out.stat().st_size)


def export_graphs(
    model: Exportable,
    folder: str | Path,
    options: ExportOptions | None = None,
    *,
    triton: bool = False,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> ExportReport:
    """Write plain graph files, with large weights in ``weights/`` beside them, for those who build their own engines.

    With ``triton`` it is a model repository for the Triton Inference Server, see `edgead.export.model_repository`.

    Arguments, proof and errors are those of `export_bundle`; ``folder`` must not exist or be empty. The files carry no
    threshold; the report does.
    """
    folder = Path(folder).expanduser()
    asked = replace(options or ExportOptions(), **keywords)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another -o or remove it")
    if any(one is not None for one in (model.region, model.tiles, model.align)):
        raise ConfigError(
            f"{model.name} judges a region or tiles, or aligns frames, which a plain graph cannot say; export a bundle"
        )
    if triton and model.routing is not None and not asked.fused:
        raise ConfigError(f"{model.name} is a router and heads, which Triton does not join; give --single-graph")
    made, manifest, report = prove(model, folder, asked, progress or silent)
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


def write_draft(model: Exportable, out: Path, trace: Trace = export_onnx) -> int:
    """Write the FP32 bundle that `export_bundle` would, but unproved, to measure size and speed; return its bytes.

    Nothing is compared, and the manifest has no parity record: not for production.

    Args:
        model, out: as in `export_bundle`, and so are the errors.
        trace: gives the graph of a module as `export_onnx` does.
    """
    check_bundle_path(out)
    made = fp32_graphs(model, False, silent, trace)
    write_bundle(out, make_manifest(model, made.section), {**split_files([made]), **reference_members(model)})
    return out.stat().st_size
