"""``--ray`` on a real Ray: the digits of a local run, lost workers and nodes, and what must not be done in silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgead.comparing.elsewhere import Errand, measure_there
from edgead.comparing.measure import Options
from edgead.comparing.plan import make_jobs, open_subjects, parse_variants
from edgead.dispatch.node import SAME_PATH, SharedFolder, difference, versions
from edgead.dispatch.workers import Needs, parse_needs
from edgead.runtime.errors import ConfigError, DataError
from tests.conftest import ROOT
from tests.edgead.ray_errands import family
from tests.edgead.ray_nodes import Nodes, require_namespaces
from tests.waiting import LONG_S, wait_for

PADIM = ("--detectors", "padim", "--set", "dimensions=20", "--size", "64")


def errands(check, folder):
    pytest.importorskip("ray", reason="needs ray: pip install 'edgead[ray]'")
    command = [sys.executable, "-m", "tests.edgead.ray_errands", check, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def outcome(process, seconds=LONG_S):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    return outcome(errands("look", tmp_path_factory.mktemp("look")))


# A real Ray on this machine.


def test_a_ray_that_is_started_listens_on_loopback_only(looked):
    assert len(looked["listeners"]) > 3  # its head, its node, its workers
    assert set(looked["listeners"]) <= {"127.0.0.1", "::1"}
    assert len(looked["surroundings"]["RAY_AUTH_TOKEN"]) == 64


def test_a_worker_computes_with_the_threads_it_was_given_and_sees_no_gpu(looked):
    seen = looked["surroundings"]
    assert (seen["threads"], seen["OMP_NUM_THREADS"], seen["CUDA_VISIBLE_DEVICES"]) == (1, "1", "")


def test_what_a_lost_worker_had_is_done_again_three_times_at_most(looked):
    assert looked["tries"] == {"0": 1, "1": 2, "2": 3, "3": 1}
    assert [looked["dying"][n] for n in "013"] == [[f"answer {n}", None] for n in "013"]
    value, lost = looked["dying"]["2"]
    assert value is None
    assert lost.startswith("the worker was lost")
    assert lost.endswith("3 times")
    assert sorted(line.partition(":")[0] for line in looked["said"]) == ["errand 1", "errand 2", "errand 2"]


def test_a_defect_in_a_task_ends_the_work(looked):
    assert "a defect in errand 0" in looked["failure"]


@pytest.mark.slow
def test_of_ten_thousand_tasks_few_are_in_flight(tmp_path):
    seen = outcome(errands("many", tmp_path), 600)
    assert (seen["given"], seen["answered"]) == (10_000, 10_000)
    assert seen["in_flight"] <= 2 * os.cpu_count() + 1  # those that run, and as many that wait
    assert seen["grown"] < 150e6  # of 500 MB of answers


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_folder(tmp_path):
    process = errands("sleep", tmp_path)
    wait_for((tmp_path / "asleep").exists)
    members = family(process.pid) - {process.pid}
    temporary = set(Path("/tmp").glob("edgead-ray-*"))
    assert members
    assert temporary
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in members))
    assert not temporary & set(Path("/tmp").glob("edgead-ray-*"))


# The same rows as without.


def digits(folder):
    """What the rows of a comparison say, but for times and memory."""
    rows = {}
    for path in sorted((folder / "rows").iterdir()):
        row = json.loads(path.read_text())
        del row["measured_at"], row["outcome"]["fit_seconds"], row["outcome"]["fit_peak_rss_bytes"]
        rows[path.name] = row
    return rows


@pytest.mark.slow
def test_rows_equal_a_local_run_to_the_bit_even_where_a_worker_is_killed(plate, parts, tmp_path):
    pytest.importorskip("ray", reason="needs ray: pip install 'edgead[ray]'")
    arguments = [sys.executable, "-m", "edgead", "compare", str(plate), str(parts), "--size", "64", "--seeds", "1"]
    arguments += ["--detectors", "padim,patchcore,sgsf,dfc", "--set", "padim:dimensions=20", "--no-latency"]
    arguments += ["--set", "patchcore:bank_size=64", "--set", "sgsf:steps=4", "--set", "dfc:head=padim"]
    arguments += ["--set", "dfc:head.dimensions=20", "--set", "dfc:categories=2"]
    here, there = tmp_path / "here", tmp_path / "there"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*arguments, "-o", str(here)], env=one_thread, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    on_ray = [*arguments, "--ray", "local", "--ray-task", "cpus=1", "-o", str(there)]
    process = subprocess.Popen(on_ray, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: working(process))
    os.kill(working(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert err.count("the worker was lost") == 1, err
    assert digits(there) == digits(here)
    order = [[(row["category"], row["label"]) for row in table(folder)["rows"]] for folder in (here, there)]
    assert order[0] == order[1]

    before = {path: path.stat().st_mtime_ns for path in (there / "rows").iterdir()}
    again = subprocess.run(on_ray, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (there / "rows").iterdir()} == before


def table(folder):
    return json.loads((folder / "compare.json").read_text())


def working(process):
    """The workers of a process that do a task right now."""
    found = []
    for one in sorted(family(process.pid)):
        try:
            if Path(f"/proc/{one}/cmdline").read_bytes().startswith(b"ray::do"):
                found.append(one)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_models_of_each_category_equal_those_of_a_local_run(plate, parts, tmp_path):
    pytest.importorskip("ray", reason="needs ray: pip install 'edgead[ray]'")
    command = [sys.executable, "-m", "edgead", "fit", "--each", str(plate), str(parts), "--detector", "padim"]
    command += ["--set", "dimensions=20", "--size", "64"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    for more in (["-o", str(tmp_path / "here")], ["-o", str(tmp_path / "there"), "--ray", "local"]):
        done = subprocess.run([*command, *more], env=one_thread, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("plate", "parts"):
        for file in ("weights.safetensors", "model.json"):
            here, there = (tmp_path / side / f"{name}.model" / file for side in ("here", "there"))
            assert here.read_bytes() == there.read_bytes()
    assert not list((tmp_path / "there").glob(".edgead-*"))


# Several nodes, in network namespaces.


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    pytest.importorskip("ray", reason="needs ray: pip install 'edgead[ray]'")
    require_namespaces()
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_the_rows_of_a_node_that_is_killed_are_measured_on_another(nodes, plate, parts, tmp_path):
    first, second = nodes.add(1), nodes.add(2)
    arguments = ["compare", plate, parts, *PADIM, "--seeds", "2", "-o", tmp_path / "out"]
    process = nodes.drive([*arguments, "--ray", nodes.address, "--ray-task", "cpus=1"])
    wait_for(lambda: any(line.startswith("ray::do") for line in first.commands()) and (tmp_path / "out").exists())
    wait_for((tmp_path / "out" / "rows").exists)  # the first task of a worker was to say its versions
    wait_for(lambda: process.poll() is not None or any(line.startswith("ray::do") for line in first.commands()))
    first.kill()
    out, err = process.communicate(timeout=600)
    second.kill()
    assert process.returncode == 0, err
    assert "the worker was lost" in err
    assert f"the same path, such as on a shared folder: {plate.parent}, {parts.parent}" in err
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [row["error"] for row in rows] == [None] * 4
    assert out


@pytest.mark.slow
def test_a_row_whose_images_are_not_on_the_node_fails_alone(nodes, plate, parts, tmp_path):
    node = nodes.add(3, hidden=plate)
    arguments = ["compare", plate, parts, *PADIM, "--seeds", "1", "-o", tmp_path / "out"]
    process = nodes.drive([*arguments, "--ray", nodes.address, "--ray-task", "cpus=1"])
    _, err = process.communicate(timeout=600)
    node.kill()
    assert process.returncode == 3, err
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    errors = {row["category"]: row["error"] for row in rows}
    assert errors["parts"] is None
    assert SAME_PATH in errors["plate"]


@pytest.mark.slow
def test_a_node_with_another_torch_is_refused_before_any_work(nodes, plate, tmp_path):
    fake = tmp_path / "fake" / "torch-0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    node = nodes.add(4, variables={"PYTHONPATH": f"{fake.parent}:{ROOT}"})
    process = nodes.drive(
        ["compare", plate, *PADIM, "-o", tmp_path / "out", "--ray", nodes.address, "--ray-task", "cpus=1"]
    )
    _, err = process.communicate(timeout=600)
    node.kill()
    assert process.returncode == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "has torch 0.1, this machine" in line
    assert "results would not be equal" in line
    assert not (tmp_path / "out" / "rows").exists()


# Without a Ray.


def test_versions_name_the_first_difference():
    here = versions()
    assert {"edgead", "torch", "numpy", "Python"} <= set(here)
    assert difference("n", here, dict(here)) is None
    assert "node n has torch 9, this machine" in difference("n", here, {**here, "torch": "9"})
    assert "node n has edgead none" in difference("n", here, {k: v for k, v in here.items() if k != "edgead"})


def job_of(path):
    variants = parse_variants("padim", ["dimensions=20"])
    (job,) = make_jobs(open_subjects([path]), variants, [0], size=(64, 64), backbone="efficientnet_lite0")
    return job


def test_a_node_refuses_other_images_than_the_row_names(parts, plate):
    job = job_of(parts)
    (subject,) = job.subjects
    gone = replace(job, subjects=(replace(subject, path=parts.parent / "gone"),))
    (row,) = measure_there(Errand(gone, Options(0, 10), None))
    assert row.error.startswith("parts is not on node")
    assert row.error.endswith(SAME_PATH)
    assert row.key == job.keys[0]
    others = replace(job, subjects=(replace(subject, path=plate),))
    (row,) = measure_there(Errand(others, Options(0, 10), None))
    assert "holds other images on node" in row.error


def test_a_node_refuses_other_weights_than_the_row_names(parts):
    job = replace(job_of(parts), keys=("0" * 64,))
    (row,) = measure_there(Errand(job, Options(0, 10), None))
    assert "the weights of efficientnet_lite0 are others" in row.error


def test_a_folder_that_is_another_one_is_noticed(tmp_path):
    with SharedFolder(tmp_path) as shared:
        shared.require()
        for file in tmp_path.iterdir():
            file.unlink()
        with pytest.raises(DataError, match="is not the same folder on node"):
            shared.require()
    assert not list(tmp_path.iterdir())


def test_needs_are_parsed():
    assert parse_needs(None) == Needs(None, 0.0, 0)
    assert parse_needs("cpus=2, gpus=.5,memory=1.5GB") == Needs(2, 0.5, 1_500_000_000)


@pytest.mark.parametrize(
    "text", ["", "cpus", "cpus=0", "cpus=1.5", "cpu=1", "cpus=1,cpus=2", "gpus=1.5", "gpus=-1", "memory=8 GiB"]
)
def test_needs_that_make_no_sense_are_one_line(text):
    with pytest.raises(ConfigError, match="--ray-task"):
        parse_needs(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ray-task", "cpus=1"], "--ray-task belongs to --ray"),
        (["--ray", "nonsense"], "--ray takes local, auto, or HOST:PORT"),
        (["--ray", "ray://127.0.0.1:10001"], "--ray takes local, auto, or HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
        (["--ray", "local", "--ray-task", "cpus=none"], "--ray-task takes whole cores"),
    ],
)
def test_a_wrong_address_is_one_line(edgead, parts, tmp_path, more, message):
    done = edgead("compare", parts, *PADIM, "-o", tmp_path / "out", *more)
    assert done.code == 2
    assert message in done.error
    assert not (tmp_path / "out" / "rows").exists()


def test_without_the_extra_the_pip_command_is_named(process, parts, tmp_path):
    done = process("compare", parts, *PADIM, "-o", tmp_path / "out", "--ray", "local", without=["ray"])
    assert done.code == 2
    assert "pip install 'edgead[ray]'" in done.error


def test_nothing_imports_ray_unless_it_is_asked_for():
    program = (
        "import sys; import edgead.cli, edgead.dispatch.cluster, edgead.comparing.elsewhere, edgead.fitting.each; "
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
