"""``edgead audit``: a look at the normal images before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import (
    AlignOption,
    BitsOption,
    MaskOption,
    RoiOption,
    SizeOption,
    parse_size,
    require,
)
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.auditing import AuditReport
    from edgead.cli._output import Output

_NAMED = 6  # names of a group of copies in the table


@command("audit", panel=PANEL, example="edgead audit parts/plate -o audit.html")
def audit(
    out: Output,
    category: Annotated[
        Path,
        typer.Argument(
            metavar="CATEGORY_DIR",
            help="Folder with train/good (or only normal images), or a CSV list.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="AUDIT.html", help="A page with pictures and heat maps.", show_default="no page"
        ),
    ] = None,
    size: SizeOption = None,
    roi: RoiOption = None,
    mask: MaskOption = None,
    align: AlignOption = False,
    bits: BitsOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides every random choice.")] = 0,
) -> None:
    """Find normal images that the others do not explain, copies, and images unlike the rest; nothing is changed.

    Give --roi, --mask, --align and --size as to 'edgead fit', so that what is looked at is what will be judged.
    """
    network_size = None if size is None else parse_size(size)
    require("train", "torch", "torchvision", "timm", "safetensors")
    from edgead.auditing import audit as look
    from edgead.runtime.errors import ConfigError, DataError
    from edgead.runtime.files import atomic_write
    from edgead.runtime.imaging.roi import parse_box

    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent}; make it first")
    with out.progress() as step:
        report = look(
            category,
            size=network_size,
            roi=None if roi is None else parse_box(roi),
            mask=mask,
            align=align,
            bits=bits,
            seed=seed,
            progress=step,
        )
    payload = report.to_dict()
    if output is not None:
        from edgead.pages.audit_page import audit_page

        with atomic_write(output, DataError) as stream:
            stream.write(audit_page(report).encode("utf-8", "replace"))
        payload["page"] = str(output)
    out.finish(payload, *_tables(report))


def _tables(report: AuditReport) -> list[Any]:
    from edgead.cli._output import listing, table

    card = report.card
    shown: list[Any] = [
        listing(f"Audit of {report.name}", {"normal images": f"{report.images}, of {card.parts} parts"})
    ]
    for title, found in (
        ("The part was not found: a fit omits them", card.excluded),
        ("Stray: a fit omits them", card.stray),
        ("Unlike the others: look at them", card.odd),
    ):
        if found:
            shown.append(listing(title, found))
    scores = [[name, f"{score:.4g}"] for name, score in card.unusual.items()]
    shown.append(
        table(
            f"Highest scores (a threshold for 1 % false alarms would be about {report.threshold:.4g})",
            ["image", "score"],
            scores,
        )
    )
    if card.copies:
        groups = [[", ".join(group[:_NAMED]) + (" …" if len(group) > _NAMED else "")] for group in card.copies]
        shown.append(table("Copies of each other, which count once", ["images"], groups))
    return shown
