"""``edgead eval --probe``: its options, its run and its table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgead.cli._options import require

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.evaluation.probing import CategoryProbe, KindReport, ProbeReport
    from edgead.metrics.metrics import Metric

KindsOption = Annotated[
    str | None,
    typer.Option(
        "--kinds",
        metavar="KIND,...",
        help="With --probe: scratch, stain, dent, crack, missing, duplicated, moved, swapped.",
        show_default="all",
    ),
]
PerKindOption = Annotated[
    int | None,
    typer.Option("--per-kind", min=1, metavar="N", help="With --probe: probes of each kind.", show_default="50"),
]
ProbeSeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, metavar="N", help="With --probe: decides every random choice.", show_default="0"),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        help="With --probe: visibility, 0.05 to 4; at 1 seen at a glance, at 0.4 on a second look.",
        show_default="1",
    ),
]


class ProbeOptions(NamedTuple):
    """What was said of the probes; None: nothing."""

    kinds: str | None
    per_kind: int | None
    seed: int | None
    strength: float | None

    def refuse(self) -> None:
        """Raise `ConfigError` where an option was given that means nothing without ``--probe``."""
        from edgead.runtime.errors import ConfigError

        for name, value in self._asdict().items():
            if value is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is about planted defects; add --probe or omit it")


def run_probes(
    out: Output, model: Path, categories: Sequence[Path], options: ProbeOptions, *, backend: str, threads: int | None
) -> None:
    """Run ``edgead eval --probe``."""
    require("train", "scipy")
    if model.is_dir():
        require("train", "torch", "torchvision", "timm", "safetensors")
    from edgead.data import open_category
    from edgead.evaluation.probing import PER_KIND, ProbePlan, ProbeReport, check_kinds, probe
    from edgead.evaluation.validation_normals import find_normals, read_training_record
    from edgead.opening import open_inspector
    from edgead.probes import KINDS

    kinds = KINDS if options.kinds is None else tuple(part.strip() for part in options.kinds.split(",") if part.strip())
    check_kinds(kinds)
    plan = ProbePlan(
        kinds=kinds,
        per_kind=options.per_kind or PER_KIND,
        seed=options.seed or 0,
        strength=1.0 if options.strength is None else options.strength,
    )
    record = read_training_record(model)
    normals = [find_normals(open_category(path, train_only=True), record) for path in categories]
    if record.fingerprints is None:
        out.warn(f"{model} does not say which images it was trained on; make sure that it has not seen these")
    with open_inspector(model, backend=backend, threads=threads) as inspector, out.progress() as step:
        out.note(f"backend: {inspector.why}")
        report = ProbeReport(
            tuple(probe(inspector, one, plan, progress=partial(step, one.category.name)) for one in normals),
            inspector.describe(),
            plan.seed,
            plan.strength,
        )
    out.finish(report.to_dict(), *_tables(report, model))


def _tables(report: ProbeReport, model: Path) -> list[Any]:
    from edgead.cli._output import table

    columns = ["category", "kind", "image AUROC", "caught", "raised", "pixel AUROC", "skipped", "not inspected"]
    rows = [_row(one, kind) for one in report.categories for kind in (*one.kinds, one.overall)]
    title = (
        f"{model} on {report.backend.name}: planted defects of strength {report.strength:g}; "
        "below each figure its 95 % interval"
    )
    good = [[one.name, one.source, str(one.n_normals), str(one.false_alarms)] for one in report.categories]
    return [
        table(title, columns, rows, text_columns=2),
        table(
            "Good images they are compared with", ["category", "source", "images", "false alarms"], good, text_columns=2
        ),
        *(f"{one.name}: {verdict(one.overall)}" for one in report.categories if one.overall.n),
        "A sanity probe, not a substitute for real defects: see docs/probes.md.",
    ]


def verdict(report: KindReport) -> str:
    """Say in words what the figures mean; the limits only choose the words."""
    raised, caught = report.raised / report.n, report.caught / report.n
    if raised < 0.75:
        return f"raised {raised:.0%}: the model hardly sees these flaws (one that is blind raises half)."
    auroc = report.image_auroc
    if caught < 0.5 and auroc is not None and auroc.value < 0.7:
        return (
            f"raised {raised:.0%}, image AUROC {auroc.value:.2f}: the model sees these flaws, but normal images differ "
            "from each other as much. 'edgead recommend' says whether --align or another detector helps."
        )
    if caught < 0.5:
        return (
            f"raised {raised:.0%}, caught {caught:.0%}: the model sees these flaws, and its threshold lets most "
            "pass. More normal images, another detector ('edgead recommend') or a higher --false-alarm-rate helps."
        )
    return f"raised {raised:.0%}, caught {caught:.0%}: the model sees these flaws and rejects them."


def _row(category: CategoryProbe, report: KindReport) -> list[str]:
    return [
        category.name,
        report.kind,
        _interval(report.image_auroc),
        f"{report.caught} of {report.n}",
        f"{report.raised:g} of {report.n}",
        _interval(report.pixel_auroc),
        str(report.skipped),
        str(report.not_inspected),
    ]


def _interval(metric: Metric | None) -> str:
    return "-" if metric is None else f"{metric.value:.4f}\n{metric.low:.3f} to {metric.high:.3f}"
