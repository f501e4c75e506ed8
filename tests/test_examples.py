"""Examples run; those that only a device can run are at least well-formed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
JETSON = EXAMPLES / "jetson"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian package systemd)")
def test_systemd_accepts_the_unit_file(tmp_path):
    text = (JETSON / "edgead.service").read_text()
    unit = tmp_path / "edgead.service"
    # Program and user of the station are not here.
    unit.write_text(text.replace("/opt/edgead/venv/bin/edgead", "/bin/true").replace("User=edgead", "User=root"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "edgead.service" not in done.stderr
    unit.write_text(text.replace("KillSignal=SIGTERM", "KillSignal=SIGNONSENSE"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "SIGNONSENSE" in done.stderr


def test_every_command_of_the_unit_file_exists():
    from typer.main import get_command

    from edgead.cli import app

    known = get_command(app).commands
    lines = [line for line in (JETSON / "edgead.service").read_text().splitlines() if line.startswith("ExecStart")]
    verbs = [line.split("bin/edgead ")[1].split()[0] for line in lines]
    assert verbs == ["check", "run"]
    assert set(verbs) <= set(known)


BOOT = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/systemd || exit 1
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd || exit 1
mkdir -p /run/systemd/system && cp "$1"/*.service "$1"/all.target /run/systemd/system || exit 1
exec /lib/systemd/systemd --system --unit=all.target --log-target=console
"""


@pytest.mark.slow
def test_a_real_systemd_starts_the_station_again_after_a_fault_while_running_only(tmp_path):
    if os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
        pytest.skip("needs root and systemd, which is started in namespaces of its own")
    # The rules of the unit that is shipped; what it runs here ends with a code at once.
    rules = re.findall(r"^(?:Restart|StartLimit)\w*=.*$", (JETSON / "edgead.service").read_text(), re.MULTILINE)
    limits = [line for line in rules if line.startswith("StartLimit")]
    restarts = [line for line in rules if line not in limits and not line.startswith("RestartSec")]
    codes = (1, 2, 3, 4)
    for code in codes:
        head = ["[Unit]", "DefaultDependencies=no", *limits, "[Service]", *restarts, "RestartSec=0.1"]
        run = f"ExecStart=/bin/sh -c 'echo started >> {tmp_path}/{code}.log; exit {code}'"
        (tmp_path / f"station{code}.service").write_text("\n".join([*head, run, ""]))
    wanted = " ".join(f"station{code}.service" for code in codes)
    (tmp_path / "all.target").write_text(f"[Unit]\nDefaultDependencies=no\nWants={wanted}\n")
    command = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "sh", "-c", BOOT, "sh"]

    def starts(code: int) -> int:
        log = tmp_path / f"{code}.log"
        return log.read_text().count("\n") if log.exists() else 0

    with (tmp_path / "console").open("wb") as console:
        child = subprocess.Popen(
            [*command, str(tmp_path)], stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        )
    try:
        wait_for(lambda: child.poll() is not None or starts(4) >= 12)
        if child.poll() is not None:
            pytest.skip(f"systemd cannot be started here: {(tmp_path / 'console').read_text()[-200:]}")
        assert starts(1) > 5
        assert (starts(2), starts(3)) == (1, 1)
    finally:
        child.kill()
        child.wait()


def test_the_notebook_runs(tmp_path):
    pytest.importorskip("elpv_dataset")
    cells = json.loads((EXAMPLES / "first_model.ipynb").read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # As a notebook shows it: the last expression of a cell has a picture.
    shown = 'assert result._repr_png_().startswith(b"\\x89PNG")'
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join([*sources[:3], shown, *sources[3:]]))
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "True" in done.stdout
    assert done.stdout.count("NOT_INSPECTED") == 0


def test_the_ten_lines_of_the_readme_run(tmp_path):
    data = Path(pytest.importorskip("elpv_dataset").__file__).parent / "data"
    text = (ROOT / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert lines is not None
    code = lines[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    images = sorted((data / "images").glob("*.png"))
    for folder, files in (("train/good", images[:12]), ("test/good", images[12:15])):
        (tmp_path / "data" / "screw" / folder).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / "data" / "screw" / folder)
    assert '"/dev/video0"' in code
    code = code.replace('"/dev/video0"', '"data/screw/test"').replace('fit("data/screw"', 'fit("data/screw", size=64')
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("end_to_end") == 3


def test_the_story_of_teaching_at_the_line_is_true():
    """Run, review, teach, poisoned labels refused, take over, and the next shift: with real cells and processes."""
    pytest.importorskip("elpv_dataset")
    pytest.importorskip("onnxruntime")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import teach_at_the_line
    finally:
        sys.path.remove(str(EXAMPLES))
    found = teach_at_the_line.main()
    first, second, gate = found["first"], found["second"], found["gate"]
    assert (first["parts"], first["defects"]) == (30, 12)
    assert first["false_alarms"] >= 6  # most of the new batch, nine parts
    assert second["false_alarms"] <= first["false_alarms"] // 3
    assert (gate["false_alarms"]["new"], gate["passed"]) == (0, True)
    assert gate["escapes"]["new"] <= gate["escapes"]["old"]
    assert found["refused"]
    assert all(one["problem"] == "a defect that was caught now passes" for one in found["refused"])
    assert (found["judged"], found["replayed"], found["changed"]) == (60, 60, 0)
