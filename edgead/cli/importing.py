"""``edgead import-anomalib``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import RateOption, require, run_command
from edgead.cli.exporting import export_proved, layer_tables, parity_table, precisions_of, warn_about_export
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output

SCHEMA = "edgead.import-anomalib/1"


@command(
    "import-anomalib",
    panel=PANEL,
    example="edgead import-anomalib model.ckpt -o plate.edgead --images parts/plate/test",
)
def import_anomalib(
    out: Output,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|ONNX", help="What anomalib 2.7 wrote: model.ckpt or model.onnx.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NAME.edgead", help="Where the bundle goes.", show_default=False),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Real images for the proof, a few of which the bundle keeps; repeat it.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Good parts that the model has not seen, for INT8 ranges and --false-alarm-rate; repeat it.",
            show_default=False,
        ),
    ] = None,
    false_alarm_rate: RateOption = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add a graph in half for TensorRT, and prove it.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add INT8 graphs for CPUs and for TensorRT.")] = False,
    max_drop: Annotated[
        float, typer.Option(metavar="X", help="How far INT8 may move scores, as a share of the score margin.")
    ] = 0.05,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Write the bundle though a decision changed, and record it there.")
    ] = False,
) -> None:
    """Turn a PatchCore or PaDiM of anomalib into a bundle that gives the same raw scores.

    Its threshold is taken over as it is, which promises no false-alarm rate: --false-alarm-rate sets another one from
    the good parts of --calibration, and 'edgead calibrate' does so later. Nothing in the file is run. Exits with 3 as
    'edgead export' does.
    """
    from edgead.runtime.bundle.writing import check_bundle_path
    from edgead.runtime.errors import ConfigError

    check_bundle_path(output)
    if (fp16 or int8) and not calibration:
        raise ConfigError("--fp16 and --int8 need good parts to set ranges and thresholds by; give --calibration DIR")
    require("export", "torch", "torchvision", "timm", "onnx", "onnxscript")
    if fp16 or int8:
        require("cpu", "onnxruntime")
    from edgead.export.exporting import export_bundle
    from edgead.importing import import_anomalib as rebuild

    with out.progress() as step:
        imported = rebuild(
            model,
            output.stem,
            images=images or (),
            calibration=calibration or (),
            false_alarm_rate=false_alarm_rate,
        )
        report = export_proved(
            out,
            partial(export_bundle, imported.exportable, output, progress=step),
            precisions=precisions_of(fp16, int8),
            images=images or (),
            calibration=calibration or (),
            max_drop=max_drop,
            allow_drift=allow_drift,
        )
    for remark in imported.remarks:
        out.warn(remark)
    warn_about_export(out, report)
    threshold = imported.exportable.threshold
    payload = {
        **report.to_dict(),
        "schema": SCHEMA,
        "model": {"detector": imported.exportable.detector, **imported.exportable.settings},
        "anomalib": dict(imported.decision),
        "threshold": {**threshold.to_dict(), "meaning": threshold.explain()},
    }
    tables = (parity_table(report), *layer_tables(payload["precisions"]))
    out.finish(payload, *tables, next_command=run_command(output))
