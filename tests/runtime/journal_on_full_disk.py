"""Writes a journal while the system refuses to let files grow, then lets them: ``python -m ... DIR``.

The limit is the process's own (``RLIMIT_FSIZE``), so every write beyond it fails as on a full disk, in the middle of a
file. Prints a JSON line of what was seen.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from edgead.runtime.errors import DataError
from edgead.runtime.journal.writer import Journal
from tests.runtime.test_journal import add_part
from tests.waiting import wait_for


def main(folder: Path) -> None:
    """Fill, fail, go on."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(folder, commit_s=0.05) as journal:
        for number in range(1, 21):
            journal.add_and_wait(add_part(journal, number))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, most))
        number, lost = 21, 0
        while journal.failure is None:
            journal.add(add_part(journal, number))
            number += 1
        why = journal.failure
        try:
            journal.label(3, "good", "Ann")
            label = "written"
        except DataError as error:
            label = str(error)
        # More than may wait: what is beyond that is lost, and counted.
        for _ in range(9000):
            try:
                journal.add(add_part(journal, number, size=(2, 3)))
                number += 1
            except DataError:
                lost += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        wait_for(lambda: journal.failure is None)
        again = journal.label(3, "good", "Ann")
        journal.add_and_wait(add_part(journal, number))
    print(json.dumps({"why": why, "label": label, "lost": lost, "last": number, "again": again}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
