"""OPC UA both ways, against the real thing: clients that read our server, and a PLC's server that we write to."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import BadFrame, Decision, Frame, Result
from edgead.runtime.sinks import open_sink
from edgead.runtime.sinks.part_ids import PartIds
from edgead.runtime.sinks.worker import SinkWorker
from edgead.runtime.sources.push import PushSource
from edgead.runtime.streaming.part_naming import NamedParts
from edgead.runtime.streaming.stream import Stream
from tests.runtime.sink_services import application, free_port, opcua_plc
from tests.waiting import LONG_S, wait_for

pytest.importorskip("asyncua", reason="needs asyncua: pip install 'edgead[opcua]'")

OPEN = "opcua://127.0.0.1:0?security=none&anonymous=yes&beat=20ms"
BLACK = np.zeros((4, 4, 3), np.uint8)


def result(index=0, decision=Decision.OK, *, age_s=0.0, part=None):
    score = {Decision.OK: 1.0, Decision.ANOMALY: 12.5, Decision.NOT_INSPECTED: math.nan}[decision]
    stamp = time.monotonic_ns() - round(age_s * 1e9)
    return Result(score, 10.0, decision, index, stamp, "line", "plate", p_value=0.25, part_id=part)


def judge(frame):
    decision = Decision.ANOMALY if frame.index % 3 == 2 else Decision.OK
    return replace(
        result(frame.index, decision, part=frame.part_id), timestamp_ns=frame.timestamp_ns, source_id=frame.source_id
    )


class Peer:
    """A client of an OPC UA server, with nothing of edgead in it."""

    def __init__(self, url, space, certificate=None, key=None, login=None, trusted=None):
        from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
        from asyncua.sync import Client

        self.space = space
        self.client = Client(url, timeout=LONG_S)
        try:
            if certificate is not None:
                self.client.application_uri = f"urn:test:{certificate.stem}"
                pinned = None if trusted is None else str(trusted)
                self.client.set_security(SecurityPolicyBasic256Sha256, str(certificate), str(key), None, pinned)
            if login is not None:
                self.client.set_user(login[0])
                self.client.set_password(login[1])
            self.client.connect()
        except BaseException:
            self.client.tloop.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()

    def node(self, name):
        return self.client.get_node(f"ns={self.space};s={name}")

    def read(self, name):
        """The value; where the status is not good, its name."""
        data = self.node(name).read_data_value(raise_on_bad_status=False)
        return data.Value.Value if data.StatusCode.is_good() else data.StatusCode.name

    def all(self, *names):
        """Values of one moment: one request for all of them."""
        return self.client.read_values([self.node(name) for name in names])


class Events:
    """What a client hears that subscribes to ResultReadyEventType."""

    def __init__(self, peer):
        self.heard = []
        kind = peer.client.nodes.base_event_type.get_child([f"{peer.space}:ResultReadyEventType"])
        self.subscription = peer.client.create_subscription(20, self)
        self.subscription.subscribe_events(peer.client.nodes.server, kind)

    def event_notification(self, event):
        self.heard.append(event)


# The server


def test_clients_get_every_result_with_state_and_counters():
    sink = open_sink(OPEN + f"&hold={LONG_S:g}s&max_age={LONG_S:g}s")
    source = PushSource("cam", policy="every")
    with Peer(sink.url, 2) as peer:
        assert (peer.read("Decision"), peer.read("PartIsOk")) == ("BadWaitingForInitialData", False)
        assert (peer.read("State"), peer.read("Heartbeat")) == ("Preoperational", 0)
        events = Events(peer)
        stream = Stream(judge, source, sinks=[sink], queue_size=20)
        results = []
        thread = threading.Thread(target=lambda: results.extend(stream))
        thread.start()
        wait_for(lambda: (peer.read("State"), peer.read("Mode")) == ("Operational", "Ready"))
        for index in range(12):
            source.push(BLACK, part_id=f"part {index}")
        wait_for(lambda: len(events.heard) == 12)
        wait_for(lambda: peer.read("Captured") == 12 and peer.read("Mode") == "ContinuousExecution")
        assert peer.all("Inspected", "Ok", "Anomaly", "NotInspected", "Failed") == [12, 8, 4, 0, 0]
        # The last of them is an anomaly.
        names = ("Decision", "PartIsOk", "PartId", "Score", "Threshold", "Category", "SourceId", "FrameIndex", "PValue")
        assert peer.all(*names) == ["ANOMALY", False, "part 11", 12.5, 10.0, "plate", "cam", 11, 0.25]
        line = json.loads(peer.read("Json"))
        assert (line["schema"], line["part_id"], line["decision"]) == ("edgead.result/1", "part 11", "ANOMALY")
        beaten = peer.read("Heartbeat")
        wait_for(lambda: peer.read("Heartbeat") > beaten)
        source.end()
        thread.join(LONG_S)
        expected = [(r.decision.value, r.part_id, r.frame_index, r.decision is Decision.OK) for r in results]
        assert [(e.Decision, e.PartId, e.FrameIndex, e.PartIsOk) for e in events.heard] == expected
        assert len({e.ResultId for e in events.heard}) == 12
    (report,) = stream.summary.sinks
    assert (report.written, report.failed, report.missed, report.last_error) == (12, 0, 0, None)


def test_an_old_ok_is_no_ok():
    with open_sink(OPEN + "&hold=300ms&max_age=500ms") as sink, Peer(sink.url, 2) as peer:
        events = Events(peer)
        sink.write(result(0, part="A"), None)
        wait_for(lambda: events.heard)
        assert (events.heard[0].Decision, events.heard[0].PartIsOk) == ("OK", True)
        wait_for(lambda: not peer.read("PartIsOk"))
        assert {peer.read(name) for name in ("Decision", "Score", "PartId", "Json")} == {"BadTimeout"}
        # One that comes late never was one, and is counted as failed.
        with pytest.raises(DataError, match="later than 0"):
            sink.write(result(1, age_s=2.0, part="B"), None)
        assert peer.all("PartIsOk", "Decision", "PartId") == [False, "NOT_INSPECTED", "B"]
        assert json.loads(peer.read("Json"))["decision"] == "NOT_INSPECTED"
        sink.write(result(2, Decision.NOT_INSPECTED), None)
        assert peer.all("PartIsOk", "Decision", "PartId") == [False, "NOT_INSPECTED", ""]
        assert peer.read("Score") == "BadNoData"


def test_the_heartbeat_stands_still_while_nothing_is_decided():
    sink = open_sink(OPEN)
    source = PushSource("cam", policy="every")
    gate = threading.Event()

    def hang(frame):
        gate.wait(LONG_S)
        return judge(frame)

    with Peer(sink.url, 2) as peer:
        stream = Stream(hang, source, sinks=[sink], hang_s=0.05, give_up_s=LONG_S)
        thread = threading.Thread(target=stream.run)
        thread.start()
        wait_for(lambda: peer.read("Heartbeat") > 1)
        stream.pause()
        wait_for(lambda: peer.read("Mode") == "Ready")
        stream.resume()
        source.push(BLACK)
        wait_for(lambda: peer.read("State") == "Error")
        assert peer.read("Problem") == "the backend does not return"
        still = peer.read("Heartbeat")
        time.sleep(0.2)
        assert peer.read("Heartbeat") == still
        gate.set()
        wait_for(lambda: peer.read("State") == "Operational" and peer.read("Heartbeat") != still)
        sink.note("self-test failed", {"problems": ["reference 3"]})
        wait_for(lambda: peer.read("Problem") == "the self-test failed: reference 3")
        sink.note("self-test passed", {"problems": []})
        wait_for(lambda: peer.read("State") == "Operational")
        stream.stop()
        thread.join(LONG_S)


def test_a_killed_program_leaves_no_ok_behind():
    port = free_port()
    program = f"""
        import time
        from edgead.runtime.sinks import open_sink
        from edgead.runtime.frame import Decision, Result
        sink = open_sink("opcua://127.0.0.1:{port}?security=none&anonymous=yes&hold=600s")
        while True:
            sink.write(Result(1.0, 2.0, Decision.OK, 0, time.monotonic_ns()), None)
            time.sleep(0.05)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        peer = None

        def connected():
            nonlocal peer
            try:
                peer = Peer(f"opc.tcp://127.0.0.1:{port}", 2)
            except OSError:
                return False
            return True

        wait_for(connected)
        wait_for(lambda: peer.read("Decision") == "OK")
    finally:
        child.kill()
        child.wait()
    with pytest.raises(Exception, match=r"(?i)closed|connect|disconnect"):
        peer.read("Decision")
    peer.client.tloop.post(peer.client.aio_obj.disconnect())
    peer.client.tloop.stop()


