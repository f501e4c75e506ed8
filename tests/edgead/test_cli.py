"""What holds for every command: help, errors as one line, exit codes, missing packages, secrets."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for

HEAVY = ["torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib", "safetensors"]
VERBS = [
    *("fit", "audit", "recommend", "eval", "export", "import-anomalib", "compare", "report"),
    *("check", "bench", "doctor", "build", "build-plugin", "tune", "run", "capture", "calibrate"),
]


def test_help_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys; from edgead.cli import run; code = run(['--help']); "
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'cv2', 'pydantic', 'PIL'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, seconds  # of processor time, because other tests may run beside this one
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_json_verbose_and_an_example(edgead, verb):
    outcome = edgead(verb, "--help")
    assert outcome.code == 0
    for expected in ("--json", "--verbose", f"Example: edgead {verb}"):
        assert expected in outcome.out


def test_commands_of_later_versions_are_unknown(edgead):
    outcome = edgead("label")
    assert outcome.code == 2
    assert "No such command 'label'" in outcome.error


def test_version_and_no_arguments(edgead):
    assert edgead("--version").out.startswith("edgead 0.")
    outcome = edgead()
    assert outcome.code == 2
    assert "Usage: edgead" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["fit", "parts"], "Missing option '--output'"),
        (["check"], "Missing argument"),
        (["bench", "a.edgead", "--frames", "0"], "'--frames'"),
        (["run", "a.edgead", "--source", "synthetic://", "--policy", "every"], "--policy"),
    ],
)
def test_wrong_usage_is_one_line(edgead, arguments, expected):
    outcome = edgead(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert expected in outcome.error
    assert "--help'" in outcome.error


def test_no_error_shows_a_secret(edgead, plate_bundle, tmp_path):
    secret = "rtsp://admin:hunter2@127.0.0.1:9/cam"
    calls = [
        ("check", plate_bundle, secret),
        ("run", plate_bundle, secret),
        ("run", plate_bundle, "--source", secret, "--verbose"),
        ("run", plate_bundle, "--source", f"{secret}?polcy=every", "--verbose"),
        ("capture", "--source", secret, "-n", "1", "-o", tmp_path / "photos"),
        ("calibrate", plate_bundle, "--source", secret, "-o", tmp_path / "new.edgead"),
        ("bench", plate_bundle, "--backend", secret),
        ("check", secret),
    ]
    for call in calls:
        outcome = edgead(*call)
        assert outcome.code == 2, call
        assert "Error: " in outcome.err
        assert "hunter2" not in outcome.out + outcome.err, call


def test_verbose_shows_the_traceback_and_the_line(edgead, tmp_path):
    plain = edgead("check", tmp_path / "no.edgead")
    assert plain.code == 2
    assert "does not exist" in plain.error
    verbose = edgead("check", tmp_path / "no.edgead", "--verbose")
    assert verbose.code == 2
    assert "Traceback" in verbose.err
    assert verbose.err.rstrip().splitlines()[-1] == plain.error


def test_a_defect_of_edgead_is_one_line_and_1(edgead, monkeypatch):
    def defect(_: object) -> None:
        raise ZeroDivisionError("half of\nnothing")

    monkeypatch.setattr("edgead.runtime.device.doctor.diagnose", defect)
    outcome = edgead("doctor")
    assert outcome.code == 1
    assert "internal error (ZeroDivisionError: half of nothing)" in outcome.error
    assert "--verbose" in outcome.error
    assert "Traceback" in edgead("doctor", "--verbose").err


def test_stdout_is_for_the_json_object_alone(edgead, monkeypatch):
    def chatty(_: object) -> list[object]:
        print("a library greets its users")
        return []

    monkeypatch.setattr("edgead.runtime.device.doctor.diagnose", chatty)
    outcome = edgead("doctor", "--json")
    assert outcome.json == {"schema": "edgead.doctor/2", "components": []}
    assert "greets" in outcome.err


def test_a_reader_that_went_away_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "edgead", "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process on Windows")
def test_ctrl_c_is_130_and_quiet(launch, tmp_path):
    folder = tmp_path / "photos"
    with launch(["capture", "--source", "synthetic://", "-n", "100000", "-o", folder]) as child:
        wait_for(lambda: list(folder.glob("*.png")))
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=300)
    assert (child.returncode, out, err) == (130, "", "")
    assert not [path for path in folder.iterdir() if path.suffix != ".png"]


@pytest.mark.parametrize("missing", ["torch", "timm", "safetensors"])
def test_training_verbs_name_the_missing_extra(process, plate, tmp_path, missing):
    outcome = process("fit", plate, "-o", tmp_path / "m", without=[missing])
    assert outcome.code == 2
    assert outcome.error == f"Error: {missing} is not installed; run: pip install 'edgead[train]'"
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("missing", ["torch", "onnx", "onnxscript"])
def test_export_names_the_missing_extra(process, plate_model, tmp_path, missing):
    outcome = process("export", plate_model, "-o", tmp_path / "a.edgead", without=[missing])
    assert outcome.code == 2
    assert outcome.error == f"Error: {missing} is not installed; run: pip install 'edgead[export]'"
    assert list(tmp_path.iterdir()) == []


def test_eval_of_a_model_directory_names_the_missing_extra(process, plate, plate_model):
    outcome = process("eval", plate_model, plate, without=["torch"])
    assert outcome.code == 2
    assert outcome.error.endswith("pip install 'edgead[train]'")


def test_no_backend_names_the_missing_extra(process, plate_bundle):
    outcome = process("check", plate_bundle, without=["onnxruntime", "openvino"])
    assert outcome.code == 2
    assert "pip install 'edgead[cpu]'" in outcome.error
    outcome = process("check", plate_bundle, "--backend", "openvino", without=["openvino"])
    assert outcome.code == 2
    assert "pip install 'edgead[openvino]'" in outcome.error


def test_a_camera_without_opencv_names_the_missing_extra_and_does_not_wait(process, plate_bundle):
    uri = "rtsp://admin:hunter2@127.0.0.1/cam"
    outcome = process("run", plate_bundle, "--source", uri, "--wait", without=["cv2"])
    assert outcome.code == 2
    assert "pip install 'edgead[camera]'" in outcome.error
    assert "hunter2" not in outcome.err


def test_device_verbs_need_no_training_package(process, plate, plate_bundle, tmp_path):
    good = plate / "test" / "good"
    calls = [
        ("check", plate_bundle, "--images", good),
        ("run", plate_bundle, "--source", good, "--sink", tmp_path / "r.jsonl"),
        ("bench", plate_bundle, "--frames", "2", "--frame-size", "320x240"),
        ("tune", plate_bundle, "--threads", "1", "--frames", "2", "--images", good, "--profile", tmp_path),
        ("capture", "--source", "synthetic://", "-n", "2", "-o", tmp_path / "photos"),
        ("calibrate", plate_bundle, "--source", good, "-o", tmp_path / "new.edgead"),
        ("doctor",),
    ]
    for call in calls:
        outcome = process(*call, "--json", without=HEAVY)
        assert outcome.code == 0, outcome.err
        version = 2 if call[0] == "doctor" else 1
        assert outcome.json["schema"] == f"edgead.{call[0]}/{version}"


def test_eval_of_a_bundle_without_masks_needs_no_training_package(process, plate, plate_bundle, tmp_path):
    for folder in ("test/good", "test/defect"):
        (tmp_path / "plate" / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plate" / folder).symlink_to(plate / folder)
    outcome = process("eval", plate_bundle, tmp_path / "plate", "--json", without=HEAVY)
    assert outcome.code == 0, outcome.err
    assert outcome.json["categories"]["plate"]["pixel_auroc"] is None


def test_json_is_for_programs_also_on_an_ascii_console(plate, plate_bundle):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "edgead", "run", str(plate_bundle), "--source", str(plate / "test" / "good")]
    for arguments in (command, [*command, "--json"]):
        result = subprocess.run(arguments, capture_output=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.decode("ascii"))["frames"]["inspected"] == 4


def test_the_working_directory_is_not_written_to(process, plate_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert process("check", plate_bundle).code == 0
    assert list(Path.cwd().iterdir()) == []


# Streams and terminals

_PROGRAM = "from edgead.cli import main; main()"


def shell(redirection, *arguments, **environment):
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_as_one_that_nobody_reads(closed):
    assert shell(closed, "doctor").returncode == 0
    missing = shell(closed, "check", "/no/such.edgead")
    assert missing.returncode == 2
    assert "internal error" not in missing.stderr


def test_a_closed_stream_leaves_its_number_to_no_file(tmp_path):
    # A file that took number 2 would get what libraries say on stderr.
    program = (
        "import os\nfrom edgead.cli import _app\n_app._open_closed_streams()\n"
        f"handle = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "os.write(2, b'a remark'); os.write(1, b'output'); raise SystemExit(0 if handle > 2 else 1)"
    )
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&- <&-', "sh", sys.executable, "-c", program], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("columns", ["0", "1", "-3", "many"])
def test_a_terminal_of_no_width_is_of_the_usual_one(columns):
    usual = shell("", "doctor")
    odd = shell("", "doctor", COLUMNS=columns)
    assert (odd.returncode, odd.stderr) == (0, "")
    assert len(odd.stdout.splitlines()) <= 2 * len(usual.stdout.splitlines())
    assert len(odd.stdout) > len(usual.stdout) / 2


def test_a_full_disk_behind_stdout_is_said_and_behind_stderr_is_not():
    full = shell(">/dev/full", "doctor")
    assert full.returncode == 2
    assert "No space left" in full.stderr
    assert shell("2>/dev/full", "doctor").returncode == 0


def test_a_run_goes_on_where_its_terminal_is_closed(plate_bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    source = "synthetic://?fps=50"
    arguments = ["run", str(plate_bundle), "--source", source, "--sink", str(results)]
    terminal, inner = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        # A service's terminal: the status line is drawn there.
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(inner)

    def written():
        return results.read_text().count("\n") if results.exists() else 0

    try:
        wait_for(lambda: written() > 2)
        os.close(terminal)
        before = written()
        wait_for(lambda: written() > before + 20)
        child.send_signal(signal.SIGTERM)
        # The summary has nowhere to go, which is said by the code.
        assert child.wait(60) in (0, 2)
    finally:
        child.kill()
        child.wait()
    assert all(json.loads(line)["decision"] for line in results.read_text().splitlines())
