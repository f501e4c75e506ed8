"""``edgead export``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import calibration_cache, require, run_command
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgead.cli._output import Output
    from edgead.export.options import ExportKeywords
    from edgead.export.parity.gate import ExportReport


@command("export", panel=PANEL, example="edgead export plate.model -o plate.edgead --fp16 --images parts/plate/test")
def export(
    out: Output,
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What fit wrote.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NAME.edgead", help="Where the bundle goes.", show_default=False),
    ],
    fp16: Annotated[bool, typer.Option("--fp16", help="Add a graph in half for TensorRT, and prove it.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add INT8 graphs for CPUs and for TensorRT.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Real images for the proof; repeat it.", show_default="the model's own references"
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Good images that set INT8 ranges; repeat it.", show_default="the model's own"
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(metavar="X", help="How far INT8 may move scores, as a share of the score margin.")
    ] = 0.05,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Write the bundle though a decision changed, and record it there.")
    ] = False,
    single_graph: Annotated[
        bool,
        typer.Option(
            "--single-graph", help="For a model of several categories: one graph in place of a router and heads."
        ),
    ] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Plain operators in the files for TensorRT too, in place of scoring nodes."),
    ] = False,
    onnx_only: Annotated[
        bool, typer.Option("--onnx-only", help="Write plain graph files into the folder -o, and how to build them.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            metavar="T", help="bundle, or triton: a model repository for the Triton Inference Server in the folder -o."
        ),
    ] = "bundle",
) -> None:
    """Write one bundle for every device, and prove on real images that it decides as the model does.

    Exits with 3, and writes nothing, where a decision changes on a runtime that is installed here, where FP16 as a
    device computes it flips one or overflows, or where INT8 moves scores by more than --max-drop.
    """
    from edgead.runtime.bundle.writing import check_bundle_path
    from edgead.runtime.errors import ConfigError, suggest

    targets = ("bundle", "triton")
    if target not in targets:
        raise ConfigError(f"unknown target '{target}'.{suggest(target, targets)}")
    folder = onnx_only or target == "triton"
    if not folder:
        check_bundle_path(output)
    require("export", "torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript")
    if fp16 or int8:
        require("cpu", "onnxruntime")
    from edgead.export.exporting import export_bundle, export_graphs
    from edgead.model.model import load_model

    trained = load_model(model)
    write: Callable[..., ExportReport] = export_bundle
    if folder:
        write = partial(export_graphs, triton=target == "triton")
    with out.progress() as step:
        report = export_proved(
            out,
            partial(write, trained.exportable(output.stem), output, fused=single_graph, plain=plain, progress=step),
            precisions=precisions_of(fp16, int8),
            images=images or (),
            calibration=calibration or (),
            max_drop=max_drop,
            allow_drift=allow_drift,
        )
    if trained.card.backbone_info["random_weights"]:
        out.warn("the backbone of this model has RANDOM WEIGHTS; the bundle says so in its manifest")
    warn_about_export(out, report)
    payload = report.to_dict()
    if onnx_only and target == "bundle":
        size = (trained.card.height, trained.card.width)
        payload["trtexec"] = _trtexec(report, size)
        for line in payload["trtexec"]:
            out.note(line)
    following = () if folder else run_command(output)
    out.finish(payload, parity_table(report), *layer_tables(payload["precisions"]), next_command=following)


def precisions_of(fp16: bool, int8: bool) -> list[str]:
    """Return the precisions that the options ask for, beside fp32."""
    return [*(["fp16"] if fp16 else []), *(["int8-trt", "int8-cpu"] if int8 else [])]


def export_proved(out: Output, write: Callable[..., ExportReport], **options: Unpack[ExportKeywords]) -> ExportReport:
    """Run an export; what it measured is shown where the proof fails, too."""
    from edgead.runtime.errors import ParityError

    try:
        return write(**options, cache=calibration_cache())
    except ParityError as error:
        if error.report is not None:
            out.finish(error.report, *layer_tables(error.report["precisions"], explain=True))
        raise


def warn_about_export(out: Output, report: ExportReport) -> None:
    """Say what a bundle was written in spite of, and where nothing was proved."""
    if not report.passed:
        out.warn("a decision changed, and the bundle was written all the same, as --allow-drift asks")
    for name, reason in report.unavailable.items():
        out.note(f"not proved on {name}: {reason}")


def _trtexec(report: ExportReport, size: tuple[int, int]) -> list[str]:
    """Return a command for each file that is meant for TensorRT; batch 1, the precision comes from the graph."""
    shape = f"images:1x{size[0]}x{size[1]}x3"
    shapes = f"--minShapes={shape} --optShapes={shape} --maxShapes={shape}"
    return [
        f"trtexec --onnx={file} --stronglyTyped {shapes} --saveEngine={file.with_suffix('.engine')}"
        for file in sorted(report.path.glob("*.onnx"))
        if not file.name.endswith(".int8-cpu.onnx")
    ]


def layer_tables(precisions: Mapping[str, Any], *, explain: bool = False) -> list[Any]:
    """Return the sensitivity of each precision's layers, where it was measured."""
    from edgead.cli._output import number, table

    tables = []
    for precision, one in precisions.items():
        made = one.get("int8", {})
        rows = [
            [layer, number(value), "fp32" if layer in made["kept"] else "int8"]
            for layer, value in made.get("sensitivity", {}).items()
            if explain or layer in made["kept"]
        ]
        if rows:
            title = f"{precision}: score error of each layer alone in INT8 ({made['method']} ranges)"
            tables.append(table(title, ["layer", "score error", "runs in"], rows))
    return tables


def parity_table(report: ExportReport) -> Any:
    from edgead.cli._output import number, table

    rows = []
    for file, records in report.parity.items():
        for runtime, record in records.items():
            figures = (record.max_score_difference, record.p99_score_difference, record.max_map_difference)
            changed = str(record.flips + record.borderline)
            label = f"{runtime}: {record.note}" if record.note else runtime
            change = "-" if record.auroc_change is None else f"{record.auroc_change:+.4f}"
            rows.append([file, label, *map(number, figures), changed, str(record.images), change])
    headings = ("max score diff.", "p99 score diff.", "max map diff.", "changed decisions", "images", "AUROC change")
    title = f"Wrote {report.path} ({report.size / 1e6:.1f} MB) beside the model on torch, file to decision"
    return table(title, ["graph", "on", *headings], rows, text_columns=2)
