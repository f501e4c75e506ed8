"""Sinks that speak to others, each against the real thing: broker, web server, scraper's parser, Modbus server."""

from __future__ import annotations

import gc
import json
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from types import ModuleType, SimpleNamespace
from urllib.error import HTTPError

import pytest

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision, Result
from edgead.runtime.sinks import open_sink
from edgead.runtime.sinks.callback import CallbackSink
from edgead.runtime.sinks.reject import PassSignal
from edgead.runtime.sinks.worker import SinkWorker
from edgead.runtime.streaming.stream import Stream
from edgead.runtime.uri import Parameters
from tests.runtime.sink_services import Web, certificate, free_port, modbus, mosquitto
from tests.waiting import LONG_S, wait_for

CAMERA = "synthetic://?fps=100&frames={}&width=64&height=64&policy=every"


def result(index=0, decision=Decision.OK, *, age_s=0.0, source="line", category=None):
    score = {Decision.OK: 1.0, Decision.ANOMALY: 12.5, Decision.NOT_INSPECTED: math.nan}[decision]
    stamp = time.monotonic_ns() - round(age_s * 1e9)
    return Result(score, 10.0, decision, index, stamp, source, category, timings={"end_to_end": 12.0})


def judge(item):
    decision = Decision.ANOMALY if item.index % 5 == 0 else Decision.OK
    return Result(12.5 if item.index % 5 == 0 else 1.0, 10.0, decision, item.index, item.timestamp_ns, item.source_id)


# MQTT


@pytest.fixture
def broker(tmp_path):
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt: pip install 'edgead[mqtt]'")
    process = mosquitto(tmp_path)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def listen():
    """``listen(port)``: the list that every message on ``line1/#`` is added to, as (topic, text, retained)."""
    import paho.mqtt.client as mqtt

    clients = []

    def start(port, user=None, password=None):
        got = []
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.username_pw_set(user, password)
        client.on_connect = lambda c, *_: c.subscribe("line1/#", qos=1)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = lambda _c, _d, m: got.append((m.topic, m.payload.decode(), m.retain))
        ready = threading.Event()
        client.connect("127.0.0.1", port)
        client.loop_start()
        clients.append(client)
        assert ready.wait(LONG_S)
        return got

    yield start
    for client in clients:
        client.disconnect()
        client.loop_stop()


def test_mqtt_publishes_every_result_and_its_status(broker, listen):
    got = listen(broker.port)
    uri = f"mqtt://127.0.0.1:{broker.port}/line1/results"
    with Stream(judge, CAMERA.format(20), sinks=[uri], queue_size=20, drain_s=LONG_S) as stream:
        (report,) = stream.run().sinks
    assert (report.written, report.failed, report.missed, report.last_error) == (20, 0, 0, None)
    wait_for(lambda: len(got) >= 22)
    results = [json.loads(text) for topic, text, _ in got if topic == "line1/results"]
    assert [line["frame_index"] for line in results] == list(range(20))
    assert results[5]["decision"] == "ANOMALY"
    assert results[0]["schema"] == "edgead.result/1"
    statuses = [text for topic, text, _ in got if topic == "line1/results/status"]
    assert (statuses[0], statuses[-1]) == ("online", "offline")


def test_mqtt_sends_what_was_asked_for(broker, listen):
    got = listen(broker.port)
    uri = f"mqtt://127.0.0.1:{broker.port}/line1/bad?only=anomaly&qos=0&retain=1&status=line1/up&client_id=press-3"
    with open_sink(uri) as sink:
        for index, decision in enumerate(Decision):
            if sink.accepts(result(index, decision), None):
                sink.write(result(index, decision), None)
    wait_for(lambda: any(topic == "line1/bad" for topic, *_ in got))
    assert [json.loads(text)["decision"] for topic, text, _ in got if topic == "line1/bad"] == ["ANOMALY"]
    later = listen(broker.port)
    wait_for(lambda: len(later) >= 2)
    assert {(topic, retained) for topic, _, retained in later} == {("line1/bad", True), ("line1/up", True)}