# Part ids


@pytest.fixture
def line():
    """A run with announced part ids: the peer, ``push(stamp)``, and the results so far."""
    sink = open_sink(OPEN + f"&part_id=announced&part_age={LONG_S:g}s")
    source = PushSource("cam", policy="every")
    results = []
    stream = Stream(judge, source, sinks=[sink])
    thread = threading.Thread(target=lambda: results.extend(iter_into(stream, results)))
    thread.start()

    def push(stamp=None, part=None):
        count = len(results) + 1
        source.push(BLACK, stamp, part_id=part)
        wait_for(lambda: len(results) >= count)
        return results[-1]

    with Peer(sink.url, 2) as peer:
        yield peer, push
        source.end()
        thread.join(LONG_S)


def iter_into(stream, results):
    for one in stream:
        results.append(one)
    return ()


def test_each_frame_takes_the_id_that_was_announced_for_it(line):
    peer, push = line
    for part in ("4711", "4712", "4712", "Grüße 7"):
        peer.node("NextPartId").write_value(part)
        assert peer.read("NextPartId") == part
        seen = push()
        assert (seen.part_id, seen.decision is Decision.NOT_INSPECTED) == (part, False)
        assert peer.read("NextPartId") == ""
    wait_for(lambda: peer.read("PartIdsTaken") == 4 and peer.read("PartIdState") == "Idle")
    peer.node("NextPartId").write_value("4713")
    peer.node("NextPartId").write_value("4713")  # a client that tries again
    wait_for(lambda: peer.read("PartIdState") == "Announced")
    assert push().part_id == "4713"


