"""The live page: what it answers, whom it answers, and that nobody who looks can hold up the line."""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.streaming.stream import Stream
from tests.waiting import LONG_S

TOKEN = "0123456789abcdef0123"


class Control:
    """Stands in for an inspector: what the page asks of it, and nothing else."""

    name = "plate"

    def __init__(self, limits=None):
        self.limits = limits or Limits(10.0)

    def set_threshold(self, value, category=None):
        before = self.limits
        self.limits = (
            Limits(value) if category is None else Limits(before.value, {**before.categories, category: value})
        )
        return before.value


def result(index=0, score=1.0, *, source="cam", threshold=10.0, category=None, age_s=0.0, reason=None):
    decision = Decision.NOT_INSPECTED if math.isnan(score) else Decision.ANOMALY if score > threshold else Decision.OK
    stamp = time.monotonic_ns() - round(age_s * 1e9)
    grid = np.full((4, 4), score, np.float32)
    return Result(
        score, threshold, decision, index, stamp, source, category, grid, {"end_to_end": 5.0 + index % 3}, reason
    )


def frame(index=0, layout="rgb", size=(120, 160), source="cam"):
    shape = size if layout == "gray" else (*size, 3)
    return Frame(np.full(shape, 90, np.uint8), index, time.monotonic_ns(), source, layout)


@pytest.fixture
def serve():
    pages = []

    def make(**options):
        pages.append(LivePage("127.0.0.1:0", **options))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body, parse_constant=pytest.fail)

    @property
    def picture(self):
        return Image.open(io.BytesIO(self.body))


def ask(page, path, method="GET", body=None, **headers):
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=LONG_S)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def change(page, body, **headers):
    """What the page's own script sends, with changes."""
    netloc = page.url.removeprefix("http://").rstrip("/")
    sent = {
        "Content_Type": "application/json",
        "Origin": f"http://{netloc}",
        "X_Edgead_Word": page.access.word,
        **headers,
    }
    sent = {name: value for name, value in sent.items() if value is not None}
    return ask(page, "/api/threshold", "POST", json.dumps(body) if isinstance(body, dict) else body, **sent)


# What it shows


def test_state_holds_all_that_a_browser_shows(serve):
    page = serve(control=Control())
    for index in range(12):
        page.write(result(index, float(index)), frame(index))
    page.write(result(12, math.nan, reason="non-finite score"), frame(12))
    page.write(result(0, 50.0, source="other"), None)
    state = ask(page, "/api/state").json
    first, second = state["cameras"]
    assert (first["name"], first["decision"], first["score"]) == ("cam", "NOT_INSPECTED", None)
    assert (first["reason"], first["frame_index"], first["has_picture"]) == ("non-finite score", 12, True)
    assert (second["decision"], second["has_picture"]) == ("ANOMALY", False)
    assert 0 <= first["age_s"] < 2
    assert [point[2] for point in state["trace"]["points"]] == [*map(float, range(12)), None, 50.0]
    assert [point[4] for point in state["trace"]["points"]] == [0] * 11 + [1, 2, 1]
    assert state["latency_ms"] == {"p50": 6.0, "p99": 7.0, "count": 13}
    assert [anomaly["frame_index"] for anomaly in state["anomalies"]] == [0, 11]
    assert state["control"]["thresholds"] == [{"category": None, "value": 10.0}]
    assert state["model"] == "plate"
    newer = ask(page, f"/api/state?since={state['trace']['newest'] - 2}").json
    assert len(newer["trace"]["points"]) == 2
    # A browser that knew an earlier run with more results begins anew.
    assert len(ask(page, "/api/state?since=999999").json["trace"]["points"]) == 14


def test_age_counts_from_capture_so_that_no_old_decision_looks_new(serve):
    page = serve()
    page.write(result(0, 1.0, age_s=7.0), frame())
    camera = ask(page, "/api/state").json["cameras"][0]
    assert 7.0 <= camera["age_s"] < 9.0


