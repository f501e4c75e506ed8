"""The kit for a day with a GPU: all of it once without one, what it carries, and that nothing stops what comes next."""

from __future__ import annotations

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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu_day import clock, commands, counters, packing, stages, training
from benchmarks.gpu_day.clock import Clock, TorchDevice
from benchmarks.gpu_day.half import changed
from benchmarks.gpu_day.job import _EnoughError, _Rates
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.packing import Member
from benchmarks.gpu_day.results import Results, count_items
from benchmarks.gpu_day.speed import page_row, rivals
from benchmarks.gpu_day.stages import STAGES, Stage, run_stages
from benchmarks.gpu_day.torch_graph import TorchGraph
from edgead.detectors import create_detector
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import decode_image, read_image
from edgead.runtime.imaging.preprocess import resize
from tests.cuda import toolchain
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "tests" / "runtime" / "earlier" / "precisions.edgead"


def make_category(folder: Path, size: int = 64) -> Path:
    """Write noise in MVTec layout, of which a few images have a white square and a mask of it."""
    random = np.random.default_rng(0)
    for split, count in (("train/good", 8), ("test/good", 3), ("test/hole", 3)):
        for number in range(count):
            image = random.integers(60, 120, (size, size, 3), np.uint8)
            mask = np.zeros((size, size), np.uint8)
            if split == "test/hole":
                mask[8:24, 8 + number : 24 + number] = 255
                image[mask > 0] = 255
                (folder / "ground_truth" / "hole").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / "ground_truth" / "hole" / f"{number:03d}_mask.png")
            (folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / split / f"{number:03d}.png")
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_whole_day_without_a_gpu(tmp_path: Path) -> None:
    toolchain.host_library()  # skips where the simulator cannot be built
    kit, out, home = tmp_path / "kit", tmp_path / "out", tmp_path / "home"
    make_category(kit / "images" / "noise")
    (kit / "bundles").mkdir()
    shutil.copy(BUNDLE, kit / "bundles" / "noise-small.edgead")
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--dry-run", "--kit", str(kit), "--out", str(out)]
    done = subprocess.run(
        [*command, "--copy-to", str(home), "--limit", "900"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for stage in STAGES:
        assert set(count_items(home / f"{stage.name}.json")) == {"done"}, stage.name
        found = json.loads((out / f"{stage.name}.json").read_text())
        assert found["dry_run"] is True
        assert found["devices"] == ["a GPU that is none"]  # no figure of it can be taken for one of a GPU
    half = json.loads((out / "half.json").read_text())["items"]["noise-small"]["value"]
    assert half["half"]["beside fp32"]["max_score"] > 0
    assert half["half"]["beside simulated"]["max_score"] <= half["simulated"]["beside fp32"]["max_score"]
    search = json.loads((out / "speed.json").read_text())["items"]["search 20 x 2, 70 x 12"]["value"]
    assert {"fp16", "int8", "fp32", "torch cdist", "torch product", "torch half product", "two-step"} == set(search)
    assert search["fp32"]["error"] < 1e-6
    trained = json.loads((out / "training.json").read_text())["items"]["noise-sgsf"]["value"]
    assert trained["image_auroc"]["value"] >= 0.0
    assert trained["full_profile_steps"] == {"steps": 400}
    # Nothing is done twice: a second call only reads.
    before = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*")}
    again = subprocess.run(
        [*command, "--stage", "training", "--stage", "half", "--limit", "900"],
        cwd=ROOT,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*")} == before
    assert commands.bring(out, tmp_path / "home2", 0) >= 1
    subprocess.run(f"cat {tmp_path}/home2/models.tar.??? | tar tf - > {tmp_path}/list", shell=True, check=True)
    assert "models/noise-sgsf/weights.safetensors" in (tmp_path / "list").read_text()


def test_an_item_that_fails_ends_nothing_and_one_that_hung_is_not_tried_again(tmp_path: Path) -> None:
    results = Results(tmp_path, "x", {}, tmp_path / "copy")
    assert results.do("wrong", lambda: 1 / 0) is None
    assert results.do("right", lambda: [1, 2]) == [1, 2]
    results.set("hung", {"status": "running"})  # as a process that was killed leaves it
    again = Results(tmp_path, "x", {}, tmp_path / "copy")
    assert again.do("right", lambda: pytest.fail("done twice")) == [1, 2]
    assert again.do("hung", lambda: pytest.fail("hangs again")) is None
    assert again.do("wrong", lambda: 3) == 3
    assert count_items(tmp_path / "copy" / "x.json") == {"done": 2, "interrupted": 1}
    assert Results.value_in(tmp_path / "x.json", "right") == [1, 2]
    assert Results.value_in(tmp_path / "none.json", "right") is None


def test_a_stage_that_hangs_or_crashes_is_ended_and_the_next_has_its_turn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "name = sys.argv[-1]\n"
        "if name == 'speed': os.abort()\n"
        "if name == 'right': time.sleep(1000)\n"
        "open(sys.argv[1] + '/ran-' + name, 'w').close()\n"
    )
    chosen = [Stage("right", 2), Stage("speed", 60, alone=True), Stage("half", 60)]
    assert not run_stages(chosen, Options(tmp_path), [sys.executable, str(program), str(tmp_path)])
    assert (tmp_path / "ran-half").is_file()
    said = capfd.readouterr().out
    assert re.search(r"right: out of time after \d+ s; no item", said)
    assert "speed: failed with -6" in said


def test_stages_fit_into_a_command() -> None:
    assert all(stage.limit_s <= 480 for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert [stage.name for stage in STAGES if stage.alone] == ["speed", "counters", "engines"]


def test_trainings_stand_still_while_something_is_timed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, cwd=tmp_path
    )
    try:
        (tmp_path / "training.pid").write_text(str(child.pid))

        def state() -> str:
            return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]

        assert training.running(tmp_path) == child.pid
        training.stand_still(tmp_path)
        wait_for(lambda: state() == "T")
        training.let_go_on(tmp_path)
        wait_for(lambda: state() != "T")
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert training.running(tmp_path) is None
    training.let_go_on(tmp_path)  # nobody is there, and nobody is hurt


def test_the_trainings_are_those_of_the_full_profiles(tmp_path: Path) -> None:
    for name in ("screw", "tile", "other"):
        (tmp_path / "images" / name / "train").mkdir(parents=True)
    found = training.jobs(Options(tmp_path, kit=tmp_path))
    assert [job.category for job in found[::5]] == ["screw", "tile", "other"]
    for job in found:
        settings = create_detector(job.detector, job.settings).settings
        assert {name: getattr(settings, name) for name in job.steps} == job.steps, job.name
        assert settings.profile == "full"


def test_the_seconds_of_a_step_are_those_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.gpu_day.job.time", SimpleNamespace(perf_counter=lambda: now[0]))
    rates = _Rates(2)
    rates("reading", 1, 3)  # no stage of a training
    for stage, seconds in (("first", 0.5), ("second", 2.0)):
        for step in range(1, 9):
            # One step in which the process stood still counts as one step only.
            now[0] += 500.0 if step == 5 else seconds
            if stage == "second" and step == 8:
                with pytest.raises(_EnoughError):
                    rates(f"{stage} | loss", step, 8)
            else:
                rates(f"{stage} | loss", step, 8)
    assert rates.seconds() == [0.5, 2.0]


def test_pieces_are_within_the_limit_and_whole_again_at_the_end(tmp_path: Path) -> None:
    random, members = np.random.default_rng(0), []
    limit = 3 << 20
    for name, size in (("tree.tar.gz", 1000), ("bundles/large.edgead", 7 << 20), ("bundles/b.json", 0), ("x/c", 100)):
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(random.bytes(size))
        members.append(Member(name, path))
    out, kit = tmp_path / "out", tmp_path / "kit"
    manifest = packing.write_pieces(members, out, limit)
    assert manifest["pieces"] == 3
    for piece in (1, 2, 3):
        assert sum(path.stat().st_size for path in (out / str(piece)).iterdir()) <= limit
    (kit / "parts").mkdir(parents=True)
    missing = {}
    for piece in (1, 3, 2):  # in any order
        for path in (out / str(piece)).iterdir():
            shutil.copy(path, kit / "parts")
        missing[piece] = packing.unpack(kit)
    assert missing[1] == ["bundles/large.edgead", "bundles/b.json", "x/c"]
    assert missing[2] == []
    for member in members:
        assert (kit / member.name).read_bytes() == member.path.read_bytes()
    (kit / "bundles" / "large.edgead").unlink()
    part = next(path for path in (kit / "parts").iterdir() if path.stat().st_size > 1 << 20)
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match="did not arrive as it was packed"):
        packing.unpack(kit)
    assert not (kit / "bundles" / "large.edgead").exists()


