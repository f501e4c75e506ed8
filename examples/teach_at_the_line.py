"""Teach at the line: a new batch is rejected, a person says that it is good, and the model learns it, with proof.

A station is started as a process. Parts are posted to it over HTTP; a person reviews them by the calls that the review
page makes. The first labels are wrong on purpose, and the gate refuses what comes of them; the right ones are taught,
the new bundle takes over while the line runs, and judges the next shift. Then the record is verified and replayed.

    python examples/teach_at_the_line.py               # solar cells of PyPI's elpv-dataset (pip install 'edgead[demo]')
    python examples/teach_at_the_line.py DATA/plate    # a category of your own: train/good and test/DEFECT
"""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import edgead
from edgead.runtime import JournalReader
from edgead.runtime.device.rejudge import Replay
from edgead.runtime.journal.verify import verify
from edgead.teaching import TeachReport, teach

KNOWN, GOOD, DEFECTS = 40, 18, 12  # images of the first fit; good and defective parts of a shift
POISONED = 2  # defects that are called good at first
SIDE = 150
_WAIT_S = 120.0


class Shift(NamedTuple):
    """Parts that pass the camera: id -> image, and which of them are defective."""

    parts: dict[str, Path]
    defective: frozenset[str]


def main(category: Path | None = None) -> dict[str, Any]:
    """Tell the story; returns its figures."""
    with tempfile.TemporaryDirectory(prefix="edgead-line-") as name:
        folder = Path(name)
        known, shifts = _solar_cells(folder) if category is None else _category(category)
        model = edgead.fit(known, size=96, settings={"bank_size": 1024})
        model.save(folder / "part.model")
        model.export(folder / "part.edgead")
        with Station(folder) as station:
            first = station.inspect(shifts[0])
            print(f"first shift: {first['false_alarms']} false alarms, {first['escapes']} escapes")
            caught = [p for p in sorted(shifts[0].defective) if station.decisions[p] == "ANOMALY"]
            station.review(shifts[0], called_good=caught[:POISONED])
            refused = _teach(folder, known)
            for one in refused.gate.problems:
                print(f"  refused: {one.name}: {one.problem}")
            assert not refused.gate.passed
            assert not (folder / "part.next.edgead").exists()
            station.review(shifts[0])  # the last word counts
            taught = _teach(folder, known)
            assert taught.gate.passed, [one.to_dict() for one in taught.gate.problems]
            gate = taught.to_dict()["gate"]
            print(
                f"the same parts, taught: {gate['false_alarms']['new']} false alarms, {gate['escapes']['new']} escapes"
            )
            station.take_over()
            second = station.inspect(shifts[1])
            print(f"second shift: {second['false_alarms']} false alarms, {second['escapes']} escapes")
            judged = station.end()
        proved = _proved(folder / "record")
    return {
        "first": first,
        "second": second,
        "gate": gate,
        "refused": [one.to_dict() for one in refused.gate.problems],
        "judged": judged,
        **proved,
    }