def test_the_run_stands_on_the_page_as_in_its_summary(serve):
    page = serve()
    seen = {}

    def judge(item):
        if item.index == 30:
            seen.update(ask(page, "/api/state").json)
        return result(item.index, 1.0, source=item.source_id)

    camera = "synthetic://?fps=200&frames=40&width=64&height=64&policy=every"
    stream = Stream(judge, camera, sinks=[page], queue_size=40, drain_s=LONG_S)
    # Before the first frame the camera is there, without a decision.
    summary = stream.run()
    frames = seen["frames"]
    assert frames["captured"] == frames["inspected"] + frames["dropped"] + frames["failed"] + frames["in_flight"] >= 31
    assert frames["in_flight"] >= 1
    assert seen["cameras"][0]["policy"] == "every"
    assert [sink["name"] for sink in seen["sinks"]] == ["live page"]
    assert summary.sinks[0].written == 40
    with pytest.raises(OSError, match=r"refused|reset"):
        ask(page, "/api/state")


@pytest.mark.parametrize("layout", ["rgb", "bgr", "gray"])
def test_pictures_are_those_of_the_result_and_small(serve, layout):
    page = serve()
    page.write(result(3, 30.0), frame(3, layout, (1000, 2000)))
    camera = ask(page, "/api/state").json["cameras"][0]
    plain = ask(page, f"/api/picture/0.jpg?number={camera['number']}&heat=0")
    heated = ask(page, f"/api/picture/0.jpg?number={camera['number']}&heat=1")
    assert plain.headers["Content-Type"] == "image/jpeg"
    assert plain.picture.size == (960, 480)
    assert max(abs(value - 90) for value in plain.picture.getpixel((50, 50))) < 4
    assert heated.picture.getpixel((50, 50)) != plain.picture.getpixel((50, 50))
    assert ask(page, f"/api/picture/0.jpg?number={camera['number'] + 1}").status == 404
    anomaly = ask(page, "/api/state").json["anomalies"][0]
    assert ask(page, f"/api/anomaly/{anomaly['number']}.jpg").picture.size == (240, 120)
    assert ask(page, f"/api/anomaly/{anomaly['number']}.jpg?large=1").picture.size == (400, 200)


def test_memory_is_bounded_and_nothing_is_encoded_for_nobody(serve, monkeypatch):
    from edgead.runtime.dashboard import thumbnails as pictures

    made = []
    encode = pictures.encode_jpeg
    monkeypatch.setattr(pictures, "encode_jpeg", lambda *a: made.append(1) or encode(*a))
    page = serve()
    for index in range(3000):
        page.write(result(index, 20.0), frame(index))
    assert not made
    state = ask(page, "/api/state").json
    assert len(state["anomalies"]) == 24
    assert len(state["trace"]["points"]) == 400
    assert state["latency_ms"]["count"] == 1000
    for _ in range(3):  # three browsers share one picture
        ask(page, f"/api/picture/0.jpg?number={state['cameras'][0]['number']}&heat=1")
    assert len(made) == 1


def test_ten_states_a_second_are_looked_at_however_many_ask(serve):
    page = serve()
    numbers = set()
    started = time.monotonic()
    index = 0
    while index < 100 or time.monotonic() - started < 0.6:
        page.write(result(index, 1.0), frame(index))
        numbers.add(page.state(0)["cameras"][0]["number"])
        index += 1
    assert len(numbers) <= 10 * (time.monotonic() - started) + 2


