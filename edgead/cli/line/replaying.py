"""``edgead replay``: parts of a record judged again, by the bundle that judged them or by another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import PrecisionOption, ThreadsOption
from edgead.cli.device import PANEL
from edgead.cli.line._selection import PartOption, RecordArgument, Selection, SinceOption, UntilOption, shown_time
from edgead.cli.terminal.completion import complete_backend

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.runtime.device.rejudge import Rejudged, ReplayReport
    from edgead.runtime.frame import Frame

_SHOWN = 20
_PICTURES = 200  # a page of more would be no page any more


@command(
    "replay", panel=PANEL, trusts=True, example="edgead replay line3 --since 2d --bundle new.edgead -o changed.html"
)
# More than six parameters: typer reads the options from them, one each.
def replay(
    out: Output,
    folder: RecordArgument,
    part: PartOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW.edgead", help="Judge with this one instead.", show_default="the bundle that judged each part"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="The changed decisions with pictures."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What runs the network.",
            show_default="what ran it then; of a new bundle: auto",
            autocompletion=complete_backend,
        ),
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Judge recorded parts again from their stored pixels, and say what comes out otherwise.

    With the bundle, backend and threads of then, decision, score and anomaly map must be the same to the bit; exits
    with 3 where they are not, and with --bundle where a decision is another one.
    """
    from edgead.runtime.device.rejudge import Replay
    from edgead.runtime.errors import ConfigError, ParityError
    from edgead.runtime.inspection.run_config import RunConfig
    from edgead.runtime.journal.reader import JournalReader

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {output} must end in .html")
    selection = Selection.parse(part, since, until)
    config = None
    if bundle is not None or backend is not None or precision is not None or threads is not None:
        config = RunConfig(backend or "auto", precision, threads)
    pictures: dict[int, tuple[bytes, bytes]] = {}

    def keep(one: Rejudged, frame: Frame) -> None:
        if output is not None and len(pictures) < _PICTURES:
            pictures[one.row.seq] = _pictures(one, frame)

    with JournalReader(folder) as reader, out.progress() as step:
        total = sum(1 for _ in selection.parts(reader))
        if not total:
            raise ConfigError(f"the record {folder} has no such part; see: edgead record show {folder}")
        with Replay(reader, bundle, config, keep) as again:
            again.judge(selection.parts(reader), lambda done: step("parts", done, max(done, total)))
            report = again.report
    if output is not None:
        _write_page(output, report, pictures)
    out.warn_all(report.problems)
    out.finish(report.to_dict(), *_tables(report))
    if not report.judged:
        raise ConfigError(
            f"none of the {report.parts} parts has an image and was judged by a bundle; none was replayed"
        )
    if not report.same:
        raise ParityError(_what_differs(report))


def _what_differs(report: ReplayReport) -> str:
    if report.problems:
        return f"{len(report.problems)} parts could not be judged again: {report.problems[0]}"
    if report.changed:
        return f"{len(report.changed)} of {report.judged} decisions are other ones now"
    return (
        f"all {report.judged} decisions are the same, but {len(report.inexact)} scores or maps are not to the bit "
        f"(scores by {report.max_score_difference:.3g} at most): another processor, library or number of threads"
    )


def _tables(report: ReplayReport) -> list[Any]:
    from edgead.cli._output import listing, number, table

    rows = {
        "parts": f"{report.parts}; {report.judged} judged again, {report.without_image} without a stored image, "
        f"{report.not_judged} that no bundle had judged",
        "decisions": f"{len(report.changed)} changed",
    }
    if report.bundle is None:
        rows["scores"] = f"differ by {number(report.max_score_difference)} at most"
        rows["to the bit"] = f"{report.judged - len(report.changed) - len(report.inexact)} of {report.judged}"
    rows |= {f"backend {place}": text for place, text in enumerate(report.backends, 1)}
    if report.compared is not None:
        rows |= {f"known {place}": claim for place, claim in enumerate(report.compared.claims(), 1)}
    for label, counts in sorted(report.labelled.items()):
        rows[f"labelled {label}"] = f"{counts['parts']}, rejected {counts['rejected']}, now {counts['rejected_now']}"
    tables = [listing(f"{'SAME' if report.same else 'DIFFERENT'}: {report.folder}", rows)]
    if report.changed:
        cells = [
            [
                str(one.row.seq),
                shown_time(one.row.time_ms),
                one.row.part or "",
                f"{one.row.decision} {number(one.row.score)}",
                f"{one.result.decision} {number(one.result.to_dict()['score'])}",
                ", ".join(one.labels),
            ]
            for one in report.changed[:_SHOWN]
        ]
        title = f"Changed decisions, {min(_SHOWN, len(report.changed))} of {len(report.changed)}"
        tables.append(table(title, ["row", "time", "part", "was", "is now", "labels"], cells, text_columns=6))
    return tables


def _pictures(one: Rejudged, frame: Frame) -> tuple[bytes, bytes]:
    """Return the part, and the part with the heat map of now, as small JPEG files."""
    import io

    from PIL import Image

    from edgead.runtime.imaging.heatmap import overlay

    rgb = frame.to_rgb()
    made = []
    for pixels in (rgb, rgb if one.result.map is None else overlay(rgb, one.result)):
        small = Image.fromarray(pixels)
        small.thumbnail((480, 480))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made[0], made[1]


def _write_page(output: Path, report: ReplayReport, pictures: dict[int, tuple[bytes, bytes]]) -> None:
    from edgead.pages.replay_page import replay_page
    from edgead.runtime.errors import DataError
    from edgead.runtime.files import atomic_write

    page = replay_page(report, pictures)
    with atomic_write(output, DataError) as stream:
        stream.write(page.encode())
