"""A taught bundle takes over while the line runs, and what labels say of the promised false-alarm rate."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgead.runtime import Inspector
from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.dashboard.review import ReviewDesk
from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import BundleError, ConfigError, DataError, EdgeadError
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.exchange import previous_path
from edgead.runtime.inspection.takeover import TakeOver, next_path
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.review import ReviewQueue
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.journal.verify import verify
from edgead.runtime.journal.writer import Journal
from edgead.runtime.sources.push import PushSource
from edgead.runtime.streaming.stream import Stream

pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")


def pictures(count: int, bright: int, seed: int = 7) -> list[np.ndarray]:
    """Even parts, the last ``bright`` of them with a spot that is rejected."""
    random = np.random.default_rng(seed)
    made = [random.integers(90, 110, (31, 45, 3), dtype=np.uint8) for _ in range(count)]
    for image in made[count - bright :]:
        image[12:20, 14:24] = (255, 0, 255)
    return made


def recorded(bundle: Path, folder: Path, images: list[np.ndarray], options: str = "") -> Path:
    """A record of a run over some pictures; part ids are p0, p1, …"""
    with Inspector.open(bundle, backend="onnxruntime") as inspect:
        record = RecordSink(RecordOptions.parse(f"{folder}{options}"), inspect)
        record._chance.seed(0)
        try:
            for number, image in enumerate(images):
                frame = Frame(image, number, 0, "camera", part_id=f"p{number}")
                record.write(inspect(frame), frame)
        finally:
            record.close()
    return folder


@pytest.fixture
def record(make_bundle, tmp_path: Path) -> Path:
    return recorded(make_bundle(), tmp_path / "record", pictures(30, 6))


def say(folder: Path, words: dict[str, str], who: str = "Ann") -> None:
    with JournalReader(folder) as reader:
        rows = {row.part: row.seq for row in reader.parts()}
    with Journal(folder) as journal:
        for part, word in words.items():
            journal.label(rows[part], word, who)


# The promised rate, from labels


@pytest.fixture
def one_order(monkeypatch) -> None:
    """The random order follows from the record's id; here that is the same in each run of the test."""
    monkeypatch.setattr(JournalReader, "journal_id", "0" * 32)


PROMISED = Threshold(20.0, 0.01, 120, 0.0002, 0.03, True)


@pytest.mark.usefixtures("one_order")
def test_the_promise_is_tested_by_a_random_tenth_in_order_up_to_what_nobody_has_seen(
    make_bundle, tmp_path: Path
) -> None:
    """A fifth of 400 good parts is rejected. People look at rejects first, which alone prove nothing."""
    images = pictures(400, 80)
    order = np.random.default_rng(1).permutation(400)
    folder = recorded(make_bundle(), tmp_path / "record", [images[place] for place in order])
    with JournalReader(folder) as reader:
        rejects = {str(row.part): "good" for row in reader.parts() if row.decision == "ANOMALY"}
        rest = {str(row.part): "good" for row in reader.parts() if row.decision == "OK"}
        assert ReviewQueue(reader).promise("Ann", Threshold(20.0, 0.01, 0, 0.0, 1.0, False)) is None
    say(folder, rejects)
    seen = []
    passed = list(rest)
    for share in (0, 100, 200, 320):
        say(folder, dict.fromkeys(passed[:share], "good"))
        with JournalReader(folder) as reader:
            state = ReviewQueue(reader).promise("Ann", PROMISED)
        assert state is not None
        seen.append((state.parts, state.false_alarms))
    assert seen == sorted(seen)  # later looks only add
    assert seen[0][0] <= 3
    assert 25 <= seen[-1][0] <= 60
    assert state.broken
    assert 0.05 < state.false_alarms / state.parts < 0.45
    with JournalReader(folder) as reader:
        for who, promised in (("Ben", PROMISED), ("Ann", Threshold(19.0, 0.01, 120, 0.0002, 0.03, True))):
            found = ReviewQueue(reader).promise(who, promised)
            assert found is not None
            assert found.parts == 0
            assert "nothing is tested" in found.explain()


