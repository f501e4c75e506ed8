"""``edgead check``, ``edgead bench`` and ``edgead doctor``: what this device can do, and whether it does it right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import BackendOption, BundleArgument, PrecisionOption, ThreadsOption, parse_frame_size
from edgead.cli._profiles import ProfileOption, default_place, profile_place
from edgead.cli.terminal.completion import complete_backend, complete_precision

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.runtime.device.bench_report import BenchReport, BenchRow
    from edgead.runtime.device.check import CheckReport

PANEL = "On the device"


@command(
    "check", panel=PANEL, trusts=True, example="edgead check plate.edgead --backend openvino --images parts/plate/test"
)
def check(
    out: Output,
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="More images to judge; repeat it.", show_default=False),
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    profile: ProfileOption = None,
) -> None:
    """Verify a bundle, and replay its reference images on this device: PASS or FAIL.

    Exits with 2 where the bundle is damaged, with 3 where this device decides otherwise than the model did.
    """
    from edgead.runtime.device.check import check_bundle
    from edgead.runtime.errors import ParityError

    place = profile_place(profile)
    with out.progress() as step:
        report = check_bundle(
            bundle,
            backend=backend,
            images=images or (),
            precision=precision,
            threads=threads,
            profile=place,
            progress=lambda done, total: step("replay", done, total),
        )
    if report.left_out is not None:
        out.warn(report.left_out)
    out.warn_all(list(report.images.unreadable.values()) if report.images else [])
    out.finish(report.to_dict(), _check_table(report))
    if not report.passed:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise ParityError(f"{bundle} fails the check on {report.backend.name}: {report.problems[0]}{more}")


def _check_table(report: CheckReport) -> Any:
    from edgead.cli._output import MOST_ALIKE, backend_text, listing, number

    changed = sum(r.decision is not r.expected_decision for r in report.references)
    rows = {
        "backend": f"{backend_text(report.backend.to_dict())}; {report.why}",
        "precision": report.precision,
        "references": f"{len(report.references)} images, {changed} decisions changed",
        "score differences": f"at most {number(report.max_score_difference)}; "
        f"{report.worst.name} uses {report.worst.excess:.1%} of what is allowed",
        "map differences": f"at most {number(report.max_map_difference)}",
        "threshold": f"{report.threshold:.6g}",
        "model": f"SHA-256 {report.model_sha256}",
    }
    if report.images is not None:
        counts = ", ".join(f"{count} {name}" for name, count in report.images.decisions.items())
        rows["images"] = f"{counts}; {len(report.images.not_finite)} without a finite score"
        if report.images.unreadable:
            rows["images"] += f"; {len(report.images.unreadable):,} unreadable"
    for number_, problem in enumerate(report.problems[:MOST_ALIKE], 1):
        rows[f"problem {number_}"] = problem
    if len(report.problems) > MOST_ALIKE:
        rows["more problems"] = f"{len(report.problems) - MOST_ALIKE:,}"
    return listing(f"{'PASS' if report.passed else 'FAIL'}: {report.bundle}", rows)


@command(
    "bench",
    panel=PANEL,
    trusts=True,
    example="edgead bench plate.edgead --backend onnxruntime --backend openvino --rate 30",
)
def bench(
    out: Output,
    bundle: BundleArgument,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to measure; repeat it.",
            show_default="all installed ones",
            autocompletion=complete_backend,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Graphs to measure; repeat it.",
            show_default="those made for each backend",
            autocompletion=complete_precision,
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Counted frames for each.")] = 200,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="FPS",
            help="Frames on a fixed schedule; latency counts from it.",
            show_default="one after the other",
        ),
    ] = None,
    frame_size: Annotated[str, typer.Option(metavar="WxH", help="Size of the camera's frames.")] = "1280x1024",
    threads: ThreadsOption = None,
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds to measure, in place of --frames.", show_default=False),
    ] = None,
    league: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a signed row of the league of devices (10 min).", show_default=False),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Private key that signs it.", show_default="one of your own, made once"),
    ] = None,
) -> None:
    """Measure latency from camera to decision and throughput, with the accuracy beside them."""
    from edgead.cli._league import LeagueOptions, bench_for_league
    from edgead.runtime.device.bench import bench as measure
    from edgead.runtime.errors import ConfigError

    size = parse_frame_size(frame_size)
    if league is not None:
        options = LeagueOptions(rate, size, threads, duration, league, key)
        bench_for_league(out, bundle, backend or [], precision or [], options)
        return
    if key is not None:
        raise ConfigError("--key signs a row of the league; add --league FILE")
    with out.progress() as step:
        report = measure(
            bundle,
            backends=backend or (),
            precisions=precision or (),
            frames=frames,
            rate_fps=rate,
            frame_size=size,
            threads=threads,
            duration_s=duration,
            progress=lambda done, total: step("frames" if duration is None else "seconds", done, total),
        )
    for name, reason in report.skipped.items():
        out.note(f"omitted {name}: {reason}")
    for row in report.rows:
        if row.accuracy.decision_changes:
            changed = ", ".join(row.accuracy.decision_changes)
            out.warn(f"{_row_name(row)} decides otherwise on {changed}; run: edgead check")
        if row.queued:
            out.warn(f"{_row_name(row)}: {row.queued} frames had to wait for the one before")
    out.finish(report.to_dict(), *_bench_tables(report))


def _bench_tables(report: BenchReport) -> list[Any]:
    from edgead.cli._output import backend_text, listing, milliseconds, number, table

    latency, accuracy = [], []
    for row in report.rows:
        name = _row_name(row)
        for label, times in {"camera to decision": row.latency, **row.stages}.items():
            if label == "wait" and report.rate_fps is None:
                continue
            figures = (times.p50, times.p95, times.p99, times.max)
            latency.append([name if times is row.latency else "", label, *map(milliseconds, figures)])
        changed = f"{len(row.accuracy.decision_changes)} of {row.accuracy.references}"
        difference = number(row.accuracy.max_score_difference)
        accuracy.append([name, f"{row.throughput_fps:.1f}", difference, changed, str(row.failed)])
    width, height = report.frame_size
    schedule = f"at {report.rate_fps:g} fps" if report.rate_fps else "one after the other"
    if report.duration_s is not None:
        schedule += f", {report.duration_s:g} s"
    return [
        table(
            f"Latency in ms, {report.frames} frames of {width}x{height}, {schedule}",
            ["backend", "stage", "p50", "p95", "p99", "max"],
            latency,
            text_columns=2,
        ),
        table(
            "Throughput, and the bundle's references beside torch",
            ["backend", "frames/s", "max score diff.", "changed decisions", "failed frames"],
            accuracy,
        ),
        listing(
            "On",
            {
                "machine": f"{report.machine['cpu']}, {report.machine['cores']} cores, {report.machine['system']}",
                **{_row_name(row): backend_text(row.backend.to_dict()) for row in report.rows},
                "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
                "model": f"SHA-256 {report.model_sha256}",
            },
        ),
    ]


def _row_name(row: BenchRow) -> str:
    # Of the graph file; a backend that computes in another precision has it in its name.
    return row.backend.name if row.precision == "fp32" else f"{row.backend.name} {row.precision}"


@command("doctor", panel=PANEL, example="edgead doctor")
def doctor(out: Output) -> None:
    """Say what this machine can run, and the exact command for what is missing."""
    from rich.text import Text

    from edgead.cli._output import table
    from edgead.runtime.device.doctor import diagnose

    rows = diagnose(default_place())
    styles = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    out.finish(
        {"schema": "edgead.doctor/2", "components": [row.to_dict() for row in rows]},
        table(
            "What this machine can run",
            ["component", "status", "found", "command that helps"],
            [[row.name, Text(row.status, styles[row.status]), row.detail, row.fix or ""] for row in rows],
            text_columns=4,
            unbroken=["command that helps"],
        ),
    )
