"""Sources: one URI opens anything, in a fixed order, and what cannot be read says so."""

from __future__ import annotations

import base64
import http.server
import io
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import ConfigError, EdgeadError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import MAX_AGE_S, REGISTRY, SILENCE_S, Delivery, open_source, parse_address
from edgead.runtime.uri import encode_credentials, redact, redact_uri, split_query
from tests.waiting import LONG_S, wait_for


def save(path, level=100, size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 20, 30)).save(path)
    return path


def read_all(uri):
    with open_source(uri) as source:
        return list(source.frames())


# Folders and images


def test_folder_is_read_by_relative_path_in_code_point_order(tmp_path):
    names = ["b/1.png", "a.png", "B.png", "a/z.JPG", "a/10.png", "a/9.png", "ä.png"]
    for level, name in enumerate(names):
        save(tmp_path / name, level * 20)
    for hidden in ("._a.png", ".cache/x.png", "notes.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no image")
    with open_source(tmp_path) as source:
        assert [path.relative_to(tmp_path).as_posix() for path in source.paths] == [
            "B.png", "a.png", "a/10.png", "a/9.png", "a/z.JPG", "b/1.png", "ä.png",
        ]  # fmt: skip
        frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(7))
    assert frames[0].image[0, 0].tolist() == [40, 20, 30]
    assert all(frame.layout == "rgb" and frame.source_id == str(tmp_path) for frame in frames)
    stamps = [frame.timestamp_ns for frame in frames]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= time.monotonic_ns()


def test_unreadable_image_is_a_bad_frame_and_the_next_one_follows(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(save(tmp_path / "d.png").read_bytes()[:40])
    kinds = [type(item) for item in read_all(f"folder://{tmp_path}")]
    assert kinds == [Frame, BadFrame, BadFrame, Frame]
    bad = read_all(str(tmp_path))[1]
    assert bad.index == 1
    assert "b.png is empty" in bad.reason


@pytest.mark.parametrize("prefix", ["", "folder://", "file://"])
def test_single_image(tmp_path, prefix):
    path = save(tmp_path / "part.png")
    (frame,) = read_all(f"{prefix}{path}")
    assert frame.image.shape == (12, 16, 3)


def test_question_mark_in_a_file_name_is_no_query(tmp_path):
    path = save(tmp_path / "why?policy=x.png")
    assert len(read_all(str(path))) == 1


def test_closed_folder_ends(tmp_path):
    for number in range(5):
        save(tmp_path / f"{number}.png")
    source = open_source(tmp_path)
    frames = source.frames()
    next(frames)
    source.close()
    assert list(frames) == []


# Delivery and mistakes


def test_policy_follows_the_kind_of_source_unless_given(tmp_path):
    save(tmp_path / "a.png")
    assert parse_address(str(tmp_path)).delivery == Delivery("every")
    assert parse_address("rtsp://camera/1").delivery == Delivery("newest", MAX_AGE_S, SILENCE_S)
    # A triggered camera may be silent between two parts, unless told otherwise.
    assert parse_address("rtsp://camera/1?policy=every").delivery == Delivery("every")
    assert parse_address("0?policy=every&silence=3").delivery == Delivery("every", None, 3.0)
    assert parse_address("0?silence=off").delivery == Delivery("newest", MAX_AGE_S)
    assert parse_address("synthetic://").delivery == Delivery("newest", MAX_AGE_S)
    assert parse_address("synthetic://?policy=every&max_age=0.5").delivery == Delivery("every", 0.5)
    assert parse_address(f"{tmp_path}?policy=newest&max_age=250ms").delivery == Delivery("newest", 0.25)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("synthetc://", ConfigError, "Did you mean 'synthetic'"),
        ("synthetic", ConfigError, "Did you mean 'synthetic://'"),
        ("synthetic://?widht=3", ConfigError, "unknown parameter 'widht'. Did you mean 'width'"),
        ("synthetic://?width=3", ConfigError, "not a whole number from 32 to 8192"),
        ("synthetic://?fps=nan", ConfigError, "not a number from"),
        ("synthetic://?fps=1&fps=2", ConfigError, "given twice"),
        ("synthetic://?policy=latest", ConfigError, "newest"),
        ("synthetic://?max_age=-1", ConfigError, "not a duration"),
        ("0?fourcc=MOTIONJPEG", ConfigError, "four-character code"),
        ("v4l2://first", ConfigError, "/dev/video0"),
        ("rtsp://camera/1?polcy=every", ConfigError, "Did you mean 'policy'"),
        ("csi://left", ConfigError, "a CSI camera is a number"),
        ("csi://0?flip=upside-down", ConfigError, "flip=upside-down is unknown"),
        ("genicam://0", SourceError, "harvesters is not installed"),
        ("watch://no/such", SourceError, "no folder no/such to watch"),
        ("synthetic://?silence=3", ConfigError, "only a camera has 'silence'"),
        ("", ConfigError, "empty"),
        ("no/such/folder/", SourceError, "no file or folder"),
        ("no/such.mp4", SourceError, "No such file"),
        ("nothing", SourceError, "no file or folder nothing"),
        ("/dev/video97", SourceError, "cannot open camera /dev/video97"),
    ],
)
def test_mistakes_are_one_clear_line(uri, error, message):
    with pytest.raises(error, match=message.replace(".", r"\.")) as caught:
        open_source(uri)
    assert "\n" not in str(caught.value)


