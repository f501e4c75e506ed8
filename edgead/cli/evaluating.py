"""``edgead eval``: a model or a bundle judged on labelled images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import (
    BackendOption,
    DefectRateOption,
    FalseAlarmCostOption,
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
    from edgead.evaluation.evaluation import EvalReport
    from edgead.metrics.metrics import Metric
    from edgead.metrics.shares import Share
from edgead.cli.training import PANEL


@command("eval", panel=PANEL, trusts=True, example="edgead eval plate.edgead parts/plate --backend openvino --json")
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
    cost_escape: Annotated[
        float | None,
        typer.Option(metavar="X", help="Cost of a defect that passes; with both costs, what 1,000 parts cost is told."),
    ] = None,
    cost_false_alarm: FalseAlarmCostOption = None,
    defect_rate: DefectRateOption = 0.01,
    kinds: KindsOption = None,
    per_kind: PerKindOption = None,
    seed: ProbeSeedOption = None,
    strength: StrengthOption = None,
) -> None:
    """Measure a model on the test images, through the code that judges camera frames."""
    planted = ProbeOptions(kinds, per_kind, seed, strength)
    from edgead.evaluation.costs import parse_costs
    from edgead.runtime.errors import ConfigError

    costs = parse_costs(cost_escape, cost_false_alarm, defect_rate)
    if probe:
        if costs is not None:
            raise ConfigError("what parts cost is measured on real defects; omit --probe or the costs")
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
            tuple(
                evaluate_category(inspector, category, costs=costs, progress=partial(step, category.name))
                for category in opened
            ),
            inspector.describe(),
        )
    for category in report.categories:
        for doubt in category.doubts:
            out.warn(f"{category.name}: {doubt}")
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
    """Return escapes and false alarms first, which a line lives on, then how well the scores separate."""
    from edgead.cli._output import table
    from edgead.evaluation.evaluation import METRICS

    on = f"{model} on {report.backend.name} ({report.backend.precision})"
    headings = ["image AUROC", "pixel AUROC", "AUPRO", "F1-max", "false alarms at zero escapes"]
    rows = [[one.name, *(_interval(one.metric(name)) for name in METRICS)] for one in report.categories]
    if len(rows) > 1:
        rows.append(["mean", *(_interval(report.mean(name)) for name in METRICS)])
    return [
        table(f"Decisions at the threshold, {on}; below each its share and 95 % interval", *_decisions(report)),
        _allowed(report),
        *_kinds(report),
        table("Separation by the scores; below each figure its 95 % interval", ["category", *headings], rows),
    ]


def _interval(metric: Metric | None) -> str:
    return "no masks" if metric is None else f"{metric.value:.4f}\n{metric.low:.3f} to {metric.high:.3f}"


def _share(share: Share, what: str) -> str:
    return f"{share.count} of {share.n} {what}\n{share.percent}\n{share.interval}" if share.n else f"no {what}"


def _decisions(report: EvalReport) -> tuple[list[str], list[list[str]]]:
    columns = ["category", "escapes", "false alarms", "not inspected"]
    rows = []
    for one in report.categories:
        found = one.decisions
        escapes, alarms = _share(found.escape_share, "defective"), _share(found.false_alarm_share, "good")
        rows.append([one.name, escapes, alarms, str(found.not_inspected)])
    if any(one.costs for one in report.categories):
        columns.append("cost of 1,000 parts")
        for row, one in zip(rows, report.categories, strict=True):
            row.append("–" if one.cost_per_1000 is None else f"{one.cost_per_1000:.4g}")
    if any(one.routed_to for one in report.categories):
        columns.append("taken for")
        for row, one in zip(rows, report.categories, strict=True):
            row.append(", ".join(f"{name} {count}" for name, count in one.routed_to.items()))
    return columns, rows


def _allowed(report: EvalReport) -> Any:
    from edgead.cli._output import table
    from edgead.metrics.shares import RATES

    title = "Escapes that the scores allow: thresholds are chosen on these test images, so this is not what a line gets"
    rows = [
        [one.name, *(_share(point.escapes, "defective") for point in one.allowed)]
        if one.allowed
        else [one.name, *("–" for _ in RATES)]
        for one in report.categories
    ]
    return table(title, ["category", *(f"at {rate * 100:g} % false alarms" for rate in RATES)], rows)


def _kinds(report: EvalReport) -> list[Any]:
    """Return the table of the kinds of defect, where a category has more than one."""
    from edgead.cli._output import table

    rows = [
        [one.name, kind.label, str(kind.images), _share(kind.escape_share, "inspected"), str(kind.not_inspected)]
        for one in report.categories
        if len(one.defects) > 1
        for kind in one.defects
    ]
    headings = ["category", "defect", "images", "escapes", "not inspected"]
    return [table("Escapes at the threshold, by kind of defect", headings, rows, text_columns=2)] if rows else []
