"""Watched folders, CSI cameras, industrial cameras, and clocks of cameras."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import ConfigError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import open_source, parse_address, watch
from edgead.runtime.sources.clock import ClockMap
from edgead.runtime.sources.csi import pipeline_text
from tests.waiting import LONG_S, wait_for

MS = 1_000_000


def picture(level=50, kind="PNG"):
    stream = io.BytesIO()
    noise = np.random.default_rng(level).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[:8] = level
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


# Watched folders


class Watching:
    """A watched folder that is read in a thread."""

    def __init__(self, folder, query="?settle=80ms&poll=10ms", bits=16):
        self.source = open_source(f"watch://{folder}{query}", bits=bits)
        self.got = []
        self.error = None
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        try:
            for frame in self.source.frames():
                self.got.append(frame)
        except SourceError as error:
            self.error = error

    def names(self):
        return [frame.name for frame in self.got]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()
        self.thread.join(LONG_S)
        assert not self.thread.is_alive()


def test_new_images_are_read_once_each_and_what_was_there_is_not(tmp_path):
    (tmp_path / "old.png").write_bytes(picture())
    (tmp_path / "sub").mkdir()
    with Watching(tmp_path) as watching:
        for name in ("a.png", "sub/b.png", "notes.txt", ".hidden.png"):
            (tmp_path / name).write_bytes(picture())
        wait_for(lambda: len(watching.got) == 2)
        (tmp_path / "c.png").write_bytes(picture())
        wait_for(lambda: len(watching.got) == 3)
        time.sleep(0.2)
    assert sorted(watching.names()[:2]) == ["a.png", "sub/b.png"]
    assert watching.names()[2:] == ["c.png"]
    assert [frame.index for frame in watching.got] == [0, 1, 2]
    assert all(isinstance(frame, Frame) for frame in watching.got)


@pytest.mark.parametrize("query", ["", "?existing=yes"])
def test_images_that_are_left_alone_are_not_left_in_silence(tmp_path, caplog, query):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    open_source(f"watch://{tmp_path}{query}").close()
    said = f"2 images that were in {tmp_path} before are not judged; ?existing=yes judges them"
    assert caplog.messages == ([] if query else [said])


def test_a_file_that_is_being_written_is_not_read_before_it_is_whole(tmp_path):
    data = picture(kind="BMP")
    with Watching(tmp_path) as watching, (tmp_path / "slow.bmp").open("wb") as file:
        for start in range(0, len(data), 1500):
            file.write(data[start : start + 1500])
            file.flush()
            time.sleep(0.03)
            assert watching.got == []
        file.flush()
        wait_for(lambda: len(watching.got) == 1)
    assert isinstance(watching.got[0], Frame)
    assert watching.got[0].image.shape == (64, 64, 3)


def test_a_file_that_is_renamed_into_the_folder_and_one_written_again_are_new(tmp_path):
    (tmp_path / "in").mkdir()
    with Watching(tmp_path / "in") as watching:
        for round_number in range(3):
            (tmp_path / "part.tmp").write_bytes(picture(round_number))
            os.replace(tmp_path / "part.tmp", tmp_path / "in" / "part.png")  # noqa: PTH105
            wait_for(lambda count=round_number: len(watching.got) == count + 1)
        (tmp_path / "in" / "part.png").unlink()
        time.sleep(0.05)
        (tmp_path / "in" / "part.png").write_bytes(picture(9))
        wait_for(lambda: len(watching.got) == 4)
    assert [int(frame.image[0, 0, 0]) for frame in watching.got] == [0, 1, 2, 9]


@pytest.mark.parametrize(("fraction_ns", "judged_again"), [(123_456_789, False), (0, True)])
def test_a_judged_file_that_is_renamed_is_the_same_where_times_can_tell(tmp_path, fraction_ns, judged_again):
    with Watching(tmp_path) as watching:
        (tmp_path / "a.tmp").write_bytes(picture())
        os.utime(tmp_path / "a.tmp", ns=(10**18, 10**18 + fraction_ns))
        (tmp_path / "a.tmp").rename(tmp_path / "a.png")
        wait_for(lambda: watching.names() == ["a.png"])
        (tmp_path / "done").mkdir()
        (tmp_path / "a.png").rename(tmp_path / "done" / "b.png")
        # Of the same size, later: another part, whatever its inode.
        (tmp_path / "a.png").write_bytes(picture())
        wait_for(lambda: len(watching.got) == 2 + judged_again)
        # Over the name of another judged one.
        os.utime(tmp_path / "a.png", ns=(10**18, 10**18 + 10**9 + fraction_ns))
        wait_for(lambda: watching.names().count("a.png") == 3)
        (tmp_path / "a.png").replace(tmp_path / "done" / "b.png")
        wait_for(lambda: watching.names().count("done/b.png") == 2 * judged_again)
        (tmp_path / "last.png").write_bytes(picture())
        wait_for(lambda: "last.png" in watching.names())
    expected = ["a.png", "a.png", "a.png", "last.png"] + ["done/b.png"] * 2 * judged_again
    assert sorted(watching.names()) == sorted(expected)


def test_what_stays_broken_is_a_bad_frame_and_a_folder_that_goes_is_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with Watching(folder, "?settle=50ms&poll=10ms&existing=yes&policy=every") as watching:
        (folder / "broken.png").write_bytes(picture()[:300])
        (folder / "empty.png").touch()
        wait_for(lambda: len(watching.got) == 1)
        assert isinstance(watching.got[0], BadFrame)
        (folder / "broken.png").unlink()
        (folder / "empty.png").unlink()
        folder.rmdir()
        wait_for(lambda: watching.error is not None)
    assert "is gone" in str(watching.error)


def test_a_file_that_stays_empty_is_a_bad_frame_and_one_that_is_filled_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_EMPTY_NS", 300_000_000)
    with Watching(tmp_path, "?settle=20ms&poll=10ms") as watching:
        (tmp_path / "empty.png").touch()
        (tmp_path / "slow.png").touch()
        (tmp_path / "slow.png").write_bytes(picture())
        wait_for(lambda: len(watching.got) == 2)
    found = {frame.name: frame for frame in watching.got}
    assert isinstance(found["slow.png"], Frame)
    assert "empty" in found["empty.png"].reason


def test_existing_images_come_where_they_are_asked_for(tmp_path):
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(picture())
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    with Watching(tmp_path, "?existing=yes&settle=20ms&poll=10ms") as watching:
        wait_for(lambda: len(watching.got) == 2)
    assert watching.names() == ["a.png", "b.png"]


def test_images_that_vanish_and_come_back_are_not_judged_again(tmp_path, caplog):
    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    away.mkdir()
    for name in ("old-1.png", "old-2.png"):
        (share / name).write_bytes(picture())
    with Watching(share, "?settle=20ms&poll=10ms") as watching:
        (share / "new.png").write_bytes(picture())
        wait_for(lambda: watching.names() == ["new.png"])
        for path in list(share.iterdir()):
            path.rename(away / path.name)
        wait_for(lambda: "all 3 images" in caplog.text)
        for path in list(away.iterdir()):
            path.rename(share / path.name)
        (share / "later.png").write_bytes(picture())
        wait_for(lambda: "later.png" in watching.names())
        # The same name with another content is another part.
        (share / "old-1.png").write_bytes(picture(7))
        wait_for(lambda: len(watching.got) == 3)
    assert watching.names() == ["new.png", "later.png", "old-1.png"]


@pytest.mark.parametrize("how", ["the same", "copied to another device"])
def test_a_share_that_is_unmounted_is_lost_and_its_images_are_not_judged_again(tmp_path, how):
    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    (share / "old.png").write_bytes(picture())
    with Watching(share, "?settle=20ms&poll=10ms") as watching:
        (share / "new.png").write_bytes(picture())
        wait_for(lambda: watching.names() == ["new.png"])
        share.rename(away)  # what was mounted goes, and its mount point is seen: another folder, and empty
        wait_for(lambda: watching.error is not None)
        share.mkdir()
        with pytest.raises(SourceLost, match="is the share mounted"):
            watching.source.reopener()()
        share.rmdir()
        if how == "the same":
            away.rename(share)
        else:
            shutil.copytree(away, share)
        again = watching.source.reopener()()
        (share / "part.png").write_bytes(picture())
        frames = again.frames()
        assert next(frames).name == "part.png"
        again.close()
        assert list(frames) == []


# CSI cameras


def text_of(uri):
    address = parse_address(uri)
    return pipeline_text(address.location, address.parameters)


def test_the_pipeline_of_a_csi_camera():
    assert text_of("csi://0") == (
        "nvarguscamerasrc sensor-id=0 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1,format=NV12 ! "
        "nvvidconv flip-method=0 ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink name=frames drop=true max-buffers=1 sync=false"
    )
    text = text_of("csi://1?width=1920&height=1080&fps=29.97&flip=rotate-180")
    assert "sensor-id=1 " in text
    assert "width=1920,height=1080,framerate=29970/1000," in text
    assert "flip-method=2 " in text


def test_a_pipeline_text_holds_nothing_that_a_uri_smuggles_in():
    for uri in ("csi://0 ! filesink location=x", "csi://-1", "csi://0?flip=0 ! fakesink", "csi://"):
        with pytest.raises(ConfigError):
            text_of(uri)


GSTREAMER = """
import sys
sys.path.append("/usr/lib/python3/dist-packages")
try:
    import gi
    gi.require_version("GstApp", "1.0")
    from gi.repository import Gst
    Gst.init(None)
    assert Gst.ElementFactory.find("videotestsrc")
