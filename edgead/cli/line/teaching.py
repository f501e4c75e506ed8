"""``edgead teach``: a model learns from labelled parts, and is written only where nothing gets worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import BackendOption, PrecisionOption, require
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.teaching import TeachReport


@command(
    "teach",
    panel=PANEL,
    trusts=True,
    example="edgead teach plate.model parts/plate --record line3 -o plate.next.edgead --page lesson.html",
)
# More than six parameters: typer reads the options from them, one each.
def teach(
    out: Output,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What 'edgead fit' wrote.", show_default=False)],
    images: Annotated[
        Path, typer.Argument(metavar="CATEGORY_DIR", help="The images that it was fitted on.", show_default=False)
    ],
    record: Annotated[
        Path, typer.Option(metavar="DIR", help="Record with labelled parts (run --record).", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="NEW.edgead",
            help="New bundle; NEW.model and NEW.images go beside it.",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.edgead", help="The bundle to replace.", show_default="the newest of the record made from MODEL"
        ),
    ] = None,
    defects: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The --defects of its fit, where it had one.", show_default=False),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="row:N=REASON",
            help="Let a labelled part be decided worse, by row:N or part:ID; repeat it.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who answers for the waivers.", show_default=False)
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, max=100_000, metavar="N", help="Unlabelled parts to compare old and new on.")
    ] = 200,
    page: Annotated[
        Path | None,
        typer.Option(metavar="LESSON.html", help="A page with the parts in the way.", show_default="no page"),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
) -> None:
    """Fit again with the parts that people confirmed, and prove on every labelled part that nothing right gets wrong.

    Exits with 3, and writes nothing, where a defect that was caught would pass or a good part would be rejected.
    """
    require("train", "torch", "torchvision", "timm", "safetensors")
    require("export", "onnx", "onnxscript")
    from edgead.runtime.errors import ConfigError, DataError, ParityError
    from edgead.runtime.files import atomic_write
    from edgead.teaching import TeachConfig
    from edgead.teaching import teach as learn

    if page is not None and not page.parent.is_dir():
        raise ConfigError(f"there is no folder {page.parent}; make it first")
    config = TeachConfig(bundle, backend, precision, defects, sample, _waivers(waive or ()), by)
    with out.progress() as step:
        report = learn(model, images, record, output, config, progress=step)
    payload = report.to_dict()
    if page is not None:
        from edgead.pages.teach_page import teach_page

        with atomic_write(page, DataError) as stream:
            stream.write(teach_page(report).encode("utf-8", "replace"))
        payload["page"] = str(page)
    out.finish(payload, *_tables(report))
    if not report.gate.passed:
        problems = report.gate.problems
        first = problems[0]
        way = (
            f"look at its label, or waive it: --waive 'row:{first.seq}=REASON' --by NAME"
            if first.seq
            else "look at the image, and take it away where it shows something else"
        )
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ParityError(f"refused, nothing was written: {first.name}: {first.problem}{more}; {way}")


def _waivers(texts: list[str] | tuple[()]) -> dict[str, str]:
    from edgead.runtime.errors import ConfigError

    found = {}
    for text in texts:
        part, separator, why = text.partition("=")
        if not separator or not part.strip():
            raise ConfigError(f"--waive takes row:N=REASON or part:ID=REASON, not '{text}'")
        found[part.strip()] = why.strip()
    return found


def _tables(report: TeachReport) -> list[Any]:
    from edgead.cli._output import listing, table

    found = report.to_dict()
    gate, lessons = found["gate"], report.lessons
    rows = [
        [text, f"{gate[name]['old']} of {gate[name]['parts']}", f"{gate[name]['new']} of {gate[name]['parts']}"]
        for name, text in (("false_alarms", "good parts that are rejected"), ("escapes", "defects that pass"))
    ]
    written = found["written"]["bundle"] if found["written"] else "nothing: refused"
    facts = {
        "learned": f"{len(lessons.good)} good parts, {len(lessons.defective)} defects",
        "threshold": report.after.explain(),
        "taught good parts": f"{report.still_rejected} of {report.scored} lie above the threshold when scored without "
        "their own image",
        "decided otherwise": f"{len(report.gate.changed)} of {report.gate.sampled} unlabelled parts, drawn at random, "
        "and the old bundle's references",
        "written": str(written),
        "seconds": f"{report.seconds:.1f}",
    }
    shown = [listing("What was taught", facts), table("Labelled parts", ["", "old", "new"], rows)]
    stand = [[one.name, one.problem or "", one.waived or ""] for one in report.gate.labelled if one.problem]
    if stand:
        shown.append(table("In the way", ["part", "why", "waived"], stand[:20]))
    return shown