def refused(peer, value, status):
    from asyncua import ua

    with pytest.raises(ua.UaStatusCodeError) as caught:
        peer.node("NextPartId").write_value(value)
    assert type(caught.value).__name__ == status


def begin_anew(peer, push):
    """Nothing is inspected, and no id is taken, until the empty id; from then on all is well."""
    refused(peer, "later", "BadInvalidState")
    for _ in range(2):
        seen = push()
        assert (seen.decision, seen.part_id) == (Decision.NOT_INSPECTED, None)
        assert "write the empty id" in seen.reason
    wait_for(lambda: peer.read("PartIdState") == "OutOfStep" and peer.read("PartIdProblem"))
    peer.node("NextPartId").write_value("")
    peer.node("NextPartId").write_value("good")
    assert (seen := push()).part_id == "good"
    assert seen.decision is not Decision.NOT_INSPECTED


def test_a_frame_without_an_announced_id_is_not_inspected(line):
    peer, push = line
    seen = push()
    assert "came without an announced part id" in seen.reason
    # The program that is one behind: this id would go to the next part.
    begin_anew(peer, push)


def test_a_second_id_without_a_frame_between_is_refused(line):
    peer, push = line
    peer.node("NextPartId").write_value("A")  # its trigger is lost
    refused(peer, "B", "BadInvalidState")
    assert "'B' was announced while part 'A' had no frame" in push().reason
    begin_anew(peer, push)


