"""``edgead tune``: what should run a bundle on this device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import calibration_cache, parse_frame_size, require
from edgead.cli._profiles import place_to_write
from edgead.cli.device import PANEL
from edgead.cli.terminal.completion import complete_backend, complete_precision

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgead.cli._output import Output
    from edgead.runtime.device.tuning.evaluation import Picture
    from edgead.runtime.device.tuning.report import BundleFacts, Candidate, TuneReport
    from edgead.tuning.refitting import Refit, Refitting


@command(
    "tune",
    panel=PANEL,
    trusts=True,
    example="edgead tune plate.edgead --normals images/good --budget-ms 15 --budget-mb 300",
)
def tune(
    out: Output,
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="NAME.edgead...",
            help="The bundle; several: the same parts at other sizes, with other banks.",
            show_default=False,
        ),
    ],
    budget_ms: Annotated[
        float | None,
        typer.Option(metavar="X", help="Most milliseconds (median), camera to decision.", show_default="no limit"),
    ] = None,
    budget_mb: Annotated[
        float | None,
        typer.Option(metavar="Y", help="Maximum memory of its process, MB of 10^6 bytes.", show_default="no limit"),
    ] = None,
    normals: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Good parts that the model has not seen, to plant defects on; repeat it.",
            show_default="the bundle's references",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="More pictures that must be decided as in fp32; repeat it.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to try; repeat it.",
            show_default="all installed ones",
            autocompletion=complete_backend,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Graphs to try; repeat it.",
            show_default="those made for each backend",
            autocompletion=complete_precision,
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Numbers of CPU threads to try; repeat it.", show_default="1 to cores"),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Counted frames for each.")] = 100,
    frame_size: Annotated[str, typer.Option(metavar="WxH", help="Size of the camera's frames.")] = "1280x1024",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE|off",
            help="Where the choice goes: a folder, or a file that ends in .json; off: nowhere.",
            show_default="EDGEAD_PROFILES, or ~/.config/edgead/profiles",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL_DIR",
            help="The bundle's model: fit it again at smaller sizes and with cheaper settings, too.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(metavar="CATEGORY_DIR", help="With --model: what it was fitted on.", show_default=False),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="With --model: sizes to try, pixels of the height; repeat it.",
            show_default="1, 3/4 and 1/2 of it",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NEW.edgead",
            help="With --model: where the bundle of another size or setting goes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what can run a bundle on this device, and write the best into the device profile that 'run' uses.

    Backend, precision, threads and native code in every combination: milliseconds, memory, and whether it decides as
    the model was validated; what changes a decision is out. Network size and memory bank are tried where several
    bundles are given, or the model that it came from. Exits with 3 where nothing keeps within the budgets.
    """
    again = _again(bundles, model, train, size, output)
    from edgead.runtime.bundle.trust import trusting
    from edgead.runtime.device.tuning.tune import TuneOptions
    from edgead.runtime.device.tuning.tune import tune as measure
    from edgead.runtime.errors import BudgetError
    from edgead.tuning.tuning import find_good

    camera, place = parse_frame_size(frame_size), place_to_write(profile)
    good, unknown = find_good(bundles, normals or ())
    for name in unknown:
        out.warn(f"{name} does not say which images it was trained on; make sure that it has not seen those")
    options = TuneOptions(
        budget_ms=budget_ms,
        budget_mb=budget_mb,
        backends=backend or (),
        precisions=precision or (),
        threads=threads or (),
        frames=frames,
        frame_size=camera,
    )
    refit = None
    with out.progress() as step:

        def measured(paths: Sequence[Path]) -> TuneReport:
            return measure(paths, options, pictures=_pictures(paths, good, images or ()), progress=step)

        report = measured(bundles)
        if again is not None:
            # The given bundle was trusted by now; those made here from it are signed by whoever releases one.
            with trusting(None):
                refit = again.compare(again.plan(size or ()), report.best.setup.choice, options, progress=step)
                if refit.chosen is not None and refit.changed and output is not None:
                    again.write(refit.chosen, output)
                    report = measured([output])
    for reason, names in _by_reason(report.skipped | ({} if refit is None else refit.skipped)).items():
        out.note(f"omitted {', '.join(names)}: {reason}")
    written = None
    found = report.profile()
    if found is not None and place is not None:
        written = found.save(place)
    payload = {**report.to_dict(), "profile": None if written is None else str(written)}
    payload["refit"] = None if refit is None else refit.to_dict()
    shown = [] if refit is None else _refit_tables(refit, output)
    out.finish(payload, *shown, *_tables(report, written))
    if report.problem is not None:
        raise BudgetError(report.problem)


