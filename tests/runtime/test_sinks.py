"""Sinks: they get every result or count it as missed, and never delay a decision."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.sinks import REGISTRY, Sink, open_sink
from edgead.runtime.sinks.callback import CallbackSink
from edgead.runtime.sinks.worker import SinkWorker
from edgead.runtime.streaming.stream import Stream
from tests.waiting import LONG_S


def result(index=0, decision=Decision.OK, score=1.0, source_id="line"):
    return Result(
        score, 10.0, decision, index, 123, source_id, map=np.ones((2, 2), np.float32), timings={"network": math.nan}
    )


def frame(index=0, level=90, layout="rgb"):
    shape = (24, 32) if layout == "gray" else (24, 32, 3)
    return Frame(np.full(shape, level, np.uint8), index, 123, "line", layout)


def judge(item):
    """Anomalous: every fifth frame."""
    decision = Decision.ANOMALY if item.index % 5 == 0 else Decision.OK
    return Result(2.0 - (item.index % 5 != 0), 1.5, decision, item.index, item.timestamp_ns, item.source_id)


class Slow(Sink):
    keeps_frames = False

    def __init__(self, delay=0.0, gate=None, fail=(), keeps_frames=False):
        self.name = "slow"
        self.delay, self.gate, self.fail = delay, gate, fail
        self.keeps_frames = keeps_frames
        self.got = []

    def write(self, result, frame):
        if self.gate is not None:
            self.gate.wait(2 * LONG_S)
        time.sleep(self.delay)
        if result.frame_index in self.fail:
            raise OSError("the network is down at mqtt://me:secret@broker/1")
        assert (frame is not None) == self.keeps_frames
        self.got.append(result.frame_index)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    for number in range(30):
        Image.fromarray(np.full((24, 32, 3), number, np.uint8)).save(tmp_path / "parts" / f"{number:02d}.png")
    return tmp_path / "parts"


# Behind the queue


def test_a_sink_that_blocks_for_ever_delays_no_decision_and_is_counted():
    gate = threading.Event()
    sink, healthy = Slow(gate=gate, keeps_frames=True), Slow()
    stream = Stream(
        judge,
        "synthetic://?fps=200&frames=60&width=64&height=64&policy=every",
        sinks=[sink, healthy],
        queue_size=60,
        drain_s=2.0,
    )
    try:
        summary = stream.run()  # while the sink is blocked
        assert not gate.is_set()
        blocked, written = summary.sinks
        assert summary.frames.inspected == 60
        assert (blocked.accepted, blocked.written, blocked.missed, blocked.pending) == (60, 0, 60, 0)
        assert "did not finish" in blocked.last_error
        assert (written.accepted, written.written, written.missed) == (60, 60, 0)
    finally:
        gate.set()


def test_a_sink_that_fails_is_counted_and_tried_again(caplog):
    sink = Slow(fail=(3, 7))
    camera = "synthetic://?fps=500&frames=10&width=64&height=64&policy=every"
    stream = Stream(judge, camera, sinks=[sink], queue_size=10, drain_s=LONG_S)
    (report,) = stream.run().sinks
    assert (report.accepted, report.written, report.failed, report.missed) == (10, 8, 2, 0)
    assert "network is down" in report.last_error
    assert "secret" not in report.last_error + caplog.text
    assert sink.got == [0, 1, 2, 4, 5, 6, 8, 9]


def test_a_slow_sink_gets_everything_of_a_folder(folder):
    sink = Slow(delay=0.005, keeps_frames=True)
    (report,) = Stream(judge, folder, sinks=[sink], drain_s=0.1).run().sinks
    assert sink.got == list(range(30))
    assert (report.written, report.missed, report.last_error) == (30, 0, None)


def test_a_dead_sink_holds_a_folder_up_once_only(folder):
    gate = threading.Event()
    started = time.monotonic()
    try:
        summary = Stream(judge, folder, sinks=[Slow(gate=gate, keeps_frames=True)], drain_s=2.0).run()
        # 2 s of patience for each of the 30 are more than this; once and again at the end are less.
        assert time.monotonic() - started < 40
        assert summary.frames.inspected == 30
        assert summary.sinks[0].missed == 30
    finally:
        gate.set()


def test_a_slow_sink_misses_frames_of_a_camera_and_only_those_are_counted():
    sink = Slow(delay=0.05, keeps_frames=True)
    camera = "synthetic://?fps=300&frames=60&width=64&height=64&policy=every"
    stream = Stream(judge, camera, sinks=[sink], queue_size=60, drain_s=LONG_S)
    (report,) = stream.run().sinks
    assert report.accepted == 60
    assert report.written + report.missed == 60
    assert report.written == len(sink.got) >= 9
    assert sink.got == sorted(sink.got)


def test_accepts_and_close_may_raise():
    class Broken(Slow):
        def accepts(self, *_):
            raise RuntimeError("in accepts")

        def close(self):
            raise RuntimeError("in close")

    camera = "synthetic://?frames=3&fps=500&policy=every"
    (report,) = Stream(judge, camera, sinks=[Broken()], drain_s=LONG_S).run().sinks
    assert (report.accepted, report.failed) == (3, 3)
    assert report.last_error == "in close"


@pytest.mark.parametrize(("keeps_frames", "places"), [(True, 8), (False, 4096)])
def test_a_queue_is_bounded_and_counts_at_once(keeps_frames, places):
    gate = threading.Event()
    worker = SinkWorker(Slow(gate=gate, keeps_frames=keeps_frames), 0.0)
    offered = places + 20
    for index in range(offered):
        worker.offer(result(index), frame(index))  # which waits for nobody: the sink is blocked
    report = worker.report()
    assert report.accepted == offered == report.missed + report.pending
    assert places <= report.pending <= places + 1  # and one in its hand
    gate.set()
    worker.close(time.monotonic() + LONG_S)
    assert worker.report().written == report.pending


def test_a_sink_that_had_nothing_to_do_for_long_is_not_taken_for_dead():
    sink = Slow(keeps_frames=True)
    worker = SinkWorker(sink, 0.1)
    time.sleep(0.2)
    for index in range(30):
        worker.offer(result(index), frame(index))
    worker.close(time.monotonic())
    assert sink.got == list(range(30))


class _TakesAlone(Slow):
    takes_results_alone = True

    def __init__(self, gate):
        super().__init__(gate=gate, keeps_frames=True)
        self.pictures, self.told = [], []

    def write(self, result, frame):
        self.gate.wait(2 * LONG_S)
        assert frame is None or frame.index == result.frame_index
        self.pictures.append(frame is not None)

    def missed(self, count):
        self.told.append((len(self.pictures), count))


def test_a_sink_that_takes_results_alone_loses_pictures_before_results_and_is_told_what_it_missed():
    gate = threading.Event()
    sink = _TakesAlone(gate)
    worker = SinkWorker(sink, 0.0)
    for index in range(5000):
        worker.offer(result(index), frame(index))
    missed = worker.report().missed
    gate.set()
    worker.close(time.monotonic() + LONG_S)
    report = worker.report()
    assert (report.accepted, report.written, report.missed) == (5000, 5000 - missed, missed)
    assert 8 <= sum(sink.pictures) <= 9  # those that found room, and perhaps the one that was being written
    assert missed >= 5000 - 4096 - 1
    # Before the next result that is written, or at the end.
    assert sum(count for _, count in sink.told) == missed


def test_results_after_the_end_are_missed_not_lost():
    worker = SinkWorker(Slow(), 0.0)
    worker.close(time.monotonic() + 1)
    worker.offer(result(), None)
    report = worker.report()
    assert (report.accepted, report.missed, report.pending) == (1, 1, 0)


# JSON lines


@pytest.mark.parametrize("uri", ["{}/results.jsonl", "jsonl:{}/results.jsonl", "jsonl:{}/results.txt"])
def test_json_lines_are_whole_objects_at_once(tmp_path, uri):
    uri = uri.format(tmp_path / "new")
    path = Path(uri.removeprefix("jsonl:"))
    with open_sink(uri) as sink:
        for index in range(3):
            sink.write(result(index, score=math.nan), None)
            lines = path.read_text().splitlines()
            assert len(lines) == index + 1
    last = json.loads(lines[-1], parse_constant=pytest.fail)
    assert last["schema"] == "edgead.result/1"
    assert (last["frame_index"], last["score"], last["timings_ms"]) == (2, None, {"network": None})
    assert last["time"].endswith("Z")


def test_json_lines_go_on_after_a_power_cut(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"frame_index": 0}\n{"frame_in')
    with open_sink(path) as sink:
        sink.write(result(2), None)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"frame_index": 0}', '{"frame_in']
    assert json.loads(lines[2])["frame_index"] == 2


def test_json_lines_on_standard_output(capsys):
    with open_sink("jsonl:-") as sink:
        sink.write(result(4), None)
    assert json.loads(capsys.readouterr().out)["frame_index"] == 4
    print("still open", file=sys.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_counted():
    stream = Stream(judge, "synthetic://?frames=4&fps=500&policy=every", sinks=["jsonl:/dev/full"], drain_s=LONG_S)
    (report,) = stream.run().sinks
    assert (report.written, report.failed) == (0, 4)
    assert "No space left" in report.last_error


def test_stream_writes_what_it_yields(folder, tmp_path):
    results = list(Stream(judge, folder, sinks=[tmp_path / "r.jsonl"]))
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["frame_index"] for line in lines] == [item.frame_index for item in results]
    assert [line["decision"] for line in lines] == [item.decision.value for item in results]
    assert all(line["timings_ms"]["end_to_end"] > 0 for line in lines)


# Pictures


def test_pictures_of_anomalies_only(folder, tmp_path):
    Stream(judge, folder, sinks=[f"images:{tmp_path}/out"]).run()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 6
    assert all(name.endswith("-ANOMALY.jpg") for name in names)
    assert names[1].endswith("parts-000005-ANOMALY.jpg")
    with Image.open(tmp_path / "out" / names[0]) as picture:
        assert picture.size[0] == 32
        assert picture.size[1] > 24


def test_pictures_of_all_frames_up_to_a_limit(folder, tmp_path):
    (report,) = Stream(judge, folder, sinks=[f"images:{tmp_path}/out?only=all&limit=7&format=png"]).run().sinks
    assert len(list((tmp_path / "out").glob("*.png"))) == report.written == 7


def test_a_picture_carries_the_id_of_its_part(tmp_path):
    with open_sink(f"images:{tmp_path}?keep=3") as sink:
        for number, part in enumerate(("4711", "../../4712", "…", "x" * 128)):
            sink.write(replace(result(number, Decision.ANOMALY, 11.0, "line"), part_id=part), frame(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    kept = ["line-4712-000001-ANOMALY.jpg", "line-part-000002-ANOMALY.jpg", f"line-{'x' * 80}-000003-ANOMALY.jpg"]
    assert names == kept


def test_picture_names_keep_sources_and_runs_apart(tmp_path):
    for _ in range(2):
        with open_sink(f"images:{tmp_path}") as sink:
            for source in ("a/b", "a?b", "../../etc/passwd", "x" * 300):
                sink.write(result(7, Decision.ANOMALY, 11.0, source), frame(7))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8
    assert "a_b-000007-ANOMALY.jpg" in names
    assert "a_b-000007-ANOMALY-2.jpg" in names
    assert sum(name.startswith("a_b~") for name in names) == 2
    assert "etc_passwd-000007-ANOMALY.jpg" in names
    assert all(path.is_file() for path in tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["rgb", "bgr", "gray"])
def test_pictures_have_the_right_colours(tmp_path, layout):
    picture = np.zeros((40, 60), np.uint8) if layout == "gray" else np.zeros((40, 60, 3), np.uint8)
    if layout == "gray":
        picture[:] = 200
    else:
        picture[:, :, 0 if layout == "rgb" else 2] = 200
    with open_sink(f"images:{tmp_path}?only=all&format=png") as sink:
        sink.write(result(), Frame(picture, 0, 0, "line", layout))
    with Image.open(tmp_path / "line-000000-OK.png") as opened:
        expected = (200, 200, 200) if layout == "gray" else (200, 0, 0)
        assert opened.getpixel((30, opened.height - 2)) == expected


def test_a_folder_that_vanishes_leaves_no_half_picture(tmp_path):
    sink = open_sink(f"images:{tmp_path}/out?only=all")
    (tmp_path / "out").rmdir()
    with pytest.raises(Exception, match="cannot write"):
        sink.write(result(), frame())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "left"),
    [("keep=4", 4), ("max_size=1", 1), ("max_age=50s", 3), ("keep=100", 10), ("", 10)],
)
def test_pictures_beyond_the_limits_go_oldest_first(tmp_path, parameters, left):
    strange = tmp_path / "notes-000001.jpg"
    strange.write_text("not ours")
    now = time.time()
    with open_sink(f"images:{tmp_path}?only=all") as sink:
        for index in range(9):
            sink.write(result(index), frame(index))
            age = 100 if index < 7 else 10
            os.utime(tmp_path / f"line-{index:06d}-OK.jpg", (now - age + index / 100,) * 2)
    # A new run counts what the earlier one left, at the start and with each picture.
    with open_sink(f"images:{tmp_path}?only=all&{parameters}") as sink:
        sink.write(result(9), frame(9))
    names = sorted(path.name for path in tmp_path.glob("line-*"))
    assert names == [f"line-{index:06d}-OK.jpg" for index in range(10 - left, 10)]
    assert strange.read_text() == "not ours"


@pytest.mark.parametrize("jump_days", [-20000, -1, 1, 20000])
def test_setting_the_clock_removes_no_picture_of_this_run(tmp_path, monkeypatch, jump_days):
    real = time.time
    offset = 0.0
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    with open_sink(f"images:{tmp_path}?only=all&max_age=8h") as sink:
        for index in range(6):
            sink.write(result(index), frame(index))
            if index == 2:
                offset = jump_days * 86400.0
    assert len(list(tmp_path.glob("line-*"))) == 6


def test_pictures_from_before_the_clock_was_set_count_as_new(tmp_path):
    with open_sink(f"images:{tmp_path}?only=all") as sink:
        for index in range(3):
            sink.write(result(index), frame(index))
    # As a board without a battery stamps them, as a clock that ran ahead does, and an old one.
    for index, stamp in enumerate((3600.0, time.time() + 1e6, time.time() - 1e6)):
        os.utime(tmp_path / f"line-{index:06d}-OK.jpg", (stamp, stamp))
    with open_sink(f"images:{tmp_path}?only=all&max_age=8h") as sink:
        sink.write(result(3), frame(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"line-{i:06d}-OK.jpg" for i in (0, 1, 3)]


def test_pictures_that_somebody_removed_are_no_error(tmp_path):
    with open_sink(f"images:{tmp_path}?only=all&keep=2") as sink:
        for index in range(5):
            sink.write(result(index), frame(index))
            for path in tmp_path.iterdir():
                path.unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, or a way to act as if: unprivileged users may not mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_counted_and_told_once(small_disk, caplog):
    (small_disk / "filler").write_bytes(bytes(700_000))
    _fill_the_disk(small_disk, caplog)


def test_a_disk_that_says_it_is_full_is_counted_and_told_once(tmp_path, monkeypatch, caplog):
    save = Image.Image.save

    def full(picture, stream, *arguments, **options):
        if len(list(tmp_path.glob("*.png"))) >= 3:
            stream.write(b"half a picture")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(picture, stream, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    _fill_the_disk(tmp_path, caplog)


def _fill_the_disk(folder, caplog):
    def noisy(item):
        return Result(2.0, 1.5, Decision.ANOMALY, item.index, item.timestamp_ns, item.source_id)

    camera = "synthetic://?fps=100&frames=40&width=320&height=240&policy=every"
    sinks = [f"images:{folder}?format=png", f"jsonl:{folder}/r.jsonl"]
    summary = Stream(noisy, camera, sinks=sinks, queue_size=40, drain_s=LONG_S).run()
    report = summary.sinks[0]
    assert summary.frames.inspected == 40
    assert report.accepted == 40 == report.written + report.failed + report.missed
    assert report.written >= 1
    assert report.failed >= 1
    assert "No space left" in report.last_error
    assert sum("images:" in record.getMessage() for record in caplog.records) == 1
    pictures = list(folder.glob("*.png"))
    assert len(pictures) == report.written
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


# JSON lines that rotate


def test_json_lines_rotate_without_losing_one(tmp_path):
    path = tmp_path / "results.jsonl"
    with open_sink(f"{path}?rotate=2kB&keep=3") as sink:
        for index in range(60):
            sink.write(result(index), None)
    files = [path.with_name(f"results.jsonl.{number}") for number in (3, 2, 1)] + [path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 2000 for file in files)
    indices = [json.loads(line)["frame_index"] for file in files for line in file.read_text().splitlines()]
    assert indices == list(range(indices[0], 60))
    assert len(indices) >= 15
    # The next run goes on where this one ended.
    with open_sink(f"{path}?rotate=1MB") as sink:
        sink.write(result(60), None)
    assert json.loads(path.read_text().splitlines()[-1])["frame_index"] == 60


def test_json_lines_are_written_on_where_no_new_file_can_be_begun(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    (tmp_path / "results.jsonl.1").mkdir()
    (tmp_path / "results.jsonl.1" / "x").touch()
    with open_sink(f"{path}?rotate=1kB&keep=1") as sink:
        for index in range(20):
            sink.write(result(index), None)
    assert [json.loads(line)["frame_index"] for line in path.read_text().splitlines()] == list(range(20))
    assert "cannot begin a new file" in caplog.text


def test_json_lines_rotate_past_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"frame_in')
    with open_sink(f"{path}?rotate=300&keep=5") as sink:
        sink.write(result(1), None)
        sink.write(result(2), None)
    lines = [line for file in sorted(tmp_path.iterdir(), reverse=True) for line in file.read_text().splitlines()]
    assert [json.loads(line)["frame_index"] for line in lines if line != '{"frame_in'] == [1, 2]


# Video


def read_video(path):
    cv2 = pytest.importorskip("cv2")
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, picture = capture.read()
        if not good:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(picture[:, :, ::-1])


def test_video_plays_and_shows_every_frame(tmp_path):
    camera = "synthetic://?fps=100&frames=24&width=160&height=120&policy=every&seed={}"
    sources = [camera.format(1), camera.format(2)]
    summary = Stream(judge, sources, sinks=[f"video:{tmp_path}/v?fps=12"], queue_size=50, drain_s=LONG_S).run()
    (report,) = summary.sinks
    files = sorted((tmp_path / "v").iterdir())
    assert len(files) == 2
    lengths = []
    for file in files:
        pictures, fps = read_video(file)
        lengths.append(len(pictures))
        assert fps == 12
        assert pictures[0].shape[:2] == (144, 160)
    assert sum(lengths) == report.written
    assert report.written + report.missed == 48


def test_video_shows_decision_and_colours(tmp_path):
    red = np.zeros((60, 81, 3), np.uint8)
    red[:, :, 0] = 220
    with open_sink(f"video:{tmp_path}") as sink:
        for index, decision in enumerate((Decision.OK, Decision.ANOMALY, Decision.ANOMALY)):
            sink.write(result(index, decision), Frame(red, index, 0, "line"))
        assert all(path.name.startswith(".part-") for path in tmp_path.iterdir())
    (path,) = tmp_path.iterdir()
    pictures, _ = read_video(path)
    assert [picture.shape for picture in pictures] == [(84, 82, 3)] * 3
    ok, anomaly, _ = ([int(value) for value in picture[2, 40]] for picture in pictures)
    assert ok[1] > ok[0] + 30  # green above
    assert anomaly[0] > anomaly[1] + 60  # red above
    assert pictures[0][70, 40][0] > 150 > pictures[0][70, 40][2]


def test_video_begins_new_files_and_keeps_some(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with open_sink(f"video:{tmp_path}?rotate=200kB&keep=2") as sink:
        for index in range(60):
            sink.write(result(index), Frame(noise, index, 0, "line"))
        sink.write(result(60), frame(60))  # another size
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sorted(len(read_video(file)[0]) for file in files)[0] == 1


def test_video_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    from edgead.runtime.sinks import video

    monkeypatch.setattr(video, "_LEAST_FREE", 1 << 60)
    with open_sink(f"video:{tmp_path}") as sink, pytest.raises(DataError, match="are left on the disk"):
        sink.write(result(), frame())


# Your own function


def test_a_function_of_your_own_gets_every_result():
    got = []
    sink = CallbackSink(lambda item, picture: got.append((item.frame_index, picture.image.shape)), keeps_frames=True)
    camera = "synthetic://?fps=100&frames=5&width=64&height=64&policy=every"
    stream = Stream(judge, camera, sinks=[sink], drain_s=LONG_S)
    (report,) = stream.run().sinks
    assert got == [(index, (64, 64, 3)) for index in range(5)]
    assert (report.name, report.written) == ("callback", 5)


# Opening


@pytest.mark.parametrize("scheme", REGISTRY)
def test_every_registered_sink_has_its_class(scheme):
    entry = REGISTRY[scheme]
    factory = getattr(import_module(f"edgead.runtime.sinks.{entry.module}"), entry.factory)
    assert callable(factory.write)
    assert factory.__doc__


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("jsnl:x", "Did you mean 'jsonl'"),
        ("results.csv", "unknown sink"),
        ("images:out?onyl=all", "Did you mean 'only'"),
        ("images:out?only=al", "Did you mean 'all'"),
        ("images:", "needs a path"),
        ("jsonl:", "needs a path"),
        ("jsonl:/proc/nothing/x.jsonl", "cannot write jsonl:/proc/nothing/x.jsonl"),
        ("jsonl:x.jsonl?limit=3", "unknown parameter 'limit'"),
        ("jsonl:x.jsonl?keep=3", "keep needs rotate"),
        ("jsonl:x.jsonl?rotate=3XB", "is not a size"),
        ("jsonl:-?rotate=3MB", "standard output has no size"),
        ("images:out?max_age=never", "is not a duration"),
        ("video:", "needs a path, such as video:DIR"),
        ("ftp://me:secret@broker/topic", r"unknown sink 'ftp://\*\*\*@broker/topic'"),
    ],
)
def test_mistakes_are_one_clear_line(uri, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        open_sink(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