class Station:
    """``edgead run`` in a process of its own, and the person who reviews its parts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.decisions: dict[str, str] = {}
        self._posted = 0
        port = _free_port()
        self._camera = f"http://127.0.0.1:{port}/frame"
        command = [sys.executable, "-m", "edgead", "run", str(folder / "part.edgead")]
        command += ["--source", f"receive://127.0.0.1:{port}?policy=every", "--record", str(folder / "record")]
        command += ["--sink", str(folder / "results.jsonl"), "--serve", "127.0.0.1:0"]
        # Files, so that nothing waits for who reads them.
        self._out, self._err = (folder / name for name in ("out.txt", "err.txt"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err)
        found = self._wait(lambda: re.search(r"live page: (http://[\d.:]+)/", self._err.read_text()))
        self._page = found[1]
        self._wait(lambda: _answers(f"http://127.0.0.1:{port}/"))

    def inspect(self, shift: Shift) -> dict[str, int]:
        """Post the parts of a shift, one after the other, and return what became of them."""
        for part, path in shift.parts.items():
            request = urllib.request.Request(f"{self._camera}?part_id={part}", path.read_bytes(), method="POST")
            with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:
                assert answer.status == 202
            self._posted += 1
            # As on a line: the next part comes when this one is decided.
            lines = self._wait(lambda: len(found := self._results()) >= self._posted and found)
        self.decisions |= {line["part_id"]: line["decision"] for line in lines}
        decided = {part: self.decisions[part] for part in shift.parts}
        return {
            "parts": len(decided),
            "false_alarms": sum(d != "OK" for part, d in decided.items() if part not in shift.defective),
            "escapes": sum(d == "OK" for part, d in decided.items() if part in shift.defective),
            "defects": len(shift.defective),
        }

    def review(self, shift: Shift, called_good: list[str] | None = None) -> None:
        """Say of every recorded part of a shift what it is, by the page's own calls."""
        self._queue()
        with JournalReader(self._folder / "record") as record:
            rows = self._wait(lambda: len(found := list(record.parts())) >= self._posted and found)
        for row in rows:
            if row.part in shift.parts:
                defect = row.part in shift.defective and row.part not in (called_good or ())
                label = {"row": row.seq, "label": "defect" if defect else "good", "who": "Ann"}
                self._post("/api/review/label", label)

    def take_over(self) -> None:
        """Let the taught bundle take over, while the line runs."""
        waiting = self._queue()["waiting"]
        assert waiting is not None
        self._post("/api/review/takeover", {"who": "Ann", "sha256": waiting["sha256"]})
        print(f"{waiting['path']} took over")

    def end(self) -> int:
        """End the run, and return how many parts were judged of those that were posted."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_WAIT_S)
        assert code == 0, self._err.read_text()
        assert len(self._results()) == self._posted  # no frame was lost
        return self._posted

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _results(self) -> list[dict[str, Any]]:
        path = self._folder / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _queue(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._page}/api/review/next?who=Ann", timeout=_WAIT_S) as answer:
            found: dict[str, Any] = json.load(answer)
        self._word = found["word"]
        return found

    def _post(self, path: str, content: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json", "Origin": self._page, "X-Edgead-Word": self._word}
        request = urllib.request.Request(self._page + path, json.dumps(content).encode(), headers, method="POST")
        urllib.request.urlopen(request, timeout=_WAIT_S).close()

    def _wait(self, ready: Callable[[], Any]) -> Any:
        until = time.monotonic() + _WAIT_S
        while not (found := ready()):
            if self._process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the station does not run: {self._err.read_text()}")
            time.sleep(0.02)
        return found


def _teach(folder: Path, known: Path) -> TeachReport:
    return teach(folder / "part.model", known, folder / "record", folder / "part.next.edgead")


def _proved(record: Path) -> dict[str, int]:
    """Verify the record, and judge all of its parts again."""
    found = verify(record)
    assert found.problems == []
    with JournalReader(record) as reader, Replay(reader) as replay:
        replay.judge(reader.parts())
    again = replay.report
    print(f"{again.judged} parts replayed, {len(again.changed)} decided otherwise; {found.rows} rows verified")
    return {"rows": found.rows, "replayed": again.judged, "changed": len(again.changed)}


def _solar_cells(folder: Path) -> tuple[Path, list[Shift]]:
    """Monocrystalline cells are known; the new batch is polycrystalline, and as good."""
    try:
        import elpv_dataset
    except ImportError:
        sys.exit("elpv-dataset is not installed; run: pip install 'edgead[demo]'")
    data = Path(elpv_dataset.__file__).parent / "data"
    with (data / "labels.csv").open() as stream:
        rows = [row for row in csv.reader(stream, delimiter=" ", skipinitialspace=True) if row]

    def cells(kind: str, probability: float, target: str) -> list[Path]:
        found = [data / row[0] for row in rows if row[2] == kind and float(row[1]) == probability]
        order = np.random.default_rng(0).permutation(len(found))
        (folder / target).mkdir(parents=True, exist_ok=True)
        written = []
        for index in order[: KNOWN + 2 * GOOD]:
            path = folder / target / f"{kind}-{found[index].stem}.png"
            with Image.open(found[index]) as image:
                image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX).save(path)
            written.append(path)
        return written

    mono, poly, worn = cells("mono", 0.0, "mono"), cells("poly", 0.0, "poly"), cells("mono", 1.0, "worn")
    known = folder / "part" / "train" / "good"
    known.mkdir(parents=True)
    for path in mono[:KNOWN]:
        path.rename(known / path.name)
    half = GOOD // 2
    good = [(*mono[KNOWN + n * half :][:half], *poly[n * half :][:half]) for n in range(2)]
    return known.parent.parent, [_shift(n, list(good[n]), worn[n * DEFECTS :][:DEFECTS]) for n in range(2)]


def _category(category: Path) -> tuple[Path, list[Shift]]:
    """The test images come by in two shifts; nothing of them is known before."""
    good = sorted((category / "test" / "good").iterdir())
    defects = sorted(p for p in (category / "test").rglob("*.*") if p.parent.name != "good")
    return category, [_shift(n, good[n::2][:GOOD], defects[n::2][:DEFECTS]) for n in range(2)]


def _shift(number: int, good: list[Path], defective: list[Path]) -> Shift:
    named = {f"{number + 1}{place:03d}": path for place, path in enumerate([*good, *defective])}
    ids = list(named)
    order = np.random.default_rng(number).permutation(len(ids)).tolist()
    return Shift({ids[place]: named[ids[place]] for place in order}, frozenset(ids[len(good) :]))


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=_WAIT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
