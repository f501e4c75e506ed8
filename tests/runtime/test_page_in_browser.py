"""The live page in a real browser, without a network and with the keyboard alone."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.status.frame_ledger import Counts
from edgead.runtime.status.source_health import Health
from edgead.runtime.status.summary import SourceSummary, StreamSummary
from tests.runtime.browser import Browser
from tests.waiting import wait_for

# What the page shows, under the word that it says.
LOOK = """(() => {
    const style = (selector) => getComputedStyle(document.querySelector(selector));
    const visible = (name) => style(`#decision .shape.${name}`).display != 'none';
    const shapes = ['ok', 'anomaly', 'not', 'none'].filter(visible);
    const colour = style('#decision').backgroundColor;
    return {[document.getElementById('word').textContent]: {shown: shapes, colour, title: document.title}};
})()"""
TAB, ENTER, SPACE = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " ")


class Control:
    name = "plate <b>3</b>"
    limits = Limits(10.0)

    def set_threshold(self, value, category=None):  # noqa: ARG002
        before, self.limits = self.limits.value, Limits(value)
        return before


class Line:
    """A camera that goes on delivering until it is told to stop; every fifth part is anomalous."""

    def __init__(self, page, control):
        self.page, self.control, self.index = page, control, 0
        self.score = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def part(self, source="synthetic://left", score=None):
        self.index += 1
        score = score if score is not None else 14.0 if self.index % 5 == 0 else 2.0 + self.index % 3
        limit = self.control.limits.value
        decision = Decision.ANOMALY if score > limit else Decision.OK
        stamp = time.monotonic_ns()
        image = np.full((240, 320, 3), 90, np.uint8)
        grid = np.zeros((8, 8), np.float32)
        grid[2, 3] = score
        result = Result(score, limit, decision, self.index, stamp, source, None, grid, {"end_to_end": 8.0})
        self.page.write(result, Frame(image, self.index, stamp, source))

    def _run(self):
        while not self._end.wait(0.05):
            self.part(score=self.score)

    def stop(self):
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def line(tmp_path):
    control = Control()
    page = LivePage("127.0.0.1:0", control=control, audit=tmp_path / "audit.jsonl", stale_s=2.0)
    running = Line(page, control)
    yield running
    running.stop()
    page.close()


@pytest.fixture
def tab(chromium, line):
    """The page, once it has heard of the line."""
    chromium.events.clear()
    chromium.open(line.page.url)
    wait_for(lambda: chromium.text("word") in ("OK", "ANOMALY"))
    yield chromium
    chromium.open("about:blank")


def state(tab):
    return tab.evaluate("document.getElementById('decision').dataset.state")


def test_the_decision_is_a_word_a_shape_and_a_colour(tab, line):
    seen = {}
    for score, word in ((3.0, "OK"), (30.0, "ANOMALY")):
        line.score = score
        # All of one instant: on a busy machine the line may fall silent for a moment.
        wait_for(
            lambda word=word: seen.update(tab.evaluate(LOOK)) or seen.get(word, {}).get("title", "").startswith(word)
        )
    assert seen["OK"]["shown"] == ["ok"]
    assert seen["ANOMALY"]["shown"] == ["anomaly"]
    assert seen["OK"]["colour"] != seen["ANOMALY"]["colour"]
    assert tab.text("model") == "plate <b>3</b>"  # text, never markup
    assert not tab.complaints()


def test_an_old_decision_turns_grey_by_itself(tab, line):
    line.score = 3.0
    wait_for(lambda: state(tab) == "OK")
    line.stop()
    # On a busy machine an answer may take so long that the page misses the server, too, for a moment.
    wait_for(lambda: tab.text("word") == "NO CURRENT RESULT" and tab.text("link-text") == "Live")
    assert state(tab) == "NONE"
    assert tab.text("why").startswith("The last one, ")
    assert tab.evaluate("document.getElementById('picture-box').dataset.state") == "NONE"
    wait_for(lambda: line.part(score=3.0) or state(tab) == "OK")


def test_a_server_that_is_gone_leaves_no_decision_standing(tab, line):
    line.score = 3.0
    wait_for(lambda: state(tab) == "OK")
    line.page.close()
    wait_for(lambda: state(tab) == "NONE")
    wait_for(lambda: tab.text("word") == "NO CONNECTION")
    assert tab.text("link-text") == "No connection"
    assert "old" in tab.text("lost")
    assert "NO CONNECTION" in tab.text("cameras")


def test_a_server_that_hangs_leaves_no_decision_standing(tab, line, monkeypatch):
    line.score = 3.0
    wait_for(lambda: state(tab) == "OK")
    gate = threading.Event()
    answer = line.page.state
    monkeypatch.setattr(line.page, "state", lambda since: gate.wait(20) and answer(since))
    try:
        wait_for(lambda: state(tab) == "NONE")
        wait_for(lambda: tab.text("word") == "NO CONNECTION")
    finally:
        gate.set()
    wait_for(lambda: state(tab) == "OK")


@pytest.mark.parametrize(
    ("run", "camera", "word"),
    [
        ("hung", "running", "BACKEND HANGS"),
        ("paused", "running", "PAUSED"),
        ("running", "reconnecting", "CAMERA LOST"),
    ],
)
def test_what_keeps_parts_from_being_inspected_is_said_at_once(tab, line, run, camera, word):
    line.score = 3.0
    wait_for(lambda: state(tab) == "OK")
    health = Health(camera, 2, 3, 0, 0, "rtsp://me:secret@camera is silent")
    nothing = Counts(0, 0, 0, {}, {})
    source = SourceSummary(nothing, "newest", True, None, health)
    summary = StreamSummary(1.0, nothing, {"synthetic://left": source}, {}, None, {}, (), None, state=run)
    line.page.attach(lambda: summary)
    wait_for(lambda: tab.text("word") == word)
    assert state(tab) == "NONE"
    assert "secret" not in tab.text("why")


def test_cameras_trace_thumbnails_and_heat_map(tab, line):
    line.part("synthetic://right", score=3.0)
    wait_for(lambda: tab.evaluate("document.querySelectorAll('#cameras button').length") == 2)
    wait_for(lambda: tab.evaluate("document.querySelectorAll('#anomalies img').length") >= 2)
    wait_for(lambda: tab.evaluate("document.querySelector('#anomalies img').naturalWidth") == 240)
    wait_for(lambda: tab.evaluate("document.getElementById('picture').naturalWidth") == 320)
    assert "score" in tab.text("caption")
    drawn = "document.getElementById('trace').getContext('2d').getImageData(0, 0, 400, 200).data.some(x => x > 0)"
    assert tab.evaluate(drawn)
    assert "heat=1" in tab.evaluate("document.getElementById('picture').src")
    tab.evaluate("document.getElementById('heat').click()")
    wait_for(lambda: "heat=0" in tab.evaluate("document.getElementById('picture').src"))
    tab.evaluate("document.querySelectorAll('#cameras button')[1].click()")
    wait_for(lambda: tab.text("stage-title") == "synthetic://right")
    tab.evaluate("document.querySelector('#anomalies button').click()")
    wait_for(lambda: tab.evaluate("document.getElementById('look').open"))
    assert not tab.complaints()


def test_a_threshold_is_tried_confirmed_and_changed_with_the_keyboard_alone(tab, line, tmp_path):
    wait_for(lambda: "now 10" in tab.text("threshold-now"))

    def reach(element):
        for _ in range(60):
            if tab.evaluate("document.activeElement.id") == element:
                return
            tab.press(*TAB)
        pytest.fail(f"{element} cannot be reached with the Tab key")

    reach("value")
    tab.evaluate("document.getElementById('value').select()")
    tab.type("3.5")
    # The answer for a half-typed number may come first.
    wait_for(lambda: "from OK to anomaly" in tab.text("flips"))
    assert line.control.limits.value == 10.0
    reach("apply")
    tab.press(*ENTER)
    wait_for(lambda: tab.evaluate("document.getElementById('confirm').open"))
    assert "From 10 to 3.5" in tab.text("confirm-text")
    # Without a name nothing happens.
    reach("confirm-apply")
    tab.press(*SPACE)
    assert line.control.limits.value == 10.0
    tab.evaluate("document.getElementById('who').focus()")
    tab.type("Ada")
    tab.press(*ENTER)
    wait_for(lambda: line.control.limits.value == 3.5)
    wait_for(lambda: not tab.evaluate("document.getElementById('confirm').open"))
    wait_for(lambda: "now 3.5" in tab.text("threshold-now") and "Ada" in tab.text("changes"))
    (record,) = [json.loads(text) for text in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (record["who"], record["old"], record["new"]) == ("Ada", 10.0, 3.5)
    assert record["to_anomaly"] > 0


def test_escape_changes_nothing_and_a_higher_threshold_is_warned_of(tab, line):
    wait_for(lambda: "now 10" in tab.text("threshold-now"))
    tab.evaluate("attempt(20)")
    wait_for(lambda: not tab.evaluate("document.getElementById('apply').disabled"))
    tab.evaluate("document.getElementById('apply').click()")
    wait_for(lambda: tab.evaluate("document.getElementById('confirm').open"))
    assert not tab.evaluate("document.getElementById('confirm-risk').hidden")  # it lets parts pass
    tab.press("Escape", 27)
    wait_for(lambda: not tab.evaluate("document.getElementById('confirm').open"))
    assert line.control.limits.value == 10.0


def test_everything_comes_from_this_server(tab, line):
    time.sleep(0.5)
    assert {url for url in tab.requests() if not url.startswith(line.page.url)} <= {"about:blank"}
    assert not tab.complaints()


def test_every_control_has_a_name_and_every_picture_a_text(tab):
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "spinbutton", "textbox", "combobox", "img", "image", "link"}
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value") in roles
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert not nameless
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.evaluate("document.querySelector('[aria-live=polite]') !== null")


def test_dark_and_narrow_screens_are_readable(tab):
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(background)
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert tab.evaluate(background) != light
        tab.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert tab.evaluate("document.documentElement.scrollWidth <= 390")
    finally:
        tab.send("Emulation.clearDeviceMetricsOverride")
        tab.send("Emulation.setEmulatedMedia", features=[])


def test_the_token_is_asked_for_and_opens_the_page(chromium):
    page = LivePage("127.0.0.1:0", token="0123456789abcdef0123")
    try:
        chromium.open(page.url)
        wait_for(lambda: chromium.evaluate("location.pathname") == "/login")
        wait_for(lambda: chromium.evaluate("document.readyState") == "complete")
        chromium.evaluate("document.querySelector('input').focus()")
        chromium.type("0123456789abcdef0123")
        chromium.press(*ENTER)
        wait_for(lambda: chromium.evaluate("location.pathname") == "/" and chromium.text("link-text") == "Live")
        assert "session" not in chromium.evaluate("document.cookie")
    finally:
        chromium.open("about:blank")
        page.close()