@pytest.mark.usefixtures("one_order")
def test_where_few_passed_parts_are_kept_as_few_rejects_count(make_bundle, tmp_path: Path) -> None:
    """A quarter of the passed parts has images, and all rejects have: all are called good, a fifth are rejected."""
    folder = recorded(make_bundle(), tmp_path / "record", pictures(1500, 300), "?images=rejected&sample=0.25")
    with JournalReader(folder) as reader:
        kept = [row.part for row in reader.parts() if row.image is not None]
    say(folder, {str(part): "good" for part in kept})
    with JournalReader(folder) as reader:
        state = ReviewQueue(reader).promise("Ann", PROMISED)
    assert state is not None
    assert 18 < state.parts < 62
    assert state.false_alarms / state.parts < 0.42  # about .2, and not the .5 of all that have images


# Over HTTP


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Person:
    """A browser without a screen."""

    def __init__(self, url: str) -> None:
        found = re.fullmatch(r"http://([\d.]+):(\d+)/.*", url)
        assert found is not None
        self.host, self.port, self.word = found[1], int(found[2]), ""

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None, {})

    def queue(self, who: str = "Ann") -> Any:
        found = self.get(f"/api/review/next?who={who}").json
        self.word = found["word"]
        return found

    def post(self, path: str, content: Any, **headers: str) -> Answer:
        own = {
            "Content-Type": "application/json",
            "Origin": f"http://{self.host}:{self.port}",
            "X-Edgead-Word": self.word,
            **headers,
        }
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._ask("POST", path, body, own)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()


# A taught bundle takes over


def taught(path: Path, out: Path, value: float = 12.0, **changes: Any) -> Path:
    """The same model with another threshold, as if it had been taught to replace ``path``."""
    with Bundle.open(path) as bundle:
        manifest, sha256 = bundle.manifest, bundle.sha256
    gate = {name: {"parts": 3, "old": 2, "new": 0} for name in ("false_alarms", "escapes")}
    teaching = {"old_bundle": sha256, "good": 3, "defects": 1, "labelled_by": ["Ann"], "waived": [], "gate": gate}
    threshold = manifest.threshold.model_copy(update={"value": value})
    provenance = {**manifest.provenance, "teaching": {**teaching, **changes}}
    replace_manifest(path, out, manifest.model_copy(update={"threshold": threshold, "provenance": provenance}))
    return out


