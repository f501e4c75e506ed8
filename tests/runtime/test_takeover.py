"""The review of recorded parts: queues, estimates without bias, labels over HTTP, and the take-over."""

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
from edgead.runtime.dashboard.access import Access
from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.frame import Frame
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.journal.verify import verify
from edgead.runtime.journal.writer import Journal
from edgead.runtime.review.review_queue import ReviewQueue
from edgead.runtime.review.routes import ReviewRoutes
from edgead.runtime.review.server import ReviewServer
from edgead.runtime.review.takeover import TakeOver, next_path, previous_path
from edgead.runtime.sources.push import PushSource
from edgead.runtime.streaming.stream import Stream
from tests.runtime.browser import Browser
from tests.waiting import wait_for

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


# Queues and what labels say


def test_each_queue_holds_what_a_person_has_not_said_yet(record: Path) -> None:
    with JournalReader(record) as reader:
        queue = ReviewQueue(reader, share=0.4)
        rejects = [row.part for row in queue.choose("rejects", "Ann", 99)]
        near = queue.choose("near", "Ann", 5)
        sample = {row.part for row in queue.choose("sample", "Ann", 99)}
    assert rejects == [f"p{number}" for number in (29, 28, 27, 26, 25, 24)]
    scores = [row.score for row in near]
    assert scores == sorted(scores, reverse=True)
    assert all(row.decision == "OK" for row in near)
    assert 4 <= len(sample) <= 20
    say(record, {"p29": "good", "p28": "defect"})
    with JournalReader(record) as reader:
        queue = ReviewQueue(reader, share=0.4)
        assert [row.part for row in queue.choose("rejects", "Ann", 2)] == ["p27", "p26"]
        assert [row.part for row in queue.choose("rejects", "Ben", 2)] == ["p29", "p28"]  # who sees none of Ann's words
        assert [row.part for row in queue.mine("Ann")] == ["p28", "p29"]
        assert {row.part for row in ReviewQueue(reader, share=0.4).choose("sample", "Ben", 99)} == sample


def test_the_sample_is_drawn_without_a_look_at_anything(make_bundle, tmp_path: Path) -> None:
    """Of 400 parts about the share that was asked for, of passed and rejected ones alike; the same each time."""
    folder = recorded(make_bundle(), tmp_path / "record", pictures(400, 200))
    with JournalReader(folder) as reader:
        for share in (0.1, 0.5):
            drawn = ReviewQueue(reader, share=share).choose("sample", "Ann", 999)
            passed = sum(row.decision == "OK" for row in drawn)
            for count in (passed, len(drawn) - passed):
                assert abs(count - 200 * share) < 4 * (200 * share * (1 - share)) ** 0.5
        assert ReviewQueue(reader, share=1.0).escapes().sampled == 200


def test_where_images_of_rejects_are_kept_the_records_own_sample_is_taken(make_bundle, tmp_path: Path) -> None:
    folder = recorded(make_bundle(), tmp_path / "record", pictures(200, 40), "?images=rejected&sample=0.25")
    with JournalReader(folder) as reader:
        kept = [row for row in reader.parts() if row.image is not None and row.decision == "OK"]
        queue = ReviewQueue(reader, share=0.9)
        assert 15 < len(kept) < 65
        assert queue.escapes().sampled == len(kept)
        drawn = queue.choose("sample", "Ann", 999)
        rejected = len(drawn) - len(kept)
        assert 2 < rejected < 20  # a quarter of the 40, by the same chance
        assert len(queue.choose("rejects", "Ann", 999)) == 40


def test_escapes_are_estimated_from_the_sample_alone(record: Path) -> None:
    with JournalReader(record) as reader:
        before = ReviewQueue(reader, share=1.0).escapes()
    assert (before.passed, before.sampled, before.reviewed, before.low, before.high) == (24, 24, 0, 0.0, 1.0)
    assert "nothing is known" in before.explain()
    words = {f"p{number}": "good" for number in range(20)} | {"p3": "defect", "p4": "unsure", "p29": "defect"}
    say(record, words)
    say(record, {"p5": "defect"}, "Ben")  # whom Ann contradicts
    with JournalReader(record) as reader:
        found = ReviewQueue(reader, share=1.0).escapes()
    assert (found.reviewed, found.defective) == (18, 1)
    # Clopper and Pearson for 1 of 18.
    assert (found.low, found.high) == pytest.approx((0.0014, 0.2729), abs=1e-4)
    assert "of the 24 that passed" in found.explain()