except Exception as error:
    print(error); sys.exit(77)
import time
import numpy as np
from edgead.runtime.errors import SourceError
from edgead.runtime.sources.gstreamer import GstCapture
text = ("videotestsrc pattern=red is-live=true num-buffers=12 ! video/x-raw,width=63,height=40,framerate=30/1 "
        "! videoconvert ! video/x-raw,format=BGR ! appsink name=frames drop=true max-buffers=1 sync=false")
capture = GstCapture(text, time.monotonic_ns)
assert capture.opened
frames = []
while (frame := capture.read(len(frames), "csi://0")) is not None:
    assert frame.timestamp_ns <= time.monotonic_ns()
    frames.append(frame)
capture.close()
assert 8 <= len(frames) <= 12, len(frames)
assert frames[0].image.shape == (40, 63, 3) and frames[0].layout == "bgr"
assert (frames[0].image == np.array([0, 0, 255])).all(), frames[0].image[0, 0]
assert [frame.index for frame in frames] == list(range(len(frames)))
try:
    GstCapture("nosuchelement ! appsink name=frames", time.monotonic_ns)
except SourceError as error:
    assert "nosuchelement" in str(error) and "\\n" not in str(error), error
else:
    raise AssertionError("built a pipeline of nothing")
"""


def test_a_real_pipeline_through_pygobject():
    done = subprocess.run(
        [sys.executable, "-c", GSTREAMER], capture_output=True, text=True, timeout=LONG_S, cwd=Path(__file__).parents[2]
    )
    if done.returncode == 77:
        pytest.skip(f"no PyGObject for this Python: {done.stdout.strip()}; apt-get install python3-gi")
    assert done.returncode == 0, done.stderr


def test_a_watched_folder_reads_the_bits_and_keeps_them_when_it_is_opened_again(tmp_path):
    folder, values = tmp_path / "in", np.full((40, 40), 4095, np.uint16)
    folder.mkdir()
    with Watching(folder, bits=12) as watching:
        Image.fromarray(values).save(folder / "a.png")
        wait_for(lambda: len(watching.got) == 1)
        Image.fromarray(values + 1).save(folder / "b.png")
        wait_for(lambda: len(watching.got) == 2)
        assert np.array_equal(watching.got[0].image, np.full((40, 40, 3), 255))
        assert "b.png holds values up to 4096, and the model takes 12 bits" in watching.got[1].reason
        again = watching.source.reopener()()
        Image.fromarray(values).save(folder / "c.png")
        assert next(again.frames()).image.max() == 255
        again.close()


# Industrial cameras: harvesters and the producer are stand-ins, so this shows only that its API is used as described


@pytest.fixture
def genicam(monkeypatch, tmp_path):
    class TimeoutException(Exception):  # noqa: N818
        pass

    class Buffer:
        def __init__(self, data, kind, stamp):
            height, width = data.shape[:2]
            component = SimpleNamespace(data=data.ravel(), height=height, width=width, data_format=kind)
            self.payload = SimpleNamespace(components=[component])
            self.timestamp_ns = stamp
            self.released = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.released = True

    camera = SimpleNamespace(buffers=[], calls=[], num_buffers=1, node=SimpleNamespace(value=""))
    camera.remote_device = SimpleNamespace(node_map=SimpleNamespace(PixelFormat=camera.node))
    for name in ("start", "stop", "destroy"):
        setattr(camera, name, lambda name=name: camera.calls.append(name))

    def fetch(timeout):
        assert timeout < 1
        if not camera.buffers:
            time.sleep(0.01)
            raise TimeoutException
        item = camera.buffers.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    camera.fetch = fetch

    class Harvester:
        device_info_list = ("one",)

        def add_file(self, path):
            camera.calls.append(path)

        def update(self):
            pass

        def create(self, which):
            if which not in (0, {"serial_number": "S77"}):
                raise ValueError("not found")
            return camera

        def reset(self):
            camera.calls.append("reset")

    core, gentl = ModuleType("harvesters.core"), ModuleType("genicam.gentl")
    core.Harvester, gentl.TimeoutException = Harvester, TimeoutException
    package = ModuleType("harvesters")
    package.__spec__ = SimpleNamespace()
    for name, module in (
        ("harvesters", package),
        ("harvesters.core", core),
        ("genicam", ModuleType("genicam")),
        ("genicam.gentl", gentl),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    producer = tmp_path / "vendor.cti"
    producer.touch()
    return SimpleNamespace(camera=camera, buffer=Buffer, uri=f"genicam://0?cti={producer}", producer=producer)


def test_frames_of_an_industrial_camera_carry_its_own_times(genicam):
    levels = [np.full((6, 8), 40 + number, np.uint8) for number in range(4)]
    now = time.monotonic_ns()
    genicam.camera.buffers = [
        genicam.buffer(level, "Mono8", 5 * 10**9 + number * 100 * MS) for number, level in enumerate(levels)
    ]
    kept = list(genicam.camera.buffers)
    source = open_source(genicam.uri + "&format=Mono8")
    frames = []
    for frame in source.frames():
        frames.append(frame)
        if len(frames) == 4:
            break
    source.close()
    assert [int(frame.image[0, 0]) for frame in frames] == [40, 41, 42, 43]
    assert all(frame.layout == "gray" and frame.image.shape == (6, 8) for frame in frames)
    assert all(now <= frame.timestamp_ns <= time.monotonic_ns() for frame in frames)
    assert all(buffer.released for buffer in kept)
    assert genicam.camera.node.value == "Mono8"
    assert genicam.camera.calls == [str(genicam.producer), "start", "stop", "destroy", "reset"]


def test_an_industrial_camera_may_be_silent_and_its_loss_is_a_loss(genicam):
    source = open_source(genicam.uri)
    genicam.camera.buffers = [genicam.buffer(np.zeros((4, 4, 3), np.uint8), "BayerRG8", 0), OSError("device removed")]
    frames = source.frames()
    bad = next(frames)
    assert isinstance(bad, BadFrame)
    assert "BayerRG8" in bad.reason
    with pytest.raises(SourceLost, match=r"stopped after 1 frames \(device removed\)"):
        next(frames)
    silent = open_source(genicam.uri + "&policy=every")
    reader = threading.Thread(target=lambda: list(silent.frames()))
    reader.start()
    time.sleep(0.1)
    silent.close()
    reader.join(LONG_S)
    assert not reader.is_alive()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("genicam://9?cti={}", "cannot open genicam://9"),
        ("genicam://S78?cti={}", "not found"),
        ("genicam://0?cti=/no/such.cti", "no producer file"),
        ("genicam://0?format=YUV&cti={}", "format=YUV is not one of"),
    ],
)
def test_mistakes_with_industrial_cameras_are_one_line(genicam, uri, message):
    with pytest.raises((SourceError, ConfigError), match=message) as caught:
        open_source(uri.format(genicam.producer))
    assert "\n" not in str(caught.value)


def test_a_camera_by_its_serial_number(genicam):
    open_source(f"genicam://S77?cti={genicam.producer}").close()
    assert genicam.camera.calls[-2:] == ["destroy", "reset"]


@pytest.mark.parametrize(("kind", "bits"), [("Mono10", 10), ("Mono12", 12), ("Mono14", 14), ("Mono16", 16)])
def test_unpacked_grey_of_more_bits_keeps_the_upper_8(genicam, kind, bits):
    values = (np.arange(48, dtype=np.uint16) * ((1 << bits) // 48)).reshape(6, 8)
    values[0, 0] = (1 << bits) - 1
    genicam.camera.buffers = [genicam.buffer(values, kind, 0), genicam.buffer(values, kind, 0)]
    with open_source(f"{genicam.uri}&format={kind}&policy=every") as source:
        frame = next(source.frames())
    assert genicam.camera.node.value == kind
    assert (frame.image.dtype, frame.layout) == (np.uint8, "gray")
    assert np.array_equal(frame.image, values >> (bits - 8))


def test_values_of_more_bits_than_the_format_or_the_model_has_are_bad_frames(genicam):
    values = np.full((4, 6), 4095, np.uint16)
    too_large = np.where(np.arange(24).reshape(4, 6) == 7, 5000, values).astype(np.uint16)
    shown = [(values, "Mono12", 16), (too_large, "Mono12", 16), (values, "Mono16", 12), (too_large, "Mono16", 12)]
    shown += [(values.astype(np.uint8), "Mono12", 16), (values, "Mono8", 16), (values, "Mono12p", 16)]
    found = []
    for data, kind, bits in shown:
        genicam.camera.buffers = [genicam.buffer(data, kind, 0)]
        with open_source(genicam.uri, bits=bits) as source:
            found.append(next(source.frames()))
    assert [isinstance(one, BadFrame) for one in found] == [False, True, False, True, True, True, True]
    assert np.array_equal(found[2].image, np.full((4, 6), 255))  # the model's 12 bits, as of its files
    for index in (1, 3):
        assert found[index].reason == "the camera delivers values up to 5000, and 12 bits are taken (up to 4095)"
    assert found[4].reason == found[5].reason == "the camera delivered an incomplete frame"
    assert "Mono12p, not Mono8, RGB8, BGR8, Mono10, Mono12, Mono14, Mono16" in found[6].reason


# Clocks


def test_frames_from_a_buffer_get_the_time_at_which_the_camera_took_them():
    clock = ClockMap()
    device, host = 7 * 10**9, 10**12
    for number in range(30):  # in its own time, with 0 to 4 ms of jitter
        jitter = number * 3 % 5 * MS
        stamp = clock.capture_ns(device + number * 33 * MS, host + number * 33 * MS + jitter)
        assert abs(stamp - (host + number * 33 * MS)) <= jitter
    assert not clock.rushing
    # The host slept for 2 s; then what was buffered comes at once.
    for number in range(30, 90):
        arrival = host + 90 * 33 * MS + number * MS // 10
        age = arrival - clock.capture_ns(device + number * 33 * MS, arrival)
        assert abs(age - (90 - number) * 33 * MS) < 30 * MS
        assert clock.rushing == (number > 30)


def test_a_clock_that_drifts_or_begins_anew_never_looks_like_age():
    clock = ClockMap()
    for number in range(100_000):  # an hour at 30 fps with a clock that is 0.5 % slow
        arrival = 10**12 + number * 33 * MS
        lag = arrival - clock.capture_ns(1 + int(number * 33 * MS * 0.995), arrival)
        assert lag < 5 * MS
    assert clock.capture_ns(10, arrival + 33 * MS) == arrival + 33 * MS, "restarted"
    assert clock.capture_ns(0, arrival + 66 * MS) == arrival + 66 * MS, "no timestamp"
    # One that stands still says nothing.
    clock.capture_ns(20 + 99 * MS, arrival + 132 * MS)
    assert clock.capture_ns(20 + 99 * MS, arrival + 9999 * MS) == arrival + 9999 * MS


# Images over HTTP, and part ids


class Receiving:
    """A source that receives images, read in a thread unless it is told not to."""

    def __init__(self, query="", read=True):
        self.source = open_source(f"receive://127.0.0.1:0{query}")
        self.got = []
        self.thread = threading.Thread(target=lambda: self.got.extend(self.source.frames()))
        if read:
            self.thread.start()

    def post(self, data, query="", path="frame", **headers):
        request = Request(f"{self.source.url}{path}{query}", data, headers, method="POST")
        try:
            with urlopen(request, timeout=LONG_S) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, error.read().decode().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()
        if self.thread.ident is not None:
            self.thread.join(LONG_S)
            assert not self.thread.is_alive()


def test_images_are_received_with_their_part_id():
    with Receiving("?policy=every") as receiving:
        assert receiving.source.delivery.policy == "every"
        assert receiving.post(picture(10), "?part_id=4711%2FA") == (202, {"frame": 0})
        assert receiving.post(picture(20)) == (202, {"frame": 1})
    assert [(frame.index, frame.part_id) for frame in receiving.got] == [(0, "4711/A"), (1, None)]
    assert (receiving.got[0].image == np.asarray(Image.open(io.BytesIO(picture(10))))).all()


@pytest.mark.parametrize(
    ("data", "query", "path", "headers", "code", "said"),
    [
        (b"no image", "?part_id=1", "frame", {}, 400, "is not a readable image"),
        (None, "?part_id=", "frame", {}, 400, "a part id is text of 1 to 128 characters"),
        (None, "?part_id=" + "x" * 129, "frame", {}, 400, "a part id is text of 1 to 128 characters"),
        (None, "?part_id=a%0Ab", "frame", {}, 400, "a part id is text of 1 to 128 characters"),
        (None, "?part_id=1&part_id=2", "frame", {}, 400, "given once"),
        (None, "?part=1", "frame", {}, 400, "the only parameter is part_id"),
        (None, "?part_id=1", "other", {}, 404, "post an image to /frame"),
        (None, "?part_id=1", "frame", {"Origin": "http://elsewhere"}, 403, "not from web pages"),
    ],
)
# More than six parameters: one request each.
def test_what_cannot_be_a_part_is_refused_in_a_line_and_gives_no_frame(data, query, path, headers, code, said):
    with Receiving() as receiving:
        found, text = receiving.post(picture() if data is None else data, query, path, **headers)
        assert found == code
        assert said in text
        assert "\n" not in text
        assert receiving.post(picture()) == (202, {"frame": 0})
    assert len(receiving.got) == 1


def test_images_that_nobody_takes_are_refused_and_may_be_sent_again():
    with Receiving(read=False) as receiving:
        codes = [receiving.post(picture())[0] for _ in range(33)]
        assert codes == [202] * 32 + [503]
        receiving.thread.start()
        wait_for(lambda: receiving.post(picture())[0] == 202)


def test_an_address_that_others_reach_needs_a_token(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a token: \?token_file=FILE"):
        open_source("receive://0.0.0.0:0")
    (tmp_path / "token").write_text("a long secret\n")
    with Receiving(f"?token_file={tmp_path}/token") as receiving:
        assert receiving.post(picture())[0] == 401
        assert receiving.post(picture(), Authorization="Bearer another")[0] == 401
        assert receiving.post(picture(), Authorization="Bearer a long secret")[0] == 202
        with pytest.raises(SourceError, match="cannot listen"):
            open_source(f"receive://127.0.0.1:{receiving.source.url.split(':')[-1].strip('/')}")


def test_a_file_names_its_part_where_that_is_asked_for(tmp_path):
    (tmp_path / "SN-1.png").write_bytes(picture(10))
    (tmp_path / ("y" * 140 + ".png")).write_bytes(picture(20))
    plain = list(open_source(tmp_path).frames())
    assert [frame.part_id for frame in plain] == [None, None]
    named = list(open_source(f"{tmp_path}?part_id=file").frames())
    assert named[0].part_id == "SN-1"
    assert isinstance(named[1], BadFrame)  # rather not inspected than without the id that somebody asks for later
    assert "a part id is text of 1 to 128 characters" in named[1].reason
    with Watching(tmp_path, "?settle=80ms&poll=10ms&existing=yes&part_id=file") as watching:
        wait_for(lambda: len(watching.got) == 2)
    assert {getattr(frame, "part_id", None) for frame in watching.got} == {"SN-1", None}
