"""``edgead record verify`` and ``edgead record show``: whether a record is whole, and what is in it."""

from __future__ import annotations

import re
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli.device import PANEL
from edgead.cli.line._selection import PartOption, RecordArgument, Selection, SinceOption, UntilOption, shown_time

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.runtime.journal.rows import Row
    from edgead.runtime.journal.verify import VerifyReport

_SHOWN = 20


class _Action(str, Enum):
    verify = "verify"
    show = "show"


@command("record", panel=PANEL, example="edgead record show line3 --part 4711")
# More than six parameters: typer reads the options from them, one each.
def record(
    out: Output,
    action: Annotated[_Action, typer.Argument(help="verify: is it whole? show: what is in it?", show_default=False)],
    folder: RecordArgument,
    part: PartOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Rows of one kind: part, label, bundle, gap, …")
    ] = None,
    limit: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Rows to show, the last ones.")] = _SHOWN,
    quick: Annotated[bool, typer.Option("--quick", help="Verify rows; look only whether images are there.")] = False,
    head: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="A head that you kept: is it still in the chain?", show_default=False),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key that the head must be signed with.", show_default=False),
    ] = None,
) -> None:
    """Verify a record that edgead run --record wrote, or show its rows.

    Verify exits with 3 where a row was removed, altered, added or exchanged, an image is missing or holds other pixels
    than were judged, or the bundle that judged is not kept.
    """
    if action is _Action.verify:
        _verify(out, folder, quick, head, key)
    else:
        _show(out, folder, Selection.parse(part, since, until), kind, limit)


def _verify(out: Output, folder: Path, quick: bool, head: str | None, key: Path | None) -> None:
    from edgead.runtime.errors import ConfigError, ParityError
    from edgead.runtime.journal.verify import Known, verify
    from edgead.runtime.signing import read_public_key

    kept = None
    if head is not None:
        match = re.fullmatch(r"([0-9]{1,15}):([0-9a-f]{64})", head)
        if match is None:
            raise ConfigError("--head takes SEQ:HASH as 'edgead record verify' printed it")
        kept = int(match[1]), match[2]
    known = Known(kept, None if key is None else read_public_key(key))
    with out.progress() as step:
        report = verify(folder, images=not quick, known=known, progress=lambda done, total: step("rows", done, total))
    out.finish(report.to_dict(), _verify_table(folder, report))
    if report.problems:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise ParityError(f"the record {folder} is not whole: {report.problems[0]}{more}")


def _verify_table(folder: Path, report: VerifyReport) -> Any:
    from edgead.cli._output import listing

    rows = {
        "rows": f"{report.rows}, from {report.first} to {report.head}; {report.removed} removed by its limits before",
        "images": f"{report.images} compared with their rows; {report.images_removed} removed by its limits",
        "bundles": str(report.bundles),
        "head": f"{report.head}:{report.head_hash}",
        "signature": report.signature,
    }
    for number, problem in enumerate(report.problems[:_SHOWN], 1):
        rows[f"problem {number}"] = problem
    if len(report.problems) > _SHOWN:
        rows["more problems"] = str(len(report.problems) - _SHOWN)
    return listing(f"{'WHOLE' if not report.problems else 'NOT WHOLE'}: {folder}", rows)


def _show(out: Output, folder: Path, selection: Selection, kind: str | None, limit: int) -> None:
    from dataclasses import asdict

    from edgead.cli._output import table
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.journal.reader import JournalReader

    with JournalReader(folder) as reader:
        rows = reader.last(limit, kind, **asdict(selection))
        if not rows and selection.part is not None:
            raise ConfigError(f"the record {folder} has no part '{selection.part}' in that time")
        said = {row.seq: [label.to_dict() for label in reader.labels(row.seq)] for row in rows if row.kind == "part"}
        payload = {
            "schema": "edgead.record/1",
            "folder": str(folder),
            "counts": reader.counts(),
            "rows": [{**row.to_dict(), **({"labels": said[row.seq]} if said.get(row.seq) else {})} for row in rows],
        }
    out.finish(
        payload,
        table(
            f"The last {len(rows)} rows of {folder}",
            ["row", "time", "what", "part", "decision", "score", "more"],
            [_cells(row) for row in rows],
            text_columns=7,
        ),
    )


def _cells(row: Row) -> list[str]:
    score = "" if row.score is None else f"{row.score:.6g}"
    if row.kind == "part":
        more = f"threshold {row.body.get('threshold')}, {row.body.get('source')} frame {row.body.get('frame')}"
        more += f", {row.body['reason']}" if "reason" in row.body else ""
    else:
        pairs = islice(row.body.items(), 8)
        more = ", ".join(f"{name} {value}" for name, value in pairs)
        more = f"row {row.ref}: {more}" if row.ref is not None else more
    return [str(row.seq), shown_time(row.time_ms), row.kind, row.part or "", row.decision or "", score, more]