class Line:
    """A station that runs: frames are pushed, its live page serves, its record is written."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.inspector = Inspector.open(bundle, backend="onnxruntime")
        self.record = RecordSink(RecordOptions(folder), self.inspector)
        self.page = LivePage("127.0.0.1:0", control=self.inspector)
        self.page.desk = ReviewDesk(self.record.journal, TakeOver(self.inspector, self.record))
        self.source = PushSource(policy="every")
        self.stream = Stream(self.inspector, self.source, sinks=[self.record, self.page])
        self.results: list[Any] = []
        self._iterator = iter(self.stream)

    def push(self, images: list[np.ndarray]) -> None:
        for image in images:
            self.source.push(image)
            self.results.append(next(self._iterator))

    def end(self) -> None:
        self.stream.close()
        self.inspector.close()


@pytest.fixture
def line(make_bundle, tmp_path: Path):
    (tmp_path / "station").mkdir()
    bundle = Path(shutil.copy(make_bundle(), tmp_path / "station" / "plate.edgead"))
    running = Line(bundle, tmp_path / "record")
    yield running, bundle
    running.end()


def test_a_taught_bundle_takes_over_without_losing_a_frame(line) -> None:
    running, bundle = line
    old = bundle.read_bytes()
    running.push(pictures(8, 0))
    ann = Person(running.page.url)
    assert ann.queue()["waiting"] is None
    assert ann.get("/api/state?since=0").json["review"] is True
    waiting = taught(bundle, next_path(bundle))
    offered = ann.queue()["waiting"]
    assert (offered["path"], offered["taught"]["good"]) == (str(waiting), 3)
    stale = ann.post("/api/review/takeover", {"who": "Ann", "sha256": "0" * 64})
    assert (stale.status, b"another bundle waits by now" in stale.body) == (400, True)
    assert ann.post("/api/review/takeover", {"who": "", "sha256": offered["sha256"]}).status == 400
    running.push(pictures(4, 0, seed=8))
    done = ann.post("/api/review/takeover", {"who": "Ann", "sha256": offered["sha256"]})
    assert done.status == 200, done.body
    running.push(pictures(8, 0, seed=9))
    assert [result.threshold for result in running.results] == [20.0] * 12 + [12.0] * 8
    assert running.stream.summary.frames.captured == 20
    with Bundle.open(bundle) as now:
        assert now.sha256 == offered["sha256"]
    assert previous_path(bundle).read_bytes() == old
    assert not waiting.exists()
    assert running.inspector.bundle is not None
    assert running.inspector.bundle[0] == bundle
    assert running.inspector.self_test() == []
    assert ann.queue()["waiting"] is None
    running.end()
    folder = running.record.journal.folder
    with JournalReader(folder) as reader:
        events = [(row.body["event"], row.body.get("who")) for row in reader.rows("takeover")]
        parts = list(reader.parts())
        bundles = [reader.setup(part)["bundle"] for part in parts]
    assert events == [("asked for", "Ann"), ("done", "Ann")]
    assert len(parts) == 20
    assert bundles == [bundles[0]] * 12 + [offered["sha256"]] * 8
    assert verify(folder).problems == []


def test_a_take_over_that_is_refused_leaves_the_previous_bundle_what_it_was(line, monkeypatch) -> None:
    """An update returns to it when its self-test fails: it must not be the bundle that fails."""
    running, bundle = line
    previous_path(bundle).write_bytes(b"the one before")
    taught(bundle, next_path(bundle))
    takeover = TakeOver(running.inspector, running.record)
    offered = takeover.offered()
    assert offered is not None
    swap = Inspector.swap

    def fails(self: Inspector, path: str | Path) -> None:
        if ".next." in str(path):
            raise BundleError("cannot be used here")
        swap(self, path)

    monkeypatch.setattr(Inspector, "swap", fails)
    with pytest.raises(BundleError, match="cannot be used here"):
        takeover.take("Ann", offered["sha256"])
    assert previous_path(bundle).read_bytes() == b"the one before"
    assert sorted(path.name for path in bundle.parent.iterdir()) == [
        "plate.edgead",
        "plate.next.edgead",
        "plate.previous.edgead",
    ]


@pytest.mark.parametrize("wrong", ["another", "by hand", "damaged", "other input"])
def test_what_may_not_take_over_does_not(line, make_bundle, wrong: str) -> None:
    running, bundle = line
    running.push(pictures(2, 0))
    waiting = next_path(bundle)
    if wrong == "another":
        taught(bundle, waiting, old_bundle="1" * 64)
    elif wrong == "by hand":
        shutil.copy(bundle, waiting)
    elif wrong == "damaged":
        waiting.write_bytes(taught(bundle, waiting).read_bytes()[:-100])
    else:  # its graph takes other frames than the line gives
        section = {"frame_width": 45, "frame_height": 31, "x": 0, "y": 0, "width": 20, "height": 20}
        with Bundle.open(bundle) as opened:
            shape = opened.manifest.input.model_dump() | {"region": section}
        taught(make_bundle("other.edgead", input=shape), waiting)
        with Bundle.open(waiting) as opened, Bundle.open(bundle) as now:
            manifest, sha256 = opened.manifest, now.sha256
        teaching = {**manifest.provenance["teaching"], "old_bundle": sha256}
        provenance = {**manifest.provenance, "teaching": teaching}
        replace_manifest(waiting, waiting, manifest.model_copy(update={"provenance": provenance}))
    before = bundle.read_bytes()
    ann = Person(running.page.url)
    offered = ann.queue()["waiting"]
    assert offered is not None
    answer = ann.post("/api/review/takeover", {"who": "Ann", "sha256": offered.get("sha256", "")})
    assert answer.status == 400, answer.body
    assert answer.body.count(b"\n") == 1
    running.push(pictures(2, 0, seed=8))
    assert [result.threshold for result in running.results] == [20.0] * 4
    assert bundle.read_bytes() == before
    assert waiting.exists()
    if wrong == "other input":
        with JournalReader(running.record.journal.folder) as reader:
            assert [row.body["event"] for row in reader.rows("takeover")] == ["asked for", "refused"]


def test_files_that_cannot_change_places_leave_the_old_bundle_judging(line, monkeypatch) -> None:
    running, bundle = line
    before = bundle.read_bytes()
    waiting = taught(bundle, next_path(bundle))
    previous_path(bundle).mkdir()  # nothing can be copied there
    takeover = TakeOver(running.inspector, running.record)
    offered = takeover.offered()
    assert offered is not None
    with pytest.raises(DataError, match="the old one goes on"):
        takeover.take("Ann", offered["sha256"])
    running.push(pictures(2, 0))
    assert [result.threshold for result in running.results] == [20.0] * 2
    assert bundle.read_bytes() == before
    assert waiting.exists()
    # The file is in its place, and cannot be opened by that name.
    previous_path(bundle).rmdir()
    swap, calls = Inspector.swap, []

    def fails_second(self: Inspector, path: str | Path) -> None:
        calls.append(Path(path).name)
        if len(calls) == 2:
            raise BundleError("no memory")
        swap(self, path)

    monkeypatch.setattr(Inspector, "swap", fails_second)
    with pytest.raises(DataError, match="no memory; the old one goes on"):
        takeover.take("Ann", offered["sha256"])
    running.push(pictures(2, 0))
    assert [result.threshold for result in running.results] == [20.0] * 4
    assert bundle.read_bytes() == before
    assert waiting.exists()


def test_where_the_file_is_another_bundle_than_the_one_that_judges_nothing_takes_over(line) -> None:
    running, bundle = line
    waiting = taught(bundle, next_path(bundle))
    takeover = TakeOver(running.inspector, running.record)
    offered = takeover.offered()
    assert offered is not None
    taught(bundle, bundle, value=99.0)  # somebody put another one there, and has not reloaded it
    with pytest.raises(ConfigError, match="is another bundle than the one that judges"):
        takeover.take("Ann", offered["sha256"])
    running.push(pictures(2, 0))
    assert [result.threshold for result in running.results] == [20.0] * 2
    assert waiting.exists()


def test_a_file_that_is_exchanged_on_the_way_does_not_judge(line, monkeypatch) -> None:
    running, bundle = line
    waiting = taught(bundle, next_path(bundle))
    takeover = TakeOver(running.inspector, running.record)
    offered = takeover.offered()
    assert offered is not None
    taught(bundle, waiting, value=77.0)
    monkeypatch.setattr(takeover, "offered", lambda: offered)  # seen a moment before
    with pytest.raises(EdgeadError):
        takeover.take("Ann", offered["sha256"])
    running.push(pictures(2, 0))
    assert [result.threshold for result in running.results] == [20.0] * 2


def test_model_and_images_beside_the_bundle_change_names_with_it(line) -> None:
    running, bundle = line
    for path in (bundle, next_path(bundle)):
        for suffix in (".model", ".images"):
            path.with_suffix(suffix).mkdir()
            (path.with_suffix(suffix) / path.name).touch()
    taught(bundle, next_path(bundle))
    takeover = TakeOver(running.inspector, running.record)
    offered = takeover.offered()
    assert offered is not None
    takeover.take("Ann", offered["sha256"])
    for suffix in (".model", ".images"):
        assert [p.name for p in bundle.with_suffix(suffix).iterdir()] == ["plate.next.edgead"]
        assert [p.name for p in previous_path(bundle).with_suffix(suffix).iterdir()] == ["plate.edgead"]
        assert not next_path(bundle).with_suffix(suffix).exists()