def test_a_broker_that_dies_and_returns_delays_no_decision(broker, listen):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/line1/results?timeout=300ms")
    done = []

    def judge_and_kill(item):
        if item.index == 30:
            wait_for(lambda: stream.summary.sinks[0].written >= 10)
            broker.kill()
        return judge(item)

    sinks = [sink, CallbackSink(lambda r, _: done.append(r))]
    stream = Stream(judge_and_kill, CAMERA.format(100), sinks=sinks, queue_size=100)
    summary = stream.run()
    report = summary.sinks[0]
    assert summary.frames.inspected == len(done) == 100
    assert report.accepted == 100 == report.written + report.failed + report.missed
    assert report.written >= 10
    assert report.failed >= 1
    assert "broker" in report.last_error
    # A sink that lives on finds the broker again by itself.
    worker = SinkWorker(open_sink(f"mqtt://127.0.0.1:{broker.port}/line1/results?timeout=300ms"), 0.0)
    worker.offer(result(0), None)
    wait_for(lambda: worker.report().failed == 1)
    broker.start()
    got = listen(broker.port)
    index = 0

    def arrived():
        nonlocal index
        index += 1
        worker.offer(result(index), None)
        time.sleep(0.1)
        return worker.report().written >= 3

    wait_for(arrived)
    worker.close(time.monotonic() + LONG_S)
    wait_for(lambda: any(topic == "line1/results" for topic, *_ in got))


def test_a_broker_that_hangs_costs_results_and_no_decision(broker):
    # Whoever waited for the broker would wait for so long.
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/line1/results?timeout={LONG_S:g}s")

    def judge_and_stop(item):
        if item.index == 20:
            broker.signal(signal.SIGSTOP)
        return judge(item)

    try:
        summary = Stream(judge_and_stop, CAMERA.format(60), sinks=[sink], queue_size=60, drain_s=0.5).run()
    finally:
        broker.signal(signal.SIGCONT)
    report = summary.sinks[0]
    assert summary.frames.inspected == 60
    assert report.accepted == 60 == report.written + report.failed + report.missed
    assert report.written < 60


