"""Images for training: lossless, numbered on, never replaced, and what looks wrong is said."""

from __future__ import annotations

import json
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgead.runtime.device.capture import capture
from edgead.runtime.errors import ConfigError, DataError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.sources import Delivery, Source, open_source


class Listed(Source):
    """Delivers the given pictures (or raises a given error), ``step_s`` apart."""

    def __init__(self, items, step_s=0.0, layout="rgb"):
        self.source_id, self.live, self.delivery = "listed", True, Delivery("newest")
        self.items, self.step, self.layout = items, step_s, layout
        self.closed = False

    def frames(self):
        for index, item in enumerate(self.items):
            if isinstance(item, Exception):
                raise item
            stamp = int(1e9 * (100 + index * self.step))
            yield item if isinstance(item, BadFrame) else Frame(item, index, stamp, "listed", self.layout)

    def close(self):
        self.closed = True


def texture(seed, blur=0.0, scale=1.0, size=(60, 80)):
    pixels = np.random.default_rng(seed).integers(60, 190, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)) if blur else Image.fromarray(pixels)
    return np.clip(np.asarray(picture) * scale, 0, 255).astype(np.uint8)


def test_photos_are_what_the_stream_sees_to_the_pixel(tmp_path):
    summary = capture("synthetic://?fps=500&defects=0", 4, tmp_path / "train" / "good")
    source = open_source("synthetic://?defects=0")
    assert [photo.name for photo in summary.photos] == [f"{number:06d}.png" for number in range(4)]
    for number in range(4):
        assert np.array_equal(read_image(tmp_path / "train" / "good" / f"{number:06d}.png"), source.render(number))
    assert summary.warnings == []


@pytest.mark.parametrize("layout", ["rgb", "bgr", "gray"])
def test_channel_order_of_the_camera(tmp_path, layout):
    picture = texture(1)
    source = Listed([{"rgb": picture, "bgr": picture[:, :, ::-1].copy(), "gray": picture[:, :, 1].copy()}[layout]])
    source.layout = layout
    capture(source, 1, tmp_path)
    expected = np.repeat(picture[:, :, 1:2], 3, axis=2) if layout == "gray" else picture
    assert np.array_equal(read_image(tmp_path / "000000.png"), expected)


def test_numbers_go_on_and_nothing_is_replaced(tmp_path):
    (tmp_path / "000007.png").write_bytes(b"precious")
    (tmp_path / "12.jpg").write_bytes(b"precious")
    (tmp_path / "notes.txt").write_bytes(b"")
    summary = capture(Listed([texture(0), texture(1)]), 2, tmp_path)
    assert [photo.name for photo in summary.photos] == ["000013.png", "000014.png"]
    assert (tmp_path / "000007.png").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000007.png", "000013.png", "000014.png", "12.jpg", "notes.txt",
    ]  # fmt: skip


def test_two_captures_into_one_folder_share_it(tmp_path):
    summary = capture(
        Listed([texture(0), texture(1)]),
        2,
        tmp_path,
        on_photo=lambda _: (tmp_path / "000001.png").write_bytes(b"other"),
    )
    assert [photo.name for photo in summary.photos] == ["000000.png", "000002.png"]
    assert (tmp_path / "000001.png").read_bytes() == b"other"


def test_interval_lets_frames_go(tmp_path):
    source = Listed([texture(seed) for seed in range(10)], step_s=0.1)
    summary = capture(source, 3, tmp_path, min_interval_s=0.25)
    assert summary.saved == 3
    for number, index in enumerate((0, 3, 6)):
        assert np.array_equal(read_image(tmp_path / f"{number:06d}.png"), texture(index))
    assert source.closed


def test_warnings_name_what_is_wrong(tmp_path):
    pictures = [texture(seed) for seed in range(6)]
    pictures += [
        texture(6, blur=2.0),
        texture(7, scale=0.1),
        np.full((60, 80, 3), 255, np.uint8),
        texture(9),
        texture(9),
    ]
    summary = capture(Listed(pictures), 11, tmp_path)
    found = {photo.name[4:6]: photo.warning for photo in summary.photos if photo.warning}
    assert set(found) == {"06", "07", "08", "10"}
    assert "less sharp" in found["06"]
    assert "too dark" in found["07"]
    assert "too bright" in found["08"]
    assert "frozen" in found["10"]
    assert summary.saved == 11
    document = json.loads(json.dumps(summary.to_dict()))
    assert (document["schema"], document["saved"], document["warnings"]) == ("edgead.capture/1", 11, 4)


def test_a_source_that_ends_early_and_bad_frames(tmp_path):
    summary = capture(Listed([texture(0), BadFrame(1, 0, "listed", "broken"), texture(2)]), 5, tmp_path)
    assert (summary.wanted, summary.saved, summary.unreadable) == (5, 2, 1)


def test_a_lost_camera_keeps_what_was_saved(tmp_path):
    source = Listed([texture(0), texture(1), SourceLost("listed stopped after 2 frames")])
    with pytest.raises(SourceLost, match=r"stopped after 2 frames; 2 of 5 images were saved in .* and stay") as caught:
        capture(source, 5, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2
    assert source.closed


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_is_one_line_and_keeps_what_was_saved(tmp_path):
    # A limit on the file size fails the write in the middle of a file, as a full disk does.
    resource = pytest.importorskip("resource")
    small, large = texture(0, size=(20, 20)), texture(1, size=(400, 400))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*000001\.png.*; 1 of 3 images were saved") as caught:
            capture(Listed([small, large, small]), 3, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.png"]
    assert np.array_equal(read_image(tmp_path / "000000.png"), small)


def test_an_interrupt_keeps_what_was_saved(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    source = Listed([texture(0), texture(1)])
    with pytest.raises(KeyboardInterrupt):
        capture(source, 2, tmp_path, on_photo=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.png"]
    assert source.closed


def test_live_camera_at_its_rate(tmp_path):
    started = time.monotonic()
    summary = capture("synthetic://?fps=100&width=64&height=64", 3, tmp_path, min_interval_s=0.1)
    assert summary.saved == 3
    assert time.monotonic() - started >= 0.2


def test_wrong_settings(tmp_path):
    with pytest.raises(ConfigError, match="at least 1 image"):
        capture("synthetic://", 0, tmp_path)
    with pytest.raises(ConfigError, match="interval"):
        capture("synthetic://", 1, tmp_path, min_interval_s=float("nan"))
    with pytest.raises(SourceError, match="no file or folder"):
        capture("no/such/folder", 1, tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot use the folder"):
        capture("synthetic://", 1, tmp_path / "file")