def test_what_is_no_id_is_refused_and_spoils_the_one_that_waits(line):
    from asyncua import ua

    peer, push = line
    for value, status in (
        ("x" * 129, "BadOutOfRange"),
        ("a\nb", "BadOutOfRange"),
        (7, "BadTypeMismatch"),
        (ua.Variant(["a", "b"], ua.VariantType.String), "BadTypeMismatch"),
    ):
        refused(peer, value, status)
        peer.node("NextPartId").write_value("A")
        refused(peer, value, "BadInvalidState" if status == "BadOutOfRange" else status)
        assert push().part_id is None
        begin_anew(peer, push)
    with pytest.raises(ua.UaStatusCodeError, match="BadIndexRangeInvalid"):
        peer.node("NextPartId").write_attribute(
            ua.AttributeIds.Value, ua.DataValue(ua.Variant("471", ua.VariantType.String)), indexrange="0:2"
        )


def test_frames_of_before_and_frames_with_ids_of_their_own(line):
    peer, push = line
    before = time.monotonic_ns()
    peer.node("NextPartId").write_value("A")
    assert "captured before part 'A' was announced" in push(before).reason
    begin_anew(peer, push)
    peer.node("NextPartId").write_value("A")
    assert "part id of its own, 'Z'" in push(part="Z").reason
    begin_anew(peer, push)


def test_ids_that_are_too_old_or_were_announced_before_a_loss():
    now = 1_000_000_000
    ids = PartIds(2.0, lambda: now)
    frame = Frame(BLACK, 0, now + 3_000_000_000, "cam")
    ids.announce("A")
    bad = ids.name(frame)
    assert isinstance(bad, BadFrame)
    assert "announced 3.0 s before" in bad.reason
    ids.announce("")
    ids.announce("A")
    broken = ids.name(BadFrame(1, now, "cam", "torn"))
    assert (broken.part_id, broken.reason) == ("A", "torn")  # it was seen, though nobody can look at it

    class Away(PushSource):
        def reopener(self):
            return lambda: PushSource("cam", policy="every")

    reopen = NamedParts(Away("cam", policy="every"), ids).reopener()
    reopen().close()
    assert ids.problem is None  # none was announced
    ids.announce("B")
    reopen().close()
    assert "camera was away after part 'B'" in ids.problem
    assert NamedParts(PushSource("cam"), ids).reopener() is None


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["synthetic://?frames=1"], r"\?policy=every"),
        (["synthetic://?policy=every", "synthetic://?policy=every&seed=2"], "for one camera, and there are 2"),
    ],
)
def test_announced_ids_need_one_triggered_camera(sources, said):
    with pytest.raises(ConfigError, match=said):
        Stream(judge, sources, sinks=[OPEN + "&part_id=announced"])
    with pytest.raises(ConfigError, match="part ids come from one place"):
        Stream(judge, "synthetic://?policy=every", sinks=[OPEN + "&part_id=announced"] * 2)


# Who may connect


@pytest.fixture
def safe(tmp_path):
    """A server with certificates and a user, and the folder of the trusted ones; ``connect(name, password)``."""
    (tmp_path / "trust").mkdir()
    own, key = application(tmp_path, "station")
    shutil.copy(application(tmp_path, "plc")[0], tmp_path / "trust" / "plc.crt")
    (tmp_path / "trust" / "notes.txt").write_text("no certificate")
    application(tmp_path, "stranger")
    (tmp_path / "word").write_text("open sesame\n")
    uri = f"opcua://line3@127.0.0.1:0?certificate={own}&key={key}&trust={tmp_path / 'trust'}"
    with open_sink(f"{uri}&password_file={tmp_path / 'word'}&part_id=announced") as sink:

        def connect(name="plc", login=("line3", "open sesame"), pinned=True):
            trusted = own if pinned else None
            return Peer(sink.url, 2, tmp_path / f"{name}.pem", tmp_path / f"{name}.key.pem", login, trusted)

        yield sink, connect, tmp_path


