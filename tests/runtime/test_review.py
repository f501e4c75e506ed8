"""Parts of a record that people look at: which come next, what is kept apart, and what is known of escapes."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.dashboard.review import ReviewPage
from edgead.runtime.decision.threshold import share_interval
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.retention import Limits
from edgead.runtime.journal.review import QUEUES, ReviewQueue
from edgead.runtime.journal.rows import part_row
from edgead.runtime.journal.schema import FILE, image_path
from edgead.runtime.journal.verify import verify
from edgead.runtime.journal.writer import Journal, now_ms
from tests.runtime.browser import Browser
from tests.waiting import LONG_S, wait_for

ENTER = ("Enter", 13, "\r")


def add(journal, number, size=(48, 64)):
    """A part; every tenth is rejected, the others pass with scores of 0.1 to 0.9 where the threshold is 1."""
    rejected = number % 10 == 0
    pixels = np.random.default_rng(number).integers(60, 120, (*size, 3), dtype=np.uint8)
    pixels[10:20, 10:30] = (200, 60, 40) if rejected else (90, 90, 90)
    frame = Frame(pixels, number, 0, "line", part_id=f"P{number}")
    grid = np.zeros((6, 8), np.float32)
    grid[1:3, 1:4] = 2.0 if rejected else 0.4
    decision = Decision.ANOMALY if rejected else Decision.OK
    score = 2.0 if rejected else number % 10 / 10
    result = Result(score, 1.0, decision, number, 0, "line", map=grid, part_id=frame.part_id)
    journal.add(part_row(result, frame, None, now_ms(), keep=True))


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "line") as journal:
        for number in range(1, 101):
            add(journal, number)
        journal.add_and_wait(part_row(Result(0.0, 1.0, Decision.OK, 0, 0), None, None, now_ms(), keep=True))
        yield journal


@pytest.fixture
def queue(journal):
    with JournalReader(journal.folder) as reader:
        yield ReviewQueue(reader)


def order(queue, name, who="Ann"):
    """All rows of a queue as they would come, by passing over each that was seen."""
    seen = []
    while (row := queue.next(who, name, seen)) is not None:
        seen.append(row.seq)
    return seen


def test_rejects_come_newest_first_near_misses_nearest_first_and_the_sample_by_chance(queue):
    assert order(queue, "rejected") == list(range(100, 0, -10))
    near = order(queue, "near")
    assert len(near) == 90
    assert [seq % 10 for seq in near[:10]] == [9] * 10
    sample = order(queue, "sample")
    assert sorted(sample) == sorted(near)
    assert sample not in (sorted(sample), sorted(sample, reverse=True))
    assert queue.left("Ann") == {"rejected": 10, "near": 90, "sample": 90}
    with pytest.raises(ConfigError, match="unknown queue 'nearest'"):
        queue.next("Ann", "nearest")


def test_the_order_of_the_sample_is_the_same_for_all_and_stays_as_the_journal_grows(journal, queue):
    before = order(queue, "sample")
    for number in range(101, 131):
        add(journal, number)
    journal.label(1, "good", "Bo")  # waits until all of it is on the disk
    after = order(queue, "sample")
    assert [seq for seq in after if seq in before] == before
    assert len(after) == len(before) + 27
    with JournalReader(journal.folder) as reader:
        assert order(ReviewQueue(reader), "sample", "Ann") == after


def test_labels_of_others_change_nothing_for_a_reviewer(journal, queue):
    first = queue.next("Ann", "rejected").seq
    journal.label(first, "good", "Ann")
    assert queue.next("Ann", "rejected").seq != first
    assert queue.next("Bo", "rejected").seq == first
    assert (queue.left("Ann")["rejected"], queue.left("Bo")["rejected"]) == (9, 10)


def test_all_queues_come_in_turn_and_end(journal, queue):
    for _ in range(8):
        row = queue.next("Ann")
        journal.label(row.seq, "good", "Ann")
    assert queue.left("Ann")["rejected"] == 6
    seen = []
    while (row := queue.next("Ann", None, seen)) is not None:
        seen.append(row.seq)
    assert len(seen) == 92


def test_escapes_are_estimated_from_the_reviewed_beginning_of_the_random_order_only(journal, queue):
    assert queue.escapes("Ann").high is None
    assert "nothing is known" in queue.escapes("Ann").explain()
    sample, near = order(queue, "sample"), order(queue, "near")
    # Whoever looks at near-misses finds more defects among them; that must not count as the share of all passed parts.
    for seq in near[:10]:
        journal.label(seq, "defect", "Ann")
    found = queue.escapes("Ann")
    begun = next(place for place, seq in enumerate(sample) if seq not in near[:10])
    assert (found.reviewed, found.defects) == (begun, begun)
    for seq in sample[:40]:
        if seq not in near[:10]:
            journal.label(seq, "unsure" if seq == sample[39] else "good", "Ann")
    found = queue.escapes("Ann")
    defects = len(set(sample[:40]) & set(near[:10]))
    unsure = int(sample[39] not in near[:10])
    # The parts right after may have been labelled as near-misses, too: they belong to the order as well.
    more = next(place for place, seq in enumerate(sample[40:]) if seq not in near[:10])
    assert (found.reviewed, found.defects, found.unsure, found.passed) == (40 + more, defects + more, unsure, 90)
    assert found.low == share_interval(defects + more, 40 + more)[0]
    assert found.high == share_interval(defects + more + unsure, 40 + more)[1]
    assert queue.escapes("Bo").reviewed == 0
    journal.label(sample[0], "defect", "Ann")  # a changed mind: the last word counts
    assert queue.escapes("Ann").defects == defects + more + (sample[0] not in near[:10])


def test_parts_whose_image_is_gone_are_left_out_the_labelled_ones_too(tmp_path):
    size = (100, 100)
    with Journal(tmp_path, limits=Limits(max_bytes=1_000_000)) as journal, JournalReader(tmp_path) as reader:
        for number in range(1, 8):
            add(journal, number, size)
        journal.add_and_wait(part_row(Result(0.0, 1.0, Decision.OK, 0, 0), None, None, now_ms(), keep=True))
        queue = ReviewQueue(reader)
        for seq in order(queue, "sample"):
            journal.label(seq, "defect", "Ann")
        assert queue.escapes("Ann").defects == 7
        number = 8
        while reader.images_removed_through() < 20:
            add(journal, number, size)
            number += 1
            journal.label(1, "good", str(number))
        assert image_path(tmp_path, 1).is_file()  # it was labelled
        assert (queue.escapes("Ann").reviewed, queue.escapes("Ann").defects) == (0, 0)
        assert min(order(queue, "sample")) > reader.images_removed_through()
    assert verify(tmp_path).problems == []


class Client:
    """Asks a page as its script does."""

    def __init__(self, page):
        self.url = page.url
        self.word = ""

    def next(self, who="Ann", **asked):
        found = self._ask(f"api/review/next?{urlencode({'who': who, **asked})}")
        self.word = found["word"]
        return found

    def label(self, headers=None, **body):
        own = {"Content-Type": "application/json", "X-Edgead-Word": self.word, "Origin": self.url.rstrip("/")}
        request = Request(f"{self.url}api/review/label", json.dumps(body).encode(), {**own, **(headers or {})})
        return self._ask(request)

    def _ask(self, request):
        request = f"{self.url}{request}" if isinstance(request, str) else request
        with urlopen(request, timeout=LONG_S) as answer:
            return json.load(answer)


@pytest.fixture
def page(journal):
    with ReviewPage(journal, "127.0.0.1:0") as page:
        yield page


def refused(ask, *arguments, **options):
    with pytest.raises(HTTPError) as caught:
        ask(*arguments, **options)
    with caught.value as error:
        text = error.read().decode()
    assert text.count("\n") == 1
    return caught.value.code, text


def test_parts_are_labelled_by_http_and_a_double_click_is_one_row(journal, page):
    client = Client(page)
    part = client.next(queue="rejected")["part"]
    assert (part["row"], part["part_id"], part["decision"], part["mine"]) == (100, "P100", "ANOMALY", [])
    first = client.label(row=100, label="defect", who="Ann", defect="scratch")
    assert client.label(row=100, label="defect", who="Ann", defect="scratch") == first
    assert client.next(queue="rejected")["part"]["row"] == 90
    assert client.next(row=100)["part"]["mine"] == [{"who": "Ann", "label": "defect", "defect": "scratch"}]
    assert client.next("Bo", row=100)["part"]["mine"] == []  # what others said is not shown
    assert client.next()["kinds"] == ["scratch"]
    with JournalReader(journal.folder) as reader:
        (label,) = reader.labels(100)
        assert (label.seq, label.part, label.body["who"]) == (first["row"], "P100", "Ann")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"row": 999, "label": "good", "who": "Ann"}, "no part in row 999"),
        ({"row": 100, "label": "fine", "who": "Ann"}, "unknown label 'fine'"),
        ({"row": 100, "label": "good", "who": "  "}, "write your name"),
        ({"row": "100", "label": "good", "who": "Ann"}, "write row, label and who"),
        ({"row": 100, "label": "good"}, "write row, label and who"),
        ({"row": 100, "label": "defect", "who": "Ann", "defect": "x" * 300}, "longer than 200"),
    ],
)
def test_a_label_that_is_none_is_refused_in_one_line(journal, page, body, said):
    client = Client(page)
    client.next()
    code, text = refused(client.label, **body)
    assert code == 400
    assert said in text
    with JournalReader(journal.folder) as reader:
        assert reader.labels() == []


def test_labels_are_taken_from_this_page_only_and_a_token_guards_it(journal, page):
    client = Client(page)
    client.next()
    body = {"row": 100, "label": "good", "who": "Ann"}
    for headers in ({"Origin": "http://elsewhere"}, {"X-Edgead-Word": "guess"}):
        assert refused(client.label, headers, **body)[0] == 403
    assert refused(client.next, "", queue="rejected")[0] == 400
    with ReviewPage(journal, "127.0.0.1:0", "a long secret token") as guarded:
        assert refused(Client(guarded).next)[0] == 401
        with urlopen(f"{guarded.url}review", timeout=LONG_S) as answer:
            assert b"token" in answer.read()  # the log-in
    with pytest.raises(ConfigError, match="needs a token"):
        ReviewPage(journal, "0.0.0.0:0")


def test_pictures_show_the_part_and_on_request_its_heat_map(page):
    seen = []
    for heat in (0, 1):
        with urlopen(f"{page.url}api/review/picture/100.jpg?heat={heat}", timeout=LONG_S) as answer:
            seen.append(np.asarray(Image.open(io.BytesIO(answer.read()))).astype(int))
    assert seen[0].shape == (48, 64, 3)
    assert abs(seen[0] - seen[1]).max() > 60
    with JournalReader(page.desk._journal.folder) as reader:
        part = reader.part(100)
        assert reader.result(part).map.max() == 2.0
        image_path(reader.folder, 100).unlink()
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{page.url}api/review/picture/100.jpg", timeout=LONG_S)
    with caught.value as error:
        assert error.code == 404


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def test_parts_are_reviewed_with_the_keyboard_alone(chromium, journal, page):
    def title():
        return chromium.text("part-title")

    def after(key, code):
        before = title()
        chromium.press(key, code, key)
        wait_for(lambda: title() != before)

    chromium.open(f"{page.url}review")
    wait_for(lambda: chromium.evaluate("!!document.getElementById('name') && document.getElementById('name').open"))
    chromium.type("Ann")
    chromium.press(*ENTER)
    wait_for(lambda: title() == "P100")
    # What the model said is hidden until it is asked for, so that people judge the part and not the model.
    assert chromium.evaluate("document.getElementById('model-said').hidden")
    chromium.press("h", 72, "h")
    wait_for(lambda: "The model said ANOMALY, score 2.000 against 1.000" in chromium.text("model-said"))
    wait_for(lambda: chromium.evaluate("document.getElementById('picture').naturalWidth") == 64)
    chromium.press("k", 75, "k")
    wait_for(lambda: chromium.evaluate("document.activeElement.id") == "kind")
    chromium.type("dent")
    chromium.press(*ENTER)
    after("d", 68)
    second = title()
    after("g", 71)
    after("b", 66)
    assert title() == second
    assert "You said before: good" in chromium.text("mine")
    after("u", 85)
    third = title()
    after("s", 83)
    assert title() != third
    chromium.press("q", 81, "q")
    wait_for(lambda: chromium.evaluate("document.getElementById('queue').value") == "rejected")
    wait_for(lambda: title() == "P90")
    chromium.press("1", 49, "1")
    wait_for(lambda: chromium.evaluate("document.getElementById('kind').value") == "dent")
    after("d", 68)
    with JournalReader(journal.folder) as reader:
        said = [(row.part, row.body["label"], row.body.get("defect")) for row in reader.labels()]
    assert said == [
        ("P100", "defect", "dent"), (second, "good", None), (second, "unsure", None), ("P90", "defect", "dent")
    ]  # fmt: skip
    assert {row["who"] for row in (label.body for label in _labels(journal))} == {"Ann"}
    assert not [event for event in chromium.events if event["method"] == "Runtime.exceptionThrown"]


def _labels(journal):
    with JournalReader(journal.folder) as reader:
        return reader.labels()


def test_each_label_has_its_letter_sign_and_word_and_not_its_colour_alone(chromium, page):
    chromium.open(f"{page.url}review")
    wait_for(lambda: chromium.evaluate("!!document.getElementById('good')"))
    texts = [chromium.text(name) for name in ("good", "defect", "unsure")]
    assert texts == ["G✓ Good", "D▲ Defect", "U? Unsure"]
    assert set(QUEUES) <= set(chromium.evaluate("[...document.getElementById('queue').options].map(o => o.value)"))


def test_a_label_that_cannot_be_written_is_said_and_the_part_stays(chromium, journal, page):
    chromium.open(f"{page.url}review")
    wait_for(lambda: chromium.evaluate("!!document.getElementById('name') && document.getElementById('name').open"))
    chromium.type("Ann")
    chromium.press(*ENTER)
    wait_for(lambda: chromium.text("part-title") == "P100")
    journal.close()
    chromium.press("g", 71, "g")
    wait_for(lambda: "is closed" in chromium.text("problem"))
    assert chromium.text("part-title") == "P100"


def test_the_interval_holds_the_true_share_however_many_near_misses_are_looked_at_first(tmp_path):
    """Of 200 passed parts 20 are escapes, all among the nearest misses; 20 orders of the sample, each of another id."""
    with Journal(tmp_path / "made") as journal:
        for number in range(1, 201):
            score = 0.9 if number % 10 == 3 else 0.2 + number % 7 / 20
            frame = Frame(np.full((2, 2, 3), number % 256, np.uint8), number, 0, "line")
            journal.add(part_row(Result(score, 1.0, Decision.OK, number, 0), frame, None, now_ms(), keep=True))
    shares, naive, held = [], [], 0
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        shutil.copy(tmp_path / "made" / FILE, folder)
        (folder / "images").symlink_to(tmp_path / "made" / "images")
        with sqlite3.connect(folder / FILE) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'id'", (f"{turn:032x}",))
        connection.close()
        with Journal(folder) as journal, JournalReader(folder) as reader:
            queue = ReviewQueue(reader)
            looked = [*order(queue, "near")[:15], *order(queue, "sample")[:25]]
            for seq in dict.fromkeys(looked):
                journal.label(seq, "defect" if seq % 10 == 3 else "good", "Ann")
            found = queue.escapes("Ann")
            held += found.low <= 0.1 <= found.high
            shares.append(found.defects / found.reviewed)
            naive.append(sum(seq % 10 == 3 for seq in set(looked)) / len(set(looked)))
    assert held >= 18  # 95 % of 20 are 19
    assert abs(np.mean(shares) - 0.1) < 0.04
    assert np.mean(naive) > 0.3  # what counting all that was labelled would have said
