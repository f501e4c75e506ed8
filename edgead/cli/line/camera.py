"""``edgead run``, ``edgead capture`` and ``edgead calibrate``: what works with a camera."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import (
    BackendOption,
    BundleArgument,
    PrecisionOption,
    RateOption,
    RecordOption,
    ServeTokenOption,
    ShadowOption,
    ThreadsOption,
    UpdatesOption,
    page_token,
    run_command,
)
from edgead.cli._profiles import ProfileOption, profile_place
from edgead.cli.device import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.runtime.dashboard.sink import LivePage
    from edgead.runtime.device.recalibration_report import CalibrationReport
    from edgead.runtime.inspection.inspector import Inspector
    from edgead.runtime.inspection.shadow import ShadowReport
    from edgead.runtime.journal.sink import RecordSink
    from edgead.runtime.status.summary import StreamSummary

_SourceOption = Annotated[
    str,
    typer.Option(
        "--source", metavar="URI", help="0, rtsp://…, synthetic://, a folder, a video, an image.", show_default=False
    ),
]
_IntervalOption = Annotated[
    float,
    typer.Option("--interval", min=0, metavar="S", help="Minimum interval in seconds between two images of a camera."),
]


@command(
    "run",
    panel=PANEL,
    trusts=True,
    example="edgead run plate.edgead --source '0?policy=every' --sink results.jsonl --sink images:out",
)
# More than six parameters: typer reads the options from them, one each.
def run(
    out: Output,
    bundle: BundleArgument,
    source: Annotated[
        list[str],
        typer.Option(metavar="URI", help="0, rtsp://…, watch://DIR, a folder, a video; repeat it.", show_default=False),
    ],
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="results.jsonl, jsonl:- (the terminal), images:DIR, video:DIR, mqtt://…, webhook+https://…",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds to capture.", show_default="to the end")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Results to give.", show_default="no limit")
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    profile: ProfileOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a source that cannot be opened yet.")] = False,
    batch: Annotated[
        int, typer.Option(min=1, max=256, metavar="N", help="Frames judged in one run, of all sources together.")
    ] = 1,
    batch_deadline: Annotated[
        float, typer.Option("--batch-deadline-ms", min=0, metavar="D", help="How long a frame waits for others.")
    ] = 5.0,
    self_test_every: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="H", help="Hours between replays of the references.", show_default="never"),
    ] = None,
    hang: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds after which a frame is given up; at 6 times, the run.")
    ] = 10.0,
    known_good: Annotated[
        bool,
        typer.Option(
            "--known-good", help="All parts of this run are good: warn if the promised false-alarm rate does not hold."
        ),
    ] = False,
    show_pipeline: Annotated[
        bool, typer.Option("--show-pipeline", help="Print the GStreamer pipelines of csi:// sources, and end.")
    ] = False,
    serve: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Live page for browsers, such as 127.0.0.1:8080.", show_default=False),
    ] = None,
    serve_token: ServeTokenOption = None,
    serve_audit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Let the page change thresholds, and write down who did.", show_default=False
        ),
    ] = None,
    record: RecordOption = None,
    shadow: ShadowOption = None,
    updates: UpdatesOption = None,
) -> None:
    """Judge frames until the source ends or Ctrl-C, then print the summary.

    A source takes ?policy=newest (a live one's default: the newest frame, the others are counted) or ?policy=every,
    and ?max_age=0.5 (seconds). A camera that is lost is opened again for as long as it takes. SIGHUP continues with the
    bundle as it then is on the disk, without losing a frame; SIGUSR1 replays the references between frames, and nothing
    is inspected while they come out wrong. What --record keeps is read by edgead record and edgead replay.
    """
    if show_pipeline:
        _show_pipelines(out, source)
        return
    from edgead.cli.line._streaming import Ends, run_stream
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.inspection.run_config import RunConfig
    from edgead.runtime.streaming.config import StreamConfig
    from edgead.runtime.streaming.grabber import Survival

    sinks = sink or []
    taken = any(uri.lower().replace("//", "").split("?")[0] == "jsonl:-" for uri in sinks)
    if taken and out.as_json:
        raise ConfigError("--json and --sink jsonl:- both want stdout; write the results to a file")
    page = None
    if serve is not None:
        # Read before anything is opened: a mistake is said at once.
        token = page_token(serve_token)
        page = partial(_live_page, serve, token, serve_audit)
    elif serve_token is not None or serve_audit is not None:
        raise ConfigError("--serve-token and --serve-audit belong to --serve ADDRESS")
    summary, shadowed = run_stream(
        out,
        bundle,
        Ends(source, sinks, page, watch=not taken, record=record, shadow=shadow, updates=updates),
        RunConfig(backend, precision, threads, profile=profile_place(profile)),
        StreamConfig(
            max_frames=max_frames,
            duration_s=duration,
            batch=batch,
            batch_deadline_s=batch_deadline / 1e3,
            hang_s=hang,
            give_up_s=6 * hang,
            survival=Survival(wait=wait),
            self_test_hours=self_test_every,
            known_good=known_good,
        ),
    )
    _report(out, summary, shadowed, on_stderr=taken)


def _report(out: Output, summary: StreamSummary, shadow: ShadowReport | None, *, on_stderr: bool) -> None:
    """Say how a run went.

    Raises:
        StreamFailed: it ended before it should.
    """
    from edgead.cli._output import some
    from edgead.cli.line.run_tables import run_tables
    from edgead.runtime.errors import StreamFailed

    for report in summary.sinks:
        if report.failed or report.missed:
            why = f": {report.last_error}" if report.last_error else ""
            out.warn(
                f"{report.name} failed {report.failed} and missed {report.missed} of {report.accepted} results{why}"
            )
    for state in summary.drift:
        if state.drifting:
            out.warn(state.explain())
    for promise in summary.promise:
        (out.warn if promise.broken else out.note)(promise.explain())
    payload = {**summary.to_dict(), **({} if shadow is None else {"shadow": shadow.to_dict()})}
    out.finish(payload, *run_tables(summary, shadow), on_stderr=on_stderr)
    if summary.error is not None:
        raise StreamFailed(summary.error)
    if summary.errors:
        raise StreamFailed(some(summary.errors))


def _show_pipelines(out: Output, sources: list[str]) -> None:
    from edgead.cli._output import listing
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.sources import parse_address
    from edgead.runtime.sources.csi import pipeline_text

    addresses = [parse_address(uri) for uri in sources]
    found = {a.source_id: pipeline_text(a.location, a.parameters) for a in addresses if a.scheme == "csi"}
    if not found:
        raise ConfigError("--show-pipeline shows those of csi:// sources, and none is given; try --source csi://0")
    out.finish({"schema": "edgead.pipelines/1", "pipelines": found}, listing("GStreamer pipelines", found))


def _live_page(
    listen: str, token: str | None, audit: Path | None, inspector: Inspector, record: RecordSink | None
) -> LivePage:
    from edgead.runtime.dashboard.audit import AuditLog, AuditLogs
    from edgead.runtime.dashboard.review import ReviewDesk
    from edgead.runtime.dashboard.sink import LivePage
    from edgead.runtime.inspection.takeover import TakeOver

    both = audit if audit is None or record is None else AuditLogs(AuditLog(audit), record)
    page = LivePage(listen, token=token, control=inspector, audit=both)
    if record is not None:
        page.desk = ReviewDesk(record.journal, TakeOver(inspector, record))
    return page


@command("capture", panel=PANEL, example="edgead capture --source 0 -n 100 --interval 1 -o parts/plate/train/good")
def capture(
    out: Output,
    source: _SourceOption,
    count: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Images to take.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder, such as …/train/good.", show_default=False)
    ],
    interval: _IntervalOption = 0.0,
) -> None:
    """Take images of normal parts with the camera that will inspect; no image is ever replaced."""
    from edgead.cli._output import MOST_ALIKE, listing
    from edgead.runtime.device.capture import Photo
    from edgead.runtime.device.capture import capture as take
    from edgead.runtime.errors import SourceError

    saved = doubtful = 0
    with out.progress() as step:

        def on_photo(photo: Photo) -> None:
            nonlocal saved, doubtful
            saved += 1
            step("photos", saved, count)
            if photo.warning:
                doubtful += 1
                if doubtful <= MOST_ALIKE:
                    out.warn(f"{photo.name}: {photo.warning}")

        summary = take(source, count, output, min_interval_s=interval, on_photo=on_photo)
    if doubtful > MOST_ALIKE:
        out.warn(f"and {doubtful - MOST_ALIKE:,} more images with a warning; --json has them all")
    if not summary.saved:
        raise SourceError(f"{summary.source_id} gave no image ({summary.unreadable} frames could not be read)")
    if summary.saved < summary.wanted:
        out.warn(f"{summary.source_id} ended after {summary.saved} of {summary.wanted} images")
    rows = {
        "photos": f"{summary.saved} of {summary.wanted}, in {summary.directory}",
        "with a warning": str(len(summary.warnings)),
        "unreadable frames": str(summary.unreadable),
    }
    out.finish(summary.to_dict(), listing(f"Captured from {summary.source_id}", rows))


@command(
    "calibrate",
    panel=PANEL,
    trusts=True,
    example="edgead calibrate plate.edgead --source 0 -n 200 --interval 1 -o line3.edgead",
)
# More than six parameters: typer reads the options from them, one each.
def calibrate(
    out: Output,
    bundle: BundleArgument,
    source: _SourceOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NEW.edgead", help="May be the bundle itself.", show_default=False),
    ],
    count: Annotated[
        int | None,
        typer.Option("-n", min=2, metavar="N", help="Good parts to take.", show_default="all; of a camera 100 or more"),
    ] = None,
    false_alarm_rate: RateOption = None,
    interval: _IntervalOption = 0.0,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Set the thresholds of a bundle again, from good parts before this camera."""
    from edgead.runtime.bundle.writing import check_bundle_path

    check_bundle_path(output)
    from edgead.runtime.device.recalibration import calibrate_bundle

    with out.progress() as step:
        report = calibrate_bundle(
            bundle,
            source,
            output,
            n=count,
            false_alarm_rate=false_alarm_rate,
            min_interval_s=interval,
            backend=backend,
            threads=threads,
            progress=lambda done, total: step("good parts", done, total),
        )
    for warning in report.warnings:
        out.warn(warning)
    # Images of a folder have been judged; a camera goes on.
    following = () if Path(source).exists() else run_command(output, source)
    out.finish(report.to_dict(), _calibration_table(report), next_command=following)


def _calibration_table(report: CalibrationReport) -> Any:
    from edgead.cli._output import listing

    rows = {"good parts": f"{report.images} from {report.source}", "backend": str(report.backend["name"])}
    for key, threshold in report.new.items():
        old = report.old[key]
        rejected = f"it rejected {report.rejected_before[key]} of these {threshold.n_normals}"
        rows[key] = threshold.explain()
        origin = f"from {old.n_normals} good parts" if old.n_normals else "imported with the model"
        rows[f"{key} before"] = f"threshold {old.value:.6g} {origin}; {rejected}"
    return listing(f"Wrote {report.out}", rows)