def test_the_last_will_says_when_the_program_has_died(broker, listen):
    got = listen(broker.port)
    program = f"""
        import time
        from edgead.runtime.sinks import open_sink
        from edgead.runtime.frame import Decision, Result
        sink = open_sink("mqtt://127.0.0.1:{broker.port}/line1/results")
        sink.write(Result(1.0, 2.0, Decision.OK, 0, 0), None)
        time.sleep(600)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        wait_for(lambda: any(topic == "line1/results" for topic, *_ in got))
    finally:
        child.kill()
        child.wait()
    wait_for(lambda: ("line1/results/status", "offline") in [(topic, text) for topic, text, _ in got])


def test_a_wrong_password_is_said_and_never_shown(tmp_path, listen, caplog):
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt")
    passwords = tmp_path / "passwords"
    if subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "press", "right horse"], check=False).returncode:
        pytest.skip("needs mosquitto_passwd: apt-get install mosquitto")
    process = mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    process.start()
    try:
        with open_sink(f"mqtt://press:wrong%20horse@127.0.0.1:{process.port}/line1/r") as sink:
            with pytest.raises(DataError, match=r"refuses the connection|is gone") as caught:
                sink.write(result(), None)
            assert "horse" not in str(caught.value) + caplog.text + sink.name
        (tmp_path / "secret").write_text("right horse\n")
        got = listen(process.port, "press", "right horse")
        with open_sink(f"mqtt://press@127.0.0.1:{process.port}/line1/r?password_file={tmp_path}/secret") as sink:
            sink.write(result(), None)
        wait_for(lambda: any(topic == "line1/r" for topic, *_ in got))
    finally:
        process.kill()


# paho-mqtt 2.2 leaves the socket of a refused certificate to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_mqtt_over_tls_trusts_the_named_authority_only(tmp_path):
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt")
    own, key = certificate(tmp_path)
    settings = ("allow_anonymous true", f"certfile {own}", f"keyfile {key}")
    process = mosquitto(tmp_path, *settings)
    process.start()
    try:
        with open_sink(f"mqtts://127.0.0.1:{process.port}/line1/r?ca={own}") as sink:
            sink.write(result(), None)
        with open_sink(f"mqtts://127.0.0.1:{process.port}/line1/r") as sink, pytest.raises(DataError, match="broker"):
            sink.write(result(), None)
    finally:
        process.kill()
        gc.collect()


# Webhook


@pytest.fixture
def web():
    with Web().running() as server:
        yield server


def test_webhook_posts_every_result(web):
    uri = f"webhook+http://127.0.0.1:{web.port}/hook?room=a%20b&token=t0p#only=rejected"
    (report,) = Stream(judge, CAMERA.format(20), sinks=[uri], queue_size=20, drain_s=LONG_S).run().sinks
    assert (report.accepted, report.written, report.failed) == (4, 4, 0)
    assert [post["frame_index"] for post in web.posts] == [0, 5, 10, 15]
    path, headers = web.requests[0]
    assert path == "/hook?room=a%20b&token=t0p"
    assert headers["Content-Type"] == "application/json"
    assert len({sent["Idempotency-Key"] for _, sent in web.requests}) == 4
    assert report.name == f"webhook+http://127.0.0.1:{web.port}/***"


def test_webhook_tries_again_and_says_that_it_is_the_same(web):
    web.statuses = [503, 429, 200]
    with open_sink(f"webhook+http://127.0.0.1:{web.port}/hook") as sink:
        sink.write(result(7), None)
    assert [post["frame_index"] for post in web.posts] == [7]
    assert len(web.requests) == 3
    assert len({sent["Idempotency-Key"] for _, sent in web.requests}) == 1


@pytest.mark.parametrize(("status", "said"), [(404, "404"), (401, "401"), (307, "307"), (302, "302")])
def test_webhook_does_not_repeat_what_was_refused(web, status, said):
    web.statuses = [status] * 5
    with open_sink(f"webhook+http://127.0.0.1:{web.port}/hook") as sink, pytest.raises(DataError, match=said):
        sink.write(result(), None)
    assert len(web.requests) == 1


def test_webhook_gives_a_result_up_in_the_end(web):
    web.statuses = [500] * 50
    with (
        open_sink(f"webhook+http://127.0.0.1:{web.port}/hook#give_up=700ms") as sink,
        pytest.raises(DataError, match="answers 500"),
    ):
        sink.write(result(), None)
    assert 1 <= len(web.requests) <= 4


def test_webhook_says_who_is_not_there():
    with (
        open_sink(f"webhook+http://me:pw@127.0.0.1:{free_port()}/T0P/S3CR3T#give_up=100ms") as sink,
        pytest.raises(DataError, match="cannot be reached: Connection refused") as caught,
    ):
        sink.write(result(), None)
    assert "S3CR3T" not in sink.name + str(caught.value)
    assert "pw" not in sink.name


def test_a_web_server_that_hangs_costs_results_and_no_decision(web):
    web.gate.clear()
    # Whoever waited for the server would wait for so long.
    uri = f"webhook+http://127.0.0.1:{web.port}/hook#timeout={LONG_S:g}s&give_up={2 * LONG_S:g}s"
    summary = Stream(judge, CAMERA.format(60), sinks=[uri], queue_size=60, drain_s=0.5).run()
    report = summary.sinks[0]
    assert summary.frames.inspected == 60
    assert report.written == 0
    assert report.accepted == 60 == report.failed + report.missed


def test_webhook_carries_credentials_in_headers_only(web, tmp_path):
    (tmp_path / "token").write_text("abc123\n")
    with open_sink(f"webhook+http://127.0.0.1:{web.port}/a#token_file={tmp_path}/token") as sink:
        sink.write(result(), None)
    with open_sink(f"webhook+http://me:p%40w@127.0.0.1:{web.port}/b") as sink:
        sink.write(result(), None)
    (_, bearer), (path, basic) = web.requests
    assert bearer["Authorization"] == "Bearer abc123"
    assert basic["Authorization"] == "Basic bWU6cEB3"
    assert path == "/b"


def test_webhook_over_tls_trusts_the_named_authority_only(tmp_path):
    own, key = certificate(tmp_path)
    with Web((own, key)).running() as web:
        with open_sink(f"webhook+https://127.0.0.1:{web.port}/a#ca={own}") as sink:
            sink.write(result(), None)
        assert len(web.posts) == 1
        with (
            open_sink(f"webhook+https://127.0.0.1:{web.port}/a#give_up=100ms") as sink,
            pytest.raises(DataError, match="certificate verify failed"),
        ):
            sink.write(result(), None)
        assert len(web.posts) == 1


def test_webhook_asks_a_proxy_only_where_one_is_named(web, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with open_sink(f"webhook+http://127.0.0.1:{web.port}/a") as sink:
        sink.write(result(), None)
    with open_sink(f"webhook+http://server.invalid/b#proxy=http://127.0.0.1:{web.port}") as sink:
        sink.write(result(), None)
    assert [path for path, _ in web.requests] == ["/a", "http://server.invalid/b"]


# Prometheus


def scrape(sink, **headers):
    request = urllib.request.Request(sink.url, headers=headers)
    with urllib.request.urlopen(request, timeout=LONG_S) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_prometheus_reads_the_ledger_and_the_latency():
    parser = pytest.importorskip(
        "prometheus_client.parser", reason="needs prometheus-client: pip install 'edgead[dev]'"
    )
    sink = open_sink("prometheus://127.0.0.1:0")
    texts = []

    def judge_and_scrape(item):
        if item.index == 60:
            texts.append(scrape(sink))
        if item.index == 7:
            raise RuntimeError('a "quoted"\nreason')
        return judge(item)

    camera = CAMERA.format(80)
    stream = Stream(
        judge_and_scrape,
        camera,
        sinks=[sink, CallbackSink(lambda *_: None), CallbackSink(lambda *_: None)],
        queue_size=80,
    )
    stream.run()
    ((kind, text),) = texts
    assert kind.startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    value = {(s.name, *sorted(s.labels.items())): s.value for f in families.values() for s in f.samples}

    def of(name, **labels):
        return value[(name, *sorted({"source": camera.replace("&policy=every", ""), **labels}.items()))]

    captured = of("edgead_frames_captured_total")
    failed = of("edgead_frames_failed_total", reason='inspector failed: a "quoted" reason')
    assert failed == 1
    assert captured == of("edgead_frames_inspected_total") + failed + of("edgead_frames_in_flight") >= 61
    assert (of("edgead_camera_up"), of("edgead_camera_reconnects_total")) == (1, 0)
    assert value[("edgead_backend_hangs_total",)] == 0
    assert of("edgead_threshold", category="") == 10.0
    assert of("edgead_score") in (1.0, 12.5)
    assert 0 <= of("edgead_last_result_age_seconds") < LONG_S
    count = of("edgead_latency_seconds_count")
    assert 50 <= count <= 60
    assert of("edgead_latency_seconds_bucket", le="+Inf") == count
    buckets = [s.value for s in families["edgead_latency_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert value[("edgead_results_total", ("decision", "ANOMALY"))] >= 10
    # Two sinks of one name are told apart: a sample that stands there twice spoils the whole scrape.
    assert ("edgead_sink_pending", ("sink", "callback")) in value
    assert ("edgead_sink_pending", ("sink", "callback (3)")) in value
    kinds = {family.name: family.type for family in families.values()}
    assert kinds["edgead_frames_captured"] == "counter"
    assert kinds["edgead_latency_seconds"] == "histogram"


def test_prometheus_asks_for_its_token_and_its_own_name(tmp_path):
    (tmp_path / "token").write_text("abc\n")
    with open_sink(f"prometheus://127.0.0.1:0?token_file={tmp_path}/token") as sink:
        sink.attach(lambda: pytest.fail("nobody may look"))
        for headers, status in (({}, 401), ({"Host": "evil.example"}, 421), ({"Authorization": "Bearer x"}, 401)):
            with pytest.raises(HTTPError) as refused:
                scrape(sink, **headers)
            assert refused.value.code == status
            refused.value.close()
    with open_sink("prometheus://127.0.0.1:0") as sink:
        taken = sink.url.split("/")[2]
        with pytest.raises(ConfigError, match="cannot listen on"):
            open_sink(f"prometheus://{taken}")


# The signal "part is OK"


class Lamp:
    """An output that notes what it is told, and fails on demand."""

    def __init__(self, fail=()):
        self.on, self.log, self.beats, self.fail, self.connects = None, [], [], set(fail), 0

    def connect(self):
        self.connects += 1
        self._maybe("connect")

    def switch(self, on):
        self._maybe("switch")
        self.on = on
        self.log.append(on)

    def beat(self, count):
        self._maybe("beat")
        self.beats.append(count)

    def close(self):
        pass

    def _maybe(self, what):
        if what in self.fail:
            raise OSError(f"no {what}")


def test_the_signal_is_on_after_a_fresh_ok_only_and_not_for_long():
    lamp = Lamp()
    with PassSignal("lamp", lamp, hold_s=2.0, max_age_s=LONG_S, beat_s=0.05) as sink:
        assert lamp.on in (None, False)
        sink.write(result(0), None)
        assert lamp.on
        sink.write(result(1, Decision.ANOMALY), None)
        assert not lamp.on
        sink.write(result(2), None)
        assert lamp.on
        sink.write(result(3, Decision.NOT_INSPECTED), None)
        assert not lamp.on
        with pytest.raises(DataError, match=f"later than {LONG_S:g} s: not passed on"):
            sink.write(result(4, age_s=LONG_S + 1), None)
        assert not lamp.on
        sink.write(result(5), None)
        assert lamp.on
        wait_for(lambda: not lamp.on)  # nothing comes any more
        sink.write(result(6), None)
        wait_for(lambda: len(lamp.beats) >= 3)
    assert not lamp.on
    assert lamp.log[0] is False
    assert lamp.beats == sorted(lamp.beats)


def test_a_lost_output_is_counted_switched_off_on_return_and_never_waited_for():
    lamp = Lamp()
    worker = SinkWorker(PassSignal("lamp", lamp, hold_s=LONG_S, beat_s=0.05), 0.0)
    worker.offer(result(0), None)
    wait_for(lambda: worker.report().written == 1)
    assert lamp.on
    lamp.fail = {"connect", "switch", "beat"}
    wait_for(lambda: lamp.connects >= 2)
    worker.offer(result(1), None)
    wait_for(lambda: worker.report().failed == 1)
    assert "no connect" in worker.report().last_error
    lamp.fail = set()
    wait_for(lambda: not lamp.on)  # the OK of long ago is not held up
    worker.offer(result(2), None)
    wait_for(lambda: worker.report().written == 2)
    worker.close(time.monotonic() + LONG_S)
    assert not lamp.on


def test_an_output_that_cannot_be_switched_off_at_the_end_is_told():
    lamp = Lamp()
    sink = PassSignal("lamp", lamp, hold_s=LONG_S)
    sink.write(result(0), None)
    lamp.fail = {"connect", "switch", "beat"}
    with pytest.raises(DataError, match="may still be on: no connect"):
        sink.close()


@pytest.fixture
def plc():
    process = modbus()
    process.start()
    yield process
    process.kill()


class Plc:
    """What the PLC sees, read by a client of its own."""

    def __init__(self, port):
        from pymodbus.client import ModbusTcpClient

        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=LONG_S)
        assert self.client.connect()

    def coil(self, address):
        return self.client.read_coils(address, count=1).bits[0]

    def register(self, address):
        return self.client.read_holding_registers(address, count=1).registers[0]


def test_modbus_coil_and_heartbeat(plc):
    seen = Plc(plc.port)
    assert seen.coil(3)  # as another program left it
    with open_sink(f"modbus://127.0.0.1:{plc.port}/coil/3?hold=2s&heartbeat=10&beat=50ms") as sink:
        wait_for(lambda: not seen.coil(3))
        sink.write(result(0), None)
        assert seen.coil(3)
        assert seen.coil(4)  # the neighbour is left alone
        wait_for(lambda: not seen.coil(3))
        sink.write(result(1), None)
        sink.write(result(2, Decision.ANOMALY), None)
        assert not seen.coil(3)
        first = seen.register(10)
        wait_for(lambda: seen.register(10) != first)
        sink.write(result(3), None)
    assert not seen.coil(3)
    last = seen.register(10)
    time.sleep(0.2)
    assert seen.register(10) == last  # by which the PLC knows
    seen.client.close()


def test_a_dead_program_is_seen_by_its_heartbeat(plc):
    seen = Plc(plc.port)
    program = f"""
        import time
        from edgead.runtime.sinks import open_sink
        from edgead.runtime.frame import Decision, Result
        sink = open_sink("modbus://127.0.0.1:{plc.port}/coil/3?hold=600s&heartbeat=10&beat=50ms")
        while True:
            sink.write(Result(1.0, 2.0, Decision.OK, 0, time.monotonic_ns()), None)
            time.sleep(0.05)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        wait_for(lambda: seen.coil(3) and seen.register(10) > 2)
    finally:
        child.kill()
        child.wait()
    assert seen.coil(3)  # no program can help that ...
    last = seen.register(10)
    time.sleep(0.3)
    assert seen.register(10) == last  # ... but the PLC can
    seen.client.close()


