"""How native code is compiled, found again, and shared out among threads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgead.export.engines.native import build_native
from edgead.runtime.backends.engine_cache import EngineCache
from edgead.runtime.backends.native.library import Workers, find_library
from edgead.runtime.backends.native.sources import FOLDER, packaged_name
from edgead.runtime.bundle.native_description import parse_description
from edgead.runtime.errors import BackendError
from tests.runtime.native_cases import compile_probe


@pytest.mark.usefixtures("native_library")
def test_a_library_is_compiled_once_and_again_when_it_was_altered(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert find_library(cache) is None
    stored, _ = build_native(cache)
    assert build_native(cache) == (stored, True)
    # Another file under the same name: this process has the first one mapped, and would crash with it at the latest.
    altered = tmp_path / "altered"
    altered.write_bytes(stored.path.read_bytes()[:-1] + b"x")
    altered.chmod(0o600)
    altered.replace(stored.path)
    with pytest.raises(BackendError, match="not what was built"):
        find_library(cache)
    assert build_native(cache)[1] is False
    assert find_library(cache) is not None


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    watched = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")
    program = compile_probe(tmp_path / "probe", *watched)
    if program is None:
        pytest.skip("no gcc: apt-get install gcc")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_packaged_library_is_named_after_its_sources(tmp_path: Path) -> None:
    def name() -> str:
        program = "import sys, sources; print(sources.packaged_name(sys.argv[1]))"
        command = [sys.executable, "-S", "-c", program, "win32"]
        # Without site-packages: wheels are made where not even numpy is installed.
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    folder = tmp_path / "native"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = name()
    assert before == packaged_name("win32")
    header = folder / "knn.h"
    header.write_bytes(header.read_bytes().replace(b"\n", b"\r\n"))
    assert name() == before
    header.write_bytes(header.read_bytes() + b"/* */")
    assert name() != before


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_item_is_worked_on_once(threads: int, count: int) -> None:
    worked: list[int] = []
    workers = Workers(threads, "test")
    workers.share(count, lambda start, end: worked.extend(range(start, end)))
    workers.close()
    assert sorted(worked) == list(range(count))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_thread_raises_reaches_the_caller(threads: int) -> None:
    def fail(start: int, end: int) -> None:
        if end == 4:
            raise BackendError(f"{start} to {end}")

    workers = Workers(threads, "test")
    with pytest.raises(BackendError, match="to 4"):
        workers.share(4, fail)
    workers.close()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"kind": "sorting", "constants": {}}',
        '{"kind": "search", "constants": {}, "other": 1}',
        '{"kind": "search", "constants": {"keys": {"file": "../keys.bin", "dtype": "<f4", "shape": [2, 3]}}}',
        '{"kind": "search", "constants": {"keys": {"file": "weights/%s.bin", "dtype": "<f4", "shape": [-2, 3]}}}'
        % ("0" * 64),
    ],
)
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="export the bundle again"):
        parse_description(text.encode(), "native.model.fp32.json")