def test_a_trusted_certificate_and_the_password_open_the_door(safe, caplog):
    from asyncua import ua

    sink, connect, folder = safe
    with connect(pinned=False) as peer:  # as it is told by the server
        assert peer.read("State") == "Preoperational"
        with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
            peer.node("Decision").write_value("OK")
    denied = ua.uaerrors.BadUserAccessDenied
    for arguments in (
        {"name": "stranger"},
        {"login": ("line3", "wrong")},
        {"login": ("someone", "open sesame")},
        {"login": ("line3", "")},
    ):
        with pytest.raises(denied):
            connect(**arguments)
    with pytest.raises(ua.UaError):
        connect(login=None)
    # Without any security, though the library lets such channels be opened to ask for endpoints.
    with pytest.raises(Exception, match=r"(?i)denied|endpoint|match"):
        Peer(sink.url, 2, login=("line3", "open sesame"))
    (folder / "trust" / "plc.crt").unlink()
    with pytest.raises(denied):
        connect()
    assert f"its certificate is not in {folder / 'trust'}" in caplog.text
    assert "wrong user or password" in caplog.text
    assert "sesame" not in caplog.text


def test_a_certificate_whose_time_is_over_opens_nothing(safe):
    from asyncua import ua

    _, connect, folder = safe
    shutil.copy(application(folder, "old", days=(-9, -1))[0], folder / "trust" / "old.pem")
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        connect("old")


def test_nobody_takes_over_the_session_of_another(safe):
    """The library's tokens can be guessed: a stranger may open a channel, and tries the session of the trusted one."""
    from asyncua import ua

    _, connect, folder = safe
    with connect() as peer:
        token = peer.client.aio_obj.uaclient.session.authentication_token

        async def attack(client):
            await client.connect_socket()
            try:
                await client.send_hello()
                await client.open_secure_channel()
                client.uaclient.session.restore_authentication_token(token)
                outcomes = []
                for step in (
                    lambda: client.activate_session("line3", "guess"),
                    lambda: client.get_node("ns=2;s=State").read_value(),
                    lambda: client.get_node("ns=2;s=NextPartId").write_value("evil"),
                ):
                    try:
                        outcomes.append(await step())
                    except (ua.UaError, OSError) as error:
                        outcomes.append(error)
                return outcomes
            finally:
                client.disconnect_socket()

        from asyncua import Client
        from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

        async def everything():
            client = Client(peer.client.aio_obj.server_url.geturl(), timeout=LONG_S)
            client.application_uri = "urn:test:stranger"
            files = [str(folder / name) for name in ("stranger.pem", "stranger.key.pem")]
            own = str(folder / "station.pem")
            await client.set_security(SecurityPolicyBasic256Sha256, *files, server_certificate=own)
            # As an attacker reads the nonce off nothing: any 32 bytes.
            client._server_nonce = bytes(32)
            return await attack(client)

        outcomes = peer.client.tloop.post(everything())
        assert all(isinstance(outcome, Exception) for outcome in outcomes), outcomes
        assert peer.read("NextPartId") == ""


# The client