def _again(
    bundles: Sequence[Path], model: Path | None, train: Path | None, sizes: Sequence[int] | None, output: Path | None
) -> Refitting | None:
    """Return the model to fit again, None where none is given."""
    from edgead.runtime.bundle.writing import check_bundle_path
    from edgead.runtime.errors import ConfigError

    if model is None:
        if train is not None or sizes or output is not None:
            raise ConfigError("--train, --size and --output belong to --model MODEL_DIR")
        return None
    if train is None or output is None or len(bundles) != 1:
        raise ConfigError("--model takes one bundle, --train CATEGORY_DIR and -o NEW.edgead")
    if check_bundle_path(output).absolute() == bundles[0].absolute():
        raise ConfigError("-o NEW.edgead is another file than the bundle; the old one stays as it is")
    require("export", "torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "scipy")
    from edgead.tuning.refitting import Refitting

    return Refitting(bundles[0], model, train, calibration_cache())


def _pictures(bundles: Sequence[Path], good: Sequence[Path], images: Sequence[Path]) -> Iterator[Picture]:
    from edgead.runtime.bundle.bundle import Bundle
    from edgead.tuning.tuning import good_pictures, other_pictures

    with Bundle.open(bundles[0]) as bundle:
        region, bits = bundle.region(), bundle.manifest.input.bits
    if good:
        yield from good_pictures(good, region, bits=bits)
    yield from other_pictures(images, bits)


def _by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        found.setdefault(reason, []).append(name)
    return found


def _tables(report: TuneReport, written: Path | None) -> list[Any]:
    from edgead.cli._output import listing, table

    order = sorted(range(len(report.candidates)), key=lambda index: _place(report.candidates[index]))
    several = len(report.bundles) > 1
    rows = [_row(report, index, several) for index in order]
    width, height = report.frame_size
    limits = ((report.budget_ms, "ms"), (report.budget_mb, "MB"))
    budget = ", ".join(f"{value:g} {unit}" for value, unit in limits if value is not None) or "none"
    judged = report.pictures
    seen = f"{judged['references']} references"
    if judged["planted"]:
        seen += f", {judged['good']} good parts the model has not seen, {judged['planted']} planted defects on them"
    else:
        seen += " (good ones that the model was trained on, so their AUROC flatters; --normals DIR gives others)"
    if judged["other"]:
        seen += f", {judged['other']} more pictures"
    facts = {
        "budget": budget,
        "judged by": seen,
        "machine": f"{report.machine['cpu']}, {report.machine['cores']} cores, {report.machine['system']}",
    }
    chosen = report.chosen
    if chosen is not None:
        where = f" with {report.bundles[chosen.bundle].path}" if several else ""
        facts["choice"] = f"{chosen.setup.name}{where}"
        facts["profile"] = "not written" if written is None else f"{written}; 'edgead run' uses it on this device"
    return [
        table(
            f"Camera to decision in ms, {report.frames} frames of {width}x{height}; * on the Pareto front, > chosen",
            _headings(several),
            rows,
            text_columns=3 if several else 2,
        ),
        listing("Tuned", facts),
    ]


def _place(one: Candidate) -> tuple[bool, float]:
    return one.judgement.excluded is not None, math.inf if one.latency is None else one.latency.p50


def _refit_tables(refit: Refit, output: Path | None) -> list[Any]:
    from edgead.cli._output import listing, table

    report = refit.report
    order = sorted(range(len(report.candidates)), key=lambda index: _place(report.candidates[index]))
    rows = [_row(report, index, True) for index in order if report.candidates[index].setup.eligible]
    facts = {
        "fitted on": f"{refit.fitted} good images, judged by {refit.held_out} others and planted defects on them",
        "choice": refit.chosen.label if refit.chosen else report.problem or "",
    }
    if refit.changed:
        facts["written"] = f"{output}, fitted on all images"
    elif refit.chosen is not None:
        facts["written"] = "nothing: the bundle as it is"
    title = "Sizes and settings; * on the Pareto front, > chosen"
    return [table(title, _headings(True), rows, text_columns=3), listing("Fitted again", facts)]


def _headings(several: bool) -> list[str]:
    return ["", *(["bundle"] if several else []), "combination", "ms", "p99", "MB", "AUROC", "drift", "remark"]


def _row(report: TuneReport, index: int, several: bool) -> list[RenderableType]:
    from rich.text import Text

    from edgead.cli._output import milliseconds, number

    one = report.candidates[index]
    judged = one.judgement
    marks = (">" if index == report.choice else "") + ("*" if one.front else "")
    bundle = report.bundles[one.bundle]
    return [
        marks,
        *([_bundle_name(bundle)] if several else []),
        one.setup.name,
        milliseconds(one.latency.p50 if one.latency else None),
        milliseconds(one.latency.p99 if one.latency else None),
        "-" if one.peak_mb is None else f"{one.peak_mb:.0f}",
        "-" if judged.auroc is None else f"{judged.auroc:.4f}",
        number(judged.drift, 2),
        Text(_remark(one), justify="left"),
    ]


def _bundle_name(bundle: BundleFacts) -> str:
    size, name = f"{bundle.height}x{bundle.width}", Path(bundle.path).stem
    return name if size in name else f"{name} ({size})"


def _remark(one: Candidate) -> str:
    if one.judgement.excluded is not None:
        return f"must not be used: {one.judgement.excluded}"
    parts = ["what runs without a profile"] if one.setup.plain else []
    if not one.fits and one.usable:
        parts.append("over the budget")
    if one.judgement.borderline:
        parts.append(f"{one.judgement.borderline} borderline")
    return ", ".join(parts)