def test_a_plc_that_goes_and_returns(plc):
    uri = f"modbus://127.0.0.1:{plc.port}/coil/3?timeout=300ms&beat=50ms"
    worker = SinkWorker(open_sink(uri), 0.0)
    worker.offer(result(0), None)
    wait_for(lambda: worker.report().written == 1)
    plc.kill()
    time.sleep(0.3)
    worker.offer(result(1), None)
    wait_for(lambda: worker.report().failed == 1)
    plc.start()
    seen = Plc(plc.port)
    wait_for(lambda: not seen.coil(3))
    sent = 2

    def arrived():
        nonlocal sent
        worker.offer(result(sent), None)
        sent += 1
        time.sleep(0.1)
        return worker.report().written >= 2

    wait_for(arrived)
    worker.close(time.monotonic() + LONG_S)
    assert not seen.coil(3)
    seen.client.close()


def test_a_plc_that_hangs_costs_results_and_no_decision(plc):
    uri = f"modbus://127.0.0.1:{plc.port}/coil/3?timeout={LONG_S:g}s&beat=50ms"

    def judge_and_stop(item):
        if item.index == 20:
            plc.signal(signal.SIGSTOP)
        return judge(item)

    try:
        summary = Stream(judge_and_stop, CAMERA.format(60), sinks=[uri], queue_size=60, drain_s=0.5).run()
    finally:
        plc.signal(signal.SIGCONT)
    report = summary.sinks[0]
    assert summary.frames.inspected == 60
    assert report.accepted == 60 == report.written + report.failed + report.missed