def test_the_promise_is_tested_by_the_sample_in_order_up_to_what_nobody_has_seen(record: Path) -> None:
    promised = Threshold(20.0, 0.01, 120, 0.0002, 0.03, True)
    rejects = {f"p{number}": "good" for number in range(24, 30)}
    say(record, rejects)  # looked at first, as people do
    with JournalReader(record) as reader:
        state = ReviewQueue(reader, share=1.0).promise(promised)
        assert state is not None
        assert (state.parts, state.broken) == (0, False)
        assert ReviewQueue(reader).promise(Threshold(20.0, 0.01, 0, 0.0, 1.0, False)) is None
    say(record, {f"p{number}": "good" for number in range(24)} | {"p2": "defect", "p3": "unsure"})
    with JournalReader(record) as reader:
        state = ReviewQueue(reader, share=1.0).promise(promised)
        assert state is not None
        assert (state.parts, state.false_alarms, state.broken) == (28, 6, True)
        other = ReviewQueue(reader, share=1.0).promise(Threshold(19.0, 0.01, 120, 0.0002, 0.03, True))
        assert other is not None
        assert other.parts == 0  # judged by another threshold


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

    def queue(self, kind: str = "rejects", who: str = "Ann") -> Any:
        found = self.get(f"/api/review/queue?kind={kind}&who={who}").json
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

    def say(self, seq: int, label: str, who: str = "Ann", defect: str | None = None) -> Answer:
        return self.post("/api/review/label", {"seq": seq, "label": label, "who": who, "defect": defect})

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()


def test_a_person_reviews_a_record_without_a_camera(record: Path) -> None:
    with ReviewServer(record, "127.0.0.1:0") as server:
        ann = Person(server.url)
        assert ann.get("/").status == 303
        for path in ("/review", "/review.js", "/review.css", "/page.css", "/icon.svg"):
            assert ann.get(path).status == 200
        found = ann.queue()
        assert (found["schema"], found["counts"]["rejects"], found["waiting"]) == ("edgead.review/1", 6, None)
        first = found["items"][0]
        assert (first["part"], first["decision"]) == ("p29", "ANOMALY")
        plain, heat = (ann.get(f"/api/review/{first['seq']}.jpg?heat={on}") for on in (0, 1))
        assert plain.body[:2] == heat.body[:2] == b"\xff\xd8"
        assert plain.body != heat.body
        said = ann.say(first["seq"], "defect", defect="spot")
        assert said.status == 200
        again = ann.say(first["seq"], "defect", defect="spot")  # a double click
        assert again.json == said.json
        ann.say(found["items"][1]["seq"], "good")
        found = ann.queue()
        assert (found["counts"]["rejects"], found["kinds"]) == (4, ["spot"])
        assert found["labels"] == {"good": 1, "defect": 1, "unsure": 0}
        assert [(one["part"], one["said"]["label"]) for one in found["mine"]] == [("p28", "good"), ("p29", "defect")]
        assert ann.queue(who="Ben")["counts"]["rejects"] == 6
        assert ann.queue(who="Ben")["mine"] == []
        with pytest.raises(ConfigError, match="another"):
            Journal(record)
    with JournalReader(record) as reader:
        labels = [(row.ref, row.body["label"], row.body["who"], row.body.get("defect")) for row in reader.rows("label")]
    assert labels == [(first["seq"], "defect", "Ann", "spot"), (first["seq"] - 1, "good", "Ann", None)]
    assert verify(record).problems == []


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        ({"seq": 2, "label": "fine", "who": "Ann"}, 409, "unknown label 'fine'"),
        ({"seq": 99999, "label": "good", "who": "Ann"}, 409, "has no part in row 99999"),
        ({"seq": 1, "label": "good", "who": "Ann"}, 409, "has no part in row 1"),
        ({"seq": 2, "label": "good", "who": " "}, 409, "write your name"),
        ({"seq": 2, "label": "good", "who": "Ann", "defect": "spot"}, 409, "has no kind of defect"),
        ({"seq": "2", "label": "good", "who": "Ann"}, 400, "write what the page writes"),
        ({"seq": True, "label": "good", "who": "Ann"}, 400, "write what the page writes"),
        ({"seq": 2, "label": "good"}, 400, "write what the page writes"),
        ([], 400, "write what the page writes"),
        (b"{" * 2000, 400, "write what the page writes"),
        (b"x" * 5000, 413, ""),
    ],
)
def test_what_is_no_label_is_refused_with_one_line_and_writes_nothing(
    record: Path, content: Any, status: int, text: str
) -> None:
    with ReviewServer(record, "127.0.0.1:0") as server:
        ann = Person(server.url)
        ann.queue()
        answer = ann.post("/api/review/label", content)
        assert answer.status == status, answer.body
        assert text in answer.body.decode()
        assert answer.body.count(b"\n") <= 1
        assert ann.get("/api/review/queue?kind=all").status == 400
        assert ann.get("/api/review/99999.jpg").status == 400
        assert ann.get("/api/state").status == 404
    with JournalReader(record) as reader:
        assert list(reader.rows("label")) == []


