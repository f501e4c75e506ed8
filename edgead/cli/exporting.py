"""``edgead export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import require
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.export.exporting import ExportReport

_LATER = typer.Option(hidden=True, help="Not in this version.")


@command("export", panel=PANEL, example="edgead export plate.model -o plate.edgead --images parts/plate/test")
def export(
    out: Output,
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What fit wrote.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NAME.edgead", help="Where the bundle goes.", show_default=False),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Real images for the proof; repeat it.", show_default="the model's own references"
        ),
    ] = None,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Write the bundle though a decision changed, and record it there.")
    ] = False,
    single_graph: Annotated[
        bool,
        typer.Option(
            "--single-graph", help="For a model of several categories: one graph in place of a router and heads."
        ),
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", hidden=True)] = False,
    int8: Annotated[bool, typer.Option("--int8", hidden=True)] = False,
    calibration: Annotated[Path | None, _LATER] = None,
    max_drop: Annotated[float | None, _LATER] = None,
) -> None:
    """Write one bundle for every device, and prove on real images that it decides as the model does.

    Exits with 3, and writes nothing, where a decision changes on a runtime that is installed here.
    """
    _refuse_precisions({"--fp16": fp16, "--int8": int8, "--calibration": calibration, "--max-drop": max_drop})
    from edgead.runtime.bundle import check_bundle_path

    check_bundle_path(output)
    require("export", "torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript")
    from edgead.export.exporting import export_bundle
    from edgead.model import load_model
    from edgead.runtime.errors import ParityError

    trained = load_model(model)
    with out.progress() as step:
        try:
            report = export_bundle(
                trained.exportable(output.stem),
                output,
                images=images or (),
                allow_drift=allow_drift,
                fused=single_graph,
                progress=step,
            )
        except ParityError as error:
            if error.report is not None:
                out.finish(error.report)
            raise
    if trained.card.backbone_info["random_weights"]:
        out.warn("the backbone of this model has RANDOM WEIGHTS; the bundle says so in its manifest")
    if not report.passed:
        out.warn("a decision changed, and the bundle was written all the same, as --allow-drift asks")
    for name, reason in report.unavailable.items():
        out.note(f"not proved on {name}: {reason}")
    out.finish(report.to_dict(), _parity_table(report))


def _refuse_precisions(flags: dict[str, object]) -> None:
    from edgead.runtime.errors import ConfigError

    given = [name for name, value in flags.items() if value not in (None, False)]
    if given:
        raise ConfigError(f"this version of edgead exports fp32 only; leave out {' '.join(given)}")


def _parity_table(report: ExportReport) -> Any:
    from edgead.cli._output import number, table

    rows = []
    for file, records in report.parity.items():
        for runtime, record in records.items():
            figures = (record.max_score_difference, record.p99_score_difference, record.max_map_difference)
            changed = str(record.flips + record.borderline)
            label = f"{runtime}: {record.note}" if record.note else runtime
            rows.append([file, label, *map(number, figures), changed, str(record.images)])
    headings = ("max score diff.", "p99 score diff.", "max map diff.", "changed decisions", "images")
    title = f"Wrote {report.path} ({report.size / 1e6:.1f} MB): as on torch, file to decision"
    return table(title, ["graph", "on", *headings], rows, text_columns=2)