def test_results_go_into_the_variables_of_a_plc():
    plc = opcua_plc()
    plc.start()
    uri = f"opc.tcp://127.0.0.1:{plc.port}?root=ns=1;s=edgead&security=none&beat=20ms&hold=500ms&timeout={LONG_S:g}s"
    try:
        with Peer(f"opc.tcp://127.0.0.1:{plc.port}", 1) as seen:
            assert seen.all("PartIsOk", "Decision") == [True, "OK"]
            sink = open_sink(uri)
            wait_for(lambda: seen.all("PartIsOk", "Decision") == [False, ""])
            sink.write(result(70_000, part="A"), None)
            names = ("PartIsOk", "Decision", "PartId", "Score", "FrameIndex")
            assert seen.all(*names) in ([True, "OK", "A", 1.0, 70_000 % 65536], [False, "", "A", 1.0, 70_000 % 65536])
            wait_for(lambda: seen.all("PartIsOk", "Decision") == [False, ""])
            sink.write(result(1, Decision.ANOMALY, part="B"), None)
            assert seen.all("PartIsOk", "Decision", "PartId") == [False, "ANOMALY", "B"]
            source = PushSource("cam", policy="every")
            stream = Stream(judge, source, sinks=[sink])
            thread = threading.Thread(target=stream.run)
            thread.start()
            wait_for(lambda: seen.read("State") == "Operational" and seen.read("Heartbeat") > 1)
            source.push(BLACK)
            wait_for(lambda: seen.read("Captured") == 1)
            source.end()
            thread.join(LONG_S)
            assert seen.all("PartIsOk", "Decision") == [False, ""]
            assert seen.read("Other") in (None, "")
    finally:
        plc.kill()


def test_a_plc_that_goes_and_returns_gets_no_old_ok():
    plc = opcua_plc()
    plc.start()
    uri = f"opc.tcp://127.0.0.1:{plc.port}?root=ns=1;s=edgead&security=none&beat=20ms&hold={LONG_S:g}s&timeout=2s"
    worker = SinkWorker(open_sink(uri), 0.0)
    try:
        worker.offer(result(0), None)
        wait_for(lambda: worker.report().written == 1)
        plc.kill()
        time.sleep(0.2)
        worker.offer(result(1), None)
        wait_for(lambda: worker.report().failed == 1)
        plc.start()
        with Peer(f"opc.tcp://127.0.0.1:{plc.port}", 1) as seen:
            wait_for(lambda: seen.all("PartIsOk", "Decision") == [False, ""])

            def arrived():
                worker.offer(result(2, Decision.ANOMALY, part="C"), None)
                time.sleep(0.1)
                return worker.report().written >= 2

            wait_for(arrived)
            assert seen.all("PartIsOk", "Decision", "PartId") == [False, "ANOMALY", "C"]
        worker.close(time.monotonic() + LONG_S)
    finally:
        plc.kill()


