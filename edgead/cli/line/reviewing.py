"""``edgead review``: recorded parts labelled in a browser, without a camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import ServeTokenOption, page_token
from edgead.cli.device import PANEL
from edgead.cli.line._ending import until_asked
from edgead.cli.line._selection import RecordArgument

if TYPE_CHECKING:
    from edgead.cli._output import Output


@command("review", panel=PANEL, trusts=True, example="edgead review line3 --serve 127.0.0.1:8080")
def review(
    out: Output,
    folder: RecordArgument,
    serve: Annotated[str, typer.Option(metavar="ADDRESS", help="Where browsers find the page.")] = "127.0.0.1:8080",
    serve_token: ServeTokenOption = None,
) -> None:
    """Serve the review of a record until Ctrl-C: rejects, near-misses, and a random sample of passed parts.

    One key a part: good, defect, unsure. While edgead run --record goes on, the same page is at /review of its live
    page (--serve), since a record has one writer.
    """
    from edgead.runtime.dashboard.review import ReviewPage
    from edgead.runtime.journal.reader import JournalReader
    from edgead.runtime.journal.writer import Journal

    token = page_token(serve_token)
    JournalReader(folder).close()  # a folder that holds no record is not made one
    with until_asked() as wait, Journal(folder) as journal, ReviewPage(journal, serve, token) as page:
        out.note(f"review: {page.url}review")
        wait()
    with JournalReader(folder) as reader:
        counts = reader.counts()
    from edgead.cli._output import listing

    rows = {kind: str(count) for kind, count in counts.items()}
    out.finish({"schema": "edgead.review-end/1", "counts": counts}, listing(f"Rows of {folder}", rows))