def test_gpio_pin_through_a_stand_in_for_its_library(monkeypatch):
    """No board was at hand: this holds our calls against the names and the order of libgpiod 2, no more."""
    from edgead.runtime.sinks import gpio

    calls = []
    value = SimpleNamespace(ACTIVE="active", INACTIVE="inactive")
    line = ModuleType("gpiod.line")
    line.Direction, line.Value = SimpleNamespace(OUTPUT="output"), value
    request = SimpleNamespace(
        set_value=lambda number, to: calls.append((number, to)), release=lambda: calls.append("released")
    )
    library = ModuleType("gpiod")
    library.line = line
    library.LineSettings = lambda direction, active_low, output_value: (direction, active_low, output_value)
    library.request_lines = lambda path, consumer, config: calls.append((path, consumer, config)) or request
    monkeypatch.setitem(sys.modules, "gpiod", library)
    monkeypatch.setitem(sys.modules, "gpiod.line", line)
    with PassSignal("pin", gpio._Pin("/dev/gpiochip0", 17, True), hold_s=LONG_S) as sink:
        sink.write(result(0), None)
        sink.write(result(1, Decision.ANOMALY), None)
    assert calls == [
        ("/dev/gpiochip0", "edgead", {17: ("output", True, "inactive")}),
        (17, "inactive"),
        (17, "active"),
        (17, "inactive"),
        (17, "inactive"),
        "released",
    ]
    parameters = Parameters.parse("gpio://nochip/17", [], ())
    with pytest.raises(ConfigError, match="there is no /dev/nochip"):
        gpio.GpioSink("gpio://nochip/17", parameters)
    with pytest.raises(ConfigError, match="write chip and line"):
        gpio.GpioSink("gpio://gpiochip0", parameters)