# Who may look


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "192.168.1.5"])
def test_a_name_that_was_bent_to_this_machine_is_refused(serve, host):
    page = serve()
    assert ask(page, "/api/state", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_loopback_has_several_names_and_tunnels_other_ports(serve, host):
    assert ask(serve(), "/api/state", Host=host).status == 200


def test_every_answer_forbids_foreign_content(serve):
    page = serve()
    for path in ("/", "/page.js", "/page.css", "/draw.js", "/icon.svg", "/login", "/api/state", "/nothing"):
        answer = ask(page, path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert b"http://" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in answer.body
    assert ask(page, "/").headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    "path", ["/../sink.py", "/sink.py", "/%2e%2e/pyproject.toml", "//etc/passwd", "/index.html/.."]
)
def test_only_the_page_s_own_files_are_served(serve, path):
    assert ask(serve(), path).status == 404


def test_another_machine_may_not_look_without_a_token():
    with pytest.raises(ConfigError, match=r"needs a token: --serve-token FILE"):
        LivePage("0.0.0.0:0")
    with pytest.raises(ConfigError, match="16 characters or more"):
        LivePage("0.0.0.0:0", token="short")
    with pytest.raises(ConfigError, match=r"such as 127\.0\.0\.1:8080"):
        LivePage("http://localhost:8080/")


def test_an_address_of_version_6():
    try:
        page = LivePage("[::1]:0")
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    port = page.url.rsplit(":", 1)[1].rstrip("/")
    assert page.url == f"http://[::1]:{port}/"
    connection = http.client.HTTPConnection("::1", int(port), timeout=LONG_S)
    connection.request("GET", "/api/state")
    assert connection.getresponse().read().startswith(b"{")
    connection.close()
    page.close()


def test_a_taken_address_is_one_clear_line(serve):
    taken = serve().url.removeprefix("http://").rstrip("/")
    with pytest.raises(ConfigError, match=f"cannot listen on {taken}: Address already in use"):
        LivePage(taken)


def test_with_a_token_nothing_is_shown_before_it_was_given(serve):
    page = serve(token=TOKEN)
    page.write(result(0, 20.0), frame())
    assert ask(page, "/").headers["Location"] == "/login"
    for path in ("/api/state", "/api/preview?value=1", "/api/picture/0.jpg?number=1", "/api/anomaly/1.jpg", "/page.js"):
        assert ask(page, path).status == 401
    assert change(page, {"value": 1, "expected": 10, "category": None, "who": "me"}).status == 401
    form = {"Content_Type": "application/x-www-form-urlencoded", "Origin": page.url.rstrip("/")}
    wrong = ask(page, "/login", "POST", "token=wrong", **form)
    assert (wrong.status, wrong.headers["Location"], wrong.headers["Set-Cookie"]) == (303, "/login?wrong", None)
    foreign = ask(page, "/login", "POST", f"token={TOKEN}", **{**form, "Origin": "http://evil.example"})
    assert foreign.status == 403
    right = ask(page, "/login", "POST", f"token={TOKEN}", **form)
    cookie = right.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert ask(page, "/api/state", Cookie=cookie.split(";")[0]).status == 200
    assert ask(page, "/api/state", Cookie="edgead_session=").status == 401
    assert ask(page, "/api/state", Authorization=f"Bearer {TOKEN}").status == 200
    assert ask(page, "/api/state", Authorization="Bearer x").status == 401


def test_nothing_secret_is_served(serve):
    page = serve(control=Control(), token=None)
    page.write(result(0, math.nan, source="rtsp://***@camera/1", reason="rtsp://admin:hunter2@camera/1 is gone"), None)
    text = ask(page, "/api/state").body
    assert b"hunter2" not in text
    assert b"camera/1 is gone" in text


# Nobody who looks holds up the line


def test_a_page_that_is_closed_answers_nobody_any_more(serve):
    page = serve()
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG_S) as connection:
        connection.sendall(b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100_000).startswith(b"HTTP/1.1 200")
        page.close()
        while connection.recv(100_000):  # until the end, which comes at once
            pass


