"""``edgead review``: people look at recorded parts and say what they are, in a browser, without a camera."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli.device import PANEL
from edgead.cli.line._selection import RecordArgument

if TYPE_CHECKING:
    from edgead.cli._output import Output


@command("review", panel=PANEL, example="edgead review line3 --listen 127.0.0.1:8090")
def review(
    out: Output,
    folder: RecordArgument,
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="Where browsers find the page.")] = "127.0.0.1:8090",
    token: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Token that browsers are asked for; an address that others reach needs one.",
            show_default="none",
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option("--sample", min=0.0001, max=1.0, metavar="X", help="Share of all parts in the random sample."),
    ] = 0.05,
) -> None:
    """Serve a page on which people label recorded parts: rejects, near misses, a random sample; until Ctrl-C.

    While a run writes the record, its live page has the same review (run --record DIR --serve ADDRESS).
    """
    from edgead.runtime.dashboard.access import read_token
    from edgead.runtime.review.server import ReviewServer

    with ReviewServer(folder, listen, token=None if token is None else read_token(token), share=share) as server:
        out.note(f"review: {server.url}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            out.note("ended")