# Opening


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mqtt://broker", "is no topic to write to"),
        ("mqtt://broker/line/#", "is no topic to write to"),
        ("mqtt://broker/line/+/x", "is no topic to write to"),
        ("mqtt://", "needs an address, such as mqtt://broker"),
        ("mqtt://me:secret@/x", "write host, host:port"),
        ("mqtt://broker:99999/x", "write host, host:port"),
        ("mqtt://me:secret/5@broker/x", "write a / in a user or password as %2F"),
        ("webhook+https://me:secret/5@server/x", "write a / in a user or password as %2F"),
        ("mqtt://broker/x?qos=3", "whole number from 0 to 2"),
        ("mqtt://broker/x?password_file=/nowhere", "cannot read password_file"),
        ("mqtt://broker/x?ca=x.pem", "ca is for mqtts"),
        ("mqtts://broker/x?ca=/nowhere.pem", "cannot use ca"),
        ("mqtt://:secret@broker/x", "a password needs a user"),
        ("webhook+https://", "needs an address"),
        ("webhook+https://host/x#onyl=all", "Did you mean 'only'"),
        ("webhook+https://host/x#token_file=/nowhere", "cannot read token_file"),
        ("https://host/x", r"write webhook\+https"),
        ("webhook://host/x", r"write webhook\+https"),
        ("web://127.0.0.1", "--serve 127.0.0.1:8080"),
        ("modbus://plc/3", "write the coil's address"),
        ("modbus://plc/coil/70000", "write the coil's address"),
        ("modbus://plc/coil/3?hold=0", "is not a duration"),
        ("prometheus://", "needs an address"),
        ("prometheus://nowhere.invalid:9100", "cannot listen on"),
    ],
)
def test_mistakes_are_one_clear_line(uri, message):
    for package in ("paho", "pymodbus"):
        pytest.importorskip(package)
    with pytest.raises(ConfigError, match=message) as caught:
        open_sink(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [
        ("mqtt://broker/x", "paho", "paho-mqtt is not installed; run: pip install 'edgead[mqtt]'"),
        ("modbus://plc/coil/1", "pymodbus", "pymodbus is not installed; run: pip install 'edgead[modbus]'"),
        ("opcua://127.0.0.1", "asyncua", "asyncua is not installed; run: pip install 'edgead[opcua]'"),
        ("opc.tcp://plc?root=i=85", "asyncua", "asyncua is not installed; run: pip install 'edgead[opcua]'"),
        ("gpio://gpiochip0/17", "gpiod", "gpiod is not installed; run: pip install 'edgead[gpio]'"),
        ("video:x", "cv2", "opencv-python-headless is not installed; run: pip install 'edgead[camera]'"),
    ],
)
def test_a_missing_library_is_named_with_its_command(uri, package, extra, monkeypatch):
    import edgead.runtime.sinks as sinks

    find = sinks.find_spec
    monkeypatch.setattr(sinks, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ConfigError) as caught:
        open_sink(uri)
    assert extra in str(caught.value)