def test_empty_folder_and_other_files_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no image in"):
        open_source(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="neither an image nor a video"):
        open_source(tmp_path / "model.bin")


@pytest.mark.parametrize("uri", ["line.mp4", "0", "rtsp://camera/1"])
def test_missing_opencv_names_the_extra(uri, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"pip install 'edgead\[camera\]'"):
        open_source(uri)


@pytest.mark.parametrize("scheme", REGISTRY)
def test_every_registered_source_has_its_class(scheme):
    entry = REGISTRY[scheme]
    factory = getattr(import_module(f"edgead.runtime.sources.{entry.module}"), entry.factory)
    assert callable(factory.frames)
    assert callable(factory.close)
    assert factory.__doc__


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.2:554/ch1", "rtsp://***@10.0.0.2:554/ch1"),
        ("rtsp://admin:se?cr#et@h@10.0.0.2/ch1", "rtsp://***@10.0.0.2/ch1"),
        ("rtsp://admin:secr/et@10.0.0.2/ch1", "rtsp://***@10.0.0.2/ch1"),
        ("rtsp:/admin:secret@host/1", "rtsp://***@host/1"),
        ("admin:secret@host/1", "***@host/1"),
        ("http://host/v?channel=1&token=secret/x==&fps=5", "http://host/v?channel=1&token=***&fps=5"),
        ("http://host/v?usr=secret&PWD=secret&api_key=secret", "http://host/v?usr=***&PWD=***&api_key=***"),
        ("rtsp://host/user=admin_password=secret_channel=1.sdp", "rtsp://host/user=***"),
        ("lost 'rtsp://a:secret@h/1' and 'http://b:secret@h/2'", "lost 'rtsp://***@h/1' and 'http://***@h/2'"),
        ("lost rtsp://a:Tops cret7@h/1 and http://b:Tops cret@h/2", "lost rtsp://***@h/1 and http://***@h/2"),
        ("rtsp://admin:a b/c d@10.0.0.2/ch1", "rtsp://***@10.0.0.2/ch1"),
        ("http://host:8080/path@2x.png", "http://host:8080/path@2x.png"),
        ("C:/images@home/a.png", "C:/images@home/a.png"),
        ("parts/good?policy=every", "parts/good?policy=every"),
    ],
)
def test_secrets_are_hidden_and_the_rest_stays(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("password", ["Tops cret7", "a#b?c d", "x/y z", "p@ss w", "quo\"te 'd", "ends with @"])
@pytest.mark.parametrize("scheme", ["rtsp://", "http://", ""])
def test_of_one_uri_everything_up_to_the_last_at_is_hidden(scheme, password):
    shown = redact_uri(f"{scheme}admin:{password}@10.0.0.5/live")
    assert shown == f"{scheme}***@10.0.0.5/live"
    if scheme:
        assert parse_address(f"{scheme}admin:{password}@10.0.0.5/live?policy=every").source_id == shown


@pytest.mark.parametrize(
    "uri",
    [
        "http://10.0.0.1:8080/path@2x.png",
        "rtsp://10.0.0.1/a@b",
        "rtsp://cam.local/a@b",
        "C:/at@home/a.png",
        "a@b.png",
        "/x/a@b.png",
    ],
)
def test_an_at_in_a_path_hides_nothing(uri):
    assert redact_uri(uri) == uri


@pytest.mark.parametrize("login", ["admin:1234/5", "ad.min:1234/5", "admin:99999/5", "admin:12345/", "admin/1234"])
@pytest.mark.parametrize("host", ["10.0.0.5/live", "cam.local/live", "cam.local", "cam", "cam/x", "cam:554", "[::1]/x"])
def test_a_password_that_looks_like_a_port_and_a_path_is_hidden(login, host):
    assert redact_uri(f"rtsp://{login}@{host}") == f"rtsp://***@{host}"


def test_credentials_are_encoded_for_libraries_that_end_an_address_at_these_characters():
    uri = "rtsp://admin:T p#7?/%20@10.0.0.5/live?channel=1"
    assert encode_credentials(uri) == "rtsp://admin:T%20p%237%3F%2F%20@10.0.0.5/live?channel=1"
    for plain in ("http://10.0.0.5:80/a@b?x=1", "rtsp://[::1]:554/x@y", "rtsp://[fe80::1]/live?x=a@b"):
        assert encode_credentials(plain) == plain
    assert encode_credentials("rtsp://me:a b@[::1]:554/x@y") == "rtsp://me:a%20b@[::1]:554/x@y"


def test_query_is_found_behind_an_unescaped_password():
    assert split_query("rtsp://a:b?c@h/1?x=1&policy=every") == ("rtsp://a:b?c@h/1", ["x=1", "policy=every"])


@pytest.mark.parametrize("uri", ["rtsp://admin:S3cr3t@127.0.0.1:1/x?token=S3cr3t", "http://u:S3cr3t@127.0.0.1:1/S"])
def test_failed_open_never_shows_a_secret(uri, capfd):
    with pytest.raises(SourceError, match=r"cannot open .*\*\*\*") as caught:
        open_source(uri)
    assert "S3cr3t" not in str(caught.value)
    assert "S3cr3t" not in repr(parse_address(uri).source_id)
    assert "S3cr3t" not in repr(parse_address(uri))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


# Synthetic


def test_synthetic_frames_depend_on_seed_and_index_only():
    first, again, other = (open_source(f"synthetic://?frames=3&fps=1000&seed={seed}") for seed in (5, 5, 6))
    frames = list(first.frames())
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].image.shape == (480, 640, 3)
    assert frames[0].image.flags.c_contiguous
    assert np.array_equal(frames[2].image, again.render(2))
    assert not np.array_equal(frames[2].image, other.render(2))
    assert not np.array_equal(frames[0].image, frames[1].image)


