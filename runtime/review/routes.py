"""What browsers of a review ask: parts to look at, pictures, labels, what these say so far, and the take-over."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.dashboard.guarded import HEADERS, GuardedHandler, read_files
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row, person
from edgead.runtime.journal.writer import Journal
from edgead.runtime.review.pictures import Pictures
from edgead.runtime.review.review_queue import DEFAULT_SHARE, KINDS, ReviewQueue
from edgead.runtime.review.takeover import TakeOver

_FILES = {
    "/review": ("review.html", "text/html; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
}
_MOST = 50  # parts in one answer


class ReviewRoutes:
    """Answers for one record; its pages are ``/review`` and ``/api/review/…``.

    Args:
        journal: its writer, through which labels go.
        word: that our own page shows with each change.
        takeover: of a line that runs; None: nothing can take over.
        share: of the random sample, see `ReviewQueue`.
    """

    def __init__(
        self, journal: Journal, word: str, takeover: TakeOver | None = None, *, share: float = DEFAULT_SHARE
    ) -> None:
        self._journal, self._word, self._takeover, self._share = journal, word, takeover, share
        self._pictures = Pictures(journal.folder)
        self._turn = threading.Lock()
        self._promised: tuple[str, Threshold | None] | None = None

    def files(self) -> Mapping[str, tuple[bytes, str]]:
        """Return path -> content and type."""
        return read_files(Path(__file__).parent, _FILES)

    def show(self, handler: GuardedHandler, path: str, query: str) -> bool:
        """Answer a GET; False where it is none of ours."""
        asked = {name: values[0] for name, values in parse_qs(query, max_num_fields=8).items()}
        try:
            if path == "/api/review/queue":
                with self._turn:
                    handler.json(self.queue(asked.get("who", ""), asked.get("kind", "rejects")))
            elif match := re.fullmatch(r"/api/review/([0-9]{1,15})\.jpg", path):
                with self._turn:
                    handler.picture(self._pictures.jpeg(int(match[1]), heat=asked.get("heat") == "1"))
            else:
                return False
        except ConfigError as error:
            handler.refuse(HTTPStatus.BAD_REQUEST, str(error), HEADERS)
        except EdgeadError as error:
            handler.refuse(HTTPStatus.NOT_FOUND, str(error), HEADERS)
        return True

    def act(self, handler: GuardedHandler, path: str) -> bool:
        """Answer a POST; False where it is none of ours."""
        actions = {"/api/review/label": self._label, "/api/review/takeover": self._take_over}
        if path not in actions:
            return False
        body = handler.body("application/json")
        if body is None:
            return True
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise TypeError
            answer = actions[path](asked)
        except ConfigError as error:  # before ValueError, which it is as well
            handler.refuse(HTTPStatus.CONFLICT, str(error), HEADERS)
        except EdgeadError as error:
            handler.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), HEADERS)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            handler.refuse(HTTPStatus.BAD_REQUEST, "write what the page writes", HEADERS)
        else:
            handler.json(answer)
        return True

    def queue(self, who: str, kind: str) -> dict[str, Any]:
        """Return what a person is to look at, and what all labels say so far, schema ``edgead.review/1``.

        Raises:
            ConfigError: an unknown kind of queue.
        """
        if kind not in KINDS:
            raise ConfigError(f"unknown queue '{kind[:40]}'; known: {', '.join(KINDS)}")
        who = person(who) if who.strip() else ""
        with JournalReader(self._journal.folder) as record:
            found = ReviewQueue(record, share=self._share)
            waiting = {name: found.choose(name, who, len(found.parts)) for name in ("rejects", "near", "sample")}
            promised = self._promise_of(record)
        mine = found.mine(who) if who else []
        state = None if promised is None else found.promise(promised)
        words = [str(label.body["label"]) for said in found.said.values() for label in said.values()]
        return {
            "schema": "edgead.review/1",
            "word": self._word,
            "counts": {name: len(rows) for name, rows in waiting.items()},
            "items": [_item(row) for row in waiting[kind][:_MOST]],
            "mine": [{**_item(row), "said": found.said[row.seq][who].body} for row in mine[:_MOST]],
            "labels": {word: words.count(word) for word in ("good", "defect", "unsure")},
            "kinds": found.kinds(),
            "escapes": found.escapes().to_dict(),
            "promise": None if state is None else state.to_dict(),
            "parts": len(found.parts),
            "waiting": None if self._takeover is None else self._takeover.offered(),
        }

    def close(self) -> None:
        """Release the bundle of the pictures."""
        self._pictures.close()

    def _label(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        seq, label, who, defect = asked["seq"], asked["label"], asked["who"], asked.get("defect")
        if isinstance(seq, bool) or not isinstance(seq, int) or not isinstance(label, str) or not isinstance(who, str):
            raise TypeError
        if not isinstance(defect, str | None):
            raise TypeError
        return {"row": self._journal.label(seq, label, who, defect=defect or None)}

    def _take_over(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        who, expected = asked["who"], asked["sha256"]
        if not isinstance(who, str) or not isinstance(expected, str):
            raise TypeError
        if self._takeover is None:
            raise ConfigError("no line runs here; open the live page of the run")
        return self._takeover.take(who, expected)

    def _promise_of(self, record: JournalReader) -> Threshold | None:
        """Return what the bundle that judged last promises; None of a routed one, which has several."""
        digest = next(
            (str(row.body["sha256"]) for row in reversed(list(record.rows("bundle"))) if row.body.get("sha256")), None
        )
        if digest is None:
            return None
        if self._promised is None or self._promised[0] != digest:
            try:
                with Bundle.open(record.bundle(digest)) as bundle:
                    self._promised = digest, bundle.manifest.promised().get(None)
            except EdgeadError:
                self._promised = digest, None
        return self._promised[1]


def _item(row: Row) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "part": row.part,
        "time_ms": row.time_ms,
        "decision": row.decision,
        "score": row.score,
        "threshold": row.body.get("threshold"),
        "category": row.body.get("category"),
        "reason": row.body.get("reason"),
        "file": row.body.get("name"),
        "source": row.body.get("source"),
    }
