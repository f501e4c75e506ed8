from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache, StoredEngine, default_folder
from edgead.runtime.backends.engine_key import EngineKey, graph_digest, graph_precision, plugin_digest
from edgead.runtime.errors import BackendError
from tests.waiting import LONG_S, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks, modes and signals")

KEY = EngineKey("0" * 64, "tensorrt", "10.3.0", "8.7", "fp16")

# A builder in another process: takes the lock, says so, builds what is not there yet, which ends when a file is there,
# and counts its builds in another.
BUILDER = """
import sys, time
from pathlib import Path
from edgead.runtime.backends.engine_cache import EngineCache
from edgead.runtime.backends.engine_key import EngineKey
folder, log, go = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
key = EngineKey("0" * 64, "tensorrt", "10.3.0", "8.7", "fp16")
cache = EngineCache(folder)
with cache.building(lambda: print("waits", flush=True)):
    print("builds", flush=True)
    if cache.find(key) is None:
        with cache.scratch() as engine:
            engine.write_bytes(b"half")
            while not go.exists():
                time.sleep(0.01)
            engine.write_bytes(b"whole engine")
            with log.open("a") as stream:
                stream.write("built\\n")
            cache.store(key, engine, {})
"""


def store(cache: EngineCache, data: bytes = b"engine", key: EngineKey = KEY) -> StoredEngine:
    with cache.building(), cache.scratch() as engine:
        engine.write_bytes(data)
        return cache.store(key, engine, {"graph": "model.fp16.onnx"})


def read(cache: EngineCache) -> bytes | None:
    found = cache.find(KEY)
    return None if found is None else cache.read(found)


def start_builder(folder: Path, log: Path, go: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(go)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_is_stored_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "a" / "engines")
    assert cache.find(KEY) is None
    stored = store(cache)
    found = EngineCache(cache.folder).find(KEY)
    assert found == stored
    assert cache.read(stored) == b"engine"
    for field in ("graph", "library", "version", "compute_capability", "precision", "plugin"):
        from dataclasses import replace

        assert cache.find(replace(KEY, **{field: "other"})) is None
    assert cache.others(KEY.graph) == [KEY]
    assert cache.others("1" * 64) == []


def test_files_are_private_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = EngineCache(tmp_path / "engines")
        store(cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    files = [path for path in cache.folder.iterdir() if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_second_build_takes_the_place_of_the_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    store(cache, b"old")
    stored = store(cache, b"new one")
    assert cache.read(stored) == b"new one"
    assert [path.name for path in tmp_path.glob("*.engine")] == [stored.path.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda engine: engine.path.write_bytes(b"engin"), "its record says 6"),
        (lambda engine: engine.path.write_bytes(b"enginE"), "not what was built"),
        (lambda engine: engine.path.unlink(), "No such file"),
        (lambda engine: engine.path.chmod(0o666), "other users may write it"),
        (lambda engine: engine.path.with_name(f"{KEY.digest}.json").write_text("{"), "damaged"),
        (lambda engine: engine.path.with_name(f"{KEY.digest}.json").write_text('{"format_version": 1}'), "damaged"),
        (lambda engine: engine.path.with_name(f"{KEY.digest}.json").write_text("[]"), "damaged"),
        (lambda engine: engine.path.with_name(f"{KEY.digest}.json").chmod(0o622), "other users may write it"),
    ],
)
def test_what_was_altered_is_refused_in_one_line(tmp_path: Path, damage: object, message: str) -> None:
    cache = EngineCache(tmp_path)
    damage(store(cache))  # type: ignore[operator]
    with pytest.raises(BackendError, match=message) as caught:
        read(cache)
    assert "\n" not in str(caught.value)
    assert "edgead build" in str(caught.value)
    assert cache.read(store(cache, b"again")) == b"again"


def test_the_record_of_another_engine_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    stored = store(cache)
    other = EngineKey(KEY.graph, KEY.library, "10.7.0", KEY.compute_capability, KEY.precision)
    record = tmp_path / f"{other.digest}.json"
    record.write_bytes((tmp_path / f"{KEY.digest}.json").read_bytes())
    record.chmod(0o600)
    stored.path.rename(tmp_path / f"{other.digest}.{stored.sha256[:16]}.engine")
    with pytest.raises(BackendError, match="of another engine"):
        cache.find(other)


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(BackendError, match="chmod go-w"):
        store(EngineCache(tmp_path))


def test_two_builders_at_once_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    go = tmp_path / "go"
    first = start_builder(tmp_path / "engines", log, go)
    assert first.stdout is not None
    assert first.stdout.readline() == "builds\n"
    second = start_builder(tmp_path / "engines", log, go)
    assert second.stdout is not None
    assert second.stdout.readline() == "waits\n"
    go.touch()
    said, _ = second.communicate(timeout=LONG_S)
    assert first.wait(LONG_S) == second.returncode == 0
    first.stdout.close()
    assert said == "builds\n"
    assert log.read_text() == "built\n"
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 1