def test_garbage_on_the_wire_harms_nobody(serve, capfd):
    page = serve(control=Control())
    page.write(result(0, 20.0), frame())
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    rng = np.random.default_rng(0)
    heads = [
        b"GET /api/state?since=99999999999999999999&since=x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/preview?value=1e999&value=&category=%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/picture/9999.jpg?number=1&heat=2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/state?" + b"a=1&" * 100 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api/threshold HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 10\r\n\r\n",
        b"PUT / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ]
    for number in range(150):
        data = bytearray(heads[number % len(heads)] if number % 3 else rng.bytes(int(rng.integers(1, 400))))
        for _ in range(int(rng.integers(0, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        # It may be refused before it was sent whole.
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=LONG_S) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while answer := connection.recv(65536):
                assert b"Traceback" not in answer
    assert ask(page, "/api/state").json["cameras"][0]["decision"] == "ANOMALY"
    assert capfd.readouterr().err == ""


def test_browsers_that_ask_without_end_and_read_nothing_delay_no_decision(serve):
    page = serve()
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    flood = b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    with ExitStack() as stack:
        # More than there are places.
        sleepers = [stack.enter_context(socket.create_connection((host, int(port)), timeout=LONG_S)) for _ in range(60)]
        for sleeper in sleepers[:40]:
            sleeper.send(flood)
        stream = Stream(
            lambda item: result(item.index, 20.0, source=item.source_id),
            "synthetic://?fps=100&frames=100&width=640&height=480&policy=every",
            sinks=[page],
            queue_size=100,
            drain_s=LONG_S,
        )
        summary = stream.run()
    assert summary.frames.inspected == 100
    assert summary.sinks[0].written + summary.sinks[0].missed == 100
    # A browser that is waited for takes 10 s.
    assert summary.latency.p50 < 8_000


# Thresholds


def test_preview_counts_what_would_change_and_changes_nothing(serve):
    control = Control()
    page = serve(control=control)
    for index in range(1500):
        page.write(result(index, float(index % 20)), None)
    assert {k: ask(page, "/api/preview?value=10").json[k] for k in ("parts", "to_anomaly", "to_ok")} == {
        "parts": 1000, "to_anomaly": 0, "to_ok": 0,
    }  # fmt: skip
    lower = ask(page, "/api/preview?value=4.5").json
    assert (lower["to_anomaly"], lower["to_ok"], lower["now"]) == (300, 0, 10.0)
    higher = ask(page, "/api/preview?value=14").json
    assert (higher["to_anomaly"], higher["to_ok"]) == (0, 200)
    assert sum(higher["histogram"]["counts"]) == 1000
    assert higher["histogram"]["high"] >= 19
    for query in ("value=nan", "value=inf", "value=x", "", "value=1&category=x"):
        assert ask(page, f"/api/preview?{query}").status == 400
    assert control.limits == Limits(10.0)


def test_a_change_is_written_down_before_it_is_made(serve, tmp_path):
    control = Control()
    page = serve(control=control, audit=tmp_path / "log" / "audit.jsonl")
    for index in range(20):
        page.write(result(index, float(index)), None)
    answer = change(page, {"value": 4.5, "expected": 10.0, "category": None, "who": " Ada  L. "})
    assert answer.status == 200
    assert control.limits.value == 4.5
    (record,) = [json.loads(line) for line in (tmp_path / "log" / "audit.jsonl").read_text().splitlines()]
    assert {k: record[k] for k in ("schema", "event", "who", "from", "model", "category", "old", "new")} == {
        "schema": "edgead.action/1", "event": "threshold", "who": "Ada L.", "from": "127.0.0.1", "model": "plate",
        "category": None, "old": 10.0, "new": 4.5,
    }  # fmt: skip
    assert (record["parts"], record["to_anomaly"], record["to_ok"]) == (20, 6, 0)
    assert record["time"].endswith("Z")
    assert ask(page, "/api/state").json["control"]["changes"][0]["who"] == "Ada L."
    change(page, {"value": 5.5, "expected": 4.5, "category": None, "who": "Bob"})
    assert len((tmp_path / "log" / "audit.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"value": 4.0, "expected": 9.0, "category": None, "who": "Ada"}, 409, "somebody else changed it"),
        ({"value": 4.0, "expected": 10.0, "category": None, "who": "  "}, 409, "write your name"),
        ({"value": 4.0, "expected": 10.0, "category": "x", "who": "Ada"}, 409, "no such category"),
        ({"value": 4.0, "expected": 10.0, "category": None}, 400, "write value, expected"),
        ({"value": "a", "expected": 10.0, "category": None, "who": "Ada"}, 400, "write value, expected"),
        ('{"value": NaN, "expected": 10.0, "category": null, "who": "Ada"}', 409, "finite"),
        ("[" * 3000, 400, "write value, expected"),
        ("x" * 5000, 413, ""),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(serve, tmp_path, body, status, said):
    control = Control()
    page = serve(control=control, audit=tmp_path / "audit.jsonl")
    answer = change(page, body)
    assert answer.status == status
    assert said in answer.body.decode()
    assert control.limits == Limits(10.0)
    assert (tmp_path / "audit.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"X_Edgead_Word": None},
        {"X_Edgead_Word": "guess"},
    ],
)
def test_other_sites_change_nothing(serve, tmp_path, headers):
    control = Control()
    page = serve(control=control, audit=tmp_path / "audit.jsonl")
    body = {"value": 4.0, "expected": 10.0, "category": None, "who": "Eve"}
    assert change(page, body, **headers).status == 403
    # A form of another site can send this kind without asking first.
    assert change(page, body, Content_Type="text/plain").status == 400
    assert control.limits == Limits(10.0)


def test_without_an_audit_log_nothing_can_be_changed(serve):
    control = Control()
    page = serve(control=control)
    assert "--serve-audit" in ask(page, "/api/state").json["control"]["locked"]
    answer = change(page, {"value": 4.0, "expected": 10.0, "category": None, "who": "Ada"})
    assert (answer.status, control.limits.value) == (409, 10.0)


def test_a_log_that_cannot_be_written_prevents_the_change(serve, tmp_path):
    control = Control()
    page = serve(control=control, audit=tmp_path / "log" / "audit.jsonl")
    (tmp_path / "log" / "audit.jsonl").unlink()
    (tmp_path / "log").rmdir()
    answer = change(page, {"value": 4.0, "expected": 10.0, "category": None, "who": "Ada"})
    assert (answer.status, control.limits.value) == (500, 10.0)
    assert "audit log" in answer.body.decode()


def test_a_change_that_fails_is_written_down_too(serve, tmp_path):
    class Stubborn(Control):
        def set_threshold(self, value, category=None):  # noqa: ARG002
            raise ConfigError("not now")

    page = serve(control=Stubborn(), audit=tmp_path / "audit.jsonl")
    answer = change(page, {"value": 4.0, "expected": 10.0, "category": None, "who": "Ada"})
    assert (answer.status, answer.body) == (409, b"not now\n")
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("reason")) for event in events] == [
        ("threshold", None),
        ("threshold not changed", "not now"),
    ]


def test_a_routed_model_has_a_threshold_for_each_category(serve, tmp_path):
    control = Control(Limits(10.0, {"bolt": 5.0, "nut": 8.0}))
    page = serve(control=control, audit=tmp_path / "audit.jsonl")
    for index in range(10):
        page.write(result(index, float(index), threshold=5.0, category="bolt"), None)
        page.write(result(index, float(index), threshold=8.0, category="nut"), None)
    assert [entry["category"] for entry in ask(page, "/api/state").json["control"]["thresholds"]] == ["bolt", "nut"]
    assert ask(page, "/api/preview?value=6").status == 400
    seen = ask(page, "/api/preview?value=6.5&category=bolt").json
    assert (seen["parts"], seen["now"], seen["to_ok"]) == (10, 5.0, 1)
    assert change(page, {"value": 6.5, "expected": 5.0, "category": "bolt", "who": "Ada"}).status == 200
    assert control.limits.categories == {"bolt": 6.5, "nut": 8.0}


def test_a_real_inspector_judges_by_the_new_threshold(serve, make_bundle, tmp_path):
    from edgead.runtime.inspection.inspector import Inspector

    with Inspector.open(make_bundle(), backend="onnxruntime") as inspector:
        page = serve(control=inspector, audit=tmp_path / "audit.jsonl")
        image = np.full((31, 45, 3), 100, np.uint8)
        before = inspector(image)
        assert before.decision is Decision.OK
        body = {"value": before.score - 1, "expected": inspector.threshold, "category": None, "who": "Ada"}
        assert change(page, body).status == 200
        after = inspector(image)
        assert (after.decision, after.threshold) == (Decision.ANOMALY, before.score - 1)