def test_synthetic_defects_come_at_their_rate_and_are_visible():
    source = open_source("synthetic://?defects=0.2&seed=1")
    kinds = [source.defect_at(index) for index in range(3000)]
    assert 0.17 < np.mean([kind is not None for kind in kinds]) < 0.23
    good = open_source("synthetic://?defects=0&seed=1")
    assert all(good.defect_at(index) is None for index in range(100))
    for kind in ("scratch", "spot", "chip", "stain"):
        index = kinds.index(kind)
        changed = np.abs(source.render(index).astype(int) - good.render(index)).max(axis=2) > 20
        assert 100 < changed.sum() < 15_000, kind
    index = kinds.index(None)
    assert np.array_equal(source.render(index), good.render(index))


@pytest.mark.parametrize("size", ["width=32&height=32", "width=33&height=100", "width=200&height=40"])
def test_synthetic_sizes(size):
    source = open_source(f"synthetic://?{size}&defects=1")
    for index in range(60):
        assert source.render(index).shape == (source.height, source.width, 3)


def test_synthetic_keeps_its_rate():
    started = time.monotonic()
    frames = read_all("synthetic://?frames=21&fps=50&width=64&height=64")
    assert time.monotonic() - started > 0.38
    assert len(frames) == 21


def test_synthetic_close_wakes_the_reader():
    source = open_source("synthetic://?fps=0.01&width=64&height=64")
    got = []
    reader = threading.Thread(target=lambda: got.extend(source.frames()))
    reader.start()
    wait_for(lambda: got)
    source.close()
    reader.join(LONG_S)
    assert not reader.is_alive()
    assert len(got) == 1


# Video files


def write_video(path, frames, fourcc):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 25.0, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {fourcc}")
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def levels(count):
    for number in range(count):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :, 2] = 10 + 8 * number  # red, in OpenCV's BGR
        yield frame


@pytest.mark.parametrize(("name", "fourcc"), [("a.mp4", "mp4v"), ("b.avi", "MJPG"), ("c.mkv", "mp4v")])
def test_video_gives_every_frame_in_order(tmp_path, name, fourcc):
    frames = read_all(write_video(tmp_path / name, levels(24), fourcc))
    assert [frame.index for frame in frames] == list(range(24))
    # Motion JPEG is decoded by us, as image files are.
    assert all(frame.layout == ("rgb" if fourcc == "MJPG" else "bgr") for frame in frames)
    assert all(frame.image.dtype == np.uint8 for frame in frames)
    red = [float(frame.to_rgb()[:, :, 0].mean()) for frame in frames]
    assert np.allclose(red, [10 + 8 * number for number in range(24)], atol=6)
    assert max(frame.to_rgb()[:, :, 2].mean() for frame in frames) < 12


