"""``edgead run --record``, ``edgead record`` and ``edgead replay``: what was decided, and deciding it again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta

from edgead.runtime import Inspector, PushSource
from edgead.runtime.backends import available
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.shadow import ShadowReport
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.schema import FILE, image_path
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.journal.verify import verify
from tests.waiting import LONG_S, lines, wait_for

posix = pytest.mark.skipif(os.name == "nt", reason="no signals to another process on Windows")


@pytest.fixture(scope="module")
def recorded(plate, plate_bundle, tmp_path_factory):
    """A record of all test images of `plate`, with the part ids of their files; do not change it, copy it."""
    from edgead.cli import run

    folder = tmp_path_factory.mktemp("record") / "line"
    source = f"{plate / 'test'}?part_id=file"
    assert run(["run", str(plate_bundle), "--source", source, "--record", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def lenient(plate, plate_bundle, tmp_path_factory):
    """The bundle of `plate` with a threshold above all of its test images."""
    from edgead.cli import run

    folder = tmp_path_factory.mktemp("lenient")
    (folder / "good").mkdir()
    for number, path in enumerate(sorted((plate / "test").rglob("*.png"))):
        shutil.copy(path, folder / "good" / f"{number}.png")
    bundle = folder / "lenient.edgead"
    assert run(["calibrate", str(plate_bundle), "--source", str(folder / "good"), "-o", str(bundle)]) == 0
    return bundle


_BACKENDS = [name for name in available() if name in ("onnxruntime", "openvino", "openvino-bf16")]


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_recorded_run_is_decided_again_to_the_bit_on_each_backend(edgead, plate, plate_bundle, tmp_path, backend):
    source = ["--source", plate / "test", "--backend", backend]
    assert edgead("run", plate_bundle, *source, "--record", tmp_path / "line").code == 0
    outcome = edgead("replay", tmp_path / "line", "--json")
    assert outcome.code == 0, outcome.error
    said = json.loads(outcome.out)
    assert (said["same"], said["judged"], said["changed"], said["inexact"]) == (True, 8, [], [])
    assert said["max_score_difference"] == 0
    assert backend in said["backends"][0]
    assert edgead("record", "verify", tmp_path / "line").code == 0


@pytest.mark.usefixtures("native")
def test_native_code_and_the_plain_graph_are_each_repeated_as_they_ran(edgead, plate, tmp_path):
    bundle, model = tmp_path / "plate.edgead", tmp_path / "plate.model"
    settings = ["--detector", "patchcore", "--set", "bank_size=2000", "--size", "128"]  # large enough for native code
    assert edgead("fit", plate, *settings, "-o", model).code == 0
    assert edgead("export", model, "-o", bundle, "--images", plate / "test").code == 0
    for native_code in (True, False):
        folder = tmp_path / f"line-{native_code}"
        with Inspector.open(bundle, backend="onnxruntime", native_code=native_code) as inspector:
            inspector.stream(plate / "test", sinks=[RecordSink(RecordOptions(folder), inspector)]).run()
        report = replayed(folder)
        assert report.same
        assert report.judged == 8
        assert ("native" in report.backends[0]) == native_code


@pytest.fixture
def native():
    from edgead.runtime.backends.native.library import find_library

    if find_library() is None:
        pytest.skip("there is no native library for this machine; make it with: edgead build --target cpu")


def replayed(folder, bundle=None):
    from edgead.runtime.device.rejudge import Replay

    with JournalReader(folder) as reader, Replay(reader, bundle) as replay:
        replay.judge(reader.parts())
        return replay.report


def test_one_part_is_found_by_its_id(edgead, recorded):
    with JournalReader(recorded) as reader:
        part = next(iter(reader.parts()))
        assert part.part == Path(part.body["name"]).stem
    said = json.loads(edgead("record", "show", recorded, "--part", part.part, "--json").out)
    assert {row["part"] for row in said["rows"]} == {part.part}
    outcome = edgead("replay", recorded, "--part", part.part, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["judged"] == len(said["rows"])
    for command in (["replay", recorded, "--part", "nobody"], ["record", "show", recorded, "--part", "nobody"]):
        outcome = edgead(*command)
        assert outcome.code == 2
        assert len(outcome.error.strip().splitlines()) == 1


def test_times_choose_parts(edgead, recorded):
    def count(*arguments):
        outcome = edgead("replay", recorded, "--json", *arguments)
        return json.loads(outcome.out)["judged"] if outcome.code == 0 else outcome.error

    assert count("--since", "1d") == 8
    assert "no such part" in count("--until", "1d")
    assert "no such part" in count("--since", "2999-01-01")
    assert "is no time" in count("--since", "yesterday")


def test_another_bundle_shows_what_it_would_change(edgead, recorded, lenient, tmp_path):
    with JournalReader(recorded) as reader:
        rejected = [row.seq for row in reader.parts() if row.decision == "ANOMALY"]
    assert rejected
    page = tmp_path / "changed.html"
    outcome = edgead("replay", recorded, "--bundle", lenient, "-o", page, "--json")
    assert outcome.code == 3
    assert f"{len(rejected)} of 8 decisions are other ones now" in outcome.error
    said = json.loads(outcome.out)
    assert [one["row"] for one in said["changed"]] == rejected
    assert {one["was"]["decision"] for one in said["changed"]} == {"ANOMALY"}
    assert {one["now"]["decision"] for one in said["changed"]} == {"OK"}
    assert said["compared"]["only_shadow_passed"] == len(rejected)
    text = page.read_text()
    assert text.count("<img") == 2 * len(rejected)
    assert "Rejected then, passed now" in text
    assert edgead("replay", recorded, "--bundle", lenient, "-o", "page.txt").code == 2


def test_an_altered_image_is_not_judged_in_silence(edgead, recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "line")
    with JournalReader(tmp_path / "line") as reader:
        seq = next(iter(reader.parts())).seq
    path = image_path(tmp_path / "line", seq)
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    outcome = edgead("replay", tmp_path / "line")
    assert outcome.code == 3
    assert f"other pixels than row {seq} judged" in outcome.error
    outcome = edgead("record", "verify", tmp_path / "line")
    assert outcome.code == 3
    assert f"other pixels than row {seq} judged" in outcome.error
    assert edgead("record", "verify", tmp_path / "line", "--quick").code == 0


def test_an_altered_row_is_found_and_a_wrong_score_is_not_the_same(edgead, recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "line")
    with sqlite3.connect(tmp_path / "line" / FILE) as connection:
        connection.execute("UPDATE rows SET score = score + 1e-6 WHERE seq = 3")
    connection.close()
    outcome = edgead("record", "verify", tmp_path / "line")
    assert outcome.code == 3
    assert "row 3 was altered" in outcome.error
    outcome = edgead("replay", tmp_path / "line")
    assert outcome.code == 3
    assert "1 scores or maps are not to the bit" in outcome.error


def test_a_bundle_that_was_removed_or_exchanged_is_found(edgead, recorded, lenient, tmp_path):
    shutil.copytree(recorded, tmp_path / "line")
    (kept,) = (tmp_path / "line" / "bundles").iterdir()
    shutil.copy(lenient, kept)
    assert "is another bundle" in edgead("record", "verify", tmp_path / "line").error
    kept.unlink()
    assert "that judged is missing" in edgead("record", "verify", tmp_path / "line").error
    outcome = edgead("replay", tmp_path / "line")
    assert outcome.code == 2
    assert "give it with --bundle" in outcome.error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("?images=all", "--record needs a folder"),
        ("line?images=some", "images=some is unknown"),
        ("line?sample=2", "sample=2 is not a number from 0 to 1"),
        ("line?max_size=5", "a record needs 1 MB or more"),
        ("line?max_age=soon", "is not a duration"),
        ("line?colour=red", "unknown parameter 'colour'"),
        ("/proc/nothing/line", "cannot write the record"),
    ],
)
def test_a_wrong_record_is_one_line_and_2(edgead, plate_bundle, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    outcome = edgead("run", plate_bundle, "--source", "synthetic://?frames=1", "--record", given)
    assert outcome.code == 2
    assert said in outcome.error
    assert len(outcome.error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_second_run_and_a_newer_journal_are_refused(edgead, plate, plate_bundle, recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "line")
    arguments = ["run", plate_bundle, "--source", plate / "test", "--record", tmp_path / "line"]
    with Inspector.open(plate_bundle) as inspector:
        record = RecordSink(RecordOptions(tmp_path / "line"), inspector)
        outcome = edgead(*arguments)
        record.close()
    assert outcome.code == 2
    assert "is being written by another process" in outcome.error
    assert edgead(*arguments).code == 0  # and it is continued
    assert edgead("record", "verify", tmp_path / "line").code == 0
    with sqlite3.connect(tmp_path / "line" / FILE) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    for command in (arguments, ["record", "verify", tmp_path / "line"], ["replay", tmp_path / "line"]):
        outcome = edgead(*command)
        assert outcome.code == 2
        assert "version 9, this edgead knows 1" in outcome.error
    assert "holds no record" in edgead("record", "show", tmp_path).error


def test_images_are_kept_of_those_that_are_asked_for(edgead, plate, plate_bundle, tmp_path):
    def kept(options):
        folder = tmp_path / options.replace("=", "_").replace("&", "_")
        assert edgead("run", plate_bundle, "--source", plate / "test", "--record", f"{folder}?{options}").code == 0
        assert verify(folder).problems == []
        with JournalReader(folder) as reader:
            rows = list(reader.parts())
        assert len(rows) == 8
        assert all("pixels" in row.body for row in rows)
        return [row.decision for row in rows if row.image is not None], rows, folder

    decisions, rows, folder = kept("images=rejected")
    assert decisions == [row.decision for row in rows if row.decision != "OK"] != []
    report = json.loads(edgead("replay", folder, "--json").out)
    assert (report["judged"], report["without_image"]) == (len(decisions), 8 - len(decisions))
    assert len(kept("images=rejected&sample=1")[0]) == 8
    assert kept("images=none")[0] == []


def test_each_part_is_judged_again_by_the_bundle_that_judged_it(plate, plate_bundle, lenient, tmp_path):
    images = [read_image(path) for path in sorted((plate / "test" / "defect").iterdir())]
    source = PushSource(policy="every")
    with Inspector.open(plate_bundle) as inspector:
        record = RecordSink(RecordOptions(tmp_path / "line"), inspector)
        stream = iter(inspector.stream(source, sinks=[record]))
        decisions = []
        for number, image in enumerate(images):
            source.push(image, part_id=f"A{number}")
            decisions.append(next(stream).decision)
        inspector.swap(lenient)
        record.note("reloaded", {"bundle": str(lenient), "sha256": inspector.bundle[1]})
        for number, image in enumerate(images):
            source.push(image, part_id=f"B{number}")
            decisions.append(next(stream).decision)
        source.end()
        assert list(stream) == []
    assert set(decisions[4:]) == {Decision.OK} != set(decisions[:4])
    with JournalReader(tmp_path / "line") as reader:
        bundles = [reader.setup(row)["bundle"] for row in reader.parts()]
        assert len(set(bundles[:4])) == len(set(bundles[4:])) == 1
        assert bundles[0] != bundles[4]
        assert [row.body["event"] for row in reader.rows("bundle")] == ["started", "reloaded"]
    assert verify(tmp_path / "line").bundles == 2
    report = replayed(tmp_path / "line")
    assert report.same
    assert report.judged == 8


@posix
def test_parts_that_are_posted_carry_their_id_and_the_page_writes_down_who_changed_what(
    launch, edgead, plate, plate_bundle, tmp_path
):
    images = sorted((plate / "test" / "good").iterdir())
    arguments = ["run", plate_bundle, "--source", f"receive://127.0.0.1:{free_port()}?policy=every"]
    arguments += ["--record", tmp_path / "line", "--sink", tmp_path / "r.jsonl", "--backend", "onnxruntime"]
    with launch([*arguments, "--serve", "127.0.0.1:0", "--serve-audit", tmp_path / "audit.jsonl"]) as child:
        page = next(line.split()[-1] for line in child.stderr if line.startswith("live page: "))
        url = arguments[3].replace("receive", "http").partition("?")[0] + "/frame"
        wait_for(lambda: answers(url))
        assert post(url, images[0].read_bytes(), "?part_id=4711") == (202, {"frame": 0})
        assert post(url, b"nothing", "?part_id=4712")[0] == 400
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) == 1)
        with urlopen(f"{page}api/state", timeout=LONG_S) as answer:
            state = json.load(answer)
        old = state["control"]["thresholds"][0]["value"]
        body = {"value": 0.0, "expected": old, "category": None, "who": "Ada"}
        headers = {"Content-Type": "application/json", "X-Edgead-Word": state["word"], "Origin": page.rstrip("/")}
        with urlopen(Request(f"{page}api/threshold", json.dumps(body).encode(), headers), timeout=LONG_S) as answer:
            assert answer.status == 200
        assert post(url, images[0].read_bytes(), "?part_id=4713") == (202, {"frame": 1})
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) == 2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(LONG_S) == 0
    assert [line["part_id"] for line in lines(tmp_path / "r.jsonl")] == ["4711", "4713"]
    with JournalReader(tmp_path / "line") as reader:
        assert [(row.part, row.decision) for row in reader.parts()] == [("4711", "OK"), ("4713", "ANOMALY")]
        (action,) = reader.rows("action")
        assert (action.body["event"], action.body["who"], action.body["new"]) == ("threshold", "Ada", 0.0)
    # Each part is judged again with the threshold that held then.
    assert edgead("replay", tmp_path / "line").code == 0
    assert edgead("record", "verify", tmp_path / "line").code == 0


def free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def answers(url):
    try:
        return post(url, b"", "")[0] == 400
    except OSError:
        return False


def post(url, data, query):
    try:
        with urlopen(Request(url + query, data, method="POST"), timeout=LONG_S) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_shadow_decides_nothing_and_its_differences_are_recorded(edgead, plate, plate_bundle, lenient, tmp_path):
    plain = edgead("run", plate_bundle, "--source", plate / "test", "--sink", tmp_path / "a.jsonl")
    arguments = ["run", plate_bundle, "--source", plate / "test", "--sink", tmp_path / "b.jsonl"]
    outcome = edgead(*arguments, "--shadow", lenient, "--record", tmp_path / "line", "--json")
    assert (plain.code, outcome.code) == (0, 0)
    keys = ("decision", "score", "threshold", "name")
    decided, shadowed = ([[line[key] for key in keys] for line in lines(tmp_path / f"{name}.jsonl")] for name in "ab")
    assert decided == shadowed
    rejected = sum(line[0] != "OK" for line in decided)
    said = json.loads(outcome.out)["shadow"]
    assert (said["judged"], said["missed"]) == (8, 0)
    assert (said["only_shadow_passed"], said["only_shadow_rejected"]) == (rejected, 0)
    with JournalReader(tmp_path / "line") as reader:
        differences = list(reader.rows("shadow"))
    assert len(differences) == len(said["differences"]) == rejected
    assert all(row.body["decided"]["decision"] == "ANOMALY" for row in differences)
    assert all(row.body["shadow"]["decision"] == "OK" for row in differences)
    assert edgead("record", "verify", tmp_path / "line").code == 0


@posix
def test_a_shadow_that_is_killed_costs_the_run_nothing(launch, plate_bundle, lenient, tmp_path):
    camera = "synthetic://?fps=20&width=64&height=64"
    arguments = ["run", plate_bundle, "--source", camera, "--shadow", lenient, "--sink", tmp_path / "r.jsonl", "--json"]
    with launch(arguments) as child:
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > 3)
        os.kill(the_only_child(child.pid), signal.SIGKILL)
        seen = len(lines(tmp_path / "r.jsonl"))
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > seen + 5)
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=LONG_S)
    assert child.returncode == 0
    said = json.loads(out)
    assert said["shadow"]["missed"] > 0
    assert all(line["decision"] != "NOT_INSPECTED" for line in lines(tmp_path / "r.jsonl"))


def the_only_child(pid):
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_shadow_that_cannot_be_opened_is_one_line_and_2(edgead, plate, plate_bundle, tmp_path):
    for shadow, said in ((tmp_path / "none.edgead", "does not exist"), (plate, "is a folder")):
        outcome = edgead("run", plate_bundle, "--source", plate / "test", "--shadow", shadow)
        assert outcome.code == 2
        assert said in outcome.error.splitlines()[-1]


def test_what_is_claimed_of_a_shadow_is_the_exact_one_sided_bound():
    report = ShadowReport("b", "")
    for rejected, shadow, count in ((True, Decision.ANOMALY, 57), (True, Decision.OK, 2), (False, Decision.OK, 900),
                                    (False, Decision.ANOMALY, 40), (False, Decision.NOT_INSPECTED, 1)):  # fmt: skip
        for _ in range(count):
            report.count(rejected, shadow)
    upper = report.to_dict()["upper"]
    expected = {"different": (43, 1000), "lost_rejects": (2, 59), "new_rejects": (41, 941)}
    for name, (count, n) in expected.items():
        assert upper[name] == pytest.approx(beta.ppf(0.95, count + 1, n - count), abs=1e-9)
    # 59 rejects without a lost one: at most 4.95 %, the figure that quality engineers know.
    none_lost = ShadowReport("b", "")
    for _ in range(59):
        none_lost.count(True, Decision.ANOMALY)
    assert none_lost.to_dict()["upper"]["lost_rejects"] == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert "at most 4.95% of such parts that are rejected now are" in none_lost.claims()[1]
    assert "nothing is known" in ShadowReport("b", "").claims()[0]


@posix
def test_a_record_is_reviewed_without_a_camera_and_with_one(launch, edgead, plate_bundle, recorded, tmp_path):
    folder = tmp_path / "line"
    shutil.copytree(recorded, folder)
    with launch(["review", folder, "--serve", "127.0.0.1:0"]) as child:
        url = next(line.split()[-1] for line in child.stderr if line.startswith("review: ")).removesuffix("review")
        first = label_next(url, "good")
        assert first is not None
        assert edgead("review", folder).code == 2  # one writer
        child.send_signal(signal.SIGTERM)
        assert child.wait(LONG_S) == 0
    camera = "synthetic://?fps=10&width=64&height=64"
    arguments = ["run", plate_bundle, "--source", camera, "--record", folder, "--backend", "onnxruntime"]
    with launch([*arguments, "--serve", "127.0.0.1:0"]) as child:
        url = next(line.split()[-1] for line in child.stderr if line.startswith("live page: "))
        with urlopen(f"{url}api/state", timeout=LONG_S) as answer:
            assert json.load(answer)["review"] is True
        second = label_next(url, "defect")
        child.send_signal(signal.SIGTERM)
        assert child.wait(LONG_S) == 0
    assert verify(folder).problems == []
    with JournalReader(folder) as reader:
        assert [(row.ref, row.body["label"]) for row in reader.labels()] == [(first, "good"), (second, "defect")]
    assert edgead("review", tmp_path).code == 2
    assert not (tmp_path / FILE).exists()


def label_next(url, label):
    with urlopen(f"{url}api/review/next?who=Ann", timeout=LONG_S) as answer:
        found = json.load(answer)
    row = found["part"]["row"]
    headers = {"Content-Type": "application/json", "X-Edgead-Word": found["word"], "Origin": url.rstrip("/")}
    body = json.dumps({"row": row, "label": label, "who": "Ann"}).encode()
    with urlopen(Request(f"{url}api/review/label", body, headers), timeout=LONG_S) as answer:
        assert answer.status == 200
    return row