def test_a_dead_program_is_seen_by_the_plc_on_its_heartbeat():
    plc = opcua_plc()
    plc.start()
    program = f"""
        import threading
        from edgead.runtime.sources.push import PushSource
        from edgead.runtime.streaming.stream import Stream
        uri = "opc.tcp://127.0.0.1:{plc.port}?root=ns=1;s=edgead&security=none&beat=20ms&timeout=60s"
        Stream(lambda frame: None, PushSource("cam", policy="every"), sinks=[uri]).run()
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        with Peer(f"opc.tcp://127.0.0.1:{plc.port}", 1) as seen:
            try:
                wait_for(lambda: seen.read("Heartbeat") > 2)
            finally:
                child.kill()
                child.wait()
            last = seen.read("Heartbeat")
            time.sleep(0.3)
            assert seen.read("Heartbeat") == last
    finally:
        plc.kill()


@pytest.mark.parametrize(
    ("trusted", "days", "word", "said"),
    [
        (True, (-1, 2), "open sesame", None),
        (False, (-1, 2), "open sesame", "its certificate is not in"),
        (True, (-9, -1), "open sesame", "the certificate's time was over"),
        (True, (-1, 2), "wrong", "refuses the connection"),
    ],
)
def test_only_the_trusted_server_is_spoken_to(trusted, days, word, said, tmp_path, caplog):
    (tmp_path / "trust").mkdir()
    files = application(tmp_path, "plc", days=days)
    if trusted:
        shutil.copy(files[0], tmp_path / "trust")
    own, key = application(tmp_path, "station")
    (tmp_path / "word").write_text(word)
    plc = opcua_plc(*files)
    plc.start()
    try:
        uri = f"opc.tcp://edgead@127.0.0.1:{plc.port}?root=ns=1;s=edgead&password_file={tmp_path / 'word'}&timeout=20s"
        worker = SinkWorker(open_sink(f"{uri}&certificate={own}&key={key}&trust={tmp_path / 'trust'}"), 0.0)
        worker.offer(result(0), None)
        wait_for(lambda: worker.report().written + worker.report().failed)
        report = worker.report()
        assert report.written == (said is None)
        if said is not None:
            assert said in report.last_error
        worker.close(time.monotonic() + LONG_S)
        assert word not in caplog.text + (report.last_error or "")
    finally:
        plc.kill()


def test_a_plc_without_the_variables_is_named():
    plc = opcua_plc()
    plc.start()
    try:
        worker = SinkWorker(open_sink(f"opc.tcp://127.0.0.1:{plc.port}?root=i=2253&security=none&timeout=20s"), 0.0)
        worker.offer(result(0), None)
        wait_for(lambda: worker.report().failed == 1)
        assert "has no variable PartIsOk and no Heartbeat" in worker.report().last_error
        worker.close(time.monotonic() + LONG_S)
    finally:
        plc.kill()


# Opening

_ANY = "certificate={0}/station.pem&key={0}/station.key.pem&trust={0}"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("opcua://", "needs an address"),
        ("opcua://127.0.0.1", "who may connect"),
        ("opcua://me@127.0.0.1?security=none", "who may connect"),
        ("opcua://me:secret@127.0.0.1?security=none&anonymous=yes", "keep one or the other"),
        ("opcua://127.0.0.1?anonymous=yes", "certificate and key and trust missing"),
        ("opcua://127.0.0.1?anonymous=yes&security=none&trust=.", "security=none has no use"),
        ("opcua://127.0.0.1?anonymous=yes&security=none&part_age=2s", "part_age belongs to"),
        ("opcua://nowhere.invalid?anonymous=yes&security=none", "cannot listen on"),
        ("opcua://me@127.0.0.1?password_file=/nowhere", "cannot read password_file"),
        ("opcua://127.0.0.1?anonymous=yes&certificate=/no&key=/no&trust=/no", "trust /no is no folder"),
        ("opcua://127.0.0.1?anonymous=yes&certificate=/no&key=/no&trust={0}", "cannot read certificate /no"),
        ("opcua://127.0.0.1?anonymous=yes&certificate={0}/station.key.pem&key=/no&trust={0}", "is no certificate"),
        ("opcua://127.0.0.1?anonymous=yes&certificate={0}/old.pem&key={0}/old.key.pem&trust={0}", "time was over"),
        (
            "opcua://127.0.0.1?anonymous=yes&certificate={0}/station.pem&key={0}/old.key.pem&trust={0}",
            "not the RSA key",
        ),
        ("opcua://127.0.0.1?anonymous=yes&certificate={0}/station.pem&key={0}/old.pem&trust={0}", "no private key"),
        ("opc.tcp://plc?security=none", "root=NODE missing"),
        ("opc.tcp://plc?security=none&root=here", "is no NodeId"),
        ("opc.tcp://me@plc?security=none&root=i=85", "a user needs password_file"),
        ("opc.tcp://plc?root=i=85", "certificate and key and trust missing"),
        ("opc.tcp://me:secret@?root=i=85&security=none", "write host, host:port"),
    ],
)
def test_mistakes_are_one_clear_line(uri, message, tmp_path):
    application(tmp_path, "station")
    application(tmp_path, "old", days=(-9, -1))
    with pytest.raises(ConfigError, match=message) as caught:
        open_sink(uri.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_taken_and_a_key_that_others_read(tmp_path):
    with open_sink(OPEN) as first:
        port = first.url.rstrip("/").rpartition(":")[2]
        with pytest.raises(ConfigError, match="cannot listen on"):
            open_sink(OPEN.replace(":0?", f":{port}?"))
    own, key = application(tmp_path, "station")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_sink(f"opcua://127.0.0.1:0?anonymous=yes&certificate={own}&key={key}&trust={tmp_path}")
