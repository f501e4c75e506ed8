"""``edgead compare`` and ``edgead report``."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import (
    BackendOption,
    RayOption,
    RayTaskOption,
    SizeOption,
    TapsOption,
    ThreadsOption,
    cluster_workers,
    parse_size,
    parse_taps,
    refuse_task_alone,
    require,
)
from edgead.cli.terminal.completion import complete_detector
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgead.cli._output import Output
    from edgead.comparing.measure import Options
    from edgead.comparing.rows import Row
    from edgead.comparing.running import Measuring
    from edgead.reporting import Report

_DEFAULT = "patchcore,padim"
_LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "scipy", "matplotlib", "onnx", "onnxscript")


@command(
    "compare", panel=PANEL, example="edgead compare parts/plate parts/screw --detectors patchcore,padim -o results"
)
def compare(
    out: Output,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where rows, tables and page go.", show_default=False),
    ],
    categories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CATEGORY_DIR...", help="Folders with train/good, test/good, test/<defect>.", show_default=False
        ),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,LABEL=NAME...",
            help="What to compare; the first is the reference.",
            show_default=_DEFAULT,
            autocompletion=complete_detector,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Fits of each, with seeds 0 to N-1.")] = 3,
    seed_list: Annotated[
        str | None, typer.Option(metavar="0,3,...", help="These seeds instead.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[LABEL:]KEY=VALUE",
            help="A setting of all detectors that know it, or of one; repeat it.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(metavar="NAME[@WEIGHTS]", help="As in fit.")] = "efficientnet_lite0",
    taps: TapsOption = None,
    size: SizeOption = None,
    frames: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Frames of the latency measurement.")
    ] = 50,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Measure no latency in new rows.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep models and bundles in DIR/models.")] = False,
    no_fit: Annotated[
        bool, typer.Option("--no-fit", help="Measure nothing: tables and page of the rows in DIR.")
    ] = False,
    ray: RayOption = None,
    ray_task: RayTaskOption = None,
) -> None:
    """Fit, evaluate, export and time several detectors, and say which is better and how sure that is.

    Each fit leaves a row in DIR/rows, so the same command goes on where it stopped. Exits with 3 where a row failed.
    With --ray fits run at once, on several machines, and no latency is measured, which neighbours would disturb.
    """
    refuse_task_alone(ray, ray_task)
    network_size = None if size is None else parse_size(size)
    strides, chosen_seeds = None if taps is None else parse_taps(taps), _seeds(seeds, seed_list)
    require("export", *_LIBRARIES)
    from edgead.comparing.measure import Options
    from edgead.comparing.plan import make_jobs, open_subjects, parse_variants
    from edgead.comparing.running import Listener, read_rows, run_jobs
    from edgead.metrics.metrics import BOOTSTRAP

    if no_fit:
        labels = [item.partition("=")[0].strip() for item in (detectors or "").split(",") if item.strip()]
        rows = _chosen(read_rows(output, out.warn), labels, [path.name for path in categories or ()])
    else:
        variants = parse_variants(detectors or _DEFAULT, settings or ())
        labels = [variant.label for variant in variants]
        paths = [path if ray is None else path.absolute() for path in categories or ()]
        subjects = open_subjects(paths)
        jobs = make_jobs(subjects, variants, chosen_seeds, size=network_size, backbone=backbone, taps=strides)
        _make_folder(output)
        options = Options(
            0 if no_latency or ray is not None else frames, BOOTSTRAP, output.absolute() / "models" if keep else None
        )
        with ExitStack() as stack:
            measuring = None if ray is None else stack.enter_context(_on_nodes(out, ray, ray_task, options, paths))
            step = stack.enter_context(out.progress())
            try:
                rows = run_jobs(output, jobs, options, Listener(out.note, out.warn, step), measuring)
            except KeyboardInterrupt:
                out.note(f"stopped; the finished rows are in {output}, and the same command goes on from there")
                raise
    payload = _write(output, rows, labels)
    _finish(out, output, payload)


@contextmanager
def _on_nodes(
    out: Output, ray: str, task: str | None, options: Options, categories: Sequence[Path]
) -> Iterator[Measuring]:
    """Yield what measures jobs on the nodes of a cluster."""
    from edgead.comparing.elsewhere import measure_elsewhere
    from edgead.dispatch.node import SharedFolder

    folders = [*categories, *([] if options.keep is None else [options.keep])]
    with ExitStack() as stack:
        shared = None
        if options.keep is not None:
            _make_folder(options.keep)
            shared = stack.enter_context(SharedFolder(options.keep))
        what = "the categories" if options.keep is None else "the categories and the folder of the results"
        yield measure_elsewhere(stack.enter_context(cluster_workers(out, ray, task, what, folders)), options, shared)


def _seeds(count: int, listed: str | None) -> list[int]:
    from edgead.runtime.errors import ConfigError

    if listed is None:
        return list(range(count))
    try:
        return [int(item) for item in listed.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seed-list takes whole numbers such as 0,3,7, not '{listed}'") from error


def _chosen(rows: Sequence[Row], labels: Sequence[str], categories: Sequence[str]) -> list[Row]:
    from edgead.runtime.errors import ConfigError, suggest

    for kind, wanted, known in (
        ("detector", labels, {row.label for row in rows}),
        ("category", categories, {row.category for row in rows}),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(f"no row of {kind} '{name}' is there.{suggest(name, known)}")
    return [
        row for row in rows if (not labels or row.label in labels) and (not categories or row.category in categories)
    ]


def _make_folder(path: Path) -> None:
    from edgead.comparing.rows import FOLDER
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.files import reason

    try:
        path.mkdir(parents=True, exist_ok=True)
        inside = {one.name for one in path.iterdir() if not one.name.startswith(".")}
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {reason(error)}; choose another -o") from error
    if inside and not inside & {FOLDER, "models"}:
        raise ConfigError(f"{path} holds something else than a comparison; give an empty or a new folder with -o")


def _write(folder: Path, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    """Write tables and page beside the rows, and return the JSON form."""
    from edgead.comparing.summary import group_rows, summarise
    from edgead.comparing.tables import markdown, to_csv
    from edgead.pages.compare_page import compare_page
    from edgead.runtime.errors import DataError
    from edgead.runtime.files import atomic_write
    from edgead.runtime.sinks.result_json import finite

    payload: dict[str, Any] = finite(summarise(rows, labels))
    files = {
        "compare.json": json.dumps(payload, indent=2, allow_nan=False) + "\n",
        "compare.csv": to_csv(rows),
        "table.md": markdown(payload),
        "compare.html": compare_page(payload, group_rows(rows, labels)),
    }
    for name, text in files.items():
        with atomic_write(folder / name, DataError) as stream:
            stream.write(text.encode("utf-8", "replace"))
    return payload


def _finish(out: Output, folder: Path, payload: dict[str, Any]) -> None:
    from edgead.cli._output import some, table
    from edgead.comparing.summary import unlike_normals
    from edgead.comparing.tables import cells
    from edgead.metrics.shares import RATES
    from edgead.runtime.errors import DataError, ParityError

    for one in payload["summary"]:
        if one["random_weights"]:
            out.warn(f"{one['category']} {one['label']}: THE BACKBONE HAS RANDOM WEIGHTS")
        if one["latency_missing"]:
            out.warn(f"{one['category']} {one['label']}: no latency: {one['latency_missing']}")
    for text in unlike_normals(payload):
        out.warn(text)
    failed = payload["failed"]
    rows = [cells(one) for one in payload["summary"]]
    named = ("category", "detector", "seeds")
    apart = 3 + len(RATES) + 2  # where AUROC begins in a line
    decided = ["escapes", "false alarms", *(f"escapes at {rate * 100:g} %" for rate in RATES)]
    separation = ["image AUROC", "pixel", "AUPRO", "FAR at 0 escapes", "skipped", "MB", "fit s"]
    beside = ["network / camera to decision, ms", "changed decisions", "image AUROC minus first"]
    tables = [
        table(
            f"{folder}: means over seeds at the threshold, with 95 % intervals; at 0 to 5 % false alarms, what the "
            "scores allow by a threshold that is chosen on these test images",
            [*named, *decided],
            [row[:apart] for row in rows],
            text_columns=2,
        ),
        table(
            "Separation by the scores: means over seeds; image AUROC with its 95 % interval",
            [*named[:2], *separation],
            [[*row[:2], *row[apart : apart + 7]] for row in rows],
            text_columns=2,
        ),
        table(
            "Beside it",
            [*named[:2], *beside],
            [[*row[:2], row[apart + 7], row[apart + 8], row[apart + 10]] for row in rows],
            text_columns=2,
        ),
    ]
    out.finish(payload, *(tables if rows else ()))
    reasons = some([f"{one['category']} {one['label']} seed {one['seed']}: {one['error']}" for one in failed])
    if failed and not payload["summary"]:
        raise DataError(f"nothing could be measured: {reasons}")
    if failed:
        raise ParityError(f"{len(failed)} of {len(payload['rows'])} rows failed: {reasons}")


@command("report", panel=PANEL, trusts=True, example="edgead report plate.edgead parts/plate -o report.html")
def report(
    out: Output,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR|BUNDLE", help="What fit or export wrote.", show_default=False)
    ],
    category: Annotated[
        Path,
        typer.Argument(metavar="CATEGORY_DIR", help="Folder with test/good and test/<defect>.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="REPORT.html", help="Where the page goes.", show_default=False)
    ],
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    frames: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Frames of the latency measurement.")
    ] = 100,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Measure no latency.")] = False,
) -> None:
    """Write one page on a model: scores, ROC, heat maps of the images that tell most, parity and latency.

    The page needs no network and no other file.
    """
    from edgead.runtime.errors import ConfigError, DataError
    from edgead.runtime.files import atomic_write

    if output.is_dir():
        raise ConfigError(f"{output} is a folder; give -o a file such as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise ConfigError(f"the folder {output.parent} does not exist; make it or choose another -o")
    require("train", "scipy", "matplotlib")
    if model.is_dir():
        require("train", "torch", "torchvision", "timm", "safetensors")
    from edgead.pages.report_page import report_page
    from edgead.reporting import make_report
    from edgead.runtime.sinks.result_json import finite

    with out.progress() as step:
        made = make_report(
            model,
            category,
            backend=backend,
            threads=threads,
            frames=0 if no_latency else frames,
            progress=step,
        )
    page = report_page(made).encode("utf-8", "replace")
    with atomic_write(output, DataError) as stream:
        stream.write(page)
    payload = {**finite(made.to_dict()), "page": str(output), "page_bytes": len(page)}
    out.finish(payload, _report_table(made, output, len(page)))


def _report_table(made: Report, output: Path, size: int) -> Any:
    from edgead.cli._output import listing

    found, decisions = made.evaluation, made.evaluation.decisions
    auroc, escapes, alarms = found.image_auroc, decisions.escape_share, decisions.false_alarm_share
    allowed = ", ".join(f"{point.escapes.count} at {point.rate * 100:g} %" for point in found.allowed)
    rows = {
        "escapes": f"{escapes.count} of {escapes.n} defective, {escapes.percent}, 95 % interval {escapes.interval}",
        "false alarms": f"{alarms.count} of {alarms.n} good, {alarms.percent}, 95 % interval {alarms.interval}",
        "allowed escapes": f"{allowed or 'none'} false alarms, by thresholds chosen on these test images",
        "image AUROC": f"{auroc.value:.4f}, 95 % interval {auroc.low:.4f} to {auroc.high:.4f}",
        "threshold": made.about.threshold.explain(),
    }
    if decisions.not_inspected:
        rows["not inspected"] = str(decisions.not_inspected)
    if made.latency_missing:
        rows["latency"] = f"not measured: {made.latency_missing}"
    return listing(f"Wrote {output} ({size / 1e6:.1f} MB): {made.about.name} on {found.name}", rows)