def test_a_builder_killed_in_mid_build_leaves_the_old_engine(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    other = EngineKey("1" * 64, "tensorrt", "10.3.0", "8.7", "fp16")
    kept = store(cache, b"kept", other)
    builder = start_builder(cache.folder, tmp_path / "log", tmp_path / "never")
    assert builder.stdout is not None
    assert builder.stdout.readline() == "builds\n"
    wait_for(lambda: [path for path in cache.folder.glob(".*.tmp") if path.stat().st_size])
    builder.send_signal(signal.SIGKILL)
    builder.wait(LONG_S)
    builder.stdout.close()
    assert list(cache.folder.glob(".*.tmp"))
    assert cache.find(KEY) is None
    assert cache.read(kept) == b"kept"
    # Neither the lock nor the half file stands in the way of the next one.
    assert cache.read(store(cache, b"next")) == b"next"
    assert list(cache.folder.glob(".*.tmp")) == []


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit_bytes=250)
    keys = [EngineKey(str(number) * 64, "tensorrt", "10.3.0", "8.7", "fp16") for number in range(3)]
    for age, key in zip((300, 200), keys, strict=False):
        store(cache, bytes(100), key)
        os.utime(tmp_path / f"{key.digest}.json", (time.time() - age,) * 2)
    assert cache.find(keys[0]) is not None  # and now it was used last
    store(cache, bytes(100), keys[2])
    assert [cache.find(key) is not None for key in keys] == [True, False, True]
    assert len(list(tmp_path.glob("*.engine"))) == 2
    # The newest stays, even where it alone is above the limit.
    store(cache, bytes(400), keys[1])
    assert [cache.find(key) is not None for key in keys] == [False, True, False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_gives_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BackendError, match=r"Permission denied.*--cache DIR"):
        store(EngineCache(tmp_path))


def test_what_is_no_folder_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/edgead")):
        with pytest.raises(BackendError, match=r"cannot write the engine cache .*--cache DIR") as caught:
            store(EngineCache(folder))
        assert "\n" not in str(caught.value)


def test_a_full_disk_gives_one_line_and_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    program = (
        "import sys, resource\nfrom pathlib import Path\n"
        "from edgead.runtime.backends.engine_cache import EngineCache\n"
        "from edgead.runtime.backends.engine_key import EngineKey\n"
        "from edgead.runtime.errors import BackendError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "cache = EngineCache(Path(sys.argv[1]))\nkey = EngineKey('0' * 64, 'tensorrt', '10.3.0', '8.7', 'fp16')\n"
        "with cache.building(), cache.scratch() as engine:\n    engine.write_bytes(b'new engine')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # the record does not fit any more\n"
        "    try:\n        cache.store(key, engine, {'graph': 'x' * 500})\n"
        "    except BackendError as error:\n        print(error)\n"
    )
    cache = EngineCache(tmp_path)
    kept = store(cache, b"kept")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "cannot write the engine cache" in done.stdout
    assert cache.find(KEY) == kept
    assert cache.read(kept) == b"kept"


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "edgead" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert default_folder() == Path.home() / ".cache" / "edgead" / "engines"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert EngineCache().folder == tmp_path / "mine"


def test_the_digest_covers_graph_and_its_weights_and_nothing_else(tmp_path: Path) -> None:
    graph, weights = tmp_path / "model.fp32.onnx", tmp_path / "weights"
    weights.mkdir()
    graph.write_bytes(b"... weights/a.bin ...")
    (weights / "a.bin").write_bytes(b"1")
    first = graph_digest(graph)
    (weights / "b.bin").write_bytes(b"of another graph")
    assert graph_digest(graph) == first
    (weights / "a.bin").write_bytes(b"2")
    second = graph_digest(graph)
    graph.write_bytes(b"... weights/a.bin ....")
    assert len({first, second, graph_digest(graph)}) == 3


def test_precision_and_plugin(tmp_path: Path) -> None:
    names = ("model.fp32.onnx", "head-a.b.int8-trt.onnx", "router.fp16.onnx", "probe.onnx")
    assert [graph_precision(Path(name)) for name in names] == ["fp32", "int8-trt", "fp16", "fp32"]
    assert plugin_digest(None) == "none"
    (tmp_path / "p.so").write_bytes(b"p")
    assert len(plugin_digest(tmp_path / "p.so")) == 64
    with pytest.raises(BackendError, match="plugin library"):
        plugin_digest(tmp_path / "missing.so")


def test_the_record_says_what_was_built(tmp_path: Path) -> None:
    stored = store(EngineCache(tmp_path))
    record = json.loads((tmp_path / f"{KEY.digest}.json").read_text())
    assert record["key"]["version"] == "10.3.0"
    assert record["sha256"] == stored.sha256
    assert (record["size"], record["info"]) == (6, {"graph": "model.fp16.onnx"})
