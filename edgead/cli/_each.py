"""``edgead fit --each``: one model a category, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgead.cli._options import cluster_workers

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.fitting import FitConfig
    from edgead.fitting.each import FitRow, Fitting


def fit_each_category(
    out: Output, categories: Sequence[Path], folder: Path, config: FitConfig, ray: str | None, task: str | None
) -> None:
    """Fit a model of each category into ``folder``; exits with 3 where some failed, with 2 where all did."""
    from edgead.fitting.each import EachListener, fit_each, plan_each
    from edgead.model.model_card import CARD_FILE
    from edgead.runtime.errors import ConfigError

    if (folder / CARD_FILE).exists():
        raise ConfigError(f"{folder} is a model; with --each give -o a folder that holds the models")
    if ray is not None and config.budget_ms is not None:
        raise ConfigError("--budget-ms measures this machine, where --ray lets fits run at once; omit one of them")
    paths = [path.expanduser() if ray is None else path.expanduser().absolute() for path in categories]
    jobs, failed = plan_each(paths, config, folder if ray is None else folder.absolute())
    out.warn_all([f"{row.category} failed: {row.error}" for row in failed])
    _make_folder(folder)
    with ExitStack() as stack:
        on_nodes = ray is not None and jobs
        fitting = stack.enter_context(_on_nodes(out, ray or "", task, folder, paths)) if on_nodes else None
        step = stack.enter_context(out.progress())
        try:
            rows = fit_each(folder, jobs, EachListener(out.note, out.warn, step), fitting)
        except KeyboardInterrupt:
            out.note(f"stopped; the finished models are in {folder}, and the same command goes on from there")
            raise
    _finish(out, folder, [*rows, *failed])


@contextmanager
def _on_nodes(out: Output, ray: str, task: str | None, folder: Path, categories: Sequence[Path]) -> Iterator[Fitting]:
    from edgead.dispatch.node import SharedFolder
    from edgead.fitting.each import fit_elsewhere

    what = "the categories and the folder of the models"
    with (
        SharedFolder(folder) as shared,
        cluster_workers(out, ray, task, what, [folder.absolute(), *categories]) as workers,
    ):
        yield fit_elsewhere(workers, shared)


def _make_folder(path: Path) -> None:
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.files import reason

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {reason(error)}; choose another -o") from error


def _finish(out: Output, folder: Path, rows: Sequence[FitRow]) -> None:
    from edgead.cli._output import some, table
    from edgead.fitting.each import SCHEMA
    from edgead.runtime.errors import DataError, ParityError
    from edgead.runtime.files import atomic_write
    from edgead.runtime.sinks.result_json import finite

    failed = [row for row in rows if row.fit is None]
    payload = finite(
        {
            "schema": SCHEMA,
            "models": str(folder),
            "rows": [row.to_dict() for row in rows],
            "failed": [{"category": row.category, "error": row.error} for row in failed],
        }
    )
    with atomic_write(folder / "fits.json", DataError) as stream:
        stream.write((json.dumps(payload, indent=2, allow_nan=False) + "\n").encode("utf-8", "replace"))
    heads = ["category", "detector", "images", "threshold", "planted defects passed", "warnings", "seconds"]
    shown = [_cells(row, row.fit) for row in rows if row.fit is not None]
    out.finish(payload, *([table(f"{folder}: one model a category", heads, shown, text_columns=2)] if shown else ()))
    reasons = some([f"{row.category}: {row.error}" for row in failed])
    if failed and not shown:
        raise DataError(f"no category could be fitted: {reasons}")
    if failed:
        raise ParityError(f"{len(failed)} of {len(rows)} categories failed: {reasons}")


def _cells(row: FitRow, fit: dict[str, Any]) -> list[str]:
    from edgead.cli._output import number

    thresholds = [one["value"] for one in fit["thresholds"].values()]
    return [
        row.category,
        fit["detector"],
        str(fit["images"]),
        ", ".join(number(value, 5) for value in thresholds),
        "{passed} of {images}".format(**fit["planted_defects"]),
        str(len(row.warnings)),
        f"{fit['seconds']:.1f}",
    ]