def test_cut_off_video_is_judged_as_far_as_it_goes(tmp_path, capfd):
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "a.avi", rng.integers(0, 256, (40, 48, 64, 3), dtype=np.uint8), "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with open_source(path) as source, pytest.raises(SourceLost, match=r"ended after .* of 40 frames"):
        frames.extend(source.frames())
    # The picture in which the file breaks off may be there, and is not completed.
    broken = [frame for frame in frames if isinstance(frame, BadFrame)]
    assert broken in ([], frames[-1:])
    assert 10 < len(frames) < 30
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"this is no video\n" * 100], ids=["empty", "text"])
def test_no_video_is_refused_in_one_line(tmp_path, content, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"empty|not a readable video"):
        open_source(path)
    assert capfd.readouterr().err == ""


# A network camera: a real HTTP server with a motion-JPEG stream


def jpeg(colour, noise=0):
    stream = io.BytesIO()
    pixels = np.full((48, 64, 3), colour) + np.random.default_rng(0).normal(0, noise, (48, 64, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@contextmanager
def network_camera(pictures, credentials=None):
    """Serve a motion-JPEG stream; yields host and port, and what was asked for: (path, Authorization)."""
    requests = []
    wanted = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization")
            requests.append((self.path, given))
            if wanted is not None and given != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for picture in pictures:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def camera():
    with network_camera([jpeg((200, 40, 10))] * 30) as served:
        yield served


def test_a_picture_that_breaks_off_is_not_completed_with_the_one_before(capfd):
    pytest.importorskip("cv2")
    whole, broken = jpeg((160, 160, 160), 20), jpeg((40, 40, 40), 20)
    broken = broken[: len(broken) // 2]
    pictures = [whole, whole, broken, whole, broken] * 6
    with network_camera(pictures) as (host, _):
        source = open_source(f"http://{host}/live?policy=every")
        frames = []
        with source, pytest.raises(SourceLost):
            frames.extend(source.frames())
    # FFmpeg looks at the first pictures to find out what they are, and the last one has no end.
    kinds = [isinstance(frame, BadFrame) for frame in frames]
    assert len(frames) > 20
    assert 0.3 < np.mean(kinds) < 0.5
    assert all(frame.image.mean() > 140 for frame in frames if isinstance(frame, Frame))
    assert all("broken" in frame.reason for frame in frames if isinstance(frame, BadFrame))
    assert "truncated" in next(frame.reason for frame in frames if isinstance(frame, BadFrame))
    assert capfd.readouterr().err == ""


def test_what_is_no_jpeg_picture_costs_its_own_frame_only(capfd):
    pytest.importorskip("cv2")
    whole = jpeg((160, 160, 160), 20)
    pictures = [whole, whole, b"no picture " * 500, whole, whole[: len(whole) // 2], whole] * 5
    with network_camera(pictures) as (host, _):
        frames = []
        with open_source(f"http://{host}/live?policy=every") as source, pytest.raises(SourceLost):
            frames.extend(source.frames())
    good = [frame for frame in frames if isinstance(frame, Frame)]
    assert len(good) > 10
    assert all(frame.image.shape == (48, 64, 3) for frame in good)
    assert all(frame.image.mean() > 140 for frame in good)
    assert any("truncated" in frame.reason for frame in frames if isinstance(frame, BadFrame))
    assert capfd.readouterr().err == ""


def test_a_password_with_any_character_opens_the_camera():
    pytest.importorskip("cv2")
    with network_camera([jpeg((200, 40, 10))] * 30, "admin:Tops cr#t7?/") as (host, requests):
        with open_source(f"http://admin:Tops cr#t7?/@{host}/live?policy=every") as source:
            assert next(source.frames()).image.shape == (48, 64, 3)
        assert requests[-1] == ("/live", "Basic YWRtaW46VG9wcyBjciN0Nz8v")


def test_network_camera_delivers_and_its_loss_is_named(camera, capfd):
    pytest.importorskip("cv2")
    host, requests = camera
    source = open_source(f"http://me:S3cr3t@{host}/live?ch=2&policy=every&token=S3cr3t&max_age=2")
    assert source.source_id == f"http://***@{host}/live?ch=2&token=***"
    assert source.delivery == Delivery("every", 2.0)
    frames = []
    with source, pytest.raises(SourceLost, match="stopped after") as caught:
        frames.extend(source.frames())
    assert len(frames) >= 25
    assert "S3cr3t" not in str(caught.value)
    assert frames[0].layout == "rgb"
    assert np.allclose(frames[0].to_rgb()[20, 30], (200, 40, 10), atol=8)
    assert requests[0][0] == "/live?ch=2&token=S3cr3t"
    assert requests[0][1] is None or requests[0][1].startswith("Basic")
    assert capfd.readouterr().err == ""


def test_errors_of_sources_are_edgead_errors():
    assert issubclass(SourceLost, SourceError)
    assert issubclass(SourceError, EdgeadError)
