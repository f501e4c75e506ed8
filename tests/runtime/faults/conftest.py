"""A real RTSP camera, which can be stopped, resumed, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.waiting import LONG_S

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"  # the one that Debian's packages are for
LONGEST_S = 600


def lacks_server() -> str | None:
    """Return why there is no RTSP server here, None where there is."""
    probe = (
        "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0'); "
        "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
        "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'appsrc', 'videoconvert')))"
    )
    try:
        found = subprocess.run([PYTHON, "-c", probe], capture_output=True, timeout=LONG_S).returncode == 0
    except OSError:
        found = False
    packages = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    return None if found else f"no RTSP server; apt-get install {packages}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspCamera:
    """The server as a process; it ends by itself after ``seconds``, whatever becomes of the test."""

    def __init__(self, port: int, size: str = "320x240", fps: int = 30, seconds: int = LONGEST_S) -> None:
        self.port, self.size, self.fps, self.seconds = port, size, fps, seconds
        self.url = f"rtsp://127.0.0.1:{port}/camera"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, size: str | None = None) -> None:
        self.size = size or self.size
        command = [PYTHON, str(SERVER), str(self.port), str(self.seconds), self.size, str(self.fps)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        """Freeze it: connections stay, nothing comes."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="session")
def rtsp_server():
    reason = lacks_server()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def rtsp(rtsp_server):  # noqa: ARG001
    """A factory of cameras: ``rtsp(size="320x240", fps=30)``."""
    pytest.importorskip("cv2")
    cameras = []

    def make(**options):
        cameras.append(RtspCamera(free_port(), **options))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.kill()