def test_labels_are_taken_from_our_own_page_only_and_a_token_guards_all(record: Path) -> None:
    with ReviewServer(record, "127.0.0.1:0") as server:
        ann = Person(server.url)
        label = {"seq": 2, "label": "good", "who": "Ann"}
        assert ann.post("/api/review/label", label).status == 403  # without the word
        ann.queue()
        assert ann.post("/api/review/label", label, Origin="http://evil.example").status == 403
    with pytest.raises(ConfigError, match="needs a token"):
        ReviewServer(record, "0.0.0.0:0")
    with ReviewServer(record, "127.0.0.1:0", token="0123456789abcdef") as server:
        stranger = Person(server.url)
        assert stranger.get("/review").status == 303
        for path in ("/api/review/queue", "/api/review/2.jpg", "/review.js"):
            assert stranger.get(path).status == 401
    with pytest.raises(ConfigError, match="there is no record in"):
        ReviewServer(record / "nowhere")


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
        access = Access(None)
        routes = ReviewRoutes(self.record.journal, access.word, TakeOver(self.inspector, self.record), share=1.0)
        self.page = LivePage("127.0.0.1:0", token=access, control=self.inspector, more=routes)
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
    assert (stale.status, b"another bundle waits by now" in stale.body) == (409, True)
    assert ann.post("/api/review/takeover", {"who": "", "sha256": offered["sha256"]}).status == 409
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
    assert answer.status == 409, answer.body
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


# In a real browser


def test_keys_alone_review_a_record_in_a_browser(record: Path, tmp_path: Path) -> None:
    with ReviewServer(record, "127.0.0.1:0", share=1.0) as server:
        browser = Browser(tmp_path / "profile")
        try:
            browser.send("Page.navigate", url=server.url)
            wait_for(lambda: browser.evaluate("document.activeElement && document.activeElement.id") == "who")
            for letter in "Ann":
                browser.send("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            browser.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
            wait_for(
                lambda: browser.evaluate("document.getElementById('part-name').textContent") == "Part p29 · rejected"
            )

            def press(key: str) -> None:
                text = {"text": key} if len(key) == 1 else {}
                browser.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
                browser.send("Input.dispatchKeyEvent", type="keyUp", key=key)

            def heading() -> Any:
                return browser.evaluate("document.getElementById('part-name').textContent")

            wait_for(lambda: heading() == "Part p29 · rejected")
            press("h")
            wait_for(lambda: "heat=1" in browser.evaluate("document.getElementById('picture').src"))
            wait_for(lambda: browser.evaluate("document.getElementById('picture').naturalWidth") == 45)
            press("d")
            wait_for(lambda: heading() == "Part p28 · rejected")
            press("g")
            wait_for(lambda: heading() == "Part p27 · rejected")
            press("ArrowRight")
            wait_for(lambda: heading() == "Part p26 · rejected")
            press("u")
            wait_for(lambda: browser.evaluate("document.querySelectorAll('#mine li').length") == 3)
            press("3")
            wait_for(lambda: browser.evaluate("document.querySelector('[data-queue=sample]').ariaChecked") == "true")
            assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            problems = [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown",)]
            assert problems == []
        finally:
            browser.close()
    with JournalReader(record) as reader:
        assert [row.body["label"] for row in reader.rows("label")] == ["defect", "good", "unsure"]
        assert {row.body["who"] for row in reader.rows("label")} == {"Ann"}