def test_a_kit_names_no_file_outside_itself(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    entry = {"name": "../evil", "sha256": "0", "parts": []}
    (tmp_path / "parts" / "manifest.json").write_text(json.dumps({"members": [entry]}))
    with pytest.raises(ConfigError, match="holds no file called"):
        packing.unpack(tmp_path)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs what git lists")
def test_a_packed_category_is_what_the_network_sees_and_the_first_command_unpacks_it(tmp_path: Path) -> None:
    source = make_category(tmp_path / "source" / "noise", 100)
    out = tmp_path / "kit"
    manifest = packing.pack([source], out, detectors=(), size=64, wheels=False)
    planned = commands.sequence(manifest, str(out))
    first = planned[0].text.replace(commands.KIT, str(tmp_path / "day"))
    first = re.sub(r"--stage.*", "--help > $OUT/help.txt", first)
    done = subprocess.run(
        ["bash", "-c", first.replace("python3", sys.executable)],
        env={**os.environ, "OUT": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "not here yet: nothing" in done.stdout
    assert "--copy-to" in (tmp_path / "home" / "help.txt").read_text()
    assert (tmp_path / "day" / "tree" / "edgead" / "runtime" / "__init__.py").is_file()  # through the symlink
    images = tmp_path / "day" / "images" / "noise"
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert len(names) == 8 + 3 + 3 + 3
    packed = read_image(images / "test" / "hole" / "0001.png")
    original = read_image(source / "test" / "hole" / "001.png")
    np.testing.assert_array_equal(packed, resize(original, 64, 64))
    # A changed image is not taken from an earlier pack.
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(source / "test" / "hole" / "001.png")
    packing.pack([source], out, detectors=(), size=64, wheels=False)
    newest = max(out.glob("work/noise-64-*/noise/test/hole/0001.png"), key=lambda path: path.stat().st_mtime_ns)
    assert not read_image(newest).any()
    mask = np.asarray(Image.open(images / "ground_truth" / "hole" / "0001_mask.png"))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {0, 255}


def test_the_commands_of_the_day_keep_to_its_limits() -> None:
    def entry(name: str, *pieces: int) -> dict[str, Any]:
        parts = [{"piece": piece, "file": f"f{number}", "bytes": 1} for number, piece in enumerate(pieces)]
        return {"name": name, "sha256": "", "parts": parts}

    members = [entry("tree.tar.gz", 1), entry("wheels/efficientnet.whl", 1), entry("images/a.tar", 1, 2)]
    members += [entry("bundles/a.edgead", 4), entry("wheels/libs.whl", 4, 5, 6)]
    planned = commands.sequence({"pieces": 6, "members": members}, ".day")
    assert [one.carry for one in planned] == [f".day/{number}" for number in (1, 2, 3, 4, 5, 6)] + [None, None]
    assert [one.about.split(";")[0] for one in planned] == [
        "right, speed", "sanitize", "only carries", "counters, half", "only carries", "engines", "training",
        "brings models and logs home",
    ]  # fmt: skip
    for one in planned:
        assert len(one.text) < commands.MOST_CHARACTERS
        assert one.timeout_s <= commands.MOST_SECONDS
        subprocess.run(["bash", "-n", "-c", one.text], check=True)
    limits = {stage.name: stage.limit_s for stage in STAGES}
    for one in planned[:-1]:
        asked = re.findall(r"--stage (\w+)", one.text)
        assert sum(limits[name] for name in asked) < one.timeout_s
    shown = commands.show(planned)
    assert shown.count("timeout_s") == len(planned)
    assert commands.MOST_PARTS + 2 <= 8
    assert commands.MOST_PARTS * commands.PART_BYTES < 64 << 20


def test_counters_are_read_by_name_from_the_raw_page() -> None:
    text = (
        "==PROF== Connected to process 7\nlaunched search\n"
        '"ID","Process ID","Kernel Name","Block Size","gpu__time_duration.sum","x__unknown.sum",'
        '"sm__warps_active.avg.pct_of_peak_sustained_active"\n'
        '"","","","","ns","","%"\n'
        '"0","7","void knn_scan_mma<__half>(int, int)","(256, 1, 1)","21,504","3","24.9"\n'
    )
    assert counters.read_counters(text) == {
        "Kernel Name": "void knn_scan_mma<__half>(int, int)",
        "Block Size": "(256, 1, 1)",
        "gpu__time_duration.sum (ns)": "21,504",
        "sm__warps_active.avg.pct_of_peak_sustained_active (%)": "24.9",
    }
    with pytest.raises(ConfigError, match="ncu gave no table: ==ERROR== no right"):
        counters.read_counters("==ERROR== no right")


def test_rivals_answer_the_same_question() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 16)).astype(np.float32)
    queries = (rows[:9] + 0.5 * random.standard_normal((9, 16))).astype(np.float32)
    expected = np.sqrt(np.square(queries[:, None].astype(np.float64) - rows).sum(2).min(1))
    for name, rival in rivals(torch.from_numpy(queries), torch.from_numpy(rows)).items():
        tolerance = 0.02 if "half" in name else 1e-5
        np.testing.assert_allclose(rival().numpy(), expected, rtol=tolerance, err_msg=name)


def test_a_row_for_the_page_is_made_of_what_was_measured(tmp_path: Path) -> None:
    results = Results(tmp_path, "speed", {})
    one = {"warm_ms": 0.02, "tflops": 100.0, "gb_s": 50.0, "floor_mma_ms": 0.01, "error": 1e-7}
    ceilings = {"fp32": 60.0, "fp16": 600.0, "int8": 1200.0, "bandwidth": 4000.0}
    assert page_row(results, ceilings, {}, "H200").startswith("no row")
    results.set("search 784 x 1, 10000 x 128", {"status": "done", "value": {"fp16": one}})
    line = page_row(results, ceilings, {}, "H200")
    assert line.startswith("| H200 |")
    assert "0.020 (50%)" in line
    heading = next(line for line in (ROOT / "docs" / "kernels.md").read_text().splitlines() if "TOP/s |" in line)
    assert heading.count("|") == line.count("|")


def test_flips_and_borderline_changes() -> None:
    wide = np.array([1.0, 2.0, 3.0, 4.0] * 50)
    half = wide.copy()
    half[0] = 2.6  # far, and another decision
    assert changed(wide, 2.5, half, 2.5) == {"flips": 1, "borderline": 0, "epsilon": 0.0}
    assert changed(wide, 2.5, wide, 3.5)["flips"] == 50


def test_torch_executes_a_graph_as_the_model_did() -> None:
    with Bundle.open(BUNDLE) as bundle:
        images = np.stack([bundle.view().prepare(decode_image(data, name)) for name, data in bundle.references()])
        with bundle.model_files("fp32", native_code=False) as file:
            scores, maps = TorchGraph(file, "cpu").run(images)
        expected = bundle.expected()
    np.testing.assert_allclose(scores, expected["score"], rtol=1e-5)
    np.testing.assert_allclose(maps, expected["map"], rtol=1e-4, atol=1e-5)


class _Event:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        self.at = _Event.now

    def synchronize(self) -> None:
        assert self.at >= 0

    def elapsed_time(self, end: _Event) -> float:
        return end.at - self.at


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch.cuda as far as the clock uses it: a recording runs the work once, a replay takes a millisecond."""
    made = torch.empty
    monkeypatch.setattr(torch, "empty", lambda _count, dtype, **_: made(1, dtype=dtype))

    class Graph:
        def replay(self) -> None:
            _Event.now += 1.0

    @contextmanager
    def context(*_: Any, **__: Any) -> Iterator[None]:
        yield

    for name, value in (("CUDAGraph", Graph), ("graph", context), ("stream", context), ("Event", _Event)):
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return SimpleNamespace(synchronize=lambda: None)


def test_a_work_is_timed_as_one_recording(fake_cuda: Any) -> None:
    calls = []
    found = Clock(fake_cuda, 5).measure(lambda: calls.append(1))
    assert (found["warm_ms"], found["cold_ms"], found["recorded"]) == (1.0, 1.0, True)
    assert len(calls) == clock._WARM_UP + 1


def test_a_work_that_cannot_be_recorded_is_timed_as_it_is(fake_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)

    def work() -> None:
        _Event.now += 7.0

    found = Clock(fake_cuda, 5).measure(work)
    assert (found["warm_ms"], found["recorded"]) == (7.0, False)
    assert found["why_not"] == "operation not permitted when stream is capturing"


def test_torch_gives_the_kernels_their_memory() -> None:
    launched: list[Any] = []
    gpu = SimpleNamespace(multiprocessors=3, launch=lambda *arguments: launched.append(arguments))
    device = TorchDevice(gpu, "cpu")  # type: ignore[arg-type]
    for dtype in (np.float32, np.float16, np.int8, np.int32, np.int64, np.uint64, np.uint8):
        assert device.empty((3, 4), dtype).element_size() == np.dtype(dtype).itemsize
    device.launch("knn_unpack", (1, 1, 1), 256, 0, 1)
    assert launched == [("knn_unpack", (1, 1, 1), 256, 0, 1)]
    assert device.upload(np.ones((2, 2), np.float16)).dtype == torch.float16
    assert stages.this_program()[1:] == ["-m", "benchmarks.gpu_day"]
