"""``edgead eval``: a model or a bundle judged on labelled images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import (
    BackendOption,
    PrecisionOption,
    ThreadsOption,
    require,
)
from edgead.cli._probing import (
    KindsOption,
    PerKindOption,
    ProbeOptions,
    ProbeSeedOption,
    StrengthOption,
    run_probes,
)

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.evaluation.evaluation import CategoryReport, EvalReport
    from edgead.metrics.metrics import Metric
from edgead.cli.training import PANEL


@command("eval", panel=PANEL, example="edgead eval plate.edgead parts/plate --backend openvino --json")
def evaluate(
    out: Output,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR|BUNDLE", help="What fit or export wrote.", show_default=False)
    ],
    categories: Annotated[
        list[Path],
        typer.Argument(
            metavar="CATEGORY_DIR...",
            help="Folders with test/good and test/<defect>; with --probe: of normal images.",
            show_default=False,
        ),
    ],
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Plant defects on good images and measure on those, without test images or labels: "
            "a sanity probe, not a substitute for real defects.",
        ),
    ] = False,
    kinds: KindsOption = None,
    per_kind: PerKindOption = None,
    seed: ProbeSeedOption = None,
    strength: StrengthOption = None,
) -> None:
    """Measure a model on the test images, through the code that judges camera frames."""
    planted = ProbeOptions(kinds, per_kind, seed, strength)
    if probe:
        run_probes(out, model, categories, planted, backend=backend, threads=threads)
        return
    planted.refuse()
    from edgead.data import open_category
    from edgead.evaluation.evaluation import EvalReport
    from edgead.evaluation.evaluation import evaluate as evaluate_category
    from edgead.opening import open_inspector

    opened = [open_category(path, need_test=True) for path in categories]
    if any(category.has_masks for category in opened):
        require("train", "scipy")
    if model.is_dir():
        require("train", "torch", "torchvision", "timm", "safetensors")
    with (
        open_inspector(model, backend=backend, precision=precision, threads=threads) as inspector,
        out.progress() as step,
    ):
        out.note(f"backend: {inspector.why}")
        report = EvalReport(
            tuple(evaluate_category(inspector, category, progress=partial(step, category.name)) for category in opened),
            inspector.describe(),
        )
    for category in report.categories:
        if category.empty_masks:
            out.warn(
                f"{category.name}: {category.empty_masks} defects vanish at network size; fit with a larger --size"
            )
        if category.unclear_masks:
            out.warn(
                f"{category.name}: {len(category.unclear_masks)} masks have more than two levels, as soft edges and "
                f"dirt give, first {category.unclear_masks[0]}; every level above 0 counts as defect: save them as "
                "black and white"
            )
    out.finish(report.to_dict(), *_eval_tables(report, model))


def _eval_tables(report: EvalReport, model: Path) -> list[Any]:
    from edgead.cli._output import table
    from edgead.evaluation.evaluation import METRICS

    headings = ["image AUROC", "pixel AUROC", "AUPRO", "F1-max", "false alarms at zero escapes"]
    rows = [[one.name, *(_interval(one.metric(name)) for name in METRICS)] for one in report.categories]
    if len(rows) > 1:
        rows.append(["mean", *(_interval(report.mean(name)) for name in METRICS)])
    title = f"{model} on {report.backend.name} ({report.backend.precision}); below each figure its 95 % interval"
    columns = ["category", "false alarms", "escapes", "not inspected"]
    decisions = [_decisions(one) for one in report.categories]
    if any(one.routed_to for one in report.categories):
        columns.append("taken for")
        for row, one in zip(decisions, report.categories, strict=True):
            row.append(", ".join(f"{name} {count}" for name, count in one.routed_to.items()))
    return [
        table(title, ["category", *headings], rows),
        table("Decisions at the threshold", columns, decisions),
    ]


def _interval(metric: Metric | None) -> str:
    return "no masks" if metric is None else f"{metric.value:.4f}\n{metric.low:.3f} to {metric.high:.3f}"


def _decisions(report: CategoryReport) -> list[str]:
    found = report.decisions
    return [
        report.name,
        f"{found.false_alarms} of {found.normal} good",
        f"{found.escapes} of {found.anomalous} defective",
        str(found.not_inspected),
    ]
